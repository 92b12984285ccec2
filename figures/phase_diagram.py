r"""What a random channel teaches: modes, loss and learning times, for every width, task and weight decay.

A task of d equally strong modes s, a random P with r orthonormal rows among m outputs, weight decay :math:`\lambda`.
Everything follows from the eigenvalues :math:`\kappa` of :math:`U^\top P^\top P\,U`: a mode is learned if
:math:`\sqrt\kappa > \theta = \lambda/s`, ends with the share :math:`\min(1, \theta^2/\kappa)` of its loss, and has half
of its strength at a time that falls with :math:`\kappa`.

**Theory** (black lines). The Jacobi law of :math:`\kappa` for many outputs, without any simulation. (a) Level lines of
the share of modes learned; thick, the boundaries of "none" and "all", straight lines in the angles
:math:`\arcsin\sqrt{r/m}` and :math:`\arcsin\sqrt{d/m}`. All are learned for
:math:`\sqrt{r/m} > \sin(\arcsin\sqrt{d/m} + \arcsin\theta)`, which no channel narrower than the output fulfils once
:math:`d/m \ge 1 - \theta^2`. (b) The loss that is left; dotted, if :math:`\kappa` were one for every mode that the
channel has room for. (c) Share of modes at half of their strength by a time; with decay only those with
:math:`\sqrt\kappa > 2\theta` ever get there. (d) How far the mean loss over channels of finite width is from the limit:
the lines are the closed-form correction, of order 1/m.

**What is seen.** Random channels with the exact end point (dots; in (a) their mean) and whole simulated flows (squares,
steps) lie on the lines, although the limit is that of many outputs. What the limit misses, in the mean over 1000
channels, is six standard errors (root mean square over panel (d) and the same for the share of modes), 13 at most;
after the correction 1.6 are left. Most of that is the share of modes at :math:`\theta = 0.2` for m = 16 and 32, five to
six standard errors: the threshold lies just below the lower edge, where the law has no overlaps at any order in 1/m and
channels of finite width still have some.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, PAGE, THEORY, new_figure, panel_letter
from figures.learning_times import AlongEigenvectors, half_times, overlap

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Config:
    """Settings of the figure; weight decay and rates in units of s = 1, times in units of tau."""

    decays: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.7)
    n_out: int = 48
    tasks: tuple[int, ...] = (4, 8, 12, 20, 28, 36, 44)
    ranks: tuple[int, ...] = (2, 6, 12, 18, 24, 30, 36, 42, 46)
    draws: int = 20
    n_modes: int = 12
    flow_ranks: tuple[int, ...] = (6, 24, 36)
    time_rank: int = 24
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    c0: float = 1e-3
    t_max: float = 60.0
    n_times: int = 121
    t_end: float = 400.0
    sizes: tuple[int, ...] = (16, 32, 64, 96)
    size_draws: int = 1000


PARTS = "decays"
PLANE = 0.4
"""The decay of panel (a), or that of the configuration which is nearest to it."""
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
SIZE_SHAPE = (0.5, 0.25)
"""Width of the channel and of the task where the bias of the limit is measured, in units of m."""
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        n_out=128, tasks=tuple(range(8, 128, 12)), ranks=tuple(range(8, 128, 8)), draws=50, n_modes=32,
        flow_ranks=(16, 32, 64, 96), time_rank=64, seeds=tuple(range(10)), n_times=481, sizes=(16, 32, 64, 128, 256),
        size_draws=8000,
    ),
}  # fmt: skip


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return shares, losses and half-learning times of drawn channels and of flows, along the decays."""
    import xarray as xr

    return xr.concat(
        [_one_decay(decay, config, resources) for decay in config.decays], dim="decay", combine_attrs="drop"
    )


def overlaps(draws: int, n_out: int, rank: int, n_modes: int) -> np.ndarray:
    """Return the overlaps of random channels with a task, shape (draw, mode)."""
    rng = np.random.default_rng([n_out, rank, n_modes])
    rows = np.linalg.qr(rng.standard_normal((draws, n_out, rank)))[0].swapaxes(1, 2)
    return overlap(np.eye(n_out, n_modes), rows)[0]


def shares_and_losses(kappa: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of modes that each channel teaches and the share of the loss that it leaves, shape (draw,)."""
    seen = np.where(kappa > 1e-12, kappa, 0.0)
    left = np.divide(decay**2, seen, out=np.ones(seen.shape), where=seen > decay**2)
    return np.mean(seen > decay**2, axis=-1), np.mean(left, axis=-1)


def _one_decay(decay: float, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    def drawn(n_modes: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return shares_and_losses(overlaps(config.draws, config.n_out, rank, n_modes), decay)

    plane = [[drawn(n_modes, rank)[0].mean() for rank in config.ranks] for n_modes in config.tasks]
    losses = [drawn(config.n_modes, rank)[1] for rank in config.ranks]
    flows = {rank: _flow(decay, rank, config, resources) for rank in {*config.flow_ranks, config.time_rank}}
    sized = []
    for m in config.sizes:
        found = shares_and_losses(
            overlaps(config.size_draws, m, round(SIZE_SHAPE[0] * m), round(SIZE_SHAPE[1] * m)), decay
        )
        sized.append([[value.mean(), value.std(ddof=1) / np.sqrt(config.size_draws)] for value in found])
    result = xr.Dataset(
        {
            "plane": (("n_modes", "rank"), np.array(plane)),
            "loss": (("rank", "draw"), np.array(losses)),
            "flow_loss": (("flow_rank", "seed"), np.array([flows[rank][0] for rank in config.flow_ranks])),
            "own_loss": (("flow_rank", "seed"), np.array([flows[rank][1] for rank in config.flow_ranks])),
            "half_time": ("run", flows[config.time_rank][2]),
            "sized": (("n_out", "quantity", "moment"), np.array(sized)),
        },
        coords={
            "n_modes": list(config.tasks), "rank": list(config.ranks), "flow_rank": list(config.flow_ranks),
            "seed": list(config.seeds), "n_out": list(config.sizes), "quantity": ["share", "loss"],
            "moment": ["mean", "error"],
        },
    )  # fmt: skip
    return result.expand_dims(decay=[decay])


def _flow(decay: float, rank: int, config: Config, resources: Resources) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return final losses of flows, those expected of their channels (per seed), and all half-learning times."""
    from linfb import LinearNetwork, low_rank_teacher
    from linfb import simulate as run_flow
    from linfb.rules import low_rank, mirrors, readers

    d = config.n_modes
    task = low_rank_teacher(d, config.n_out, np.ones(d), right=np.eye(d))
    rule = low_rank(rank, reader=readers.Fixed(), mirror=mirrors.KolenPollack(start="aligned"))

    def strengths(snap: Any) -> Any:
        vectors = overlap(task.left, snap.channels[-1].P)[1]
        return np.sum((snap.map @ (task.right @ vectors)) * (task.left @ vectors), axis=-2)

    def error(snap: Any) -> Any:
        return np.sum((task.Sigma_yx - snap.map) ** 2, axis=(-2, -1)) / d

    def shares(snap: Any) -> Any:
        return overlap(task.left, snap.channels[-1].P)[0]

    times = np.linspace(0.0, config.t_max, config.n_times if rank == config.time_rank else 2)
    run = run_flow(
        task, LinearNetwork((d, d, config.n_out), AlongEigenvectors(config.c0)), rule,
        np.append(times, config.t_end), seeds=[seed + 10**6 * rank for seed in config.seeds],
        weight_decay=decay, device=resources.device,
        observe={"strength": strengths, "error": error, "kappa": shares},
    )  # fmt: skip
    strength = run.strength.isel(time=slice(0, -1)).transpose("time", "seed", ...).values.reshape(len(times), -1)
    kappa = run.kappa.isel(time=0).transpose("seed", ...).values
    reached = half_times(times, strength, 1.0)
    return run.error.isel(time=-1).values.ravel(), shares_and_losses(kappa, decay)[1], reached


def law(decay: float, times: np.ndarray, config: Config) -> np.ndarray:
    """Return the share of modes that theory expects at half of their strength by each of `times`."""
    from linfb.theory import half_learned_fraction

    m = config.n_out
    return half_learned_fraction(times, 1.0, config.c0, config.time_rank / m, config.n_modes / m, weight_decay=decay)


def distance(results: xr.Dataset, decay: float, config: Config, assumed: float) -> float:
    """Return the Kolmogorov-Smirnov distance of half-learning times at `decay` from the law of an assumed decay."""
    times = np.sort(results.half_time.sel(decay=decay).values)
    finite = times[np.isfinite(times)]
    expected, ranks = law(assumed, finite, config), np.arange(finite.size)
    both = np.concatenate([(ranks + 1) / times.size - expected, expected - ranks / times.size])
    return float(np.max(both, initial=0.0))


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far draws and flows are from theory, corrected and in the limit, and from wrong theories."""
    from linfb.theory import expected_learned_fraction, expected_loss

    m, decays = config.n_out, results.decay.values
    alpha = config.n_modes / m
    loss = results.loss.mean("draw")

    def off(law_of: Any, n_out: int | None, shift: float = 0.0) -> float:
        grid = [[law_of(rank / m, alpha, decay + shift, n_out=n_out) for rank in config.ranks] for decay in decays]
        return float(np.max(np.abs(loss.transpose("decay", "rank").values - grid)))

    def sized(n_out: Any) -> np.ndarray:
        laws = (expected_learned_fraction, expected_loss)
        grid = [
            [[law(*SIZE_SHAPE, decay, n_out=n_out(size)) for law in laws] for size in config.sizes] for decay in decays
        ]
        mean, error = (results.sized.sel(moment=part).transpose("decay", "n_out", "quantity").values for part in
                       ("mean", "error"))  # fmt: skip
        return np.divide(mean - grid, error, out=np.zeros(mean.shape), where=error > 1e-12)

    found = {
        "largest deviation of a flow's final loss from that of its channel, in units of the loss at the start": float(
            np.max(np.abs(results.flow_loss - results.own_loss))
        ),
        "largest deviation of the mean loss of drawn channels from the limit law": off(expected_loss, None),
        "the same from the corrected law": off(expected_loss, m),
        "the same from the corrected law at a decay larger by 0.1": off(expected_loss, m, 0.1),
        "bias of the limit in standard errors of the mean, root mean square": float(
            np.sqrt(np.mean(sized(lambda size: None) ** 2))
        ),
        "the same after correction": float(np.sqrt(np.mean(sized(lambda size: size) ** 2))),
    }
    for decay in decays:
        if decay < 0.5:
            name = f"Kolmogorov-Smirnov distance of half-learning times, decay {decay:g}"
            found[name] = distance(results, decay, config, decay)
            found[f"the same from the law at a decay larger by 0.1, decay {decay:g}"] = distance(
                results, decay, config, decay + 0.1
            )
    return found


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: the plane of widths and tasks, the final loss, learning times and the bias of the limit."""
    figure = new_figure(PAGE, 5.6)
    panels = figure.subplots(2, 2)
    colours = dict(zip(results.decay.values.tolist(), COLOURS, strict=False))
    for axes, draw, letter in zip(panels.ravel(), (_plane, _losses, _times, _sizes), "abcd", strict=True):
        draw(figure, axes, results, config, colours)
        panel_letter(axes, letter)
    handles = {axes_label: handle for axes in panels.ravel()[1:] for handle, axes_label in
               zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=5, handletextpad=0.3,
                  columnspacing=1.2)  # fmt: skip
    return figure


def _plane(figure: Any, axes: Any, results: xr.Dataset, config: Config, colours: dict[float, str]) -> None:
    from linfb.theory import expected_learned_fraction, phase_boundaries

    decay = float(results.decay.sel(decay=PLANE, method="nearest"))
    x = np.linspace(0.005, 0.995, 100)
    share = np.array([[expected_learned_fraction(beta, alpha, decay) for beta in x] for alpha in x])
    lines = axes.contour(x, x, share, levels=LEVELS, colors="black", linewidths=0.7)
    axes.clabel(lines, fontsize=7, fmt="%g")
    bounds = np.array([phase_boundaries(alpha, decay) for alpha in x])
    for edge, keep in zip(bounds.T, (bounds[:, 0] > 0, bounds[:, 1] < 1), strict=True):
        axes.plot(edge[keep], x[keep], **THEORY | {"linewidth": 1.8})
    places = np.meshgrid(results["rank"] / config.n_out, results["n_modes"] / config.n_out)
    points = axes.scatter(*places, c=results.plane.sel(decay=decay), s=18, cmap="cividis", vmin=0, vmax=1, zorder=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("width of the channel, r/m")
    axes.set_ylabel("width of the task, d/m")
    axes.set_title(rf"$\lambda/s$ = {decay:g}: share of modes learned")
    figure.colorbar(points, ax=axes)


def _losses(figure: Any, axes: Any, results: xr.Dataset, config: Config, colours: dict[float, str]) -> None:
    from linfb.theory import expected_loss

    alpha, x = config.n_modes / config.n_out, np.linspace(0.005, 0.995, 199)
    width = results["rank"].values / config.n_out
    for decay, colour in colours.items():
        rows = results.sel(decay=decay)
        axes.plot(x, [expected_loss(beta, alpha, decay) for beta in x], **THEORY)
        axes.plot(width, rows.loss.transpose("rank", "draw"), ".", color=colour, markersize=3, alpha=0.35,
                  markeredgewidth=0, zorder=4)  # fmt: skip
        axes.plot(rows.flow_rank / config.n_out, rows.flow_loss.transpose("flow_rank", "seed"), "s", color=colour,
                  markersize=4, fillstyle="none", markeredgewidth=0.7, zorder=5)  # fmt: skip
        axes.plot([], [], "o", color=colour, label=rf"$\lambda/s$ = {decay:g}")
    axes.plot([], [], label="theory", **THEORY)
    for decay in list(colours)[-1:]:
        blind = 1 - np.minimum(x / alpha, 1.0) * (1 - decay**2)
        axes.plot(x, blind, **THEORY | {"linestyle": ":"}, label=rf"$\kappa$ ignored, {decay:g}")
    axes.plot([], [], "s", color="black", fillstyle="none", markeredgewidth=0.7, label="whole flows")
    axes.set_xlim(0, 1)
    axes.set_xlabel("width of the channel, r/m")
    axes.set_ylabel("loss left, share of that at the start")
    axes.set_title(f"m = {config.n_out} outputs, d = {config.n_modes} modes")


def _times(figure: Any, axes: Any, results: xr.Dataset, config: Config, colours: dict[float, str]) -> None:
    times = np.geomspace(2.0, config.t_max, 300)
    for decay, colour in colours.items():
        if decay >= 0.5:
            continue  # no mode ever has half of its strength
        found = np.sort(results.half_time.sel(decay=decay).values)
        finite = found[np.isfinite(found)]
        share = np.arange(1, finite.size + 1) / found.size
        axes.step(
            [*finite, config.t_max],
            [*share, finite.size / found.size],
            where="post",
            color=colour,
            linewidth=2.2,
            alpha=0.75,
        )
        axes.plot(times, law(decay, times, config), **THEORY)
    axes.set_xscale("log")
    axes.set_xlim(3.0, config.t_max)
    axes.set_xticks([5, 10, 20, 50], ["5", "10", "20", "50"])
    axes.minorticks_off()
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel("time to half strength / $\\tau$")
    axes.set_ylabel("share of modes there by then")
    axes.set_title(f"m = {config.n_out}, d = {config.n_modes}, r = {config.time_rank}: whole flows")


def _sizes(figure: Any, axes: Any, results: xr.Dataset, config: Config, colours: dict[float, str]) -> None:
    from linfb.theory import expected_loss

    sizes = np.array(config.sizes)
    wide = np.geomspace(sizes.min() / 1.2, 1.2 * sizes.max(), 50)
    shifts = np.linspace(0.94, 1.06, len(colours))
    for (decay, colour), shift in zip(colours.items(), shifts, strict=True):
        mean, error = (results.sized.sel(decay=decay, quantity="loss", moment=part) for part in ("mean", "error"))
        if float(error.max()) < 1e-12:
            continue  # no decay: nothing is left behind any of these channels
        limit = expected_loss(*SIZE_SHAPE, decay)
        first = (expected_loss(*SIZE_SHAPE, decay, n_out=1000) - limit) * 1000
        axes.plot(wide, first / wide, **THEORY)
        axes.errorbar(sizes * shift, mean - limit, error, fmt="o", color=colour, markersize=3, linewidth=0.8, zorder=4)
    axes.axhline(0.0, color="black", linewidth=0.4)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("outputs m")
    axes.set_ylabel("mean loss left $-$ limit law")
    axes.set_title("r = m/2, d = m/4")
