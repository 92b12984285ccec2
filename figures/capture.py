r"""How a reader goes round with a Kolen-Pollack mirror, and how far it must be tilted to leave what it knows.

One channel, two modes of strengths a = 1 and b; Oja's reader on errors. (a) Capture of a network of six hidden units
from a small random start: what it knows of both modes. (b) The singular values of its hidden layer (weights to and from
it), relative to the largest. (c) The period of the cycle against the reader's rate, for two ratios b/a, with weak
decay: from the cycle itself (dots) and from the learned mode 1 with a slightly tilted reader (circles); runs that come
to rest are at the top. (d) Without decay, how far below the critical rate :math:`\rho_c = a/b^2` a reader that is
tilted from the learned mode still turns; bars are what the grid of rates leaves open.

**Theory.** (b) Slopes :math:`e^{-\lambda t}`. (c) :func:`linfb.theory.capture_period`, which ends at
:func:`linfb.theory.capture_rate`; dotted, infinitely fast readers; thin vertical lines, :math:`\rho_c`. (d)
:func:`linfb.theory.critical_tilt` for mirrors that follow (line) and Kolen-Pollack's (dashed).

**What is seen.** One hidden unit is left. Periods are within 3 % of the limit of weak decay. Between the two rates
cycle and hidden state are both stable: all runs go round or rest as theory says of their start. Distances in (d) agree
to 7 % on average; the grid of rates, in steps of 10 %, and the length of runs are a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

MIRRORS = {"perfect": "follows", "kolen_pollack": "Kolen-Pollack"}
"""Mirrors by the name that theory has for them, and what the figure calls them."""


@dataclass(frozen=True)
class Config:
    """Settings of the figure: b/a, reader rates and distances from the critical rate relative to it, a = 1."""

    ratios: tuple[float, ...] = (0.5, 0.8)
    reader_rates: tuple[float, ...] = (0.3, 0.36, 0.44, 0.54, 0.66, 0.8, 0.97, 1.2, 1.5, 2.0, 3.0, 5.0)
    weight_decay: float = 0.025
    t_max: float = 160.0
    tilts: tuple[float, ...] = (0.02, 0.04, 0.08)
    distances: tuple[float, ...] = tuple(float(x) for x in np.geomspace(0.05, 0.4, 22).round(4))
    small_tilt: float = 1e-3
    n_hidden: int = 6
    start_scale: float = 1e-2
    example_rate: float = 4.0
    seeds: tuple[int, ...] = (0,)


PARTS = "ratios"
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        ratios=(0.3, 0.5, 0.8), reader_rates=tuple(float(x) for x in np.geomspace(0.2, 5.0, 30).round(4)),
        weight_decay=0.01, t_max=800.0, tilts=(0.003, 0.005, 0.01, 0.02, 0.04, 0.08),
        distances=tuple(float(x) for x in np.geomspace(0.005, 0.4, 60).round(5)),
    ),
}  # fmt: skip


def _learned(decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return W1, W2, P and Q of one hidden unit that has learned mode 1."""
    size = np.sqrt(1 - decay)
    return np.array([[size, 0.0]]), np.array([[size], [0.0]]), np.array([[1.0, 0.0]]), np.array([[size]])


def _captured(b: float, decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return where theory puts the cycle of a fast reader, as it passes mode 2."""
    from scipy.special import ellipe, ellipk

    size = np.sqrt(ellipe(1 - b**2) / ellipk(1 - b**2) / decay)
    return np.array([[0.0, size]]), np.array([[0.0], [b / size]]), np.array([[-1.0, 0.0]]), np.array([[size]])


def _run(b: float, start: Any, mirror: str, times: np.ndarray, rates: Any, decay: float, resources: Resources) -> Any:
    """Return what one hidden unit knows at several reader rates, (rate, time, mode), and P's share of mode 2."""
    from linfb import Given, LinearNetwork, low_rank_teacher, simulate
    from linfb.linear import Dop853
    from linfb.rules import low_rank, mirrors, readers

    W1, W2, P, Q = start
    task = low_rank_teacher(2, 2, [1.0, b], left=np.eye(2), right=np.eye(2))
    follows = mirrors.Exact() if mirror == "perfect" else mirrors.KolenPollack(start=Q)
    rule = low_rank(1, reader=readers.Oja(start=P), mirror=follows)
    runs = simulate(
        task, LinearNetwork((2, 1, 2), Given((W1, W2))), rule, times,
        rates={"reader_rate": list(rates)}, weight_decay=decay, method=Dop853(1e-5, 1e-8), device=resources.device,
        observe={
            "strength": lambda snap: np.diagonal(snap.map, axis1=-2, axis2=-1),
            "tilt": lambda snap: np.abs(snap.channels[-1].P[..., 0, 1]),
        },
    ).isel(seed=0).transpose("reader_rate", "time", ...)  # fmt: skip
    return runs.strength.values / [1.0, b], runs.tilt.values


def _periods(known: np.ndarray, times: np.ndarray) -> list[float]:
    """Return the mean period in the last third of every run, NaN where it rests."""
    found = []
    for share in known[:, len(times) * 2 // 3 :, 0]:
        up = np.flatnonzero((share[:-1] < 0.5) & (share[1:] >= 0.5))
        step = times[1] - times[0]
        at = step * (up + (0.5 - share[up]) / (share[up + 1] - share[up]))
        found.append(float(np.mean(np.diff(at))) if at.size > 1 else np.nan)
    return found


def _tilted(tilt: float, decay: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    W1, W2, _, Q = _learned(decay)
    return W1, W2, np.array([[np.cos(tilt), np.sin(tilt)]]), Q


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return an example of capture, the periods from two starts, and between which distances tilted readers stay."""
    import xarray as xr

    times = _times(config)
    rates, distances = np.array(config.reader_rates), np.sort(config.distances)
    parts = []
    for ratio in config.ratios:
        critical = 1 / ratio**2
        starts = {
            "cycle": _captured(ratio, config.weight_decay), "learned": _tilted(config.small_tilt, config.weight_decay)
        }  # fmt: skip
        periods = [
            _periods(
                _run(ratio, start, "kolen_pollack", times, rates * critical, config.weight_decay, resources)[0], times
            )
            for start in starts.values()
        ]
        found = np.full((len(MIRRORS), len(config.tilts), 2), np.nan)
        for i, mirror in enumerate(MIRRORS):
            for j, tilt in enumerate(config.tilts):
                until = np.linspace(0, 12 * tilt ** (-2 / 3), 201)
                _, share = _run(ratio, _tilted(tilt), mirror, until, critical * (1 - distances), 0.0, resources)
                turned = share.max(1) > 0.8
                stays = distances[~turned].min(initial=np.inf)
                found[i, j] = distances[distances < stays].max(initial=0.0), stays
        example = _example(ratio, config, resources)
        parts.append(
            xr.Dataset(
                {
                    "period": (("start", "reader_rate"), np.array(periods)),
                    "bracket": (("mirror", "tilt", "bound"), found),
                    "known": (("time", "mode"), example[0]),
                    "units": (("time", "unit"), example[1]),
                },
                {
                    "start": list(starts),
                    "reader_rate": rates,
                    "mirror": list(MIRRORS),
                    "tilt": list(config.tilts),
                    "bound": ["turns", "stays"],
                    "time": _times(config),
                },
            )
        )
    return xr.concat(parts, dim="ratio", combine_attrs="drop").assign_coords(ratio=list(config.ratios))


def _times(config: Config) -> np.ndarray:
    return np.linspace(0, config.t_max, int(4 * config.t_max) + 1)


def _example(ratio: float, config: Config, resources: Resources) -> tuple[np.ndarray, np.ndarray]:
    """Return what a network with many hidden units knows over time, and its hidden layer's singular values."""
    from linfb import LinearNetwork, SmallRandom, low_rank_teacher
    from linfb import simulate as run
    from linfb.linear import Dop853
    from linfb.rules import low_rank, mirrors, readers

    def units(snap: Any) -> Any:
        W1, W2 = snap.weights
        return np.linalg.svd(np.concatenate([np.swapaxes(W1, -1, -2), W2], axis=-2), compute_uv=False)

    task = low_rank_teacher(2, 2, [1.0, ratio], left=np.eye(2), right=np.eye(2))
    rule = low_rank(1, reader=readers.Oja(), mirror=mirrors.KolenPollack(start="aligned"))
    runs = run(
        task, LinearNetwork((2, config.n_hidden, 2), SmallRandom(config.start_scale)), rule, _times(config),
        seeds=config.seeds[:1], rates={"reader_rate": [config.example_rate / ratio**2]},
        weight_decay=config.weight_decay,        method=Dop853(1e-6, 1e-10), device=resources.device,
        observe={"strength": lambda snap: np.diagonal(snap.map, axis1=-2, axis2=-1), "units": units},
    ).isel(seed=0, reader_rate=0)  # fmt: skip
    return runs.strength.transpose("time", ...).values / [1.0, ratio], runs.units.transpose("time", ...).values[:, :4]


def theory(results: xr.Dataset) -> Any:
    """Return the period that theory has for every ratio and rate, infinite where there is no cycle."""
    from linfb.theory import capture_period

    return np.array(
        [
            [capture_period([1.0, ratio], rate=rate / ratio**2) for rate in results.reader_rate.values]
            for ratio in results.ratio.values
        ]
    )


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far periods and tilts are from theory, and from theories that are wrong."""
    from linfb.theory import capture_period, critical_tilt

    expected, period = theory(results), results.period.transpose("ratio", "start", "reader_rate").values
    cycle, learned = period[:, 0], period[:, 1]
    clear = np.isfinite(expected) & np.isfinite(cycle)
    fast = np.array([[capture_period([1.0, ratio])] for ratio in results.ratio.values])
    turns = np.isfinite(learned) == (results.reader_rate.values > 1 - config.weight_decay)
    off = {}
    for name, other in zip(MIRRORS, reversed(MIRRORS), strict=True):
        low, high = results.bracket.sel(mirror=name).transpose("bound", "ratio", "tilt").values
        shares = []
        for theory_name in (name, other):
            scale = np.array(
                [critical_tilt([1.0, ratio], 1, 0.0, mirror=theory_name) for ratio in results.ratio.values]
            )
            distance = (results.tilt.values / scale[:, None]) ** (2 / 3)
            shares.append(np.mean(np.abs(np.log(np.sqrt(np.maximum(low, 1e-9) * high) / distance))))
        off[name] = shares
    return {
        "period: largest relative deviation from theory": float(np.max(np.abs(cycle / expected - 1)[clear])),
        "the same if readers were infinitely fast": float(np.max(np.abs(cycle / fast - 1)[clear])),
        "share of runs that go round, from the cycle, where theory has one": float(
            np.mean(np.isfinite(cycle) == np.isfinite(expected))
        ),
        "share of runs that turn, from the learned mode, above the critical rate only": float(np.mean(turns)),
        "distance at which a tilted reader turns: mean relative deviation from theory": float(
            np.mean([shares[0] for shares in off.values()])
        ),
        "the same with the other mirror's": float(np.mean([shares[1] for shares in off.values()])),
        "second singular value of the hidden layer at the end, relative to the first": float(
            (results.units.isel(unit=1, time=-1) / results.units.isel(unit=0, time=-1)).max()
        ),
    }


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: an example of capture above, the periods and the basins below."""
    figure = new_figure(PAGE, 4.4)
    (first, second), (third, fourth) = figure.subplots(2, 2)
    _draw_example(first, second, results.isel(ratio=0), config)
    _draw_periods(third, results)
    _draw_basins(fourth, results, config)
    for axes, letter in zip((first, second, third, fourth), "abcd", strict=True):
        panel_letter(axes, letter)
    return figure


def _draw_example(first: Any, second: Any, one: xr.Dataset, config: Config) -> None:
    late, begin = one.time >= 0.8 * config.t_max, config.t_max / 4
    for mode, colour in zip(range(2), COLOURS, strict=False):
        first.plot(one.time[late], one.known.isel(mode=mode)[late], color=colour, label=f"mode {mode + 1}")
    first.set(xlabel=r"time, $t\,a$", ylabel="strength, $c_i/s_i$", title=f"capture, b/a = {float(one.ratio):g}")
    first.set_ylim(-0.1, 1.3)
    first.legend(loc="upper right", ncols=2)
    share = one.units / one.units.isel(unit=0)
    for unit, colour in zip(range(1, one.sizes["unit"]), COLOURS[2:], strict=False):
        second.plot(one.time, share.isel(unit=unit), color=colour, label=f"{unit + 1}")
    times = one.time.values[one.time > begin]
    second.plot(times, 0.3 * np.exp(-config.weight_decay * (times - begin)), **THEORY, label=r"$e^{-\lambda t}$")
    second.set(xlabel=r"time, $t\,a$", ylabel="singular value / largest", title="hidden layer")
    second.set(yscale="log", ylim=(1e-5, 1.5))
    second.legend(loc="upper right", ncols=2)


def _draw_periods(axes: Any, results: xr.Dataset) -> None:
    from linfb.theory import capture_period, capture_rate

    rests = 14.0
    for ratio, colour in zip(results.ratio.values, COLOURS, strict=False):
        runs, critical = results.sel(ratio=ratio), 1 / ratio**2
        rates = capture_rate([1.0, ratio]) * (1 + np.geomspace(1e-3, 20, 50))
        rates = rates[rates < 6 * critical]
        periods = np.array([capture_period([1.0, ratio], rate=rate) for rate in rates])
        axes.plot(rates[periods < 0.9 * rests] / critical, periods[periods < 0.9 * rests], **THEORY)
        axes.axhline(capture_period([1.0, ratio]), **THEORY | {"linestyle": ":"})
        for start, size, face in (("cycle", 3.5, colour), ("learned", 6, "none")):
            label = f"b/a = {ratio:g}" if start == "cycle" else None
            at = runs.period.sel(start=start).fillna(rests)
            axes.plot(runs.reader_rate, at, "o", color=colour, markersize=size, markerfacecolor=face, label=label)
    axes.axvline(1.0, color=GREY, linewidth=0.6)
    axes.text(1.03, 8.5, r"$\rho_c$", fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel=r"reader rate, $\rho/\rho_c$", ylabel=r"period, $T\,a$", title="cycle")
    axes.set_xticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
    axes.set_yticks([3, 4, 6, 8, rests], ["3", "4", "6", "8", "rests"])
    axes.minorticks_off()
    axes.legend(loc="center right")


def _draw_basins(axes: Any, results: xr.Dataset, config: Config) -> None:
    from linfb.theory import critical_tilt

    tilts = np.geomspace(min(config.tilts) / 1.5, max(config.tilts) * 1.5, 2)
    for ratio, colour in zip(results.ratio.values, COLOURS, strict=False):
        for mirror, dash, face in zip(MIRRORS, ("-", "--"), (colour, "white"), strict=True):
            scale = critical_tilt([1.0, ratio], 1, 0.0, mirror=mirror)
            axes.plot(tilts, (tilts / scale) ** (2 / 3), **THEORY | {"linestyle": dash})
            low, high = results.bracket.sel(ratio=ratio, mirror=mirror).transpose("bound", "tilt").values
            middle = np.sqrt(low * high)
            axes.errorbar(
                results.tilt, middle, (middle - low, high - middle), fmt="o", color=colour, markerfacecolor=face,
                markersize=4, linewidth=0.8, label=MIRRORS[mirror] if ratio == results.ratio.values[0] else None,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="tilt of the reader (rad)", ylabel=r"$1 - \rho/\rho_c$")
    axes.set_xticks(config.tilts, [f"{tilt:g}" for tilt in config.tilts])
    axes.set_yticks([0.05, 0.1, 0.2, 0.3], ["0.05", "0.1", "0.2", "0.3"])
    axes.minorticks_off()
    axes.set_title("basin of hiding")
    axes.legend(loc="upper left")
