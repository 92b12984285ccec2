r"""How narrow feedback may be in a vision transformer: accuracy against rank.

A vision transformer learns to classify images with channels of rank r into the input of every layer: 3r for queries,
keys and values together, at the output no more than there are classes; the patch embedding, which hands on no error,
learns from what reaches it. Two ways to make the channels: the normative rule of the paper's later version, in which
Q P descends to the best approximation of the transposed weights by an optimiser of its own and starts again from
their singular value decomposition every half epoch; and that of the figures of perceptrons, in which readers follow
Oja's rule (on labels at the output, on errors below) and mirrors, which start at random, learn as Kolen-Pollack has it.
The first looks at the weights, the second does not. At r = 0 is zero feedback, where no error reaches a hidden layer.
Every cell takes the learning rate with the best accuracy on validation images; accuracies are those of the *last*
epoch, as in the paper.

**Theory** says nothing exact about this network. Were the error of ten classes all that counts, rank 10 would do
everywhere; attention mixes positions, though, and every token has an error of its own.

**The paper's numbers** (in the provenance of every preset): test accuracy on CIFAR-10 after 250 epochs, width 384,
depth 8, five runs.

================ ===== ===== ===== ===== ===== ===== ===== =====
rank             16    20    24    32    36    40    48    64
================ ===== ===== ===== ===== ===== ===== ===== =====
normative        .8940 .8986 .9023 .9077 .9074 .9094 .9126 .9108
================ ===== ===== ===== ===== ===== ===== ===== =====

Backpropagation has .9134 (s.d. .0013). They are drawn as open markers in (b), which compares networks of different
widths: the accuracy lost against backpropagation, over r by the width; and in (a) where the images are those of
CIFAR-10. The preset ``paper`` has the paper's settings, but that a tenth of the training images chooses the learning
rate from three about the paper's, and that the schedule acts on the rates of P and Q as well.

**What is seen** (quick preset: the 8 x 8 digits that come with scikit-learn in four patches, tokens of 16 features, two
blocks, twelve epochs, two seeds). Backpropagation has .95, zero feedback .69. The normative rule has .65, .76, .89 and
.94 at r = 1, 2, 4 and 8, Oja's .59, .68, .82 and .82. So a channel of half the width that follows the weights loses
nothing that two seeds could show, one of a quarter .05; r = 1 is no better than no feedback; and learning mirrors,
which start at random and do not look at the weights, are behind at every rank after so few steps. At the same share of
the width the paper's network loses far less, .01 at a sixteenth, where ours is at the level of zero feedback: the share
alone does not say what is enough; whether that is for its width, its training or its images, two such different
networks cannot tell. The presets ``cpu`` (8,000 images of CIFAR-10, width 64, six epochs) and ``paper`` have not been
run yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from figures._run import Resources, sweeps
from figures._style import (
    COLOURS,
    GREY,
    PAGE,
    ZERO,
    curves,
    dots,
    error_scale,
    levels,
    new_figure,
    panel_letter,
    published,
    published_level,
    rank_axis,
)  # fmt: skip
from figures._training import (
    Training,
    adaptive_reader,
    gain_kept,
    image_networks,
    last_accuracy,
    minus_published,
    other_images,
    published_of,
    rule_without_channel,
    summary,
)  # fmt: skip
from figures.networks import VIT

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule

SWEEPS = ("normative", "Oja")
PROTOCOL, WIDTH, SPREAD = "test accuracy, last epoch", 384, 0.0013
PAPER: dict[str, Any] = {
    PROTOCOL: {
        "backpropagation": 0.9134,
        "normative": {16: 0.8940, 20: 0.8986, 24: 0.9023, 32: 0.9077, 36: 0.9074, 40: 0.9094, 48: 0.9126, 64: 0.9108},
    },
    "width": WIDTH,
    "standard deviation": {"backpropagation": SPREAD},
}
"""The paper's numbers on CIFAR-10; they go into the provenance of every preset."""


def _cells(ranks: tuple[int, ...]) -> tuple[str, ...]:
    return ("backpropagation", "zero feedback", *(f"{sweep} r={rank}" for sweep in SWEEPS for rank in ranks))


_QUICK = replace(VIT["quick"], sizes={**VIT["quick"].sizes, "patch": 4}, epochs=12, batch_size=64)


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is a rule, with its rank where it has channels.

    The first `choosing_seeds` seeds choose the learning rate; the others run at the chosen one only. `feedback_rate` is
    the learning rate of P and Q under the normative rule, which has no weight decay there.
    """

    cells: tuple[str, ...] = _cells((1, 2, 4, 8))
    seeds: tuple[int, ...] = (0, 1)
    data: str = "digits"
    train: float | int | None = None
    validation: float | int = 0.2
    choosing_seeds: int = 1
    feedback_rate: float = 0.015
    network: Training = _QUICK


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        cells=_cells((1, 4, 10, 24, 48)), data="cifar10", train=8000, validation=4000, network=VIT["cpu"],
    ),
    "paper": Config(
        cells=_cells((4, 10, *PAPER[PROTOCOL]["normative"])), seeds=(0, 1, 2, 3, 4), data="cifar10", validation=0.1,
        network=VIT["paper"],
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images; the quick one takes only some of those that are many."""
    return other_images(config, data, CONFIGS["quick"])


def rule_of(cell: str, half_epoch: int) -> Rule:
    """Return the rule behind a cell's name; the normative one starts again every so many steps."""
    from linfb import rules
    from linfb._checks import choice

    sweep, _, rank = cell.partition(" r=")
    if not rank:
        return rule_without_channel(cell)
    if choice("sweep", sweep, SWEEPS) == "normative":
        return rules.normative(int(rank), restart_every=half_epoch)
    return rules.low_rank(int(rank), reader=adaptive_reader())


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation accuracy at every learning rate, and test accuracy at the one chosen by it."""
    import xarray as xr

    from linfb.datasets import load_dataset
    from linfb.engine import Optimizers, optimisers
    from linfb.engine.architectures import vit

    data, setting = load_dataset(config.data, root=resources.data_root), config.network
    splits = data.splits(train=config.train, validation=config.validation, layout="image")
    model = vit(splits.shape, splits.n_classes, **setting.sizes)
    half_epoch = max(1, len(splits.train.x) // setting.batch_size // 2)
    make = getattr(optimisers, setting.optimizer)
    feedback = make(config.feedback_rate, weight_decay=0.0)
    found = [
        image_networks(
            {cell: rule_of(cell, half_epoch) for cell in cells}, model, splits, setting, resources, data.name,
            optimizer=(lambda rate: Optimizers(make(rate, weight_decay=setting.weight_decay), feedback, feedback))
            if sweep == "normative" else None,
            seeds=config.seeds, choosing_seeds=config.choosing_seeds, score=last_accuracy, weights="last",
            keep=("test_accuracy", "chosen_epoch"),
        )
        for sweep, cells in sweeps(config.cells).items()
    ]  # fmt: skip
    return xr.concat(found, dim="cell", join="outer")


def paper_of(cell: str) -> float | None:
    """Return the paper's test accuracy of a cell on CIFAR-10, if it has one."""
    return published_of(cell, PAPER[PROTOCOL])


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return mean test accuracies, chosen rates, runs that diverged, what channels keep, how far the paper's are."""
    found = summary(results, config.cells)
    kept = gain_kept(results, config.cells, lambda cell: "zero feedback")
    return found | kept | (minus_published(found, PAPER[PROTOCOL]) if config.data == "cifar10" else {})


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test accuracy against rank, and what is lost against rank over width, ours and the paper's."""
    figure = new_figure(PAGE, 3.0)
    left, right = figure.subplots(1, 2)
    accuracy, paper = results.test_accuracy.clip(max=0.999), PAPER[PROTOCOL]
    width = config.network.sizes.get("width", WIDTH)
    top = accuracy.sel(cell="backpropagation").mean() if "backpropagation" in config.cells else None
    shown = {1}
    for sweep, colour in zip(SWEEPS, COLOURS, strict=False):
        cells = {int(cell.partition("=")[2]): cell for cell in config.cells if cell.startswith(f"{sweep} r=")}
        shown |= set(cells)
        if cells:
            runs = accuracy.sel(cell=list(cells.values())).transpose("seed", "cell")
            curves(left, list(cells), runs, colour, label=sweep)
            if top is not None:
                curves(right, [rank / width for rank in cells], top - runs, colour)
    if "zero feedback" in config.cells:
        dots(left, [ZERO], accuracy.sel(cell=["zero feedback"]).transpose("seed", "cell"), GREY)
    levels(left, accuracy, config.cells)
    if config.data == "cifar10":
        published(left, paper["normative"], None, COLOURS[0], "")
        published_level(left, paper["backpropagation"], SPREAD)
    lost = {rank / WIDTH: paper["backpropagation"] - value for rank, value in paper["normative"].items()}
    published(right, lost, None, COLOURS[0], "paper, normative (CIFAR-10)")
    right.axhspan(-SPREAD, SPREAD, color=GREY, alpha=0.25, linewidth=0)
    rank_axis(left.xaxis, shown)
    error_scale(left, accuracy)
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter(lambda share, _: str(Fraction(share).limit_denominator(1024)))
    right.set_title("beside the paper's")
    left.set_xlabel("rank r")
    left.set_ylabel("test accuracy, last epoch")
    left.set_title(config.data)
    right.set_xlabel("rank / width of a token")
    right.set_ylabel("lost against backpropagation")
    for axes, letter in zip((left, right), "ab", strict=True):
        panel_letter(axes, letter)
    lines = {
        label: line for axes in (left, right) for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=5)
    return figure
