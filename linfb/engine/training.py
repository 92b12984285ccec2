"""The training loop: any model, any rule, one way to choose the epoch, nothing lost when it stops."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._checks import choice, integer, real
from linfb._errors import DivergenceError, InterruptedRun
from linfb.backend import device_namespace, namespace, stream
from linfb.engine import checkpoint as checkpoints
from linfb.engine.losses import LOSSES
from linfb.engine.models import Model, evaluate
from linfb.engine.observables import OBSERVABLES, snapshot
from linfb.engine.optimisers import Optimizers, Part
from linfb.engine.results import CURVES, labelled
from linfb.engine.schedules import Constant
from linfb.engine.state import State, initial_state, step
from linfb.engine.trees import flatten, rebuild
from linfb.rules import Rule

if TYPE_CHECKING:
    import xarray

__all__ = ["train"]

_OBSERVED_ROWS = 512
_EVALUATED_ROWS = 1000


def train(
    data: Any,
    model: Model,
    rule: Rule,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Any,
    schedule: Callable[[int], float] | None = None,
    seed: int = 0,
    loss: str = "cross_entropy",
    error_clip: float | None = None,
    observe: Sequence[str] = (),
    device: str | ModuleType = "cpu",
    dtype: str = "float32",
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    name: str | None = None,
) -> xarray.Dataset:
    r"""Train a network under a learning rule on labelled data.

    After every epoch the validation part is evaluated; the epoch with the best validation accuracy (the earliest of
    equals) is chosen. The test part is looked at once, at the end, with the weights of the chosen epoch and with the
    last ones.

    Parameters
    ----------
    data : linfb.datasets.Splits or linfb.datasets.Dataset
        Inputs of shape (sample, feature) and labels for training, validation and test; of a Dataset, ``data.splits()``.
    model : Model
        See :func:`~linfb.engine.models.mlp`.
    rule : Rule
        See :mod:`linfb.rules`.
    epochs : int
        Number of passes over the training part.
    batch_size : int
        Rows per step; the rows that do not fill a last batch are left out of that epoch (others in each).
    optimizer : Optimizer or Optimizers
        See :mod:`linfb.engine.optimisers`; :class:`~linfb.engine.optimisers.Optimizers` sets W, Q and P apart.
    schedule : callable, optional
        From the epoch (from 0) to a factor on every learning rate, see :mod:`linfb.engine.schedules`. A checkpoint
        knows it again by its repr.
    seed : int
        Of starting weights, feedback and shuffling (the split of the data has its own).
    loss : {"cross_entropy", "squared_error"}
        On one-hot labels.
    error_clip : float, optional
        Clip every entry of every carried error; off by default.
    observe : sequence of {"alignment", "captured_energy", "mirror_stability"}
        What to measure after every epoch, on the first 512 rows of the validation part, see
        :mod:`linfb.engine.observables`.
    device : {"cpu", "gpu"} or array-API module
    dtype : {"float32", "float64"}
    progress : bool
        Whether to show a progress bar (on standard error).
    checkpoint : path, optional
        A folder: after every epoch all that is needed to go on is written there, and a run that finds its own
        checkpoint there goes on from it, with the same bits as without the interruption.
    name : str, optional
        What to call the data in the result; None takes the data set's own name.

    Returns
    -------
    xarray.Dataset
        Per epoch `train_loss` and `train_accuracy` (averages over the epoch's steps, in training mode),
        `validation_loss`, `validation_accuracy`, `learning_rate` (of W) and the observables (epoch, layer);
        `test_loss` and `test_accuracy` on `weights` = "chosen", "last"; `chosen_epoch`; `rank` of the channel into
        each kernel layer's input; configuration, seed, capped layers and versions as attributes.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, and for a checkpoint of another run.
    DivergenceError
        If the loss or an array stops being finite; its attribute `partial` is the result up to there.
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
    for observable in observe:
        choice("observe", observable, OBSERVABLES)
    if error_clip is not None:
        real("error_clip", error_clip, above=0.0)
    integer("epochs", epochs, at_least=1)
    choice("dtype", dtype, ("float32", "float64"))
    optimisers = optimizer if isinstance(optimizer, Optimizers) else Optimizers(optimizer)
    schedule = Constant() if schedule is None else schedule
    if not callable(schedule):
        raise TypeError(f"schedule must be callable, from an epoch to a factor, got {schedule!r}")
    splits = _checked(data, model, rule, batch_size, dtype)
    run = _Run(
        splits=splits, model=model, rule=rule, batch_size=batch_size, optimisers=optimisers,
        parts=optimisers.parts(rule), schedule=schedule, seed=seed, loss=loss, error_clip=error_clip,
        observe=tuple(observe), device=device, dtype=dtype,
        name=getattr(data, "name", "splits") if name is None else name,
    )  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # non-finite values are looked for below
        return _train(run, epochs, progress, checkpoint)


def _checked(data: Any, model: Any, rule: Any, batch_size: Any, dtype: str) -> Any:
    """Return the parts of the data, after a check that they, the model and the rule go together."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be a linfb.engine.Model, for example mlp(...), got {model!r}")
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a linfb.rules.Rule, for example linfb.rules.backpropagation(), got {rule!r}")
    splits = data.splits(dtype=dtype) if callable(getattr(data, "splits", None)) else data
    for part in ("train", "validation", "test"):
        if not hasattr(splits, part):
            raise TypeError(f"data must be a linfb.datasets.Dataset or its splits(), got {type(data).__name__}")
        x = getattr(splits, part)[0]
        if len(x) == 0:
            raise ValueError(f"data has no {part} rows; the epoch is chosen on validation, the result is on test")
        if x.ndim != 2 or x.shape[1] != model.n_in:
            raise ValueError(f"data: inputs of part {part} have shape {x.shape}, model expects (sample, {model.n_in})")
    if splits.n_classes > model.n_out:
        raise ValueError(f"data has {splits.n_classes} classes, model has only {model.n_out} outputs")
    integer("batch_size", batch_size, at_least=1, at_most=len(splits.train[0]))
    return splits


@dataclass(frozen=True)
class _Run:
    """What a run is made of; nothing in it changes."""

    splits: Any
    model: Model
    rule: Rule
    batch_size: int
    optimisers: Optimizers
    parts: Mapping[str, Part]
    schedule: Callable[[int], float]
    seed: int
    loss: str
    error_clip: float | None
    observe: tuple[str, ...]
    device: str | ModuleType
    dtype: str
    name: str

    def config(self) -> dict[str, Any]:
        """Return what identifies the run, as text."""
        fields = ("model", "rule", "batch_size", "schedule", "seed", "loss", "error_clip", "observe", "dtype")
        x, labels = self.splits.train
        fingerprint = zlib.crc32(labels.tobytes(), zlib.crc32(x[:100].tobytes()))
        sizes = "/".join(str(len(part[1])) for part in (self.splits.train, self.splits.validation, self.splits.test))
        device = self.device if isinstance(self.device, str) else self.device.__name__
        return {
            "data": self.name, "samples": sizes, "fingerprint": f"{fingerprint:08x}",
            "optimizer": self.optimisers, "device": device,
            **{name: getattr(self, name) for name in fields},
        }  # fmt: skip

    def place(self, array: Any) -> Any:
        """Return a copy of a host array on the device, in the run's precision if it holds real numbers."""
        xp = device_namespace(self.device)
        real_numbers = np.asarray(array).dtype.kind == "f"
        return xp.asarray(np.array(array, dtype=self.dtype if real_numbers else None, order="C"))


@dataclass
class _Progress:
    """How far a run has come."""

    state: State
    best: dict[str, Any] = field(default_factory=dict)
    chosen: int = -1
    history: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        return len(self.history["train_loss"])


def _train(run: _Run, epochs: int, progress: bool, folder: Any) -> Any:
    from tqdm import tqdm

    state, drawn = initial_state(run.model, run.rule, run.parts, run.seed, run.place)
    now = _Progress(state, history={name: [] for name in (*CURVES, *run.observe)})
    if folder is not None:
        _resume(run, now, epochs, folder)
    parts = {part: _placed(run, part) for part in ("train", "validation")}
    steps = parts["train"][0].shape[0] // run.batch_size
    config = run.config() | {"epochs": epochs, "capped_layers": drawn.capped}

    def result(tests: Mapping[str, tuple[float, float]]) -> Any:
        return labelled(now.history, tests, drawn.ranks, len(run.model.kernels), now.chosen, config)

    bar = tqdm(total=epochs * steps, initial=now.epoch * steps, disable=not progress, unit="step", desc=run.rule.name)
    with bar:
        try:
            while now.epoch < epochs:
                _epoch(run, now, parts, steps, bar)
                if folder is not None:
                    _save(run, now, folder)
            return result(_test(run, now))
        except FloatingPointError as error:
            raise DivergenceError(str(error), result({})) from None
        except KeyboardInterrupt:
            raise InterruptedRun(f"interrupted after {now.epoch} complete epochs", result({})) from None


def _placed(run: _Run, part: str) -> tuple[Any, Any, Any]:
    """Return inputs, one-hot targets and labels of one part, on the device."""
    x, labels = getattr(run.splits, part)
    xp = device_namespace(run.device)
    inputs = x.astype(run.dtype, copy=False)
    targets = np.eye(run.model.n_out, dtype=run.dtype)[labels]
    return xp.asarray(inputs), xp.asarray(targets), xp.asarray(labels)


def _batches(run: _Run, epoch: int, rows: int, steps: int) -> Iterator[Any]:
    """Return the rows of every step of an epoch, in an order that depends on seed and epoch only."""
    order = stream(run.seed, "shuffle", epoch).permutation(rows)
    placed = device_namespace(run.device).asarray(order)
    return (placed[i * run.batch_size : (i + 1) * run.batch_size] for i in range(steps))


def _epoch(run: _Run, now: _Progress, parts: Mapping[str, Any], steps: int, bar: Any) -> None:
    """Advance by one epoch; `now` keeps what it was until the epoch is complete, but for arrays in its state."""
    xp, (x, targets, labels) = device_namespace(run.device), parts["train"]
    epoch, loss, state = now.epoch, LOSSES[run.loss], now.state
    factor, total, right = run.schedule(epoch), 0.0, 0
    for i, rows in enumerate(_batches(run, epoch, x.shape[0], steps)):
        batch, wanted = xp.take(x, rows, axis=0), xp.take(targets, rows, axis=0)
        state, value, outputs = step(
            run.model, run.rule, loss, run.parts, state, batch, wanted,
            number=epoch * steps + i + 1, factor=factor, error_clip=run.error_clip,
        )  # fmt: skip
        total += _finite(float(value), "loss", run, epoch, i)
        right += _correct(outputs, xp.take(labels, rows, axis=0))
        bar.update()
    for path, array in flatten(state._replace(slots={})).items():
        _finite(float(xp.sum(array)), path, run, epoch, steps - 1)
    validation = _evaluated(run, state, parts["validation"])
    _finite(validation[0], "validation loss", run, epoch, steps - 1)
    seen = _observed(run, state, parts["validation"])
    now.state = state
    rate = run.parts["W"].optimiser.learning_rate * factor
    curves = (total / steps, right / (steps * run.batch_size), *validation, rate)
    if now.chosen < 0 or validation[1] > max(now.history["validation_accuracy"]):
        now.chosen = epoch
        now.best = {path: xp.asarray(array, copy=True) for path, array in _evaluable(state).items()}
    for name, entry in (*zip(CURVES, curves, strict=True), *seen.items()):
        now.history[name].append(entry)
    bar.set_postfix(epoch=epoch + 1, loss=f"{curves[0]:.3f}", validation=f"{validation[1]:.4f}")


def _evaluable(state: State) -> dict[str, Any]:
    return flatten({"weights": state.weights, "buffers": state.buffers})


def _finite(value: float, what: str, run: _Run, epoch: int, number: int) -> float:
    if not np.isfinite(value):
        rate = run.parts["W"].optimiser.learning_rate * run.schedule(epoch)
        raise FloatingPointError(
            f"{what} is {value} in epoch {epoch}, step {number}, under {run.rule.name} with learning rate {rate:g}"
        )
    return value


def _correct(outputs: Any, labels: Any) -> int:
    xp = namespace(outputs, labels)
    return int(xp.sum(xp.astype(xp.argmax(outputs, axis=1) == labels, xp.int64)))


def _evaluated(run: _Run, state: State, part: tuple[Any, Any, Any]) -> tuple[float, float]:
    """Return loss and accuracy over all rows of a part."""
    x, targets, labels = part
    total, right, rows = 0.0, 0, x.shape[0]
    for start in range(0, rows, _EVALUATED_ROWS):
        chunk = slice(start, min(start + _EVALUATED_ROWS, rows))
        outputs = evaluate(run.model, state.weights, state.buffers, x[chunk, :])
        total += float(LOSSES[run.loss](outputs, targets[chunk, :])[0]) * outputs.shape[0]
        right += _correct(outputs, labels[chunk])
    return total / rows, right / rows


def _observed(run: _Run, state: State, part: tuple[Any, Any, Any]) -> dict[str, np.ndarray]:
    if not run.observe:
        return {}
    rows = min(_OBSERVED_ROWS, part[0].shape[0])
    x, targets = part[0][:rows, :], part[1][:rows, :]
    view = snapshot(run.model, run.rule, LOSSES[run.loss], state.weights, state.channels, x, targets)
    return {name: OBSERVABLES[name](view) for name in run.observe}


def _test(run: _Run, now: _Progress) -> dict[str, tuple[float, float]]:
    part = _placed(run, "test")
    trees = rebuild({"weights": now.state.weights, "buffers": now.state.buffers}, now.best)
    return {
        "chosen": _evaluated(run, now.state._replace(**trees), part),
        "last": _evaluated(run, now.state, part),
    }


def _save(run: _Run, now: _Progress, folder: Any) -> None:
    history = {name: np.array(values) for name, values in now.history.items()}
    arrays = flatten({"state": now.state, "best": now.best, "history": history})
    header = {"config": {key: str(value) for key, value in run.config().items()}, "chosen": now.chosen}
    checkpoints.save(folder, arrays, header)


def _resume(run: _Run, now: _Progress, epochs: int, folder: Any) -> None:
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
    placed = {path: run.place(array) for path, array in arrays.items()}
    now.state = rebuild(now.state, placed, "state")
    now.best = {path.removeprefix("best/"): array for path, array in placed.items() if path.startswith("best/")}
    now.history = {name: list(arrays[f"history/{name}"]) for name in now.history}
    now.chosen = header["chosen"]
    if now.epoch > epochs:
        raise ValueError(f"epochs is {epochs}, but the checkpoint in {folder} already holds {now.epoch}")
