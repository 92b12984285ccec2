r"""How every learning rule learns the modes of a task.

A linear network learns a task with three singular values, s = 3, 2, 1. Each panel shows one rule: the strengths
:math:`u_i^\top W v_i` of the three modes against time, three seeds, with a channel as wide as the task (r = d =
3) and a narrower one (r = 2).

**Theory** (black lines) is drawn wherever a closed form exists: backpropagation and Kolen-Pollack from a balanced
start, the channel with fixed P whose Q mirrors the weights (backpropagation on the effective teacher PA, slowed
by :math:`\sqrt\kappa` and blind to what P does not see), and the readout alone. The other rules are simulation
only (dots on thin lines).

**What is seen.** A fixed channel with r = 3 learns everything, but late (one seed has hardly begun with the
weakest mode); with r = 2 it learns every mode in part. Oja's rule on labels and the normative rule find the
task's leading subspace and learn the two strongest modes and nothing of the third. A slow reader of errors does
the same, because what it has learned hides the rest of the error from it; a fast one with a perfect mirror goes
on and learns all three, one after another; with a Kolen-Pollack mirror it writes the new error into the units of
modes that were learned before, and strengths go up and down. In networks of two layers the direct rules do what
their indirect forms do, so they are shown in three layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, new_figure

if TYPE_CHECKING:
    import xarray as xr

FULL = ("backpropagation", "Kolen-Pollack", "feedback alignment", "DFA (3 layers)", "zero feedback")
CHANNELS = (
    "fixed P", "P and Q fixed", "Oja on labels", "Oja on errors, slow", "Oja on errors, fast",
    "Oja, fast, mirror lags", "local", "normative", "direct, fixed P (3 layers)", "direct, Oja (3 layers)",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of the figure; times in units of tau."""

    rules: tuple[str, ...] = FULL + CHANNELS
    seeds: tuple[int, ...] = (0, 1, 2)
    singular_values: tuple[float, ...] = (3.0, 2.0, 1.0)
    ranks: tuple[int, ...] = (3, 2)
    n_in: int = 10
    n_hidden: int = 8
    n_out: int = 6
    start_scale: float = 0.03
    deep_start_scale: float = 0.2
    slow: float = 0.5
    fast: float = 50.0
    t_max: float = 16.0
    n_times: int = 161


PARTS = "rules"
DOT_EVERY = 5
CONFIGS = {"quick": Config(), "paper": Config(seeds=(0, 1, 2, 3, 4), n_in=32, n_hidden=24, n_out=16)}


def rule_of(label: str, config: Config) -> tuple[Any, int]:
    """Return the rule behind a label, at the largest rank, and the depth of the network it is shown in."""
    from linfb import rules
    from linfb.rules import mirrors, readers

    rank = max(config.ranks)
    aligned = mirrors.KolenPollack(start="aligned")

    def oja(on: str, rate: float, mirror: Any) -> Any:
        return rules.low_rank(rank, reader=readers.Oja(on=on, rate=rate), mirror=mirror)

    return {
        "backpropagation": (rules.backpropagation(), 2),
        "Kolen-Pollack": (rules.kolen_pollack(mirror=aligned), 2),
        "feedback alignment": (rules.feedback_alignment(), 2),
        "DFA (3 layers)": (rules.direct_feedback_alignment(), 3),
        "zero feedback": (rules.zero_feedback(), 2),
        "fixed P": (rules.low_rank(rank, reader=readers.Fixed(), mirror=aligned), 2),
        "P and Q fixed": (rules.feedback_alignment(rank=rank), 2),
        "Oja on labels": (oja("labels", 1.0, aligned), 2),
        "Oja on errors, slow": (oja("errors", config.slow, aligned), 2),
        "Oja on errors, fast": (oja("errors", config.fast, mirrors.Exact()), 2),
        "Oja, fast, mirror lags": (oja("errors", config.fast, aligned), 2),
        "local": (rules.local(rank, mirror=aligned), 2),
        "normative": (rules.normative(rank), 2),
        "direct, fixed P (3 layers)": (rules.direct_low_rank(rank, reader=readers.Fixed()), 3),
        "direct, Oja (3 layers)": (rules.direct_low_rank(rank, reader=readers.Oja(on="labels")), 3),
    }[label]


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return mode strengths of every rule on (rule, rank, seed, time, mode): simulated, and predicted where possible.

    Rules without a channel repeat one result over the ranks. ``unseen`` is the wrong theory of the negative control:
    what backpropagation would do from the same start.
    """
    import xarray as xr

    return xr.concat([_one_rule(label, config, resources) for label in config.rules], dim="rule", combine_attrs="drop")


def _one_rule(label: str, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb import Balanced, LinearNetwork, low_rank_teacher, rules, simulate
    from linfb._errors import NoClosedFormError
    from linfb.theory import predict

    rule, depth = rule_of(label, config)
    task = low_rank_teacher(config.n_in, config.n_out, config.singular_values)
    scale = config.start_scale if depth == 2 else config.deep_start_scale
    network = LinearNetwork((config.n_in, *(config.n_hidden,) * (depth - 1), config.n_out), Balanced(scale))
    arguments: dict[str, Any] = {
        "times": np.linspace(0.0, config.t_max, config.n_times), "seeds": config.seeds, "observe": "mode_strength",
    }  # fmt: skip
    ranks: dict[str, Any] = {"ranks": config.ranks} if rule.reader.compresses else {}
    simulated = simulate(task, network, rule, device=resources.device, **arguments, **ranks).mode_strength
    try:
        theory = predict(task, network, rule, **arguments, **ranks).mode_strength
    except NoClosedFormError:
        theory = xr.full_like(simulated, np.nan)
    plain = LinearNetwork(network.widths[:1] + network.widths[-2:], network.start)
    wrong = predict(task, plain, rules.backpropagation(), **arguments).mode_strength
    result = xr.Dataset({"simulated": simulated, "theory": theory, "unseen": xr.zeros_like(simulated) + wrong})
    if not ranks:
        result = result.expand_dims(rank=list(config.ranks))
    return result.expand_dims(rule=[label])


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return the largest deviation of simulation from theory, and from one that ignores kappa for the fixed channel."""
    fixed = results.sel(rule=[label for label in results.rule.values if label == "fixed P"])
    return {
        "largest deviation from theory": float(abs(results.simulated - results.theory).max()),
        "panels with theory": float(results.theory.notnull().all(["time", "mode", "seed"]).sum()),
        "fixed P, deviation if kappa is ignored": float(abs(fixed.simulated - fixed.unseen).max()),
    }


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: one row of full-rank rules, then pairs of rows with r = d and r < d."""
    columns = 5
    panels = [[(label, config.ranks[0]) for label in config.rules if label in FULL]]
    channels = [label for label in config.rules if label in CHANNELS]
    for first in range(0, len(channels), columns):
        panels += [[(label, rank) for label in channels[first : first + columns]] for rank in config.ranks]
    figure = new_figure(PAGE, 0.7 + 1.12 * len(panels))
    grid = figure.subplots(len(panels), columns, sharex=True, sharey=True, squeeze=False)
    for axes_row, row in zip(grid, panels, strict=True):
        for axes in axes_row[len(row) :]:
            axes.set_axis_off()
        for axes, (label, rank) in zip(axes_row, row, strict=False):
            _panel(axes, results.sel(rule=label, rank=rank), config)
            axes.set_title(label if label in FULL else f"{label}\nr = {rank}", fontsize=7)
    for axes in grid[:, 0]:
        axes.set_ylabel(r"$u^\top W\,v$")
    for axes in grid[-1]:
        axes.set_xlabel("time / $\\tau$")
    _legend(figure, config)
    return figure


def _panel(axes: Any, one: xr.Dataset, config: Config) -> None:
    known = bool(one.theory.notnull().any())
    for mode, s in enumerate(config.singular_values):
        axes.axhline(s, color=GREY, linewidth=0.4, linestyle=":", zorder=0)
        for run in one.simulated.isel(mode=mode).values:
            if not known:
                axes.plot(one.time, run, "-", color=COLOURS[mode], linewidth=0.4, alpha=0.5, zorder=1)
            dots = {"marker": ".", "markersize": 3, "markeredgewidth": 0, "markevery": DOT_EVERY}
            axes.plot(one.time, run, linestyle="", color=COLOURS[mode], zorder=4, **dots)
        for run in one.theory.isel(mode=mode).values:
            axes.plot(one.time, run, **THEORY | {"linewidth": 0.7})
    axes.set_yticks([0.0, *config.singular_values])
    axes.set_ylim(-0.25, config.singular_values[0] * 1.12)


def _legend(figure: Any, config: Config) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=colour, marker=".", linestyle="", markersize=5, label=f"simulation, s = {s:g}")
        for s, colour in zip(config.singular_values, COLOURS, strict=False)
    ]
    entries.append(Line2D([], [], label="theory, where it exists", **THEORY))
    figure.legend(handles=entries, loc="outside lower center", ncols=4)
