"""The training loop: any model, any rule, one way to choose the epoch, nothing lost when it stops."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._checks import choice, integer, path, real
from linfb._errors import DivergenceError, InterruptedRun
from linfb._threads import threads as in_threads
from linfb.engine import checkpoint as checkpoints
from linfb.engine.losses import LOSSES
from linfb.engine.models import Model
from linfb.engine.observables import OBSERVABLES
from linfb.engine.optimisers import Optimizers
from linfb.engine.results import CURVES, labelled
from linfb.engine.run import Progress, Run, advance, blocks, evaluated, placed
from linfb.engine.schedules import Constant
from linfb.engine.state import initial_state
from linfb.engine.trees import flatten, rebuild
from linfb.rules import Rule

if TYPE_CHECKING:
    import xarray

__all__ = ["train"]


def train(
    data: Any,
    model: Model,
    rule: Rule,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Any,
    schedule: Callable[[float], float] | None = None,
    seed: int = 0,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    error_clip: float | None = None,
    augment: Sequence[Any] = (),
    observe: str | Sequence[str] | Mapping[str, Callable[[Any], Any]] = (),
    device: str | ModuleType = "cpu",
    dtype: str = "float32",
    products: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 300.0,
    name: str | None = None,
) -> xarray.Dataset:
    r"""Train a network under a learning rule on labelled data.

    After every epoch the validation part is evaluated; the epoch with the best validation accuracy (the earliest of
    equals) is chosen. The test part is looked at once, at the end, with the weights of the chosen epoch and with the
    last ones.

    Parameters
    ----------
    data : linfb.datasets.Splits, linfb.datasets.Dataset or linfb.datasets.Text
        Inputs of shape ``(sample, *model.shape)`` and labels for training, validation and test; of a data set, its
        ``splits()``, as images if the model takes images.
    model : Model
        See :mod:`linfb.engine.architectures`.
    rule : Rule
        See :mod:`linfb.rules`.
    epochs : int
        Number of passes over the training part.
    batch_size : int
        Rows per step; the rows that do not fill a last batch are left out of that epoch (others in each).
    optimizer : Optimizer or Optimizers
        See :mod:`linfb.engine.optimisers`; :class:`~linfb.engine.optimisers.Optimizers` sets W, Q and P apart.
    schedule : callable, optional
        From the number of epochs that have passed (0 at the start, 2.5 in the middle of the third) to a factor on
        every learning rate, see :mod:`linfb.engine.schedules`. A checkpoint knows it again by its repr.
    seed : int
        Of starting weights, feedback and shuffling (the split of the data has its own).
    loss : {"cross_entropy", "squared_error"}
        On one-hot labels.
    label_smoothing : float
        Share of every label in training that is spread over all classes, in [0, 1).
    error_clip : float, optional
        Clip every entry of every carried error; off by default.
    augment : sequence of augmentations
        What to do to the images of every batch, see :mod:`linfb.datasets.augmentation`.
    observe : str, sequence of str, or mapping from str to callable
        What to measure after every epoch, on the first 512 rows of the validation part: names of
        :data:`linfb.engine.observables.OBSERVABLES`, or own functions from a
        :class:`~linfb.engine.observables.Snapshot` to one number per kernel layer.
    device : {"cpu", "gpu"} or array-API module
    dtype : {"float32", "float64"}
        Precision of weights, activities and errors.
    products : {None, "tf32", "bfloat16", "float16"}
        Precision inside matrix products, where it is lower; all else stays in `dtype`.
    threads : int, optional
        On the CPU; None takes as many as the BLAS library would. Results do not depend on it.
    progress : bool
        Whether to show a progress bar (on standard error).
    checkpoint : path, optional
        A folder: all that is needed to go on is written there, and a run that finds its own checkpoint there goes on
        from it, with the same bits as without the interruption.
    checkpoint_seconds : float
        When this long has passed since the last checkpoint, the next 32nd step writes one; so does every epoch's end.
    name : str, optional
        What to call the data in the result; None takes the data set's own name.

    Returns
    -------
    xarray.Dataset
        Per step `step_loss`; per epoch `train_loss` and `train_accuracy` (averages over its steps, in training mode),
        `validation_loss`, `validation_accuracy`, `learning_rate` (of W) and the observables (epoch, layer);
        `test_loss` and `test_accuracy` on `weights` = "chosen", "last"; `chosen_epoch`; `rank` of the channel into
        each kernel layer's input; configuration, seed, capped layers and versions as attributes.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, and for a checkpoint of another run.
    DivergenceError
        If the loss (looked at every 32 steps) or an array stops being finite; its attribute `partial` is the result up
        to there.
    InterruptedRun
        On the user's interrupt (it is a KeyboardInterrupt); with `partial` likewise.

    Examples
    --------
    >>> from linfb.datasets import load_dataset
    >>> from linfb.engine import amsgrad, mlp, train
    >>> from linfb.rules import low_rank
    >>> run = train(load_dataset("digits"), mlp(64, (32,), 10), low_rank(5), epochs=2, batch_size=32,
    ...             optimizer=amsgrad(3e-3), progress=False)
    >>> run.sizes["epoch"], run["rank"].values, bool(run.test_accuracy.sel(weights="last") > 0.5)
    (2, array([0, 5]), True)
    """
    choice("loss", loss, LOSSES)
    if checkpoint is not None:
        path("checkpoint", checkpoint)
    if error_clip is not None:
        real("error_clip", error_clip, above=0.0)
    real("label_smoothing", label_smoothing, at_least=0.0, below=1.0)
    real("checkpoint_seconds", checkpoint_seconds, at_least=0.0)
    integer("epochs", epochs, at_least=1)
    choice("dtype", dtype, ("float32", "float64"))
    optimisers = optimizer if isinstance(optimizer, Optimizers) else Optimizers(optimizer)
    schedule = Constant() if schedule is None else schedule
    if not callable(schedule):
        raise TypeError(f"schedule must be callable, from an epoch to a factor, got {schedule!r}")
    splits = _checked(data, model, rule, batch_size, dtype)
    run = Run(
        splits=splits, model=model, rule=rule, batch_size=batch_size, optimisers=optimisers, schedule=schedule,
        seed=seed, loss=loss, label_smoothing=label_smoothing, error_clip=error_clip,
        augment=_augmentations(augment, splits), observe=_observables(observe), device=device, dtype=dtype,
        products=products, name=getattr(data, "name", "splits") if name is None else name,
        network=_network(model, products, device),
    )  # fmt: skip
    with (
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),  # non-finite values are looked for below
        in_threads(_threads(threads)),
        _multiplied(device, products),
    ):
        return _train(run, epochs, progress, checkpoint, checkpoint_seconds)


def _threads(threads: int | None) -> int:
    if threads is not None:
        return integer("threads", threads, at_least=1)
    from threadpoolctl import threadpool_info

    return max([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"], default=1)


def _network(model: Model, products: str | None, device: Any) -> Model:
    """Return the model as it is computed: with products in low precision, and in fewer passes on a CPU."""
    if products is not None and choice("products", products, ("tf32", "bfloat16", "float16")) != "tf32":
        from linfb.engine.layers.precision import cast

        model = Model(cast(model.layers, products), model.shape)
    if device != "cpu":
        return model
    from linfb.engine.fusing import fused

    return fused(model)


def _multiplied(device: Any, products: str | None) -> AbstractContextManager[None]:
    if products != "tf32":
        return nullcontext()
    from linfb.engine.layers.precision import tensor_float32

    return tensor_float32(device)


def _augmentations(augment: Any, splits: Any) -> tuple[Any, ...]:
    if callable(augment) or not isinstance(augment, Iterable):
        raise TypeError(f"augment must be a sequence of augmentations, got {augment!r}")
    augmentations = tuple(augment)
    for entry in augmentations:
        if not callable(getattr(entry, "augment", None)):
            raise TypeError(f"augment must hold augmentations such as linfb.datasets.RandomFlip(), got {entry!r}")
    if augmentations and getattr(splits, "image_shape", None) is None:
        raise ValueError("augment is for images, and the data are none")
    return augmentations


def _observables(observe: Any) -> dict[str, Callable[[Any], Any]]:
    if isinstance(observe, Mapping):
        for name, observable in observe.items():
            if not (isinstance(name, str) and callable(observable)):
                raise TypeError(f"observe (a mapping) must go from names to functions, got {name!r}: {observable!r}")
        return dict(observe)
    if not isinstance(observe, Iterable):
        raise TypeError(f"observe must be names of observables, got {observe!r}")
    names = [observe] if isinstance(observe, str) else observe
    return {choice("observe", name, OBSERVABLES): OBSERVABLES[name] for name in names}


def _checked(data: Any, model: Any, rule: Any, batch_size: Any, dtype: str) -> Any:
    """Return the parts of the data, after a check that they, the model and the rule go together."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be a linfb.engine.Model, for example mlp(...), got {model!r}")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a linfb.rules.Rule, for example linfb.rules.backpropagation(), got {rule!r}")
    splits = data
    if callable(getattr(data, "splits", None)):
        splits = data.splits(dtype=dtype, **({"layout": "image"} if len(model.shape) == 3 else {}))
    for part in ("train", "validation", "test"):
        if not hasattr(splits, part):
            raise TypeError(f"data must be a linfb.datasets.Dataset or its splits(), got {type(data).__name__}")
        x = getattr(splits, part)[0]
        if len(x) == 0:
            raise ValueError(f"data has no {part} rows; the epoch is chosen on validation, the result is on test")
        if x.shape[1:] != model.shape:
            raise ValueError(
                f"data: inputs of part {part} have shape {x.shape}, model expects (sample, "
                f"{', '.join(str(size) for size in model.shape)})"
            )
    if splits.n_classes > model.n_out:
        raise ValueError(f"data has {splits.n_classes} classes, model has only {model.n_out} outputs")
    integer("batch_size", batch_size, at_least=1, at_most=len(splits.train[0]))
    return splits


def _train(run: Run, epochs: int, progress: bool, folder: Any, seconds: float) -> Any:
    from tqdm import tqdm

    state, drawn = initial_state(run.network, run.rule, run.optimisers, run.seed, run.place)
    drawn = drawn._replace(channels=())  # the state has them in its own precision
    now = Progress(state, history={name: [] for name in (*CURVES, *run.observe)})
    if folder is not None:
        _resume(run, now, epochs, folder)
    parts = {part: placed(run, part) for part in ("train", "validation")}
    steps, take = parts["train"][0].shape[0] // run.batch_size, blocks(run, parts["train"])
    config = run.config() | {"epochs": epochs, "capped_layers": drawn.capped}
    saved = time.monotonic()

    def pause() -> None:
        nonlocal saved
        if folder is not None and time.monotonic() - saved >= seconds:
            _save(run, now, folder)
            saved = time.monotonic()

    def result(tests: Mapping[str, tuple[float, float]]) -> Any:
        return labelled(now.history, now.losses, tests, drawn.ranks, len(run.model.kernels), now.chosen, config)

    done = now.epoch * steps + now.step
    bar = tqdm(total=epochs * steps, initial=done, disable=not progress, unit="step", desc=run.rule.name)
    with bar:
        try:
            while now.epoch < epochs:
                advance(run, now, take, parts, steps, bar, pause)
                if folder is not None:
                    _save(run, now, folder)
                    saved = time.monotonic()
            return result(_test(run, now))
        except FloatingPointError as error:
            raise DivergenceError(str(error), result({})) from None
        except KeyboardInterrupt:
            raise InterruptedRun(f"interrupted after {now.epoch} complete epochs", result({})) from None


def _test(run: Run, now: Progress) -> dict[str, tuple[float, float]]:
    part = placed(run, "test")
    trees = rebuild({"weights": now.state.weights, "buffers": now.state.buffers}, now.best)
    return {
        "chosen": evaluated(run, now.state._replace(**trees), part),
        "last": evaluated(run, now.state, part),
    }


def _save(run: Run, now: Progress, folder: Any) -> None:
    history = {name: np.array(values) for name, values in now.history.items()}
    arrays = flatten({"state": now.state, "best": now.best, "history": history, "losses": np.array(now.losses)})
    config = {key: str(value) for key, value in run.config().items()}
    checkpoints.save(folder, arrays, {"config": config, "chosen": now.chosen, "step": now.step, "right": now.right})


def _resume(run: Run, now: Progress, epochs: int, folder: Any) -> None:
    """Go on from a checkpoint, if the folder has one."""
    found = checkpoints.load(folder)
    if found is None:
        return
    arrays, header = found
    config = {key: str(value) for key, value in run.config().items()}
    differing = sorted(key for key in config if config[key] != header["config"].get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"checkpoint in {folder} is of another run: {', '.join(differing)} differ; "
            f"{key} was {header['config'].get(key)}, is {config[key]}"
        )
    copied = {path: run.place(array) for path, array in arrays.items() if path.startswith(("state/", "best/"))}
    now.state = rebuild(now.state, copied, "state")
    now.best = {path.removeprefix("best/"): array for path, array in copied.items() if path.startswith("best/")}
    now.history = {name: list(arrays[f"history/{name}"]) for name in now.history}
    now.losses = arrays["losses"].tolist()
    now.chosen, now.step, now.right = header["chosen"], header["step"], header["right"]
    if now.epoch > epochs:
        raise ValueError(f"epochs is {epochs}, but the checkpoint in {folder} already holds {now.epoch}")
