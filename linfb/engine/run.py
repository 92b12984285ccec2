"""Runs in their parts: what one is made of, how far it has come, and how several advance together, step by step."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from linfb._checks import real
from linfb.backend import Key, Keys, device_namespace, namespace, stream, to_numpy
from linfb.engine.graph import Blocks, CudaStream, Step, capturable
from linfb.engine.layers.runs import side_by_side
from linfb.engine.losses import LOSSES, one_hot
from linfb.engine.models import Model, evaluate
from linfb.engine.observables import Snapshot, snapshot
from linfb.engine.optimisers import Optimizers, joined
from linfb.engine.results import CURVES
from linfb.engine.state import State, of_run, stacked_states, step
from linfb.engine.trees import flatten
from linfb.rules import Rule

__all__ = ["Group", "Progress", "Record", "Run", "advance", "begun", "blocks", "evaluated", "placed"]

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
class Record:
    """What one run has shown so far."""

    run: Run
    ranks: Mapping[int, int]
    """Widths of its channels, by kernel layer."""
    capped: tuple[int, ...]
    right: int = 0
    """Rows of the present epoch that were classified rightly."""
    losses: list[float] = field(default_factory=list)
    """Loss of every step of the run."""
    best: dict[str, Any] = field(default_factory=dict)
    chosen: int = -1
    history: dict[str, list[Any]] = field(default_factory=dict)
    error: str | None = None
    """Why the run has ended before its time."""

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return len(self.history["train_loss"])


@dataclass(frozen=True)
class Group:
    """Runs that take their steps together, on arrays with a leading run axis; or one run without it."""

    runs: tuple[Run, ...]
    network: Model
    optimisers: Optimizers

    @property
    def leading(self) -> int:
        """Number of axes before the batch."""
        return self.network.leading

    @property
    def seeds(self) -> tuple[int, ...]:
        """The different seeds."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    @property
    def key(self) -> Key | Keys:
        """The place of all random numbers."""
        return Keys(tuple(run.seed for run in self.runs)) if self.leading else Key(self.runs[0].seed)

    def loss(self, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Return the loss of every run, and its derivative with respect to the outputs."""
        return LOSSES[self.runs[0].loss](outputs, targets, self.leading)


def grouped(runs: Sequence[Run], together: bool) -> Group:
    """Return runs as a group: with a run axis, or the only one without."""
    if not together:
        return Group(tuple(runs), runs[0].network, runs[0].optimisers)
    from linfb.engine.fusing import apart

    optimisers = joined([run.optimisers for run in runs])
    return Group(tuple(runs), side_by_side(apart(runs[0].network), len(runs)), optimisers)


@dataclass
class Progress:
    """How far the runs of a group have come, and with what."""

    group: Group
    state: State
    records: tuple[Record, ...]
    step: int = 0
    """Number of complete steps of the present epoch."""
    take: Any = None
    """What takes blocks of steps of this group (:func:`blocks`)."""

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return self.records[0].epoch

    def states(self) -> list[State]:
        """Return the state of every run by itself."""
        if not self.group.leading:
            return [self.state for _ in self.records]
        return [of_run(self.state, r, record.ranks) for r, record in enumerate(self.records)]


def begun(records: Sequence[Record], states: Sequence[State], step: int, together: bool) -> Progress:
    """Return the progress of those runs that have not ended."""
    going = [(record, state) for record, state in zip(records, states, strict=True) if record.error is None]
    records, states = (tuple(some) for some in zip(*going, strict=True))
    group = grouped([record.run for record in records], together)
    state = stacked_states(states, group.runs[0].place) if together else states[0]
    return Progress(group, state, records, step)


def placed(run: Run, part: str) -> tuple[Any, Any]:
    """Return inputs and labels of one part, on the device."""
    x, labels = getattr(run.splits, part)
    xp = device_namespace(run.device)
    return xp.asarray(x.astype(run.dtype, copy=False) if x.dtype.kind == "f" else x), xp.asarray(labels)


def _targets(run: Run, labels: Any, smoothing: float = 0.0) -> Any:
    like = device_namespace(run.device).empty(0, dtype=getattr(device_namespace(run.device), run.dtype))
    return one_hot(labels, run.model.n_out, like=like, smoothing=smoothing)


def blocks(group: Group, data: tuple[Any, Any]) -> Callable[..., tuple[State, Any, Any]]:
    """Return what takes a block of steps on inputs and labels: captured on a GPU, if nothing in them needs the host.

    It goes from the state, the rows (step, ..., batch), number and factor of every step, and a function to call after
    each, to the state, the losses, and how many rows were classified rightly; see :class:`linfb.engine.graph.Blocks`.
    """
    run, optimisers = group.runs[0], group.optimisers
    xp, rule = device_namespace(run.device), run.rule
    parts = (*group.network.layers, rule.reader, rule.mirror, *run.augment)
    own = partial(_step, group, data, _scale(run, data[0]))
    if "cupy" in xp.__name__ and capturable(*parts, optimisers.W, optimisers.Q, optimisers.P):
        several = ((len(group.seeds),), (len(group.runs),)) if group.leading else ((), ())
        return Blocks(own, xp, run.dtype, (_UNREAD_STEPS, *several[0], run.batch_size), CudaStream(), runs=several[1])
    return partial(_one_by_one, own)


def _one_by_one(
    own: Step, state: State, rows: Any, clocks: Sequence[tuple[int, float]], done: Callable[[], Any]
) -> tuple[State, Any, Any]:
    losses, right = [], 0
    for i, clock in enumerate(clocks):
        state, loss, correct = own(state, rows[i, ...], *clock)
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
    group: Group, data: tuple[Any, Any], scale: Any, state: State, rows: Any, number: Any, factor: Any
) -> tuple[State, Any, Any]:
    """Take one step on rows of the data; return the state, the loss, and how many rows were classified rightly."""
    run = group.runs[0]
    batch, wanted = _batch(group, data, scale, rows, number)
    state, loss, outputs = step(
        group.network, run.rule, group.loss, group.optimisers, state, batch,
        _targets(run, wanted, run.label_smoothing), number=number, factor=factor, error_clip=run.error_clip,
        key=group.key.at("step"),
    )  # fmt: skip
    return state, loss, _correct(outputs, wanted, group.leading)


def _batch(group: Group, data: tuple[Any, Any], scale: Any, rows: Any, number: Any) -> tuple[Any, Any]:
    """Return inputs and labels of one step, from rows (batch,), or (seed, batch) of a group with a run axis."""
    xp, seeds = namespace(rows), group.seeds
    found = [xp.take(part, rows if rows.ndim == 1 else xp.reshape(rows, (-1,)), axis=0) for part in data]
    if group.leading:
        found = [xp.reshape(part, (*rows.shape, *part.shape[1:])) for part in found]
    if group.runs[0].augment:
        found[0] = _augmented(group, found[0], scale, number)
    if not group.leading:
        return found[0], found[1]
    if len(seeds) == 1:
        return tuple(_shared(part[0, ...], group) for part in found)
    if len(seeds) < len(group.runs):
        places = xp.asarray([seeds.index(one.seed) for one in group.runs])
        found = [xp.take(part, places, axis=0) for part in found]
    return found[0], found[1]


def _augmented(group: Group, batch: Any, scale: Any, number: Any) -> Any:
    """Return images of one step, (batch, ...) or (seed, batch, ...), as each seed changes them."""
    from linfb.datasets.augmentation import augmented

    run = group.runs[0]
    batches = [batch[s, ...] for s in range(len(group.seeds))] if group.leading else [batch]
    changed = [
        augmented(images, run.splits, run.augment, Key(seed).at("augment", number), scale)
        for images, seed in zip(batches, group.seeds, strict=True)
    ]
    return namespace(*changed).stack(changed) if group.leading else changed[0]


def _shared(array: Any, group: Group) -> Any:
    """Return what is the same for all runs, with a run axis if the group has one."""
    if not group.leading:
        return array
    return namespace(array).broadcast_to(array[None, ...], (len(group.runs), *array.shape))


def advance(now: Progress, parts: Mapping[str, Any], steps: int, bar: Any, pause: Callable[[], None]) -> None:
    """Advance to the end of the epoch; `pause` is called after every step at which `now` is whole.

    The order of the rows depends on seed and epoch only. Runs that are not finite any more end: their records say why.
    """
    run, epoch, data = now.group.runs[0], now.epoch, parts["train"]
    orders = {
        seed: stream(seed, "shuffle", epoch).permutation(data[1].shape[0])[: steps * run.batch_size].reshape(steps, -1)
        for seed in now.group.seeds
    }
    while now.step < steps:
        group, first, last = now.group, now.step, min(now.step + _UNREAD_STEPS, steps)
        if now.take is None:
            now.take = blocks(group, data)
        own = [orders[seed][first:last] for seed in group.seeds]
        rows = device_namespace(run.device).asarray(np.stack(own, axis=1) if group.leading else own[0])
        clocks = [(epoch * steps + i + 1, run.rate(epoch + i / steps)) for i in range(first, last)]
        now.state, losses, right = now.take(now.state, rows, clocks, partial(bar.update, len(group.runs)))
        _read(now, losses, right, first)
        if not now.records:
            return
        pause()
    _complete(now, parts, steps, bar)


def _read(now: Progress, losses: Any, right: Any, first: int) -> None:
    """Record losses of steps from the step `first` on, which are read from the device now."""
    curves = to_numpy(losses).astype(np.float64).reshape(losses.shape[0], -1)
    counts, epoch = to_numpy(right).reshape(-1), now.epoch
    for record, curve, count in zip(now.records, curves.T, counts, strict=True):
        with _ending(record):
            for i, loss in enumerate(curve):
                _finite(float(loss), "loss", record.run, epoch, first + i)
            record.losses += curve.tolist()
            record.right += int(count)
    now.step = first + len(curves)
    _left(now)


@contextmanager
def _ending(record: Record) -> Iterator[None]:
    """End a run that is not finite any more."""
    try:
        yield
    except FloatingPointError as error:
        record.error = str(error)


def _left(now: Progress) -> None:
    """Go on without the runs that have ended."""
    if all(record.error is None for record in now.records):
        return
    if all(record.error is not None for record in now.records):
        now.records = ()
        return
    left = begun(now.records, now.states(), now.step, together=True)
    now.group, now.state, now.records, now.take = left.group, left.state, left.records, None


def _complete(now: Progress, parts: Mapping[str, Any], steps: int, bar: Any) -> None:
    """Close an epoch: all of a record that belongs to it changes at once."""
    epoch, group, state = now.epoch, now.group, now.state
    sums = {path: _per_run(array, group) for path, array in flatten(state._replace(slots={})).items()}
    validation = np.stack(evaluated(group, state, parts["validation"]), axis=-1).reshape(-1, 2).tolist()
    terms = steps * group.runs[0].batch_size * int(np.prod(parts["train"][1].shape[1:]))
    states = now.states() if group.runs[0].observe else [state] * len(now.records)
    now.step = 0
    for r, (record, own, found) in enumerate(zip(now.records, states, validation, strict=True)):
        with _ending(record):
            for path, values in sums.items():
                _finite(float(values[r]), path, record.run, epoch, steps - 1)
            _finite(found[0], "validation loss", record.run, epoch, steps - 1)
            seen = _observed(record.run, own, parts["validation"], epoch)
            rate = record.run.optimisers.W.learning_rate * record.run.rate(epoch + 1 - 1 / steps)
            curves = (float(np.mean(record.losses[-steps:])), record.right / terms, *found, rate)
            if record.chosen < 0 or found[1] > max(record.history["validation_accuracy"]):
                record.chosen, record.best = epoch, _evaluable(group, state, r)
            entries, record.right = dict(zip(CURVES, curves, strict=True)) | seen, 0
            record.history = {name: [*before, entries[name]] for name, before in record.history.items()}
    _left(now)
    if now.records:
        last = [np.mean([record.history[name][-1] for record in now.records]) for name in CURVES[:4:3]]
        bar.set_postfix(epoch=epoch + 1, loss=f"{last[0]:.3f}", validation=f"{last[1]:.4f}")


def _per_run(array: Any, group: Group) -> np.ndarray:
    """Return the sum over all entries of each run."""
    xp = namespace(array)
    if not group.leading:
        return to_numpy(xp.sum(array)).reshape(1)
    return to_numpy(xp.sum(xp.reshape(array, (array.shape[0], -1)), axis=1))


def _evaluable(group: Group, state: State, r: int) -> dict[str, Any]:
    """Return copies of what one run needs to be evaluated."""
    arrays = flatten({"weights": state.weights, "buffers": state.buffers})
    own = {path: array[r, ...] if group.leading else array for path, array in arrays.items()}
    return {path: namespace(array).asarray(array, copy=True) for path, array in own.items()}


def _finite(value: float, what: str, run: Run, epoch: int, number: int) -> float:
    if not np.isfinite(value):
        rate = run.optimisers.W.learning_rate * run.rate(epoch)
        raise FloatingPointError(
            f"{what} is {value} in epoch {epoch}, step {number}, under {run.rule.name} with learning rate {rate:g}"
        )
    return value


def _correct(outputs: Any, labels: Any, leading: int) -> Any:
    xp = namespace(outputs, labels)
    right = xp.astype(xp.argmax(outputs, axis=-1) == labels, xp.int64)
    return xp.sum(right, axis=tuple(range(leading, right.ndim)))


def evaluated(group: Group, state: State, part: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return loss and accuracy over all rows of a part, of every run of a group with a run axis."""
    x, labels = part
    total: Any = 0.0
    right: Any = 0
    rows = x.shape[0]
    for start in range(0, rows, _EVALUATED_ROWS):
        chunk = slice(start, min(start + _EVALUATED_ROWS, rows))
        outputs = evaluate(group.network, state.weights, state.buffers, _shared(x[chunk, ...], group))
        wanted = labels[chunk, ...]
        loss = group.loss(outputs, _shared(_targets(group.runs[0], wanted), group))[0]
        total = total + to_numpy(loss).astype(np.float64) * wanted.shape[0]
        right = right + to_numpy(_correct(outputs, _shared(wanted, group), group.leading))
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
