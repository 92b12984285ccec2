r"""How far errors get through convolutions and past residual branches: the squared cosine with the true ones.

Above a network like VGG, below a vision transformer, on images; P reads the channels of every pixel, or every token.
(a, d) The squared cosine between the carried and the true error at the output of layers, against the rank of all
channels, before training: random readers with perfect mirrors (means over ten draws for each of three networks), and
random feedback that does not know the weights (crosses, all layers). Of the transformer the errors on the residual
stream are shown, where every branch ends. (b, e) The same for aligned readers, which have the leading eigenvectors of
the true errors of their layer. (c, f) The squared cosine between the carried and the true gradient after training, by
layer, at one rank; black is theory for random channels at the start.

**Theory** (black). Errors are linear in every channel's :math:`P^\top P`, whose mean is r/m. So what independent
random channels carry of an error is in the mean over them, exactly and at any size, what backpropagation carries if
every kernel hands on r/m of its error; the line is the projection of that on the true error. It is also the squared
cosine, where weights are isotropic and layers wide; two unrelated errors, though, have one over their number of
dimensions. In a chain of layers r/m multiply (:mod:`figures.alignment`). On a residual stream the skip connection
carries all: a branch that makes up the share s of the squared error below it, and whose channels carry the share k of
that, multiplies the squared cosine by :math:`1 - s(1 - k)`. For aligned readers the lines have the shares that they see
of the true errors in the place of r/m, as if channels were independent.

**What is seen** (quick preset: digits, 16 and 32 channels, tokens of 32 features, 240 steps, three seeds). Mean
projections are off theory by 0.9 and 1.1 of their standard errors (root mean square over layers and ranks); by 15 and
25 if cosines, not their squares, were r/m, and in the transformer by 47 if it had no skip connections. The closed form
on the residual stream, which takes the two ways for uncorrelated, is off by at most .045. Unrelated feedback has mean
squared cosines up to .011; at full rank all others are 1. Aligned readers are not independent: what passed one is what
the next looks for. At r = 8 this matters little (the lowest error drawn: .24 for .19, and .90 for .84), at r = 2 much
(.020 for .002, and .20 for .07). On the stream little is lost twice: at r = 4 the squared cosine is .53 behind the
readout's channel and .41 past three branches. Training aligns as in perceptrons: at r = 8 the mean squared cosine of
all gradients is .59 with fixed and .88 with Oja's readers in the network like VGG, .50 and .82 in the transformer. A
mirror that learns has .52 and .32, and test accuracies of .94 and .68, against .95 and .83 with a perfect one (fixed P:
.96 and .79). The preset ``cpu`` (CIFAR-10) has not been run yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from figures import _watched, alignment
from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, curves, dots, new_figure, panel_letter
from figures._training import image_model
from figures._watched import Watching, by_rank, dynamics, rank_of, rows_of
from figures.readers import principal

if TYPE_CHECKING:
    import xarray as xr

    from linfb.datasets import Splits
    from linfb.engine import Model
    from linfb.rules import Channel, Rule

STARTS = ("random", "aligned", "unrelated")
"""Channels of untrained networks; all but the last have a perfect mirror."""
TITLES = {"vgg": "network like VGG", "vit": "vision transformer"}
ROWS = 64
"""How many images untrained networks are looked at with."""


@dataclass(frozen=True)
class Config(Watching):
    """Settings of the figure; a cell is a network and a kind of channels, and their rank.

    `widths` and `dense` are sizes of the network like VGG, `vit` those of the transformer. Untrained networks are
    looked at behind `draws` random channels.
    """

    layout: ClassVar[str] = "image"
    cells: tuple[str, ...] = ()
    widths: tuple[int, ...] = (16, 32)
    dense: int = 32
    vit: Mapping[str, Any] = field(default_factory=lambda: {"patch": 2, "width": 32, "depth": 2, "heads": 2})
    draws: int = 10
    steps: int = 240
    learning_rate: float = 3e-3


def _cells(ranks: Sequence[int], trained: int) -> tuple[str, ...]:
    kinds = {
        "random": ranks,
        "aligned": ranks,
        "unrelated": ranks[::3],
        **dict.fromkeys(alignment.CHANNELS, (trained,)),
    }
    return tuple(f"{name} / {kind} r={rank}" for name in TITLES for kind, some in kinds.items() for rank in some)


PARTS = "cells"
CONFIGS = {
    "quick": Config(cells=_cells((1, 2, 4, 8, 16, 32, 64), 8)),
    "cpu": Config(
        cells=_cells((1, 2, 5, 10, 20, 64, 128), 10), data="cifar10", widths=(32, 64, 128), dense=128,
        vit={"patch": 4, "width": 64, "depth": 3, "heads": 4}, draws=5, steps=3 * 351, batch_size=128,
        learning_rate=1e-3, validation=0.1,
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images."""
    return _watched.on_data(config, CONFIGS["quick"], data)


def model_of(cell: str, splits: Splits, config: Config) -> Model:
    """Return the network behind a cell's name."""
    network = cell.partition(" / ")[0]
    own = {"widths": config.widths, "dense": config.dense} if network == "vgg" else {"drop_path": 0.0, **config.vit}
    return image_model(network, splits.shape, splits.n_classes, {"dropout": 0.0, **own})


def layers_of(network: str, config: Config) -> list[str]:
    """Return what the hidden layers of a network are called, from the input on."""
    if network == "vgg":
        return [*(f"conv {i}" for i in range(1, 2 * len(config.widths) + 1)), "dense"]
    parts = ("QKV", "attention out", "MLP in", "MLP out")
    return ["patches", *(f"{part} {i + 1}" for i in range(config.vit["depth"]) for part in parts)]


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, how well errors are carried in an untrained network, or before and after training."""
    import xarray as xr

    splits = config.splits(resources)
    untrained = [cell for cell in config.cells if _kind(cell) in STARTS]
    found = [before_training(cell, splits, config) for cell in untrained]
    for network in TITLES:
        cells = tuple(cell for cell in config.cells if cell.startswith(network) and cell not in untrained)
        if cells:
            found.append(dynamics(
                replace(config, cells=cells), (0, config.steps), resources, parts=("validation",),
                model_of=partial(model_of, config=config), measure=alignment.measured,
                member_of=lambda cell, *more: alignment.member_of(cell.partition(" / ")[2], *more),
            ))  # fmt: skip
    return xr.concat(found, dim="cell", join="outer")


def _kind(cell: str) -> str:
    return cell.partition(" / ")[2].partition(" r=")[0]


def before_training(cell: str, splits: Splits, config: Config) -> xr.Dataset:
    """Return what arrives of the error at every hidden layer of untrained networks, and what theory says.

    Over the channels that are drawn for one network: the mean squared cosine between the carried and the true error
    (`squared_cosine`), and the mean of the former's projection on the latter (`projection`) with its standard error
    (`scatter`). `theory` is the projection if every channel hands on the whole error times the `share` of it that the
    channel sees; `norm` is that of the true error, squared.
    """
    import xarray as xr

    from linfb.observables.measures import cosine
    from linfb.rules import Channel, backpropagation

    model = model_of(cell, splits, config)
    found: dict[str, list[Any]] = {}
    for seed in config.seeds:
        weights, back = _way_back(model, splits, seed)
        true = back(backpropagation(), [Channel()] * len(model.kernels))
        rule, every, shares = _channels(
            cell, model, weights, true, range(config.draws * seed, config.draws * (seed + 1))
        )
        runs = [list(zip(back(rule, channels), true, strict=True))[:-1] for channels in every]
        scaled = back(backpropagation(), [Channel(gain=float(share)) for share in (1.0, *shares)])
        on = np.array([[_projection(*pair) for pair in pairs] for pairs in runs])
        for name, values in {
            "squared_cosine": np.mean([[float(cosine(*pair)) ** 2 for pair in pairs] for pairs in runs], axis=0),
            "projection": on.mean(axis=0),
            "scatter": on.std(axis=0) / np.sqrt(max(len(on) - 1, 1)),
            "theory": [_projection(*pair) for pair in zip(scaled, true, strict=True)][:-1],
            "norm": [np.sum(error**2) for error in true[:-1]],
            "share": shares,
        }.items():
            found.setdefault(name, []).append(values)
    axes = {"seed": list(config.seeds), "layer": range(1, len(model.kernels))}
    named = {name: (list(axes), np.array(values)) for name, values in found.items()}
    return xr.Dataset(named, axes).expand_dims(cell=[cell])


def _way_back(model: Model, splits: Splits, seed: int) -> tuple[Any, Any]:
    """Return an untrained network's weights, and what goes from a rule and channels to the error of every layer."""
    from linfb.backend import Key
    from linfb.engine.backward import backward
    from linfb.engine.losses import cross_entropy, one_hot
    from linfb.engine.models import forward, initial_weights

    x, labels = (part[:ROWS] for part in splits.validation)
    weights = initial_weights(model, seed)
    outputs, caches = forward(model, weights, x.astype(np.float64), Key(seed))
    delta = cross_entropy(outputs, one_hot(labels, model.n_out, like=outputs))[1]

    def back(rule: Rule, channels: Sequence[Channel]) -> list[np.ndarray]:
        return [rows_of(error) for error in backward(model, rule, weights, channels, caches, delta).deltas]

    return weights, back


def _projection(carried: np.ndarray, true: np.ndarray) -> float:
    """Return how much of the true error is in the carried one."""
    return float(np.sum(carried * true) / np.sum(true**2))


def _channels(
    cell: str, model: Model, weights: Any, true: Sequence[np.ndarray], seeds: Sequence[int]
) -> tuple[Rule, list[Any], list[float]]:
    """Return a rule, its channels as every seed draws them, and the share of the error that each sees in the mean.

    Aligned channels, for which nothing is drawn, read the leading eigenvectors of the true errors.
    """
    from linfb import rules
    from linfb.rules import Channel, mirrors, readers
    from linfb.rules.channels import initial_channels
    from linfb.theory import carried_alignment

    layers, kind = [model.layers[i] for i in model.kernels], _kind(cell)
    widths = {k: layer.kernel_shape[0] for k, layer in enumerate(layers) if k}
    ranks = {k: min(rank_of(cell) * getattr(layers[k], "blocks", 1), width) for k, width in widths.items()}
    rule = rules.low_rank(ranks, reader=readers.Fixed(), mirror=mirrors.Exact())
    if kind == "aligned":
        bases = {k: principal(true[k], rank) for k, rank in ranks.items()}
        shares = [float(np.sum((true[k] @ basis) ** 2) / np.sum(true[k] ** 2)) for k, basis in bases.items()]
        return rule, [[None, *(Channel(P=basis.T) for basis in bases.values())]], shares
    kernels = [weights[i] for i in model.kernels]
    rule = rules.feedback_alignment(rank=ranks) if kind == "unrelated" else rule
    every = [initial_channels(rule, layers, kernels, seed=seed).channels for seed in seeds]
    return rule, every, [0.0 if kind == "unrelated" else carried_alignment(r, widths[k])[0] for k, r in ranks.items()]


def on_stream(here: xr.Dataset, config: Config) -> np.ndarray:
    """Return what the closed form for residual branches says of errors on the stream, shape (layer, cell, seed).

    A branch that makes up the share s of the squared error below it, and carries the share k of that, leaves
    1 - s (1 - k) of the squared cosine above it. The error on the stream is that at the output of the branch above;
    the layers are those of :func:`shown_of`.
    """
    share, norm = (here[name].transpose("layer", "cell", "seed").values for name in ("share", "norm"))
    top = 4 * config.vit["depth"]
    found = [share[top]]
    for i in range(top, 2, -2):
        branch = 1 - norm[i] / norm[i - 2]
        found.append(found[-1] * (1 - branch * (1 - share[i - 1] * share[i - 2])))
    return np.array(found)


def without_skips(here: xr.Dataset) -> xr.DataArray:
    """Return the product of the shares of all channels above every layer."""
    shares = here.share.sel(layer=slice(None, None, -1))
    return shares.cumprod("layer").assign_coords(layer=shares.layer).sel(layer=here.layer)


def shown_of(network: str, config: Config) -> list[int]:
    """Return the numbers of the layers whose errors are drawn: all, or those on the residual stream; from above."""
    last = len(layers_of(network, config))
    return list(range(last, 0, -1) if network == "vgg" else range(last, 2, -2))


def off_theory(results: xr.Dataset, theory: xr.DataArray) -> float:
    """Return the root mean square deviation of mean projections from theory, over the standard error of the mean."""
    off = (results.projection - theory).mean("seed") * results.sizes["seed"]
    scatter = np.sqrt((results.scatter**2).sum("seed"))
    return float(np.sqrt(((off / scatter) ** 2).where(scatter > 1e-9).mean()))


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return how far errors in untrained networks are from theory and from wrong ones, and what training changes."""
    found: dict[str, Any] = {}
    for network, title in TITLES.items():
        cells = {kind: list(by_rank(config.cells, f"{network} / {kind}").values()) for kind in STARTS}
        if cells["random"]:
            here = results.sel(cell=cells["random"])
            name = f"{title}, random channels: root mean square deviation from theory in standard errors"
            found[name] = off_theory(here, here.theory)
            found[f"{title}: the same if cosines, not their squares, were as theory says"] = off_theory(
                here, here.theory**2
            )
            if network == "vit":
                found[f"{title}: the same without skip connections"] = off_theory(here, without_skips(here))
                stream = here.theory.sel(layer=shown_of("vit", config)).transpose("layer", "cell", "seed").values
                found[f"{title}: largest deviation of the closed form on the residual stream from theory"] = np.abs(
                    on_stream(here, config) - stream
                ).max()
        for cell in cells["random"] + cells["aligned"]:
            lowest = results.sel(cell=cell, layer=shown_of(network, config)[-1])
            found[f"{cell}: lowest error drawn"] = lowest.squared_cosine.mean()
            found[f"{cell}: theory"] = lowest.theory.mean()
        if cells["unrelated"]:
            seen = results.squared_cosine.sel(cell=cells["unrelated"]).mean(("cell", "seed")).max()
            found[f"{title}, unrelated feedback: largest squared cosine of a layer"] = seen
    for cell in config.cells:
        if _kind(cell) not in STARTS:
            ends = results.sel(cell=cell).isel(step=-1)
            found[f"{cell}: gradients at the end, mean over layers"] = ends.gradient.mean()
            found[f"{cell}: gradient of the first layer"] = ends.gradient.sel(layer=1).mean()
            found[f"{cell}: test accuracy"] = ends.test_accuracy.mean()
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: errors behind random and aligned channels, and gradients after training, by network."""
    networks = [name for name in TITLES if any(cell.startswith(name) for cell in config.cells)]
    figure = new_figure(PAGE, 0.8 + 2.3 * len(networks))
    panels = figure.subplots(len(networks), 3, squeeze=False)
    for network, (random, aligned, end), letters in zip(networks, panels, ("abc", "def"), strict=False):
        _untrained(random, results, config, f"{network} / random")
        _untrained(aligned, results, config, f"{network} / aligned")
        for rank, cell in by_rank(config.cells, f"{network} / unrelated").items():
            runs = results.squared_cosine.sel(cell=cell, layer=shown_of(network, config)).values.ravel()
            random.plot([rank] * runs.size, runs, "x", color=GREY, markersize=3, markeredgewidth=0.7, label="FA")
        random.set_yscale("log")
        random.set_ylim(1e-3, 1.3)
        random.set_ylabel(f"{TITLES[network]}\nsquared cosine of errors")
        aligned.legend(loc="lower right")
        _trained(end, results, config, network)
        for axes, letter in zip((random, aligned, end), letters, strict=True):
            panel_letter(axes, letter)
    titles = ("random channels, at the start", "aligned channels, at the start", "after training")
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title)
    drawn = [axes.get_legend_handles_labels() for row in panels for axes in (row[0], row[2])]
    lines = {label: line for some in drawn for line, label in zip(*some, strict=True)}
    words = {"theory": "theory, random channels at the start", "FA": "feedback unrelated to the weights"}
    figure.legend(
        list(lines.values()), [words.get(label, label) for label in lines], loc="outside lower center", ncols=3
    )
    return figure


def _untrained(axes: Any, results: xr.Dataset, config: Config, kind: str) -> None:
    """Draw squared cosines of errors in untrained networks by rank and layer, and theory."""
    cells, network, random = by_rank(config.cells, kind), kind.partition(" / ")[0], kind.endswith("random")
    ranks, here, names = list(cells), results.sel(cell=list(cells.values())), layers_of(network, config)
    for layer, colour in zip(shown_of(network, config), COLOURS, strict=False):
        one = here.sel(layer=layer)
        axes.plot(ranks, one.theory.median("seed"), **THEORY)
        label = None if random else names[layer - 1]
        dots(axes, ranks, one.squared_cosine.transpose("seed", "cell"), colour, label=label)
        if random and network == "vit":
            chain = without_skips(here).sel(layer=layer).median("seed")
            axes.plot(ranks, chain, **THEORY | {"linestyle": ":"}, label="the same without skip connections")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    axes.set_xlabel("rank r of all channels")


def _trained(axes: Any, results: xr.Dataset, config: Config, network: str) -> None:
    """Draw squared cosines of gradients by layer after training, and theory for random channels before it."""
    names = layers_of(network, config)
    places = np.arange(1, len(names) + 1)
    for channel, colour in alignment.CHANNELS.items():
        for rank, cell in by_rank(config.cells, f"{network} / {channel}").items():
            runs = results.gradient.isel(step=-1).sel(cell=cell, layer=places).transpose("seed", "layer")
            curves(
                axes, places, runs, colour, label=f"{channel.replace('and Kolen-Pollack', '(Q learned)')}, r = {rank}"
            )
            if (random := f"{network} / random r={rank}") in config.cells:
                axes.plot(
                    places, results.theory.sel(cell=random, layer=places).median("seed"), **THEORY, label="theory"
                )
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("squared cosine of gradients")
