"""Batch normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from linfb._checks import integer, real
from linfb.backend import namespace
from linfb.engine.layers.base import Layer
from linfb.engine.layers.shapes import last_axis, per_run
from linfb.kernels import suited

__all__ = ["BatchNorm", "BatchNormCache"]


class BatchNormCache(NamedTuple):
    """What the forward pass keeps.

    Attributes
    ----------
    normalised : array, shape (batch, ..., features)
    inverse_deviation, mean, variance : array, shape (features,)
        Of this batch; the variance divides by the number of rows.
    """

    normalised: Any
    inverse_deviation: Any
    mean: Any
    variance: Any


def enough_rows(x: Any, leading: int = 0) -> None:
    """Raise a ValueError if a batch, after `leading` axes, has no variance."""
    if math.prod(x.shape[leading:-1]) < 2:
        raise ValueError(f"batch normalisation needs at least 2 rows in training, got x of shape {x.shape}")


@dataclass(frozen=True)
class BatchNorm(Layer):
    r"""Centre and scale each feature over batch and positions, then apply a learned gain and shift.

    .. math:: \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}},\qquad y = g\,\hat x + b

    In training :math:`\mu, \sigma^2` are the moments over all axes but the last (all rows: of images, batch and
    pixels); :meth:`evaluate` uses running averages of them.

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
    unbiased one, :math:`\sigma^2 n/(n-1)` with n rows. Agreement with PyTorch, running averages included, is checked in
    ``tests/test_layers_tokens_oracle.py``.

    References
    ----------
    :cite:t:`ioffe2015`.

    Examples
    --------
    >>> layer = BatchNorm(1)
    >>> y, cache = layer.forward({"gain": np.ones(1), "shift": np.zeros(1)}, np.array([[1.0], [3.0]]))
    >>> y.ravel().round(3)
    array([-1.,  1.])
    >>> layer.update_buffers(layer.initial_buffers(), cache)["mean"]
    array([0.2])
    """

    n_features: int
    epsilon: float = 1e-5
    momentum: float = 0.1
    ensemble: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("n_features", self.n_features, at_least=1)
        real("epsilon", self.epsilon, above=0.0)
        real("momentum", self.momentum, above=0.0, at_most=1.0)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape, if its last axis has as many features."""
        return last_axis(self, shape, self.n_features)

    def initial_weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the weights at the start, on the host: gain 1 and shift 0."""
        return {"gain": np.ones(self.n_features), "shift": np.zeros(self.n_features)}

    def initial_buffers(self) -> dict[str, np.ndarray]:
        """Return the running averages at the start, on the host: mean 0 and variance 1."""
        return {"mean": np.zeros(self.n_features), "variance": np.ones(self.n_features)}

    def forward(
        self, weights: dict[str, Any], x: Float[Any, "*rows features"]
    ) -> tuple[Float[Any, "*rows features"], BatchNormCache]:
        """Return the output under the batch's own moments, and what the way back needs."""
        enough_rows(x, weights["gain"].ndim - 1)
        y, *cache = suited("norms", x).batch_norm(x, weights["gain"], weights["shift"], self.epsilon)
        return y, BatchNormCache(*cache)

    def evaluate(
        self, weights: dict[str, Any], buffers: dict[str, Any], x: Float[Any, "*rows features"]
    ) -> Float[Any, "*rows features"]:
        """Return the output under the running averages."""
        scale = weights["gain"] / namespace(x).sqrt(buffers["variance"] + self.epsilon)
        return x * per_run(scale, x) + per_run(weights["shift"] - buffers["mean"] * scale, x)

    def update_buffers(self, buffers: dict[str, Any], cache: BatchNormCache) -> dict[str, Any]:
        """Return the running averages with one batch more."""
        rows, keep = math.prod(cache.normalised.shape[cache.mean.ndim - 1 : -1]), 1.0 - self.momentum
        return {
            "mean": keep * buffers["mean"] + self.momentum * cache.mean,
            "variance": keep * buffers["variance"] + self.momentum * rows / (rows - 1) * cache.variance,
        }

    def grad(
        self, weights: dict[str, Any], cache: BatchNormCache, delta: Float[Any, "*rows features"]
    ) -> dict[str, Float[Any, "*run features"]]:
        """Return the gradients of gain and shift, summed over all rows."""
        gain, shift = suited("norms", delta).norm_grad(delta, cache.normalised, weights["gain"].ndim - 1)
        return {"gain": gain, "shift": shift}

    def pull(
        self, weights: dict[str, Any], cache: BatchNormCache, delta: Float[Any, "*rows features"]
    ) -> Float[Any, "*rows features"]:
        r"""Return the error at the input.

        .. math:: \delta' = \frac{g}{\sqrt{\sigma^2 + \epsilon}}
                  \Big(\delta - \langle\delta\rangle - \hat x\,\langle\delta\,\hat x\rangle\Big)
        """
        return self.grad_pull(weights, cache, delta)[1]

    def grad_pull(
        self, weights: dict[str, Any], cache: BatchNormCache, delta: Float[Any, "*rows features"]
    ) -> tuple[dict[str, Float[Any, "*run features"]], Float[Any, "*rows features"]]:
        """Return the gradients of gain and shift and the error at the input, from the same sums."""
        gain, shift, error = suited("norms", delta).batch_norm_grad_pull(
            delta, cache.normalised, cache.inverse_deviation, weights["gain"]
        )
        return {"gain": gain, "shift": shift}, error
