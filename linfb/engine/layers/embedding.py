"""From images and texts to sequences of tokens, and from a sequence to one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from linfb._checks import integer
from linfb._threads import columns, rows
from linfb.backend import namespace, reshape, transpose
from linfb.engine.layers.base import Kernel, Layer
from linfb.engine.layers.shapes import tokens
from linfb.kernels import suited

__all__ = ["ClassToken", "PatchEmbedding", "PositionalEmbedding", "TakeToken", "TokenEmbedding"]

DEVIATION = 0.02


@dataclass(frozen=True)
class PatchEmbedding(Kernel):
    r"""Cut an image into square patches, and map each linearly to one token.

    .. math:: y_{t o} = \sum_{i j c} W_{o i j c}\, x_{(p r_t + i)(p s_t + j) c}

    for the patch in row r and column s of the image's patches; tokens run along the rows. This is the convolution whose
    stride is its size.

    Parameters
    ----------
    shape : tuple of int
        Of one image, (height, width, channel).
    patch : int
        p; divides height and width.
    n_out : int
        Features of a token. The kernel has shape (out, patch, patch, channel).

    Raises
    ------
    ValueError
        If the patches do not tile the image.

    References
    ----------
    :cite:t:`dosovitskiy2021`.

    Examples
    --------
    >>> layer = PatchEmbedding((4, 4, 1), 2, 1)
    >>> layer.forward(np.ones((1, 2, 2, 1)), np.eye(4).reshape(1, 4, 4, 1))[0].ravel()
    array([2., 0., 0., 2.])
    """

    shape: tuple[int, ...]
    patch: int
    n_out: int

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Sequence) or len(self.shape) != 3:
            raise ValueError(f"shape must be that of an image, (height, width, channel), got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(integer("shape", size, at_least=1) for size in self.shape))
        integer("n_out", self.n_out, at_least=1)
        if any(size % integer("patch", self.patch, at_least=1) for size in self.shape[:2]):
            raise ValueError(f"patch must divide height and width, got patch {self.patch} and shape {self.shape}")

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weights, (out, patch, patch, channel)."""
        return self.n_out, self.patch, self.patch, self.shape[2]

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (token, out) for the image's shape."""
        if tuple(shape) != self.shape:
            raise ValueError(f"{self} takes images of shape {self.shape}, got shape {shape}")
        return self.shape[0] * self.shape[1] // self.patch**2, self.n_out

    def probes(self, xp: Any, dtype: Any) -> Float[Any, "n height width channel"]:
        """Return images with a one at one place of the first patch."""
        height, width, channels = self.shape
        units = xp.reshape(xp.eye(self.patch**2 * channels, dtype=dtype), (-1, self.patch, self.patch, channels))
        right = xp.zeros((units.shape[0], self.patch, width - self.patch, channels), dtype=dtype)
        below = xp.zeros((units.shape[0], height - self.patch, width, channels), dtype=dtype)
        return xp.concat([xp.concat([units, right], axis=2), below], axis=1)

    def forward(
        self, kernel: Float[Any, "out patch patch channel"], x: Float[Any, "batch height width channel"]
    ) -> tuple[Float[Any, "batch token out"], Float[Any, "batch height width channel"]]:
        """Return the tokens and what :meth:`grad` needs later (the images)."""
        return rows(self._patches(x), transpose(_flat(kernel))), x

    def grad(
        self,
        kernel: Float[Any, "any patch patch channel"],
        cache: Float[Any, "batch height width channel"],
        delta: Float[Any, "batch token out"],
    ) -> Float[Any, "out patch patch channel"]:
        """Return the gradient of a kernel, summed over batch and patches."""
        return reshape(columns(delta, self._patches(cache)), -1, *self.kernel_shape[1:])

    def pull(
        self, kernel: Float[Any, "out patch patch channel"], cache: Any, delta: Float[Any, "batch token out"]
    ) -> Float[Any, "batch height width channel"]:
        """Return the error at the images."""
        return self._exchange(rows(delta, _flat(kernel)), self._grid, (-1, *self.shape))

    @property
    def _grid(self) -> tuple[int, ...]:
        """Return the number of patches down and across, and the patch's shape."""
        return self.shape[0] // self.patch, self.shape[1] // self.patch, self.patch, self.patch, self.shape[2]

    def _patches(self, x: Any) -> Any:
        down, across, high, wide, channels = self._grid
        shape = (x.shape[0], down * across, high * wide * channels)
        return self._exchange(x, (down, high, across, wide, channels), shape)

    def _exchange(self, x: Any, grid: tuple[int, ...], shape: tuple[int, ...]) -> Any:
        """Return x, seen as (batch, *grid), with the two axes in the middle of the grid exchanged."""
        xp = namespace(x)
        return xp.reshape(xp.permute_dims(xp.reshape(x, (x.shape[0], *grid)), (0, 1, 3, 2, 4, 5)), shape)


@dataclass(frozen=True)
class TokenEmbedding(Kernel):
    r"""Look up a vector for every token, :math:`y_{t o} = W_{o\, x_t}`: the dense layer on one-hot inputs.

    Parameters
    ----------
    n_tokens : int
        Number of different tokens, which are the integers from 0 up.
    n_out : int
        Features. The kernel has shape (out, n_tokens); it starts as N(0, 0.02^2).

    Notes
    -----
    Tokens have no error, so that this can only be the first kernel layer.

    Examples
    --------
    >>> layer, W = TokenEmbedding(3, 2), np.array([[0.0, 1.0, 2.0], [5.0, 6.0, 7.0]])
    >>> y, cache = layer.forward(W, np.array([[2, 2]]))
    >>> y[0, 0], layer.grad(W, cache, np.ones((1, 2, 2)))[0]
    (array([2., 7.]), array([0., 0., 2.]))
    """

    n_tokens: int
    n_out: int
    capturable: ClassVar[bool] = False  # sorting tokens waits on the host

    def __post_init__(self) -> None:
        integer("n_tokens", self.n_tokens, at_least=1)
        integer("n_out", self.n_out, at_least=1)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weights, (out, n_tokens)."""
        return self.n_out, self.n_tokens

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (token, out) for (token,)."""
        if len(shape) != 1:
            raise ValueError(f"{self} takes samples of shape (token,), got shape {shape}")
        return *shape, self.n_out

    def initial_weights(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the weights at the start, on the host."""
        return DEVIATION * rng.standard_normal(self.kernel_shape)

    def probes(self, xp: Any, dtype: Any) -> Int[Any, "n_tokens 1"]:
        """Return every token once, as a sequence of one."""
        return xp.reshape(xp.arange(self.n_tokens), (-1, 1))

    def forward(
        self, kernel: Float[Any, "out n_tokens"], x: Any
    ) -> tuple[Float[Any, "batch token out"], Int[Any, "batch token"]]:
        """Return the vectors of the tokens (integers, shape (batch, token)), and these."""
        xp = namespace(x)
        if not xp.isdtype(x.dtype, "integral"):
            raise TypeError(f"x must be an array of tokens, which are integers, got dtype {x.dtype}")
        if isinstance(x, np.ndarray) and x.size and not 0 <= x.min() <= x.max() < kernel.shape[1]:
            raise ValueError(f"x must hold tokens from 0 to {kernel.shape[1] - 1}, got {x.min()} to {x.max()}")
        vectors = xp.take(transpose(kernel), xp.reshape(x, (-1,)), axis=0)
        return xp.reshape(vectors, (*x.shape, kernel.shape[0])), x

    def grad(
        self, kernel: Float[Any, "any n_tokens"], cache: Int[Any, "batch token"], delta: Float[Any, "batch token out"]
    ) -> Float[Any, "out n_tokens"]:
        """Return the gradient of a kernel: the errors of each token, summed over batch and positions."""
        return suited("sequences", delta).token_sums(delta, cache, self.n_tokens)

    def pull(self, kernel: Any, cache: Any, delta: Any) -> Any:
        """Raise a ValueError: tokens have no error."""
        raise ValueError("tokens have no error: TokenEmbedding can only be the first kernel layer")


@dataclass(frozen=True)
class ClassToken(Layer):
    """Put one learned token before all others; what becomes of it speaks for the whole sequence.

    Parameters
    ----------
    n_features : int
        Width; the weights are one array of this shape, N(0, 0.02^2) at the start.

    References
    ----------
    :cite:t:`dosovitskiy2021`.

    Examples
    --------
    >>> ClassToken(2).forward(np.array([1.0, 2.0]), np.zeros((1, 2, 2)))[0]
    array([[[1., 2.],
            [0., 0.],
            [0., 0.]]])
    """

    n_features: int

    def __post_init__(self) -> None:
        integer("n_features", self.n_features, at_least=1)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (token + 1, features) for (token, features)."""
        return tokens(self, shape, n_features=self.n_features) + 1, self.n_features

    def initial_weights(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the weights at the start, on the host."""
        return DEVIATION * rng.standard_normal(self.n_features)

    def forward(
        self, weights: Float[Any, " features"], x: Float[Any, "batch token features"]
    ) -> tuple[Float[Any, "batch token_1 features"], None]:
        """Return the longer sequence; nothing has to be kept."""
        xp = namespace(x)
        return xp.concat([xp.broadcast_to(weights, (x.shape[0], 1, x.shape[2])), x], axis=1), None

    def grad(self, weights: Any, cache: None, delta: Float[Any, "batch token_1 features"]) -> Float[Any, " features"]:
        """Return the error at the learned token, summed over the batch."""
        return suited("norms", delta).feature_sums(delta[:, 0, :])

    def pull(
        self, weights: Any, cache: None, delta: Float[Any, "batch token_1 features"]
    ) -> Float[Any, "batch token features"]:
        """Return the error at the other tokens."""
        return delta[:, 1:, :]


@dataclass(frozen=True)
class PositionalEmbedding(Layer):
    """Add a learned vector to each position.

    Parameters
    ----------
    n_tokens, n_features : int
        The weights have shape (n_tokens, n_features), N(0, 0.02^2) at the start.

    Examples
    --------
    >>> PositionalEmbedding(2, 1).forward(np.array([[1.0], [2.0]]), np.zeros((1, 2, 1)))[0]
    array([[[1.],
            [2.]]])
    """

    n_tokens: int
    n_features: int

    def __post_init__(self) -> None:
        integer("n_tokens", self.n_tokens, at_least=1)
        integer("n_features", self.n_features, at_least=1)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the same shape, if it is (n_tokens, n_features)."""
        tokens(self, shape, self.n_tokens, self.n_features)
        return shape

    def initial_weights(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the weights at the start, on the host."""
        return DEVIATION * rng.standard_normal((self.n_tokens, self.n_features))

    def forward(
        self, weights: Float[Any, "token features"], x: Float[Any, "batch token features"]
    ) -> tuple[Float[Any, "batch token features"], None]:
        """Return the sum; nothing has to be kept."""
        return reshape(suited("norms", x).shifted(_flat(x), reshape(weights, -1)), *x.shape), None

    def grad(
        self, weights: Any, cache: None, delta: Float[Any, "batch token features"]
    ) -> Float[Any, "token features"]:
        """Return the error, summed over the batch."""
        return reshape(suited("norms", delta).feature_sums(_flat(delta)), *delta.shape[1:])

    def pull(
        self, weights: Any, cache: None, delta: Float[Any, "batch token features"]
    ) -> Float[Any, "batch token features"]:
        """Return the error as it is."""
        return delta


@dataclass(frozen=True)
class TakeToken(Layer):
    """Go on with one token of the sequence, such as the one of :class:`ClassToken`.

    Parameters
    ----------
    index : int
        Its position.

    Examples
    --------
    >>> TakeToken().forward(None, np.arange(6.0).reshape(1, 3, 2))[0]
    array([[0., 1.]])
    """

    index: int = 0

    def __post_init__(self) -> None:
        integer("index", self.index, at_least=0)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (features,) for (token, features)."""
        if self.index >= tokens(self, shape):
            raise ValueError(f"{self} takes sequences of more than {self.index} tokens, got shape {shape}")
        return shape[1:]

    def forward(self, weights: None, x: Float[Any, "batch token features"]) -> tuple[Float[Any, "batch features"], int]:
        """Return the token, and the number of tokens."""
        return x[:, self.index, :], x.shape[1]

    def pull(
        self, weights: None, cache: int, delta: Float[Any, "batch features"]
    ) -> Float[Any, "batch token features"]:
        """Return the error at the token, with 0 at all others."""
        xp, (batch, features) = namespace(delta), delta.shape
        before = xp.zeros((batch, self.index, features), dtype=delta.dtype)
        after = xp.zeros((batch, cache - self.index - 1, features), dtype=delta.dtype)
        return xp.concat([before, delta[:, None, :], after], axis=1)


def _flat(x: Any) -> Any:
    """Return x with all axes but the first in one."""
    return reshape(x, x.shape[0], math.prod(x.shape[1:]))
