r"""What a training step costs against rank: operations, memory and seconds, beside backpropagation.

Nothing is trained to an end here. All channels have rank r (none is wider than what it reads), readers follow Oja's
rule, on labels at the output and on errors below, mirrors learn as Kolen-Pollack has it; rank 0 is zero feedback, the
least that any rule can take. (a) Operations of a step by what they are for, in the paper's perceptron at two batch
sizes, its network like VGG and its transformer, over all operations of backpropagation (BP); the dotted line is the
largest rank that saves any. (b) Memory; (c) seconds of a step on one thread, over those of backpropagation. Lines are
counted by :func:`linfb.engine.cost`, dots are measured: bytes as the peak of a call of
:func:`~linfb.engine.train` by ``tracemalloc`` (which the best weights add a copy to), seconds as medians of rounds in
which the rules take turns. The band is backpropagation timed twice. The quick preset measures the perceptron as it
is, and small networks of the two other kinds (solid lines are theirs, dotted those of the networks in a).

**Theory.** Of three products per layer, forward, gradient and transport, a channel replaces the last, by
:math:`r(n_\text{in} + n_\text{out})/(n_\text{in}n_\text{out})` of it, and has to learn Q and P. The gross saving is
therefore at most the share of the transport: 11 % in the perceptron, whose large first layer transports nothing,
33 % in the network like VGG, 32 % in the transformer.

**What is seen.** *Counted*, the net saving at r = 8 and 64 is 10 and 2.6 % in the perceptron with batches of 32
(batches of 128: 10 and 4.7 %), 31 and 15 % in the network like VGG, 30 and 19 % in the transformer; it ends at ranks 77
(102), 171 and 151. With channels that learnt for free it would end at about 256 in all of them. *Memory* grows with r,
it never falls: a channel adds Q, P, their gradients and what the optimiser keeps of them. At r = 64 the peak is 1.07 of
backpropagation's in the perceptron, 1.31 and 1.23 in the small networks, where 64 is the width of the widest
convolution and half the transformer's. *Measured seconds* do not follow the count (medians of five rounds;
backpropagation timed twice differs by up to 5 %): with r = 8 and 64 a step takes 1.05 and 1.13 of
backpropagation's time in the perceptron with batches of 32, .99 and 1.04 with 128, 1.09 and 1.25 in the small
convolutional network, 1.03 and 1.21 in the small transformer. Even zero feedback saves only 8 % of the time in the
perceptron (11 % of the operations), 13 and 20 % in the other two (33 and 29 %): much of a step is no product, and a
channel has more products that are small. So at these sizes on this machine the channel saves operations and no time;
:doc:`performance` says where the time goes, and that with batches of 512 a square perceptron does save some. The times
were taken on a machine with other work to do; ratios within a round are what can be trusted, not milliseconds.

**To vary it**: ``--set vgg.measured.batch_size=32``, ``--set measured_ranks=1,4,16,64``, ``--set rounds=15``;
``--preset cpu`` measures networks of the paper's widths with small batches, ``paper`` everything as it is counted
(with ``--device gpu`` seconds are that device's, and no peak is measured). Neither has been run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._measured import few, peak_bytes, step_seconds
from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, ZERO, dots, new_figure, panel_letter, rank_axis
from figures._training import image_model, low_rank, rule_without_channel

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule
    from linfb.datasets import Splits
    from linfb.engine import Model

MEMORY = ("weights", "channels", "gradients", "slots", "activations")
REFERENCE, AGAIN = "backpropagation", "backpropagation, again"
N_CLASSES = 10

_WORDS = {
    "forward": "forward",
    "weight_gradient": "gradient of W",
    "attention": "attention",
    "transport": "transport of errors",
    "feedback_learning": "learning Q and P",
}
_SHADES = ("#BDBDBD", "#D9D9D9", "#969696", COLOURS[0], COLOURS[4])
RATE = 1e-6
"""What the learning rate is does not matter here; images of noise are not learnt."""


@dataclass(frozen=True)
class Network:
    """A network and the batch of a step; `sizes` are arguments of its constructor, images are square and coloured."""

    architecture: str
    sizes: Mapping[str, Any]
    batch_size: int
    image: int = 32


@dataclass(frozen=True)
class Case:
    """A network whose costs are counted, and one of the kind, perhaps smaller, on which they are measured as well."""

    title: str
    counted: Network
    measured: Network


def _perceptron(batch_size: int) -> Case:
    network = Network("mlp", {"widths": (512,) * 3}, batch_size)
    return Case(f"perceptron, batch {batch_size}", network, network)


_MLP_32, _MLP_128 = _perceptron(32), _perceptron(128)
_VGG = Case(
    "VGG-like network", Network("vgg", {"dropout": 0.0}, 64),
    Network("vgg", {"widths": (32, 64), "dense": 64, "dropout": 0.0}, 8, image=16),
)  # fmt: skip
_VIT = Case(
    "vision transformer", Network("vit", {"dropout": 0.0, "drop_path": 0.0}, 64),
    Network("vit", {"width": 128, "depth": 1, "heads": 4, "dropout": 0.0, "drop_path": 0.0}, 8),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is one of its cases.

    Costs are counted at all ranks, and measured at `measured_ranks`: seconds `rounds` times, `timed_steps` steps an
    epoch. The seeds draw weights and images; times of all of them are taken together.
    """

    cells: tuple[str, ...] = ("mlp_32", "mlp_128", "vgg", "vit")
    seeds: tuple[int, ...] = (0,)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    measured_ranks: tuple[int, ...] = (8, 64)
    rounds: int = 5
    timed_steps: int = 3
    optimizer: str = "amsgrad"
    mlp_32: Case = _MLP_32
    mlp_128: Case = _MLP_128
    vgg: Case = _VGG
    vit: Case = _VIT


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        measured_ranks=(1, 4, 16, 64, 128), rounds=9, timed_steps=8,
        vgg=Case(_VGG.title, _VGG.counted, replace(_VGG.counted, batch_size=8)),
        vit=Case(_VIT.title, _VIT.counted, replace(_VIT.counted, batch_size=4)),
    ),
    "paper": Config(
        measured_ranks=(1, 4, 16, 64, 128), rounds=15, timed_steps=20,
        vgg=replace(_VGG, measured=_VGG.counted), vit=replace(_VIT, measured=_VIT.counted),
    ),
}  # fmt: skip


def rules_of(ranks: Sequence[int], model: Model) -> dict[str, Rule]:
    """Return backpropagation, zero feedback (rank 0) and the low-rank rule at ranks, by their names."""
    names = (REFERENCE, "zero feedback")
    return {name: rule_without_channel(name) for name in names} | {f"low-rank r={r}": low_rank(r, model) for r in ranks}


def model_of(network: Network) -> Model:
    """Return a network."""
    return image_model(network.architecture, (network.image, network.image, 3), N_CLASSES, network.sizes)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell and rule, what a step costs: counted at two sizes, and measured at one of them."""
    import xarray as xr

    found = [_one_cell(getattr(config, cell), config, resources) for cell in config.cells]
    return xr.concat(found, dim="cell").assign_coords(cell=list(config.cells))


def _one_cell(case: Case, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    sizes = {"counted": case.counted, "measured": case.measured}
    counts = xr.concat([counted(network, config) for network in sizes.values()], dim="size")
    found = counts.assign_coords(size=list(sizes)).assign(_measured(case.measured, config, resources))
    return found.assign(break_even=("size", [break_even(network, config) for network in sizes.values()]))


def counted(network: Network, config: Config) -> xr.Dataset:
    """Return operations by what they are for, and bytes by what they hold, of a step under every rule."""
    import xarray as xr

    model = model_of(network)
    rules = rules_of(sorted({*config.ranks, *config.measured_ranks}), model)
    costs = [cost_of(model, rule, network, config) for rule in rules.values()]
    flops = [[getattr(one.total, part).flops for part in _WORDS] for one in costs]
    memory = [[getattr(one.memory, kind) for kind in MEMORY] for one in costs]
    return xr.Dataset(
        {"flops": (("rule", "part"), flops), "memory": (("rule", "kind"), memory)},
        {"rule": list(rules), "part": list(_WORDS), "kind": list(MEMORY)},
    )


def cost_of(model: Model, rule: Rule, network: Network, config: Config) -> Any:
    """Return what a step of a network costs under a rule."""
    from linfb.engine import cost, optimisers

    optimizer = getattr(optimisers, config.optimizer)(RATE)
    return cost(model, rule, batch_size=network.batch_size, optimizer=optimizer)


def break_even(network: Network, config: Config) -> int:
    """Return the largest rank at which the low-rank rule takes fewer operations than backpropagation."""
    model = model_of(network)
    bp = cost_of(model, rule_without_channel(REFERENCE), network, config)
    low, high = 0, max(model.layers[i].kernel_shape[0] for i in model.kernels)
    while high - low > 1:
        middle = (low + high) // 2
        saves = cost_of(model, low_rank(middle, model), network, config).net_saving(bp) > 0
        low, high = (middle, high) if saves else (low, middle)
    return low


def _measured(network: Network, config: Config, resources: Resources) -> dict[str, xr.DataArray]:
    """Return seconds of every round, and the peak of memory, under some of the rules."""
    import xarray as xr

    from linfb.engine import optimisers, train

    model, runs = model_of(network), []
    rules = rules_of(config.measured_ranks, model)
    for seed in config.seeds:
        way = partial(
            train, noise(network, config.timed_steps, seed), model, batch_size=network.batch_size, seed=seed,
            optimizer=getattr(optimisers, config.optimizer)(RATE), device=resources.device, threads=1, progress=False,
        )  # fmt: skip
        runs.append(step_seconds(way, {**rules, AGAIN: rules[REFERENCE]}, config.rounds))
    seconds = xr.concat(runs, dim="round").rename(cell="rule")
    on_host = resources.device == "cpu"
    peaks = [peak_bytes(way, rule) if on_host else np.nan for rule in rules.values()]
    return {
        "seconds": seconds.sel(rule=list(rules)),
        "seconds_again": seconds.sel(rule=AGAIN, drop=True),
        "peak": xr.DataArray(np.array(peaks, np.float64), {"rule": list(rules)}, ("rule",)),
    }


def noise(network: Network, steps: int, seed: int) -> Splits:
    """Return images of noise for so many steps, as the network takes them."""
    from linfb.datasets import Dataset

    rows = steps * network.batch_size
    images = np.random.default_rng(seed).integers(0, 256, (2 * rows, network.image, network.image, 3), np.uint8)
    labels = np.arange(2 * rows) % N_CLASSES
    data = Dataset.from_arrays(images, labels, images[:N_CLASSES], labels[:N_CLASSES])
    layout = "flat" if network.architecture == "mlp" else "image"
    return few(data.splits(validation=0.5, layout=layout), rows)


def relative(results: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return what is counted and measured over the same of backpropagation, by its name.

    "free_flops" are those of channels that learn for free, "kept" is memory but for activations, "seconds" has all
    rounds.
    """
    flops = results.flops.sum("part")
    learning = results.flops.sel(part="feedback_learning", drop=True)
    memory = results.memory.sum("kind")
    found = {
        "flops": flops, "memory": memory, "kept": memory - results.memory.sel(kind="activations", drop=True),
        "peak": results.peak, "seconds": results.seconds,
    }  # fmt: skip
    ratios = {name: one / one.sel(rule=REFERENCE) for name, one in found.items()}
    return ratios | {
        "free_flops": (flops - learning) / flops.sel(rule=REFERENCE),
        "seconds_again": results.seconds_again / results.seconds.sel(rule=REFERENCE),
    }


def rank_of(rule: str) -> int:
    """Return the rank of a rule, 0 of zero feedback."""
    return int(rule.partition(" r=")[2] or 0)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return savings of a step over backpropagation's, gross and net, and what was measured over what was counted."""
    found, ratios = {}, {name: one.sel(cell=list(config.cells)) for name, one in relative(results).items()}
    measured = results.memory.sel(size="measured", rule=REFERENCE).sum("kind")
    for cell in config.cells:
        own = {name: one.sel(cell=cell) for name, one in ratios.items()}
        found[f"break-even rank, {cell}"] = float(results.break_even.sel(cell=cell, size="counted"))
        found[f"measured over counted memory of backpropagation, {cell}"] = float(
            results.peak.sel(cell=cell, rule=REFERENCE) / measured.sel(cell=cell)
        )
        found[f"time of backpropagation over itself, {cell}"] = float(own["seconds_again"].median())
        for rule in results.rule.values[1:]:
            full = {name: float(own[name].sel(rule=rule, size="counted")) for name in ("flops", "free_flops")}
            found[f"net saving of FLOPs, {cell}, {rule}"] = 1 - full["flops"]
            found[f"the same if Q and P learnt for free, {cell}, {rule}"] = 1 - full["free_flops"]
            if np.isfinite(own["seconds"].sel(rule=rule)).all():
                found[f"time over backpropagation's, {cell}, {rule}"] = float(own["seconds"].sel(rule=rule).median())
                found[f"FLOPs over backpropagation's at the measured size, {cell}, {rule}"] = float(
                    own["flops"].sel(rule=rule, size="measured")
                )
                found[f"peak of memory over backpropagation's, {cell}, {rule}"] = float(own["peak"].sel(rule=rule))
    return found


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure, a column for each network: operations by what they are for, memory, and time of a step."""
    figure = new_figure(PAGE, 5.6)
    rows = figure.subplots(3, len(config.cells), squeeze=False, sharey="row", sharex=True, height_ratios=(1.3, 1, 1))
    ratios = relative(results)
    for cell, column in zip(config.cells, rows.T, strict=True):
        case: Case = getattr(config, cell)
        column[0].set_title(case.title)
        _operations(column[0], results.sel(cell=cell, size="counted"))
        own = {name: one.sel(cell=cell) for name, one in ratios.items()}
        _compared(column[1], own["memory"], own["peak"].expand_dims("round"), case)
        kept = own["kept"].sel(size="measured", rule=[rule for rule in results.rule.values if rule != REFERENCE])
        column[1].plot([rank_of(rule) or ZERO for rule in kept.rule.values], kept, "--", color=GREY, linewidth=0.9,
                       label="counted, without activations")  # fmt: skip
        _compared(column[2], own["flops"], own["seconds"], case)
        low, high = own["seconds_again"].quantile((0.25, 0.75)).values
        column[2].axhspan(low, high, color=GREY, alpha=0.25, linewidth=0, label="BP timed twice (quartiles)", zorder=0)
        rank_axis(column[2].xaxis, config.ranks[::2])
    for axes, label in zip(rows[:, 0], ("FLOPs over BP's", "memory over BP's", "time over BP's"), strict=True):
        axes.set_ylabel(label)
    rows[2, 0].set_xlabel("rank r of all channels", x=0, ha="left")
    rows[0, 0].set_ylim(0, 1.6)
    for axes, letter in zip(rows[:, 0], "abc", strict=True):
        panel_letter(axes, letter)
    lines = {label: line for axes in rows.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(lines.values()), list(lines), loc="outside lower center", ncols=4)
    return figure


def _operations(axes: Any, results: xr.Dataset) -> None:
    """Draw what a step's operations are for, above one another, and where they are as many as backpropagation's."""
    narrow = [rule for rule in results.rule.values if " r=" in rule]
    shares = (results.flops / results.flops.sel(rule=REFERENCE).sum("part")).sel(rule=narrow).transpose("part", "rule")
    axes.stackplot([rank_of(rule) for rule in narrow], shares.values, colors=_SHADES, labels=list(_WORDS.values()))
    axes.axhline(1, **THEORY)
    axes.axvline(float(results.break_even), color="black", linewidth=0.9, linestyle=":", zorder=3)
    axes.annotate(f"r = {int(results.break_even)}", (float(results.break_even), 1.5), (-2, 0), fontsize=7, ha="right",
                  textcoords="offset points", va="top")  # fmt: skip


def _compared(axes: Any, counted: xr.DataArray, measured: xr.DataArray, case: Case) -> None:
    """Draw what is counted over that of backpropagation as lines, what is measured as dots."""
    rules = list(counted.rule.values[1:])
    x = [rank_of(rule) or ZERO for rule in rules]
    axes.plot(x, counted.sel(rule=rules, size="measured"), label="counted", **THEORY)
    if case.counted != case.measured:
        axes.plot(x, counted.sel(rule=rules, size="counted"), color="black", linewidth=0.9, linestyle=":",
                  label="counted, of the network in a")  # fmt: skip
    runs = measured.sel(rule=rules).transpose("round", "rule").values
    known = np.isfinite(runs).all(axis=0)
    dots(axes, np.array(x)[known], runs[:, known], COLOURS[1], label="measured")
    axes.axhline(1, color=GREY, linewidth=0.9, zorder=0)
