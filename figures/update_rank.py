r"""What remains of "updates have rank r": the effective rank of weight updates over training.

Errors that went through a channel of rank r lie in r dimensions, and so does the gradient that they make. Then come
the derivatives of rectifiers and of batch normalisation, which act on every sample apart, and the optimiser.
Perceptrons with three hidden layers, linear ones too, learn by backpropagation or with channels of rank r in every
layer (Oja's readers, perfect mirrors). Above, the effective rank of the update of one step, :math:`(\sum_i
s_i^2)^2/\sum_i s_i^4` of its singular values (medians over hidden layers; thin lines are seeds). Below, after the last
step, the share of an update's squared norm that no matrix of rank r can have (d, e), and the effective rank of all
that the weights have moved (f).

**Theory.** In a linear network under gradient descent without momentum updates have rank r at most. Elsewhere nothing
holds them there: masks and momentum mix subspaces, Adam divides entry by entry, and Muon brings all singular values
near one, also those that masks or the turning of P made ever so small.

**What is seen** (quick preset: digits, 64 units in every hidden layer, 240 steps, three seeds; medians). The bound
holds where it should: the largest share of a gradient beyond rank r is 2e-14 in linear networks, but up to .35 with
rectifiers and .51 with batch normalisation. At r = 2 the share of the update is 6e-12, .03 and .27 (linear, ReLU,
batch normalisation) under SGD, .01, .28 and .39 under Adam, and .68, .92 and .94 under Muon. So "updates have rank r"
is a statement about linear networks under SGD; under Muon even a linear network breaks it. Effective ranks are low
anyway: at the end that of backpropagation's update is 1.3 to 2.3 under SGD and 2.4 to 4.7 under Adam, with channels
of rank 2 it is 1.4 to 2.8 and 1.6 to 4.3. Muon makes them 53 for all rules with batch normalisation. What
low rank leaves is seen in the whole change: 10 against 14 (SGD) and 11 against 16 (Adam) of backpropagation, with
batch normalisation, at r = 2; 33 against 35 under Muon. The rates of the optimisers were not chosen on validation. The
preset ``cpu`` (CIFAR-10, 512 units) has not been run yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import _watched
from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, curves, new_figure, panel_letter
from figures._watched import Look, Watching, dynamics, rank_of, spread

if TYPE_CHECKING:
    import xarray as xr

    from linfb.engine import Member, Model

NETWORKS: dict[str, Any] = {"linear": (0, (1, 1)), "ReLU": (0, (4, 1.5)), "batch norm": "-"}
"""Kinds of hidden layers, and the lines that they have; there are rectifiers behind batch normalisation too."""
COLOURED = {"SGD": COLOURS[3], "Adam": COLOURS[4], "AMSGrad": COLOURS[7], "Muon": COLOURS[6]}
"""Optimisers, and their colours."""
RULES = ("backpropagation", "low-rank r=2", "low-rank r=5")
KINDS = ("gradient", "update", "change")
"""What a matrix is: of one batch, of one step, of all steps so far."""
LETTERS = "abcdefgh"
TICKS = (1, 2, 5, 10, 20, 40)


def _cells() -> tuple[str, ...]:
    return tuple(
        f"{optimiser} / {network} / {rule}"
        for optimiser in ("SGD", "Adam", "Muon")
        for network in NETWORKS
        for rule in RULES
    )


@dataclass(frozen=True)
class Config(Watching):
    """Settings of the figure; a cell is an optimiser (also "AMSGrad"), a kind of hidden layers, and a rule.

    The rates are those of the forward weights under each optimiser, and of readers, which move by AMSGrad. There are
    `looks` looks within the steps.
    """

    cells: tuple[str, ...] = _cells()
    steps: int = 240
    looks: int = 10
    sgd_rate: float = 0.1
    adam_rate: float = 3e-3
    muon_rate: float = 1e-2
    reader_rate: float = 3e-3


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        data="cifar10", widths=(512,) * 3, steps=20 * 351, looks=20, batch_size=128, adam_rate=6e-4, reader_rate=6e-4,
        validation=0.1,
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images."""
    return _watched.on_data(config, CONFIGS["quick"], data)


def member_of(cell: str, seed: int, config: Config) -> Member:
    """Return the rule and the optimisers behind a cell's name."""
    from linfb import rules
    from linfb.engine import Member, Optimizers, adam, amsgrad, muon, sgd
    from linfb.rules import mirrors, readers

    optimiser, _, rule = _parts(cell)
    name, _, rank = rule.partition(" r=")
    if name == "backpropagation":
        found = rules.backpropagation()
    else:
        found = rules.low_rank(int(rank), reader=readers.Oja(covariance="normalised"), mirror=mirrors.Exact())
    own = {
        "SGD": sgd(config.sgd_rate), "Adam": adam(config.adam_rate), "AMSGrad": amsgrad(config.adam_rate),
        "Muon": muon(config.muon_rate),
    }[optimiser]  # fmt: skip
    return Member(found, Optimizers(own, P=amsgrad(config.reader_rate)), seed)


def model_of(cell: str, n_in: int, n_classes: int, config: Config) -> Model:
    """Return the network behind a cell's name."""
    from itertools import pairwise

    from linfb.engine import Bias, Dense, Model, mlp

    network = _parts(cell)[1]
    if network == "linear":
        hidden = (Dense(below, width) for below, width in pairwise((n_in, *config.widths)))
        return Model((*hidden, Dense(config.widths[-1], n_classes), Bias(n_classes)))
    return mlp(n_in, config.widths, n_classes, norm={"ReLU": None, "batch norm": "batch"}[network])


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, the effective rank of what moves the weights of every hidden layer, and test accuracies."""
    return dynamics(
        config, spread(config.steps, config.looks), resources, member_of=member_of, measure=measured,
        model_of=lambda cell, splits: model_of(cell, splits.train.x.shape[1], splits.n_classes, config),
    )  # fmt: skip


def measured(look: Look, first: Look, before: Look, cell: str) -> dict[str, list[float]]:
    """Return for every hidden layer the effective ranks of three matrices, and how much of each is beyond rank r."""
    from linfb.observables.measures import participation_ratio

    rank = rank_of(cell)
    found: dict[str, list[float]] = {f"{kind}_{what}": [] for kind in KINDS for what in ("rank", "beyond")}
    changes = (W + step - start for W, step, start in zip(look.kernels, look.updates, first.kernels, strict=True))
    for matrices in list(zip(look.gradients, look.updates, changes, strict=True))[:-1]:
        for kind, matrix in zip(KINDS, matrices, strict=True):
            found[f"{kind}_rank"].append(float(participation_ratio(matrix)))
            found[f"{kind}_beyond"].append(beyond(matrix, rank))
    return found


def beyond(matrix: np.ndarray, rank: int) -> float:
    """Return the share of the squared norm of a matrix that no matrix of that rank can have; NaN for rank 0."""
    if not rank or not matrix.any():
        return np.nan
    squares = np.linalg.eigvalsh(matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix)[::-1]
    return float(squares[rank:].clip(0).sum() / squares.sum())


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return effective ranks and shares beyond rank r, medians over layers and seeds at the last look, and accuracies.

    In the linear network a gradient beyond rank r would be an error of ours.
    """
    found, last = {}, results.isel(step=-1)
    for cell in config.cells:
        here = last.sel(cell=cell)
        found[f"{cell}: test accuracy"] = float(here.test_accuracy.mean())
        for name in (f"{kind}_{what}" for kind in KINDS for what in ("rank", "beyond")):
            found[f"{cell}: {name.replace('_', ', ')}"] = float(here[name].median())
    narrow = [cell for cell in config.cells if rank_of(cell)]
    for network in NETWORKS:
        of_network = [cell for cell in narrow if f"/ {network} /" in cell]
        if of_network:
            largest = float(results.gradient_beyond.sel(cell=of_network).max())
            found[f"{network}: largest share of a gradient beyond rank r"] = largest
    return {name: value for name, value in found.items() if np.isfinite(value)}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: ranks of updates over training, what is beyond rank r, and the whole change."""
    figure = new_figure(PAGE, 5.0)
    present = [optimiser for optimiser in COLOURED if any(_parts(cell)[0] == optimiser for cell in config.cells)]
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    axes = above.subplots(1, len(present), sharey=True, squeeze=False)[0]
    for here, optimiser, letter in zip(axes, present, LETTERS, strict=False):
        for cell in config.cells:
            name, network, rule = _parts(cell)
            if name == optimiser:
                runs = results.update_rank.sel(cell=cell).median("layer")
                curves(here, results.step.values, runs, _colour(rule), linestyle=NETWORKS[network])
        here.set_xscale("symlog", linthresh=1)
        here.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        here.set_xlim(-0.2, 1.2 * config.steps)
        here.set_yscale("log", base=2)
        here.set_yticks(TICKS, list(map(str, TICKS)))
        here.minorticks_off()
        here.set_title(optimiser)
        here.set_xlabel("step")
        panel_letter(here, letter)
    axes[0].set_ylabel("effective rank of an update")
    for rule in dict.fromkeys(_parts(cell)[2] for cell in config.cells):
        axes[0].plot([], [], color=_colour(rule), label=rule)
    for network, line in NETWORKS.items():
        axes[0].plot([], [], color=GREY, linestyle=line, label=network)
    above.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    ranks = sorted({rank for cell in config.cells if (rank := rank_of(cell))})[:2]
    others = below.subplots(1, len(ranks) + 1)
    last = results.isel(step=-1)
    for here, rank, letter in zip(others, ranks, LETTERS[len(present) :], strict=False):
        _groups(here, list(NETWORKS), present, last.update_beyond, lambda o, n, r=rank: f"{o} / {n} / low-rank r={r}")
        here.set_ylim(-0.03, 1.0)
        here.set_title(f"r = {rank}")
        here.set_ylabel("share of an update beyond rank r" if letter == LETTERS[len(present)] else "")
        panel_letter(here, letter)
    others[0].legend(loc="upper left", handletextpad=0.2)
    rules = [rule for rule in RULES if any(_parts(cell)[2] == rule for cell in config.cells)]
    _groups(others[-1], rules, present, last.change_rank, lambda o, rule: f"{o} / batch norm / {rule}")
    others[-1].set_ylabel("effective rank of $W(t) - W(0)$")
    others[-1].set_title("batch norm")
    panel_letter(others[-1], LETTERS[len(present) + len(ranks)])
    return figure


def _parts(cell: str) -> tuple[str, str, str]:
    optimiser, network, rule = cell.split(" / ")
    return optimiser, network, rule


def _colour(rule: str) -> str:
    return COLOURS[RULES.index(rule)] if rule in RULES else COLOURS[3]


def _groups(
    axes: Any, groups: Sequence[str], optimisers: Sequence[str], values: xr.DataArray, cell_of: Callable[..., str]
) -> None:
    """Draw every seed (a median over hidden layers) of some cells, in groups, with a colour for each optimiser."""
    for k, optimiser in enumerate(optimisers):
        colour = COLOURED[optimiser]
        for place, group in enumerate(groups):
            if (cell := cell_of(optimiser, group)) in values.cell:
                found = values.sel(cell=cell).median("layer").values
                at = place + 0.26 * (k - (len(optimisers) - 1) / 2)
                axes.plot(
                    np.full(found.size, at), found, "o", color=colour, markersize=3.5, markeredgewidth=0, alpha=0.6
                )
                axes.plot([at - 0.1, at + 0.1], [np.median(found)] * 2, "-", color=colour, linewidth=1.8)
        axes.plot([], [], "o", color=colour, markersize=3.5, label=optimiser)
    axes.set_xticks(
        range(len(groups)), [group.replace("backpropagation", "BP").replace("low-rank ", "") for group in groups]
    )
    axes.set_xlim(-0.6, len(groups) - 0.4)
