r"""How well channels carry gradients: the angle between the carried and the true one against rank.

(a) The share of the errors' squared norm that one random channel sees when a perceptron (three hidden layers, batch
normalisation, ReLU) is at its start, which is the squared cosine between an error and what is carried of it. (b) The
squared cosine between the carried and the true gradient of every hidden layer, behind all channels above it, with
random readers and perfect mirrors, at the start. (c) The same for hidden layer 1 after training: readers that stay as
they were drawn or follow Oja's rule on errors, with perfect mirrors, and Oja's with a mirror that learns from a random
start as Kolen-Pollack has it.

**Theory** (black; :func:`linfb.theory.carried_alignment`). Over random readers of rank r in m dimensions the squared
cosine of one channel has mean r/m, whatever the errors are, and a variance that depends on their dimension alone
(grey: two standard deviations, exact at any m). Independent channels multiply where weights are isotropic: the lines
in (b), for rectifiers too, are that product. The best reader has the share of the r leading eigenvalues of the errors'
covariance, 1 once r reaches their rank.

**What is seen** (quick preset: digits, 64 units in every hidden layer, 240 steps, three seeds). Random channels follow
theory in (a): the root mean square deviation is 1.2 of its standard deviations (16 channels a seed, which share rows,
so that they are no independent draws), against 8.9 if the cosine itself were r/m. In (b) the product describes seeds'
medians although theory has no rectifiers, with much scatter below r = 8. Training aligns: in hidden layer 1 the
squared cosine of fixed readers at r = 8 rises from .01 to .33, that of Oja's readers to .87 (r = 4: .66, r = 2: .35),
with no threshold at the number of classes. A mirror that learns is what limits then: with it the squared cosine stays
at .45 (r = 8) to .60 (r = 32), and .54 at full rank, where nothing is lost in the reader. It is not what decides
accuracy: at r = 2 that is .90, .91 and .92. The preset ``cpu`` (CIFAR-10, 512 units) has not been run yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import _watched
from figures._run import Resources
from figures._style import COLOURS, PAGE, THEORY, curves, dots, new_figure, panel_letter
from figures._watched import Look, Watching, by_rank, dynamics, rank_of, rows_of

if TYPE_CHECKING:
    import xarray as xr

    from linfb.engine import Member

CHANNELS = {"fixed P": COLOURS[0], "Oja": COLOURS[1], "Oja and Kolen-Pollack": COLOURS[2]}
"""Readers with a perfect mirror, and one with a mirror that learns from a random start; their colours."""


@dataclass(frozen=True)
class Config(Watching):
    """Settings of the figure; a cell is a kind of channels, and their rank. Everything learns by AMSGrad."""

    cells: tuple[str, ...] = ()
    learning_rate: float = 3e-3


def _cells(ranks: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{channel} r={rank}" for channel in CHANNELS for rank in ranks)


PARTS = "cells"
CONFIGS = {
    "quick": Config(cells=_cells((1, 2, 4, 8, 16, 32, 64)), steps=240),
    "cpu": Config(
        cells=_cells((1, 2, 5, 10, 32, 64, 128, 256, 512)), data="cifar10", widths=(512,) * 3, steps=10 * 351,
        batch_size=128, learning_rate=6e-4, validation=0.1,
    ),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images."""
    return _watched.on_data(config, CONFIGS["quick"], data)


def member_of(cell: str, seed: int, config: Config) -> Member:
    """Return the rule and the optimiser behind a cell's name."""
    from linfb import rules
    from linfb.engine import Member, amsgrad
    from linfb.rules import mirrors, readers

    channel, _, rank = cell.partition(" r=")
    reader = readers.Fixed() if channel == "fixed P" else readers.Oja(covariance="normalised")
    mirror = mirrors.KolenPollack() if channel.endswith("Kolen-Pollack") else mirrors.Exact()
    return Member(rules.low_rank(int(rank), reader=reader, mirror=mirror), amsgrad(config.learning_rate), seed)


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, what channels capture and how errors and gradients align, before and after training."""
    from linfb.engine import mlp

    return dynamics(
        config, (0, config.steps), resources, member_of=member_of, measure=measured,
        model_of=lambda _, splits: mlp(splits.train.x.shape[1], config.widths, splits.n_classes),
        parts=("validation",),
    )  # fmt: skip


def measured(look: Look, first: Look, before: Look, cell: str) -> dict[str, Any]:
    """Return the share of the error that the channel into every hidden layer captures, and what arrives there.

    That is: squared cosines between the carried and the true error, and the carried and the true gradient.
    """
    from linfb.engine.observables import alignment, captured_energy
    from linfb.observables.measures import cosine, participation_ratio

    view = look.views["validation"]
    pairs = ((view.carried.weights[i], view.exact.weights[i]) for i in view.indices[:-1])
    return {
        "captured": captured_energy(view)[1:],
        "dimension": [float(participation_ratio(rows_of(read))) for read in view.carried.reads[1:]],
        "error": alignment(view)[:-1] ** 2,
        "gradient": [float(cosine(rows_of(carried), rows_of(exact))) ** 2 for carried, exact in pairs],
    }


def expected(results: xr.Dataset, rank: int) -> np.ndarray:
    """Return what independent random readers leave of the squared cosine at every hidden layer: the product above."""
    from linfb.theory import carried_alignment

    shares = [carried_alignment(min(rank, int(m)), int(m))[0] for m in results.width[0].values]
    return np.cumprod(shares[::-1])[::-1]


def deviations(results: xr.Dataset, cells: Sequence[str], power: float = 1) -> np.ndarray:
    """Return by how many standard deviations what random channels capture is off its mean, (r/m)^power."""
    from linfb.theory import carried_alignment

    found = []
    for cell in cells:
        for layer, width in zip(results.layer.values, results.width[0].values, strict=True):
            here, rank, m = results.isel(step=0).sel(cell=cell, layer=layer), rank_of(cell), int(width)
            for captured, D in zip(here.captured.values, here.dimension.values, strict=True):
                if rank < m and np.isfinite(captured):
                    mean, variance = carried_alignment(rank, m, dimension=D)
                    found.append((captured - mean**power) / np.sqrt(variance))
    return np.array(found)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return deviations of random readers from theory in units of its spread, and squared cosines after training."""
    fixed = [cell for cell in config.cells if cell.startswith("fixed P")]
    found = {}
    if fixed:
        off = deviations(results, fixed)
        found["fixed P at the start: root mean square deviation over the spread of theory"] = np.sqrt(np.mean(off**2))
        wrong = deviations(results, fixed, power=2)
        found["the same if cosines, not their squares, were r/m"] = np.sqrt(np.mean(wrong**2))
    for cell in config.cells:
        here = results.sel(cell=cell, layer=1)
        found[f"{cell}: gradient of hidden layer 1, start"] = float(here.gradient.isel(step=0).mean())
        found[f"{cell}: gradient of hidden layer 1, end"] = float(here.gradient.isel(step=-1).mean())
        found[f"{cell}: theory for random readers"] = float(expected(results, rank_of(cell))[0])
        found[f"{cell}: test accuracy"] = float(here.test_accuracy.isel(step=-1).mean())
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: what one random channel captures, and gradients before and after training."""
    figure = new_figure(PAGE, 3.2)
    one, start, end = figure.subplots(1, 3)
    ranks = {channel: by_rank(config.cells, channel) for channel in CHANNELS}
    every = sorted({rank for some in ranks.values() for rank in some})
    fine = np.arange(1, max(every) + 1)
    theory = np.array([expected(results, int(rank)) for rank in fine])
    _one_channel(one, results.isel(step=0), ranks["fixed P"])
    for k, (layer, colour) in enumerate(zip(results.layer.values, COLOURS[3:], strict=False)):
        start.plot(fine, theory[:, k], **THEORY)
        if ranks["fixed P"]:
            cells = list(ranks["fixed P"].values())
            runs = results.gradient.isel(step=0).sel(layer=layer, cell=cells).transpose("seed", "cell")
            dots(start, list(ranks["fixed P"]), runs, colour, label=f"layer {layer}")
    end.plot(fine, theory[:, 0], **THEORY, label="random readers")
    for channel, colour in CHANNELS.items():
        if ranks[channel]:
            runs = results.gradient.isel(step=-1).sel(layer=1, cell=list(ranks[channel].values()))
            curves(
                end,
                list(ranks[channel]),
                runs.transpose("seed", "cell"),
                colour,
                label=channel.replace("and Kolen-Pollack", "(Q learned)"),
            )
    for axes, title, letter in zip(
        (one, start, end), ("one channel", "all channels, at the start", "hidden layer 1, trained"), "abc", strict=True
    ):
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(title)
        panel_letter(axes, letter)
    for axes in (start, end):
        axes.set_xscale("log", base=2)
        axes.set_xticks(every, [str(rank) for rank in every])
        axes.minorticks_off()
        axes.set_xlabel("rank r of all channels")
        axes.legend(loc="upper left")
    start.set_ylabel("squared cosine,\ncarried and true gradient")
    return figure


def _one_channel(axes: Any, start: xr.Dataset, cells: dict[int, str]) -> None:
    """Draw what random channels capture of errors against r/m, and two standard deviations of theory."""
    from linfb.theory import carried_alignment

    axes.plot([0, 1], [0, 1], **THEORY)
    for layer, width, colour in zip(start.layer.values, start.width[0].values, COLOURS[3:], strict=False):
        m = int(width)
        some = {rank: cell for rank, cell in cells.items() if rank <= m}
        if not some:
            continue
        here = start.sel(layer=layer, cell=list(some.values()))
        label = "output" if layer == start.layer.values[-1] else f"hidden layer {layer + 1}"
        dots(axes, np.array(list(some)) / m, here.captured.transpose("seed", "cell"), colour, label=f"reading {label}")
        D = float(here.dimension.median())
        mean, variance = np.transpose([carried_alignment(rank, m, dimension=D) for rank in range(1, m + 1)])
        axes.fill_between(
            mean, mean - 2 * np.sqrt(variance), mean + 2 * np.sqrt(variance), color=colour, alpha=0.15, linewidth=0
        )
    axes.set_xlabel("r/m")
    axes.set_ylabel("share of the error captured")
    axes.legend(loc="upper left")
