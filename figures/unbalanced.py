r"""How a channel moves the boundary between lazy and rich learning.

A mode whose two layers differ in size, :math:`\mu = \|W_1\|^2 - \kappa\|W_2\|^2` along it, is learned along

.. math:: \dot c = (s - c)\sqrt{\mu^2 + 4\kappa c^2} ,

with :math:`\kappa` the share of its output direction that the channel sees.

**Theory** (black lines). An imbalance speeds the mode up, and far above :math:`s\sqrt{\kappa/2}` the rate is
:math:`\mu`, whatever the channel sees. Below it the curve has an inflection (rich, sigmoidal), above none (lazy,
concave): a narrow channel makes learning lazy at smaller imbalances.

**What is seen.** Simulated networks (dots: every seed) that start along a mode, behind channels of full rank (a) and of
rank one (b), each beside the curve of its own :math:`\kappa`; they are within 2e-10 of it. (c) All runs by whether
their simulated curve bends upwards anywhere: the line separates all of them, that of backpropagation (dotted) puts a
sixth on the wrong side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Task


@dataclass(frozen=True)
class Config:
    """Settings of the figure; imbalances in units of s, times in units of tau."""

    imbalances: tuple[float, ...] = (0.0, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.5)
    ranks: tuple[int, ...] = (1, 4, 12)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    width: int = 12
    s: float = 1.0
    c0: float = 1e-3
    t_max: float = 30.0
    n_times: int = 301
    drawn: tuple[float, ...] = (0.0, 0.1, 0.4, 1.5)


PARTS = "imbalances"
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        imbalances=(0.0, 0.03, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5),
        ranks=(1, 2, 4, 8, 16, 32), seeds=tuple(range(20)), width=32,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Unbalanced:
    """Weights along the task's first mode whose layers differ in size as the channel sees them."""

    c0: float
    imbalance: float

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return W_1 and W_2."""
        u, v = task.left[:, 0], task.right[:, 0]
        g = rng.standard_normal(widths[1])
        g /= np.linalg.norm(g)
        kappa = np.sum((readers[0] @ u) ** 2)
        b = self.c0 * np.sqrt(2 / (self.imbalance + np.hypot(self.imbalance, 2 * np.sqrt(kappa) * self.c0)))
        return self.c0 / b * np.outer(g, v), b * np.outer(u, g)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return the strength of the mode, (imbalance, rank, seed, time), and the share that each channel sees."""
    import xarray as xr

    from linfb import LinearNetwork, low_rank_teacher
    from linfb import simulate as run
    from linfb.rules import low_rank, mirrors, readers

    task = low_rank_teacher(config.width, config.width, [config.s])
    rule = low_rank(max(config.ranks), reader=readers.Fixed(), mirror=mirrors.Exact())
    observe = {
        "strength": lambda snap: task.left[:, 0] @ snap.map @ task.right[:, 0],
        "squares": lambda snap: np.stack([np.sum(W**2, axis=(-2, -1)) for W in snap.weights], axis=-1),
    }
    found = []
    for imbalance in config.imbalances:
        network = LinearNetwork((config.width,) * 3, Unbalanced(config.c0, imbalance * config.s))
        runs = run(
            task, network, rule, np.linspace(0, config.t_max, config.n_times), seeds=config.seeds, ranks=config.ranks,
            observe=observe, device=resources.device,
        )  # fmt: skip
        start = runs.squares.isel(time=0, drop=True)
        layer = start.dims[-1]
        kappa = (start.isel({layer: 0}) - imbalance * config.s) / start.isel({layer: 1})
        found.append(runs[["strength"]].assign(kappa=kappa.drop_vars(layer, errors="ignore")))
    result = xr.concat(found, dim="imbalance", combine_attrs="drop").assign_coords(imbalance=list(config.imbalances))
    return result.transpose("imbalance", "rank", "seed", ...)


def bends_up(results: xr.Dataset) -> xr.DataArray:
    """Return whether a simulated curve is convex anywhere beyond rounding."""
    slope = results.strength.diff("time")
    return slope.diff("time").max("time") > 1e-4 * slope.max("time")


def theory_of(results: xr.Dataset, config: Config, kappa: Any = None) -> np.ndarray:
    """Return the strengths that theory expects of all runs, at their own shares unless others are given."""
    from linfb.theory import unbalanced_mode_strength

    kappa = results.kappa.values[..., None] if kappa is None else kappa
    imbalance = config.s * results.imbalance.values[:, None, None, None]
    return unbalanced_mode_strength(results.time.values, config.s, config.c0, imbalance, kappa=kappa)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far runs are from their curves, and how many are on the side of the boundary that theory says."""
    from linfb.theory import rich_imbalance

    strength = results.strength.transpose(..., "time").values / config.s
    rich = bends_up(results).transpose("imbalance", "rank", "seed").values
    imbalance = config.s * results.imbalance.values[:, None, None]

    def right(kappa: Any) -> float:
        return float(np.mean(rich == (imbalance < rich_imbalance(config.s, kappa=kappa))))

    return {
        "largest deviation of a run from its curve, over s": float(
            np.abs(strength - theory_of(results, config) / config.s).max()
        ),
        "the same from the curve of backpropagation": float(
            np.abs(strength - theory_of(results, config, 1.0) / config.s).max()
        ),
        "share of runs that bend up or not as theory says": right(results.kappa.values),
        "the same from the boundary of backpropagation": right(1.0),
    }  # fmt: skip


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: curves behind a wide and a narrow channel, and the boundary between lazy and rich."""
    from linfb.theory import rich_imbalance

    figure = new_figure(PAGE, 2.6)
    panels = figure.subplots(1, 3)
    drawn = [value for value in config.drawn if value in config.imbalances]
    curves = theory_of(results, config) / config.s
    shown = slice(None, None, max(1, config.n_times // 40))
    for axes, rank in zip(panels, (max(config.ranks), min(config.ranks)), strict=False):
        place = results["rank"].values.tolist().index(rank)
        for colour, value in zip(COLOURS, drawn, strict=False):
            row = results.imbalance.values.tolist().index(value)
            for seed in range(results.sizes["seed"]):
                axes.plot(results.time, curves[row, place, seed], **{**THEORY, "linewidth": 0.7})
                run = results.strength.isel(imbalance=row, rank=place, seed=seed)[shown] / config.s
                axes.plot(
                    run.time, run, ".", color=colour, markersize=3, label=rf"$\mu/s$ = {value:g}" if not seed else None
                )
        axes.set_title(f"rank {rank} of {config.width}")
        axes.set_xlabel(r"time / $\tau$")
    panels[0].set_xlim(-0.02 * config.t_max, config.t_max / 2)
    panels[0].set_ylabel(r"strength of the mode, $c/s$")
    axes, rich = panels[2], bends_up(results).transpose("imbalance", "rank", "seed").values
    kappa = results.kappa.transpose("imbalance", "rank", "seed").values
    imbalance = np.broadcast_to(results.imbalance.values[:, None, None], kappa.shape)
    for bent, marker, colour, label in ((True, "o", COLOURS[0], "sigmoidal"), (False, "x", COLOURS[1], "concave")):
        axes.plot(kappa[rich == bent], imbalance[rich == bent], marker, color=colour, markersize=3.5, label=label)
    share = np.linspace(0, 1, 200)
    axes.plot(share, rich_imbalance(1.0, kappa=share), **THEORY)
    axes.axhline(float(rich_imbalance(1.0)), color=GREY, linestyle=":", linewidth=1)
    axes.set_xlabel(r"share that the channel sees, $\kappa$")
    axes.set_ylabel(r"imbalance, $\mu/s$")
    axes.set_title("rich and lazy")
    figure.legend(loc="outside lower center", ncols=6)
    for axes, letter in zip(panels, "abc", strict=True):
        panel_letter(axes, letter)
    return figure
