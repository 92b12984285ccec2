r"""How wide the feedback channel must be, and how its reader is best chosen.

The paper's linear experiment (its later version): n = 128 inputs, k = m = 64 hidden and output units, a Gaussian
teacher of rank d = 32, full-batch gradient descent for 5000 steps at rate 0.0025 (12.5 in units of tau), weight
decay 1e-5. The quick preset halves all widths and the teacher's rank; the presets cpu and
paper have the sizes of the paper. Against the rank r of the channel: (a) the
mean over modes of :math:`u_i^\top W_2W_1v_i/s_i` at the end; (b) the loss (no less than 1e-4 is drawn). (c) The
strengths of single modes at r = d/2.

**Theory** (black). With fixed P whose Q mirrors the weights (the paper's "Q only"), the closed form at the final
time (solid, every seed) and its limit of late times, then small decay (dashed): :math:`A V_rV_r^\top`, everything
once r >= d. Dotted: the best map of rank r, where a reader of the task's leading subspace leads.

**What is seen.** Under most rules the rank of the channel is the number of modes' worth of learning, min(r, d)/d;
what distinguishes them is *which*. Oja's rule on labels learns the r strongest modes and nothing else; the
normative and the local rule and a slow reader of errors nearly so; a fixed P learns something of every mode, and
so leaves more loss. A fast reader of errors with a perfect mirror passes the bound: its channel serves one group
of modes after another. With the Kolen-Pollack mirror the same reader diverges at this step size and is left out.

**What differs from the paper.** There P and Q learn at the rate 0.001 x 0.999^step; here at a constant rate
relative to that of W: 0.4, its initial value, for local, normative and fast Oja; 0.02 for the slow reader;
Kolen-Pollack mirrors at 1, as theory assumes, except in the local rule. Weights start balanced at scale 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, curves, dots, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb import LinearNetwork, Rule, Task

REFERENCES = ("backpropagation", "zero feedback")
KNOWN = "fixed P, Q learned"
"""The rule with a closed form."""
SWEPT = (
    KNOWN, "P and Q fixed", "Oja on labels", "Oja on errors, slow", "Oja on errors, fast", "local",
    "normative",
)  # fmt: skip
"""The last but two with a perfect mirror, all others with one that learns or is fixed as the name says."""


@dataclass(frozen=True)
class Config:
    """Settings of the figure; rates relative to that of the weights, times in units of tau."""

    rules: tuple[str, ...] = REFERENCES + SWEPT
    ranks: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 20, 32)
    seeds: tuple[int, ...] = (0, 1, 2)
    n_in: int = 64
    n_hidden: int = 32
    n_out: int = 32
    teacher_rank: int = 16
    teacher_scale: float = 0.25
    weight_decay: float = 1e-5
    step_size: float = 2.5e-3
    t_max: float = 12.5
    feedback_rate: float = 0.4
    slow_rate: float = 0.02
    start_scale: float = 1e-2


PARTS = "rules"
FLOOR = 1e-4  # of the losses that are drawn
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        ranks=(1, 4, 8, 16, 24, 32, 40, 64), n_in=128, n_hidden=64, n_out=64, teacher_rank=32, teacher_scale=1 / 8,
    ),
    "paper": Config(
        ranks=(1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64), seeds=(0, 1, 2, 3, 4), n_in=128, n_hidden=64, n_out=64,
        teacher_rank=32, teacher_scale=1 / 8,
    ),
}  # fmt: skip


def rule_of(label: str, config: Config) -> Rule:
    """Return the rule behind a label."""
    from linfb import rules
    from linfb.rules import mirrors, readers

    aligned = mirrors.KolenPollack(start="aligned")
    rank, rate = max(config.ranks), config.feedback_rate
    return {
        "backpropagation": rules.backpropagation(),
        "zero feedback": rules.zero_feedback(),
        KNOWN: rules.low_rank(rank, reader=readers.Fixed(), mirror=aligned),
        "P and Q fixed": rules.feedback_alignment(rank=rank),
        "Oja on labels": rules.low_rank(rank, reader=readers.Oja(on="labels", rate=rate), mirror=aligned),
        "Oja on errors, slow": rules.low_rank(rank, reader=readers.Oja(rate=config.slow_rate), mirror=aligned),
        "Oja on errors, fast": rules.low_rank(rank, reader=readers.Oja(rate=rate), mirror=mirrors.Exact()),
        "local": rules.local(rank, rate=rate),
        "normative": rules.normative(rank, rate=rate),
    }[label]


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return final mode strengths over singular values, and the loss over that of the zero map.

    Also the theory of the fixed channel at the final time and in the limit, and the bound of rank-r maps.
    """
    import xarray as xr

    return xr.concat([_one_rule(label, config, resources) for label in config.rules], dim="rule", combine_attrs="drop")


def _one_rule(label: str, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb import Balanced, LinearNetwork, gaussian_teacher, simulate
    from linfb.linear.solvers import Euler

    task = gaussian_teacher(config.n_in, config.n_out, config.teacher_rank, scale=config.teacher_scale)
    network = LinearNetwork((config.n_in, config.n_hidden, config.n_out), Balanced(config.start_scale))
    rule = rule_of(label, config)
    ranks: dict[str, Any] = {"ranks": config.ranks} if rule.reader.compresses else {}
    run = simulate(
        task, network, rule, [0.0, config.t_max], seeds=config.seeds, weight_decay=config.weight_decay,
        method=Euler(config.step_size), device=resources.device, **ranks,
    )  # fmt: skip
    whole = float(task.loss(np.zeros_like(task.teacher)))
    final = run.isel(time=-1, drop=True)
    result = xr.Dataset({"learned": final.mode_strength / task.singular_values, "loss": final.loss / whole})
    if not ranks:
        result = result.expand_dims(rank=list(config.ranks))
    elif label.startswith("fixed"):
        result = result.merge(fixed_theory(task, network, rule, config))
    return result.expand_dims(rule=[label])


def fixed_theory(task: Task, network: LinearNetwork, rule: Rule, config: Config) -> xr.Dataset:
    """Return what a fixed channel leads to at the final time, and in the limit, on (rank, seed) and (.., mode)."""
    import xarray as xr

    from linfb.linear.simulation import initial_state
    from linfb.theory import end_point, predict

    arguments: dict[str, Any] = {"seeds": config.seeds, "ranks": config.ranks, "weight_decay": config.weight_decay}
    exact = predict(task, network, rule, [config.t_max], **arguments).isel(time=0, drop=True)
    s, whole = task.singular_values, float(task.loss(np.zeros_like(task.teacher)))
    losses = np.zeros((len(config.ranks), len(config.seeds)))
    shares = np.zeros((*losses.shape, s.size))
    for j, seed in enumerate(config.seeds):
        rows = initial_state(task, network, rule, seed=seed)[0].channels[-1].P
        for i, rank in enumerate(config.ranks):
            limit = end_point(task.Sigma_yx, rows[:rank], weight_decay=0.0, n_hidden=config.n_hidden)
            shares[i, j] = np.einsum("om,oi,im->m", task.left, limit, task.right) / s
            losses[i, j] = task.loss(limit) / whole
    return xr.Dataset(
        {
            "learned_theory": exact.mode_strength / s,
            "loss_theory": exact.loss / whole,
            "learned_limit": (("rank", "seed", "mode"), shares),
            "loss_limit": (("rank", "seed"), losses),
        }
    )


def bounds(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of modes and the relative loss of the best rank-r map, for every rank."""
    from linfb import gaussian_teacher

    s = gaussian_teacher(
        config.n_in, config.n_out, config.teacher_rank, scale=config.teacher_scale
    ).singular_values  # fmt: skip
    losses = [np.sum(s[rank:] ** 2) / np.sum(s**2) for rank in config.ranks]
    return np.minimum(np.array(config.ranks) / s.size, 1.0), np.array(losses)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far the fixed channel is from its theory, and from backpropagation's result."""
    fixed, plain = (results.sel(rule=name) for name in (KNOWN, "backpropagation"))
    return {
        "fixed P: largest deviation of a mode from theory, in units of s": float(
            abs(fixed.learned - fixed.learned_theory).max()
        ),
        "fixed P: the same if kappa is ignored": float(abs(fixed.learned - plain.learned).max()),
    }


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: share learned and loss against rank, and single modes at one rank."""
    figure = new_figure(PAGE, 5.6)
    panels = figure.subplot_mosaic([["share", "loss"], ["single", "single"]])
    share, loss, single = panels["share"], panels["loss"], panels["single"]
    best_share, best_loss = bounds(config)
    lossless = {name: results[name].clip(FLOOR) for name in results if "loss" in str(name)}
    means = results.assign(lossless).assign(
        {name: results[name].mean("mode") for name in results if "mode" in results[name].dims}
    )
    for axes, name, best in ((share, "learned", best_share), (loss, "loss", np.maximum(best_loss, FLOOR))):
        _against_rank(axes, means, name, best, config)
    share.set_ylabel("share learned, mean of $u^\\top W\\,v/s$")
    share.set_ylim(-0.04, 1.08)
    loss.set_yscale("log")
    loss.set_ylim(0.8 * FLOOR, 1.6)
    loss.set_ylabel(f"loss / loss of the zero map, or {FLOOR:g}")
    _single_modes(single, results, config)
    for axes, letter in zip((share, loss, single), "abc", strict=True):
        panel_letter(axes, letter)
    figure.legend(*share.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _against_rank(axes: Any, results: xr.Dataset, name: str, best: np.ndarray, config: Config) -> None:
    rank, fixed = results["rank"].values, results.sel(rule=KNOWN)
    _simulated(axes, rank, results[name].transpose("rule", "seed", "rank"), config)
    for line, label in (("-", REFERENCES[0]), ((0, (4, 2)), REFERENCES[1])):
        for run in results[name].sel(rule=label).transpose("seed", "rank").values:
            axes.plot(rank, run, color=GREY, linewidth=0.8, linestyle=line, zorder=0)
        axes.plot([], [], color=GREY, linewidth=0.8, linestyle=line, label=label)
    for run in fixed[f"{name}_theory"].transpose("seed", "rank").values:
        axes.plot(rank, run, **THEORY)
    axes.plot([], [], label="theory, fixed P", **THEORY)
    axes.plot(rank, fixed[f"{name}_limit"].median("seed"), **THEORY | {"linestyle": (0, (4, 2))}, label="its limit")
    axes.plot(rank, best, **THEORY | {"linestyle": ":", "linewidth": 1.5}, label="best map of rank r")
    axes.axvline(config.teacher_rank, color=GREY, linewidth=0.4, zorder=0)
    axes.set_xlabel("rank r of the channel")
    axes.set_xscale("log", base=2)
    axes.set_xticks(rank, [str(value) for value in rank])
    axes.minorticks_off()


def _simulated(axes: Any, x: Any, values: xr.DataArray, config: Config) -> None:
    """Draw every run of every rule: as dots where theory gives the line."""
    for colour, label in zip(COLOURS, SWEPT, strict=False):
        if label == KNOWN:
            dots(axes, x, values.sel(rule=label), colour, label=label)
        elif label in config.rules:
            curves(axes, x, values.sel(rule=label), colour, label=label)


def _single_modes(axes: Any, results: xr.Dataset, config: Config) -> None:
    """Draw the strength of every mode at the swept rank that is nearest to half of the task's."""
    rank = min(config.ranks, key=lambda value: abs(value - config.teacher_rank / 2))
    at = results.sel(rank=rank)
    modes = np.arange(1, at.sizes["mode"] + 1)
    _simulated(axes, modes, at.learned.transpose("rule", "seed", "mode"), config)
    for run in at.learned_theory.sel(rule=KNOWN).transpose("seed", "mode").values:
        axes.plot(modes, run, **THEORY)
    axes.plot(modes, modes <= rank, **THEORY | {"linestyle": ":", "linewidth": 1.5})
    axes.set_xlabel("mode, strongest first")
    axes.set_ylabel("$u^\\top W\\,v/s$")
    axes.set_title(f"single modes at r = {rank}, d = {config.teacher_rank}")
