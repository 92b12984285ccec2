"""Layer normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from linfb._checks import integer, real
from linfb.engine.layers.base import Layer
from linfb.engine.layers.shapes import last_axis
from linfb.kernels import suited

__all__ = ["LayerNorm"]


@dataclass(frozen=True)
class LayerNorm(Layer):
    r"""Centre and scale every row over its features, then apply a learned gain and shift.

    .. math:: \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}},\qquad y = g\,\hat x + b

    with the mean and variance of the features of one token (or sample).

    Parameters
    ----------
    n_features : int
        Width; the weights are ``{"gain": (features,), "shift": (features,)}``, ones and zeros at the start.
    epsilon : float
        Added to the variance.

    Notes
    -----
    The error is pulled back through mean and variance as well (the true Jacobian). Agreement with PyTorch is checked
    in ``tests/test_layers_tokens_oracle.py``.

    References
    ----------
    :cite:t:`ba2016`.

    Examples
    --------
    >>> layer = LayerNorm(2)
    >>> y, cache = layer.forward({"gain": np.ones(2), "shift": np.zeros(2)}, np.array([[1.0, 3.0]]))
    >>> y.round(3)
    array([[-1.,  1.]])
    """

    n_features: int
    epsilon: float = 1e-5
    ensemble: ClassVar[bool] = True

    def __post_init__(self) -> None:
        integer("n_features", self.n_features, at_least=1)
        real("epsilon", self.epsilon, above=0.0)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape, if its last axis has as many features."""
        return last_axis(self, shape, self.n_features)

    def initial_weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the weights at the start, on the host: gain 1 and shift 0."""
        return {"gain": np.ones(self.n_features), "shift": np.zeros(self.n_features)}

    def forward(
        self, weights: dict[str, Any], x: Float[Any, "*rows features"]
    ) -> tuple[Float[Any, "*rows features"], tuple[Float[Any, "*rows features"], Float[Any, "*rows 1"]]]:
        """Return the output; and the normalised input with the inverse deviation of every row."""
        y, *cache = suited("norms", x).layer_norm(x, weights["gain"], weights["shift"], self.epsilon)
        return y, tuple(cache)

    def grad(
        self, weights: dict[str, Any], cache: tuple[Any, Any], delta: Float[Any, "*rows features"]
    ) -> dict[str, Float[Any, "*run features"]]:
        """Return the gradients of gain and shift, summed over all rows."""
        gain, shift = suited("norms", delta).norm_grad(delta, cache[0], weights["gain"].ndim - 1)
        return {"gain": gain, "shift": shift}

    def pull(
        self, weights: dict[str, Any], cache: tuple[Any, Any], delta: Float[Any, "*rows features"]
    ) -> Float[Any, "*rows features"]:
        r"""Return the error at the input.

        .. math:: \delta' = \frac{1}{\sqrt{\sigma^2 + \epsilon}}
                  \Big(g\delta - \langle g\delta\rangle - \hat x\,\langle g\delta\,\hat x\rangle\Big)
        """
        return suited("norms", delta).layer_norm_pull(delta, *cache, weights["gain"])
