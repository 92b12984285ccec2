"""Activation functions: they act on every entry by itself, and nothing in them is learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float

from linfb.backend import namespace
from linfb.engine.layers.base import Layer
from linfb.kernels import suited

__all__ = ["GELU", "Erf", "Identity", "ReLU", "Tanh"]


@dataclass(frozen=True)
class ReLU(Layer):
    r"""Rectify, :math:`y = \max(x, 0)`; its derivative at 0 is taken as 0.

    Examples
    --------
    >>> import numpy as np
    >>> layer = ReLU()
    >>> y, cache = layer.forward(None, np.array([[-1.0, 2.0]]))
    >>> y, layer.pull(None, cache, np.array([[5.0, 5.0]]))
    (array([[0., 2.]]), array([[0., 5.]]))
    """

    ensemble: ClassVar[bool] = True

    def forward(self, weights: None, x: Float[Any, "*shape"]) -> tuple[Float[Any, "*shape"], Bool[Any, "*shape"]]:
        """Return the output and where it is positive."""
        return suited("activations", x).relu(x)

    def pull(self, weights: None, cache: Bool[Any, "*shape"], delta: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        """Return the error where the output was positive, 0 elsewhere."""
        return suited("activations", delta).relu_pull(delta, cache)


@dataclass(frozen=True)
class GELU(Layer):
    r"""Gaussian error linear unit in its exact form, :math:`y = x\,\Phi(x)` with the normal law's distribution.

    References
    ----------
    :cite:t:`hendrycks2016`.

    Examples
    --------
    >>> import numpy as np
    >>> GELU().forward(None, np.array([[-1.0, 0.0, 1.0]]))[0].round(4)
    array([[-0.1587,  0.    ,  0.8413]])
    """

    ensemble: ClassVar[bool] = True

    def forward(self, weights: None, x: Float[Any, "*shape"]) -> tuple[Float[Any, "*shape"], Float[Any, "*shape"]]:
        """Return the output and its derivative."""
        return suited("activations", x).gelu(x)

    def pull(self, weights: None, cache: Float[Any, "*shape"], delta: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        """Return the error times the derivative."""
        return suited("activations", delta).product(delta, cache)


@dataclass(frozen=True)
class Tanh(Layer):
    r"""Hyperbolic tangent, :math:`y = \tanh x`.

    Examples
    --------
    >>> import numpy as np
    >>> Tanh().forward(None, np.array([[0.0, 1.0]]))[0].round(4)
    array([[0.    , 0.7616]])
    """

    ensemble: ClassVar[bool] = True

    def forward(self, weights: None, x: Float[Any, "*shape"]) -> tuple[Float[Any, "*shape"], Float[Any, "*shape"]]:
        """Return the output, twice."""
        y = namespace(x).tanh(x)
        return y, y

    def pull(self, weights: None, cache: Float[Any, "*shape"], delta: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        r"""Return the error times :math:`1 - y^2`."""
        return delta * (1 - cache * cache)


@dataclass(frozen=True)
class Erf(Layer):
    r"""Error function of a scaled input, :math:`y = \mathrm{erf}(x / \sqrt2)`, for which exact theories are known.

    Examples
    --------
    >>> import numpy as np
    >>> Erf().forward(None, np.array([[0.0, 1.0]]))[0].round(4)
    array([[0.    , 0.6827]])
    """

    ensemble: ClassVar[bool] = True

    def forward(self, weights: None, x: Float[Any, "*shape"]) -> tuple[Float[Any, "*shape"], Float[Any, "*shape"]]:
        """Return the output and the input."""
        return suited("activations", x).erf(x * math.sqrt(0.5)), x

    def pull(self, weights: None, cache: Float[Any, "*shape"], delta: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        r"""Return the error times :math:`\sqrt{2/\pi}\, e^{-x^2/2}`."""
        return delta * (math.sqrt(2 / math.pi) * namespace(cache).exp(-0.5 * cache * cache))


@dataclass(frozen=True)
class Identity(Layer):
    """Do nothing.

    Examples
    --------
    >>> import numpy as np
    >>> Identity().forward(None, np.ones((1, 2)))[0]
    array([[1., 1.]])
    """

    ensemble: ClassVar[bool] = True

    def forward(self, weights: None, x: Any) -> tuple[Any, None]:
        """Return the input; nothing has to be kept."""
        return x, None

    def pull(self, weights: None, cache: None, delta: Any) -> Any:
        """Return the error as it is."""
        return delta
