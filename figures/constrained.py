r"""Where in a nonlinear network feedback may be narrow: one layer, all layers, and the direct form, against rank.

A perceptron with three hidden layers (batch normalisation, ReLU) learns to classify images. (a) The feedback into one
hidden layer runs through a channel of rank r, that into the others through channels of full rank. (b) All channels
have rank r; beside them an unconstrained narrow network, with r units in every hidden layer. (c) The direct form, in
which every hidden layer hears one error of the network, that of the output or of the last hidden layer, through a
channel of rank r. Readers follow Oja's rule (on labels at the output, on errors below), mirrors learn as
Kolen-Pollack has it. The baseline of every panel is zero feedback, which is drawn at r = 0: no error reaches a hidden
layer or, in (a), the one layer and those below it (there the layers above do backpropagation). Every cell takes the
learning rate with the best mean accuracy on validation images, from a small grid; the epoch is chosen on validation
too.

"The others at full rank" can mean two things. In the paper's public code the other layers carry errors through
matrices P and Q of their own, which learn by the same rule at rank 512 (10 at the output), not through the transposed
weights; so it is here. ``others="backpropagation"`` is the other meaning. The narrow network does backpropagation
here; in that code it has full-rank matrices of its own. That code's direct form sends the error of the last hidden
layer.

**Theory** says nothing exact about this network. From the linear one: rank 10, the number of classes, should be
enough anywhere, since the error at the output has no more dimensions; a narrow network of that width is another
matter.

**The paper's numbers** (in the provenance of every preset), drawn as open markers where the images are those of
CIFAR-10: test accuracy at the *best test* epoch of 160 (150 where all layers are constrained), ten runs (five for the
direct form).

================================ ==== ==== ==== ==== ==== ==== ==== ==== ==== ===== ===== ===== =====
rank                             1    2    3    4    5    6    7    8    9    10    16    32    64
================================ ==== ==== ==== ==== ==== ==== ==== ==== ==== ===== ===== ===== =====
into hidden layer 1              .558 .590 .599 .605 .610 .611 .617 .620      .6263 .6276 .6284
into hidden layer 2              .539 .573 .586 .596 .602 .610 .612 .617      .6242 .6256 .6279
into hidden layer 3              .473 .541 .569 .587 .598 .609 .615 .623      .6289
all layers (s.d. .0025)                                                       .6184 .6213 .6242 .6287
narrow network                                                                                  .5810
direct from last hidden          .359 .492 .547 .573 .588 .598 .603 .614 .620 .6208
================================ ==== ==== ==== ==== ==== ==== ==== ==== ==== ===== ===== ===== =====

Backpropagation has .6275 (s.d. .0020). Our epoch is chosen on validation images, and so is a little worse by design.
The preset ``paper`` has the other settings of the paper, its clipping of errors included.

**What is seen** (quick preset: the 8 x 8 digits that come with scikit-learn, 32 units in every hidden layer, ten
epochs, three seeds, 360 test images, of which one is .003). Backpropagation has .977, zero feedback .72. One narrow
channel costs the more the nearer it is to the output: mean accuracies at r = 1 are .93, .88 and .84 into hidden
layers 1, 2 and 3, at r = 10 all are .96 to .97. Into layers 1 and 2, r = 1 is no better than no feedback at all (.94
and .88, the layers above doing backpropagation): what is below a channel that narrow might as well be left alone.
With all layers narrow .83, .90, .96 and .96 at r = 1, 2, 5 and 10; a network of as many units has .21, .46, .88 and
.94. So it is the way back that may be narrow, not the network. In the direct form the error of the last hidden layer
does better than that of the output at r = 1 to 5 (.76 against .56 at r = 1, the latter *below* zero feedback), and as
well at r = 10 (.96).

**To vary it**: ``--data mnist`` or ``--data cifar10`` with ``--data-root``; ``--preset cpu`` is CIFAR-10 with 20
epochs of 160, batches of 128 and three seeds of ten, without augmentation; it has not been run yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from figures._run import Resources
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
    Perceptrons,
    adaptive_reader,
    minus_published,
    perceptrons,
    published_of,
    rule_without_channel,
    summary,
)  # fmt: skip

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule

PANELS = {
    "one layer constrained": ("into hidden layer 1", "into hidden layer 2", "into hidden layer 3"),
    "all layers constrained": ("all layers", "narrow network"),
    "direct form": ("direct from output", "direct from last hidden"),
}
"""The sweeps of every panel, by its title."""
WITHOUT = {"into hidden layer 1": "zero feedback into 1", "into hidden layer 2": "zero feedback into 2"}
"""What the rank 0 of a sweep is, where that is not zero feedback in the whole network."""
CLASSES = 10

_FIRST = (1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 32)
PROTOCOL = "test accuracy, best test epoch"
SPREAD = {"backpropagation": 0.0020, "all layers": 0.0025}
PAPER: dict[str, Any] = {
    PROTOCOL: {
        "backpropagation": 0.6275,
        "into hidden layer 1": dict(zip(_FIRST, (0.558, 0.590, 0.599, 0.605, 0.610, 0.611, 0.617, 0.620, 0.6263, 0.6276,
                                                 0.6284), strict=True)),
        "into hidden layer 2": dict(zip(_FIRST, (0.539, 0.573, 0.586, 0.596, 0.602, 0.610, 0.612, 0.617, 0.6242, 0.6256,
                                                 0.6279), strict=True)),
        "into hidden layer 3": dict(zip(_FIRST[:9], (0.473, 0.541, 0.569, 0.587, 0.598, 0.609, 0.615, 0.623, 0.6289),
                                        strict=True)),
        "all layers": {10: 0.6184, 16: 0.6213, 32: 0.6242, 64: 0.6287},
        "narrow network": {64: 0.5810},
        "direct from last hidden": dict(enumerate((0.3585, 0.4923, 0.5466, 0.5732, 0.5882, 0.5979, 0.6030, 0.6138,
                                                   0.6203, 0.6208), start=1)),
    },
    "standard deviation": SPREAD,
}  # fmt: skip
"""The paper's numbers on CIFAR-10; they go into the provenance of every preset."""


def _cells(ranks: tuple[int, ...], of_all: tuple[int, ...]) -> tuple[str, ...]:
    """Return all cells: one layer and the direct form at some ranks, all layers and the narrow network at others."""
    cells = ["backpropagation", "zero feedback", *WITHOUT.values()]
    for title, sweeps in PANELS.items():
        for sweep in sweeps:
            most = CLASSES if sweep in ("into hidden layer 3", "direct from output") else max(of_all)
            some = of_all if title == "all layers constrained" else ranks
            cells += [f"{sweep} r={rank}" for rank in some if rank <= most]
    return tuple(cells)


@dataclass(frozen=True)
class Config(Perceptrons):
    """Settings of the figure; a cell is a rule without a channel, or a sweep at a rank.

    `others` is what the layers that are not constrained do: "full rank" or "backpropagation". `all_layers` has the
    number of epochs and the factor on the learning rate per epoch where all layers are constrained, if they are others.
    """

    cells: tuple[str, ...] = _cells((1, 2, 5, 10), (1, 2, 5, 10))
    widths: tuple[int, ...] = (32, 32, 32)
    epochs: int = 10
    learning_rates: tuple[float, ...] = (3e-3, 1e-2)
    others: str = "full rank"
    all_layers: tuple[int, float] | None = None


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        cells=_cells((1, 2, 5, 10, 16), (1, 2, 5, 10, 16, 64)), data="cifar10", widths=(512,) * 3, epochs=20,
        batch_size=128, weight_decay=0.0, learning_rates=(2e-4, 6e-4, 2e-3), validation=0.1, choosing_seeds=1,
        choosing_epochs=4,
    ),
    "paper": Config(
        cells=_cells(_FIRST, (1, 2, 4, 8, 10, 16, 32, 64)), data="cifar10", seeds=tuple(range(10)), widths=(512,) * 3,
        epochs=160, all_layers=(150, 0.98), learning_rates=(3e-4, 6e-4, 1.2e-3), weight_decay=4e-4, decay="coupled",
        validation=0.1, augment=("flip", "rotation 10"), error_clip=1.0,
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images; the quick one takes only some of those that are many."""
    if config == CONFIGS["quick"] and data != "digits":
        return replace(config, data=data, train=4000, validation=1000, batch_size=64)
    return replace(config, data=data)


def rule_of(cell: str, config: Config) -> Rule:
    """Return the rule behind a cell's name."""
    from linfb import rules
    from linfb._checks import choice

    sweep, _, number = cell.partition(" r=")
    if sweep == "narrow network":
        return rules.backpropagation()
    if sweep in WITHOUT.values():
        return rules.zero_feedback(layers=(int(sweep[-1]),))
    if not number:
        return rule_without_channel(cell)
    rank, reader = int(number), adaptive_reader()
    if sweep == "all layers":
        return rules.low_rank(rank, reader=reader)
    if sweep.startswith("direct"):
        return rules.direct_low_rank(rank, source="hidden" if "hidden" in sweep else "network", reader=reader)
    layer = int(sweep[-1])
    if choice("others", config.others, ("full rank", "backpropagation")) == "backpropagation":
        return rules.low_rank(rank, reader=reader, layers=(layer,))
    full = dict(enumerate((*config.widths, CLASSES)))
    return rules.low_rank({read: full[read] for read in full if read} | {layer: rank}, reader=reader)


def setting_of(cell: str, config: Config) -> Config:
    """Return how a cell is trained: narrow networks have fewer units, channels in all layers perhaps other epochs."""
    sweep, _, rank = cell.partition(" r=")
    if sweep == "narrow network":
        return replace(config, widths=(int(rank),) * len(config.widths))
    if sweep == "all layers" and config.all_layers is not None:
        return replace(config, epochs=config.all_layers[0], lr_decay=config.all_layers[1])
    return config


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation accuracy at every learning rate, and test accuracy at the one chosen by it."""
    import xarray as xr

    from linfb.datasets import load_dataset

    data = load_dataset(config.data, root=resources.data_root)
    splits = data.splits(train=config.train, validation=config.validation)
    alike: dict[Config, dict[str, Rule]] = {}
    for cell in config.cells:
        alike.setdefault(setting_of(cell, config), {})[cell] = rule_of(cell, config)
    found = [perceptrons(rules, splits, setting, resources) for setting, rules in alike.items()]
    return xr.concat(found, dim="cell", join="outer").sel(cell=list(config.cells))


def paper_of(cell: str) -> float | None:
    """Return the paper's test accuracy of a cell on CIFAR-10, if it has one."""
    return published_of(cell, PAPER[PROTOCOL])


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return mean test accuracies, chosen learning rates, how many runs diverged, and how far the paper's are."""
    found = summary(results, config.cells)
    return found | (minus_published(found, PAPER[PROTOCOL]) if config.data == "cifar10" else {})


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test accuracy against rank, one panel for every kind of constraint."""
    figure = new_figure(PAGE, 3.3)
    panels = figure.subplots(1, 3, sharey=True)
    accuracy, colours = results.test_accuracy.clip(max=0.999), iter(COLOURS)
    for axes, letter, (title, sweeps) in zip(panels, "abc", PANELS.items(), strict=True):
        shown = {1}
        for sweep, colour in zip(sweeps, colours, strict=False):
            cells = {int(cell.partition("=")[2]): cell for cell in config.cells if cell.startswith(f"{sweep} r=")}
            if not cells:
                continue
            shown |= set(cells)
            curves(axes, list(cells), accuracy.sel(cell=list(cells.values())).transpose("seed", "cell"), colour,
                   label=sweep)  # fmt: skip
            if (nothing := WITHOUT.get(sweep, "zero feedback")) in config.cells and sweep != "narrow network":
                dots(axes, [ZERO], accuracy.sel(cell=[nothing]).transpose("seed", "cell"),
                     colour if sweep in WITHOUT else GREY)  # fmt: skip
            if config.data == "cifar10" and sweep in PAPER[PROTOCOL]:
                published(axes, PAPER[PROTOCOL][sweep], SPREAD.get(sweep), colour, "paper, best test epoch")
        levels(axes, accuracy, config.cells)
        if config.data == "cifar10":
            published_level(axes, PAPER[PROTOCOL]["backpropagation"], SPREAD["backpropagation"])
        rank_axis(axes.xaxis, shown)
        axes.set_title(title)
        panel_letter(axes, letter)
    panels[1].set_xlabel("rank r (of the narrow network: units in every hidden layer)")
    panels[0].set_ylabel("test accuracy")
    error_scale(panels[0], accuracy)
    panels[0].annotate(config.data, (0.98, 0.04), xycoords="axes fraction", ha="right", fontsize=7)
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=4)
    return figure
