"""One call from task, network and rule to labelled results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._plan import Observe, Recorder, plan
from linfb.backend import device_namespace, stream
from linfb.engine.layers.dense import Dense
from linfb.kernels.reference_online import BLOCK
from linfb.linear.coordinates import coordinates_of
from linfb.linear.flow import State, backward, dynamic, flow, replace_dynamic
from linfb.linear.online import advance, compiled
from linfb.linear.solvers import Problem, Solver, named
from linfb.networks import LinearNetwork
from linfb.observables.linear import Snapshot, loss
from linfb.rules import Rule
from linfb.rules.channels import InitialChannels, effective_readers, initial_channels, padded, stacked
from linfb.tasks import Task

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["initial_state", "simulate"]

_SAMPLES = 1024  # of a run that are drawn together (at least one step's)


def initial_state(task: Task, network: LinearNetwork, rule: Rule, *, seed: int) -> tuple[State, InitialChannels]:
    """Return the weights and feedback arrays of one run at time 0, on the host, in float64.

    Parameters
    ----------
    task : Task
    network : LinearNetwork
    rule : Rule
    seed : int
        Streams: "weights" for the network's start, ("P", layer) and ("Q", layer) for the channels.

    Returns
    -------
    state : State
    made : InitialChannels
        With the rank of every channel and the layers where it was capped.
    """
    readers = effective_readers(rule, network.widths[1:], seed=seed)
    weights = network.draw(task, readers, seed=seed)
    error = task.n_out if rule.source == "network" else network.widths[-2]
    layers = [Dense(W.shape[1], error if rule.direct(l, len(weights)) else W.shape[0]) for l, W in enumerate(weights)]
    made = initial_channels(rule, layers, weights, seed=seed)
    return State(tuple(weights), tuple(channel for channel in made.channels if channel is not None)), made


def _stacked(states: Sequence[State], xp: Any, dtype: Any) -> State:
    """Join the states of all runs along a leading run axis, with channels padded to the largest rank."""
    place = partial(xp.asarray, dtype=dtype)
    weights, channels = zip(*states, strict=True)
    return State(
        tuple(place(padded(layer)) for layer in zip(*weights, strict=True)),
        tuple(stacked(layer, place) for layer in zip(*channels, strict=True)),
    )


@dataclass(frozen=True)
class _Sampler:
    """Fresh samples for every run: runs of one seed see the same ones, whatever their rank and rates."""

    task: Task
    seeds: Sequence[int]
    xp: Any
    dtype: Any
    _drawn: dict[str, Any] = field(default_factory=dict)

    def __call__(self, first: int, limit: int, batch_size: int) -> tuple[Any, Any]:
        steps = max(1, _SAMPLES // batch_size)
        steps -= steps % BLOCK if steps > BLOCK else 0
        block, offset = divmod(first, steps)
        if self._drawn.get("block") != (block, batch_size):
            draws = {seed: self._block(seed, block, steps, batch_size) for seed in dict.fromkeys(self.seeds)}
            self._drawn.update(block=(block, batch_size), draws=draws)
        distinct, last = self._drawn["draws"], min(offset + limit, steps)
        stacked = (np.stack([distinct[seed][i][offset:last] for seed in self.seeds], axis=1) for i in (0, 1))
        inputs, labels = (self.xp.asarray(array, dtype=self.dtype) for array in stacked)
        return inputs, labels

    def _block(self, seed: int, block: int, steps: int, batch_size: int) -> list[np.ndarray]:
        rng = stream(seed, "samples", batch_size, block)
        return [array.reshape(steps, batch_size, -1) for array in self.task.sample(steps * batch_size, rng)]


def simulate(
    task: Task,
    network: LinearNetwork,
    rule: Rule,
    times: Any,
    *,
    seeds: int | Sequence[int] = 0,
    ranks: Sequence[int] | None = None,
    rates: Mapping[str, Sequence[float]] | None = None,
    weight_decay: float = 0.0,
    method: str | Solver = "dop853",
    coordinates: str = "auto",
    observe: Observe = ("loss", "mode_strength"),
    device: str | ModuleType = "cpu",
    progress: bool = False,
) -> xr.Dataset:
    r"""Let a linear network learn a task under a rule, and return what was observed.

    All seeds, ranks and rates run as one batched ensemble. Runs of one seed share their starting weights, samples and,
    as far as ranks allow, their channel: the first rows of P do not depend on the rank.

    Parameters
    ----------
    task : Task
    network : LinearNetwork
    rule : Rule
    times : array_like, shape (time,)
        Times to record, non-negative and increasing, in units of :math:`\tau` = 1 / learning rate.
    seeds : int or sequence of int
        One run per seed: 3 is the one seed 3, ``range(3)`` are three.
    ranks : sequence of int, optional
        Runs the rule at each of these ranks instead of its own, as a further dimension of the result.
    rates : mapping, optional
        From "weight_decay", "reader_rate" and "mirror_rate" to sequences of non-negative numbers. Runs with each of
        them instead of `weight_decay` and the rates of the rule's reader and mirror, all combinations, each as a
        further dimension of that name.
    weight_decay : float
        :math:`\lambda`, on the weights and on those feedback arrays whose rule decays.
    method : {"dop853", "rk4", "euler", "sgd"} or Solver
        A solver of :mod:`linfb.linear.solvers`; a name stands for its default settings. "euler" is full-batch gradient
        descent, "sgd" online learning on fresh samples.
    coordinates : {"auto", "reduced", "full"}
        What flows are integrated in: the input directions of the task and of the starting weights, which the first
        layer never leaves if inputs are whitened, or all inputs. "auto" takes the former where that is exact and
        clearly fewer. What is observed is full-sized either way. Online learning meets all inputs.
    observe : str, sequence of str, or mapping
        Names from ``linfb.observables.NAMED``, or a mapping from names to functions of a
        :class:`~linfb.observables.Snapshot` that return arrays with a leading run axis.
    device : {"cpu", "gpu"} or module
        Where arrays live; an array-API module is taken as it is.
    progress : bool
        Whether to show a progress bar over the recorded times.

    Returns
    -------
    xarray.Dataset
        Variables as observed, on dimensions (those of `rates`, rank,) seed, time and their own, as NumPy arrays;
        attributes say how they were made. ``channel_rank`` holds the ranks after capping.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; the message names the argument.
    DivergenceError
        If a state stops being finite; the message names time, rule and step size, and ``.partial`` holds what was
        computed before.
    InterruptedRun
        On the user's interrupt (it is a KeyboardInterrupt); with ``.partial`` likewise.

    Notes
    -----
    The population flow is integrated on the task's moment set, which is exact for linear networks.

    Examples
    --------
    >>> from linfb.networks import Balanced, LinearNetwork
    >>> from linfb.rules import low_rank, mirrors, readers
    >>> from linfb.tasks import low_rank_teacher
    >>> task = low_rank_teacher(8, 4, [3.0, 1.0])
    >>> rule = low_rank(2, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))
    >>> result = simulate(task, LinearNetwork((8, 6, 4), Balanced(0.01)), rule, [0.0, 20.0], weight_decay=1e-3)
    >>> bool(result.loss[0, -1] < 0.01 * result.loss[0, 0])
    True

    Two seeds at three rates of a reader that learns, in one call:

    >>> result = simulate(
    ...     task, LinearNetwork((8, 6, 4)), low_rank(2), [20.0], seeds=range(2), rates={"reader_rate": [0.0, 0.5, 2.0]}
    ... )
    >>> dict(result.loss.sizes)
    {'reader_rate': 3, 'seed': 2, 'time': 1}
    """
    from tqdm import tqdm

    from linfb._errors import DivergenceError, InterruptedRun

    runs = plan(
        task, network, rule, times, seeds=seeds, ranks=ranks, rates=rates, weight_decay=weight_decay, observe=observe
    )
    if getattr(rule.mirror, "restart_every", None) is not None:
        raise ValueError("mirror with restart_every starts again after steps of training; simulate has no such steps")
    if getattr(rule.reader, "every", 1) != 1:
        raise ValueError("reader with every > 1 rests in steps of training; simulate has no such steps")
    solver, xp = named(method), device_namespace(device)
    made = [initial_state(task, network, run.rule, seed=run.seed) for run in runs.runs]
    dtype = getattr(xp, getattr(solver, "dtype", "float64"))
    state = _stacked([one for one, _ in made], xp, dtype)
    rule, recorder, pace = runs.runs[0].rule, Recorder(runs), runs.rates
    pace_there = {name: rate if np.ndim(rate) == 0 else xp.asarray(rate, dtype=dtype) for name, rate in pace.items()}
    inward = coordinates_of(task, state.weights[0], coordinates, solver)
    within = inward.of(state)

    @cache
    def moments() -> tuple[Any, ...]:
        return tuple(xp.asarray(array, dtype=dtype) for array in task.moment_set())

    def velocities(now: State, data: tuple[Any, ...]) -> State:
        return flow(rule, state=now, inputs=data[0], labels=data[1], **pace_there)

    def velocity(arrays: list[Any], data: tuple[Any, Any] | None = None) -> list[Any]:
        now = replace_dynamic(rule, within, arrays)
        return dynamic(rule, velocities(now, data or inward.moments or moments()))

    def online(arrays: list[Any], inputs: Any, labels: Any, step_size: float) -> list[Any]:
        now = replace_dynamic(rule, state, arrays)
        return dynamic(rule, advance(rule, state=now, inputs=inputs, labels=labels, step_size=step_size, **pace))

    def snapshot(arrays: list[Any], start: Snapshot | None) -> Snapshot:
        now = inward.back(replace_dynamic(rule, within, arrays))
        return Snapshot(
            task, rule, now.weights, now.channels, start,
            passes=lambda: backward(rule, now, *moments()),
            velocities=lambda: velocities(now, moments()).weights,
        )  # fmt: skip

    def result() -> xr.Dataset:
        return recorder.dataset(
            [list(channels.ranks.values()) for _, channels in made],
            method=solver,
            input_coordinates=inward.described,
            device=getattr(device, "__name__", device),
            capped=sorted({layer for _, channels in made for layer in channels.capped}),
        )

    start = snapshot(dynamic(rule, within), None)
    fast = online if compiled(rule) and isinstance(state.weights[0], np.ndarray) else None
    problem = Problem(velocity, _Sampler(task, [run.seed for run in runs.runs], xp, dtype), len(made), xp, fast)
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            states = solver.solve(problem, dynamic(rule, within), runs.times)
            rows = zip(runs.times.tolist(), states, strict=True)
            for time, arrays in tqdm(rows, total=runs.times.size, disable=not progress, desc=rule.name):
                now = snapshot(arrays, start)
                if not bool(xp.all(xp.isfinite(loss(now)))):
                    raise FloatingPointError(f"t = {time:.6g} (its loss), step size {_step_size(solver)}")
                recorder.add(now)
        except FloatingPointError as error:
            partial = result()
            raise DivergenceError(
                f"{rule.name} stopped being finite under {type(solver).__name__} at {error}; {partial.sizes['time']} "
                f"of {runs.times.size} times are in .partial; try a smaller step size",
                partial,
            ) from error
        except KeyboardInterrupt:
            partial = result()
            raise InterruptedRun(f"interrupted after {partial.sizes['time']} recorded times", partial) from None
    return result()


def _step_size(solver: Solver) -> Any:
    return getattr(solver, "step_size", "adaptive")
