"""What simulation and theory share: the arguments of a call, checked, and the labelled result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._checks import choice, integer, real, times_array
from linfb._provenance import attributes
from linfb.backend import to_numpy
from linfb.networks import LinearNetwork
from linfb.observables.linear import NAMED, Observable
from linfb.rules import Rule
from linfb.tasks import Task

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Observe", "Plan", "Recorder", "plan"]

_TAKEN = ("rank", "seed", "time", "channel_rank")
Observe = str | Sequence[str] | Mapping[str, Callable[[Any], Any] | Observable]


@dataclass(frozen=True)
class Plan:
    """The runs of one call: every member rule with every seed, seeds varying fastest.

    Attributes
    ----------
    task : Task
    network : LinearNetwork
    rules : tuple of Rule
        The rule at each rank.
    times : numpy.ndarray, shape (time,)
    seeds : tuple of int
    ranks : tuple of int or None
        None if the call did not vary ranks: the result then has no rank dimension.
    weight_decay : float
    observables : dict
    """

    task: Task
    network: LinearNetwork
    rules: tuple[Rule, ...]
    times: np.ndarray
    seeds: tuple[int, ...]
    ranks: tuple[int, ...] | None
    weight_decay: float
    observables: dict[str, Observable]

    @property
    def runs(self) -> list[tuple[Rule, int]]:
        """Rule and seed of every run."""
        return [(rule, seed) for rule in self.rules for seed in self.seeds]


def plan(
    task: Any, network: Any, rule: Any, times: Any, *, seeds: Any, ranks: Any, weight_decay: Any, observe: Any
) -> Plan:
    """Check the arguments of a call, naming the one that is wrong."""
    for name, value, kind in (("task", task, Task), ("network", network, LinearNetwork), ("rule", rule, Rule)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
    network.fits(task)
    members, ranks = _members(rule, ranks)
    return Plan(
        task, network, members, times_array("times", times), _seeds(seeds), ranks,
        real("weight_decay", weight_decay, at_least=0.0), _observables(observe),
    )  # fmt: skip


def _distinct(name: str, values: Any, at_least: int) -> tuple[int, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray | range):
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    checked = tuple(integer(f"{name}[{i}]", value, at_least=at_least) for i, value in enumerate(values))
    if not checked or len(set(checked)) != len(checked):
        raise ValueError(f"{name} must be at least one and all different, got {checked}")
    return checked


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        return (integer("seeds", seeds, at_least=0),)
    return _distinct("seeds", seeds, 0)


def _members(rule: Rule, ranks: Any) -> tuple[tuple[Rule, ...], tuple[int, ...] | None]:
    if ranks is None:
        return (rule,), None
    if not rule.reader.compresses:
        raise ValueError(f"ranks cannot vary: the reader of {rule.name!r} does not compress the error")
    ranks = _distinct("ranks", ranks, 1)
    return tuple(replace(rule, rank=rank) for rank in ranks), ranks


def _observables(observe: Any) -> dict[str, Observable]:
    if isinstance(observe, str):
        observe = (observe,)
    if isinstance(observe, Mapping):
        for name, measure in observe.items():
            if not isinstance(name, str) or name in _TAKEN:
                raise ValueError(f"observe names a variable {name!r}; expected text other than {', '.join(_TAKEN)}")
            if not callable(measure) and not isinstance(measure, Observable):
                raise TypeError(f"observe[{name!r}] must be a function of a Snapshot, got {measure!r}")
        return {
            name: measure if isinstance(measure, Observable) else Observable(measure)
            for name, measure in observe.items()
        }
    if not isinstance(observe, Sequence):
        raise TypeError(f"observe must be names or a mapping from names to functions, got {observe!r}")
    return {choice("observe", name, NAMED): NAMED[name] for name in observe}


class Recorder:
    """Collects observations over time and labels them.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.records: dict[str, list[np.ndarray]] = {name: [] for name in plan.observables}
        self.done = 0

    def add(self, snapshot: Any) -> None:
        """Measure every observable on a snapshot of all runs at the next time."""
        runs = len(self.plan.runs)
        measured = {name: to_numpy(observable.measure(snapshot)) for name, observable in self.plan.observables.items()}
        for name, array in measured.items():
            if array.ndim == 0 or array.shape[0] != runs:
                raise ValueError(
                    f"observe[{name!r}] returned shape {array.shape}, expected a leading run axis of {runs}"
                )
            self.records[name].append(array)
        self.done += 1

    def dataset(self, channel_ranks: Sequence[Sequence[int]], **config: Any) -> xr.Dataset:
        """Return what was recorded, the run axis unfolded to (rank and) seed, with provenance in the attributes."""
        import xarray as xr

        p = self.plan
        outer = {"seed": list(p.seeds)} if p.ranks is None else {"rank": list(p.ranks), "seed": list(p.seeds)}
        shape = tuple(len(values) for values in outer.values())
        variables: dict[str, Any] = {}
        for name, values in self.records.items():
            if not self.done:
                continue
            array = np.stack(values[: self.done], axis=1)  # run, time, ...; an interrupt may have cut a row short
            own, dims = array.shape[2:], p.observables[name].dims
            if len(dims) != len(own):
                dims = tuple(f"{name}_{axis}" for axis in range(len(own)))
            variables[name] = ((*outer, "time", *dims), array.reshape(*shape, self.done, *own))
        variables["channel_rank"] = ((*outer, "channel"), np.reshape(channel_ranks, (*shape, -1)))
        described = attributes(
            task=f"Task(n_in={p.task.n_in}, n_out={p.task.n_out}, rank={p.task.rank}, whitened={p.task.whitened})",
            network=p.network, rule=p.rules[0], ranks=p.ranks, weight_decay=p.weight_decay, **config,
        )  # fmt: skip
        return xr.Dataset(variables, coords=outer | {"time": p.times[: self.done]}, attrs=described)
