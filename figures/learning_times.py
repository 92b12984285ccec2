r"""How long does a mode take to be learned through a random channel?

A fixed P with orthonormal rows, drawn uniformly, sees the share :math:`\kappa = u^\top P^\top P\,u` of a mode's output
direction u. From a balanced start of strength :math:`c_0` the mode reaches half its strength at

.. math:: t_{1/2} = \frac{\ln(s/c_0 - 1)}{2\sqrt\kappa\,s},

so the law of :math:`\kappa` is the law of learning times.

**Theory** (black lines). Left: one mode, :math:`\kappa \sim \mathrm{Beta}(r/2, (m-r)/2)`, exact at every width. Right:
a task of d equally strong modes; the shares are eigenvalues of the Jacobi ensemble, here in its limit of many outputs, in which
a fraction of the modes is never seen if r < d.

**What is seen.** Half-learning times of many simulated networks (coloured steps: their empirical distribution, one
network per channel drawn) lie on the curves. Narrow channels do not merely slow learning down: they spread it over
orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, PAGE, THEORY, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Task


@dataclass(frozen=True)
class Config:
    """Settings of the figure; each case is (outputs m, modes d, rank r); times in units of tau."""

    cases: tuple[tuple[int, int, int], ...] = (
        (16, 1, 1), (16, 1, 2), (16, 1, 4), (16, 1, 12), (48, 12, 6), (48, 12, 12), (48, 12, 24),
    )  # fmt: skip
    seeds: tuple[int, ...] = tuple(range(300))
    many_modes_seeds: int = 20
    s: float = 1.0
    c0: float = 1e-3
    t_max: float = 60.0
    n_times: int = 601


PARTS = "cases"
CONFIGS = {
    "quick": Config(),
    "paper": Config(seeds=tuple(range(2000)), many_modes_seeds=50),
}


@dataclass(frozen=True)
class AlongEigenvectors:
    """M-balanced weights along the eigenvectors of the channel's overlap with the task, each mode of strength `c0`.

    W2 = sum_i beta_i (U e_i) g_i^T and W1 = sum_i sqrt(kappa_i) beta_i g_i (V e_i)^T, where e_i and kappa_i diagonalise
    U^T P^T P U and g_i are orthonormal: every mode is a scalar problem that starts at sqrt(kappa_i) beta_i^2 = c0.
    """

    c0: float

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return W1 and W2. A mode that the channel does not see starts at zero."""
        kappa, vectors = overlap(task.left, readers[0])
        seen = np.maximum(kappa, 0.0) > 1e-12
        root = np.sqrt(np.where(seen, kappa, 1.0))
        beta = np.where(seen, np.sqrt(self.c0 / root), 0.0)
        hidden = np.linalg.qr(rng.standard_normal((widths[1], kappa.size)))[0]
        return hidden * (root * beta) @ (task.right @ vectors).T, (task.left @ vectors) * beta @ hidden.T


def overlap(left: np.ndarray, P: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors of K = U^T P^T P U."""
    seen = left if P is None else P @ left
    return np.linalg.eigh(seen.T @ seen)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per case and run, half-learning times (infinite where not reached) and the shares kappa, (case, run)."""
    import xarray as xr

    return xr.concat([_one_case(case, config, resources) for case in config.cases], dim="case", join="outer")


def _one_case(case: tuple[int, int, int], config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb import LinearNetwork, low_rank_teacher, simulate
    from linfb.observables.linear import Observable
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import time_to_half

    n_out, n_modes, rank = case
    task = low_rank_teacher(n_modes, n_out, [config.s] * n_modes, right=np.eye(n_modes))
    rule = low_rank(rank, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))

    def strengths(snap: Any) -> Any:
        vectors = np.stack([overlap(task.left, np.asarray(P))[1] for P in snap.channels[-1].P])
        outputs, inputs = task.left @ vectors, task.right @ vectors
        return np.sum((np.asarray(snap.map) @ inputs) * outputs, axis=-2)

    def shares(snap: Any) -> Any:
        return np.stack([overlap(task.left, np.asarray(P))[0] for P in snap.channels[-1].P])

    seeds = config.seeds if n_modes == 1 else config.seeds[: config.many_modes_seeds]
    run = simulate(
        task, LinearNetwork((n_modes, n_modes, n_out), AlongEigenvectors(config.c0)), rule,
        np.linspace(0.0, config.t_max, config.n_times), seeds=seeds,
        observe={"strength": Observable(strengths, ("mode",)), "kappa": Observable(shares, ("mode",))},
    )  # fmt: skip
    strength = run.strength.transpose("time", ...).values.reshape(config.n_times, -1)
    kappa = run.kappa.isel(time=0).values.ravel()
    expected = time_to_half(config.s, config.c0, kappa=np.maximum(kappa, 0.0))
    columns = {
        "half_time": half_times(run.time.values, strength, config.s),
        "kappa": kappa,
        "expected": np.where(expected <= config.t_max, expected, np.inf),
    }
    label = case_label(case)
    return xr.Dataset({name: (("case", "run"), values[None]) for name, values in columns.items()}).assign_coords(
        case=[label], run=np.arange(kappa.size)
    )


def half_times(times: np.ndarray, strength: np.ndarray, s: float) -> np.ndarray:
    """Return when columns of `strength` (time, run) cross s / 2, interpolating the log odds; inf if never."""
    odds = np.log(np.clip(strength, 1e-300, s * (1 - 1e-12)) / (s - np.clip(strength, 1e-300, s * (1 - 1e-12))))
    found = np.full(strength.shape[1], np.inf)
    for run, curve in enumerate(odds.T):
        later = np.flatnonzero(curve >= 0)
        if later.size and later[0]:
            i = later[0]
            share = -curve[i - 1] / (curve[i] - curve[i - 1])
            found[run] = times[i - 1] + share * (times[i] - times[i - 1])
    return found


def case_label(case: tuple[int, int, int]) -> str:
    """Return the name of a case on the case dimension."""
    return "m={} d={} r={}".format(*case)
