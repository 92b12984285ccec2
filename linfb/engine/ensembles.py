"""Ensembles: networks of one architecture that train together, each as it would alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._checks import integer
from linfb._errors import InterruptedRun
from linfb.engine.models import Model
from linfb.engine.run import Run
from linfb.engine.training import described, optimisers_of, settled, trained
from linfb.rules import Rule

if TYPE_CHECKING:
    import xarray

__all__ = ["Member", "grid", "train_ensemble"]

_BYTES = 1 << 30


@dataclass(frozen=True)
class Member:
    """What one member of an ensemble has of its own.

    Parameters
    ----------
    rule : Rule
    optimizer : Optimizer or Optimizers
    seed : int
        As for :func:`linfb.engine.train`.
    """

    rule: Any
    optimizer: Any
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise TypeError(f"rule must be a linfb.rules.Rule, for example low_rank(4), got {self.rule!r}")
        optimisers_of(self.optimizer)
        integer("seed", self.seed, at_least=0)


def grid(
    rules: Rule | Iterable[Rule],
    optimizers: Any,
    *,
    seeds: int | Iterable[int] = 0,
    ranks: Iterable[Any] | None = None,
) -> tuple[Member, ...]:
    """Return a member for every combination: rules x ranks x optimisers x seeds, the seeds next to each other.

    Parameters
    ----------
    rules : Rule or iterable of Rule
    optimizers : Optimizer, Optimizers, or iterable of them
        Such as one for each learning rate.
    seeds : int or iterable of int
    ranks : iterable, optional
        Runs each rule whose reader compresses at each of these ranks instead of its own.

    Examples
    --------
    >>> from linfb.engine import grid, sgd
    >>> from linfb.rules import backpropagation, low_rank
    >>> members = grid([backpropagation(), low_rank(1)], [sgd(0.1), sgd(0.3)], seeds=range(3), ranks=(1, 2))
    >>> len(members), members[-1].rule.rank, members[-1].seed
    (18, 2, 2)
    """
    rules = [rules] if isinstance(rules, Rule) else list(rules)
    optimizers = list(optimizers) if isinstance(optimizers, Iterable) else [optimizers]
    seeds = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    swept = [
        replace(rule, rank=rank)
        for rule in rules
        for rank in ([rule.rank] if ranks is None or not rule.reader.compresses else ranks)
    ]
    return tuple(Member(*combination) for combination in product(swept, optimizers, seeds))


def train_ensemble(
    data: Any,
    model: Model,
    members: Sequence[Member],
    *,
    epochs: int,
    batch_size: int,
    chunk: int | None = None,
    threads: int | None = None,
    progress: bool = True,
    checkpoint: Any = None,
    checkpoint_seconds: float = 300.0,
    **settings: Any,
) -> xarray.Dataset:
    r"""Train networks of one architecture together: the data are passed once, all products are batched.

    Every member is what :func:`linfb.engine.train` makes of it alone, to rounding: it starts from its own seed, sees
    the batches of its own seed in their order, chooses its own epoch. Members differ in rule, rank, optimiser or seed.
    Those whose rules differ in more than the rank (or whose optimisers in more than rates and weight decays) are
    trained one group after the other.

    Parameters
    ----------
    data, model
        As for :func:`linfb.engine.train`.
    members : sequence of Member
        See :func:`grid`.
    epochs, batch_size : int
    chunk : int, optional
        How many members to train at once at most; None takes as many as fit into 1 GiB with all that changes in them.
    threads, progress
        As for :func:`linfb.engine.train`.
    checkpoint : path, optional
        A folder, in which every chunk gets one of its own.
    checkpoint_seconds : float
    **settings
        All other keywords of :func:`linfb.engine.train` but rule, seed and optimizer.

    Returns
    -------
    xarray.Dataset
        That of :func:`linfb.engine.train` with a first dimension `run`, in the order of the members; along it
        coordinates `rule` (its name), `seed`, `nominal_rank` (as the rule says it, NaN if it says no single number) and
        `base_learning_rate` (of W), and a variable `error`: empty, or why the run diverged. Such a run ends there, the
        others go on; what it did not reach is NaN.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other, and for a checkpoint of another ensemble.
    InterruptedRun
        On the user's interrupt (it is a KeyboardInterrupt), with `partial`, the result up to there.

    Notes
    -----
    Channels of lower rank are padded with rows of zeros, which carry nothing and stay zero. Perceptrons gain most: a
    small network alone leaves the machine idle between its short steps. Layers that take no run axis, such as
    convolutions, are done member by member, several at a time on the threads. Own readers and mirrors have to work on
    arrays with a leading run axis, as in :func:`linfb.simulate`; members with an optimiser of another kind than those
    of :mod:`linfb.engine.optimisers` train alone. ``tests/test_engine_ensembles.py`` holds members and single runs
    together.

    Examples
    --------
    >>> from linfb.datasets import load_dataset
    >>> from linfb.engine import amsgrad, grid, mlp, train_ensemble
    >>> from linfb.rules import low_rank
    >>> members = grid(low_rank(1), amsgrad(3e-3), seeds=range(2), ranks=(1, 5))
    >>> runs = train_ensemble(load_dataset("digits"), mlp(64, (32,), 10), members, epochs=2, batch_size=32,
    ...                       progress=False)
    >>> runs.test_accuracy.sel(weights="chosen").sizes, runs.nominal_rank.values
    (Frozen({'run': 4}), array([1., 1., 5., 5.]))
    """
    runs, results, errors, interrupted = train_members(
        data, model, members, epochs=epochs, batch_size=batch_size, chunk=chunk, threads=threads, progress=progress,
        checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds, **settings,
    )  # fmt: skip
    result = _joined(runs, results, errors)
    if interrupted:
        raise InterruptedRun(f"interrupted, members have {result.sizes['epoch']} complete epochs at most", result)
    return result


def train_members(
    data: Any,
    model: Model,
    members: Sequence[Member],
    *,
    epochs: int,
    batch_size: int,
    chunk: int | None = None,
    threads: int | None = None,
    progress: bool = True,
    checkpoint: Any = None,
    checkpoint_seconds: float = 300.0,
    **settings: Any,
) -> tuple[list[Run], list[Any], list[str | None], bool]:
    """Train networks as :func:`train_ensemble` does, and return them apart.

    Returns
    -------
    runs : list
        What each member is.
    results : list of xarray.Dataset
        Each as :func:`linfb.engine.train` returns it.
    errors : list
        Why a member's run ended early, or None.
    interrupted : bool
        Whether the user stopped it; results are what there was by then.
    """
    members = _checked(members)
    optimisers = [optimisers_of(member.optimizer) for member in members]
    first = described(
        data, model, members[0].rule, batch_size=batch_size, optimizer=optimisers[0], seed=members[0].seed, **settings
    )
    runs = [
        replace(first, rule=member.rule, seed=member.seed, optimisers=own)
        for member, own in zip(members, optimisers, strict=True)
    ]
    if chunk is not None:
        integer("chunk", chunk, at_least=1)
    results: list[Any] = [None] * len(runs)
    errors: list[str | None] = [None] * len(runs)
    interrupted = False
    with settled(first, threads):
        for number, some in enumerate(_chunks(runs, chunk)):
            folder = None if checkpoint is None else Path(checkpoint) / f"chunk-{number}"
            found, ended, stopped = trained(
                [runs[i] for i in some], epochs, progress, folder, checkpoint_seconds,
                together=len(some) > 1, begin=not interrupted,
            )  # fmt: skip
            interrupted = interrupted or stopped
            for i, result, error in zip(some, found, ended, strict=True):
                results[i], errors[i] = result, error
    return runs, results, errors, interrupted


def _checked(members: Any) -> list[Member]:
    found = list(members) if isinstance(members, Iterable) else members
    if not isinstance(found, list) or not found:
        raise ValueError(f"members must be a sequence of at least one linfb.engine.Member, got {members!r}")
    for member in found:
        if not isinstance(member, Member):
            raise TypeError(f"members must hold linfb.engine.Member objects, got {member!r}")
    return found


def _chunks(runs: Sequence[Run], most: int | None) -> list[list[int]]:
    """Return the indices of the runs that train at once: of one kind, and no more than fit."""
    kinds: dict[Any, list[int]] = {}
    for i, run in enumerate(runs):
        kinds.setdefault(_kind(run, i), []).append(i)
    size = max(1, _BYTES // _bytes(runs[0])) if most is None else most
    return [kind[start : start + size] for kind in kinds.values() for start in range(0, len(kind), size)]


def _kind(run: Run, i: int) -> Any:
    """Return what runs must share to advance together; `i` if this one cannot."""
    rule, optimisers = run.rule, run.optimisers
    shared = optimisers.kind()
    if shared is None:
        return i
    feedback = (optimisers.Q or optimisers.W, optimisers.P or optimisers.W)
    by_rank = any(hasattr(one, "nesterov") for one in feedback) or getattr(rule.mirror, "restart_every", None)
    # what looks at the number of rows of P and Q takes no padded ones
    rank = repr(rule.rank) if by_rank else rule.rank is None
    return shared, rule.source, repr(rule.reader), repr(rule.mirror), rule.layers, rank


def _bytes(run: Run) -> int:
    """Return about how much memory a run takes: weights, feedback and what optimisers keep of them, activities."""
    from linfb.engine.models import initial_weights
    from linfb.engine.trees import flatten

    size = np.dtype(run.dtype).itemsize
    weights = sum(array.size for array in flatten(tuple(initial_weights(run.model, 0))).values())
    activities = run.batch_size * sum(math.prod(shape) for shape in run.model.shapes)
    return size * (10 * weights + 4 * activities)


def _joined(runs: Sequence[Run], results: Sequence[Any], errors: Sequence[str | None]) -> Any:
    """Return the results of all runs as one."""
    import xarray

    numbered = [result.assign_coords(step=np.arange(result.sizes["step"])) for result in results]
    attributes = [result.attrs for result in results]
    common = {key: value for key, value in attributes[0].items() if all(one[key] == value for one in attributes)}
    joined = xarray.concat(numbered, dim="run", join="outer", combine_attrs="drop").drop_vars("step")
    ranks = [run.rule.rank if isinstance(run.rule.rank, int | float) else np.nan for run in runs]
    return joined.assign(error=("run", [error or "" for error in errors])).assign_coords(
        rule=("run", [run.rule.name for run in runs]),
        seed=("run", [run.seed for run in runs]),
        nominal_rank=("run", np.array(ranks, dtype=float)),
        base_learning_rate=("run", [float(run.optimisers.W.learning_rate) for run in runs]),
    ).assign_attrs(common)  # fmt: skip
