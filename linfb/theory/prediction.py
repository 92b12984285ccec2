"""The closed forms behind one call with the arguments of :func:`linfb.simulate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._errors import NoClosedFormError
from linfb._plan import Observe, Plan, Recorder, Run, plan
from linfb.networks import Aligned, LinearNetwork
from linfb.observables.linear import NAMED
from linfb.rules import Rule, mirrors, resolve_rank
from linfb.rules.channels import effective_readers
from linfb.tasks import Task
from linfb.theory.exact import exact_map
from linfb.theory.feedback_alignment import feedback_alignment_mode
from linfb.theory.readout import readout_only_map

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MapSnapshot", "predict"]


@dataclass(frozen=True, eq=False)
class MapSnapshot:
    """What theory knows of a network at one time: its map, for all runs.

    Attributes
    ----------
    task : Task
    map : numpy.ndarray, shape (run, out, in)
    """

    task: Task
    map: np.ndarray

    @property
    def xp(self) -> Any:
        """NumPy."""
        return np

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"theory predicts the network's map alone; what observes {name!r} needs linfb.simulate")


def predict(
    task: Task,
    network: LinearNetwork,
    rule: Rule,
    times: Any,
    *,
    seeds: int | Sequence[int] = 0,
    ranks: Sequence[int] | None = None,
    rates: Mapping[str, Sequence[float]] | None = None,
    weight_decay: float = 0.0,
    method: Any = None,
    coordinates: Any = None,
    observe: Observe = ("loss", "mode_strength"),
    device: Any = None,
    progress: bool = False,
) -> xr.Dataset:
    """Return what the population flow does, from closed forms; takes the arguments of :func:`linfb.simulate`.

    The starting weights and channels are drawn exactly as in a simulation with the same seeds.

    Parameters
    ----------
    task, network, rule, times, seeds, ranks, rates, weight_decay
        As in :func:`linfb.simulate`.
    observe : str, sequence of str, or mapping
        As there, but only what depends on the network's map alone: "loss", "mode_strength", "singular_values",
        "network_map", or functions of a :class:`MapSnapshot`.
    method, coordinates, device, progress
        Taken so that one set of arguments serves both calls, and not used.

    Returns
    -------
    xarray.Dataset
        The same variables on the same dimensions as the simulation's.

    Raises
    ------
    NoClosedFormError
        A ValueError that says which assumption fails: whitened inputs, two layers of weights, feedback from the layer
        above, a reader at rest, a mirror that is aligned from the start, an M-balanced start.

    Notes
    -----
    Dispatches to :func:`exact_map` (backpropagation, and low-dimensional feedback with a fixed reader and an aligned
    mirror), :func:`readout_only_map` (zero feedback) and :func:`feedback_alignment_mode` (feedback alignment along the
    task's modes). Not derived: it only chooses among them. Checked against simulation by
    ``tests/test_theory_vs_simulation.py``.

    Examples
    --------
    >>> from linfb import Balanced, LinearNetwork, low_rank_teacher, rules
    >>> task = low_rank_teacher(8, 4, [3.0, 1.0])
    >>> result = predict(task, LinearNetwork((8, 6, 4), Balanced(0.1)), rules.backpropagation(), [0.0, 20.0])
    >>> result.mode_strength.values[0, -1]
    array([3., 1.])
    """
    runs = plan(
        task, network, rule, times, seeds=seeds, ranks=ranks, rates=rates, weight_decay=weight_decay, observe=observe
    )
    for name, observable in runs.observables.items():
        if observable in NAMED.values() and not observable.of_map:
            raise NoClosedFormError(
                f"observe: {name!r} depends on more than the network's map, which is all that is predicted"
            )
    if not task.whitened:
        raise NoClosedFormError("the inputs are not whitened: closed forms assume the identity as input covariance")
    maps = np.stack([_map(runs, run) for run in runs.runs])
    recorder = Recorder(runs)
    for i in range(runs.times.size):
        recorder.add(MapSnapshot(task, maps[:, i]))
    ranks_used = [
        [_rank(run.rule, layer, width) for layer, width in enumerate(network.widths[2:], 1)] for run in runs.runs
    ]
    return recorder.dataset(ranks_used, method="closed form", device="cpu")


def _rank(rule: Rule, layer: int, width: int) -> int:
    return width if rule.rank is None else resolve_rank(rule.rank, layer, width)[0]


def _map(runs: Plan, run: Run) -> np.ndarray:
    """Return the map of one run at all times, shape (time, out, in)."""
    rule, decay, seed = run
    readers = effective_readers(rule, runs.network.widths[1:], seed=seed)
    weights = runs.network.draw(runs.task, readers, seed=seed)
    A = runs.task.Sigma_yx
    if others := [l for l in range(1, len(weights)) if rule.at(l) is not rule]:
        raise NoClosedFormError(f"layer {others[0]} is not under the rule: closed forms know one for all (layers)")
    if type(rule.mirror) is mirrors.Zero:
        return _readout_only(A, weights, runs.times, decay)
    if len(weights) != 2:
        raise NoClosedFormError(f"the network has {len(weights)} layers of weights: closed forms know depth 2 (depth)")
    if rule.source != "above":
        raise NoClosedFormError(f"{rule.name} is direct: closed forms know feedback from the layer above (source)")
    if rule.reader.learns:
        raise NoClosedFormError(f"the reader {rule.reader.name!r} is adaptive: closed forms know a P that rests")
    if type(rule.mirror) is mirrors.Fixed:
        return _fixed_feedback(runs, run)
    _require_aligned(rule)
    try:
        return exact_map(A, *weights, runs.times, P=readers[0], weight_decay=decay)
    except ValueError as error:
        if "M-balanced" not in str(error):
            raise
        raise NoClosedFormError(f"the start of the network fails: {error}") from error


def _require_aligned(rule: Rule) -> None:
    mirror = rule.mirror
    if type(mirror) is mirrors.Exact:
        return
    if type(mirror) is not mirrors.KolenPollack or mirror.rate != 1.0:
        raise NoClosedFormError(
            f"the mirror {mirror!r} is not aligned all along: closed forms know mirrors.Exact() and "
            "mirrors.KolenPollack(start='aligned') at rate 1"
        )
    if not (isinstance(mirror.start, str) and mirror.start == "aligned"):
        raise NoClosedFormError("the mirror is not aligned at the start: give mirrors.KolenPollack(start='aligned')")


def _readout_only(A: np.ndarray, weights: Sequence[np.ndarray], times: np.ndarray, decay: float) -> np.ndarray:
    if decay and len(weights) != 2:
        raise NoClosedFormError("zero feedback with weight decay has a closed form for two layers of weights (depth)")
    features = weights[0]
    for W in weights[1:-1]:
        features = W @ features
    return readout_only_map(A, features, weights[-1], times, weight_decay=decay)


def _fixed_feedback(runs: Plan, run: Run) -> np.ndarray:
    """Return the map under feedback that stays at the aligned starting weights: one scalar problem per mode."""
    start, mirror, task = runs.network.start, run.rule.mirror, runs.task
    if not (
        type(start) is Aligned
        and type(mirror) is mirrors.Fixed
        and isinstance(mirror.start, str)
        and mirror.start == "weights"
        and not run.rule.reader.compresses
        and not run.weight_decay
    ):
        raise NoClosedFormError(
            "fixed feedback has a closed form only along single modes: an Aligned start, the full error, "
            "mirrors.Fixed(start='weights') and no weight decay"
        )
    share = start.strength**0.5
    modes = min(task.rank, runs.network.widths[1])
    strengths = []
    for s in task.singular_values[:modes]:
        a, c = feedback_alignment_mode(runs.times, s, share, share, share)
        strengths.append(a * c)
    return np.einsum("om,mt,im->toi", task.left[:, :modes], np.array(strengths), task.right[:, :modes])
