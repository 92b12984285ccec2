r"""A layer of one's own: divide by the root mean square of the features, :math:`y = g\,x/\sqrt{\langle x^2\rangle}`."""

from dataclasses import dataclass

import numpy as np

from linfb.backend import namespace
from linfb.engine.layers.base import Layer


@dataclass(frozen=True)
class RootMeanSquare(Layer):
    """Normalise features (the last axis) by their size, then apply a learned gain."""

    n_features: int

    def initial_weights(self, rng):
        """Return the gain at the start, on the host."""
        return np.ones(self.n_features)

    def forward(self, weights, x):
        """Return the output, and what the way back needs."""
        xp = namespace(x)
        inverse = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return weights * (x * inverse), (x * inverse, inverse)

    def grad(self, weights, cache, delta):
        """Return the gradient of the gain, summed over all axes but the features."""
        return namespace(delta).sum(delta * cache[0], axis=tuple(range(delta.ndim - 1)))

    def pull(self, weights, cache, delta):
        """Return the error at the input: the transposed Jacobian."""
        y, inverse = cache
        inner = weights * delta
        return inverse * (inner - y * namespace(y).mean(inner * y, axis=-1, keepdims=True))
