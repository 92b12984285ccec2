"""Neighbouring layers done in one pass over memory: the same numbers in less time, on a CPU.

:func:`fused` rewrites a tuple of layers. Places keep their numbers, so that weights, buffers and random numbers of the
two tuples are the same: a group stands where its first layer stood, and the places of the others are passed by. The
tuple as it was is the oracle (``tests/test_fusing.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from linfb.engine.layers import GELU, Attention, BatchNorm, Bias, GlobalAveragePool, LayerNorm, MaxPool2d, ReLU
from linfb.engine.layers.attention import AttentionCache
from linfb.engine.layers.base import Layer
from linfb.engine.layers.batchnorm import BatchNormCache, enough_rows
from linfb.engine.layers.branches import Passed
from linfb.engine.models import Model
from linfb.kernels import cpu_fused, cpu_norms, cpu_sequences

__all__ = ["apart", "fused"]


@dataclass(frozen=True)
class Group(Layer):
    """Layers as one, of which only the first may have weights or buffers."""

    layers: tuple[Any, ...]

    @classmethod
    def fits(cls, layers: tuple[Any, ...]) -> bool:
        """Return whether layers of the right kinds can be done as one."""
        return True

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

    ensemble: ClassVar[bool] = True

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output, twice."""
        y = cpu_fused.rectify(x, *_plain(weights))
        return y, y

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradient of the offset and the error at the input."""
        return cpu_fused.rectify_pull(delta, cache, weights.ndim - 1)


def _plain(offset: Any) -> tuple[Any, Any, Any]:
    """Return the mean, scale and shift of an offset alone."""
    return np.zeros_like(offset), np.ones_like(offset), offset


def _pairs(pool: MaxPool2d) -> bool:
    return pool.size == pool.stride == 2


@dataclass(frozen=True)
class BiasReLUPool(Group):
    """An offset, a rectifier and the largest of 2x2 pixels; keeps where the positive winners are."""

    @classmethod
    def fits(cls, layers: tuple[Any, ...]) -> bool:
        """Return whether windows are of 2x2 pixels, next to each other."""
        return _pairs(layers[-1])

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output; the winners and the size of the images."""
        y, choice = cpu_fused.rectify_pool(x, *_plain(weights))
        return y, (choice, x.shape[1:3])

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradient of the offset and the error at the input."""
        return cpu_fused.rectify_pool_pull(delta, *cache)


@dataclass(frozen=True)
class NormReLU(Group):
    """Batch normalisation and a rectifier; keeps its input and the moments."""

    ensemble: ClassVar[bool] = True

    def initial_buffers(self) -> Any:
        """Return the running averages at the start."""
        return self.layers[0].initial_buffers()

    def update_buffers(self, buffers: Any, cache: Any) -> Any:
        """Return the running averages with one batch more."""
        return self.layers[0].update_buffers(buffers, cache[0])

    def evaluate(self, weights: Any, buffers: Any, x: Any) -> Any:
        """Return the output under the running averages."""
        x = self.layers[0].evaluate(weights, buffers, x)
        for layer in self.layers[1:]:
            x, _ = layer.forward(None, x)
        return x

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output, and what the way back needs."""
        enough_rows(x, weights["gain"].ndim - 1)
        *outputs, mean, variance, inverse = self._ahead(x, weights["gain"], weights["shift"], self.layers[0].epsilon)
        y, *kept = outputs
        return y, (BatchNormCache(x, inverse, mean, variance), *kept)

    def grad_pull(self, weights: Any, cache: Any, delta: Any) -> tuple[Any, Any]:
        """Return the gradients of gain and shift and the error at the input."""
        gain, shift, delta = self._back(weights, delta, *cache)
        return {"gain": gain, "shift": shift}, delta

    def _ahead(self, x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, ...]:
        return cpu_fused.rectify_norm(x, gain, shift, epsilon)

    def _back(self, weights: Any, delta: Any, kept: BatchNormCache) -> tuple[Any, Any, Any]:
        return cpu_fused.rectify_norm_pull(
            delta, kept.normalised, kept.mean, kept.inverse_deviation, weights["gain"], weights["shift"]
        )


@dataclass(frozen=True)
class NormReLUPool(NormReLU):
    """Batch normalisation, a rectifier and the largest of 2x2 pixels."""

    ensemble: ClassVar[bool] = False

    @classmethod
    def fits(cls, layers: tuple[Any, ...]) -> bool:
        """Return whether windows are of 2x2 pixels, next to each other."""
        return _pairs(layers[-1])

    def _ahead(self, x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, ...]:
        mean, variance, inverse = cpu_fused.moments(x, epsilon)
        return *cpu_fused.rectify_pool(x, mean, gain * inverse, shift), mean, variance, inverse

    def _back(self, weights: Any, delta: Any, kept: BatchNormCache, choice: Any = None) -> tuple[Any, Any, Any]:
        return cpu_fused.rectify_pool_norm_pull(
            delta, choice, kept.normalised, kept.mean, kept.inverse_deviation, weights["gain"]
        )


@dataclass(frozen=True)
class Average(Group):
    """The average over all places, in slices."""

    def forward(self, weights: Any, x: Any) -> tuple[Any, Any]:
        """Return the output, and the shape of the input."""
        return cpu_fused.average(x), x.shape

    def pull(self, weights: Any, cache: Any, delta: Any) -> Any:
        """Return the error at the input."""
        return cpu_fused.average_pull(delta, cache)


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
    ((Bias, ReLU, MaxPool2d), BiasReLUPool),
    ((BatchNorm, ReLU, MaxPool2d), NormReLUPool),
    ((Bias, ReLU), BiasReLU),
    ((BatchNorm, ReLU), NormReLU),
    ((GlobalAveragePool,), Average),
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
            if tuple(type(layer) for layer in found) == kinds and group.fits(found):
                layers[place : place + len(kinds)] = [group(found), *[Passed()] * (len(kinds) - 1)]
                place += len(kinds) - 1
                break
        place += 1
    return Model(tuple(layers), model.shape)


def apart(model: Model) -> Model:
    """Return a model whose groups are single layers again where only these do several networks side by side."""
    layers = list(model.layers)
    for i, group in enumerate(model.layers):
        if not isinstance(group, Group) or group.ensemble:
            continue
        if all(getattr(layer, "ensemble", False) for layer in group.layers):
            layers[i : i + len(group.layers)] = group.layers
    return Model(tuple(layers), model.shape)
