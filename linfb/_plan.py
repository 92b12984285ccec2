"""What simulation and theory share: the arguments of a call, checked, and the labelled result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

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

__all__ = ["Observe", "Plan", "Recorder", "Run", "plan"]

_RATES = ("weight_decay", "reader_rate", "mirror_rate")
_TAKEN = (*_RATES, "rank", "seed", "time", "channel_rank")
Observe = str | Sequence[str] | Mapping[str, Callable[[Any], Any] | Observable]


class Run(NamedTuple):
    """What sets one run apart: its rule, at the run's own rank and rates, its weight decay and its seed."""

    rule: Rule
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Plan:
    """The runs of one call: all combinations of what it varies, the last dimension varying fastest.

    Attributes
    ----------
    task : Task
    network : LinearNetwork
    times : numpy.ndarray, shape (time,)
    runs : tuple of Run
    dims : dict
        From the dimensions that the run axis unfolds to, to their coordinates: the rates that vary, "rank" if the call
        varied ranks, and "seed".
    observables : dict
    """

    task: Task
    network: LinearNetwork
    times: np.ndarray
    runs: tuple[Run, ...]
    dims: dict[str, tuple[Any, ...]]
    observables: dict[str, Observable]

    @property
    def rates(self) -> dict[str, Any]:
        """Weight decay and the rates of reader and mirror: a number, or shape (run, 1, 1) if the call varies it."""
        each = [(run.weight_decay, run.rule.reader.rate, run.rule.mirror.rate) for run in self.runs]
        columns = dict(zip(_RATES, zip(*each, strict=True), strict=True))
        return {
            name: np.reshape(column, (-1, 1, 1)) if name in self.dims else column[0] for name, column in columns.items()
        }


def plan(
    task: Any,
    network: Any,
    rule: Any,
    times: Any,
    *,
    seeds: Any,
    ranks: Any,
    rates: Any,
    weight_decay: Any,
    observe: Any,
) -> Plan:
    """Check the arguments of a call, naming the one that is wrong."""
    for name, value, kind, example in (
        ("task", task, Task, "linfb.low_rank_teacher(16, 8, [3.0, 2.0])"),
        ("network", network, LinearNetwork, "linfb.LinearNetwork((16, 12, 8))"),
        ("rule", rule, Rule, "linfb.rules.low_rank(2) or linfb.rules.by_name('fa')"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__} such as {example}, got {value!r}")
    network.fits(task)
    weight_decay = real("weight_decay", weight_decay, at_least=0.0)
    dims: dict[str, tuple[Any, ...]] = _rates(rule, weight_decay, rates) | _ranks(rule, ranks)
    dims["seed"] = _seeds(seeds)
    runs = tuple(_run(rule, weight_decay, dict(zip(dims, values, strict=True))) for values in product(*dims.values()))
    return Plan(task, network, times_array("times", times), runs, dims, _observables(observe))


def _run(rule: Rule, weight_decay: float, own: Mapping[str, Any]) -> Run:
    changes: dict[str, Any] = {"rank": own["rank"]} if "rank" in own else {}
    for part in ("reader", "mirror"):
        if f"{part}_rate" in own:
            changes[part] = replace(getattr(rule, part), rate=own[f"{part}_rate"])
    return Run(replace(rule, **changes), own.get("weight_decay", weight_decay), own["seed"])


def _distinct(name: str, values: Any, check: Callable[..., Any], at_least: float) -> tuple[Any, ...]:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray | range):
        raise TypeError(f"{name} must be a sequence of {'integers' if check is integer else 'numbers'}, got {values!r}")
    checked = tuple(check(f"{name}[{i}]", value, at_least=at_least) for i, value in enumerate(values))
    if not checked or len(set(checked)) != len(checked):
        raise ValueError(f"{name} must be at least one and all different, got {checked}")
    return checked


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        return (integer("seeds", seeds, at_least=0),)
    return _distinct("seeds", seeds, integer, 0)


def _ranks(rule: Rule, ranks: Any) -> dict[str, tuple[int, ...]]:
    if ranks is None:
        return {}
    if not rule.reader.compresses:
        raise ValueError(f"ranks cannot vary: the reader of {rule.name!r} does not compress the error")
    return {"rank": _distinct("ranks", ranks, integer, 1)}


def _rates(rule: Rule, weight_decay: float, rates: Any) -> dict[str, tuple[float, ...]]:
    if rates is None:
        return {}
    if not isinstance(rates, Mapping):
        raise TypeError(f"rates must be a mapping from {', '.join(map(repr, _RATES))} to sequences, got {rates!r}")
    for name in rates:
        part = getattr(rule, choice("keys of rates", name, _RATES).removesuffix("_rate"), None)
        if part is not None and not (part.learns and is_dataclass(part) and "rate" in {f.name for f in fields(part)}):
            raise ValueError(
                f"rates cannot vary {name!r}: the {name.removesuffix('_rate')} {part.name!r} does not learn at a rate"
            )
    if "weight_decay" in rates and weight_decay:
        raise ValueError(f"weight_decay is {weight_decay:g} and varies in rates: give one of the two")
    return {name: _distinct(f"rates[{name!r}]", values, real, 0.0) for name, values in rates.items()}


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
        """Return what was recorded, the run axis unfolded to its dimensions, with provenance in the attributes."""
        import xarray as xr

        p = self.plan
        outer = {name: list(values) for name, values in p.dims.items()}
        rates = {name: p.dims[name] for name in _RATES if name in p.dims}
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
            task=p.task, network=p.network, rule=p.runs[0].rule, ranks=p.dims.get("rank"), rates=rates or None,
            weight_decay=rates.get("weight_decay", p.runs[0].weight_decay), **config,
        )  # fmt: skip
        return xr.Dataset(variables, coords=outer | {"time": p.times[: self.done]}, attrs=described)
