"""Convolution of images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Float

from linfb._checks import choice, integer
from linfb.engine.layers.base import Kernel
from linfb.kernels import suited

__all__ = ["Conv2d"]


@dataclass(frozen=True)
class Conv2d(Kernel):
    r"""Convolution with a square kernel and without bias; images are (batch, height, width, feature).

    .. math:: y_{nijo} = \sum_{abc} K_{oabc}\; x_{n,\; is + a - p,\; js + b - p,\; c}

    with stride s and p zeros around the images.

    Parameters
    ----------
    n_in, n_out : int
        Features of a pixel; the kernel has shape (out, size, size, in).
    size : int
        Side of the window.
    stride : int
        Pixels from one place of the window to the next.
    padding : int or "same"
        Zeros on each side. "same" is half the size, rounded down, of an odd window: at stride 1 the output has the
        shape of the input.
    algorithm : {"auto", "im2col", "winograd"}
        How products are done on NumPy arrays: as one of matrices with patches, which takes every convolution, or
        Winograd's way (:mod:`linfb.kernels.cpu_winograd`), which takes those of size 3, stride 1, padding up to 2 and
        at least 8 features on either side. "auto" takes the faster one. Other arrays have one way.

    Raises
    ------
    ValueError
        If a number is out of range, "same" is asked for with an even size, or "winograd" for another convolution.
    TypeError
        If one is not an integer.

    Notes
    -----
    Outputs of an image, and errors at it, do not depend on what else is in the batch. Functions and gradients are
    checked in ``tests/test_layers_images.py``, and against PyTorch in ``tests/test_layers_images_oracle.py``.

    References
    ----------
    :cite:t:`lecun1998`.

    Examples
    --------
    >>> import numpy as np
    >>> layer, kernel = Conv2d(1, 1, 2), np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    >>> y, cache = layer.forward(kernel, np.eye(3).reshape(1, 3, 3, 1))
    >>> y[0, :, :, 0]
    array([[5., 2.],
           [3., 5.]])
    >>> layer.pull(kernel, cache, np.ones((1, 2, 2, 1)))[0, :, :, 0]
    array([[ 1.,  3.,  2.],
           [ 4., 10.,  6.],
           [ 3.,  7.,  4.]])
    """

    n_in: int
    n_out: int
    size: int
    stride: int = 1
    padding: Any = 0
    algorithm: str = "auto"

    def __post_init__(self) -> None:
        for name in ("n_in", "n_out", "size", "stride"):
            integer(name, getattr(self, name), at_least=1)
        if isinstance(self.padding, str):
            if self.padding != "same":
                raise ValueError(f"padding must be an integer or 'same', got {self.padding!r}")
            if self.size % 2 == 0:
                raise ValueError(f"padding='same' needs an odd size, got size={self.size}")
            object.__setattr__(self, "padding", self.size // 2)
        integer("padding", self.padding, at_least=0)
        choice("algorithm", self.algorithm, ("auto", "im2col", "winograd"))
        if self.algorithm == "winograd" and not (
            (self.size, self.stride) == (3, 1) and self.padding <= 2 and min(self.n_in, self.n_out) >= 8
        ):
            raise ValueError(
                "algorithm='winograd' needs size=3, stride=1, padding <= 2 and at least 8 features on either side, got "
                f"size={self.size}, stride={self.stride}, padding={self.padding}, n_in={self.n_in}, n_out={self.n_out}"
            )

    def __repr__(self) -> str:
        names = [field.name for field in fields(self) if (field.name, self.algorithm) != ("algorithm", "auto")]
        return f"Conv2d({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape of the weights, (out, size, size, in)."""
        return self.n_out, self.size, self.size, self.n_in

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return (rows, columns, out) from (height, width, in)."""
        if len(shape) != 3 or shape[2] != self.n_in:
            raise ValueError(f"{self} takes images (height, width, {self.n_in}), got shape {shape}")
        if min(shape[:2]) + 2 * self.padding < self.size:
            raise ValueError(
                f"{self} takes images of at least {self.size - 2 * self.padding} pixels a side, got {shape}"
            )
        rows, columns = ((length + 2 * self.padding - self.size) // self.stride + 1 for length in shape[:2])
        return rows, columns, self.n_out

    def probes(self, xp: Any, dtype: Any) -> Float[Any, "probes side side in"]:
        """Return images with one feature of one pixel on: each pixel of a stride by stride square, that all taps see.

        The images are as small as can be; there are stride x stride x in of them.
        """
        before, stride = max(0, self.size - 1 - self.padding), self.stride
        side = 2 * before + stride
        images = xp.zeros((stride, stride, self.n_in, side, side, self.n_in), dtype=dtype)
        for a in range(stride):
            for b in range(stride):
                images[a, b, :, before + a, before + b, :] = xp.eye(self.n_in, dtype=dtype)
        return xp.reshape(images, (-1, side, side, self.n_in))

    def forward(
        self, kernel: Float[Any, "out kh kw in"], x: Float[Any, "batch height width in"]
    ) -> tuple[Float[Any, "batch rows columns out"], Float[Any, "batch height width in"]]:
        """Return the output and what :meth:`grad` needs later (the input)."""
        return suited("images", x, self._way(kernel)).convolve(x, kernel, self.stride, self.padding), x

    def grad(
        self,
        kernel: Float[Any, "out kh kw in"],
        cache: Float[Any, "batch height width in"],
        delta: Float[Any, "batch rows columns out"],
    ) -> Float[Any, "out kh kw in"]:
        """Return the gradient of a kernel, summed over batch and places."""
        kernels = suited("images", cache, self._way(kernel))
        return kernels.convolve_grad(cache, delta, kernel.shape[1:3], self.stride, self.padding)

    def pull(
        self,
        kernel: Float[Any, "out kh kw in"],
        cache: Float[Any, "batch height width in"],
        delta: Float[Any, "batch rows columns out"],
    ) -> Float[Any, "batch height width in"]:
        """Return the error at the input: the adjoint of :meth:`forward`, for any kernel."""
        kernels = suited("images", delta, self._way(kernel))
        return kernels.convolve_pull(delta, kernel, cache.shape[1:3], self.stride, self.padding)

    def _way(self, kernel: Any) -> str:
        """Return the algorithm for a kernel, which may have fewer output features than the weights."""
        return "im2col" if self.algorithm == "winograd" and kernel.shape[0] < 8 else self.algorithm
