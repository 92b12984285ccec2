r"""How wide feedback must be for a number of classes.

Perceptrons with three hidden layers learn to tell apart the first few classes of a set of images. All feedback
between their layers runs through channels of rank r, up to the number of classes; readers follow Oja's rule (on
labels at the output, on errors below), mirrors learn as Kolen-Pollack has it. (a) Test accuracy above chance, as a
share of that of backpropagation with the same seed. Rank 0 is zero feedback, where no error reaches a hidden layer.
(b) The smallest rank of the sweep at which that share is at least .95, against the number of classes: every seed is a
dot (side by side), their median, if any, a bar; triangles are seeds for which no rank of the sweep is enough. Every
cell takes the learning rate with the best mean accuracy on validation images, from a small grid; the epoch is chosen
on validation too.

**Theory.** The error at the output of C classes has C - 1 dimensions, so a channel of that rank carries all of it. A
narrower one is enough where a few directions hold most of the error, or where features that nothing has taught are
good enough already; nothing exact is known about this network.

**The paper** trains on the first 50, 75 and 100 classes of CIFAR-100 (100 epochs, five runs) and finds that a rank of
about the number of classes is needed; no numbers of that figure are known to us. The grey line is r = C.

**What is seen** (quick preset: the 8 x 8 digits that come with scikit-learn, 32 units in every hidden layer, ten
epochs, three seeds). The smallest sufficient rank grows with the number of classes, from 1 of 3 and 5 classes over 2
of 7 to 5 of 10 (medians), and stays below it: digits are easy, and zero feedback alone has 70 to 82 % of
backpropagation's accuracy above chance. Its numbers depend on the threshold and on the ranks of the sweep, and are
those of this task.

**To vary it**: ``--data mnist`` or ``--data cifar10`` for subsets of their ten classes. ``--preset cpu`` takes 25,
50, 75 and 100 classes of CIFAR-100 for 15 epochs of 100 in batches of 128, three seeds of five, without augmentation;
where the folder holds an incomplete CIFAR-100 the figure says so, and shows a trend only. It has not been run yet.
``--preset paper`` has the paper's settings and refuses an incomplete CIFAR-100.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, ZERO, curves, dots, new_figure, panel_letter, rank_axis
from figures._training import Perceptrons, adaptive_reader, perceptrons, rule_without_channel, summary

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule
    from linfb.datasets import Dataset

SHARE = 0.95
"""Of backpropagation's accuracy above chance: what a rank has to reach."""


def _cells(numbers: tuple[int, ...], ranks: tuple[int, ...]) -> tuple[str, ...]:
    """Return backpropagation, zero feedback and channels of ranks up to it, for every number of classes."""
    cells = []
    for number in numbers:
        some = [f"low-rank r={rank}" for rank in ranks if rank <= number]
        cells += [f"{number} classes / {rule}" for rule in ("backpropagation", "zero feedback", *some)]
    return tuple(cells)


@dataclass(frozen=True)
class Config(Perceptrons):
    """Settings of the figure; a cell is a number of classes and a rule.

    `complete` says that an incomplete copy of CIFAR-100 is refused.
    """

    cells: tuple[str, ...] = _cells((3, 5, 7, 10), (1, 2, 3, 5, 7, 10))
    widths: tuple[int, ...] = (32, 32, 32)
    epochs: int = 10
    learning_rates: tuple[float, ...] = (3e-3, 1e-2)
    complete: bool = False


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        cells=_cells((25, 50, 75, 100), (1, 2, 5, 10, 25, 50, 75, 100)), data="cifar100", widths=(512,) * 3, epochs=15,
        batch_size=128, weight_decay=0.0, learning_rates=(2e-4, 6e-4, 2e-3), validation=0.1, choosing_seeds=1,
        choosing_epochs=4,
    ),
    "paper": Config(
        cells=_cells((50, 75, 100), (1, 2, 4, 8, 16, 32, 50, 64, 75, 100)), data="cifar100", seeds=(0, 1, 2, 3, 4),
        widths=(512,) * 3, epochs=100, learning_rates=(3e-4, 6e-4, 1.2e-3), weight_decay=4e-4, decay="coupled",
        validation=0.1, augment=("flip", "rotation 5"), error_clip=1.0, complete=True,
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images, all of which have ten classes: only the quick one knows so few."""
    if config != CONFIGS["quick"]:
        raise ValueError(
            f"data must be CIFAR-100 in this preset of classes, whose subsets have up to 100, got {data!r}"
        )
    return config if data == "digits" else replace(config, data=data, train=4000, validation=1000, batch_size=64)


def number_of(cell: str) -> int:
    """Return the number of classes of a cell."""
    return int(cell.partition(" ")[0])


def rule_of(cell: str) -> Rule:
    """Return the rule behind a cell's name."""
    from linfb import rules

    name, _, rank = cell.partition(" / ")[2].partition(" r=")
    return rules.low_rank(int(rank), reader=adaptive_reader()) if rank else rule_without_channel(name)


def images_of(config: Config, resources: Resources) -> Dataset:
    """Return all images, or raise a ValueError if those of CIFAR-100 are incomplete and must not be."""
    from linfb.datasets import load_dataset

    data = load_dataset(config.data, root=resources.data_root)
    if config.complete and data.name.endswith("subset"):
        raise ValueError(
            f"complete=True (preset paper) needs all of CIFAR-100, 500 training images a class, but the folder holds "
            f"{len(data.train_labels) // data.n_classes} a class: name another with --data-root or LINFB_DATA, or take "
            f"the preset cpu, which shows the trend only"
        )
    return data


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation accuracy at every learning rate, and test accuracy at the one chosen by it."""
    import xarray as xr

    data, found = images_of(config, resources), []
    for number in dict.fromkeys(map(number_of, config.cells)):
        rules = {cell: rule_of(cell) for cell in config.cells if number_of(cell) == number}
        subset = data.classes(number)
        train = None if config.train is None else config.train * number // data.n_classes
        held = config.validation if config.validation < 1 else config.validation * number // data.n_classes
        splits = subset.splits(train=train, validation=held)
        runs = perceptrons(rules, splits, config, resources)
        found.append(runs.assign(images_per_class=("cell", [len(subset.train_labels) / number] * len(rules))))
    joined = xr.concat(found, dim="cell", join="outer").sel(cell=list(config.cells))
    return joined.assign(incomplete=("cell", [data.name.endswith("subset")] * len(config.cells)))


def shares(results: xr.Dataset, config: Config) -> dict[int, xr.DataArray]:
    """Return, by number of classes, shares of backpropagation's accuracy above chance by seed and rank.

    Rank 0 is zero feedback.
    """
    found = {}
    for number in dict.fromkeys(map(number_of, config.cells)):
        above = results.test_accuracy - 1 / number
        swept = [cell for cell in config.cells if cell.startswith(f"{number} classes / low-rank r=")]
        ranked = {0: f"{number} classes / zero feedback"} | {int(cell.partition("=")[2]): cell for cell in swept}
        share = above.sel(cell=list(ranked.values())) / above.sel(cell=f"{number} classes / backpropagation", drop=True)
        found[number] = share.rename(cell="rank").assign_coords(rank=list(ranked)).transpose("seed", "rank")
    return found


def minimal_ranks(shares: xr.DataArray) -> np.ndarray:
    """Return each seed's smallest rank with a share of at least `SHARE`, infinite where there is none."""
    enough = shares.transpose("seed", "rank").sortby("rank") >= SHARE
    return np.where(enough.any("rank"), enough["rank"].values[enough.values.argmax(axis=1)], np.inf)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return the smallest ranks that suffice (medians), mean accuracies, learning rates, and how many runs diverged."""
    medians = {number: float(np.median(minimal_ranks(share))) for number, share in shares(results, config).items()}
    found = {
        f"smallest rank that suffices, {number} classes": rank for number, rank in medians.items() if rank < np.inf
    }
    return found | summary(results, config.cells)


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: shares of backpropagation's accuracy against rank, and the smallest ranks that suffice."""
    figure = new_figure(PAGE, 3.0)
    curve, smallest = figure.subplots(1, 2, width_ratios=(1.3, 1))
    by_number = shares(results, config)
    ranks = sorted({int(rank) for share in by_number.values() for rank in share["rank"].values if rank})
    for place, (colour, (number, share)) in enumerate(zip(COLOURS, by_number.items(), strict=False)):
        some = share.sortby("rank").sel(rank=slice(1, None))
        curves(curve, some["rank"].values, some.values, colour, label=f"{number} classes")
        dots(curve, [ZERO], share.sel(rank=[0]).values, colour)
        found = minimal_ranks(share)
        _seeds(smallest, place, found, colour, none=1.2 * max(ranks))
    curve.axhline(SHARE, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), label=f"{SHARE:.0%} of backpropagation")
    curve.axhline(1, color=GREY, linewidth=0.9, label="backpropagation")
    smallest.plot(range(len(by_number)), list(by_number), "-", color=GREY, linewidth=0.9, zorder=0, label="r = classes")
    smallest.legend(loc="lower right")
    smallest.set_xticks(range(len(by_number)), list(map(str, by_number)))
    smallest.set_xlim(-0.6, len(by_number) - 0.4)
    rank_axis(curve.xaxis, ranks)
    rank_axis(smallest.yaxis, ranks)
    curve.set_xlabel("rank r of all channels")
    curve.set_ylabel("accuracy above chance\n(share of backpropagation's)")
    smallest.set_xlabel("number of classes")
    smallest.set_ylabel(f"smallest rank with {SHARE:.0%}")
    curve.set_title(config.data)
    if results.incomplete.any():
        images = float(results.images_per_class.max())
        curve.set_title(f"{config.data}, incomplete: {images:.0f} training images a class", color=COLOURS[1])
        smallest.set_title("trend only", color=COLOURS[1])
    figure.legend(*curve.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    panel_letter(curve, "a")
    panel_letter(smallest, "b")
    return figure


def _seeds(axes: Any, place: float, found: np.ndarray, colour: str, none: float) -> None:
    """Draw every seed's smallest rank as a dot, or a triangle at the height `none`; their median, if any, as a bar."""
    places = place + 0.12 * np.linspace(-1, 1, found.size) if found.size > 1 else np.array([place])
    heights, enough = np.where(found == 0, ZERO, found), np.isfinite(found)
    axes.plot(places[enough], heights[enough], "o", color=colour, markersize=3.5, markeredgewidth=0)
    if not enough.all():
        axes.plot(places[~enough], np.full(np.sum(~enough), none), "^", color=colour, markersize=4.5, markeredgewidth=0)
    if np.isfinite(median := np.median(found)):
        axes.plot([place - 0.3, place + 0.3], [median or ZERO] * 2, "-", color=colour, linewidth=1.8)
