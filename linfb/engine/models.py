"""Models: a tuple of layers, their weights at the start, and the forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from linfb._checks import choice, integer
from linfb.backend import stream
from linfb.engine.layers import BatchNorm, Bias, Dense, ReLU

__all__ = ["Model", "evaluate", "forward", "initial_buffers", "initial_weights", "is_kernel", "mlp"]

NORMS: dict[str, Any] = {"batch": BatchNorm}


def is_kernel(layer: Any) -> bool:
    """Return whether errors travel through this layer as the rule says (else through its true Jacobian)."""
    return hasattr(layer, "contract")


@dataclass(frozen=True)
class Model:
    """A feed-forward network: layers applied one after the other.

    Parameters
    ----------
    layers : tuple of layers
        Kernel layers (:class:`~linfb.engine.layers.Dense`) and others between and after them.

    Raises
    ------
    ValueError
        If there is no kernel layer, widths do not fit each other, or something would have to learn below the first
        kernel layer, where no error arrives.

    Examples
    --------
    >>> model = Model((Dense(4, 3), ReLU(), Dense(3, 2)))
    >>> model.n_in, model.n_out, model.kernels
    (4, 2, (0, 2))
    """

    layers: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.kernels:
            raise ValueError("layers must hold at least one kernel layer (Dense)")
        for layer in self.layers[: self.kernels[0]]:
            if hasattr(layer, "n_features"):
                raise ValueError(f"layers: {layer} cannot learn below the first kernel layer, no error arrives there")
        width = self.n_in
        for i, layer in enumerate(self.layers):
            wanted = layer.n_in if is_kernel(layer) else getattr(layer, "n_features", width)
            if wanted != width:
                raise ValueError(f"layers: layer {i}, {layer}, takes {wanted} features, the one below gives {width}")
            width = layer.n_out if is_kernel(layer) else width

    @property
    def kernels(self) -> tuple[int, ...]:
        """Indices of the kernel layers."""
        return tuple(i for i, layer in enumerate(self.layers) if is_kernel(layer))

    @property
    def n_in(self) -> int:
        """Width of the input."""
        return self.layers[self.kernels[0]].n_in

    @property
    def n_out(self) -> int:
        """Width of the output."""
        return self.layers[self.kernels[-1]].n_out


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


def initial_weights(model: Model, seed: int) -> tuple[Any, ...]:
    r"""Draw the weights of every layer, on the host in float64.

    Kernels are Kaiming-uniform with :math:`a = \sqrt5`, which is :math:`U(\pm 1/\sqrt{\text{fan in}})`; layer i draws
    from ``stream(seed, "weights", i)``. Other layers start as they say.

    Parameters
    ----------
    model : Model
    seed : int

    Returns
    -------
    tuple
        Per layer: an array (out, in), what the layer calls its weights, or None.
    """
    weights = []
    for i, layer in enumerate(model.layers):
        if is_kernel(layer):
            bound = 1 / np.sqrt(layer.n_in)
            weights.append(stream(seed, "weights", i).uniform(-bound, bound, (layer.n_out, layer.n_in)))
        else:
            weights.append(layer.initial_weights())
    return tuple(weights)


def initial_buffers(model: Model) -> tuple[Any, ...]:
    """Return what layers keep besides weights (running averages), on the host; None where there is nothing."""
    return tuple(layer.initial_buffers() if hasattr(layer, "initial_buffers") else None for layer in model.layers)


def forward(
    model: Model, weights: Sequence[Any], x: Float[Any, "batch in"]
) -> tuple[Float[Any, "batch out"], tuple[Any, ...]]:
    """Return the outputs in training mode and the cache of every layer.

    Examples
    --------
    >>> model = Model((Dense(2, 1), ReLU()))
    >>> forward(model, (np.array([[1.0, -2.0]]), None), np.array([[3.0, 1.0]]))[0]
    array([[1.]])
    """
    caches = []
    for layer, w in zip(model.layers, weights, strict=True):
        x, cache = layer.forward(w, x)
        caches.append(cache)
    return x, tuple(caches)


def evaluate(
    model: Model, weights: Sequence[Any], buffers: Sequence[Any], x: Float[Any, "batch in"]
) -> Float[Any, "batch out"]:
    """Return the outputs with what was learned in training: running averages in the place of a batch's own."""
    for layer, w, buffer in zip(model.layers, weights, buffers, strict=True):
        x = layer.forward(w, x)[0] if buffer is None else layer.evaluate(w, buffer, x)
    return x
