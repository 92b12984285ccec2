"""What networks that are not perceptrons learn through narrow error channels: convolutions, attention, a retina.

A network like VGG, a vision transformer and the model of retina and ventral stream learn to classify images under
backpropagation, low-rank feedback (every channel is constrained: readers follow Oja's rule, on labels at the output
and on errors below, mirrors learn as Kolen-Pollack has it), feedback alignment, and zero feedback, where no error
reaches a hidden layer. The retina, which sees the images in grey, has one rule more: a narrow optic nerve, where
only the way back from the first layer of the ventral stream into the retina is constrained. Above, the loss of every
step (a running mean over a fortieth of the steps; thin lines are seeds, thick ones medians); below, the accuracy on
the test images. Every cell takes the learning rate with the best accuracy on validation images, from a small grid;
the epoch is chosen on validation too. Runs that diverge have no accuracy; the figure and the provenance file, which
has the chosen learning rates as well, count them.

**Theory** says nothing exact about these networks. What is to be expected: a channel as wide as the number of classes
is enough for the output's error, and zero feedback, which trains a readout of random features, is the level above
which a rule has taught the hidden layers anything. Feedback alignment, whose kernels stay random, falls behind in
deep convolutional networks (:cite:t:`moskovitz2018`).

**What is seen** (cpu preset: 8,000 images of CIFAR-10, small networks, three to six epochs, two seeds; an hour on two
cores). In the VGG-like network test accuracies are .48 with backpropagation, .38 with channels of rank 10, .35 with
feedback alignment and .23 with zero feedback; in the transformer .46, .38, .31 and .28. So narrow channels teach the
hidden layers, better than fixed random feedback does, and are well behind backpropagation after so short a time, with
mirrors that start at random. In the retina a narrow optic nerve costs next to nothing (.39 against .40; zero feedback
.20), which is the paper's setting. With *all* of its channels narrow that network, which has no normalisation, runs
away: the loss leaves the frame, to some 100,000, and accuracy ends below that of zero feedback (.17). It is no
accident of the rate: a single run at 3e-4, beside the figure, ran away too (.15); with batch normalisation, at 1e-3,
it comes back (.25). The best rates of backpropagation, of feedback alignment and of channels in the transformer and
the retina were the lowest of their grids, so their accuracies may be too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, new_figure, panel_letter, strip
from figures._training import (
    Training,
    adaptive_reader,
    image_model,
    image_networks,
    other_images,
    rule_without_channel,
    summary,
)  # fmt: skip

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule
    from linfb.engine import Model

RULES = ("backpropagation", "low-rank", "narrow optic nerve", "feedback alignment", "zero feedback")
TITLES = {"vgg": "VGG-like network", "vit": "vision transformer", "retina": "retina and ventral stream"}
CURVES = ("step_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "chosen_epoch")
"""What is kept of a run."""
WINDOW = 1 / 40
"""Share of the steps over which the loss is averaged for the plot."""

_LINES = {
    "backpropagation": "BP",
    "low-rank": "low-\nrank",
    "narrow optic nerve": "narrow\nnerve",
    "feedback alignment": "FA",
    "zero feedback": "zero\nfb.",
}


def _cells() -> tuple[str, ...]:
    pairs = ((architecture, rule) for architecture in TITLES for rule in RULES)
    return tuple(" / ".join(pair) for pair in pairs if pair[0] == "retina" or pair[1] != "narrow optic nerve")


@dataclass(frozen=True)
class Ranked(Training):
    """With the rank of the low-rank rule; a mapping names every channel."""

    rank: Any = None


VGG = {
    "quick": Training(
        {"widths": (8, 16), "dense": 32, "dropout": 0.0}, epochs=6, batch_size=32, learning_rates=(3e-3, 1e-2)
    ),
    "cpu": Training(
        {"widths": (16, 32, 64), "dense": 64}, epochs=4, batch_size=64, learning_rates=(1e-3, 3e-3, 1e-2),
        augment=("crop", "flip"),
    ),
    "paper": Training(
        {}, epochs=400, batch_size=64, learning_rates=(2.5e-4, 5e-4, 1e-3), optimizer="adam", weight_decay=5e-5,
        schedule=("Exponential", 0.98), augment=("crop", "flip", "cutout"),
    ),
}  # fmt: skip
"""The VGG-like network by preset; the quick one is for images of 8 x 8 pixels."""
VIT = {
    "quick": Training(
        {"patch": 2, "width": 16, "depth": 2, "heads": 2, "dropout": 0.0, "drop_path": 0.0}, epochs=10, batch_size=32,
        learning_rates=(3e-3, 1e-2),
    ),
    "cpu": Training(
        {"patch": 4, "width": 64, "depth": 3, "heads": 4, "mlp_ratio": 2, "dropout": 0.0, "drop_path": 0.0}, epochs=6,
        batch_size=64, learning_rates=(1e-3, 3e-3, 1e-2), augment=("crop", "flip"),
    ),
    "paper": Training(
        {}, epochs=250, batch_size=256, learning_rates=(1.5e-4, 3e-4, 6e-4), weight_decay=0.1,
        schedule=("Cosine", 250, 10), augment=("crop", "flip", "autoaugment"),
    ),
}  # fmt: skip
"""The vision transformer by preset."""
RETINA = {
    "quick": Training(
        {"width": 6, "bottleneck": 6, "size": 3, "ventral": 2, "dense": 32, "dropout": 0.0}, epochs=6, batch_size=32,
        learning_rates=(3e-3, 1e-2),
    ),
    "cpu": Training(
        {"width": 8, "bottleneck": 8, "size": 5, "dense": 128}, epochs=3, batch_size=64, learning_rates=(1e-3, 3e-3)
    ),
    "paper": Training(
        {}, epochs=120, batch_size=64, learning_rates=(2e-4, 4e-4, 8e-4), optimizer="rmsprop", weight_decay=1e-4,
        schedule=("Exponential", 0.975),
    ),
}  # fmt: skip
"""The model of retina and ventral stream by preset."""


def _ranked(preset: str, vgg: Any, vit: Any, retina: Any) -> dict[str, Any]:
    """Return the three networks of a preset with the ranks of their channels."""
    ranks = {"vgg": (VGG, vgg), "vit": (VIT, vit), "retina": (RETINA, retina)}
    return {name: Ranked(**vars(networks[preset]), rank=rank) for name, (networks, rank) in ranks.items()}


_QUICK = _ranked("quick", {1: 4, 2: 8, 3: 8, 4: 10, 5: 10}, 8, {1: 4, 2: 4, 3: 4, 4: 10, 5: 10})


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is an architecture and a rule.

    The first `choosing_seeds` seeds choose the learning rate; the others run at the chosen one only. `nerve_rank` is
    the width of the channel into the retina where that is the only narrow one.
    """

    cells: tuple[str, ...] = field(default_factory=_cells)
    seeds: tuple[int, ...] = (0, 1)
    data: str = "digits"
    train: float | int | None = None
    validation: float | int = 0.2
    choosing_seeds: int = 1
    nerve_rank: int = 4
    vgg: Ranked = _QUICK["vgg"]
    vit: Ranked = _QUICK["vit"]
    retina: Ranked = _QUICK["retina"]


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        cells=tuple(cell for cell in _cells() if cell != "retina / feedback alignment"), seeds=(0, 1), data="cifar10",
        train=8000, validation=4000, **_ranked("cpu", 10, 10, {1: 4, 2: 4, 3: 4, 4: 4, 5: 10, 6: 10}),
    ),
    "paper": Config(
        seeds=(0, 1, 2, 3, 4), data="cifar10", validation=0.1,
        **_ranked("paper", {1: 8, 2: 16, 3: 16, 4: 32, 5: 32, 6: 64, 7: 64, 8: 32, 9: 10}, 48, 10),
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images; the quick one takes only some of those that are many."""
    return other_images(config, data, CONFIGS["quick"])


def rule_of(cell: str, config: Config) -> Rule:
    """Return the rule behind a cell's name."""
    from linfb import rules

    architecture, name = cell.split(" / ")
    reader = adaptive_reader()
    if name == "narrow optic nerve":
        return replace(rules.low_rank(config.nerve_rank, reader=reader), layers=(2,))
    if name == "low-rank":
        return rules.low_rank(getattr(config, architecture).rank, reader=reader)
    return rule_without_channel(name)


def model_of(architecture: str, shape: Sequence[int], n_classes: int, config: Config) -> Model:
    """Return an architecture at its sizes, for images of some shape."""
    return image_model(architecture, shape, n_classes, getattr(config, architecture).sizes)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation accuracy at every learning rate, and loss and accuracies at the one chosen by it."""
    import xarray as xr

    return xr.concat([_one_cell(cell, config, resources) for cell in config.cells], dim="cell", join="outer")


def _one_cell(cell: str, config: Config, resources: Resources) -> xr.Dataset:
    from linfb.datasets import load_dataset

    architecture = cell.split(" / ")[0]
    setting: Ranked = getattr(config, architecture)
    data = load_dataset(config.data, root=resources.data_root)
    if architecture == "retina":
        data = data.grey()
    splits = data.splits(train=config.train, validation=config.validation, layout="image")
    model = model_of(architecture, splits.shape, splits.n_classes, config)
    found = image_networks(
        {cell: rule_of(cell, config)}, model, splits, setting, resources, data.name, seeds=config.seeds,
        choosing_seeds=config.choosing_seeds, keep=CURVES,
    )  # fmt: skip
    steps = len(splits.train.x) // setting.batch_size
    return found.assign(chance=("cell", [1 / splits.n_classes]), steps_per_epoch=("cell", [steps]))


def smoothed(losses: Any, window: int) -> np.ndarray:
    """Return running means over `window` steps along the last axis, which gets window - 1 entries shorter."""
    entries = np.lib.stride_tricks.sliding_window_view(np.asarray(losses, np.float64), window, axis=-1)
    return entries.mean(axis=-1)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return mean test accuracies of the runs that ended, chosen learning rates, and how many runs diverged."""
    return summary(results, config.cells)


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: loss curves above, test accuracies below, one column per architecture."""
    columns = [name for name in TITLES if any(cell.startswith(f"{name} / ") for cell in config.cells)]
    figure = new_figure(PAGE, 4.4)
    above, below = figure.subplots(2, len(columns), squeeze=False, height_ratios=(1.25, 1))
    lines: dict[str, Any] = {}
    chance = float(results.chance[0])
    for axes, lower, name, letter in zip(above, below, columns, "abc", strict=False):
        rules = [rule for rule in RULES if f"{name} / {rule}" in config.cells]
        for rule in rules:
            cell = results.sel(cell=f"{name} / {rule}")
            losses = cell.step_loss.transpose("seed", "step").values
            lines[rule] = loss_curves(axes, losses, _colour(rule), unit=int(cell.steps_per_epoch))
        axes.set_title(TITLES[name])
        axes.set_xlabel("epoch")
        axes.set_ylim(0, min(axes.get_ylim()[1], 1.5 * np.log(1 / chance)))
        _accuracies(lower, results, name, rules)
        lower.axhline(chance, color=GREY, linewidth=0.9, linestyle=":")
        lower.set_ylim(0, 1)
        panel_letter(axes, letter)
    above[0].set_ylabel("training loss")
    below[0].set_ylabel("test accuracy")
    drawn = [rule for rule in RULES if rule in lines]
    figure.legend([lines[rule] for rule in drawn], drawn, loc="outside lower center", ncols=5)
    return figure


def _colour(rule: str) -> str:
    return COLOURS[RULES.index(rule)]


def loss_curves(axes: Any, losses: np.ndarray, colour: str, unit: int = 1) -> Any:
    """Draw running means of losses, shape (seed, step), over steps per `unit`: every seed thin, their median thick.

    The median ends where a seed does. Returns its line.
    """
    losses = losses[:, ~np.all(np.isnan(losses), axis=0)]
    steps = losses.shape[1]
    window = max(1, round(WINDOW * steps))
    runs = smoothed(losses, window) if steps else losses
    thinned = slice(None, None, max(1, steps // 400))
    place = (np.arange(runs.shape[1]) + (window + 1) / 2) / unit
    for run in runs:
        axes.plot(place[thinned], run[thinned], "-", color=colour, linewidth=0.5, alpha=0.5)
    return axes.plot(place[thinned], np.median(runs, axis=0)[thinned], "-", color=colour, linewidth=1.5)[0]


def _accuracies(axes: Any, results: xr.Dataset, name: str, rules: Sequence[str]) -> None:
    """Draw every seed of each rule as a dot, their median as a bar, and say how many of them diverged."""
    for place, rule in enumerate(rules):
        runs = results.test_accuracy.sel(cell=f"{name} / {rule}").values
        strip(axes, place, runs, _colour(rule))
        if diverged := np.count_nonzero(np.isnan(runs)):
            words = f"{diverged} of {runs.size}\ndiverged"
            axes.text(place, 0.02, words, color=_colour(rule), fontsize=7, ha="center", va="bottom")
    axes.set_xlim(-0.6, len(rules) - 0.4)
    axes.set_xticks(range(len(rules)), [_LINES[rule] for rule in rules])
