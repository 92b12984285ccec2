r"""How wide a language model's error channels must be: as the vocabulary, or only as its errors are.

A small causal transformer predicts the next character of a text: by default the help texts of Python's syntax, which
come with Python. Its output is as wide as the vocabulary, about a hundred characters; if the output's dimension set
the rank of sufficient feedback, no channel much narrower than that would do. All channels have rank r (or the width
that they read, where that is less), readers follow Oja's rule, on labels at the output and on errors below, and
mirrors learn as Kolen-Pollack has it; in the direct form the output's error goes to every layer by a channel of its
own. Beside them the rules without a channel: backpropagation, feedback alignment, direct feedback
alignment (DFA), and zero feedback, where only the readout learns. Every cell takes the learning rate with the lowest
validation loss, from a small grid; the epoch is the one with the best validation accuracy.

**Theory.** A bias alone reaches the entropy of single characters, :math:`-\sum_c p_c\log p_c` with their frequencies
in the training part: a rule that stays there has learnt no context. Errors at the output sum to zero over characters,
so they fill one dimension less than the vocabulary at most; but frequencies are uneven, and the effective dimension
of their covariance under backpropagation, the participation ratio of its eigenvalues
:math:`(\sum_i \lambda_i)^2/\sum_i \lambda_i^2` or the number of its principal components that hold 90 %, is less. The
vertical lines are these three numbers; the rank that is enough should be near one of them.

**What is seen** (cpu preset: three epochs of 570 steps in all, two seeds; a quarter of an hour on two cores). Test
losses in nats per character are 1.60 with backpropagation and 2.71 with zero feedback, DFA 2.38, feedback alignment
2.51; channels of rank 1, 4, 16 and 64 reach 2.77, 2.59, 2.23 and 2.04, which is -6, 10, 43 and 60 % of the way from
zero feedback to backpropagation; direct channels of rank 4, 16 and 64 reach 2.70, 2.45 and 2.40. The exact error
fills 18 dimensions by its participation ratio, and 24 components hold 90 % of it, of 105 characters. So most of what
a channel gives it gives by rank 16, near the error's dimension and far below the vocabulary's; but the loss goes on
falling to rank 64, the width of most layers here, and the whole is well above backpropagation after so few steps:
mirrors start at random, and this figure cannot tell slow mirrors from narrow channels. A run of many epochs, or one
with mirrors that start aligned, could.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources, sweeps
from figures._style import COLOURS, GREY, PAGE, curves, new_figure, panel_letter
from figures._training import adaptive_reader, rule_without_channel, summary, trained
from figures.networks import CURVES, loss_curves

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule
    from linfb.datasets import Text
    from linfb.engine.observables import Snapshot

FULL = ("backpropagation", "DFA", "feedback alignment", "zero feedback")
CHANNELS = ("low-rank", "direct low-rank")
HELD = 0.9
"""Share of the error's variance that the counted principal components hold."""

_COLOURS = dict(
    zip(
        ("backpropagation", "low-rank", "direct low-rank", "feedback alignment", "zero feedback", "DFA"),
        COLOURS,
        strict=False,
    )
)


def _cells(ranks: tuple[int, ...], direct: tuple[int, ...]) -> tuple[str, ...]:
    narrow = [f"{rule} r={rank}" for rule, some in zip(CHANNELS, (ranks, direct), strict=True) for rank in some]
    return (*FULL, *narrow)


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is a rule, with its rank where it has channels.

    The first `choosing_seeds` seeds choose the learning rate; the others run at the chosen one only. `characters` is
    how much of the text is taken, from its beginning; None is all.
    """

    cells: tuple[str, ...] = field(default_factory=lambda: _cells((2, 8, 32), (2, 32)))
    seeds: tuple[int, ...] = (0, 1)
    characters: int | None = 60_000
    length: int = 32
    width: int = 32
    depth: int = 1
    heads: int = 2
    epochs: int = 3
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (3e-3, 1e-2)
    choosing_seeds: int = 1


PARTS = "cells"
CONFIGS = {
    "quick": Config(),
    "cpu": Config(
        cells=_cells((1, 4, 16, 64), (4, 16, 64)), seeds=(0, 1), characters=None, length=64, width=64, depth=2,
        heads=4, epochs=3, batch_size=32, learning_rates=(1e-3, 3e-3, 1e-2),
    ),
    "paper": Config(
        cells=_cells((1, 2, 4, 8, 16, 32, 64, 96), (1, 4, 16, 64)), seeds=(0, 1, 2, 3, 4), characters=None, length=128,
        width=128, depth=4, heads=4, epochs=20, batch_size=32, learning_rates=(3e-4, 1e-3, 3e-3, 1e-2),
    ),
}  # fmt: skip


def rule_of(cell: str) -> Rule:
    """Return the rule behind a cell's name."""
    from linfb import rules

    name, _, rank = cell.partition(" r=")
    if name in CHANNELS:
        reader = adaptive_reader()
        return {"low-rank": rules.low_rank, "direct low-rank": rules.direct_low_rank}[name](int(rank), reader=reader)
    return rule_without_channel(name)


def text_of(config: Config) -> Text:
    """Return the text as tokens."""
    from linfb.datasets import Text, demo_text

    return Text.from_string(demo_text()[: config.characters], length=config.length, name="topics")


def unigram_entropy(tokens: Any) -> float:
    """Return the entropy of the frequencies of tokens, in nats: the loss of the best constant prediction of them."""
    frequencies = np.bincount(np.asarray(tokens).ravel()) / np.size(tokens)
    frequencies = frequencies[frequencies > 0]
    return float(-np.sum(frequencies * np.log(frequencies)))


def error_dimensions(view: Snapshot) -> tuple[np.ndarray, np.ndarray]:
    """Return how many dimensions the exact error at the output of every kernel layer has, two arrays of shape (layer,).

    The participation ratio of the eigenvalues of its covariance over rows and positions, and how many principal
    components hold the share HELD of its trace; NaN where there is no error.
    """
    found = [dimensions(delta.reshape(-1, delta.shape[-1])) for delta in map(_on_host, view.exact.deltas)]
    ratios, counts = np.array(found).T
    return ratios, counts


def _on_host(array: Any) -> np.ndarray:
    from linfb.backend import to_numpy

    return to_numpy(array).astype(np.float64)


def dimensions(rows: np.ndarray) -> tuple[float, float]:
    """Return the participation ratio of the covariance of rows, and how many components hold HELD of its trace."""
    centred = rows - rows.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(centred.T @ centred)[::-1].clip(0.0)
    total = eigenvalues.sum()
    if not total > 0:
        return np.nan, np.nan
    shares = eigenvalues / total
    return float(1 / np.sum(shares**2)), float(1 + np.searchsorted(np.cumsum(shares), HELD))


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return, per cell, validation loss at every learning rate, and losses and accuracies at the one chosen by it.

    Of backpropagation also the effective dimensions of the error at every layer after every epoch.
    """
    import xarray as xr

    text = text_of(config)
    parts = [_one_sweep(cells, text, config, resources) for cells in sweeps(config.cells).values()]
    found = xr.concat(parts, dim="cell", join="outer")
    numbers = {"vocabulary": text.n_classes, "unigram_entropy": unigram_entropy(text.tokens[: text.borders[0]])}
    return found.assign({name: xr.full_like(found.chosen_rate, number) for name, number in numbers.items()})


def _one_sweep(cells: Sequence[str], text: Text, config: Config, resources: Resources) -> xr.Dataset:
    from linfb.engine import adamw, train_ensemble
    from linfb.engine.architectures import decoder

    observe = {}
    if "backpropagation" in cells:
        observe = {
            "participation_ratio": lambda view: error_dimensions(view)[0],
            "components": lambda view: error_dimensions(view)[1],
        }
    train = partial(
        train_ensemble, text.splits(),
        decoder(config.length, text.n_classes, width=config.width, depth=config.depth, heads=config.heads),
        epochs=config.epochs, batch_size=config.batch_size, observe=observe, device=resources.device, progress=False,
        name=text.name,
    )  # fmt: skip
    return trained(
        train, {cell: rule_of(cell) for cell in cells}, partial(adamw, weight_decay=0.0),
        lambda runs: -runs.validation_loss.isel(epoch=runs.chosen_epoch), rates=config.learning_rates,
        seeds=config.seeds, choosing_seeds=config.choosing_seeds, keep=(*CURVES, *observe),
    )  # fmt: skip


def _dimensions(results: xr.Dataset) -> dict[str, float]:
    """Return what the rank is compared with: of the error at the output at the end of training, means over seeds."""
    found = {"size of the vocabulary": float(results.vocabulary[0])}
    if "participation_ratio" in results and "backpropagation" in results.cell:
        last = results.sel(cell="backpropagation").isel(layer=-1, epoch=-1).mean("seed")
        found["participation ratio of the error"] = float(last.participation_ratio)
        found[f"components that hold {HELD:.0%} of the error"] = float(last.components)
    return found


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return mean test losses and accuracies of the runs that ended, chosen learning rates, and dimensions.

    Of every cell with channels also the share of the gap between zero feedback and backpropagation that it closes.
    """
    losses = {cell: float(results.test_loss.sel(cell=cell).mean()) for cell in config.cells}
    found = {f"test loss, {cell}": loss for cell, loss in losses.items()}
    found |= summary(results, config.cells)
    if {"zero feedback", "backpropagation"} <= set(config.cells):
        worst, best = losses["zero feedback"], losses["backpropagation"]
        narrow = [cell for cell in config.cells if cell not in FULL]
        found |= {f"share of the gap closed, {cell}": (worst - losses[cell]) / (worst - best) for cell in narrow}
    found |= {"entropy of single characters": float(results.unigram_entropy[0])} | _dimensions(results)
    return {key: value for key, value in found.items() if np.isfinite(value)}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: test loss against rank, and loss over steps."""
    figure = new_figure(PAGE, 3.1)
    swept, stepped = figure.subplots(1, 2, width_ratios=(1.15, 1))
    _against_rank(swept, results, config)
    _over_steps(stepped, results, config)
    for axes in (swept, stepped):
        entropy = float(results.unigram_entropy[0])
        axes.axhline(entropy, color=GREY, linewidth=0.9, linestyle=":", label="single characters")
    handles, labels = swept.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    panel_letter(swept, "a")
    panel_letter(stepped, "b")
    return figure


def _ranks(rule: str, config: Config) -> list[int]:
    return [int(cell.removeprefix(f"{rule} r=")) for cell in config.cells if cell.startswith(f"{rule} r=")]


def _against_rank(axes: Any, results: xr.Dataset, config: Config) -> None:
    for rule in CHANNELS:
        if ranks := _ranks(rule, config):
            loss = results.test_loss.sel(cell=[f"{rule} r={rank}" for rank in ranks]).transpose("seed", "cell")
            curves(axes, ranks, loss, _COLOURS[rule], marker="o",
                   label=f"{rule}, rank r")  # fmt: skip
    for cell in FULL:
        if cell in config.cells:
            level = float(results.test_loss.sel(cell=cell).median())
            axes.axhline(level, color=_COLOURS[cell], linewidth=1.0, linestyle=(0, (4, 2)), label=f"{cell}, median")
    ticks = sorted({rank for rule in CHANNELS for rank in _ranks(rule, config)})
    axes.set_xscale("log", base=2)
    top = axes.get_xaxis_transform()
    for name, value in _dimensions(results).items():
        axes.axvline(value, color=GREY, linewidth=0.7)
        axes.text(value, 0.98, f"{_short(name)} ", transform=top, rotation=90, fontsize=7, color=GREY, ha="right",
                  va="top", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
    axes.set_xticks(ticks, [str(rank) for rank in ticks])
    axes.minorticks_off()
    axes.set_xlabel("rank r of all channels")
    axes.set_ylabel("test loss (nats per character)")


def _short(name: str) -> str:
    return name.removeprefix("size of the ").removesuffix(" of the error").replace("components that hold", "PCs for")


def _over_steps(axes: Any, results: xr.Dataset, config: Config) -> None:
    ranks = _ranks("low-rank", config)
    middle = [f"low-rank r={ranks[len(ranks) // 2]}"] if ranks else []
    full = [cell for cell in ("backpropagation", "DFA", "zero feedback") if cell in config.cells]
    for cell in (*middle, *full):
        losses = results.step_loss.sel(cell=cell).transpose("seed", "step").values
        loss_curves(axes, losses, _COLOURS[cell.partition(" r=")[0]])
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.05 * np.log(float(results.vocabulary[0]))))
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats per character)")
    if middle:
        axes.set_title(middle[0].replace(" r=", " feedback at r = "))
