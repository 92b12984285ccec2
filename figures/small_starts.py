r"""How long a mode takes from a small start behind channels that learn, rule by rule.

One mode of strength s = 1, one hidden unit, all weights of the scale :math:`\epsilon`; a channel of one direction that
sees the share :math:`\kappa` of the mode at first. (a) Strength over time for :math:`\kappa` = 1/100 and Oja readers of
labels (pale) and errors (dashed) at several rates, exact mirrors; grey, a channel that stays. (b) When the mode is half
learned, against :math:`\kappa`: dots, exact mirrors; circles, Kolen-Pollack's. (c) The same against the scale of the
start, under an Oja reader and a fixed one (:math:`\kappa` = 1/100), the synapse-local rule with all its sizes small,
and for the second of two modes (s = 1 and 2/3) under the normative rule with one direction.

**Theory.** Black lines: (a) backpropagation's curve from the start :func:`linfb.theory.adaptive_start`; (b)
:func:`linfb.theory.adaptive_half_time`, and dotted :func:`linfb.theory.time_to_half` for a fixed channel; (c) these,
:func:`linfb.theory.local_time`, and :func:`linfb.theory.normative_turn_time`, when the channel turns.

**What is seen.** An Oja reader finds the mode in a time that does not grow as the start gets smaller; labels and errors
make no difference. A fixed channel multiplies the whole time by ten. The synapse-local rule, and the normative one for
what its channel does not serve at first, take times of the order of :math:`1/\epsilon`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb.rules import Rule

RULES = {"Oja": COLOURS[0], "fixed P": GREY, "synapse-local": COLOURS[2], "normative, mode 2": COLOURS[3]}
"""What is compared in the last panel, and how it is drawn."""
MIRRORS = ("exact", "Kolen-Pollack")
FOLLOWED = ("labels", "errors")


@dataclass(frozen=True)
class Config:
    """Settings of the figure; times in units of 1 / s."""

    scales: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    reader_rates: tuple[float, ...] = (0.5, 1.0, 4.0)
    shares: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
    share: float = 1e-2
    waiting: float = 2 / 3
    normative_rate: float = 3.0
    tilt: float = 1e-2
    drawn: float = 1e-3
    n_times: int = 401
    seeds: tuple[int, ...] = (0,)


PARTS = "scales"
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        scales=(1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5), shares=tuple(float(x) for x in np.geomspace(1e-4, 1, 13).round(6))
    ),
}  # fmt: skip


def _rule(share: float, mirror: str, on: str | None) -> Rule:
    """Return the rule of a channel that sees this share of output 0; `on` None is a channel that stays."""
    from linfb.rules import low_rank, mirrors, readers

    P = np.array([[np.sqrt(share), np.sqrt(1 - share)]])
    reader = readers.Fixed(P) if on is None else readers.Oja(start=P, on=on)
    return low_rank(
        1, reader=reader, mirror=mirrors.Exact() if mirror == "exact" else mirrors.KolenPollack(start="aligned")
    )


def _share_known(rule: Rule, s: Any, weights: Any, times: np.ndarray, resources: Resources, **options: Any) -> Any:
    """Return the strengths of all modes relative to the task's, (..., time, mode)."""
    from linfb import Given, LinearNetwork, low_rank_teacher, simulate
    from linfb.linear import Dop853

    task = low_rank_teacher(2, 2, s, left=np.eye(2)[:, : len(s)], right=np.eye(2)[:, : len(s)])
    network = LinearNetwork((2, len(weights[0]), 2), Given(weights))
    runs = simulate(task, network, rule, times, method=Dop853(1e-6, 1e-10), device=resources.device, **options)
    return runs.mode_strength.isel(seed=0).transpose(..., "time", "mode").values / s


def _half(known: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return when shares (..., time) first reach one half, by interpolation; NaN where they do not."""
    after = np.argmax(known > 0.5, axis=-1)[..., None]
    low, high = (np.take_along_axis(known, np.maximum(after - back, 0), -1)[..., 0] for back in (1, 0))
    after = after[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = times[after] - (high - 0.5) / (high - low) * (times[after] - times[after - 1])
    return np.where(after > 0, found, np.nan)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return an example's strengths, and half-times by mirror, rate and share and by rule, from every scale."""
    import xarray as xr

    rates, parts = list(config.reader_rates), []
    for scale in config.scales:
        one = np.array([[scale, 0.0]]), np.array([[scale], [0.0]])
        backpropagation = np.log(1 / scale**2) / 2
        times = np.linspace(0, 4 * backpropagation + 20, config.n_times)
        half = np.array(
            [
                [
                    _half(
                        _share_known(_rule(share, mirror, "errors"), [1.0], one, times, resources,
                                     rates={"reader_rate": rates})[..., 0],
                        times,
                    )
                    for share in config.shares
                ]
                for mirror in MIRRORS
            ]
        ).transpose(0, 2, 1)  # fmt: skip
        curves = np.linspace(0, 4 * backpropagation, config.n_times)
        known = np.stack(
            [
                _share_known(_rule(config.share, "exact", on), [1.0], one, curves, resources,
                             rates={"reader_rate": rates})[..., 0] for on in FOLLOWED
            ]
        )  # fmt: skip
        fixed = _share_known(_rule(config.share, "exact", None), [1.0], one, curves, resources)[..., 0]
        parts.append(
            xr.Dataset(
                {
                    "half": (("mirror", "reader_rate", "share"), half),
                    "known": (("on", "reader_rate", "time"), known),
                    "fixed": ("time", fixed),
                    "at": ("time", curves),
                    "by_rule": ("rule", _by_rule(scale, config, resources)),
                },
                {"mirror": list(MIRRORS), "reader_rate": rates, "share": list(config.shares), "on": list(FOLLOWED),
                 "rule": list(RULES)},
            )
        )  # fmt: skip
    return xr.concat(parts, dim="scale", combine_attrs="drop").assign_coords(scale=list(config.scales))


def _waiting(scale: float, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return weights along two modes, the first a bit larger, with a small disturbance."""
    rng = np.random.default_rng(config.seeds[0])
    W1, W2 = (
        scale * (part + config.tilt * rng.standard_normal((2, 2))) for part in (np.eye(2), np.diag([1.1, 1.0]))
    )  # fmt: skip
    return W1, W2


def _by_rule(scale: float, config: Config, resources: Resources) -> list[float]:
    """Return the half-times of what the last panel compares."""
    from linfb.rules import local, mirrors, normative, readers

    one = np.array([[scale, 0.0]]), np.array([[scale], [0.0]])
    small = local(1, reader=readers.Local(start=[[scale, 0.0]]), mirror=mirrors.KolenPollack(start=[[scale]]))
    slow = {
        "Oja": (_rule(config.share, "exact", "errors"), [1.0], one, 60.0),
        "fixed P": (_rule(config.share, "exact", None), [1.0], one, 150.0),
        "synapse-local": (small, [1.0], one, 1.3 / scale),
        "normative, mode 2": (
            normative(1, rate=config.normative_rate), [1.0, config.waiting], _waiting(scale, config), 2 / scale
        ),
    }  # fmt: skip
    found = []
    for rule, s, weights, until in (slow[name] for name in RULES):
        times = np.linspace(0, until, config.n_times)
        found.append(float(_half(_share_known(rule, s, weights, times, resources)[..., -1], times)))
    return found


def theory_by_rule(scale: float, config: Config) -> list[float]:
    """Return what theory says of the last panel."""
    from linfb.theory import adaptive_half_time, local_time, normative_turn_time, time_to_half

    W1, _ = _waiting(scale, config)
    return [
        float(adaptive_half_time(1.0, scale, scale, config.share)),
        float(time_to_half(1.0, _start(scale, config.share), kappa=config.share)),
        float(local_time(0.5, 1.0, scale, scale, scale, scale)),
        float(normative_turn_time([1.0, config.waiting], np.linalg.norm(W1, axis=0), 1, rate=config.normative_rate)[0]),
    ]


def _start(scale: float, share: Any) -> Any:
    """Return the balanced start that grows as equal weights of this scale do behind a channel that stays."""
    return scale**2 * (1 + np.sqrt(share)) ** 2 / (4 * np.sqrt(share))


def theory(results: xr.Dataset, shares: Any = None) -> Any:
    """Return half-times (scale, mirror, rate, share) behind Oja readers; NaN where a formula does not apply."""
    from linfb.theory import adaptive_half_time

    shares = results.share.values if shares is None else shares
    return np.array(
        [
            [
                [
                    adaptive_half_time(
                        1.0, scale, scale, shares, rate=rate, q=None if mirror == "exact" else np.sqrt(shares) * scale
                    ) for rate in results.reader_rate.values
                ] for mirror in MIRRORS
            ] for scale in results.scale.values
        ]
    )  # fmt: skip


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far half-times are from theory, and from wrong theories."""
    from linfb.theory import time_to_half

    half = results.half.transpose("scale", "mirror", "reader_rate", "share").values
    expected = theory(results)
    fast = results.reader_rate.values >= 1
    scales, shares = results.scale.values[:, None], results.share.values
    fixed = time_to_half(1.0, _start(scales, shares), kappa=np.broadcast_to(shares, (len(scales), len(shares))))
    rules = results.by_rule.transpose("scale", "rule").values
    by_theory = np.array([theory_by_rule(scale, config) for scale in results.scale.values])
    smallest = np.argmin(results.scale.values)
    followed = results.known.transpose("scale", "on", "reader_rate", "time").values
    return {
        "Oja: largest relative deviation of a half-time from theory": float(np.max(np.abs(half / expected - 1))),
        "the same, reader rates of 1 / s and more": float(np.max(np.abs(half / expected - 1)[:, :, fast])),
        "the same if the channel stayed": float(np.max(np.abs(half / fixed[:, None, None] - 1))),
        "largest difference that labels make instead of errors, smallest start": float(
            np.max(np.abs(followed[smallest, 0] - followed[smallest, 1]))
        ),
        **{
            f"{name}: relative deviation from theory, smallest start": float(
                np.abs(rules[smallest, i] / by_theory[smallest, i] - 1)
            ) for i, name in enumerate(RULES)
        },
        **{
            f"{name}: exponent of the time in the scale": float(
                np.polyfit(np.log(results.scale.values), np.log(rules[:, i]), 1)[0]
            ) for i, name in enumerate(RULES)
        },
    }  # fmt: skip


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: curves, half-times against the share, half-times against the start."""
    from linfb.theory import adaptive_start, mode_strength, time_to_half

    figure = new_figure(PAGE, 2.5)
    first, second, third = figure.subplots(1, 3)
    drawn = min(results.scale.values, key=lambda scale: abs(np.log(scale / config.drawn)))
    one = results.sel(scale=drawn)
    times = one["at"].values
    first.plot(times, one.fixed, color=GREY, label="fixed P")
    dense = np.geomspace(min(config.shares), 1, 100)
    lines = theory(results.sel(scale=[drawn]), dense)[0]
    for i, (rate, colour) in enumerate(zip(results.reader_rate.values, COLOURS, strict=False)):
        runs = one.known.sel(reader_rate=rate)
        first.plot(times, runs.sel(on="labels"), color=colour, linewidth=4, alpha=0.3)
        first.plot(times, runs.sel(on="errors"), "--", color=colour, label=rf"$\rho$ = {rate:g}")
        start = adaptive_start(1.0, drawn, drawn, config.share, rate=rate)
        first.plot(times, mode_strength(times, 1.0, float(start)), **THEORY)
        for mirror, face in zip(MIRRORS, (colour, "white"), strict=True):
            second.plot(results.share, one.half.sel(reader_rate=rate, mirror=mirror), "o", color=colour, zorder=4,
                        markersize=4, markerfacecolor=face, label=mirror if i == 0 else None)  # fmt: skip
        for line in lines[:, i]:
            second.plot(dense, line, **THEORY)
    first.set(xlabel=r"time, $t\,s$", ylabel="strength, $c/s$", title=rf"$\kappa$ = {config.share:g}")
    first.set_xlim(0, 4 * np.log(1 / drawn))
    first.legend(loc="lower right")
    stays = np.asarray(time_to_half(1.0, _start(drawn, dense), kappa=dense))
    second.plot(dense, stays, **THEORY | {"linestyle": ":"})
    second.set(
        xscale="log", xlabel=r"share seen at first, $\kappa$", ylabel=r"half-time, $t_{1/2}\,s$", title="Oja reader"
    )
    second.set_ylim(0, 1.3 * np.nanmax(one.half))
    second.legend(loc="lower left", title="mirror", title_fontsize=7)
    by_theory = np.array([theory_by_rule(scale, config) for scale in results.scale.values])
    for i, (name, colour) in enumerate(RULES.items()):
        third.plot(results.scale, results.by_rule.sel(rule=name), "o", color=colour, markersize=4, label=name)
        third.plot(results.scale, by_theory[:, i], **THEORY)
    third.set(xscale="log", yscale="log", xlabel=r"scale of the start, $\epsilon$", ylabel=r"half-time, $t_{1/2}\,s$")
    third.set(title="rules", ylim=(3, 2e5))
    third.legend(loc="upper right")
    for axes, letter in zip((first, second, third), "abc", strict=True):
        panel_letter(axes, letter)
    return figure
