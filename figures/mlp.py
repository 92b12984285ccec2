r"""What a nonlinear network on real images learns through narrow error channels.

A multilayer perceptron with three hidden layers (batch normalisation, ReLU) learns to classify images. All
feedback between its layers runs through channels of rank r, with fixed readers P ("Q only") or readers that
follow Oja's rule (on labels at the output, on errors below); mirrors Q learn as Kolen-Pollack has it. Beside them
the rules without a channel: backpropagation, Kolen-Pollack, feedback alignment and direct feedback alignment with
full random matrices, and zero feedback, where no error reaches a hidden layer. Every rule and rank takes the
learning rate with the best mean accuracy on validation images, from a small grid (the provenance file has the
chosen ones); the epoch is chosen on validation too. Shown is the error on the test images.

**Theory** says nothing exact about this network. From the linear one: rank 10, the number of classes, should be
enough, and adaptive readers should do better than fixed ones below it.

**What is seen** (quick preset: the 8 x 8 digits that come with scikit-learn). The error falls with the rank and
comes close to that of backpropagation at r = 10; at r = 1 and 2 Oja's readers have the lower error. Three seeds
and 360 test images (one image is .003) do not resolve more. Zero feedback is far from chance: a readout on random
features does much of the work, so it, not the dotted line, is the level to compare with. Other data: ``--data
mnist`` or ``--data cifar10`` with ``--data-root``; ``--preset cpu`` is the comparison on all of CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, curves, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule

FULL = ("backpropagation", "Kolen-Pollack", "feedback alignment", "DFA", "zero feedback")
READERS = ("fixed P", "Oja", "P only")
CHANCE = 0.1
_LINES = {
    "backpropagation": "BP",
    "feedback alignment": "FA",
    "Kolen-Pollack": "Kolen-\nPollack",
    "zero feedback": "zero\nfeedback",
}


def _cells(ranks: tuple[int, ...], of_p_only: tuple[int, ...] = ()) -> tuple[str, ...]:
    """Return all rules without a channel, both readers at all ranks, and P alone at some."""
    swept = tuple(f"{reader} r={rank}" for rank in ranks for reader in ("Oja", "fixed P"))
    return FULL + swept + tuple(f"P only r={rank}" for rank in of_p_only)


def _rank(cell: str) -> int:
    return int(cell.partition("=")[2])


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is a rule, with its rank where it has a channel.

    The first `choosing_seeds` seeds choose the learning rate, in `choosing_epochs` (None: all) epochs.
    """

    cells: tuple[str, ...] = _cells((1, 2, 3, 5, 10), (1, 2, 3, 5, 10))
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "digits"
    widths: tuple[int, ...] = (64, 64, 64)
    epochs: int = 15
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float = 0.1
    lr_decay: float = 0.975
    train: float | int | None = None
    validation: float = 0.2
    choosing_seeds: int = 3
    choosing_epochs: int | None = None


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
        cells=_cells((10, 2, 64, 1, 5, 16), (10, 2, 64)), data="cifar10", widths=(512,) * 3, epochs=20, batch_size=128,
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
        reader = readers.Fixed() if name == "fixed P" else readers.Oja(on="labels", covariance="normalised")
        mirror = mirrors.Fixed() if name == "P only" else mirrors.KolenPollack()
        return rules.low_rank(int(rank), reader=reader, mirror=mirror)
    return {
        "backpropagation": rules.backpropagation,
        "Kolen-Pollack": rules.kolen_pollack,
        "feedback alignment": rules.feedback_alignment,
        "DFA": rules.direct_feedback_alignment,
        "zero feedback": rules.zero_feedback,
    }[name]()


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation accuracy at every learning rate, and test accuracy at the one chosen by it."""
    import xarray as xr

    from linfb.datasets import load_dataset

    data = load_dataset(config.data, root=resources.data_root)
    splits = data.splits(train=config.train, validation=config.validation)
    return xr.concat([_one_cell(cell, splits, config, resources) for cell in config.cells], dim="cell")


def _one_cell(cell: str, splits: Any, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    from linfb.engine import Exponential, amsgrad, grid, mlp, train_ensemble

    model = mlp(splits.train.x.shape[1], config.widths, splits.n_classes)

    def run(rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int) -> xr.Dataset:
        optimizers = [amsgrad(rate, weight_decay=config.weight_decay, decay="decoupled") for rate in rates]
        result = train_ensemble(
            splits, model, grid(rule_of(cell), optimizers, seeds=seeds), epochs=epochs, batch_size=config.batch_size,
            schedule=Exponential(config.lr_decay), device=resources.device, progress=False, name=config.data,
        )  # fmt: skip
        found = {
            "validation": result.validation_accuracy.max("epoch"),
            "test": result.test_accuracy.sel(weights="chosen"),
            "chosen_epoch": result.chosen_epoch,
        }
        table = {
            name: (("learning_rate", "seed"), one.values.reshape(len(rates), len(seeds))) for name, one in found.items()
        }
        return xr.Dataset(table, coords={"learning_rate": list(rates), "seed": list(seeds)})

    choosing = config.choosing_epochs or config.epochs
    tried = run(config.learning_rates, config.seeds[: config.choosing_seeds], choosing)
    rate = float(tried.validation.mean("seed", skipna=False).fillna(-np.inf).idxmax("learning_rate"))
    known = tried.seed.values.tolist() if choosing == config.epochs else []
    final = [tried.sel(learning_rate=rate, seed=known)]
    if missing := tuple(seed for seed in config.seeds if seed not in known):
        final.append(run((rate,), missing, config.epochs).sel(learning_rate=rate))
    chosen = xr.concat(final, dim="seed").drop_vars("learning_rate")
    return xr.Dataset(
        {
            "validation": tried.validation.rename(seed="choosing_seed"),
            "test": chosen.test,
            "chosen_epoch": chosen.chosen_epoch,
            "chosen_rate": rate,
        }
    ).expand_dims(cell=[cell])


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return mean test accuracies and chosen learning rates."""
    found = {f"test accuracy, {cell}": float(results.test.sel(cell=cell).mean()) for cell in config.cells}
    return found | {f"learning rate, {cell}": float(results.chosen_rate.sel(cell=cell)) for cell in config.cells}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test error against rank, and that of the rules without a channel."""
    figure = new_figure(PAGE, 2.9)
    swept, full = figure.subplots(1, 2, sharey=True, width_ratios=(1.15, 1))
    error = (1 - results.test).clip(1e-3)
    by_reader = {
        reader: sorted((cell for cell in config.cells if cell.startswith(f"{reader} r=")), key=_rank)
        for reader in READERS
    }
    for colour, (reader, cells) in zip(COLOURS, by_reader.items(), strict=False):
        ranks = [_rank(cell) for cell in cells]
        if ranks:
            curves(swept, ranks, error.sel(cell=cells).transpose("seed", "cell"), colour, label=f"{reader}, rank r")
            swept.set_xscale("log", base=2)
            swept.set_xlim(ranks[0] / 1.15, ranks[-1] * 1.15)
            swept.set_xticks(ranks, [str(rank) for rank in ranks])
    for cell, line in (("backpropagation", "-"), ("zero feedback", (0, (4, 2)))):
        if cell in config.cells:
            level = float(error.sel(cell=cell).median())
            swept.axhline(level, color=GREY, linewidth=0.9, linestyle=line, label=f"{cell}, median")
    _strip(full, error, [cell for cell in FULL if cell in config.cells])
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


def _strip(axes: Any, error: xr.DataArray, cells: list[str]) -> None:
    """Draw every seed of each rule as a dot, and its median as a bar."""
    for place, cell in enumerate(cells):
        colour, runs = COLOURS[2 + place % 5], error.sel(cell=cell).values
        shift = 0.12 * np.linspace(-1, 1, runs.size) if runs.size > 1 else np.zeros(1)
        axes.plot(place + shift, runs, "o", color=colour, markersize=3.5, markeredgewidth=0)
        axes.plot([place - 0.3, place + 0.3], [np.median(runs)] * 2, "-", color=colour, linewidth=1.8)
    axes.set_xticks(range(len(cells)), [_LINES.get(cell, cell) for cell in cells])
