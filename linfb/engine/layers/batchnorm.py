"""Batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from linfb._checks import integer, real
from linfb.backend import namespace

__all__ = ["BatchNorm", "BatchNormCache"]


class BatchNormCache(NamedTuple):
    """What the forward pass keeps.

    Attributes
    ----------
    normalised : array, shape (batch, features)
    inverse_deviation, mean, variance : array, shape (features,)
        Of this batch; the variance divides by the number of rows.
    """

    normalised: Any
    inverse_deviation: Any
    mean: Any
    variance: Any


@dataclass(frozen=True)
class BatchNorm:
    r"""Centre and scale each feature over the batch, then apply a learned gain and shift.

    .. math:: \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}},\qquad y = g\,\hat x + b

    In training :math:`\mu, \sigma^2` are the moments of the batch; :meth:`evaluate` uses running averages of them.

    Parameters
    ----------
    n_features : int
        Width; the weights are ``{"gain": (features,), "shift": (features,)}``, ones and zeros at the start.
    epsilon : float
        Added to the variance.
    momentum : float
        Share of the newest batch in the running averages.

    Notes
    -----
    The error is pulled back through mean and variance as well (the true Jacobian). The running variance is the
    unbiased one, :math:`\sigma^2 n/(n-1)`. Agreement with PyTorch, running averages included, is checked in
    ``tests/test_engine_oracle.py``.

    References
    ----------
    :cite:t:`ioffe2015`.

    Examples
    --------
    >>> layer = BatchNorm(1)
    >>> y, cache = layer.forward(layer.initial_weights(), np.array([[1.0], [3.0]]))
    >>> y.ravel().round(3)
    array([-1.,  1.])
    >>> layer.update_buffers(layer.initial_buffers(), cache)["mean"]
    array([0.2])
    """

    n_features: int
    epsilon: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        integer("n_features", self.n_features, at_least=1)
        real("epsilon", self.epsilon, above=0.0)
        real("momentum", self.momentum, above=0.0, at_most=1.0)

    def initial_weights(self) -> dict[str, np.ndarray]:
        """Return the weights at the start, on the host: gain 1 and shift 0."""
        return {"gain": np.ones(self.n_features), "shift": np.zeros(self.n_features)}

    def initial_buffers(self) -> dict[str, np.ndarray]:
        """Return the running averages at the start, on the host: mean 0 and variance 1."""
        return {"mean": np.zeros(self.n_features), "variance": np.ones(self.n_features)}

    def forward(
        self, weights: dict[str, Any], x: Float[Any, "batch features"]
    ) -> tuple[Float[Any, "batch features"], BatchNormCache]:
        """Return the output under the batch's own moments, and what the way back needs."""
        if x.shape[0] < 2:
            raise ValueError(f"batch normalisation needs at least 2 rows in training, got x of shape {x.shape}")
        xp = namespace(x)
        mean = xp.mean(x, axis=0)
        centred = x - mean
        variance = xp.mean(centred * centred, axis=0)
        inverse = 1 / xp.sqrt(variance + self.epsilon)
        normalised = centred * inverse
        return weights["gain"] * normalised + weights["shift"], BatchNormCache(normalised, inverse, mean, variance)

    def evaluate(
        self, weights: dict[str, Any], buffers: dict[str, Any], x: Float[Any, "batch features"]
    ) -> Float[Any, "batch features"]:
        """Return the output under the running averages."""
        scale = weights["gain"] / namespace(x).sqrt(buffers["variance"] + self.epsilon)
        return x * scale + (weights["shift"] - buffers["mean"] * scale)

    def update_buffers(self, buffers: dict[str, Any], cache: BatchNormCache) -> dict[str, Any]:
        """Return the running averages with one batch more."""
        rows, keep = cache.normalised.shape[0], 1.0 - self.momentum
        return {
            "mean": keep * buffers["mean"] + self.momentum * cache.mean,
            "variance": keep * buffers["variance"] + self.momentum * rows / (rows - 1) * cache.variance,
        }

    def grad(
        self, weights: dict[str, Any], cache: BatchNormCache, delta: Float[Any, "batch features"]
    ) -> dict[str, Float[Any, " features"]]:
        """Return the gradients of gain and shift, summed over the batch."""
        xp = namespace(delta)
        return {"gain": xp.sum(delta * cache.normalised, axis=0), "shift": xp.sum(delta, axis=0)}

    def pull(
        self, weights: dict[str, Any], cache: BatchNormCache, delta: Float[Any, "batch features"]
    ) -> Float[Any, "batch features"]:
        r"""Return the error at the input.

        .. math:: \delta' = \frac{g}{\sqrt{\sigma^2 + \epsilon}}
                  \Big(\delta - \langle\delta\rangle - \hat x\,\langle\delta\,\hat x\rangle\Big)
        """
        gradient, rows = self.grad(weights, cache, delta), delta.shape[0]
        rest = delta - gradient["shift"] / rows - cache.normalised * (gradient["gain"] / rows)
        return rest * (weights["gain"] * cache.inverse_deviation)
