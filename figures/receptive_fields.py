"""What retina and ventral stream come to see, in numbers, when the way back into the retina is narrow.

The model of retina and ventral stream learns to classify grey images: two convolutions, whose second is the retina's
output, then the ventral stream. Either the error reaches the retina through a channel of a few dimensions (Oja on its
errors, a mirror that learns), all other errors being exact; or errors are exact everywhere (BP) and the retina's output
itself, the optic nerve, has few or all of its channels. A unit's field is the gradient of its response, in the middle
of a blank image, with respect to that image. Above, the first fields of the first seed: the retina's output, and the
first layer of the ventral stream, each over its largest entry. Below, three numbers for every unit of every seed (dots)
and their medians in each seed (bars): the response to the best bar over that to the best orthogonal one and the
standard deviation over angles (:func:`linfb.observables.orientedness`), and how much of the field a circularly
symmetric difference of Gaussians explains (:func:`linfb.observables.centre_surround`). Grey boxes hold from 5 to 95
percent of fields of filtered noise, with a line at their median: as large, and as smooth as the median of the fields
beside them. Units whose ways are all closed at a blank image have no field; the provenance file counts them.

**Theory** says nothing exact. In :cite:t:`lindsey2019` a narrow *forward* nerve makes the retina's fields
centre-surround and those of the ventral stream oriented, and without it both are oriented; :cite:t:`hanut2025`
asks, with pictures, whether a narrow way *back* does so as well. Then ratios in the retina should fall below, and the
share explained rise above, those of noise where the channel or the nerve is narrow, and not where they are wide.

**What is seen** (quick preset: scikit-learn's digits enlarged to 16 x 16 pixels, kernels of 5 x 5, 8 channels, four
epochs, two seeds). It shows that the measurements work, and cannot decide what the paper asks: strokes are no natural
images, and the channel's full rank, 8, is below the number of classes. Fields differ from noise in both layers.
Ventral units are more oriented than noise (median ratios 1.9 to 4.7; the noise's are 1.6), and a difference of
Gaussians explains more of them (.35 to .59) than of noise (.28 to .39), which goes with their being strongest in the
middle; few reach .8. No number follows the rank: the retina's ratios have medians 1.9, 1.5 and 1.4 at ranks 1, 2 and
8, but those of two seeds of one cell are as far apart as any two cells, and the four units behind the nerve of 2 are
the most oriented (3.6), not the least. In one seed with that nerve all ventral units are without a field. The cpu
preset (8,000 grey images of CIFAR-10, kernels of 9 x 9, 16 channels; some hours on one core) and the paper's have not
been run yet. To rerun: ``make figures ARGS="receptive_fields"``, with ``--preset cpu --data-root FOLDER`` for CIFAR-10;
ranks and nerves are the cells of ``CONFIGS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from figures._run import Resources
from figures._style import COLOURS, GREY, PAGE, new_figure, panel_letter

if TYPE_CHECKING:
    import xarray as xr

    from linfb import Rule
    from linfb.datasets import Splits
    from linfb.engine import Model

LAYERS = ("retina", "ventral stream")
"""The layers whose fields are measured: the retina's output, and what it goes into; kernel layers 1 and 2."""
NUMBERS = {
    "ratio": "preferred over\northogonal response",
    "spread": "s.d. over angles\n/ preferred response",
    "explained": "share explained by a\ndifference of Gaussians",
}
BAND = (0.05, 0.95)
"""Between which quantiles a number of a unit is called that of noise."""
_SHORT = {"feedback": "FB ", "nerve": "BP "}
EXAMPLES = 3
"""How many fields of a layer are shown."""


@dataclass(frozen=True)
class Config:
    """Settings of the figure; a cell is a kind of network and the number of dimensions of its channel or nerve.

    Images are enlarged `zoom` times. `samples` is the number of random fields for each layer of each cell. The others
    are arguments of :func:`linfb.engine.retina` and of the training.
    """

    cells: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1)
    data: str = "digits"
    zoom: int = 1
    train: float | int | None = None
    validation: float | int = 0.2
    width: int = 32
    size: int = 9
    ventral: int = 3
    dense: int = 1024
    dropout: float = 0.5
    epochs: int = 120
    batch_size: int = 64
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    decay: float = 0.975
    samples: int = 200


def _cells(ranks: Sequence[int], nerves: Sequence[int]) -> tuple[str, ...]:
    return (*(f"feedback of {rank}" for rank in ranks), *(f"nerve of {width}" for width in nerves))


PARTS = "cells"
CONFIGS = {
    "quick": Config(
        _cells((1, 2, 8), (2, 8)), zoom=2, width=8, size=5, ventral=1, dense=32, dropout=0.0, epochs=4,
        batch_size=32, learning_rate=2e-3, samples=30,
    ),
    "cpu": Config(
        _cells((1, 4, 16), (4, 16)), data="cifar10", train=8000, validation=2000, width=16, ventral=2, dense=128,
        epochs=8, learning_rate=1e-3, samples=100,
    ),
    "paper": Config(_cells((1, 4, 32), (4, 32)), seeds=(0, 1, 2, 3, 4), data="cifar10", validation=0.1),
}  # fmt: skip


def on_data(config: Config, data: str) -> Config:
    """Return the configuration for other images; the quick one takes only some of those that are many."""
    if config == CONFIGS["quick"] and data != "digits":
        return replace(config, data=data, zoom=1, train=2000, validation=500)
    return replace(config, data=data)


def rule_of(cell: str) -> Rule:
    """Return the rule behind a cell's name: only the way back into the retina is ever narrow."""
    from linfb import rules
    from linfb.rules import readers

    kind, _, number = cell.partition(" of ")
    if kind == "nerve":
        return rules.backpropagation()
    reader = readers.Oja(on="labels", covariance="normalised")
    return replace(rules.low_rank(int(number), reader=reader), layers=(2,))


def model_of(cell: str, shape: Sequence[int], n_classes: int, config: Config) -> Model:
    """Return the network behind a cell's name, for images of some shape."""
    from linfb.engine import retina

    kind, _, number = cell.partition(" of ")
    return retina(
        shape, n_classes, width=config.width, bottleneck=int(number) if kind == "nerve" else config.width,
        size=config.size, ventral=config.ventral, dense=config.dense, dropout=config.dropout,
    )  # fmt: skip


def images(config: Config, resources: Resources) -> Splits:
    """Return grey images, enlarged by linear interpolation."""
    from scipy.ndimage import zoom

    from linfb.datasets import load_dataset

    data = load_dataset(config.data, root=resources.data_root).grey()
    if config.zoom > 1:
        larger = (1, config.zoom, config.zoom, 1)
        data = replace(
            data, train_images=zoom(data.train_images.astype(np.float32), larger, order=1),
            test_images=zoom(data.test_images.astype(np.float32), larger, order=1),
        )  # fmt: skip
    return data.splits(train=config.train, validation=config.validation, layout="image")


def simulate(config: Config, resources: Resources) -> xr.Dataset:
    """Return the numbers of every unit and of noise, test accuracies, and a few fields."""
    import xarray as xr

    splits = images(config, resources)
    return xr.concat([_one_cell(cell, splits, config, resources) for cell in config.cells], dim="cell", join="outer")


def _one_cell(cell: str, splits: Splits, config: Config, resources: Resources) -> xr.Dataset:
    import xarray as xr

    model = model_of(cell, splits.shape, splits.n_classes, config)
    runs = [learned(splits, model, rule_of(cell), seed, config, resources) for seed in config.seeds]
    found = xr.concat([one_layer([weights for weights, _ in runs], k, model, config) for k in (1, 2)], dim="layer")
    accuracies = ("seed", [accuracy for _, accuracy in runs])
    coordinates = {"cell": cell, "layer": list(LAYERS), "seed": list(config.seeds)}
    return found.assign(test_accuracy=accuracies).assign_coords(coordinates)


def learned(
    splits: Splits, model: Model, rule: Rule, seed: int, config: Config, resources: Resources
) -> tuple[Any, float]:
    """Return the weights of the epoch chosen on validation, on the host, and their test accuracy; None if it diverges.

    The training loop keeps them in its checkpoint.
    """
    from linfb import DivergenceError
    from linfb.engine import checkpoint, rmsprop, train
    from linfb.engine.models import initial_weights
    from linfb.engine.schedules import Exponential
    from linfb.engine.trees import rebuild

    with TemporaryDirectory() as folder:
        try:
            run = train(
                splits, model, rule, epochs=config.epochs, batch_size=config.batch_size,
                optimizer=rmsprop(config.learning_rate, weight_decay=config.weight_decay),
                schedule=Exponential(config.decay), seed=seed, device=resources.device, progress=False,
                checkpoint=folder, checkpoint_seconds=1e9,
            )  # fmt: skip
        except DivergenceError:
            return None, np.nan
        saved = checkpoint.load(folder)
    assert saved is not None
    weights = rebuild(initial_weights(model, seed), saved[0], "0/best/weights")
    return weights, float(run.test_accuracy.sel(weights="chosen"))


def side_of(k: int, model: Model, config: Config) -> int:
    """Return how many pixels a side the field of a unit in kernel layer k has, as far as the image goes."""
    return min(1 + (k + 1) * (config.size - 1), 2 * ((min(model.shape[:2]) - 1) // 2) + 1)


def fields_of(weights: Any, k: int, model: Model, config: Config) -> np.ndarray:
    """Return the fields of all channels of kernel layer k, shape (unit, side, side); NaN without weights."""
    from linfb.engine.observables import receptive_fields

    side = side_of(k, model, config)
    if weights is None:
        return np.full((model.shapes[model.kernels[k] + 1][-1], side, side), np.nan)
    rows, columns = (slice(size // 2 - side // 2, size // 2 + side // 2 + 1) for size in model.shape[:2])
    return receptive_fields(model, weights, model.kernels[k])[:, rows, columns, 0]


def numbers_of(fields: np.ndarray) -> dict[str, np.ndarray]:
    """Return the three numbers of fields, NaN for those without entries."""
    from linfb.observables import centre_surround, orientedness

    there = np.any(np.nan_to_num(fields) != 0, axis=(-2, -1))
    found = {name: np.full(there.shape, np.nan) for name in NUMBERS}
    ratio, spread = orientedness(fields[there])
    for name, values in zip(NUMBERS, (ratio, spread, centre_surround(fields[there]).explained), strict=True):
        found[name][there] = values
    return found


def one_layer(weights: Sequence[Any], k: int, model: Model, config: Config) -> xr.Dataset:
    """Return the numbers of all units of kernel layer k in every seed, those of noise, and the first seed's fields."""
    import xarray as xr

    from linfb.observables import random_fields, smoothness

    side, whole = side_of(k, model, config), side_of(2, model, config)
    fields = np.array([fields_of(one, k, model, config) for one in weights])
    there = np.any(np.nan_to_num(fields) != 0, axis=(-2, -1))
    found: dict[str, Any] = {"empty": ("seed", np.count_nonzero(~there, axis=1).astype(float))}
    for name, values in numbers_of(fields).items():
        missing = config.width - fields.shape[1]
        found[name] = ("seed", "unit"), np.pad(values, ((0, 0), (0, missing)), constant_values=np.nan)
    width = float(np.median(smoothness(fields[there]))) if there.any() else 0.0
    for name, values in numbers_of(random_fields(config.samples, side, smoothness=width, seed=k)).items():
        found[f"noise_{name}"] = "sample", values
    shown = np.zeros((EXAMPLES, whole, whole))
    first = fields[0][there[0]][:EXAMPLES]
    inner = slice((whole - side) // 2, (whole + side) // 2)
    shown[: len(first), inner, inner] = first / np.abs(first).max(axis=(1, 2), keepdims=True)
    found |= {"field": (("example", "row", "column"), shown), "smoothness": ((), width), "side": ((), side)}
    return xr.Dataset(found)


def checks(results: xr.Dataset, config: Config) -> dict[str, float]:
    """Return medians over units, which share of them is outside 5 to 95 percent of noise, and test accuracies."""
    found = {f"test accuracy, {cell}": float(results.test_accuracy.sel(cell=cell).mean()) for cell in config.cells}
    for layer in LAYERS:
        for cell in config.cells:
            here = results.sel(cell=cell, layer=layer)
            for name in ("ratio", "explained"):
                values = here[name].values[np.isfinite(here[name].values)]
                low, high = np.quantile(here[f"noise_{name}"].values, BAND)
                if values.size:
                    found[f"{layer}, {cell}, {name}: median"] = float(np.median(values))
                    found[f"{layer}, {cell}, {name}: share of units above noise"] = float(np.mean(values > high))
                    found[f"{layer}, {cell}, {name}: share of units below noise"] = float(np.mean(values < low))
        found[f"{layer}: units without a field"] = float(results.empty.sel(layer=layer).sum())
    return {name: value for name, value in found.items() if np.isfinite(value)}


def plot(results: xr.Dataset, config: Config) -> Any:
    """Return the figure: fields above, numbers of every unit below."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(PAGE, 5.6)
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2.6))
    _examples(above, results, config)
    axes = below.subplots(len(LAYERS), len(NUMBERS), sharex=True)
    for row, layer in enumerate(LAYERS):
        for column, (name, words) in enumerate(NUMBERS.items()):
            here = axes[row, column]
            _units(here, results.sel(layer=layer), name, config)
            here.set_title(words if not row else "")
            panel_letter(here, "cdefgh"[row * len(NUMBERS) + column])
        axes[row, 0].set_ylabel(layer)
    for here in axes[:, 0]:
        here.set_yscale("log")
        here.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        here.yaxis.set_major_formatter("{x:g}")
        here.yaxis.set_minor_locator(NullLocator())
    return figure


def _label(cell: str) -> str:
    kind, _, number = cell.partition(" of ")
    return f"feedback {number}" if kind == "feedback" else f"BP, nerve {number}"


def _colour(cell: str) -> str:
    return COLOURS[cell.startswith("nerve")]


def _examples(figure: Any, results: xr.Dataset, config: Config) -> None:
    """Draw the first fields of every cell, side by side, the retina's above."""
    axes = figure.subplots(len(LAYERS), len(config.cells), squeeze=False)
    for row, (layer, letter) in enumerate(zip(LAYERS, "ab", strict=True)):
        for column, cell in enumerate(config.cells):
            here, found = axes[row, column], results.sel(cell=cell, layer=layer)
            side, whole = int(found.side), found.sizes["row"]
            inner = slice((whole - side) // 2, (whole + side) // 2)
            fields = np.pad(found.field.values[:, inner, inner], ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
            here.imshow(np.hstack(list(fields))[:, :-1], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            here.set_xticks([])
            here.set_yticks([])
            here.spines[:].set_visible(False)
            if not row:
                here.set_title(_label(cell), color=_colour(cell))
        axes[row, 0].set_ylabel(layer.replace(" ", "\n"))
        panel_letter(axes[row, 0], letter)


def _units(axes: Any, results: xr.Dataset, name: str, config: Config) -> None:
    """Draw one number: units as dots, medians of seeds as bars, noise as boxes behind them."""
    for place, cell in enumerate(config.cells):
        here = results.sel(cell=cell)
        low, middle, high = np.quantile(here[f"noise_{name}"].values, (BAND[0], 0.5, BAND[1]))
        axes.fill_between([place - 0.42, place + 0.42], low, high, color=GREY, alpha=0.3, linewidth=0)
        axes.plot([place - 0.42, place + 0.42], [middle] * 2, "-", color=GREY, linewidth=0.9)
        lanes = 0.8 / here.sizes["seed"]
        for s, values in enumerate(here[name].transpose("seed", "unit").values):
            values = values[np.isfinite(values)]
            if not values.size:
                continue
            middle = place - 0.4 + lanes * (s + 0.5)
            shift = lanes * 0.3 * np.linspace(-1, 1, values.size) if values.size > 1 else np.zeros(1)
            axes.plot(middle + shift, values, ".", color=_colour(cell), markersize=4, alpha=0.5, markeredgewidth=0)
            axes.plot(middle + lanes * np.array([-0.4, 0.4]), [np.median(values)] * 2, "-", color=_colour(cell))
    axes.set_xlim(-0.6, len(config.cells) - 0.4)
    axes.set_xticks(range(len(config.cells)), [_SHORT[cell.split()[0]] + cell.split()[-1] for cell in config.cells])
