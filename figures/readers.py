r"""Whether readers find the principal subspace of the errors they read, how fast, and what it is worth.

A perceptron with three hidden layers (batch normalisation, ReLU) learns to classify images; errors pass from layer to
layer through channels of rank r, whose mirrors learn as Kolen-Pollack has it. (a-c) Overlap of what each channel reads
with the r leading eigenvectors of the second moment of the errors there, on validation rows: the mean squared cosine
of principal angles, 1 for the same subspace, r/m by chance. Readers stay fixed (the control), follow matrix Oja's
rule, which is not local to a synapse, or similarity matching with anti-Hebbian lateral connections, which is. The
dashed line is the overlap of training and validation rows' subspaces. (d) Both rules on errors that do not change,
those that backpropagation leaves after an epoch, against Oja's flow in closed form (:func:`linfb.theory.oja_metric`).
(e) The error that is read in the end, over the most that any r directions could read. (f) Test accuracy. P moves by
AMSGrad like the weights or by gradient descent ("by SGD"), ten times as fast ("fast"); covariances are normalised, or
not ("plain").

**Theory.** On errors that do not change both rules end on the principal subspace; lateral connections put a matrix
before Oja's flow, which changes its pace and not its end. While the network learns, what is read is learned away: with
r below the dimension of the errors the largest of what is left is where the channel does not look (hiding,
:doc:`theory`).

**What is seen** (quick preset: digits, 64 units in every hidden layer, 360 steps of 32 images, three seeds; means at
r = 2). In hidden layers readers find the subspace: overlaps end at .68 and .85 (Oja) and .84 and .88 (similarity
matching), against .03 by chance and .02 to .03 of fixed readers. Both need a median of 97 and 51 steps for a half:
local and not local are equally fast. At the output no reader finds it: most overlaps stay *below* chance (.2), as
they do with a fixed P; hiding would look like this, but nothing else of it was tested. On errors that do not change
Oja's readers are within .014 of the closed form, similarity matching is off it by up to .39 on the way, and both end
at 1.00. Normalisation makes no difference under AMSGrad (.80 and .82 without). Under gradient descent it decides the
pace: with thirty times the rate plain readers still need 360 and 187 steps for a half, where normalised ones need 187
and 97. To find the subspace is not to learn: the fast reader has the largest overlaps (.95 and .90 in 51 and 14
steps) and an accuracy of .58 (why was not measured: perhaps its mirror cannot follow); all others have .90 to .95,
fixed readers .92, and .96 to .97 at r = 5. Sanger's rule is not among the readers. The preset ``cpu`` (CIFAR-10, 512
units) has not been run yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import _watched
from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, THEORY, curves, dots, new_figure, panel_letter
from figures._watched import Look, Watching, dynamics, rank_of, rows_of, spread, watched

if TYPE_CHECKING:
    import xarray as xr

    from linfb.datasets import Splits
    from linfb.engine import Member, Model

READERS = {
    "fixed P": "fixed P",
    "Oja": "Oja",
    "similarity matching": "similarity\nmatching",
    "plain Oja": "plain Oja",
    "Oja by SGD": "Oja by\nSGD",
    "fast Oja by SGD": "fast Oja\nby SGD",
    "plain Oja by SGD": "plain Oja\nby SGD",
}
"""Ways in which P moves, and how they are written below an axis."""
LINES = {"fixed P": GREY, "Oja": COLOURS[0], "similarity matching": COLOURS[1], "fast Oja by SGD": COLOURS[2]}
"""Those whose course is drawn."""
STEP = 0.05
"""Step of a reader on errors that do not change, in units of the time of their leading direction."""


@dataclass(frozen=True)
class Config(Watching):
    """Settings of the figure; a cell is a way in which P moves, and a rank.

    Everything is trained by AMSGrad with `learning_rate`, P by gradient descent (SGD) with `reader_rate` where a cell
    says so, times a factor for "fast" ones and for "plain" ones, whose covariance is not normalised. There are `looks`
    looks within the steps. `frozen_after` steps of backpropagation make the errors that do not change, of which a
    reader sees `frozen_time` units of time.
    """

    cells: tuple[str, ...] = ()
    looks: int = 11
    learning_rate: float = 3e-3
    reader_rate: float = 0.01
    factors: tuple[tuple[str, float], ...] = (("fast", 10.0), ("plain", 30.0))
    frozen_after: int = 36
    frozen_time: float = 100.0


def _cells(ranks: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{reader} r={rank}" for reader in READERS for rank in ranks)


PARTS = "cells"
CONFIGS = {
    "quick": Config(cells=_cells((2, 5))),
    "cpu": Config(
        cells=_cells((2, 5, 10, 32)), data="cifar10", widths=(512,) * 3, steps=20 * 351, looks=24, batch_size=128,
        learning_rate=6e-4, validation=0.1,
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images."""
    return _watched.on_data(config, CONFIGS["quick"], data)


def member_of(cell: str, seed: int, config: Config) -> Member:
    """Return the rule and the optimisers behind a cell's name."""
    from linfb import rules
    from linfb.engine import Member, Optimizers, amsgrad, sgd
    from linfb.rules import readers

    name, _, rank = cell.partition(" r=")
    words = name.removesuffix(" by SGD").removeprefix("plain ").removeprefix("fast ")
    covariance = "second_moment" if name.startswith("plain") else "normalised"
    reader = {
        "fixed P": readers.Fixed(),
        "Oja": readers.Oja(covariance=covariance),
        "similarity matching": readers.SimilarityMatching(covariance=covariance),
    }[words]
    rate = config.reader_rate * next((factor for word, factor in config.factors if name.startswith(word)), 1.0)
    optimisers = Optimizers(amsgrad(config.learning_rate), P=sgd(rate) if name.endswith("by SGD") else None)
    return Member(rules.low_rank(int(rank), reader=reader), optimisers, seed)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, what every channel has found after some steps, the test accuracy, and the frozen errors."""
    learned = dynamics(
        config, spread(config.steps, config.looks), resources, member_of=member_of, measure=measured,
        model_of=lambda _, splits: model_of(splits, config), parts=("validation", "train"),
    )  # fmt: skip
    still = {name: (("cell", "seed", "time"), values) for name, values in frozen(config, resources).items()}
    return learned.assign(still).assign_coords(time=_times(config))


def model_of(splits: Splits, config: Config) -> Model:
    """Return the network."""
    from linfb.engine import mlp

    return mlp(splits.train.x.shape[1], config.widths, splits.n_classes)


def principal(rows: np.ndarray, rank: int) -> np.ndarray:
    """Return the leading eigenvectors of the second moment of rows, shape (out, rank)."""
    return np.linalg.eigh(rows.T @ rows)[1][:, : -rank - 1 : -1]


def measured(look: Look, first: Look, before: Look, cell: str) -> dict[str, list[float]]:
    """Return what every channel has found of what it reads, and what the principal subspace of that is worth.

    `overlap` with the principal subspace; `captured`, of the error that it could read; and the overlaps of that
    subspace with those of other rows (`agreement`) and of the look before (`kept`).
    """
    from linfb.observables.measures import captured_energy, subspace_overlap

    found: dict[str, list[float]] = {"overlap": [], "captured": [], "agreement": [], "kept": []}
    view = look.views["validation"]
    for k, channel in enumerate(view.channels[1:], start=1):
        assert channel is not None
        rows, P = rows_of(view.carried.reads[k]), channel.filters
        space = principal(rows, len(P))
        found["overlap"].append(float(subspace_overlap(P, space)))
        found["captured"].append(float(captured_energy(P, rows) / captured_energy(space.T, rows)))
        for name, other in {"agreement": look.views["train"], "kept": before.views["validation"]}.items():
            there = principal(rows_of(other.carried.reads[k]), len(P))
            found[name].append(float(subspace_overlap(there.T, space)))
    return found


def _times(config: Config) -> np.ndarray:
    return STEP * np.unique(np.geomspace(1, config.frozen_time / STEP, 25).round())


def frozen(config: Config, resources: Resources) -> dict[str, np.ndarray]:
    """Return how readers come to the principal subspace of errors that do not change, and the flow in closed form.

    Time is in units of that of the leading direction.
    """
    from linfb import rules
    from linfb.engine import Member, amsgrad
    from linfb.theory import oja_metric

    times, splits = _times(config), config.splits(resources)
    names = ("frozen_overlap", "frozen_theory")
    found = {name: np.full((len(config.cells), len(config.seeds), len(times)), np.nan) for name in names}
    followed = [
        (c, cell) for c, cell in enumerate(config.cells) if cell.startswith(("Oja r=", "similarity matching r="))
    ]
    if not followed:
        return found
    members = [Member(rules.backpropagation(), amsgrad(config.learning_rate), seed) for seed in config.seeds]
    looks = next(watched(
        splits, model_of(splits, config), members, (config.frozen_after,), ("validation",),
        batch_size=config.batch_size, device=resources.device,
    ))  # fmt: skip
    for s, (seed, look) in enumerate(zip(config.seeds, looks, strict=True)):
        if look is None:
            continue
        rows = rows_of(look.views["validation"].carried.reads[-2])
        rows *= np.sqrt(len(rows)) / np.linalg.norm(rows, 2)
        for c, cell in followed:
            rule = member_of(cell, seed, config).rule
            P = rule.reader.initial(rule.rank, rows.shape[1], np.random.default_rng(seed))
            space, metric = principal(rows, len(P)), oja_metric(times, rows.T @ rows / len(rows), P)
            reader = replace(rule.reader, covariance="second_moment")
            found["frozen_overlap"][c, s] = _followed(reader, P, rows, space, times)
            found["frozen_theory"][c, s] = np.einsum("ij,tik,kj->t", space, metric, space) / len(P)
    return found


def _followed(reader: Any, P: np.ndarray, rows: np.ndarray, space: np.ndarray, times: np.ndarray) -> list[float]:
    """Let a reader descend in small steps; return how much of a subspace it has found at some times."""
    from linfb.engine import Dense
    from linfb.observables.measures import subspace_overlap
    from linfb.rules import Channel
    from linfb.rules.base import View

    channel, delta, found = Channel(P=P, M=reader.initial_lateral(len(P))), rows / len(rows), []
    layer = Dense(1, rows.shape[1])  # readers do not ask for it
    for number in range(1, round(times[-1] / STEP) + 1):
        view = View(layer, None, delta, reader.read(channel, delta), None, channel, iter, len(rows))
        moves = {"P": reader.gradient(view), "M": reader.lateral_gradient(view)}
        channel = channel._replace(
            **{name: getattr(channel, name) - STEP * move for name, move in moves.items() if move is not None}
        )
        if np.isclose(times, number * STEP).any():
            found.append(float(subspace_overlap(channel.filters, space)))
    return found


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return overlaps and accuracies at the end (means), times to half of the principal subspace, and controls."""
    found, last = {}, results.isel(step=-1)
    for cell in config.cells:
        here = last.sel(cell=cell)
        found[f"{cell}: test accuracy"] = float(here.test_accuracy.mean())
        for layer in results.layer.values:
            for name in ("overlap", "captured"):
                found[f"{cell}, into hidden layer {layer}: {name}"] = float(here[name].sel(layer=layer).mean())
            found[f"{cell}, into hidden layer {layer}: steps to an overlap of a half"] = float(
                np.median(_half_steps(results.overlap.sel(cell=cell, layer=layer)))
            )
    apart = abs(results.frozen_overlap - results.frozen_theory)
    for cell in config.cells:
        if np.isfinite(apart.sel(cell=cell)).any():
            found[f"{cell}: frozen errors, largest deviation from the flow"] = float(apart.sel(cell=cell).max())
            found[f"{cell}: frozen errors, overlap at the end"] = float(
                results.frozen_overlap.sel(cell=cell)[:, -1].mean()
            )
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _half_steps(overlap: xr.DataArray) -> np.ndarray:
    """Return after how many steps each seed has an overlap of a half for the first time, infinite for never."""
    enough = overlap.transpose("seed", "step").values >= 0.5
    return np.where(enough.any(axis=1), overlap.step.values[enough.argmax(axis=1)], np.inf)


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: overlaps over training above; frozen errors, what is read, and accuracies below."""
    figure = new_figure(PAGE, 5.0)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    rank = min(map(rank_of, config.cells))
    axes = above.subplots(1, results.sizes["layer"], sharey=True, squeeze=False)[0]
    for here, layer, letter in zip(axes, results.layer.values, "abcdefgh", strict=False):
        _course(here, results.sel(layer=layer), rank, config)
        last = layer == results.layer.values[-1]
        here.set_title("reading the output" if last else f"reading hidden layer {layer + 1}")
        here.set_xlabel("step")
        panel_letter(here, letter)
    axes[0].set_ylabel(f"overlap with the errors'\nprincipal subspace, r = {rank}")
    above.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    still, share, accuracy = below.subplots(1, 3, width_ratios=(1.1, 1, 1))
    _frozen(still, results, config)
    last, names = results.isel(step=-1), list(dict.fromkeys(cell.partition(" r=")[0] for cell in config.cells))
    for layer, colour in zip(results.layer.values, COLOURS[3:], strict=False):
        by_name = {name: f"{name} r={rank}" for name in names if f"{name} r={rank}" in config.cells}
        label = "output" if layer == results.layer.values[-1] else f"hidden layer {layer + 1}"
        _strips(share, names, by_name, last.captured.sel(layer=layer), colour, label)
    for own, colour in zip(
        sorted({rank_of(cell) for cell in config.cells}), (COLOURS[5], "black", *COLOURS), strict=False
    ):
        by_name = {name: f"{name} r={own}" for name in names if f"{name} r={own}" in config.cells}
        _strips(accuracy, names, by_name, last.test_accuracy, colour, f"r = {own}")
    words = (f"error read, over the most\nthat r = {rank} could read", "test accuracy")
    for here, label, letter in zip((share, accuracy), words, "ef", strict=True):
        here.set_ylim(len(names) - 0.5, -0.5)
        here.set_yticks(range(len(names)), [READERS[name] for name in names])
        here.set_xlabel(label)
        here.legend(loc="lower center", bbox_to_anchor=(0.45, 0.98), ncols=2, handletextpad=0.1, columnspacing=0.8)
        panel_letter(here, letter)
    accuracy.set_yticklabels([])
    return figure


def _course(axes: Any, results: xr.Dataset, rank: int, config: Config) -> None:
    """Draw what the readers of one layer have found over training, what chance finds, and how sure the subspace is."""
    for name, colour in LINES.items():
        if (cell := f"{name} r={rank}") in config.cells:
            curves(axes, results.step.values, results.overlap.sel(cell=cell), colour, label=name)
    if (cell := f"Oja r={rank}") in config.cells:
        agreement = results.agreement.sel(cell=cell).median("seed")
        axes.plot(
            results.step.values,
            agreement.values,
            color=GREY,
            linewidth=0.9,
            linestyle=(0, (4, 2)),
            label="training rows instead",
        )
    axes.axhline(min(rank / float(results.width[0]), 1), **THEORY | {"linestyle": ":"}, label="chance, r/m")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.minorticks_off()
    axes.set_xlim(-0.2, 1.2 * float(results.step[-1]))
    axes.set_ylim(-0.03, 1.03)


def _frozen(axes: Any, results: xr.Dataset, config: Config) -> None:
    """Draw how readers come to the principal subspace of errors that do not change: the closed form and small steps."""
    shown = [cell for cell in config.cells if np.isfinite(results.frozen_overlap.sel(cell=cell)).any()]
    rank = min(map(rank_of, shown), default=0)
    for name in ("Oja", "similarity matching"):
        if (cell := f"{name} r={rank}") in shown:
            for theory in results.frozen_theory.sel(cell=cell).values:
                axes.plot(results.time.values, theory, **THEORY)
            dots(axes, results.time.values, results.frozen_overlap.sel(cell=cell), LINES[name])
    axes.set_xscale("log")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("time, over that of the\nleading direction")
    axes.set_ylabel("overlap")
    axes.set_title("errors that do not change")
    panel_letter(axes, "d")


def _strips(
    axes: Any, names: Sequence[str], cells: dict[str, str], values: xr.DataArray, colour: str, label: str
) -> None:
    """Draw every seed of a few cells as dots in rows, and the median as a bar."""
    for place, name in enumerate(names):
        if name in cells:
            found = values.sel(cell=cells[name]).values
            axes.plot(
                found, np.full(found.size, place), "o", color=colour, markersize=3.5, markeredgewidth=0, alpha=0.6
            )
            axes.plot([np.median(found)] * 2, [place - 0.3, place + 0.3], "-", color=colour, linewidth=1.8)
    axes.plot([], [], "o", color=colour, markersize=3.5, label=label)
