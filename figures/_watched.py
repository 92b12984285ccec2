"""Training that is looked at between its steps, for figures of what happens inside networks while they learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from figures._run import Resources
    from linfb.datasets import Splits
    from linfb.engine import Member, Model
    from linfb.engine.observables import Snapshot
    from linfb.engine.run import Progress, Run
    from linfb.engine.state import State

ROWS = 256
"""How many rows of a part are looked at."""
_BLOCK = 32


class Look(NamedTuple):
    """What is seen of a run after some steps, and what its next step does.

    Attributes
    ----------
    views : mapping
        On the first rows of some parts of the data, "validation" or "train".
    kernels : tuple of numpy.ndarray
        The weights of every kernel layer, shape (out, ...).
    accuracy : float
        On the test part.
    gradients, updates : tuple of numpy.ndarray
        What the batch of the next step gives for them, and by how much that step then moves them.
    """

    views: Mapping[str, Snapshot]
    kernels: tuple[np.ndarray, ...]
    accuracy: float
    gradients: tuple[np.ndarray, ...]
    updates: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Watching:
    """Which multilayer perceptrons are watched: sizes, data and length; a run is as many steps long."""

    layout: ClassVar[str] = "flat"
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "digits"
    widths: tuple[int, ...] = (64, 64, 64)
    steps: int = 360
    batch_size: int = 32
    train: float | int | None = None
    validation: float | int = 0.2

    def splits(self, resources: Resources) -> Splits:
        """Return the images."""
        from linfb.datasets import load_dataset

        data = load_dataset(self.data, root=resources.data_root)
        return data.splits(train=self.train, validation=self.validation, layout=self.layout)


def on_data(config: Any, quick: Any, data: str) -> Any:
    """Return a configuration for other images; the quick one takes only some of those that are many."""
    if config == quick and data != "digits":
        return replace(config, data=data, train=4000, validation=1000)
    return replace(config, data=data)


def rank_of(cell: str) -> int:
    """Return the rank that a cell's name ends on, "low-rank r=2"; 0 if there is none."""
    return int(cell.partition(" r=")[2] or 0)


def by_rank(cells: Sequence[str], kind: str) -> dict[int, str]:
    """Return the cells of a kind, whose names begin with that, by their rank."""
    return {rank_of(cell): cell for cell in cells if cell.startswith(f"{kind} r=")}


def dynamics(
    config: Any, numbers: Sequence[int], resources: Resources, *, model_of: Callable[[str, Splits], Model],
    member_of: Callable[[str, int, Any], Member], measure: Callable[..., dict[str, Any]],
    parts: Sequence[str] = (),
) -> xr.Dataset:  # fmt: skip
    """Train what the cells of a configuration stand for, and measure every hidden layer after some steps.

    Parameters
    ----------
    config : dataclass
        With the fields of :class:`Watching`, and cells; those that differ in rank alone train together.
    numbers : sequence of int
        After how many steps to look.
    resources : Resources
    model_of, member_of : callable
        From a cell to its network, and to rule and optimisers.
    measure : callable
        From a look, the first one and the last one of that run, and the cell, to numbers for every hidden layer.
    parts : sequence of str
        As for :func:`watched`.

    Returns
    -------
    xarray.Dataset
        What was measured, by cell, seed, step and hidden layer (from 1), and `test_accuracy`, NaN where a run is not
        finite; and the `width` that the channel into every hidden layer reads.
    """
    import xarray as xr

    splits = config.splits(resources)
    shape = (len(config.cells), len(config.seeds), len(numbers))
    found: dict[str, np.ndarray] = {"test_accuracy": np.full(shape, np.nan)}
    alike: dict[str, list[tuple[int, int]]] = {}
    for c, cell in enumerate(config.cells):
        alike.setdefault(cell.partition(" r=")[0], []).extend((c, s) for s in range(len(config.seeds)))
    for places in alike.values():
        model = model_of(config.cells[places[0][0]], splits)
        members = [member_of(config.cells[c], config.seeds[s], config) for c, s in places]
        runs = watched(splits, model, members, numbers, parts, batch_size=config.batch_size, device=resources.device)
        ends: dict[Any, tuple[Look, Look]] = {}
        for t, looks in enumerate(runs):
            for place, look in zip(places, looks, strict=True):
                if look is None:
                    continue
                first, before = ends.get(place, (look, look))
                ends[place] = first, look
                found["test_accuracy"][*place, t] = look.accuracy
                for name, values in measure(look, first, before, config.cells[place[0]]).items():
                    found.setdefault(name, np.full((*shape, len(values)), np.nan))[*place, t] = values
    dimensions = ("cell", "seed", "step", "layer")
    named: dict[str, Any] = {name: (dimensions[: values.ndim], values) for name, values in found.items()}
    widths = [model.layers[i].kernel_shape[0] for i in model.kernels[1:]]
    named["width"] = ("cell", "layer"), np.tile(widths, (len(config.cells), 1))
    layers = list(range(1, len(widths) + 1))
    axes = (list(config.cells), list(config.seeds), list(numbers), layers)
    return xr.Dataset(named, dict(zip(dimensions, axes, strict=True)))


def spread(steps: int, count: int) -> tuple[int, ...]:
    """Return up to `count` numbers of steps from 0 to `steps`, evenly spaced on a logarithmic axis from 1 on."""
    return (0, *(int(number) for number in np.unique(np.geomspace(1, steps, count - 1).round())))


def watched(
    splits: Any,
    model: Model,
    members: Sequence[Member],
    looks: Sequence[int],
    parts: Sequence[str] = (),
    *,
    batch_size: int,
    **settings: Any,
) -> Iterator[list[Look | None]]:
    """Train networks as :func:`linfb.engine.train_ensemble` does, and yield what is seen of each after some steps.

    Parameters
    ----------
    splits, model, batch_size, settings
        As for :func:`linfb.engine.train`; no augmentation.
    members : sequence of Member
        Whose rules differ in rank alone, and whose optimisers in rates.
    looks : sequence of int
        After how many steps to look, ascending. A run that is not finite any more is None from then on.
    parts : sequence of str
        Which parts of the data to look at.
    """
    from linfb.engine.run import Record, begun
    from linfb.engine.state import initial_state
    from linfb.engine.training import described, optimisers_of, settled

    records, states = [], []
    for member in members:
        own = optimisers_of(member.optimizer)
        run = described(splits, model, member.rule, batch_size=batch_size, optimizer=own, seed=member.seed, **settings)
        state, drawn = initial_state(run.network, run.rule, run.optimisers, run.seed, run.place)
        records.append(Record(run, drawn.ranks, drawn.capped, history={"train_loss": []}))
        states.append(state)
    with settled(records[0].run, 1):
        now = begun(records, states, 0, together=True)
        for taken, number in pairwise((0, *looks)):
            _advance(now, taken + (taken in looks), number)
            yield _looked(now, number, parts)


def _advance(now: Progress, taken: int, number: int) -> None:
    """Advance from so many steps taken to another number of them, through the rows in the order of training."""
    from linfb.backend import device_namespace
    from linfb.engine.run import blocks, placed

    group, run = now.group, now.group.runs[0]
    if now.take is None:
        now.take = blocks(group, placed(run, "train"))
    per_epoch = len(run.splits.train[1]) // run.batch_size
    while taken < number:
        epoch, first = divmod(taken, per_epoch)
        last = min(first + _BLOCK, per_epoch, first + number - taken)
        rows = np.stack([_batches(run, seed, epoch)[first:last] for seed in group.seeds], axis=1)
        clocks = [(epoch * per_epoch + i + 1, run.rate(epoch + i / per_epoch)) for i in range(first, last)]
        now.state, _, _ = now.take(now.state, device_namespace(run.device).asarray(rows), clocks, lambda: None)
        taken += last - first


def _batches(run: Run, seed: int, epoch: int) -> np.ndarray:
    """Return the rows of every step of an epoch, shape (step, batch)."""
    from linfb.backend import stream

    count = len(run.splits.train[1])
    return (
        stream(seed, "shuffle", epoch).permutation(count)[: count - count % run.batch_size].reshape(-1, run.batch_size)
    )


def _looked(now: Progress, number: int, parts: Sequence[str]) -> list[Look | None]:
    """Look at every run, and take the next step."""
    from linfb.engine.run import evaluated, placed

    runs = now.group.runs
    seen: list[tuple[Any, ...] | None] = []
    epoch, step = divmod(number, len(runs[0].splits.train[1]) // runs[0].batch_size)
    accuracies = evaluated(now.group, now.state, placed(runs[0], "test"))[1]
    for run, state in zip(runs, now.states(), strict=True):
        if not _finite(state):
            seen.append(None)
            continue
        views = {part: _seen(run, state, part, slice(0, ROWS), number) for part in parts}
        batch = _seen(run, state, "train", _batches(run, run.seed, epoch)[step], number)
        seen.append((views, _kernels(run, state.weights), _kernels(run, batch.carried.weights)))
    _advance(now, number, number + 1)
    looks: list[Look | None] = []
    for run, state, accuracy, one in zip(runs, now.states(), accuracies, seen, strict=True):
        if one is None or not _finite(state):
            looks.append(None)
            continue
        views, kernels, gradients = one
        moved = zip(_kernels(run, state.weights), kernels, strict=True)
        looks.append(Look(views, kernels, float(accuracy), gradients, tuple(new - old for new, old in moved)))
    return looks


def rows_of(array: Any) -> np.ndarray:
    """Return an array with all but its last axis as one, on the host."""
    from linfb.backend import to_numpy

    host = to_numpy(array).astype(np.float64)
    return host.reshape(-1, host.shape[-1])


def _finite(state: State) -> bool:
    from linfb.backend import to_numpy
    from linfb.engine.trees import flatten

    return all(np.isfinite(to_numpy(array)).all() for array in flatten(state._replace(slots={})).values())


def _seen(run: Run, state: State, part: str, rows: Any, number: int) -> Snapshot:
    """Return what a run makes of some rows; its kernels are as they are now, whatever later steps do."""
    from linfb.backend import Key
    from linfb.engine.losses import LOSSES, one_hot
    from linfb.engine.observables import snapshot

    x, labels = getattr(run.splits, part)
    like = run.place(np.zeros(0))
    view = snapshot(
        run.network, run.rule, LOSSES[run.loss], state.weights, state.channels, run.place(x[rows]),
        one_hot(run.place(labels[rows]), run.model.n_out, like=like), key=Key(run.seed).at("observe", number),
    )  # fmt: skip
    return view._replace(kernels=_kernels(run, state.weights))


def _kernels(run: Run, arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Return what a tree of weights holds for the kernel layers, as matrices (out, ...) on the host."""
    from linfb.backend import to_numpy

    found = (np.array(to_numpy(arrays[i]), dtype=np.float64) for i in run.model.kernels)
    return tuple(kernel.reshape(len(kernel), -1) for kernel in found)
