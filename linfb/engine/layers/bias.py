"""A learned offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from linfb._checks import integer
from linfb.engine.layers.base import Layer
from linfb.engine.layers.shapes import last_axis
from linfb.kernels import suited

__all__ = ["Bias"]


@dataclass(frozen=True)
class Bias(Layer):
    r"""Add one number to each feature, :math:`y = x + b`.

    Parameters
    ----------
    n_features : int
        Width; the weights are one array of this shape, zero at the start.

    Examples
    --------
    >>> layer, b = Bias(2), np.array([1.0, 2.0])
    >>> y, cache = layer.forward(b, np.ones((3, 2)))
    >>> y[0], layer.grad(b, cache, np.ones((3, 2)))
    (array([2., 3.]), array([3., 3.]))
    """

    n_features: int
    ensemble: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("n_features", self.n_features, at_least=1)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape, if its last axis has as many features."""
        return last_axis(self, shape, self.n_features)

    def initial_weights(self, rng: np.random.Generator) -> np.ndarray:
        """Return the weights at the start, on the host: zeros, shape (features,)."""
        return np.zeros(self.n_features)

    def forward(
        self, weights: Float[Any, "*run features"], x: Float[Any, "*rows features"]
    ) -> tuple[Float[Any, "*rows features"], None]:
        """Return the output; nothing has to be kept."""
        return suited("norms", x).shifted(x, weights), None

    def grad(
        self, weights: Float[Any, "*run features"], cache: None, delta: Float[Any, "*rows features"]
    ) -> Float[Any, "*run features"]:
        """Return the gradient of the offset, summed over all rows."""
        return suited("norms", delta).feature_sums(delta, weights.ndim - 1)

    def pull(
        self, weights: Float[Any, "*run features"], cache: None, delta: Float[Any, "*rows features"]
    ) -> Float[Any, "*rows features"]:
        """Return the error at the input, which is that at the output."""
        return delta
