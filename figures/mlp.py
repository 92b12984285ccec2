"""How wide must the channel be for a network on real images.

A multilayer perceptron (batch normalisation, ReLU) learns to classify images; the error into every hidden layer passes
a channel of rank r. The reader P is either fixed or finds the principal subspace of the errors by Oja's rule; Q learns
like the weights (Kolen-Pollack) from a random start, so that no rule but backpropagation transports weights.

**Theory** for linear networks says that r of the order of the task's dimensionality suffices, here the number of
classes, if the reader finds the right subspace; a fixed random reader needs more.

**What is compared.** Test accuracy at the epoch chosen on validation data. Zero feedback (only the readout learns)
and chance are the baselines below: what a rule is above zero feedback is what its error signal achieves in the hidden
layers. The learning rate of every rule and rank is chosen from the same grid on validation accuracy; choices at the
grid's edge are counted. There is no weight decay: coupled to Adam it would shrink, entry by entry, the random features
that zero feedback must keep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, COLUMN, GREY, curves, new_figure

if TYPE_CHECKING:
    import xarray as xr

    from linfb.rules import Rule

WHOLE = ("backpropagation", "Kolen-Pollack", "feedback alignment", "DFA", "zero feedback")
SWEPT = ("Oja", "fixed")


def arms(ranks: tuple[int, ...]) -> tuple[str, ...]:
    """Return the labels of everything that is compared."""
    return WHOLE + tuple(f"{reader}, r = {rank}" for reader in SWEPT for rank in ranks)


@dataclass(frozen=True)
class Config:
    """Settings of the figure."""

    rules: tuple[str, ...] = arms((1, 2, 3, 5, 8, 10))
    seeds: tuple[int, ...] = (0, 1, 2)
    selection_seeds: int = 3
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    data: str = "digits"
    validation: int = 200
    widths: tuple[int, ...] = (64, 64)
    epochs: int = 20
    batch_size: int = 32
    decay_per_epoch: float = 0.975


PARTS = "rules"
CONFIGS = {"quick": Config(), "paper": Config(seeds=tuple(range(10)), epochs=60)}

_ON = {
    "digits": {},
    "mnist": {
        "rules": arms((1, 2, 5, 10, 32)), "validation": 5000, "widths": (256, 256), "epochs": 3, "batch_size": 128,
        "learning_rates": (2e-4, 6e-4, 2e-3, 6e-3), "selection_seeds": 1,
    },
    "cifar10": {
        "rules": arms((1, 2, 10, 64)), "validation": 5000, "widths": (512, 512, 512), "epochs": 4, "batch_size": 128,
        "learning_rates": (2e-4, 6e-4, 2e-3, 6e-3), "selection_seeds": 1,
    },
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the settings for other images; the paper's number of epochs where its seeds are asked for."""
    changed = replace(config, data=data, **_ON[data])
    return replace(changed, epochs=160) if data != "digits" and len(config.seeds) >= 10 else changed


def rule_of(label: str) -> Rule:
    """Return the rule behind a label."""
    from linfb import rules
    from linfb.rules import readers

    whole = {
        "backpropagation": rules.backpropagation, "Kolen-Pollack": rules.kolen_pollack,
        "feedback alignment": rules.feedback_alignment, "DFA": rules.direct_feedback_alignment,
        "zero feedback": rules.zero_feedback,
    }  # fmt: skip
    if label in whole:
        return whole[label]()
    reader, rank = label.split(", r = ")
    made = {"Oja": readers.Oja(covariance="normalised"), "fixed": readers.Fixed()}[reader]
    return rules.low_rank(int(rank), reader=made)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return accuracies and losses of every rule and seed at its chosen learning rate, and the choice itself."""
    import xarray as xr

    from linfb.datasets import load_dataset

    splits = load_dataset(config.data, root=resources.data_root).splits(validation=config.validation)
    return xr.concat(
        [_one_rule(label, splits, config, resources) for label in config.rules], dim="rule", combine_attrs="drop"
    )


def _one_rule(label: str, splits: Any, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    def run(rate: float, seed: int) -> xr.Dataset:
        return _train(label, rate, seed, splits, config, resources).drop_vars(["rank"])

    tried = {(rate, seed): run(rate, seed) for rate in config.learning_rates for seed in _selecting(config)}
    scores = [
        np.mean([float(tried[rate, seed].validation_accuracy.max()) for seed in _selecting(config)])
        for rate in config.learning_rates
    ]
    best = config.learning_rates[int(np.argmax(scores))]
    final = [tried.get((best, seed)) if (best, seed) in tried else run(best, seed) for seed in config.seeds]
    result = xr.concat(final, dim="seed", combine_attrs="drop").assign_coords(seed=list(config.seeds))
    result["chosen_learning_rate"] = best
    result["selection"] = ("learning_rate_tried", scores)
    return result.assign_coords(learning_rate_tried=list(config.learning_rates)).expand_dims(rule=[label])


def _selecting(config: Config) -> tuple[int, ...]:
    return config.seeds[: config.selection_seeds]


def _train(label: str, rate: float, seed: int, splits: Any, config: Config, resources: Resources) -> xr.Dataset:
    from linfb.engine import Exponential, amsgrad, mlp, train

    return train(
        splits, mlp(splits.train.x.shape[1], config.widths, splits.n_classes), rule_of(label), epochs=config.epochs,
        batch_size=config.batch_size, optimizer=amsgrad(rate),
        schedule=Exponential(config.decay_per_epoch), seed=seed, device=resources.device, progress=False,
    )  # fmt: skip


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return the test accuracies that frame the comparison, and how many choices lie at the grid's edge."""
    accuracy = results.test_accuracy.sel(weights="chosen").mean("seed")
    edges = (min(config.learning_rates), max(config.learning_rates))
    found = {f"test accuracy, {rule}": float(accuracy.sel(rule=rule)) for rule in results["rule"].values}
    at_edge = sum(float(rate) in edges for rate in results.chosen_learning_rate.values)
    return found | {"learning rates chosen at the edge of the grid": float(at_edge)}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test error against rank, rules without a channel as lines."""
    figure = new_figure(COLUMN, 3.2)
    axes = figure.add_subplot()
    error = 1 - results.test_accuracy.sel(weights="chosen")
    positions: list[int] = []
    for colour, reader in zip(COLOURS, SWEPT, strict=False):
        labels = [label for label in config.rules if label.startswith(f"{reader}, r = ")]
        ranks = [int(label.split("= ")[1]) for label in labels]
        positions = sorted({*positions, *ranks})
        name = {"Oja": "P by Oja, Q learned", "fixed": "P fixed, Q learned"}[reader]
        curves(axes, ranks, error.sel(rule=labels).transpose("seed", "rule"), colour, label=name)
    for colour, label in zip((GREY, *COLOURS[3:]), [rule for rule in WHOLE if rule in config.rules], strict=False):
        for run in error.sel(rule=label).values:
            axes.axhline(run, color=colour, linewidth=0.4, alpha=0.5, zorder=0)
        axes.axhline(float(error.sel(rule=label).median()), color=colour, linewidth=1.2, label=label, zorder=0)
    axes.axhline(1 - 1 / 10, color=GREY, linewidth=0.8, linestyle=":", label="chance", zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(positions, [str(rank) for rank in positions])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("rank r of the channel")
    axes.set_ylabel("test error (log scale)")
    axes.set_title(f"{config.data}, hidden layers {'-'.join(map(str, config.widths))}, {len(config.seeds)} seeds")
    figure.legend(loc="outside lower center", ncols=2)
    return figure
