r"""Where in a convolutional network feedback may be narrow: one block or all of them, and which factors must learn.

A network like VGG learns to classify images. A block is a pair of convolutions; (a) its errors go through channels of
a half, a quarter or an eighth of the channels that a layer has, in the last block, in the second, or in all. P
reads the channels of every pixel (a 1x1 convolution), by Oja's rule over the batch and the pixels; Q is a kernel as
large as the forward one, which learns as Kolen-Pollack has it. The dense classifier above, and the blocks outside, do
backpropagation, as in the paper's public code. Beside them backpropagation and, at r = 0, zero feedback into the
same layers. No error passes the last block there, so that for the last and for all blocks this is one network.
(b) All blocks at one rank: P and Q learn, Q alone, P alone, or neither. (c) The paper's only numbers of such an
ablation, which are of *another* network (9x9 convolutions of 32 channels, batch normalisation, grey CIFAR-10; best two
runs), so that only differences compare. No numbers of the paper's VGG-like network are known. Every cell takes the
learning rate with the best accuracy on validation images, from a small grid (the quick preset has one rate); the epoch
is chosen on validation too.

**Theory** says nothing exact about this network. Where the error that a layer reads fills few dimensions, as near the
output, a narrow channel could carry it all; below, narrow channels should cost more the more of them there are.

**What is seen** (quick preset: the 8 x 8 digits that come with scikit-learn, 8 channels in every layer, seven epochs of
17 steps, two seeds, which differ by up to .15). Backpropagation has .92, zero feedback into the last block .66 and into
the second .84. With channels of 1/2, 1/4 and 1/8 of the channels the last block has .90, .77 and .59, the second .90,
.80 and .89, all blocks .80, .71 and .42. So one block may be narrowed to a half for .02, all of them cost .12, and a
single channel of eight is *worse* than no feedback where the last block has it. At 1/4 in all blocks P and Q together
have .71, Q alone .76, P alone .68 and neither .53: learning something helps, but the seeds of the first three overlap,
and an advantage of learning P too, as in the paper's network, is not seen. Mirrors start at random here and have some
hundred steps: the figure cannot tell slow mirrors from narrow channels. The presets ``cpu`` (8,000 images of CIFAR-10,
16 to 64 channels, four epochs) and ``paper`` have not been run yet.

**To vary it**: ``--set "cells=backpropagation,all blocks r=1/16,all blocks r=4"`` (a fraction of a layer's channels,
or a number of them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

from figures._run import Resources, sweeps
from figures._style import COLOURS, GREY, PAGE, curves, dots, levels, new_figure, panel_letter, published, strip
from figures._training import Training, adaptive_reader, gain_kept, image_networks, other_images, summary
from figures.networks import VGG

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule

PLACES = ("last block", "second block", "all blocks")
ABLATION = {"all blocks": "P and Q", "Q only": "Q only", "P only": "P only", "neither": "neither"}
"""What learns in all blocks, as a cell says it and as the figure does."""
NOTHING = ("zero feedback into last block", "zero feedback into second block")
PAPER: dict[str, Any] = {
    "what": "9x9 network, 32 channels, grey CIFAR-10: test accuracy at the best epoch, mean of the best two runs",
    "backpropagation": 0.843,
    "P and Q": {1: 0.716, 4: 0.767, 8: 0.810, 16: 0.834, 32: 0.841},
    "Q only": {1: 0.677, 4: 0.752, 8: 0.782, 16: 0.800, 32: 0.821},
}
"""The paper's numbers, of another network than ours."""


def _cells(ranks: tuple[str, ...], ablated: tuple[str, ...]) -> tuple[str, ...]:
    narrow = [f"{place} r={rank}" for place in PLACES for rank in ranks]
    return ("backpropagation", *NOTHING, *narrow, *(f"{name} r={r}" for name in [*ABLATION][1:] for r in ablated))


_QUICK = Training({"widths": (8, 8, 8), "dense": 32, "dropout": 0.0}, epochs=7, batch_size=64, learning_rates=(1e-2,))


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is a place, or what learns in all blocks, at a share of the channels.

    The first `choosing_seeds` seeds choose the learning rate; the others run at the chosen one only. `epochs` has those
    of the places that are trained longer or shorter than the `network` says.
    """

    cells: tuple[str, ...] = _cells(("1/2", "1/4", "1/8"), ("1/4",))
    seeds: tuple[int, ...] = (0, 1)
    data: str = "digits"
    train: float | int | None = None
    validation: float | int = 0.2
    choosing_seeds: int = 1
    network: Training = _QUICK
    epochs: Mapping[str, int] = field(default_factory=dict)


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        cells=_cells(("1/2", "1/4", "1/8"), ("1/2", "1/4", "1/8")), data="cifar10", train=8000, validation=4000,
        network=VGG["cpu"],
    ),
    "paper": Config(
        cells=_cells(("1/2", "1/4", "1/8"), ("1/2", "1/4", "1/8")), seeds=tuple(range(10)), data="cifar10",
        validation=0.1, network=VGG["paper"], epochs={"last block": 200, "second block": 180},
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images; the quick one takes only some of those that are many."""
    return other_images(config, data, CONFIGS["quick"])


def layers_of(cell: str, n_convolutions: int) -> tuple[int, ...]:
    """Return the kernel layers with a channel; those of the classifier have none, nor has the first layer."""
    if "last block" in cell:
        return n_convolutions - 2, n_convolutions - 1
    return (2, 3) if "second block" in cell else tuple(range(1, n_convolutions))


def rule_of(cell: str, n_convolutions: int) -> Rule:
    """Return the rule behind a cell's name."""
    from linfb import rules
    from linfb._checks import choice
    from linfb.rules import mirrors, readers

    name, _, rank = cell.partition(" r=")
    layers = layers_of(name, n_convolutions)
    if not rank:
        if choice("cell", name, ("backpropagation", *NOTHING)) == "backpropagation":
            return rules.backpropagation()
        return rules.zero_feedback(layers=layers)
    choice("cell", name, (*PLACES, *ABLATION))
    share = Fraction(rank)
    return rules.low_rank(
        int(share) if share.denominator == 1 else float(share), layers=layers,
        reader=readers.Fixed() if name in ("Q only", "neither") else adaptive_reader(),
        mirror=mirrors.Fixed() if name in ("P only", "neither") else None,
    )  # fmt: skip


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation accuracy at every learning rate, and test accuracy at the one chosen by it."""
    import xarray as xr

    from linfb.datasets import load_dataset
    from linfb.engine.architectures import vgg_like

    data = load_dataset(config.data, root=resources.data_root)
    splits = data.splits(train=config.train, validation=config.validation, layout="image")
    model = vgg_like(splits.shape, splits.n_classes, **config.network.sizes)
    train = partial(
        image_networks, model=model, splits=splits, resources=resources, name=data.name, seeds=config.seeds,
        choosing_seeds=config.choosing_seeds, keep=("test_accuracy", "chosen_epoch"),
    )  # fmt: skip
    found = []
    for name, cells in sweeps(config.cells).items():
        epochs = next((number for place, number in config.epochs.items() if place in name), config.network.epochs)
        rules = {cell: rule_of(cell, len(model.kernels) - 2) for cell in cells}
        found.append(train(rules, setting=replace(config.network, epochs=epochs)))
    return xr.concat(found, dim="cell", join="outer")


def nothing_beside(cell: str) -> str:
    """Return the zero feedback into the layers that a cell narrows."""
    return NOTHING[1] if "second block" in cell else NOTHING[0]


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return mean test accuracies, chosen learning rates, runs that diverged, and what channels keep of learning."""
    return summary(results, config.cells) | gain_kept(results, config.cells, nothing_beside)


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test accuracy against the share of channels, what has to learn, and the paper's ablation."""
    figure = new_figure(PAGE, 3.1)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1.1, 1))
    accuracy = results.test_accuracy.transpose("seed", "cell")
    narrow = [cell for cell in config.cells if "r=" in cell]
    ranks = sorted({_rank(cell) for cell in narrow}, key=lambda rank: (rank >= 1, rank))
    for place, colour in zip(PLACES, COLOURS, strict=False):
        cells = sorted((cell for cell in narrow if cell.startswith(place)), key=lambda cell: ranks.index(_rank(cell)))
        if cells:
            curves(
                left, [ranks.index(_rank(cell)) + 1 for cell in cells], accuracy.sel(cell=cells), colour, label=place
            )
    for nothing, colour in zip(NOTHING, (GREY, COLOURS[1]), strict=True):
        if nothing in config.cells:
            dots(left, [0], accuracy.sel(cell=[nothing]), colour)
    left.set_xticks(range(len(ranks) + 1), ["0", *map(str, ranks)])
    left.set_xlabel("rank / channels of a layer")
    left.set_ylabel("test accuracy")
    left.set_title(f"narrow blocks ({config.data})")

    shares = {_rank(cell) for cell in narrow if not cell.startswith(PLACES)}
    ablated = [cell for cell in narrow if not cell.startswith(PLACES[:2]) and _rank(cell) in shares]
    for i, cell in enumerate(ablated):
        name = cell.partition(" r=")[0]
        strip(middle, i, accuracy.sel(cell=cell).values, COLOURS[2 + list(ABLATION).index(name)])
    names = [f"{ABLATION[cell.partition(' r=')[0]]}\n{_rank(cell)}" for cell in ablated]
    middle.set_xticks(range(len(ablated)), names)
    middle.sharey(left)
    middle.set_title("what learns in all blocks")
    for axes in (left, middle):
        levels(axes, accuracy, config.cells, NOTHING[0])

    for name, colour in (("P and Q", COLOURS[2]), ("Q only", COLOURS[3])):
        published(right, PAPER[name], None, colour, "")
        right.plot(list(PAPER[name]), list(PAPER[name].values()), ":", color=colour, linewidth=0.9, label=name)
    right.axhline(PAPER["backpropagation"], color=GREY, linewidth=1.1)
    right.set_xscale("log", base=2)
    right.set_xticks(list(PAPER["Q only"]), list(map(str, PAPER["Q only"])))
    right.set_xlabel("rank (of 32)")
    right.set_title("the paper's, of another network")
    right.legend(loc="lower right")
    for axes, letter in zip((left, middle, right), "abc", strict=True):
        panel_letter(axes, letter)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure


def _rank(cell: str) -> Fraction:
    return Fraction(cell.partition("=")[2])
