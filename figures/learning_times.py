r"""How long a mode takes to be learned through a random channel.

A fixed P with orthonormal rows, drawn uniformly, sees the share :math:`\kappa = u^\top P^\top P\,u` of a mode's
output direction u. From a balanced start of strength :math:`c_0` the mode reaches half its strength at

.. math:: t_{1/2} = \frac{\ln(s/c_0 - 1)}{2\sqrt\kappa\,s},

so the law of :math:`\kappa` is the law of learning times.

**Theory** (black lines). (a) One mode, :math:`\kappa \sim \mathrm{Beta}(r/2, (m-r)/2)`, exact at every width. (b)
A task of d equally strong modes; the shares are eigenvalues of the Jacobi ensemble, here in its limit of many
outputs. The dotted line is what a theory would say that ignores :math:`\kappa`: backpropagation's time for
everyone.

**What is seen.** The distributions of half-learning times of simulated networks (coloured steps; every network
counts, one channel is drawn for each) lie on the curves. Narrow channels do not merely slow learning down: they
spread it over orders of magnitude, and with r < d a share 1 - r/d of the modes is never learned.
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
    """Settings of the figure; each case is (outputs m, modes d, rank r), its seeds shifted by SHIFT r; times in tau."""

    cases: tuple[tuple[int, int, int], ...] = (
        (16, 1, 1), (16, 1, 2), (16, 1, 4), (16, 1, 12), (48, 12, 6), (48, 12, 12), (48, 12, 24),
    )  # fmt: skip
    seeds: tuple[int, ...] = tuple(range(600))
    many_modes_seeds: int = 20
    s: float = 1.0
    c0: float = 1e-3
    t_max: float = 60.0
    n_times: int = 601


PARTS = "cases"
SHIFT = 10**6  # of seeds per rank: channels of one seed share rows, and cases are to be independent
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
    """Return eigenvalues and eigenvectors of K = U^T P^T P U, of one channel or of many."""
    seen = left if P is None else P @ left
    values, vectors = np.linalg.eigh(np.swapaxes(seen, -1, -2) @ seen)
    return values, vectors


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per case and run, half-learning times (infinite where not reached) and the shares kappa, (case, run)."""
    import xarray as xr

    return xr.concat(
        [_one_case(case, config, resources) for case in config.cases], dim="case", join="outer", combine_attrs="drop"
    )


def _one_case(case: tuple[int, int, int], config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb import LinearNetwork, low_rank_teacher, simulate
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import time_to_half

    n_out, n_modes, rank = case
    task = low_rank_teacher(n_modes, n_out, [config.s] * n_modes, right=np.eye(n_modes))
    rule = low_rank(rank, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))

    def strengths(snap: Any) -> Any:
        vectors = overlap(task.left, snap.channels[-1].P)[1]
        return np.sum((snap.map @ (task.right @ vectors)) * (task.left @ vectors), axis=-2)

    def shares(snap: Any) -> Any:
        return overlap(task.left, snap.channels[-1].P)[0]

    n_runs = len(config.seeds) if n_modes == 1 else config.many_modes_seeds
    seeds = [seed + SHIFT * rank for seed in config.seeds[:n_runs]]
    run = simulate(
        task, LinearNetwork((n_modes, n_modes, n_out), AlongEigenvectors(config.c0)), rule,
        np.linspace(0.0, config.t_max, config.n_times), seeds=seeds,
        observe={"strength": strengths, "kappa": shares},
    )  # fmt: skip
    strength = run.strength.transpose("time", ...).values.reshape(config.n_times, -1)
    kappa = run.kappa.isel(time=0).values.ravel()
    expected = time_to_half(config.s, config.c0, kappa=np.maximum(kappa, 0.0))
    columns = {
        "half_time": half_times(run.time.values, strength, config.s),
        "kappa": kappa,
        "expected": np.where(expected <= config.t_max, expected, np.inf),
    }
    return xr.Dataset(
        {name: (("case", "run"), values[None]) for name, values in columns.items()},
        coords={"case": [case_label(case)], "run": np.arange(kappa.size)},
    )


def law(case: tuple[int, int, int], times: np.ndarray, config: Config) -> np.ndarray:
    """Return the probability that a mode is half learned by each of `times`, from theory alone."""
    from linfb.theory import expected_learned_fraction, time_to_half, time_to_half_cdf

    n_out, n_modes, rank = case
    if n_modes == 1:
        return time_to_half_cdf(times, config.s, config.c0, rank, n_out)
    fastest = time_to_half(config.s, config.c0)
    late = times > fastest  # kappa <= 1: nothing is learned before
    shares = np.zeros_like(times)
    shares[late] = expected_learned_fraction(rank / n_out, n_modes / n_out, fastest / times[late])
    return shares


def half_times(times: np.ndarray, strength: np.ndarray, s: float) -> np.ndarray:
    """Return when columns of `strength` (time, run) cross s / 2, interpolating the log odds; inf if never."""
    share = np.clip(strength / s, 1e-300, 1 - 1e-12)
    odds = np.log(share / (1 - share))
    found = np.full(strength.shape[1], np.inf)
    for run, curve in enumerate(odds.T):
        later = np.flatnonzero(curve >= 0)
        if later.size and later[0]:
            i = later[0]
            part = -curve[i - 1] / (curve[i] - curve[i - 1])
            found[run] = times[i - 1] + part * (times[i] - times[i - 1])
    return found


def case_label(case: tuple[int, int, int]) -> str:
    """Return the name of a case on the case dimension."""
    return "m={} d={} r={}".format(*case)


def sorted_times(results: xr.Dataset, case: tuple[int, int, int]) -> np.ndarray:
    """Return the half-learning times of a case in rising order, those not reached (infinite) last."""
    times = results.half_time.sel(case=case_label(case)).values
    return np.sort(times[~np.isnan(times)])


def distance(found: np.ndarray, case: tuple[int, int, int], config: Config) -> float:
    """Return the Kolmogorov-Smirnov distance between half-learning times, rising, and the law of a case."""
    finite = found[np.isfinite(found)]
    expected = law(case, finite, config)
    ranks = np.arange(finite.size)
    above, below = (ranks + 1) / found.size - expected, expected - ranks / found.size
    return float(np.max(np.concatenate([above, below]), initial=0.0))


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far single runs are from their formula, and distributions from their law and from a wrong one."""
    known = np.isfinite(results.half_time) & np.isfinite(results.expected)
    single = abs(results.half_time / results.expected - 1).where(known)
    found = {"largest relative deviation of a run from its own half-learning time": float(single.max())}
    for case in config.cases:
        times, wrong = sorted_times(results, case), (*case[:2], case[2] + 1)
        found[f"Kolmogorov-Smirnov distance, {case_label(case)}"] = distance(times, case, config)
        found[f"the same from the law of rank r + 1, {case_label(case)}"] = distance(times, wrong, config)
    return found


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: distributions of half-learning times for one mode, and for many."""
    from linfb.theory import time_to_half

    figure = new_figure(PAGE, 2.8)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    groups = [[case for case in config.cases if (case[1] == 1) == single] for single in (True, False)]
    fastest = float(time_to_half(config.s, config.c0))
    times = np.geomspace(fastest, config.t_max, 300)
    for axes, cases, letter in zip(panels, groups, "ab", strict=True):
        for colour, case in zip(COLOURS, cases, strict=False):
            found = sorted_times(results, case)
            share = np.arange(1, found.size + 1) / found.size
            axes.step(found, share, where="post", color=colour, linewidth=2.4, alpha=0.75, label=f"r = {case[2]}")
            axes.plot(times, law(case, times, config), **THEORY)
        axes.axvline(fastest, **THEORY | {"linestyle": ":"})
        axes.set_xscale("log")
        axes.set_xlim(0.9 * fastest, config.t_max)
        axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
        axes.minorticks_off()
        axes.set_xlabel("time to half strength / $\\tau$")
        if cases:
            axes.set_title(f"m = {cases[0][0]} outputs, d = {cases[0][1]} mode{'s' * (cases[0][1] > 1)}")
            axes.legend(loc="lower right")
        panel_letter(axes, letter)
    panels[0].set_ylabel("share of modes learned by then")
    panels[0].set_ylim(-0.02, 1.04)
    return figure
