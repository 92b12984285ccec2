"""The labelled result of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from linfb._provenance import attributes

if TYPE_CHECKING:
    import xarray

__all__ = ["CURVES", "labelled"]

CURVES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate")
"""What is recorded after every epoch."""


def labelled(
    history: Mapping[str, Sequence[Any]],
    losses: Sequence[float],
    tests: Mapping[str, tuple[float, float]],
    ranks: Mapping[int, int],
    n_kernels: int,
    chosen: int,
    config: Mapping[str, Any],
) -> xarray.Dataset:
    """Return a run as a dataset.

    Parameters
    ----------
    history : mapping
        From each of :data:`CURVES` to one number per epoch, and from observables to one (layer,) array per epoch.
    losses : sequence of float
        Of every step.
    tests : mapping
        From "chosen" and "last" to test loss and accuracy; empty where the test part was not looked at.
    ranks : mapping
        From the index of a kernel layer to the width of its channel.
    n_kernels : int
        Number of kernel layers.
    chosen : int
        The epoch chosen on validation; -1 before any is complete.
    config : mapping
        Recorded as attributes, beside versions and machine.

    Returns
    -------
    xarray.Dataset
        Dimensions `step`, `epoch`, `layer` (kernel layers) and `weights` ("chosen", "last"); test values that were not
        measured are NaN.
    """
    import xarray

    epochs = len(history["train_loss"])
    variables: dict[str, Any] = {}
    for name, values in history.items():
        shape, dims = ((epochs,), ("epoch",)) if name in CURVES else ((epochs, n_kernels), ("epoch", "layer"))
        variables[name] = (dims, np.reshape(np.asarray(values, dtype=np.float64), shape))
    variables["step_loss"] = ("step", np.asarray(losses, dtype=np.float64))
    kinds = ("chosen", "last")
    measured = np.array([tests.get(kind, (np.nan, np.nan)) for kind in kinds])
    variables["test_loss"], variables["test_accuracy"] = ("weights", measured[:, 0]), ("weights", measured[:, 1])
    variables["chosen_epoch"] = ((), chosen)
    variables["rank"] = ("layer", np.array([ranks.get(l, 0) for l in range(n_kernels)]))
    coordinates = {"epoch": np.arange(epochs), "layer": np.arange(n_kernels), "weights": list(kinds)}
    return xarray.Dataset(variables, coordinates, attributes(**config))
