r"""How wide must the feedback channel be, and how should it be chosen?

The paper's linear experiment (its later version): n = 128 inputs, k = m = 64 hidden and output units, a Gaussian
teacher of rank d = 32, full-batch gradient descent for 5000 steps at rate 0.0025, weight decay 1e-5. Shown is the share of
the task that a network has learned, the mean over modes of :math:`u_i^\top W_2W_1v_i/s_i`, and its loss, against the rank r
of the channel. The quick preset halves all widths and the teacher's rank.

**Theory** (black). With fixed P whose Q mirrors the weights (the paper's "Q only"), the closed form at the final time
(solid) and its limit of late times and small decay (dashed): :math:`A V_rV_r^\top`, everything once r >= d. A
reader that finds the task's leading subspace can do no better than the best rank-r map (dotted), min(r, d)/d of the modes.

**What is seen.** Oja's rule on labels reaches that bound and a fixed P stays below it; with P and Q both fixed less is
learned at every rank. Readers of errors can pass the bound, because their channel can serve one group of modes after the other.

**What differs from the paper.** There P and Q learn at the rate 0.001 x 0.999^step; here at a constant rate relative to that
of W, its initial value 0.4 (Kolen-Pollack mirrors: 1, as theory assumes). Weights start balanced at scale 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, curves, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb import LinearNetwork, Rule, Task

REFERENCES = ("backpropagation", "zero feedback")
SWEPT = ("fixed P, Q learned", "P and Q fixed", "Oja on labels", "Oja on errors", "local", "normative")


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
    start_scale: float = 1e-2


PARTS = "rules"
CONFIGS = {
    "quick": Config(),
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
        "fixed P, Q learned": rules.low_rank(rank, reader=readers.Fixed(), mirror=aligned),
        "P and Q fixed": rules.feedback_alignment(rank=rank),
        "Oja on labels": rules.low_rank(rank, reader=readers.Oja(on="labels", rate=rate), mirror=aligned),
        "Oja on errors": rules.low_rank(rank, reader=readers.Oja(on="errors", rate=rate), mirror=aligned),
        "local": rules.local(rank, rate=rate),
        "normative": rules.normative(rank, rate=rate),
    }[label]


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return the final share learned and the final loss relative to that at the start, on (rule, rank, seed).

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
    ranks = {"ranks": config.ranks} if rule.reader.compresses else {}
    run = simulate(
        task, network, rule, [0.0, config.t_max], seeds=config.seeds, weight_decay=config.weight_decay,
        method=Euler(config.step_size), device=resources.device, **ranks,
    )  # fmt: skip
    whole = float(task.loss(np.zeros_like(task.teacher)))
    final = run.isel(time=-1, drop=True)
    result = xr.Dataset(
        {"learned": (final.mode_strength / task.singular_values).mean("mode"), "loss": final.loss / whole}
    )
    if not ranks:
        result = result.expand_dims(rank=list(config.ranks))
    elif label.startswith("fixed"):
        result = result.merge(fixed_theory(task, network, rule, config))
    return result.expand_dims(rule=[label])


def fixed_theory(task: Task, network: LinearNetwork, rule: Rule, config: Config) -> xr.Dataset:
    """Return the share learned and the loss with a fixed channel, (rank, seed): at the final time, and in the limit."""
    import xarray as xr

    from linfb.linear.simulate import initial_state
    from linfb.theory import end_point, predict

    arguments: dict[str, Any] = {"seeds": config.seeds, "ranks": config.ranks, "weight_decay": config.weight_decay}
    exact = predict(task, network, rule, [config.t_max], **arguments).isel(time=0, drop=True)
    s, whole = task.singular_values, float(task.loss(np.zeros_like(task.teacher)))
    shares, losses = np.zeros((2, len(config.ranks), len(config.seeds)))
    for j, seed in enumerate(config.seeds):
        rows = initial_state(task, network, rule, seed=seed)[0].channels[-1].P
        for i, rank in enumerate(config.ranks):
            limit = end_point(task.Sigma_yx, rows[:rank], weight_decay=0.0, n_hidden=config.n_hidden)
            shares[i, j] = np.mean(np.einsum("om,oi,im->m", task.left, limit, task.right) / s)
            losses[i, j] = task.loss(limit) / whole
    return xr.Dataset(
        {
            "learned_theory": (exact.mode_strength / s).mean("mode"),
            "loss_theory": exact.loss / whole,
            "learned_limit": (("rank", "seed"), shares),
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


def checks(results: xr.Dataset) -> dict[str, float]:
    """Return how far the fixed channel is from its theory, and from backpropagation's result."""
    fixed, plain = (results.sel(rule=name) for name in ("fixed P, Q learned", "backpropagation"))
    labels = results.sel(rule="Oja on labels")
    return {
        "fixed P: largest deviation of the share learned from theory": float(
            abs(fixed.learned - fixed.learned_theory).max()
        ),
        "fixed P: the same if kappa is ignored": float(abs(fixed.learned - plain.learned).max()),
        "Oja on labels: largest share learned beyond fixed P": float((labels.learned - fixed.learned).max()),
    }


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: share learned and loss against rank."""
    figure = new_figure(PAGE, 3.1)
    share, loss = figure.subplots(1, 2)
    best_share, best_loss = bounds(config)
    rank = results["rank"].values
    fixed = results.sel(rule="fixed P, Q learned")
    for axes, name, best in ((share, "learned", best_share), (loss, "loss", best_loss)):
        for colour, label in zip(COLOURS, SWEPT, strict=False):
            if label in config.rules:
                curves(axes, rank, results[name].sel(rule=label).transpose("seed", "rank"), colour, label=label)
        for style, label in (("-", REFERENCES[0]), ((0, (4, 2)), REFERENCES[1])):
            for run in results[name].sel(rule=label).transpose("seed", "rank").values:
                axes.plot(rank, run, color=GREY, linewidth=0.8, linestyle=style, zorder=0)
            axes.plot([], [], color=GREY, linewidth=0.8, linestyle=style, label=label)
        for run in fixed[f"{name}_theory"].transpose("seed", "rank").values:
            axes.plot(rank, run, **THEORY)
        axes.plot([], [], label="theory, fixed P", **THEORY)
        axes.plot(rank, fixed[f"{name}_limit"].median("seed"), **THEORY | {"linestyle": (0, (4, 2))}, label="its limit")
        axes.plot(rank, best, **THEORY | {"linestyle": ":"}, label="best map of rank r")
        axes.axvline(config.teacher_rank, color=GREY, linewidth=0.4, zorder=0)
        axes.set_xlabel("rank r of the channel")
        axes.set_xscale("log", base=2)
        axes.set_xticks(rank, [str(value) for value in rank])
        axes.minorticks_off()
    share.set_ylabel("share learned, mean of $u^\\top W\\,v/s$")
    share.set_ylim(-0.04, 1.08)
    loss.set_yscale("log")
    loss.set_ylabel("loss / loss at the start")
    panel_letter(share, "a")
    panel_letter(loss, "b")
    figure.legend(*share.get_legend_handles_labels(), loc="outside right center")
    return figure
