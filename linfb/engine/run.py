"""One run in its parts: what it is made of, how far it has come, and how it advances by an epoch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from linfb._checks import real
from linfb.backend import device_namespace, namespace, stream
from linfb.engine.losses import LOSSES
from linfb.engine.models import Model, evaluate
from linfb.engine.observables import OBSERVABLES, snapshot
from linfb.engine.optimisers import Optimizers, Part
from linfb.engine.results import CURVES
from linfb.engine.state import State, step
from linfb.engine.trees import flatten
from linfb.rules import Rule

__all__ = ["Progress", "Run", "advance", "evaluated", "placed"]

_OBSERVED_ROWS = 512
_EVALUATED_ROWS = 1000


@dataclass(frozen=True)
class Run:
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
class Progress:
    """How far a run has come."""

    state: State
    best: dict[str, Any] = field(default_factory=dict)
    chosen: int = -1
    history: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return len(self.history["train_loss"])


def placed(run: Run, part: str) -> tuple[Any, Any, Any]:
    """Return inputs, one-hot targets and labels of one part, on the device."""
    x, labels = getattr(run.splits, part)
    xp = device_namespace(run.device)
    inputs = x.astype(run.dtype, copy=False)
    targets = np.eye(run.model.n_out, dtype=run.dtype)[labels]
    return xp.asarray(inputs), xp.asarray(targets), xp.asarray(labels)


def _batches(run: Run, epoch: int, rows: int, steps: int) -> Iterator[Any]:
    """Return the rows of every step of an epoch, in an order that depends on seed and epoch only."""
    order = stream(run.seed, "shuffle", epoch).permutation(rows)
    placed = device_namespace(run.device).asarray(order)
    return (placed[i * run.batch_size : (i + 1) * run.batch_size] for i in range(steps))


def advance(run: Run, now: Progress, parts: Mapping[str, Any], steps: int, bar: Any) -> None:
    """Advance by one epoch; `now` keeps what it was until the epoch is complete, but for arrays in its state."""
    xp, (x, targets, labels) = device_namespace(run.device), parts["train"]
    epoch, loss, state = now.epoch, LOSSES[run.loss], now.state
    factor, total, right = real("what schedule returns", run.schedule(epoch), at_least=0.0), 0.0, 0
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
    validation = evaluated(run, state, parts["validation"])
    _finite(validation[0], "validation loss", run, epoch, steps - 1)
    seen = _observed(run, state, parts["validation"])
    now.state = state
    rate = run.parts["W"].optimiser.learning_rate * factor
    curves = (total / steps, right / (steps * run.batch_size), *validation, rate)
    if now.chosen < 0 or validation[1] > max(now.history["validation_accuracy"]):
        now.chosen = epoch
        now.best = {path: xp.asarray(array, copy=True) for path, array in _evaluable(state).items()}
    entries = dict(zip(CURVES, curves, strict=True)) | seen
    now.history = {name: [*before, entries[name]] for name, before in now.history.items()}  # all at once
    bar.set_postfix(epoch=epoch + 1, loss=f"{curves[0]:.3f}", validation=f"{validation[1]:.4f}")


def _evaluable(state: State) -> dict[str, Any]:
    return flatten({"weights": state.weights, "buffers": state.buffers})


def _finite(value: float, what: str, run: Run, epoch: int, number: int) -> float:
    if not np.isfinite(value):
        rate = run.parts["W"].optimiser.learning_rate * run.schedule(epoch)
        raise FloatingPointError(
            f"{what} is {value} in epoch {epoch}, step {number}, under {run.rule.name} with learning rate {rate:g}"
        )
    return value


def _correct(outputs: Any, labels: Any) -> int:
    xp = namespace(outputs, labels)
    return int(xp.sum(xp.astype(xp.argmax(outputs, axis=1) == labels, xp.int64)))


def evaluated(run: Run, state: State, part: tuple[Any, Any, Any]) -> tuple[float, float]:
    """Return loss and accuracy over all rows of a part."""
    x, targets, labels = part
    total, right, rows = 0.0, 0, x.shape[0]
    for start in range(0, rows, _EVALUATED_ROWS):
        chunk = slice(start, min(start + _EVALUATED_ROWS, rows))
        outputs = evaluate(run.model, state.weights, state.buffers, x[chunk, :])
        total += float(LOSSES[run.loss](outputs, targets[chunk, :])[0]) * outputs.shape[0]
        right += _correct(outputs, labels[chunk])
    return total / rows, right / rows


def _observed(run: Run, state: State, part: tuple[Any, Any, Any]) -> dict[str, np.ndarray]:
    if not run.observe:
        return {}
    rows = min(_OBSERVED_ROWS, part[0].shape[0])
    x, targets = part[0][:rows, :], part[1][:rows, :]
    view = snapshot(run.model, run.rule, LOSSES[run.loss], state.weights, state.channels, x, targets)
    return {name: OBSERVABLES[name](view) for name in run.observe}
