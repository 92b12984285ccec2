"""The training loop: any model, any rule, one way to choose the epoch, nothing lost when it stops."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._checks import choice, integer, path, real
from linfb._errors import DivergenceError, InterruptedRun
from linfb._threads import threads as in_threads
from linfb.engine import checkpoint as checkpoints
from linfb.engine.layers.runs import joined
from linfb.engine.losses import LOSSES
from linfb.engine.models import Model
from linfb.engine.observables import OBSERVABLES
from linfb.engine.optimisers import Optimizers
from linfb.engine.results import CURVES, labelled
from linfb.engine.run import Progress, Record, Run, advance, begun, evaluated, placed
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
    run = described(
        data, model, rule, batch_size=batch_size, optimizer=optimizer, schedule=schedule, seed=seed, loss=loss,
        label_smoothing=label_smoothing, error_clip=error_clip, augment=augment, observe=observe, device=device,
        dtype=dtype, products=products, name=name,
    )  # fmt: skip
    with settled(run, threads):
        results, errors, interrupted = trained([run], epochs, progress, checkpoint, checkpoint_seconds, together=False)
    if interrupted:
        raise InterruptedRun(f"interrupted after {results[0].sizes['epoch']} complete epochs", results[0])
    if errors[0] is not None:
        raise DivergenceError(errors[0], results[0])
    return results[0]


def described(
    data: Any,
    model: Model,
    rule: Rule,
    *,
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
    name: str | None = None,
) -> Run:
    """Return a run from the arguments of :func:`train` that say what it is, after a check of each."""
    choice("loss", loss, LOSSES)
    if error_clip is not None:
        real("error_clip", error_clip, above=0.0)
    real("label_smoothing", label_smoothing, at_least=0.0, below=1.0)
    choice("dtype", dtype, ("float32", "float64"))
    schedule = Constant() if schedule is None else schedule
    if not callable(schedule):
        raise TypeError(f"schedule must be callable, from an epoch to a factor, got {schedule!r}")
    splits = _checked(data, model, rule, batch_size, dtype)
    return Run(
        splits=splits, model=model, rule=rule, batch_size=batch_size, optimisers=optimisers_of(optimizer),
        schedule=schedule, seed=seed, loss=loss, label_smoothing=label_smoothing, error_clip=error_clip,
        augment=_augmentations(augment, splits), observe=_observables(observe), device=device, dtype=dtype,
        products=products, name=getattr(data, "name", "splits") if name is None else name,
        network=_network(model, products, device),
    )  # fmt: skip


def optimisers_of(optimizer: Any) -> Optimizers:
    """Return the optimisers of W, Q and P, from one for all."""
    return optimizer if isinstance(optimizer, Optimizers) else Optimizers(optimizer)


@contextmanager
def settled(run: Run, threads: int | None) -> Iterator[None]:
    """Set what holds while a run is trained: threads, what is done about numbers that overflow, precision of products.

    Numbers that are not finite are looked for by the training loop.
    """
    with (
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
        in_threads(_threads(threads)),
        _multiplied(run.device, run.products),
    ):
        yield


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
            raise TypeError(f"data must be a linfb.datasets.Dataset (from_arrays makes one), got {type(data).__name__}")
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


def trained(
    runs: Sequence[Run], epochs: int, progress: bool, folder: Any, seconds: float, *, together: bool, begin: bool = True
) -> tuple[list[Any], list[str | None], bool]:
    """Train runs side by side, or one alone; return a result for each, why some ended early, and if all were cut short.

    Under the user's interrupt results are what was computed before; without `begin` they are empty.
    """
    if folder is not None:
        path("checkpoint", folder)
    real("checkpoint_seconds", seconds, at_least=0.0)
    integer("epochs", epochs, at_least=1)
    records, states = [], []
    for run in runs:
        state, drawn = initial_state(run.network, run.rule, run.optimisers, run.seed, run.place)
        records.append(Record(run, drawn.ranks, drawn.capped, history={name: [] for name in (*CURVES, *run.observe)}))
        states.append(state)
    step = 0
    if folder is not None:
        step = _resume(records, states, epochs, folder)
    tests: list[dict[str, tuple[float, float]]] = [{} for _ in runs]
    interrupted = False
    parts = {part: placed(runs[0], part) for part in ("train", "validation")}
    steps = parts["train"][0].shape[0] // runs[0].batch_size
    try:
        if begin and any(record.error is None for record in records):
            now = begun(records, states, step, together)
            del states
            _advanced(now, records, parts, steps, epochs, progress, folder, seconds)
            for record, found in zip(now.records, _test(now), strict=True):
                tests[records.index(record)] = found
    except KeyboardInterrupt:
        interrupted = True
    results = [
        labelled(
            record.history, record.losses, found, record.ranks, len(record.run.model.kernels), record.chosen,
            record.run.config() | {"epochs": epochs, "capped_layers": record.capped},
        )
        for record, found in zip(records, tests, strict=True)
    ]  # fmt: skip
    return results, [record.error for record in records], interrupted


def _advanced(
    now: Progress, records: Sequence[Record], parts: Mapping[str, Any], steps: int, epochs: int, progress: bool,
    folder: Any, seconds: float,
) -> None:  # fmt: skip
    """Advance to the last epoch, with checkpoints of all records now and then."""
    from tqdm import tqdm

    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        if folder is not None:
            _save(now, records, folder)
            saved = time.monotonic()

    def pause() -> None:
        if time.monotonic() - saved >= seconds:
            save()

    width, names = len(now.records), dict.fromkeys(record.run.rule.name for record in now.records)
    bar = tqdm(
        total=epochs * steps * width, initial=(now.epoch * steps + now.step) * width, disable=not progress,
        unit="step", desc=", ".join(names),
    )  # fmt: skip
    with bar:
        while now.records and now.epoch < epochs:
            advance(now, parts, steps, bar, pause)
            save()


def _test(now: Progress) -> list[dict[str, tuple[float, float]]]:
    """Return loss and accuracy of every run on the test part, with its chosen and its last weights."""
    if not now.records:
        return []
    part, best = placed(now.records[0].run, "test"), [record.best for record in now.records]
    arrays = {path: joined([one[path] for one in best]) for path in best[0]} if now.group.leading else best[0]
    trees = rebuild({"weights": now.state.weights, "buffers": now.state.buffers}, arrays)
    found = {
        kind: np.stack(evaluated(now.group, state, part), axis=-1).reshape(-1, 2).tolist()
        for kind, state in (("chosen", now.state._replace(**trees)), ("last", now.state))
    }
    return [{kind: tuple(values[r]) for kind, values in found.items()} for r in range(len(best))]


def _save(now: Progress, records: Sequence[Record], folder: Any) -> None:
    states = {id(record): state for record, state in zip(now.records, now.states(), strict=True)}
    trees, runs = {}, []
    for r, record in enumerate(records):
        history = {name: np.array(values) for name, values in record.history.items()}
        trees[f"{r}"] = {
            "state": states.get(id(record)), "best": record.best, "history": history, "losses": np.array(record.losses)
        }  # fmt: skip
        config = {key: str(value) for key, value in record.run.config().items()}
        runs.append({"config": config} | {name: getattr(record, name) for name in ("chosen", "right", "error")})
    checkpoints.save(folder, flatten(trees), {"step": now.step, "runs": runs})


def _resume(records: Sequence[Record], states: list[State], epochs: int, folder: Any) -> int:
    """Go on from a checkpoint, if the folder has one; return the number of complete steps of the present epoch."""
    found = checkpoints.load(folder)
    if found is None:
        return 0
    arrays, header = found
    if len(header["runs"]) != len(records):
        raise ValueError(f"checkpoint in {folder} holds {len(header['runs'])} runs, not {len(records)}")
    for r, (record, saved) in enumerate(zip(records, header["runs"], strict=True)):
        _check_config(record.run, saved["config"], folder)
        own = {path.partition("/")[2]: array for path, array in arrays.items() if path.startswith(f"{r}/")}
        copied = {path: record.run.place(array) for path, array in own.items() if path.startswith(("state/", "best/"))}
        if saved["error"] is None:
            states[r] = rebuild(states[r], copied, "state")
        record.best = {path.removeprefix("best/"): a for path, a in copied.items() if path.startswith("best/")}
        record.history = {name: list(own[f"history/{name}"]) for name in record.history}
        record.losses = own["losses"].tolist()
        record.chosen, record.right, record.error = saved["chosen"], saved["right"], saved["error"]
        if record.epoch > epochs:
            raise ValueError(f"epochs is {epochs}, but the checkpoint in {folder} already holds {record.epoch}")
    return header["step"]


def _check_config(run: Run, saved: Mapping[str, str], folder: Any) -> None:
    config = {key: str(value) for key, value in run.config().items()}
    differing = sorted(key for key in config if config[key] != saved.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"checkpoint in {folder} is of another run: {', '.join(differing)} differ; "
            f"{key} was {saved.get(key)}, is {config[key]}"
        )
