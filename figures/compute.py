r"""What an accuracy costs: operations and seconds to reach it, against rank, beside backpropagation.

A narrow error channel makes a step cheaper, but a rule that learns less per step needs more of them. Networks learn
to classify images under backpropagation (BP), feedback alignment (FA), zero feedback (rank 0) and low-rank feedback,
where every channel has rank r (no wider than what it reads), readers follow Oja's rule, on labels at the output and
on errors below, and mirrors learn as Kolen-Pollack has it. (a) Validation accuracy against operations; (b) the same
against seconds; (c, d) operations and seconds until an accuracy is first reached, over the median of
backpropagation's; open diamonds are medians if what Q and P learn with were not charged. Runs that never reach it are
at the top. Between epochs accuracies count as rising in straight lines, from chance at the start.

Operations are those that :func:`linfb.engine.cost` counts in products, for all rules alike, the training of Q and P
included. Accuracies are those of runs in ensembles, which have no time of their own; seconds are steps times the time
of a step of :func:`linfb.engine.train` on one thread. That is measured apart, the rules in turns with backpropagation
in between, and the median ratio within a round is taken, since absolute times drift. Neither the choice of the
learning rate nor validation is charged. The rate is the one with the highest validation accuracy averaged over
epochs, since it is speed that is compared.

**Theory.** A step at rank r has :func:`~linfb.engine.costs.Cost.net_saving` less operations. The whole transport of
errors is 29 % of a step in the network of the quick preset, and 11 % in the paper's perceptron: no channel saves more
than that, and a rule that needs 40 % (13 %) more steps than backpropagation saves nothing at all. No theory here says
how many it needs.

**What is seen** (quick preset: the 8 x 8 digits, three hidden layers of 128, batches of 32, eight epochs, three seeds;
:doc:`cifar10` has accuracies of larger networks). *Per step*, r = 10 has .83 of backpropagation's operations and
takes 1.4 to 1.5 times its time (in two runs of the figure): steps this small are bound by calls, and a rule with Q
and P has more of them; zero feedback, .71 of the operations, takes .90 to .93. *To an accuracy*, nothing is saved
that three seeds could show. To .95 the rule takes 1.46, 1.30 and 1.25 times the operations of backpropagation at r =
5, 10 and 32, and 4.4 times at r = 2 (one run of three never reaches it); to .975, .92, 1.03 and 1.76, while
backpropagation's own runs go from .8 to 1.2.
In seconds it is 1.65 to 2.8 times as dear at every one of these ranks. Without the charge for Q and P, r = 32 would
seem as cheap as backpropagation to .95 (.99 in place of 1.25), which is why it is charged. Feedback alignment costs
1.35 and 2.7 times as much. Rank 1 and two of three runs of zero feedback never reach .95. 287 validation images do
not resolve more than .003, and first crossings of so coarse a curve are noisy. With a wider grid (3e-4 to 3e-2)
backpropagation and feedback alignment take the same rates; zero feedback takes 3e-2 and does not reach .975 either.

**To vary it**: ``--set "cells=vit / backpropagation,vit / low-rank r=4"`` trains a small transformer, ``vgg / ...``
convolutions; ``--data cifar10`` with ``--data-root``; ``--preset cpu`` is CIFAR-10 in part (perceptron and
transformer), ``paper`` has the paper's settings. Neither has been run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._measured import few, step_seconds
from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, dots, error_scale, new_figure, panel_letter
from figures._training import ensembles, image_model, low_rank, rule_without_channel, summary, trained

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule
    from linfb.engine import Model

TITLES = {"mlp": "perceptron", "vgg": "VGG-like network", "vit": "vision transformer"}
FULL = ("backpropagation", "feedback alignment", "zero feedback")
PRICES = {"flops": "FLOPs", "free_flops": "FLOPs if Q and P learnt for free", "seconds": "time"}
"""What accuracy is paid with, by the names that it has here."""

_COLOURS = {"backpropagation": COLOURS[0], "feedback alignment": COLOURS[2], "zero feedback": GREY}
_SHADES = ("#444444", COLOURS[3], COLOURS[5])
_SHORT = {"zero feedback": "0", "feedback alignment": "FA", "backpropagation": "BP"}


def _cells(**ranks: tuple[int, ...]) -> tuple[str, ...]:
    """Return all rules of every network, the low-rank rule at the ranks that are given."""
    names = {network: (*FULL, *(f"low-rank r={rank}" for rank in some)) for network, some in ranks.items()}
    return tuple(f"{network} / {name}" for network in names for name in names[network])


@dataclass(frozen=True)
class Setting:
    """The sizes of a network, how it is trained, and the accuracies whose price is asked for.

    `sizes` are arguments of the network's constructor, `optimizer` and `schedule` are names in linfb.engine, the
    latter is followed by its arguments.
    """

    sizes: Mapping[str, Any]
    epochs: int
    batch_size: int
    learning_rates: tuple[float, ...]
    targets: tuple[float, ...]
    optimizer: str = "amsgrad"
    weight_decay: float = 0.0
    schedule: tuple[Any, ...] = ("Exponential", 0.975)
    augment: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is a network and a rule, with its rank where it has channels.

    The first `choosing_seeds` seeds choose the learning rate; the others run at the chosen one only. Every rule is
    timed `rounds` times, `timed_steps` steps an epoch.
    """

    cells: tuple[str, ...] = _cells(mlp=(1, 2, 5, 10, 32))
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "digits"
    train: float | int | None = None
    validation: float | int = 0.2
    choosing_seeds: int = 3
    rounds: int = 7
    timed_steps: int = 10
    mlp: Setting = Setting({"widths": (128,) * 3}, 8, 32, (1e-3, 3e-3, 1e-2), (0.95, 0.975))
    vgg: Setting = Setting({"widths": (8, 16), "dense": 32, "dropout": 0.0}, 6, 32, (3e-3, 1e-2), (0.8, 0.9))
    vit: Setting = Setting(
        {"patch": 2, "width": 32, "depth": 2, "heads": 2, "dropout": 0.0, "drop_path": 0.0}, 6, 32, (3e-3, 1e-2),
        (0.8, 0.9),
    )  # fmt: skip


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        cells=_cells(mlp=(2, 10, 64), vit=(4, 16)), seeds=(0, 1), data="cifar10", train=8000, validation=2000,
        choosing_seeds=1, rounds=9,
        mlp=Setting({"widths": (512,) * 3}, 12, 128, (2e-4, 6e-4, 2e-3), (0.35, 0.4, 0.45)),
        vit=Setting(
            {"width": 64, "depth": 3, "heads": 4, "dropout": 0.0, "drop_path": 0.0}, 6, 64, (1e-3, 3e-3),
            (0.35, 0.4), optimizer="adamw", schedule=("Constant",), augment=("crop", "flip"),
        ),
    ),
    "paper": Config(
        cells=_cells(mlp=(1, 2, 5, 10, 16, 32, 64), vgg=(8, 16, 32, 64), vit=(8, 16, 32, 48, 64)),
        seeds=(0, 1, 2, 3, 4), data="cifar10", validation=0.1, choosing_seeds=1, rounds=15,
        mlp=Setting(
            {"widths": (512,) * 3}, 160, 32, (3e-4, 6e-4, 1.2e-3), (0.5, 0.55, 0.6), weight_decay=4e-4,
            augment=("flip", "rotation 10"),
        ),
        vgg=Setting(
            {}, 400, 64, (2.5e-4, 5e-4, 1e-3), (0.8, 0.85, 0.9), optimizer="adam", weight_decay=5e-5,
            schedule=("Exponential", 0.98), augment=("crop", "flip", "cutout"),
        ),
        vit=Setting(
            {}, 250, 256, (1.5e-4, 3e-4, 6e-4), (0.7, 0.75, 0.8), optimizer="adamw", weight_decay=0.1,
            schedule=("Cosine", 250, 10), augment=("crop", "flip", "autoaugment"),
        ),
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images; the quick one takes only some of those that are many."""
    if config == CONFIGS["quick"] and data != "digits":
        return replace(config, data=data, train=4000, validation=1000)
    return replace(config, data=data)


def rule_of(cell: str, model: Model) -> Rule:
    """Return the rule behind a cell's name."""
    name, _, rank = cell.partition(" / ")[2].partition(" r=")
    return low_rank(int(rank), model) if rank else rule_without_channel(name)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, accuracies at the chosen learning rate, and what a step takes: counted, and measured."""
    import xarray as xr

    found = [_network(network, cells, config, resources) for network, cells in by_network(config.cells).items()]
    return xr.concat(found, dim="cell", join="outer").sel(cell=list(config.cells))


def by_network(cells: Sequence[str]) -> dict[str, list[str]]:
    """Return cells by their networks."""
    networks = dict.fromkeys(cell.partition(" / ")[0] for cell in cells)
    return {network: [cell for cell in cells if cell.startswith(f"{network} / ")] for network in networks}


def _network(network: str, cells: Sequence[str], config: Config, resources: Resources) -> xr.Dataset:
    from linfb.datasets import load_dataset
    from linfb.engine import cost, train

    setting: Setting = getattr(config, network)
    data = load_dataset(config.data, root=resources.data_root)
    layout = "flat" if network == "mlp" else "image"
    splits = data.splits(train=config.train, validation=config.validation, layout=layout)
    model = image_model(network, data.shape, splits.n_classes, setting.sizes)
    rules = {cell: rule_of(cell, model) for cell in cells}
    way, optimizer = ensembles(setting, splits, model, resources, data.name)
    found = trained(
        way, rules, optimizer, speed, rates=setting.learning_rates, seeds=config.seeds,
        choosing_seeds=config.choosing_seeds, keep=("validation_accuracy", "test_accuracy"),
    )  # fmt: skip
    timed = partial(
        train, few(splits, config.timed_steps * setting.batch_size), model, batch_size=setting.batch_size,
        optimizer=optimizer(min(setting.learning_rates)), augment=way.keywords["augment"], device=resources.device,
        threads=1, progress=False,
    )  # fmt: skip
    seconds = step_seconds(timed, {"": rule_without_channel("backpropagation"), **rules}, config.rounds)
    step = {"batch_size": setting.batch_size, "optimizer": timed.keywords["optimizer"]}
    counted = [cost(model, rule, **step).total for rule in rules.values()]
    own = {
        "step_flops": [parts.flops for parts in counted],
        "learning_flops": [parts.feedback_learning.flops for parts in counted],
        "steps_per_epoch": [len(splits.train.x) // setting.batch_size] * len(cells),
        "chance": [1 / splits.n_classes] * len(cells),
    }
    beside = seconds.sel(cell="", drop=True).expand_dims(cell=cells)
    return found.assign(step_seconds=seconds.sel(cell=cells), reference_seconds=beside).assign(
        {name: ("cell", numbers) for name, numbers in own.items()}
    )


def speed(runs: xr.Dataset) -> xr.DataArray:
    """Return the mean of the validation accuracy over all epochs: high where it rises early and ends high."""
    return runs.validation_accuracy.mean("epoch")


def epochs_to(accuracies: np.ndarray, target: float, chance: float) -> np.ndarray:
    """Return after how many epochs each run reaches an accuracy first, from the last axis; infinity if it never does.

    Between the ends of epochs, and from chance at the start, accuracies are taken to rise in straight lines.
    """
    start = np.full((*accuracies.shape[:-1], 1), chance)
    before = np.concatenate([start, accuracies[..., :-1]], axis=-1)
    reached = accuracies >= target
    first = reached.argmax(axis=-1)[..., None]
    low, high = (np.take_along_axis(ends, first, axis=-1)[..., 0] for ends in (before, accuracies))
    ever = reached.any(axis=-1)
    share = np.clip((target - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.where(ever, first[..., 0] + share, np.inf)


def step_ratio(results: xr.Dataset) -> xr.DataArray:
    """Return the time of a step over that of backpropagation, in every round that timed both."""
    return results.step_seconds / results.reference_seconds


def prices(results: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return what an epoch takes, by the names in :data:`PRICES`.

    Seconds are those of backpropagation, times the median ratio of the rounds.
    """
    by_step = {
        "flops": results.step_flops,
        "free_flops": results.step_flops - results.learning_flops,
        "seconds": step_ratio(results).median("round") * results.reference_seconds.median(),
    }
    return {name: results.steps_per_epoch * one for name, one in by_step.items()}


def paid(results: xr.Dataset, network: str, target: float) -> dict[str, xr.DataArray]:
    """Return what every run of a network pays for an accuracy, over the median of backpropagation's runs.

    By the names in :data:`PRICES`; infinity if the accuracy is not reached, all NaN if backpropagation does not.
    """
    accuracies = results.validation_accuracy.transpose("cell", "seed", "epoch")
    epochs = accuracies.isel(epoch=0, drop=True)
    epochs = epochs.copy(data=epochs_to(accuracies.values, target, float(results.chance[0])))
    found = {name: price * epochs for name, price in prices(results).items()}
    least = {name: float(one.sel(cell=f"{network} / backpropagation").median("seed")) for name, one in found.items()}
    return {name: one / least[name] if np.isfinite(least[name]) else one * np.nan for name, one in found.items()}


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return medians of what accuracies cost over backpropagation's, also if channels learnt for free, and of a step.

    Where most runs do not reach an accuracy there is no price; how many do not is said.
    """
    found = summary(results, config.cells)
    for network, cells in by_network(config.cells).items():
        if (reference := f"{network} / backpropagation") not in cells:
            continue
        some = results.sel(cell=cells)
        steps = {
            "FLOPs": some.step_flops / some.step_flops.sel(cell=reference),
            "time": step_ratio(some).median("round"),
        }
        for cell in cells:
            found |= {f"{name} of a step, {cell}": float(one.sel(cell=cell)) for name, one in steps.items()}
        for target in getattr(config, network).targets:
            table = {name: one.median("seed") for name, one in paid(some, network, target).items()}
            missed = (~(some.validation_accuracy >= target).any("epoch")).sum("seed")
            for cell in cells:
                medians = {PRICES[name]: float(one.sel(cell=cell)) for name, one in table.items()}
                found |= {f"{name} to {target:g}, {cell}": one for name, one in medians.items() if np.isfinite(one)}
                found[f"runs that do not reach {target:g}, {cell}"] = float(missed.sel(cell=cell))
    return found


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure, a row for each network: accuracy against what was paid, and the price of some accuracies."""
    networks = by_network(config.cells)
    figure = new_figure(PAGE, 0.9 + 2.0 * len(networks))
    rows = figure.subplots(len(networks), 4, squeeze=False, width_ratios=(1, 1, 1.15, 1.15))
    for row, (network, cells) in zip(rows, networks.items(), strict=True):
        some = results.sel(cell=cells)
        for axes, name in zip(row, ("flops", "seconds"), strict=False):
            _curves(axes, some, name)
        row[0].set_ylabel(f"{TITLES[network]}\nvalidation accuracy")
        row[2].set_ylabel("relative to BP")
        for axes in row[1::2]:
            axes.tick_params(labelleft=False)
        if f"{network} / backpropagation" in cells:
            _prices(row[2:], some, network, getattr(config, network).targets)
    for axes, label in zip(rows[-1], ("GFLOP", "seconds", "rank r", "rank r"), strict=True):
        axes.set_xlabel(label)
    titles = ("counted", "measured", "FLOPs to an accuracy", "time to an accuracy")
    for axes, letter, title in zip(rows[0], "abcd", titles, strict=True):
        axes.set_title(title)
        panel_letter(axes, letter)
    lines = {label: line for axes in rows.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=4)
    return figure


def _curves(axes: Any, results: xr.Dataset, name: str) -> None:
    """Draw the accuracy after every epoch against what was paid: every seed thin, their median thick."""
    from matplotlib import colormaps

    ranks = ranks_of(results)
    price = prices(results)[name] / (1e9 if name == "flops" else 1)
    for cell in results.cell.values:
        rule, _, rank = cell.partition(" / ")[2].partition(" r=")
        shade = 0.35 + 0.6 * ranks.index(int(rank)) / max(1, len(ranks) - 1) if rank else 0
        colour = colormaps["Oranges"](shade) if rank else _COLOURS[rule]
        runs = results.validation_accuracy.sel(cell=cell).transpose("seed", "epoch").values
        x = float(price.sel(cell=cell)) * np.arange(1, runs.shape[1] + 1)
        for run in runs:
            axes.plot(x, run, "-", color=colour, linewidth=0.4, alpha=0.5)
        label = f"low-rank, r = {rank}" if rank else rule
        axes.plot(x, np.median(runs, axis=0), "-", color=colour, linewidth=1.4, label=label)
    _decades(axes.xaxis, axes.dataLim.intervalx)
    error_scale(axes, results.validation_accuracy.clip(max=0.999))


def ranks_of(results: xr.Dataset) -> list[int]:
    """Return the ranks of low-rank rules, rising."""
    return sorted({int(cell.partition(" r=")[2]) for cell in results.cell.values if " r=" in cell})


def _prices(panels: Sequence[Any], results: xr.Dataset, network: str, targets: Sequence[float]) -> None:
    """Draw every run's price of accuracies as dots with their median, and medians of channels that learn for free."""
    rules = ["zero feedback", *(f"low-rank r={rank}" for rank in ranks_of(results)), *FULL[1::-1]]
    cells = [f"{network} / {rule}" for rule in rules if f"{network} / {rule}" in results.cell.values]
    labels = [_SHORT.get(rule := cell.partition(" / ")[2], rule.partition("=")[2]) for cell in cells]
    tables = [{name: one.sel(cell=cells) for name, one in paid(results, network, target).items()} for target in targets]
    found = np.concatenate([one.values.ravel() for table in tables for one in table.values()])
    found = found[np.isfinite(found)]
    low, high = found.min(initial=1) / 1.15, found.max(initial=1)
    never = 1.5 * high
    for axes, name in zip(panels, ("flops", "seconds"), strict=True):
        for place, (target, table, colour) in enumerate(zip(targets, tables, _SHADES, strict=False)):
            x = np.arange(len(cells)) + 0.3 * (place - (len(targets) - 1) / 2)
            runs = table[name].transpose("seed", "cell").values
            dots(axes, x, np.where(np.isinf(runs), never, runs), colour, label=f"to {target:g}")
            if name == "flops":
                free = table["free_flops"].median("seed").values
                axes.plot(
                    x, np.where(np.isinf(free), np.nan, free), "D", mfc="none", color=colour, markersize=4.5,
                    markeredgewidth=0.7, zorder=3, label=f"to {target:g}, if Q and P learnt for free",
                )  # fmt: skip
        axes.axhline(1, color=GREY, linewidth=0.9, zorder=0)
        _decades(axes.yaxis, (low, high))
        axes.set_ylim(low, 1.2 * never)
        axes.set_yticks([*axes.get_yticks(), never], [*(f"{tick:g}" for tick in axes.get_yticks()), "never"])
        axes.set_xticks(range(len(cells)), labels)


def _decades(axis: Any, limits: Sequence[float]) -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 times powers of ten within limits."""
    low, high = limits
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = (np.array([1, 2, 5]) * 10.0 ** powers[:, None]).ravel()
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
