"""Models: a tuple of layers, their weights at the start, and the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from linfb.backend import Key, Keys, stream

__all__ = ["Model", "evaluate", "forward", "initial_buffers", "initial_weights", "is_kernel", "is_mark"]


def is_kernel(layer: Any) -> bool:
    """Return whether errors travel through this layer as the rule says (else through its true Jacobian)."""
    return hasattr(layer, "kernel_shape")


def is_mark(layer: Any) -> bool:
    """Return whether this is a mark of a branch (:mod:`linfb.engine.layers.branches`), not a step of its own."""
    return hasattr(layer, "ahead")


@dataclass(frozen=True)
class Model:
    """A feed-forward network: layers applied one after the other, with branches between their marks.

    Parameters
    ----------
    layers : tuple of layers
        Kernel layers (dense, convolution, embedding) and others between and after them.
    shape : tuple of int, optional
        Shape of one input sample; None takes a vector as wide as the first kernel layer's input.
    leading : int
        Number of axes before the batch: 0, or 1 for networks side by side (:mod:`linfb.engine.layers.runs`).

    Attributes
    ----------
    shapes : tuple of tuple of int
        Shape of one sample at the input of every layer, and at the output.

    Raises
    ------
    ValueError
        If there is no kernel layer, a layer does not take the shape that the one below gives, or something would have
        to learn below the first kernel layer, where no error arrives.

    Examples
    --------
    >>> from linfb.engine.layers import Dense, ReLU
    >>> model = Model((Dense(4, 3), ReLU(), Dense(3, 2)))
    >>> model.shape, model.n_out, model.kernels
    ((4,), 2, (0, 2))
    """

    layers: tuple[Any, ...]
    shape: tuple[int, ...] = ()
    leading: int = field(default=0, repr=False)
    shapes: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if not self.kernels:
            raise ValueError("layers must hold at least one kernel layer, such as Dense")
        for layer in self.layers[: self.kernels[0]]:
            if layer.initial_weights(np.random.default_rng(0)) is not None:
                raise ValueError(f"layers: {layer} cannot learn below the first kernel layer, no error arrives there")
        if not self.shape:
            object.__setattr__(self, "shape", (self.layers[self.kernels[0]].kernel_shape[-1],))
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "shapes", self._shapes())

    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        shapes = [self.shape]

        def same(x: tuple[int, ...], aside: tuple[int, ...]) -> tuple[int, ...]:
            if x != aside:
                raise ValueError(f"the two ways have shapes {x} and {aside}")
            return x

        aside: list[Any] = []
        for i, layer in enumerate(self.layers):
            try:
                now = layer.ahead(shapes[-1], aside, same) if is_mark(layer) else layer.out_shape(shapes[-1])
            except IndexError:
                raise ValueError(f"layers: layer {i}, {layer}, has no Fork before it") from None
            except ValueError as error:
                raise ValueError(f"layers: layer {i} does not fit the one below: {error}") from None
            shapes.append(tuple(now))
        if aside:
            raise ValueError(f"layers: {len(aside)} Fork without a Join")
        return tuple(shapes)

    @cached_property
    def kernels(self) -> tuple[int, ...]:
        """Indices of the kernel layers."""
        return tuple(i for i, layer in enumerate(self.layers) if is_kernel(layer))

    @property
    def n_out(self) -> int:
        """Number of output features."""
        return self.shapes[-1][-1]


def initial_weights(model: Model, seed: int) -> tuple[Any, ...]:
    r"""Draw the weights of every layer, on the host in float64.

    Layer i draws from ``stream(seed, "weights", i)``; kernels are Kaiming-uniform with :math:`a = \sqrt5`, other
    layers start as they say.

    Parameters
    ----------
    model : Model
    seed : int

    Returns
    -------
    tuple
        Per layer: an array (out, ..., in), what the layer calls its weights, or None.
    """
    return tuple(layer.initial_weights(stream(seed, "weights", i)) for i, layer in enumerate(model.layers))


def initial_buffers(model: Model) -> tuple[Any, ...]:
    """Return what layers keep besides weights (running averages), on the host; None where there is nothing."""
    return tuple(layer.initial_buffers() if hasattr(layer, "initial_buffers") else None for layer in model.layers)


def _through(model: Model, x: Any, apply: Callable[[int, Any, Any], Any]) -> Any:
    """Return what comes out if every layer but the marks does `apply`."""
    aside: list[Any] = []
    for i, layer in enumerate(model.layers):
        x = layer.ahead(x, aside) if is_mark(layer) else apply(i, layer, x)
    return x


def forward(model: Model, weights: Sequence[Any], x: Any, key: Key | Keys | None = None) -> tuple[Any, tuple[Any, ...]]:
    """Return the outputs in training mode and the cache of every layer.

    Parameters
    ----------
    model : Model
    weights : sequence
        One entry per layer.
    x : array, shape (batch, *model.shape)
    key : Key, optional
        Place of this step's random numbers; layer i draws at ``key.at(i)``. Needed by layers with noise.

    Returns
    -------
    outputs : array, shape (batch, ..., out)
    caches : tuple

    Examples
    --------
    >>> from linfb.engine.layers import Dense, ReLU
    >>> model = Model((Dense(2, 1), ReLU()))
    >>> forward(model, (np.array([[1.0, -2.0]]), None), np.array([[3.0, 1.0]]))[0]
    array([[1.]])
    """
    caches: list[Any] = [None] * len(model.layers)

    def apply(i: int, layer: Any, x: Any) -> Any:
        if getattr(layer, "noisy", False):
            if key is None:
                raise ValueError(f"key must be given: layer {i}, {layer}, draws random numbers")
            x, caches[i] = layer.forward(weights[i], x, key.at(i))
        else:
            x, caches[i] = layer.forward(weights[i], x)
        return x

    return _through(model, x, apply), tuple(caches)


def evaluate(model: Model, weights: Sequence[Any], buffers: Sequence[Any], x: Any) -> Any:
    """Return the outputs with what was learned in training: no noise, running averages in the place of a batch's own.

    Parameters
    ----------
    model : Model
    weights, buffers : sequence
        One entry per layer.
    x : array, shape (batch, *model.shape)
    """

    def apply(i: int, layer: Any, x: Any) -> Any:
        if hasattr(layer, "evaluate"):
            return layer.evaluate(weights[i], buffers[i], x)
        return layer.forward(weights[i], x)[0]

    return _through(model, x, apply)
