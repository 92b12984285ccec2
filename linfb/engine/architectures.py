"""Architectures: the networks of the paper and its readers, each a plain tuple of layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from linfb._checks import choice, integer
from linfb.engine.layers import BatchNorm, Bias, Dense, ReLU
from linfb.engine.models import Model

__all__ = ["mlp"]

NORMS: dict[str, Any] = {"batch": BatchNorm}


def mlp(n_in: int, widths: Sequence[int], n_out: int, *, norm: str | None = "batch") -> Model:
    """Return a multilayer perceptron: dense, normalisation and ReLU for each hidden layer, then dense and bias.

    Parameters
    ----------
    n_in : int
        Width of the input.
    widths : sequence of int
        Widths of the hidden layers.
    n_out : int
        Number of outputs (classes).
    norm : {"batch", None}
        Normalisation before each ReLU; None puts a bias there.

    Examples
    --------
    >>> [type(layer).__name__ for layer in mlp(64, (32,), 10).layers]
    ['Dense', 'BatchNorm', 'ReLU', 'Dense', 'Bias']
    """
    if norm is not None:
        choice("norm", norm, NORMS)
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise TypeError(f"widths must be a sequence of hidden widths, got {widths!r}")
    sizes = [integer("n_in", n_in, at_least=1), *(integer("widths", w, at_least=1) for w in widths)]
    middle = Bias if norm is None else NORMS[norm]
    layers: list[Any] = []
    for below, width in pairwise(sizes):
        layers += [Dense(below, width), middle(width), ReLU()]
    return Model((*layers, Dense(sizes[-1], integer("n_out", n_out, at_least=1)), Bias(n_out)))
