r"""What a nonlinear network on real images learns through narrow error channels.

A multilayer perceptron with three hidden layers (batch normalisation, ReLU) learns to classify images. All
feedback between its layers runs through channels of rank r. Readers P are fixed ("Q only") or follow Oja's rule (on
labels at the output, on errors below); mirrors Q learn as Kolen-Pollack has it, or are fixed ("P only"). Beside them
the rules without a channel: backpropagation, Kolen-Pollack, the weight mirror, the signs of the weights, feedback
alignment and direct feedback alignment with full random matrices, and zero feedback, where no error reaches a hidden
layer. Every rule and rank takes the learning rate with the best mean accuracy on validation images, from a small grid
(the provenance file has the chosen ones); the epoch is chosen on validation too. Shown is the error on the test images.

**Theory** says nothing exact about this network. From the linear one: rank 10, the number of classes, should be
enough, and adaptive readers should do better than fixed ones below it.

**What is seen** (quick preset: the 8 x 8 digits that come with scikit-learn). The error falls with the rank and
comes close to that of backpropagation at r = 10; at r = 1 and 2 Oja's readers have the lower error, whether the
mirror learns or not. Three seeds and 360 test images (one image is .003) do not resolve more. Zero feedback is far
from chance: a readout on random features does much of the work, so it, not the dotted line, is the level to compare
with. On all of CIFAR-10 (``--preset cpu``, twenty epochs) accuracy saturates at r = 10 with an adaptive reader and a
learned mirror: .511, .545, .549, .547 at r = 5, 10, 16, 64, against .553 of backpropagation and .405 of zero feedback.
"Q only" costs .02 to .03 up to r = 16 and does not saturate there, "P only" costs .01 at r = 10. Other data: ``--data
mnist`` or ``--data cifar10`` with ``--data-root``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from figures import constrained
from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, curves, new_figure, panel_letter, strip
from figures._training import Perceptrons, adaptive_reader, perceptrons, rule_without_channel, summary

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule

FULL = (
    "backpropagation", "Kolen-Pollack", "weight mirror", "sign symmetry", "feedback alignment", "DFA", "zero feedback",
)  # fmt: skip
READERS = ("fixed P", "Oja", "P only")
CHANCE = 0.1
_LINES = {
    "backpropagation": "BP",
    "feedback alignment": "FA",
    "Kolen-Pollack": "Kolen-\nPollack",
    "weight mirror": "weight\nmirror",
    "sign symmetry": "sign\nsymm.",
    "zero feedback": "zero\nfb.",
    "fixed P": "Q only (fixed P)",
    "Oja": "Q and P (Oja)",
    "P only": "P only (fixed Q)",
}


def _cells(ranks: tuple[int, ...], of_p_only: tuple[int, ...]) -> tuple[str, ...]:
    """Return all rules without a channel, both readers at all ranks, and P alone at some of them."""
    by_reader = zip(READERS, (ranks, ranks, of_p_only), strict=True)
    return FULL + tuple(f"{reader} r={rank}" for reader, some in by_reader for rank in some)


@dataclass(frozen=True)
class Config(Perceptrons):
    """Settings of the figure; a cell is a rule, with its rank where it has a channel."""

    cells: tuple[str, ...] = _cells((1, 2, 3, 5, 10), (1, 2, 3, 5, 10))


PARTS = "cells"
QUICK = {
    "digits": Config(),
    "mnist": Config(data="mnist", widths=(128,) * 3, epochs=3, batch_size=64, train=20000, validation=0.1),
    "cifar10": Config(data="cifar10", widths=(256,) * 3, epochs=4, batch_size=128, train=20000, validation=0.1,
                      learning_rates=(3e-4, 1e-3, 3e-3)),
}  # fmt: skip
CONFIGS = {
    "quick": QUICK["digits"],
    "cpu": Config(
        cells=_cells((1, 2, 5, 10, 16, 64), (2, 10, 64)), data="cifar10", widths=(512,) * 3, epochs=20, batch_size=128,
        weight_decay=0.0, learning_rates=(2e-4, 6e-4, 2e-3, 6e-3), validation=0.1, choosing_seeds=1, choosing_epochs=4,
    ),
    "paper": Config(
        cells=_cells((1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 32, 64), (2, 10, 64)), data="cifar10", widths=(512,) * 3,
        epochs=160, learning_rates=(3e-4, 6e-4, 1.2e-3), validation=0.1,
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images: the quick one has sizes for each, the paper's only changes data."""
    return QUICK[data] if config == CONFIGS["quick"] else replace(config, data=data)


def rule_of(cell: str) -> Rule:
    """Return the rule behind a cell's name."""
    from linfb import rules
    from linfb.rules import mirrors, readers

    name, _, rank = cell.partition(" r=")
    if name in READERS:
        reader = readers.Fixed() if name == "fixed P" else adaptive_reader()
        mirror = mirrors.Fixed() if name == "P only" else mirrors.KolenPollack()
        return rules.low_rank(int(rank), reader=reader, mirror=mirror)
    return rule_without_channel(name)


def paper_of(cell: str) -> float | None:
    """Return the paper's test accuracy of a cell on CIFAR-10, if it has one: all its channels are narrow, too."""
    return constrained.paper_of(cell.replace("Oja", "all layers"))


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation accuracy at every learning rate, and test accuracy at the one chosen by it."""
    from linfb.datasets import load_dataset

    data = load_dataset(config.data, root=resources.data_root)
    splits = data.splits(train=config.train, validation=config.validation)
    return perceptrons({cell: rule_of(cell) for cell in config.cells}, splits, config, resources)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return mean test accuracies, chosen learning rates, and how many runs diverged."""
    return summary(results, config.cells)


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test error against rank, and that of the rules without a channel."""
    figure = new_figure(PAGE, 2.9)
    swept, full = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
    error = (1 - results.test_accuracy).clip(1e-3)
    ranks: set[int] = set()
    for colour, reader in zip(COLOURS, READERS, strict=False):
        by_rank = {int(cell.partition("=")[2]): cell for cell in config.cells if cell.startswith(f"{reader} r=")}
        if by_rank:
            runs = error.sel(cell=list(by_rank.values())).transpose("seed", "cell")
            curves(swept, list(by_rank), runs, colour, label=_LINES[reader])
            ranks |= set(by_rank)
    if ranks:
        swept.set_xscale("log", base=2)
        swept.set_xlim(min(ranks) / 1.15, max(ranks) * 1.15)
        swept.set_xticks(sorted(ranks), [str(rank) for rank in sorted(ranks)])
    for cell, line in (("backpropagation", "-"), ("zero feedback", (0, (4, 2)))):
        if cell in config.cells:
            level = float(error.sel(cell=cell).median())
            swept.axhline(level, color=GREY, linewidth=0.9, linestyle=line, label=f"{cell}, median")
    full_rank = [cell for cell in FULL if cell in config.cells]
    for place, cell in enumerate(full_rank):
        strip(full, place, error.sel(cell=cell).values, GREY)
    full.set_xticks(range(len(full_rank)), [_LINES.get(cell, cell) for cell in full_rank])
    for axes in (swept, full):
        axes.axhline(1 - CHANCE, color=GREY, linewidth=0.9, linestyle=":", label="chance")
        axes.set_yscale("log")
        axes.set_ylim(0.8 * float(error.min()), 1.0)
        ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9) if tick > 0.8 * float(error.min())]
        ticks = ticks if len(ticks) > 3 else [0.4, 0.5, 0.6, 0.7, 0.9]
        axes.set_yticks(ticks, [f"{tick:g}".removeprefix("0") for tick in ticks])
        axes.minorticks_off()
    swept.set_xlabel("rank r of all channels")
    swept.set_ylabel("test error")
    swept.set_title(f"{config.data}, low-dimensional feedback")
    full.set_title("rules without a channel")
    figure.legend(*swept.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    panel_letter(swept, "a")
    panel_letter(full, "b")
    return figure
