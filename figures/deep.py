r"""Which channel of a deep network may be narrow.

Layer l of a linear network hears from the layer above through channel l. With aligned mirrors a balanced mode obeys

.. math:: \dot c = L\,\Gamma\,c^{2-2/L}(s - c), \qquad \Gamma = \prod_{j=1}^{L-1}\kappa_j^{j/L} ,

where :math:`\kappa_j` is the share of the mode's direction in layer j + 1 that channel j sees: all hidden layers hear
through the channel at the output, only the first one through the lowest.

**Theory** (black lines). (a) The geometric mean of :math:`1/\Gamma` over random channels, of which one at a time is
narrow, for hidden directions that ignore them. (c) The time to half strength if one channel sees nothing, from equal
starts :math:`a_l = \alpha`: one quadrature. It grows as :math:`\alpha^{-(L-2)}` as under backpropagation (dotted), with
a logarithm if two layers are left above the blind channel, but as :math:`\alpha^{-2(L-1)}` if the output's is blind.

**What is seen.** (a) Simulated networks of four layers that start along one mode (every seed, and their geometric
mean) scatter about the lines, as their shares do; each is within 0.2 % of the time at its own :math:`\Gamma`. Without
a mean where a run is not done in time: one of five at rank 1 from the output. (b) From small random starts, compared
with the same start and a channel of full rank (medians; no theory is drawn), a channel of rank one costs factors of
1.8, 4.2 and 4.0 from the lowest to the output's, where (a) has 2.5, 6.3 and 15.7; from rank 2 on the order is again
that of the theory. (c) Networks (dots) that see nothing of the mode in one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, PAGE, THEORY, new_figure, panel_letter
from figures.learning_times import half_times

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Task


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a channel is called by the layer that hears through it; times in units of tau."""

    channels: tuple[int, ...] = (1, 2, 3)
    ranks: tuple[int, ...] = (1, 2, 4, 7, 12)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    n_layers: int = 4
    width: int = 12
    s: float = 1.0
    c0: float = 1e-2
    start_scale: float = 0.4
    t_max: float = 150.0
    n_times: int = 60
    alphas: tuple[float, ...] = (0.1, 0.2, 0.4)


PARTS = "channels"
CONFIGS = {
    "quick": Config(),
    "paper": Config(
        ranks=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32), seeds=tuple(range(40)), width=32, n_times=400, t_max=1e3,
        alphas=(0.05, 0.1, 0.2, 0.4),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class OneMode:
    """Weights along the task's first mode through random hidden directions, balanced behind the channels."""

    c0: float

    def __call__(
        self, widths: tuple[int, ...], task: Task, readers: Sequence[np.ndarray | None], rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        """Return W_1 ... W_L."""
        from linfb.theory import deep_balanced_layers

        ends = task.right[:, 0], task.left[:, 0]
        hidden = [x / np.linalg.norm(x) for x in map(rng.standard_normal, widths[1:-1])]
        directions = [ends[0], *hidden, ends[1]]
        kappa = [1.0 if P is None else np.sum((P @ g) ** 2) for P, g in zip(readers, directions[2:], strict=True)]
        layers = deep_balanced_layers(self.c0, kappa)
        return tuple(a * np.outer(g, f) for a, f, g in zip(layers, directions, directions[1:], strict=False))


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return half-learning times, (channel, rank, seed) and (channel, alpha), and what theory expects of them."""
    import xarray as xr

    return xr.concat(
        [_one_channel(channel, config, resources) for channel in config.channels], dim="channel", combine_attrs="drop"
    )


def _one_channel(channel: int, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb import LinearNetwork, SmallRandom, low_rank_teacher
    from linfb import simulate as run
    from linfb.linear import Dop853
    from linfb.networks import Given
    from linfb.rules import low_rank, mirrors, readers
    from linfb.theory import deep_balanced_time, deep_time, typical_deep_slowdown

    widths = (config.width,) * (config.n_layers + 1)
    task = low_rank_teacher(config.width, config.width, [config.s])
    times = np.geomspace(config.t_max / 60, config.t_max, config.n_times)

    def rule(reader: Any, rank: int) -> Any:
        return low_rank(rank, reader=reader, mirror=mirrors.Exact(), layers=[channel])

    def halves(start: Any, how: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        observe = {"mode": lambda snap: task.left[:, 0] @ snap.map @ task.right[:, 0], "norms": norms}
        found = run(task, LinearNetwork(widths, start), how, options.pop("times", times), observe=observe,
                    method=Dop853(rtol=1e-6, atol=1e-9), device=resources.device, **options)  # fmt: skip
        order = [name for name in ("rank", "seed") if name in found.mode.dims]
        strength = found.mode.transpose("time", *order).values
        shape = strength.shape[1:]
        spent = half_times(found.time.values, strength.reshape(len(strength), -1), config.s).reshape(shape)
        return spent, found.norms.isel(time=0).transpose(*order, ...).values

    def norms(snap: Any) -> Any:
        return np.stack([np.sqrt(np.sum(W**2, axis=(-2, -1))) for W in snap.weights], axis=-1)

    ensemble = {"seeds": config.seeds, "ranks": config.ranks}
    along, layers = halves(OneMode(config.c0), rule(readers.Fixed(), max(config.ranks)), **ensemble)
    kappa = (layers[..., :-1] / layers[..., 1:]) ** 2
    blind_to = np.ones(config.n_layers - 1)
    expected = [
        deep_balanced_time(config.s / 2, config.s, config.c0, shares) for shares in kappa.reshape(-1, blind_to.size)
    ]
    small, _ = halves(SmallRandom(config.start_scale), rule(readers.Fixed(), max(config.ranks)), **ensemble)
    whole = small[config.ranks.index(config.width)]
    blind_to[channel - 1] = 0.0
    unseen, theory = [], []
    axis = np.eye(config.width)
    directions = [task.right[:, 0], *(axis[0] for _ in widths[1:-1]), task.left[:, 0]]
    for alpha in config.alphas:
        start = [alpha] * config.n_layers
        theory.append(float(deep_time(config.s / 2, config.s, start, blind_to)))
        away = np.linalg.qr(np.column_stack([directions[channel + 1], axis[1]]))[0][:, 1:].T
        given = Given([a * np.outer(g, f) for a, f, g in zip(start, directions, directions[1:], strict=False)])
        spread = np.linspace(0.98, 1.02, 5) * theory[-1]
        unseen.append(halves(given, rule(readers.Fixed(away), 1), seeds=[0], times=spread)[0].item())
    sizes = {"rank": config.ranks, "seed": config.seeds}
    lines = [
        typical_deep_slowdown([r if j == channel else config.width for j in range(1, config.n_layers)], widths[2:])
        for r in config.ranks
    ]
    result = xr.Dataset(
        {
            "along": (tuple(sizes), along),
            "expected": (tuple(sizes), np.reshape(expected, along.shape)),
            "small": (tuple(sizes), small / whole),
            "slowdown": ("rank", lines),
            "blind": ("alpha", unseen),
            "blind_theory": ("alpha", theory),
        },
        coords={**{name: list(values) for name, values in sizes.items()}, "alpha": list(config.alphas)},
    )
    return result.expand_dims(channel=[channel])


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far single runs are from theory, and from one in which all channels count alike."""
    known = np.isfinite(results.along)
    whole = results.expected.sel(rank=config.width).isel(seed=0)
    blind = whole * (results.expected / whole) ** (config.n_layers / (2 * results.channel))  # every exponent 1/2
    found = {
        "largest relative deviation of a run from its own time": abs(results.along / results.expected - 1).where(known),
        "the same if every channel counted as that of a two-layer network": abs(results.along / blind - 1).where(known),
        "largest relative deviation behind a channel that sees nothing": abs(results.blind / results.blind_theory - 1),
    }
    numbers = {name: float(values.max()) for name, values in found.items()}
    for channel in config.channels:
        narrow = results.small.sel(channel=channel, rank=min(config.ranks))
        numbers[f"small random starts, rank {min(config.ranks)} into layer {channel}: median slow-down"] = float(
            narrow.median()
        )
    return numbers


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: one narrow channel along a mode, from small random starts, and one that sees nothing."""
    from linfb.theory import deep_time

    figure = new_figure(PAGE, 2.8)
    along, small, blind = figure.subplots(1, 3)
    fastest = float(results.expected.sel(rank=config.width).min())
    alphas = np.geomspace(min(config.alphas), max(config.alphas), 12)
    equal = [[alpha] * config.n_layers for alpha in alphas]
    for colour, channel in zip(COLOURS, config.channels, strict=False):
        part = results.sel(channel=channel)
        name = f"into layer {channel}" + " (from the output)" * (channel == config.n_layers - 1)
        for axes, runs in ((along, part.along / fastest), (small, part.small)):
            shown = runs.where(np.isfinite(runs))
            for seed in config.seeds:
                axes.plot(config.ranks, shown.sel(seed=seed), ".", color=colour, markersize=4.5, alpha=0.35,
                          markeredgewidth=0)  # fmt: skip
            middle = np.exp(np.log(runs).mean("seed")) if axes is along else runs.median("seed")
            middle = middle.where(np.isfinite(middle))
            axes.plot(config.ranks, middle, "o" if axes is along else "o-", color=colour, markersize=3.6, label=name)
        along.plot(config.ranks, part.slowdown, **THEORY)
        blind.plot(config.alphas, part.blind, "o", color=colour, markersize=3.6)
        kappa = [float(j != channel) for j in range(1, config.n_layers)]
        blind.plot(alphas, [deep_time(config.s / 2, config.s, layers, kappa) for layers in equal], **THEORY)
    ones = np.ones(config.n_layers - 1)
    whole = [deep_time(config.s / 2, config.s, layers, ones) for layers in equal]
    blind.plot(alphas, whole, **THEORY | {"linestyle": ":"}, label="backpropagation")
    for axes, title in ((along, "along a mode"), (small, "small random starts")):
        axes.set_yscale("log")
        axes.set_xlabel(f"rank of one channel, of {config.width}")
        axes.set_title(title)
        axes.set_xticks(config.ranks)
    along.plot([], [], label="theory", **THEORY)
    along.set_ylabel("times slower than backpropagation")
    blind.set_xscale("log")
    blind.set_yscale("log")
    blind.set_xticks(config.alphas, [f"{alpha:g}" for alpha in config.alphas])
    blind.minorticks_off()
    blind.set_title("one channel sees nothing")
    blind.set_xlabel(r"start of every layer, $\alpha$")
    blind.set_ylabel(r"time to half strength / $\tau$")
    blind.legend(loc="upper right")
    figure.legend(*along.get_legend_handles_labels(), loc="outside lower center", ncols=4, handletextpad=0.3)
    for axes, letter in zip((along, small, blind), "abc", strict=True):
        panel_letter(axes, letter)
    return figure
