r"""How a committee machine learns online when its error comes back through a narrow channel.

A student of K hidden units and m outputs sees a new normal input at every step, labelled by a teacher of the same
form. In the limit of many inputs the covariances of the local fields and the readout obey a closed flow
(:func:`linfb.theory.committee_learning`), here with B in the place of the readout V: V itself (backpropagation), a
constant (direct feedback alignment), or :math:`P^\top P V` (a channel with a fixed reader and an aligned mirror).

**Theory** (black lines). One solution of the flow per rule. Under the aligned channel the hidden layer and PV follow
backpropagation from the teacher :math:`PV^*`. With linear units that teacher has rank r, and so many modes are all that
is ever learned. With nonlinear units one output already tells the teacher's units apart, and r = 1 can be enough.

**What is seen.** Two units, three outputs; the channel reads the first r of them. (a) Erf units: every rule that
carries an error learns the teacher, r = 1 after a plateau until about 70 n steps (loss 0.01 at 200 n and still
falling). (b) Linear units: r = 1 stops at a loss of 1.5. Dots: two runs per rule at n = 300; they are farthest from
theory where they leave the plateau of r = 1, a little earlier or later than it (by 0.18 of the first loss). (c) Runs of
backpropagation approach their flow with the power -0.58 of n for both kinds of units, where theory has -1/2, and stay
at a fixed distance from the flow of direct feedback (crosses).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, new_figure, panel_letter
from figures.wide import functions, power

if TYPE_CHECKING:
    import xarray as xr

    from linfb.theory import CommitteeLearning


@dataclass(frozen=True)
class Config:
    """Settings of the figure; times in units of n steps, n inputs. The channel reads the first r outputs."""

    activations: tuple[str, ...] = ("erf", "linear")
    rules: tuple[str, ...] = ("backpropagation", "r = 2", "r = 1", "direct feedback", "no feedback")
    teacher: tuple[tuple[float, ...], ...] = ((1.0, 0.5), (-0.5, 1.0), (1.0, -1.0))
    start_overlap: float = 0.1
    start_variance: float = 0.3
    start_readout: float = 0.3
    learning_rate: float = 1.0
    n_in: int = 300
    seeds: tuple[int, ...] = (0, 1)
    t_max: float = 200.0
    n_times: int = 21
    inputs: tuple[int, ...] = (25, 50, 100, 200, 400)
    t_inputs: float = 3.0
    runs: int = 30


PARTS = "activations"
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        n_in=2000, seeds=tuple(range(10)), t_max=400.0, n_times=41, inputs=(25, 50, 100, 200, 400, 800, 1600), runs=100
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A task and a start: covariance of the fields (student, teacher), readout, teacher's readout, feedbacks."""

    overlaps: np.ndarray
    readout: np.ndarray
    teacher: np.ndarray
    fixed: np.ndarray
    metric: np.ndarray


def setting_of(config: Config) -> Setting:
    """Return the start that all runs share; feedback of rule i is fixed[i] + metric[i] @ V."""
    rng = np.random.default_rng(0)
    teacher = np.array(config.teacher)
    n_out, hidden = teacher.shape
    cross = config.start_overlap * rng.standard_normal((hidden, hidden))
    overlaps = np.block([[config.start_variance * np.eye(hidden), cross], [cross.T, np.eye(hidden)]])
    readout = config.start_readout * rng.standard_normal((n_out, hidden))
    fixed, metric = np.zeros((len(config.rules), n_out, hidden)), np.zeros((len(config.rules), n_out, n_out))
    for i, rule in enumerate(config.rules):
        if rule == "direct feedback":
            fixed[i] = np.random.default_rng(1).standard_normal((n_out, hidden))
        elif rule != "no feedback":
            rank = n_out if rule == "backpropagation" else int(rule.removeprefix("r = "))
            metric[i] = np.diag(np.arange(n_out) < rank)
    return Setting(overlaps, readout, teacher, fixed, metric)


def solve(times: np.ndarray, setting: Setting, rule: int, activation: str, rate: float) -> CommitteeLearning:
    """Return the flow's solution for one rule of a setting."""
    from linfb.theory import committee_learning

    constant = bool(np.any(setting.fixed[rule])) or not np.any(setting.metric[rule])
    feedback = {"B": setting.fixed[rule]} if constant else {"P": setting.metric[rule]}  # a projector is its own reader
    return committee_learning(
        times, setting.overlaps, setting.readout, setting.teacher, activation=activation, learning_rate=rate, **feedback
    )


def online_sgd(
    times: np.ndarray,
    setting: Setting,
    *,
    n_in: int,
    activation: str,
    learning_rate: float,
    seeds: Sequence[Any],
    noise: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Train all rules of a setting one example at a time; the rules of a seed see the same examples.

    Returns the covariance of the fields, (seed, time, rule, field, field), and the readouts, (seed, time, rule, out,
    hidden).
    """
    streams = [np.random.default_rng(seed) for seed in seeds]
    n_rules, (n_out, hidden), root_n = len(setting.fixed), setting.readout.shape, np.sqrt(n_in)
    root = np.linalg.cholesky(setting.overlaps) * root_n
    rows = np.stack([root @ np.linalg.qr(rng.standard_normal((n_in, len(root))))[0].T for rng in streams])
    W, own = np.repeat(rows[:, None, :hidden], n_rules, axis=1), rows[:, hidden:]
    V = np.broadcast_to(setting.readout, (len(streams), n_rules, n_out, hidden)).copy()
    flat = W.reshape(len(streams), n_rules * hidden, n_in)
    value, slope = functions(activation)

    def step(x: np.ndarray, zeta: np.ndarray) -> None:
        nonlocal V
        fields = (flat @ x[..., None]).reshape(*W.shape[:3], 1) / root_n
        out, labels = value(fields), setting.teacher @ value(own @ x[..., None] / root_n) + zeta[..., None]
        error = V @ out - labels[:, None]
        back = slope(fields) * (np.swapaxes(setting.fixed + setting.metric @ V, 2, 3) @ error)
        np.subtract(flat, back.reshape(*flat.shape[:2], 1) * (learning_rate / root_n * x[:, None]), out=flat)
        V = V - learning_rate / n_in * error * np.swapaxes(out, 2, 3)

    overlaps, readouts, done = [], [], 0
    for time in times:
        while done < round(time * n_in):
            count = min(500, round(time * n_in) - done)
            x = np.stack([rng.standard_normal((count, n_in), dtype=np.float32) for rng in streams], axis=1)
            zeta = noise * np.stack([rng.standard_normal((count, n_out)) for rng in streams], axis=1)
            for one in range(count):
                step(x[one].astype(float), zeta[one])
            done += count
        every = np.concatenate([W, np.broadcast_to(own[:, None], (*W.shape[:2], *own.shape[1:]))], axis=2)
        overlaps.append(every @ np.swapaxes(every, 2, 3) / n_in)
        readouts.append(V)
    return np.stack(overlaps, axis=1), np.stack(readouts, axis=1)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return the loss by theory and simulation, and how far runs of backpropagation are from theory, by inputs."""
    import xarray as xr

    parts = [_one_activation(activation, config) for activation in config.activations]
    return xr.concat(parts, dim="activation", combine_attrs="drop")


def _one_activation(activation: str, config: Config) -> xr.Dataset:
    import xarray as xr

    from linfb.theory import committee_loss

    setting, rate = setting_of(config), config.learning_rate
    times = np.append(0.0, np.geomspace(1.0, config.t_max, config.n_times - 1))
    rules = range(len(config.rules))
    theory = [solve(times, setting, i, activation, rate).loss for i in rules]
    runs = online_sgd(times, setting, n_in=config.n_in, activation=activation, learning_rate=rate, seeds=config.seeds)
    loss = committee_loss(*runs, setting.teacher, activation=activation)
    right, wrong = (deviations(name, activation, config) for name in ("backpropagation", "direct feedback"))
    return xr.Dataset(
        {
            "theory": (("rule", "time"), theory),
            "loss": (("seed", "time", "rule"), loss),
            "deviation": (("inputs", "run"), right),
            "deviation_wrong": (("inputs", "run"), wrong),
        },
        coords={
            "rule": list(config.rules), "time": times, "seed": list(config.seeds), "inputs": list(config.inputs),
        },
    ).expand_dims(activation=[activation])  # fmt: skip


def deviations(theory: str, activation: str, config: Config) -> np.ndarray:
    """Return how far backpropagation is from the flow of a rule, root mean square over overlaps, (inputs, run)."""
    times, setting, rate = np.array([config.t_inputs]), setting_of(config), config.learning_rate
    own = config.rules.index("backpropagation")
    flow = solve(times, setting, config.rules.index(theory), activation, rate).overlaps
    alone = replace(setting, fixed=setting.fixed[[own]], metric=setting.metric[[own]])
    squares = []
    for n in config.inputs:
        seeds = [(n, run) for run in range(config.runs)]
        found, _ = online_sgd(times, alone, n_in=n, activation=activation, learning_rate=rate, seeds=seeds)
        squares.append(np.mean((found[:, 0, 0] - flow) ** 2, axis=(1, 2)))
    return np.sqrt(squares)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far simulation is from theory, with which power of n that falls, and what is left at the end."""
    found: dict[str, float] = {}
    scale = results.theory.isel(time=0, rule=0)
    far = abs(results.loss - results.theory) / scale
    for name in config.activations:
        found |= {
            f"{name}: largest deviation of a loss from theory, relative to the first": float(
                far.sel(activation=name).max()
            ),
            f"{name}: the same, backpropagation alone": float(far.sel(activation=name, rule="backpropagation").max()),
            f"{name}: deviation of overlaps at n = {config.inputs[-1]}": float(
                np.sqrt((results.deviation.sel(activation=name).isel(inputs=-1) ** 2).mean())
            ),
            f"{name}: the same from the flow of direct feedback": float(
                np.sqrt((results.deviation_wrong.sel(activation=name).isel(inputs=-1) ** 2).mean())
            ),
            f"{name}: power of n with which runs approach the flow": float(
                power(results.deviation, "inputs", "run").sel(activation=name)
            ),
            f"{name}: the same for the flow of direct feedback": float(
                power(results.deviation_wrong, "inputs", "run").sel(activation=name)
            ),
        }
        for rule in config.rules:
            found[f"{name}: last loss by theory, {rule}"] = float(
                results.theory.sel(activation=name, rule=rule).isel(time=-1)
            )
    return found


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: loss against time for each activation, and the deviation from theory against inputs."""
    figure = new_figure(PAGE, 2.7)
    panels = figure.subplots(1, len(config.activations) + 1)
    for axes, name, letter in zip(panels, config.activations, "abc", strict=False):
        one = results.sel(activation=name).isel(time=slice(1, None))
        axes.plot([], [], **THEORY, label="theory")
        for colour, rule in zip(COLOURS, config.rules, strict=False):
            axes.plot(one.time, one.loss.sel(rule=rule).transpose("time", "seed"), ".", color=colour, markersize=4)
            axes.plot(one.time, one.theory.sel(rule=rule), **THEORY)
            axes.plot([], [], ".", color=colour, markersize=5, label=rule)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 4)
        axes.set_xlabel("steps / n")
        axes.set_title(f"{name} units")
        panel_letter(axes, letter)
    panels[0].set_ylabel("loss on new inputs")
    axes, sizes = panels[-1], results.inputs.values
    for colour, name in zip(COLOURS[5:], config.activations, strict=False):
        one = results.sel(activation=name)
        for variable, marker in (("deviation", "o"), ("deviation_wrong", "x")):
            values = one[variable].transpose("inputs", "run")
            axes.plot(sizes, values, marker, color=colour, markersize=2.5, alpha=0.35, markeredgewidth=0.5)
        first = float(np.sqrt((one.deviation.isel(inputs=0) ** 2).mean()))
        axes.plot(sizes, first * np.sqrt(sizes[0] / sizes), **THEORY)
        axes.plot([], [], "o", color=colour, markersize=3, label=name)
    axes.plot([], [], "x", color=GREY, markersize=3, label="theory of direct feedback")
    axes.plot([], [], **THEORY, label="$n^{-1/2}$")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(1e-3, 1e3)
    axes.set_xlabel("inputs n")
    axes.set_ylabel("deviation from theory")
    axes.legend(loc="upper right")
    panel_letter(axes, "abc"[len(config.activations)])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
