"""From many places to fewer: pooling, averaging and flattening."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, UInt8

from linfb._checks import integer
from linfb.backend import namespace
from linfb.engine.layers.base import Layer
from linfb.kernels import suited

__all__ = ["Flatten", "GlobalAveragePool", "MaxPool2d"]


@dataclass(frozen=True)
class MaxPool2d(Layer):
    r"""Keep the largest entry of each window, feature by feature; images are (batch, height, width, feature).

    .. math:: y_{nijc} = \max_{0 \le a, b < k} x_{n,\; is + a,\; js + b,\; c}

    Parameters
    ----------
    size : int
        Side k of a window, at most 16.
    stride : int, optional
        s, pixels from one window to the next; by default the size, so that windows neither overlap nor leave gaps.

    Raises
    ------
    ValueError, TypeError
        If a number is out of range or no integer.

    Notes
    -----
    The error of a window goes to its winner, the first of equals. Rows and columns on which no window ends are left
    out. A NaN wins, so that it shows.

    Examples
    --------
    >>> import numpy as np
    >>> layer = MaxPool2d(2)
    >>> y, cache = layer.forward(None, np.array([[1.0, 5.0], [3.0, 2.0]]).reshape(1, 2, 2, 1))
    >>> y.item(), layer.pull(None, cache, np.full((1, 1, 1, 1), 7.0))[0, :, :, 0]
    (5.0, array([[0., 7.], [0., 0.]]))
    """

    size: int
    stride: Any = None

    def __post_init__(self) -> None:
        integer("size", self.size, at_least=1, at_most=16)
        if self.stride is None:
            object.__setattr__(self, "stride", self.size)
        integer("stride", self.stride, at_least=1)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (rows, columns, feature) from (height, width, feature)."""
        if len(shape) != 3 or min(shape[:2]) < self.size:
            raise ValueError(
                f"{self} takes images (height, width, feature) of at least {self.size} pixels a side, got shape {shape}"
            )
        return *((length - self.size) // self.stride + 1 for length in shape[:2]), shape[2]

    def forward(
        self, weights: None, x: Float[Any, "batch height width feature"]
    ) -> tuple[
        Float[Any, "batch rows columns feature"], tuple[UInt8[Any, "batch rows columns feature"], tuple[int, int]]
    ]:
        """Return the output; the numbers of the winners in their windows, and the size of the images."""
        y, choice = suited("images", x).max_pool(x, self.size, self.stride)
        return y, (choice, (x.shape[1], x.shape[2]))

    def pull(
        self,
        weights: None,
        cache: tuple[UInt8[Any, "batch rows columns feature"], tuple[int, int]],
        delta: Float[Any, "batch rows columns feature"],
    ) -> Float[Any, "batch height width feature"]:
        """Return the errors at the winners, zeros elsewhere."""
        choice, shape = cache
        return suited("images", delta).max_unpool(delta, choice, shape, self.size, self.stride)


@dataclass(frozen=True)
class GlobalAveragePool(Layer):
    r"""Average each feature over all places: pixels of an image or tokens of a sequence.

    .. math:: y_{nc} = \frac{1}{L} \sum_{l=1}^{L} x_{nlc}

    Examples
    --------
    >>> import numpy as np
    >>> layer = GlobalAveragePool()
    >>> y, cache = layer.forward(None, np.array([[[1.0, 2.0], [3.0, 6.0]]]))
    >>> y, layer.pull(None, cache, np.ones((1, 2)))
    (array([[2., 4.]]), array([[[0.5, 0.5], [0.5, 0.5]]]))
    """

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (feature,) from (..., feature)."""
        if len(shape) < 2:
            raise ValueError(f"{self} takes samples (..., feature) with places to average over, got shape {shape}")
        return (shape[-1],)

    def forward(
        self, weights: None, x: Float[Any, "batch ... feature"]
    ) -> tuple[Float[Any, "batch feature"], tuple[int, ...]]:
        """Return the output, and the shape of the input."""
        xp = namespace(x)
        return xp.mean(xp.reshape(x, (x.shape[0], -1, x.shape[-1])), axis=1), x.shape

    def pull(
        self, weights: None, cache: tuple[int, ...], delta: Float[Any, "batch feature"]
    ) -> Float[Any, "batch ... feature"]:
        """Return the error at the input: an equal part of that at the output for each place."""
        xp, (batch, *places, features) = namespace(delta), cache
        part = xp.reshape(delta / math.prod(places), (batch, *(1 for _ in places), features))
        return part + xp.zeros(cache, dtype=delta.dtype)


@dataclass(frozen=True)
class Flatten(Layer):
    """Make one vector of all entries of a sample, features of a pixel next to each other.

    Examples
    --------
    >>> import numpy as np
    >>> layer = Flatten()
    >>> y, cache = layer.forward(None, np.array([[[1.0, 2.0], [3.0, 4.0]]]))
    >>> y, layer.pull(None, cache, y).shape
    (array([[1., 2., 3., 4.]]), (1, 2, 2))
    """

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (number of entries,)."""
        return (math.prod(shape),)

    def forward(self, weights: None, x: Float[Any, "batch ..."]) -> tuple[Float[Any, "batch entries"], tuple[int, ...]]:
        """Return the output, and the shape of the input."""
        return namespace(x).reshape(x, (x.shape[0], math.prod(x.shape[1:]))), x.shape

    def pull(
        self, weights: None, cache: tuple[int, ...], delta: Float[Any, "batch entries"]
    ) -> Float[Any, "batch ..."]:
        """Return the error in the shape of the input."""
        return namespace(delta).reshape(delta, cache)
