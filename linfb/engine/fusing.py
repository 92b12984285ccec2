"""Neighbouring layers done in one pass over memory: the same numbers in less time, on a CPU.

:func:`fused` rewrites a tuple of layers. Places keep their numbers, so that weights, buffers and random numbers of the
two tuples are the same: a group stands where its first layer stood, and the places of the others are passed by. The
tuple as it was is the oracle (``tests/test_fusing.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linfb.engine.layers import GELU, Attention, Bias, LayerNorm, ReLU
from linfb.engine.layers.attention import AttentionCache
from linfb.engine.layers.base import Layer
from linfb.engine.layers.branches import Passed
from linfb.engine.models import Model
from linfb.kernels import cpu_norms, cpu_sequences

__all__ = ["fused"]


@dataclass(frozen=True)
class Group(Layer):
    """Layers as one, of which only the first may have weights or buffers."""

    layers: tuple[Any, ...]

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a sample's output."""
        for layer in self.layers:
            shape = layer.out_shape(shape)
        return shape

    def initial_weights(self, rng: Any) -> Any:
        """Return the weights of the first layer at the start."""
        return self.layers[0].initial_weights(rng)


@dataclass(frozen=True)
class BiasReLU(Group):
    """An offset and a rectifier; keeps its output for the way back."""

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output, twice."""
        y = cpu_norms.shifted_relu(x, weights)
        return y, y

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradient of the offset and the error at the input."""
        return cpu_norms.shifted_relu_pull(delta, cache)


@dataclass(frozen=True)
class BiasGELU(Group):
    """An offset and a GELU; keeps the derivative for the way back."""

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output and its derivative."""
        return cpu_norms.shifted_gelu(x, weights)

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradient of the offset and the error at the input."""
        return cpu_norms.shifted_gelu_pull(delta, cache)


@dataclass(frozen=True)
class RowNorm(Group):
    """Layer normalisation by itself, whose way back makes all gradients at once."""

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output, and what the way back needs."""
        return self.layers[0].forward(weights, x)

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradients of gain and shift and the error at the input."""
        normalised, inverse = cache
        gain, shift, error = cpu_norms.layer_norm_grad_pull(delta, normalised, inverse, weights["gain"])
        return {"gain": gain, "shift": shift}, error


@dataclass(frozen=True)
class BiasAttention(Group):
    """The offset of queries, keys and values, and attention; keeps its input and the probabilities."""

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output, and what the way back needs."""
        _, attention = self.layers
        y, probabilities = cpu_sequences.shifted_attention(x, weights, attention.heads, attention.causal)
        return y, AttentionCache(x, probabilities)

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradient of the offset and the error at the input."""
        return cpu_sequences.shifted_attention_pull(delta, cache.x, weights, cache.probabilities)


GROUPS: tuple[tuple[tuple[type, ...], type[Group]], ...] = (
    ((Bias, ReLU), BiasReLU),
    ((Bias, GELU), BiasGELU),
    ((Bias, Attention), BiasAttention),
    ((LayerNorm,), RowNorm),
)
"""Kinds of layers that may follow each other, and what does them in one pass; the first that fits is taken."""


def fused(model: Model) -> Model:
    """Return a model that computes the same with fewer passes over memory.

    Parameters
    ----------
    model : Model
        For NumPy arrays of single or double precision.

    Examples
    --------
    >>> from linfb.engine import mlp
    >>> [type(layer).__name__ for layer in fused(mlp(4, (3,), 2, norm=None)).layers]
    ['Dense', 'BiasReLU', 'Passed', 'Dense', 'Bias']
    """
    layers, place = list(model.layers), 0
    while place < len(layers):
        for kinds, group in GROUPS:
            found = tuple(layers[place : place + len(kinds)])
            if tuple(type(layer) for layer in found) == kinds:
                layers[place : place + len(kinds)] = [group(found), *[Passed()] * (len(kinds) - 1)]
                place += len(kinds) - 1
                break
        place += 1
    return Model(tuple(layers), model.shape)
