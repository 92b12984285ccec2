"""The experiment that :func:`linfb.simulate` is: a linear network, a task of low rank, a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._checks import choice, integer, real
from linfb.experiments.experiment import Experiment, Together, resource
from linfb.experiments.training import Training, rule_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Simulation", "simulate"]

_STARTS = {"small_random": "SmallRandom", "balanced": "Balanced", "aligned": "Aligned"}


@dataclass(frozen=True)
class Simulation:
    """A simulation in plain words and numbers.

    Parameters
    ----------
    singular_values : tuple of float
        Of the teacher.
    n_in, n_out : int
    hidden : tuple of int
        Widths of the hidden layers.
    label_noise : float
    task_seed : int
        Of the teacher's singular vectors; the seed of a run is that of weights, channels and samples.
    start : {"small_random", "balanced", "aligned"}
    start_scale : float
        The start's one parameter.
    rule, rank, reader, mirror, layers
        As in :class:`~linfb.experiments.training.Training`.
    weight_decay : float
    t_max : float
        Last time, in units of 1 / learning rate.
    n_times : int
        Recorded from 0 to `t_max`, at equal distances.
    method : str
        Of :func:`linfb.simulate`.
    step_size : float, optional
        Of rk4, euler and sgd, in units of time.
    observe : tuple of str
    device : {"cpu", "gpu"}
        Not part of what a result is known by.
    """

    singular_values: tuple[float, ...] = (4.0, 2.0, 1.0)
    n_in: int = 16
    n_out: int = 8
    hidden: tuple[int, ...] = (12,)
    label_noise: float = 0.0
    task_seed: int = 0
    start: str = "small_random"
    start_scale: float = 1e-2
    rule: str = "low-rank"
    rank: int | float | str | Mapping | None = None
    reader: str | None = None
    mirror: str | None = None
    layers: tuple[int, ...] | None = None
    weight_decay: float = 0.0
    t_max: float = 20.0
    n_times: int = 41
    method: str = "dop853"
    step_size: float | None = None
    observe: tuple[str, ...] = ("loss", "mode_strength")
    device: str = resource("cpu")

    def __post_init__(self) -> None:
        from linfb.observables import NAMED

        integer("n_times", self.n_times, at_least=2)
        integer("task_seed", self.task_seed, at_least=0)
        choice("device", self.device, ("cpu", "gpu"))
        for name in ("label_noise", "weight_decay", "start_scale"):
            object.__setattr__(self, name, real(name, getattr(self, name), at_least=0.0))
        object.__setattr__(self, "t_max", real("t_max", self.t_max, above=0.0))
        for name in self.observe:
            choice("observe", name, NAMED)
        object.__setattr__(self, "rank", _words(self).rank)
        for part in (_task, _network, _solver):
            part(self)


def _words(config: Simulation) -> Training:
    """Return a configuration of training with the same rule."""
    fields = ("rule", "rank", "reader", "mirror", "layers")
    return replace(Training(), **{name: getattr(config, name) for name in fields})


def _task(config: Simulation) -> Any:
    from linfb.tasks import low_rank_teacher

    return low_rank_teacher(
        config.n_in, config.n_out, config.singular_values, seed=config.task_seed, label_noise=config.label_noise
    )


def _network(config: Simulation) -> Any:
    from linfb import networks

    start = getattr(networks, _STARTS[choice("start", config.start, _STARTS)])(config.start_scale)
    return networks.LinearNetwork((config.n_in, *config.hidden, config.n_out), start)


def _solver(config: Simulation) -> Any:
    from linfb.linear.solvers import named

    solver = named(config.method)
    if config.step_size is None:
        return solver
    if not hasattr(solver, "step_size"):
        raise ValueError(f"step_size does not go with method {config.method!r}")
    return replace(solver, step_size=config.step_size)  # type: ignore[type-var]


def run(config: Simulation, seed: int) -> xr.Dataset:
    """Return the result of :func:`linfb.simulate` for one seed, without its dimension ``seed``."""
    return run_together([config], [seed])[0]


def run_together(configs: Sequence[Simulation], seeds: Sequence[int]) -> list[xr.Dataset]:
    """Return the result of each run, for configurations that are all the same; on one thread of BLAS."""
    from threadpoolctl import threadpool_limits

    from linfb.linear import simulate as simulated

    config = configs[0]
    with threadpool_limits(1):
        found = simulated(
            _task(config), _network(config), rule_of(_words(config)), np.linspace(0.0, config.t_max, config.n_times),
            seeds=list(seeds), weight_decay=config.weight_decay, method=_solver(config), observe=config.observe,
            device=config.device,
        )  # fmt: skip
    return [found.isel(seed=i, drop=True).assign_attrs(seeds=repr([seed])) for i, seed in enumerate(seeds)]


simulate = Experiment("simulate", 1, Simulation(), run, Together((), run_together))
"""What :func:`linfb.simulate` does, as an experiment."""
