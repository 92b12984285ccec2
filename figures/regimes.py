r"""What a channel narrower than the task learns when its reader follows the errors.

Three modes, s = 1.5, 1, 0.5, weight decay 0.03, small random starts. The reader obeys Oja's rule on the errors at a
rate :math:`\rho`; the mirror is a weight mirror at a rate :math:`\gamma`, or Kolen-Pollack's. (a, b) What is learned
with r = 1 and r = 2: the colour is :math:`\sum_i c_i/s_i`, the number of modes that the network knows, averaged over
the second half of the time, one dot per seed; crosses mark runs in which :math:`PW_2Q` has a negative eigenvalue in
more than a tenth of that time, so that the error of one mode is written into the units of another. (c-e) Examples at
r = 1.

**Theory.** Black lines: the critical reader rates, :math:`s_r/s_{r+1}^2` with the correction for weight decay, below
which the channel cannot leave the r modes that it has learned; in (a) a second line for leaving two. Dotted, what one
would say who puts :math:`s_{r+1}` for :math:`s_r`. In (d) black bars at one half: the law of multiplexing, by which r
queues of modes are learned one after the other; hollow dots, all modes in parallel.

**What is seen.** *Hiding*: left of the line runs stay with r modes and do not move; only mirrors that lag far behind
let some out. *Multiplexing*: right of it, with a mirror that follows, the network comes to know more modes than its
channel is wide, nearly all of them at high rates; the decay lets go of what is not visited, so that strengths rise
and fall. The law, that of infinitely fast readers, is early by up to a fifth. *Capture*: with a Kolen-Pollack mirror
the reader turns at the same rate, but on average r modes are known and no more (to 0.03): what is gained in one is
lost in another, in a cycle that lasts to the end. A weight mirror that lags behind lies between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, PAGE, THEORY, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Task

KOLEN_POLLACK = 0.0
"""The place of Kolen and Pollack's mirror among the weight mirror's rates."""


@dataclass(frozen=True)
class Config:
    """Settings of the figure; rates relative to the weights' rate, times in tau."""

    reader_rates: tuple[float, ...] = (0.5, 0.8, 1.2, 1.8, 2.7, 4.8, 8.0, 16.0)
    mirror_rates: tuple[float, ...] = (KOLEN_POLLACK, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    ranks: tuple[int, ...] = (1, 2)
    seeds: tuple[int, ...] = (0, 1)
    s: tuple[float, ...] = (1.5, 1.0, 0.5)
    n_hidden: int = 6
    start_scale: float = 1e-2
    weight_decay: float = 0.03
    t_max: float = 60.0
    n_times: int = 201


PARTS = "reader_rates"
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        reader_rates=(0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.2, 2.7, 3.3, 4.0, 4.8, 6.0, 8.0, 12.0, 16.0, 24.0),
        mirror_rates=(KOLEN_POLLACK, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), seeds=tuple(range(10)),
        t_max=200.0, n_times=801,
    ),
}  # fmt: skip
NEGATIVE, TURNED = 0.1, 0.1


def _task(config: Config) -> Task:
    from linfb import low_rank_teacher

    d = len(config.s)
    return low_rank_teacher(d, d, config.s, left=np.eye(d), right=np.eye(d))


def _weakest(snap: Any) -> Any:
    """Return the smallest real part of the eigenvalues of P W2 Q^T (zero where a run's channel is padded)."""
    channel = snap.channels[-1]
    return np.linalg.eigvals(channel.P @ snap.weights[-1] @ np.swapaxes(channel.Q, -1, -2)).real.min(-1)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return every mode's strength over time and P W2 Q's smallest eigenvalue, and the half-times of the law."""
    import xarray as xr

    from linfb import LinearNetwork, SmallRandom
    from linfb.linear import Dop853
    from linfb.linear.simulation import initial_state
    from linfb.linear.simulation import simulate as run
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import multiplexed_times

    d = len(config.s)
    task, network = _task(config), LinearNetwork((d, config.n_hidden, d), SmallRandom(config.start_scale))
    followed = tuple(rate for rate in config.mirror_rates if rate != KOLEN_POLLACK)
    kinds = [
        (mirrors.KolenPollack(start="aligned"), (1.0,), (KOLEN_POLLACK,)),
        (mirrors.WeightMirror(start="aligned"), followed, followed),
    ]
    found = []
    for mirror, rates, names in kinds:
        rule = low_rank(max(config.ranks), reader=readers.Oja(), mirror=mirror)
        dataset = run(
            task, network, rule, np.linspace(0, config.t_max, config.n_times), seeds=config.seeds, ranks=config.ranks,
            rates={"reader_rate": config.reader_rates, "mirror_rate": rates}, weight_decay=config.weight_decay,
            method=Dop853(1e-4, 1e-7), device=resources.device,
            observe={"strength": lambda snap: np.diagonal(snap.map, axis1=-2, axis2=-1), "weakest": _weakest},
        )  # fmt: skip
        found.append(dataset[["strength", "weakest"]].assign_coords(mirror_rate=list(names)))
    result = xr.concat(found, dim="mirror_rate", combine_attrs="drop").astype(np.float32)
    mode = next(dim for dim in result.strength.dims if dim not in result.weakest.dims)
    law = [
        [
            multiplexed_times(
                task.Sigma_yx, *initial_state(task, network, rule, seed=seed)[0].weights, rank,
                weight_decay=config.weight_decay,
            ) for seed in config.seeds
        ] for rank in (*config.ranks, d)
    ]  # fmt: skip
    result = result.rename({mode: "mode"})
    result["law"] = ("rank", "seed", "mode"), np.array(law[:-1])
    result["parallel"] = ("seed", "mode"), np.array(law[-1])
    for name in ("law", "parallel"):  # the same in every part
        result[name] = result[name].expand_dims(reader_rate=result.reader_rate)
    return result.sel(mirror_rate=list(config.mirror_rates))


def known(results: xr.Dataset, config: Config) -> xr.Dataset:
    """Return how many modes are known in the second half of the time, how much they move, how often P W2 Q is bad."""
    late = results.sel(time=slice(config.t_max / 2, None))
    shares = late.strength / np.array(config.s)
    return shares.sum("mode").mean("time").to_dataset(name="modes").assign(
        swing=(shares.max("time") - shares.min("time")).max("mode"), negative=(late.weakest < -1e-3).mean("time")
    )  # fmt: skip


def critical_rates(rank: int, config: Config) -> list[float]:
    """Return the reader rates above which the channel leaves the first r modes, r + 1 modes, ..."""
    from linfb.theory import critical_reader_rate

    return [
        critical_reader_rate(config.s[i:], rank, weight_decay=config.weight_decay)
        for i in range(len(config.s) - rank)
    ]  # fmt: skip


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how often runs are on the side of the threshold that theory says, and how good the law is."""
    late = known(results, config)
    turned = (late.swing > TURNED).sel(mirror_rate=[rate for rate in config.mirror_rates if rate == 0 or rate >= 1])

    def agreement(threshold: Any) -> float:
        right = [turned.sel(rank=r) == (turned.reader_rate > threshold(r)) for r in config.ranks]
        return float(np.mean([value.mean() for value in right]))

    best = results.sel(reader_rate=max(config.reader_rates), mirror_rate=max(config.mirror_rates))
    late_best = [_off(best, best.law, config), _off(best, best.parallel, config)]
    above = late.where(late.reader_rate > 1.2 * critical_rates(max(config.ranks), config)[0], drop=True)
    captured = above.modes.sel(mirror_rate=KOLEN_POLLACK, drop=True)
    return {
        "share of runs that turn or stay as theory says (mirrors not slower than the weights)": agreement(
            lambda r: critical_rates(r, config)[0]
        ),
        "the same with s_(r+1) for s_r": agreement(lambda r: 1 / config.s[r]),
        "multiplexing: largest relative deviation of a half-time from the law": late_best[0],
        "the same, all modes in parallel": late_best[1],
        "capture: largest deviation of the number of known modes from r": float(
            abs(captured - captured["rank"]).max()
        ),
        "the same with the fastest weight mirror": float(
            abs(above.modes.sel(mirror_rate=max(config.mirror_rates)) - captured["rank"]).max()
        ),
    }  # fmt: skip


def _off(runs: xr.Dataset, law: xr.DataArray, config: Config) -> float:
    reached = (runs.strength / np.array(config.s) > 0.5).transpose("time", "rank", "seed", "mode")
    found = runs.time.values[np.argmax(reached.values, axis=0)]
    expected = law.broadcast_like(reached.isel(time=0)).transpose("rank", "seed", "mode").values
    return float(np.max(np.abs(found / expected - 1)))


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: two phase diagrams and three examples."""
    figure = new_figure(PAGE, 4.7)
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    planes = above.subplots(1, len(config.ranks), sharey=True)
    late = known(results, config)
    low = min(rate for rate in config.mirror_rates if rate > 0)
    height = {rate: rate if rate > 0 else low / 6 for rate in config.mirror_rates}
    for axes, rank, letter in zip(np.atleast_1d(planes), config.ranks, "ab", strict=False):
        points = _plane(axes, late.sel(rank=rank), height, rank, config)
        axes.set_title(f"r = {rank}")
        panel_letter(axes, letter)
    first = np.atleast_1d(planes)[0]
    first.set_ylabel(r"mirror rate, $\gamma$")
    ticks = [rate for rate in (0.01, 0.1, 1.0, 10.0) if low <= rate <= max(config.mirror_rates)]
    first.set_yticks([low / 6, *ticks], ["Kolen-\nPollack", *(f"{tick:g}" for tick in ticks)])
    first.set_yticks([], minor=True)
    above.colorbar(points, ax=planes, label="modes known", ticks=range(1, len(config.s) + 1))
    slow, fast = min(config.reader_rates), max(config.reader_rates)
    follows = max(config.mirror_rates)
    examples = [("hiding", slow, follows), ("multiplexing", fast, follows), ("capture", fast, KOLEN_POLLACK)]
    for axes, (title, rate, mirror), letter in zip(below.subplots(1, 3, sharey=True), examples, "cde", strict=True):
        runs = results.sel(rank=min(config.ranks), reader_rate=rate, mirror_rate=mirror)
        _example(axes, runs, config, law=title == "multiplexing")
        axes.set_title(f"{title}: $\\rho$ = {rate:g}, " + (f"$\\gamma$ = {mirror:g}" if mirror else "Kolen-Pollack"))
        axes.set_xlabel(r"time, $t/\tau$")
        panel_letter(axes, letter)
        if letter == "c":
            axes.set_ylabel("strength, $c_i/s_i$")
            axes.legend(loc="center right")
    return figure


def _plane(axes: Any, late: xr.Dataset, height: dict[float, float], rank: int, config: Config) -> Any:
    """Draw one phase diagram: all seeds side by side."""
    seeds = len(config.seeds)
    for i, seed in enumerate(config.seeds):
        x, y = np.meshgrid(config.reader_rates, [height[rate] for rate in config.mirror_rates])
        x = x * 1.13 ** (i - (seeds - 1) / 2)
        one = late.sel(seed=seed).transpose("mirror_rate", "reader_rate")
        points = axes.scatter(x, y, c=one.modes, s=22, cmap="cividis", vmin=1, vmax=len(config.s), linewidths=0)
        bad = one.negative.values > NEGATIVE
        axes.scatter(x[bad], y[bad], marker="x", s=14, color=COLOURS[1], linewidths=1.0)
    for rate in critical_rates(rank, config):
        axes.axvline(rate, **THEORY)
    axes.axvline(1 / config.s[rank], **THEORY | {"linestyle": ":"})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(config.reader_rates[::2], [f"{rate:g}" for rate in config.reader_rates[::2]])
    axes.set_xlabel(r"reader rate, $\rho$")
    return points


def _example(axes: Any, runs: xr.Dataset, config: Config, *, law: bool) -> None:
    for mode, (colour, s) in enumerate(zip(COLOURS, config.s, strict=False)):
        for i, seed in enumerate(config.seeds):
            share = runs.strength.sel(seed=seed).isel(mode=mode) / s
            axes.plot(runs.time, share, color=colour, linewidth=1.0 if i == 0 else 0.5, alpha=1.0 if i == 0 else 0.6,
                      label=f"s = {s:g}" if i == 0 else None)  # fmt: skip
        if law:
            expected = {"|": runs.law, "o": runs.parallel}
            for marker, times in expected.items():
                size, width = (9, 1.4) if marker == "|" else (3, 0.7)
                axes.plot(
                    times.isel(mode=mode, seed=0), 0.5, marker, color="black", markersize=size, markeredgewidth=width,
                    fillstyle="none", zorder=4,
                )  # fmt: skip
