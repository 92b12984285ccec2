"""Noise in training: units, or whole branches of a sample, are switched off at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float

from linfb._checks import real
from linfb.backend import namespace
from linfb.engine.layers.base import Layer
from linfb.kernels import suited

__all__ = ["Dropout", "StochasticDepth"]


@dataclass(frozen=True)
class Dropout(Layer):
    r"""Set each entry to 0 with probability p in training, and scale the others by :math:`1/(1 - p)`.

    The mean stays, so that nothing has to be done in evaluation.

    Parameters
    ----------
    rate : float
        p, from 0 up to but not including 1; at 0 nothing is drawn.

    References
    ----------
    :cite:t:`srivastava2014`.

    Examples
    --------
    >>> import numpy as np
    >>> from linfb.backend import Key
    >>> y, mask = Dropout(0.5).forward(None, np.ones((1, 1000)), Key(0))
    >>> np.unique(y)
    array([0., 2.])
    """

    rate: float
    noisy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0, below=1.0)

    def forward(  # type: ignore[override]
        self, weights: None, x: Float[Any, "*shape"], key: Any
    ) -> tuple[Float[Any, "*shape"], Any]:
        """Return the output, and what every entry was multiplied by (None if nothing is dropped)."""
        if self.rate == 0:
            return x, None
        mask = _mask(x.shape, self.rate, x, key)
        return suited("activations", x).product(x, mask), mask

    def evaluate(self, weights: None, buffers: None, x: Any) -> Any:
        """Return the input."""
        return x

    def pull(self, weights: None, cache: Any, delta: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        """Return the error, multiplied likewise."""
        return delta if cache is None else suited("activations", delta).product(delta, cache)


@dataclass(frozen=True)
class StochasticDepth(Layer):
    r"""Set whole samples to 0 with probability p in training, and scale the others by :math:`1/(1 - p)`.

    At the end of a residual branch it leaves a sample with the skip connection alone.

    Parameters
    ----------
    rate : float
        p, from 0 up to but not including 1; at 0 nothing is drawn.

    References
    ----------
    :cite:t:`huang2016`.

    Examples
    --------
    >>> import numpy as np
    >>> from linfb.backend import Key
    >>> y, mask = StochasticDepth(0.5).forward(None, np.ones((1000, 2)), Key(0))
    >>> np.unique(y, axis=0)
    array([[0., 0.],
           [2., 2.]])
    """

    rate: float
    noisy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        real("rate", self.rate, at_least=0.0, below=1.0)

    def forward(  # type: ignore[override]
        self, weights: None, x: Float[Any, "*shape"], key: Any
    ) -> tuple[Float[Any, "*shape"], Any]:
        """Return the output, and what every sample was multiplied by (None if nothing is dropped)."""
        if self.rate == 0:
            return x, None
        mask = _mask((x.shape[0], *(1 for _ in x.shape[1:])), self.rate, x, key)
        return x * mask, mask

    def evaluate(self, weights: None, buffers: None, x: Any) -> Any:
        """Return the input."""
        return x

    def pull(self, weights: None, cache: Any, delta: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        """Return the error, multiplied likewise."""
        return delta if cache is None else delta * cache


def _mask(shape: tuple[int, ...], rate: float, like: Any, key: Any) -> Any:
    """Return 0 with probability `rate` and 1 / (1 - rate) otherwise."""
    kept = key.uniform(shape, like) >= rate
    return namespace(kept).astype(kept, like.dtype) * (1 / (1 - rate))
