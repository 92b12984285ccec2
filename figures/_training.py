"""What the figures that train networks share: rules without a channel, learning rates chosen on validation, counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from figures._run import Resources
    from linfb import Rule
    from linfb.datasets import Splits
    from linfb.engine import Member, Model


@dataclass(frozen=True)
class Perceptrons:
    """How multilayer perceptrons (batch normalisation, ReLU) are trained: AMSGrad, a rate that falls by epochs.

    The first `choosing_seeds` seeds choose the learning rate, in `choosing_epochs` epochs; the others run at the chosen
    one only. With fewer epochs for the choice (None: all of them), those seeds are trained again. `decay` says how
    weight decay acts, `augment` is for :func:`augmentations`.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "digits"
    widths: tuple[int, ...] = (64, 64, 64)
    epochs: int = 15
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    weight_decay: float = 0.1
    decay: str = "decoupled"
    lr_decay: float = 0.975
    train: float | int | None = None
    validation: float = 0.2
    choosing_seeds: int = 3
    choosing_epochs: int | None = None
    augment: tuple[str, ...] = ()
    error_clip: float | None = None


@dataclass(frozen=True)
class Training:
    """The sizes of an architecture and how it is trained.

    `sizes` are arguments of its constructor, the others are names in linfb.engine and linfb.datasets; `schedule` is
    followed by its arguments.
    """

    sizes: Mapping[str, Any]
    epochs: int
    batch_size: int
    learning_rates: tuple[float, ...]
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    schedule: tuple[Any, ...] = ("Constant",)
    augment: tuple[str, ...] = ()


def augmentations(names: Sequence[str]) -> tuple[Any, ...]:
    """Return augmentations by their short names, which numbers may follow: "flip", "rotation 10" (degrees)."""
    from linfb.datasets import AutoAugment, Cutout, RandomCrop, RandomFlip, RandomRotation

    made: Mapping[str, Any] = {
        "crop": RandomCrop, "flip": RandomFlip, "rotation": RandomRotation, "cutout": Cutout, "autoaugment": AutoAugment
    }  # fmt: skip
    return tuple(made[name](*map(float, numbers)) for name, *numbers in map(str.split, names))


def image_model(architecture: str, shape: Sequence[int], n_classes: int, sizes: Mapping[str, Any]) -> Model:
    """Return an architecture by its short name at some sizes, for images of a shape; a perceptron takes them flat."""
    from linfb.engine import mlp, retina, vgg_like, vit

    if architecture == "mlp":
        return mlp(math.prod(shape), n_out=n_classes, **sizes)
    make: Any = {"vgg": vgg_like, "vit": vit, "retina": retina}[architecture]
    return make(shape, n_classes, **sizes)


def adaptive_reader() -> Any:
    """Return the reader of the paper's networks: Oja's rule on labels at the output, on errors below."""
    from linfb.rules import readers

    return readers.Oja(on="labels", covariance="normalised")


def low_rank(rank: int, model: Model) -> Rule:
    """Return the paper's rule at one rank in all layers of a model; no channel is wider than what it reads."""
    from linfb import rules

    widths = [model.layers[i].kernel_shape[0] for i in model.kernels]
    return rules.low_rank({k: min(rank, widths[k]) for k in range(1, len(widths))}, reader=adaptive_reader())


def rule_without_channel(name: str) -> Rule:
    """Return the rule of that name, whose feedback is not narrow."""
    from linfb import rules

    return {
        "backpropagation": rules.backpropagation,
        "Kolen-Pollack": rules.kolen_pollack,
        "weight mirror": rules.weight_mirror,
        "sign symmetry": rules.sign_symmetry,
        "feedback alignment": rules.feedback_alignment,
        "DFA": rules.direct_feedback_alignment,
        "zero feedback": rules.zero_feedback,
    }[name]()


def other_images(config: Any, data: str, quick: Any) -> Any:
    """Return the configuration of a figure for other images; the quick one takes only some of those that are many."""
    if config == quick and data != "digits":
        return replace(config, data=data, train=2000, validation=500)
    return replace(config, data=data)


def best_accuracy(runs: xr.Dataset) -> xr.DataArray:
    """Return the validation accuracy of the chosen epoch."""
    return runs.validation_accuracy.max("epoch")


def last_accuracy(runs: xr.Dataset) -> xr.DataArray:
    """Return the validation accuracy of the last epoch."""
    return runs.validation_accuracy.isel(epoch=-1)


def trained(
    train: Callable[[Sequence[Member]], xr.Dataset], rules: Mapping[str, Rule], optimizer: Callable[[float], Any],
    score: Callable[[xr.Dataset], xr.DataArray] = best_accuracy, *, rates: Sequence[float], seeds: Sequence[int],
    choosing_seeds: int, keep: Sequence[str], choosing: Callable[[Sequence[Member]], xr.Dataset] | None = None,
    weights: str = "chosen",
) -> xr.Dataset:  # fmt: skip
    """Train rules at every learning rate with the first seeds; with the others at the rate whose mean score is highest.

    All rules, rates and seeds train as one ensemble, the runs at the chosen rates as a second one. A run that diverges
    has no score, a rate at which one diverges is chosen only if there is no other (then the first is).

    Parameters
    ----------
    train : callable
        From members to their runs, :func:`linfb.engine.train_ensemble` with all else given.
    rules : mapping
        From the names of cells to rules.
    optimizer : callable
        From a learning rate to an optimiser.
    score : callable
        From runs to a number for each; it is asked only if some run completes an epoch.
    rates, seeds : sequence
    choosing_seeds : int
        How many seeds choose.
    keep : sequence of str
        Names of what is kept of the runs at the chosen rate, as far as they go.
    choosing : callable, optional
        As `train`, with less of it, for the choice alone: all seeds are trained again at the chosen rate.
    weights : {"chosen", "last"}
        Those of which epoch the test values are of.

    Returns
    -------
    xarray.Dataset
        `score` and `diverged` (0 or 1) by cell, learning rate and seed, NaN where there was no run; `chosen_rate` by
        cell; and what `keep` names by cell and seed: test values with the `weights`, steps from 1.
    """
    import xarray as xr

    from linfb.engine import Member

    axes = {"cell": list(rules), "learning_rate": list(rates), "seed": list(seeds)}

    def runs(way: Callable[..., Any], tried: Mapping[str, Sequence[float]], some: Sequence[int]) -> xr.Dataset:
        keys = [(cell, rate, seed) for cell in rules for rate in tried[cell] for seed in some]
        found = way([Member(rules[cell], optimizer(rate), seed) for cell, rate, seed in keys])
        found = found.sel(weights=weights).reset_coords(drop=True)
        found = found.assign_coords(step=np.arange(1, found.sizes["step"] + 1))
        ended = found.error == ""
        scores = xr.where(ended, score(found) if found.sizes["epoch"] else np.nan, np.nan)
        labels = {name: ("run", list(column)) for name, column in zip(axes, zip(*keys, strict=True), strict=True)}
        return found[list(keep)].assign(score=scores, diverged=(~ended).astype(float)).assign_coords(labels)

    def by_cell(found: xr.Dataset, some: Sequence[int]) -> xr.Dataset:
        return found.set_index(run=list(axes)).unstack("run").reindex(axes | {"seed": list(some)})

    first = list(seeds[:choosing_seeds])
    tried = runs(choosing or train, dict.fromkeys(rules, rates), first)
    means = by_cell(tried[["score"]], first).score.mean("seed", skipna=False)
    chosen = means.learning_rate[means.fillna(-np.inf).argmax("learning_rate")].drop_vars("learning_rate")
    found = [] if choosing else [tried]
    if others := list(seeds) if choosing else list(seeds[choosing_seeds:]):
        found.append(runs(train, {cell: [float(chosen.sel(cell=cell))] for cell in rules}, others))
    table = by_cell(xr.concat(found, dim="run", join="outer", combine_attrs="drop"), seeds)
    kept = table[list(keep)].sel(learning_rate=chosen, drop=True)
    scores = by_cell(tried[["score"]], first).score if choosing else table.score
    return kept.assign(score=scores, diverged=table.diverged, chosen_rate=chosen)


def ensembles(setting: Any, splits: Splits, model: Model, resources: Resources, name: str) -> tuple[Any, Any]:
    """Return what trains members on images, for :func:`trained`, and what makes an optimiser of a learning rate.

    `setting` is a :class:`Training`, or has its fields but for the sizes.
    """
    from linfb.engine import optimisers, schedules, train_ensemble

    schedule, *arguments = setting.schedule
    train = partial(
        train_ensemble, splits, model, epochs=setting.epochs, batch_size=setting.batch_size,
        schedule=getattr(schedules, schedule)(*arguments), augment=augmentations(setting.augment),
        device=resources.device, progress=False, name=name,
    )  # fmt: skip
    return train, partial(getattr(optimisers, setting.optimizer), weight_decay=setting.weight_decay)


def perceptrons(rules: Mapping[str, Rule], splits: Splits, config: Perceptrons, resources: Resources) -> xr.Dataset:
    """Train perceptrons by rules, see :func:`trained`, and keep the test accuracy and the chosen epoch."""
    from linfb.engine import Exponential, amsgrad, mlp, train_ensemble

    train = partial(
        train_ensemble, splits, mlp(splits.train.x.shape[1], config.widths, splits.n_classes), epochs=config.epochs,
        batch_size=config.batch_size, schedule=Exponential(config.lr_decay), augment=augmentations(config.augment),
        error_clip=config.error_clip, device=resources.device, progress=False, name=config.data,
    )  # fmt: skip
    choosing = None if config.choosing_epochs is None else partial(train, epochs=config.choosing_epochs)
    return trained(
        train, rules, partial(amsgrad, weight_decay=config.weight_decay, decay=config.decay),
        rates=config.learning_rates, seeds=config.seeds, choosing_seeds=config.choosing_seeds, choosing=choosing,
        keep=("test_accuracy", "chosen_epoch"),
    )  # fmt: skip


def image_networks(
    rules: Mapping[str, Rule], model: Model, splits: Splits, setting: Training, resources: Resources, name: str,
    *, optimizer: Callable[[float], Any] | None = None, **choices: Any,
) -> xr.Dataset:  # fmt: skip
    """Train a network on images by rules, see :func:`trained`, by the optimiser of its setting unless one is given."""
    train, own = ensembles(setting, splits, model, resources, name)
    return trained(train, rules, optimizer or own, rates=setting.learning_rates, **choices)


def summary(results: xr.Dataset, cells: Sequence[str]) -> dict[str, float]:
    """Return mean test accuracies, chosen learning rates, and how many runs diverged: by cell if any did, and in all.

    Where every run at the chosen rate diverged there is no accuracy.
    """
    found = {f"test accuracy, {cell}": float(results.test_accuracy.sel(cell=cell).mean()) for cell in cells}
    found = {key: value for key, value in found.items() if np.isfinite(value)}
    found |= {f"learning rate, {cell}": float(results.chosen_rate.sel(cell=cell)) for cell in cells}
    counts = {cell: float(results.diverged.sel(cell=cell).sum()) for cell in cells}
    found |= {f"runs that diverged, {cell}": count for cell, count in counts.items() if count}
    return found | {"runs that diverged": sum(counts.values())}


def gain_kept(results: xr.Dataset, cells: Sequence[str], nothing: Callable[[str], str]) -> dict[str, float]:
    """Return the share of backpropagation's gain over zero feedback that channels keep, in mean test accuracies.

    `nothing` says which cell is the zero feedback beside another; cells without theirs are left out.
    """
    means = results.test_accuracy.mean("seed")
    top = means.sel(cell="backpropagation") if "backpropagation" in cells else np.nan
    low = {cell: means.sel(cell=nothing(cell)) if nothing(cell) in cells else np.nan for cell in cells if "r=" in cell}
    found = {cell: float((means.sel(cell=cell) - below) / (top - below)) for cell, below in low.items()}
    return {f"share of the gain that is kept, {cell}": share for cell, share in found.items() if np.isfinite(share)}


def published_of(cell: str, numbers: Mapping[str, Any]) -> float | None:
    """Return the published number of a cell, where there is one, from numbers by sweep and rank."""
    sweep, _, rank = cell.partition(" r=")
    theirs = numbers.get(sweep)
    return theirs.get(int(rank) if rank.isdigit() else rank) if isinstance(theirs, Mapping) else theirs


def minus_published(found: Mapping[str, float], numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return how far the accuracies of a :func:`summary` are from published ones, by sweep and rank."""
    ours = {key.removeprefix("test accuracy, "): value for key, value in found.items() if "test accuracy, " in key}
    theirs = {cell: published_of(cell, numbers) for cell in ours}
    return {f"the same minus the paper's, {cell}": ours[cell] - number for cell, number in theirs.items() if number}
