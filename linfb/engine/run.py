"""One run in its parts: what it is made of, how far it has come, and how it advances step by step."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from linfb._checks import real
from linfb.backend import Key, device_namespace, namespace, stream, to_numpy
from linfb.engine.graph import Blocks, CudaStream, Step, capturable
from linfb.engine.losses import LOSSES, one_hot
from linfb.engine.models import Model, evaluate
from linfb.engine.observables import Snapshot, snapshot
from linfb.engine.optimisers import Optimizers
from linfb.engine.results import CURVES
from linfb.engine.state import State, step
from linfb.engine.trees import flatten
from linfb.rules import Rule

__all__ = ["Progress", "Run", "advance", "blocks", "evaluated", "placed"]

_OBSERVED_ROWS = 512
_EVALUATED_ROWS = 256
_UNREAD_STEPS = 32


@dataclass(frozen=True)
class Run:
    """What a run is made of; nothing in it changes."""

    splits: Any
    model: Model
    rule: Rule
    batch_size: int
    optimisers: Optimizers
    schedule: Callable[[float], float]
    seed: int
    loss: str
    label_smoothing: float
    error_clip: float | None
    augment: tuple[Any, ...]
    observe: Mapping[str, Callable[[Snapshot], Any]]
    device: str | ModuleType
    dtype: str
    products: str | None
    name: str
    network: Model
    """The model as it is computed: with matrix products in low precision, if that was asked for."""

    def config(self) -> dict[str, Any]:
        """Return what identifies the run, as text."""
        fields = (
            "model", "rule", "batch_size", "schedule", "seed", "loss", "label_smoothing", "error_clip", "augment",
            "dtype", "products",
        )  # fmt: skip
        x, labels = self.splits.train
        fingerprint = zlib.crc32(labels.tobytes(), zlib.crc32(x[:100].tobytes()))
        sizes = "/".join(str(len(part[1])) for part in (self.splits.train, self.splits.validation, self.splits.test))
        device = self.device if isinstance(self.device, str) else self.device.__name__
        return {
            "data": self.name, "samples": sizes, "fingerprint": f"{fingerprint:08x}",
            "optimizer": self.optimisers, "device": device, "observe": tuple(self.observe),
            **{name: getattr(self, name) for name in fields},
        }  # fmt: skip

    def place(self, array: Any) -> Any:
        """Return a copy of a host array on the device, in the run's precision if it holds real numbers."""
        xp = device_namespace(self.device)
        real_numbers = np.asarray(array).dtype.kind == "f"
        return xp.asarray(np.array(array, dtype=self.dtype if real_numbers else None, order="C"))

    def rate(self, epoch: float | int) -> float:
        """Return the factor of the schedule after `epoch` epochs."""
        return real("what schedule returns", self.schedule(epoch), at_least=0.0)


@dataclass
class Progress:
    """How far a run has come."""

    state: State
    step: int = 0
    """Number of complete steps of the present epoch."""
    right: int = 0
    """Rows of the present epoch that were classified rightly."""
    losses: list[float] = field(default_factory=list)
    """Loss of every step of the run."""
    best: dict[str, Any] = field(default_factory=dict)
    chosen: int = -1
    history: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return len(self.history["train_loss"])


def placed(run: Run, part: str) -> tuple[Any, Any]:
    """Return inputs and labels of one part, on the device."""
    x, labels = getattr(run.splits, part)
    xp = device_namespace(run.device)
    return xp.asarray(x.astype(run.dtype, copy=False) if x.dtype.kind == "f" else x), xp.asarray(labels)


def _targets(run: Run, labels: Any, smoothing: float = 0.0) -> Any:
    like = device_namespace(run.device).empty(0, dtype=getattr(device_namespace(run.device), run.dtype))
    return one_hot(labels, run.model.n_out, like=like, smoothing=smoothing)


def blocks(run: Run, data: tuple[Any, Any]) -> Callable[..., tuple[State, Any, Any]]:
    """Return what takes a block of steps on inputs and labels: captured on a GPU, if nothing in them needs the host.

    It goes from the state, the rows (step, batch), number and factor of every step, and a function to call after each,
    to the state, the losses, and how many rows were classified rightly; see :class:`linfb.engine.graph.Blocks`.
    """
    xp, optimisers = device_namespace(run.device), run.optimisers
    parts = (*run.network.layers, run.rule.reader, run.rule.mirror, *run.augment)
    own = partial(_step, run, data, _scale(run, data[0]))
    if "cupy" in xp.__name__ and capturable(*parts, optimisers.W, optimisers.Q, optimisers.P):
        return Blocks(own, xp, run.dtype, (_UNREAD_STEPS, run.batch_size), CudaStream())
    return partial(_one_by_one, own)


def _one_by_one(
    own: Step, state: State, rows: Any, clocks: Sequence[tuple[int, float]], done: Callable[[], Any]
) -> tuple[State, Any, Any]:
    losses, right = [], 0
    for i, clock in enumerate(clocks):
        state, loss, correct = own(state, rows[i, :], *clock)
        losses.append(loss)
        right = right + correct
        done()
    return state, namespace(*losses).stack(losses), right


def _scale(run: Run, x: Any) -> Any:
    if not run.augment:
        return None
    from linfb.datasets.augmentation import scale_of

    return scale_of(run.splits, x)


def _step(
    run: Run, data: tuple[Any, Any], scale: Any, state: State, rows: Any, number: Any, factor: Any
) -> tuple[State, Any, Any]:
    """Take one step on rows of the data."""
    (x, labels), key = data, Key(run.seed)
    batch, wanted = (namespace(rows).take(part, rows, axis=0) for part in (x, labels))
    if run.augment:
        from linfb.datasets.augmentation import augmented

        batch = augmented(batch, run.splits, run.augment, key.at("augment", number), scale)
    state, loss, outputs = step(
        run.network, run.rule, LOSSES[run.loss], run.optimisers, state, batch,
        _targets(run, wanted, run.label_smoothing), number=number, factor=factor, error_clip=run.error_clip,
        key=key.at("step"),
    )  # fmt: skip
    return state, loss, _correct(outputs, wanted)


def advance(
    run: Run, now: Progress, take: Callable[..., Any], parts: Mapping[str, Any], steps: int, bar: Any,
    pause: Callable[[], None],
) -> None:  # fmt: skip
    """Advance to the end of the epoch by blocks of steps; `pause` is called after every block, when `now` is whole.

    The order of the rows depends on seed and epoch only.
    """
    epoch, samples = now.epoch, parts["train"][0].shape[0]
    order = stream(run.seed, "shuffle", epoch).permutation(samples)[: steps * run.batch_size]
    rows = device_namespace(run.device).asarray(order.reshape(steps, run.batch_size))
    for start in range(now.step, steps, _UNREAD_STEPS):
        stop = min(start + _UNREAD_STEPS, steps)
        clocks = [(epoch * steps + i + 1, run.rate(epoch + i / steps)) for i in range(start, stop)]
        now.state, losses, right = take(now.state, rows[start:stop, :], clocks, bar.update)
        now.losses += _read(run, losses, epoch, start)
        now.right, now.step = now.right + int(right), stop
        pause()
    _complete(run, now, parts, steps, bar)


def _read(run: Run, values: Any, epoch: int, first: int) -> list[float]:
    """Return losses of steps, now read from the device."""
    losses = to_numpy(values).astype(np.float64)
    for i, loss in enumerate(losses):
        _finite(float(loss), "loss", run, epoch, first + i)
    return losses.tolist()


def _complete(run: Run, now: Progress, parts: Mapping[str, Any], steps: int, bar: Any) -> None:
    """Close an epoch: all of `now` that belongs to it changes at once."""
    xp, epoch, state = device_namespace(run.device), now.epoch, now.state
    for path, array in flatten(state._replace(slots={})).items():
        _finite(float(xp.sum(array)), path, run, epoch, steps - 1)
    validation = evaluated(run, state, parts["validation"])
    _finite(validation[0], "validation loss", run, epoch, steps - 1)
    seen = _observed(run, state, parts["validation"], epoch)
    terms = steps * run.batch_size * int(np.prod(parts["train"][1].shape[1:]))
    rate = run.optimisers.W.learning_rate * run.rate(epoch + 1 - 1 / steps)
    curves = (float(np.mean(now.losses[-steps:])), now.right / terms, *validation, rate)
    if now.chosen < 0 or validation[1] > max(now.history["validation_accuracy"]):
        now.chosen = epoch
        now.best = {path: xp.asarray(array, copy=True) for path, array in _evaluable(state).items()}
    entries = dict(zip(CURVES, curves, strict=True)) | seen
    now.step, now.right = 0, 0
    now.history = {name: [*before, entries[name]] for name, before in now.history.items()}  # all at once
    bar.set_postfix(epoch=epoch + 1, loss=f"{curves[0]:.3f}", validation=f"{validation[1]:.4f}")


def _evaluable(state: State) -> dict[str, Any]:
    return flatten({"weights": state.weights, "buffers": state.buffers})


def _finite(value: float, what: str, run: Run, epoch: int, number: int) -> float:
    if not np.isfinite(value):
        rate = run.optimisers.W.learning_rate * run.rate(epoch)
        raise FloatingPointError(
            f"{what} is {value} in epoch {epoch}, step {number}, under {run.rule.name} with learning rate {rate:g}"
        )
    return value


def _correct(outputs: Any, labels: Any) -> Any:
    xp = namespace(outputs, labels)
    return xp.sum(xp.astype(xp.argmax(outputs, axis=-1) == labels, xp.int64))


def evaluated(run: Run, state: State, part: tuple[Any, Any]) -> tuple[float, float]:
    """Return loss and accuracy over all rows of a part."""
    x, labels = part
    total, right, rows = 0.0, 0, x.shape[0]
    for start in range(0, rows, _EVALUATED_ROWS):
        chunk = slice(start, min(start + _EVALUATED_ROWS, rows))
        outputs = evaluate(run.network, state.weights, state.buffers, x[chunk, ...])
        wanted = labels[chunk, ...]
        total += float(LOSSES[run.loss](outputs, _targets(run, wanted))[0]) * outputs.shape[0]
        right += int(_correct(outputs, wanted))
    return total / rows, right / (rows * int(np.prod(labels.shape[1:])))


def _observed(run: Run, state: State, part: tuple[Any, Any], epoch: int) -> dict[str, np.ndarray]:
    if not run.observe:
        return {}
    rows = min(_OBSERVED_ROWS, part[0].shape[0])
    x, targets = part[0][:rows, ...], _targets(run, part[1][:rows, ...])
    view = snapshot(
        run.network, run.rule, LOSSES[run.loss], state.weights, state.channels, x, targets,
        key=Key(run.seed).at("observe", epoch),
    )  # fmt: skip
    return {name: np.asarray(observable(view), dtype=np.float64) for name, observable in run.observe.items()}
