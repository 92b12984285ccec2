r"""How many modes a narrow channel can teach when weights decay.

With weight decay :math:`\lambda` a direction is learned only if the channel passes enough of it. For fixed P the
number of learned directions is

.. math:: \min\bigl(k,\ \#\{i : \sigma_i(PA) > \lambda\}\bigr) \le r,

a sharp threshold. For d equally strong modes and a random P with orthonormal rows, :math:`\sigma_i =
s\sqrt{\kappa_i}` with :math:`\kappa_i` the eigenvalues of a Jacobi ensemble.

**Theory** (black lines). The expected share of learned modes as a function of r/m and :math:`\lambda/s`, from the
law of the Jacobi ensemble in the limit of many outputs at fixed d/m; no simulation enters. (a) Cuts at fixed
:math:`\lambda/s`; dotted, what a theory would say that ignores :math:`\kappa`: min(r, d)/d at any decay. (b)
Level lines of the whole phase diagram.

**What is seen.** Simulated networks (dots: in (a) every seed, and their median; in (b) their mean) follow the
lines. Without decay r = d would do; with decay the channel must be wider, for :math:`\lambda/s` near one almost
as wide as the output itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, PAGE, THEORY, dots, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Config:
    """Settings of the figure; weight decay and rates in units of s = 1, times in units of tau."""

    decays: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    ranks: tuple[int, ...] = (2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_out: int = 48
    n_modes: int = 12
    start_scale: float = 1e-2
    t_max: float = 400.0
    learned_above: float = 5e-3
    line_points: int = 97


PARTS = "decays"
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
DECIDED = 8.0  # growth or decay by exp(2 * 8) over the simulated time
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        decays=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), ranks=tuple(range(4, 129, 4)), n_out=128,
        n_modes=32, seeds=tuple(range(10)),
    ),
}  # fmt: skip


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return the number of modes learned in simulation and by theory, (decay, rank, seed), and the expected share.

    ``nearest`` is the distance of the singular values of PA from the threshold, the rate of the slowest mode: where it
    is small a simulation of finite length is undecided.
    """
    import xarray as xr

    return xr.concat(
        [_one_decay(decay, config, resources) for decay in config.decays], dim="decay", combine_attrs="drop"
    )


def _one_decay(decay: float, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb import Balanced, LinearNetwork, low_rank_teacher
    from linfb.linear.simulation import initial_state, simulate
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import expected_learned_fraction, learned_modes

    d = config.n_modes
    task = low_rank_teacher(d, config.n_out, np.ones(d))
    network = LinearNetwork((d, d, config.n_out), Balanced(config.start_scale))
    rule = low_rank(max(config.ranks), reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))
    run = simulate(
        task, network, rule, [config.t_max], seeds=config.seeds, ranks=config.ranks, weight_decay=decay,
        observe="singular_values", device=resources.device,
    )  # fmt: skip
    learned = (run.singular_values.isel(time=0, drop=True) > config.learned_above).sum("singular_value")
    theory = np.zeros((2, len(config.ranks), len(config.seeds)))
    for j, seed in enumerate(config.seeds):
        rows = initial_state(task, network, rule, seed=seed)[0].channels[-1].P
        for i, rank in enumerate(config.ranks):
            sigma = np.linalg.svd(rows[:rank] @ task.Sigma_yx, compute_uv=False)
            theory[0, i, j] = learned_modes(task.Sigma_yx, rows[:rank], weight_decay=decay, n_hidden=d)
            theory[1, i, j] = np.min(np.abs(sigma - decay))
    x = np.linspace(0, 1, config.line_points)[1:-1]
    expected = np.array([float(expected_learned_fraction(value, d / config.n_out, decay)) for value in x])
    result = xr.Dataset(
        {
            "learned": learned.astype(float),
            "theory": (("rank", "seed"), theory[0]),
            "nearest": (("rank", "seed"), theory[1]),
            "expected": ("rank_fraction", expected),
        },
        coords={"rank_fraction": x},
    )
    return result.expand_dims(decay=[decay])


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how often the counts agree, by theory and by a theory that ignores kappa, and how far means are off."""
    undecided = results.nearest * config.t_max < DECIDED
    n_modes = config.n_modes
    blind = np.minimum(results["rank"], n_modes) + 0 * results.learned
    expected = results.expected.interp(rank_fraction=results["rank"] / config.n_out)
    deviation = (results.learned / n_modes).mean("seed") - expected
    return {
        "share of runs whose count is as theory says": float((results.learned == results.theory).mean()),
        "the same, runs that are still undecided at the end left out": float(
            (results.learned == results.theory).where(~undecided).mean()
        ),
        "the same if kappa is ignored": float((results.learned == blind).mean()),
        "largest deviation of mean share from the expected one": float(abs(deviation).max()),
        "the same if kappa is ignored, expected share": float(
            abs((results.learned.mean("seed") - blind.mean("seed")) / n_modes).max()
        ),
    }


def expected_plane(rank_fraction: np.ndarray, decays: np.ndarray, config: Config) -> np.ndarray:
    """Return the expected share of learned modes on a grid, shape (decay, rank)."""
    from linfb.theory import expected_learned_fraction

    columns = [expected_learned_fraction(x, config.n_modes / config.n_out, decays) for x in rank_fraction]
    return np.stack(columns, axis=-1)


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: cuts at fixed decay, and level lines."""
    figure = new_figure(PAGE, 3.1)
    cuts, plane = figure.subplots(1, 2)
    width = results["rank"].values / config.n_out
    share = results.learned / config.n_modes
    for colour, decay in zip(COLOURS, results.decay.values[:: max(1, len(config.decays) // 5)], strict=False):
        dots(cuts, width, share.sel(decay=decay).transpose("seed", "rank"), colour, label=rf"$\lambda/s$ = {decay:g}")
        cuts.plot(results.rank_fraction, results.expected.sel(decay=decay), **THEORY)
    cuts.plot([], [], label="theory", **THEORY)
    blind = np.minimum(results.rank_fraction * config.n_out / config.n_modes, 1.0)
    cuts.plot(results.rank_fraction, blind, **THEORY | {"linestyle": ":"}, label="$\\kappa$ ignored")
    cuts.set_xlabel("width of the channel, r/m")
    cuts.set_ylabel("share of modes learned")
    figure.legend(*cuts.get_legend_handles_labels(), loc="outside lower left", ncols=7, handletextpad=0.3)
    x, y = np.linspace(0.01, 0.99, 99), np.linspace(0.01, 0.99, 99)
    expected = expected_plane(x, y, config)
    lines = plane.contour(x, y, expected, levels=LEVELS, colors="black", linewidths=0.9)
    row = np.argmin(np.abs(y - 0.6))
    plane.clabel(lines, fontsize=7, fmt="%g", manual=[(np.interp(level, expected[row], x), 0.6) for level in LEVELS])
    x, y = np.meshgrid(width, results.decay)
    means = share.mean("seed").transpose("decay", "rank")
    points = plane.scatter(x, y, c=means, s=16, cmap="cividis", vmin=0, vmax=1, clip_on=False, zorder=3)
    plane.set_xlim(0, 1)
    plane.set_ylim(0, 1)
    figure.colorbar(points, ax=plane, label="share of modes learned, simulation")
    plane.set_xlabel("width of the channel, r/m")
    plane.set_ylabel(r"weight decay, $\lambda/s$")
    panel_letter(cuts, "a")
    panel_letter(plane, "b")
    return figure
