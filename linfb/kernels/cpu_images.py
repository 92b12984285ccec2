"""Convolutions and pooling of images on NumPy arrays, each convolution in the way that takes the least time.

Twins of :mod:`linfb.kernels.reference_images`, where they are explained; ``tests/test_layers_images.py`` holds them
together. The ways are :mod:`linfb.kernels.cpu_im2col` and :mod:`linfb.kernels.cpu_winograd`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels import cpu_im2col, cpu_winograd

__all__ = ["convolve", "convolve_grad", "convolve_pull", "max_pool", "max_unpool"]

SLICES = 32


def convolve(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    """Convolve images (batch, height, width, in) with a kernel (out, kh, kw, in)."""
    places = (x.shape[1] + 2 * padding - 2, x.shape[2] + 2 * padding - 2)
    return _way(kernel.shape, stride, padding, places).convolve(x, kernel, stride, padding)


def convolve_grad(x: Any, delta: Any, size: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the gradient of the kernel, shape (out, kh, kw, in)."""
    way = _way((delta.shape[3], *size, x.shape[3]), stride, padding, delta.shape[1:3])
    return way.convolve_grad(x, delta, size, stride, padding)


def convolve_pull(delta: Any, kernel: Any, shape: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the error at the input."""
    return _way(kernel.shape, stride, padding, shape).convolve_pull(delta, kernel, shape, stride, padding)


def _way(shape: tuple[int, ...], stride: int, padding: int, places: tuple[int, ...]) -> ModuleType:
    """Return the way for a kernel of some shape: Winograd's if at least half of the outputs of its tiles are used.

    With all of them used it takes 0.3 to 0.9 of the time of the other way, with three quarters of them 0.5 to 0.85;
    with 0.4 of them the gradient of the kernel takes 1.3 of it (8 to 128 features, one thread with AVX2).
    """
    tiles = -(-places[0] // 4) * -(-places[1] // 4)
    used = places[0] * places[1] >= 8 * tiles
    return cpu_winograd if used and cpu_winograd.applies(shape, stride, padding) else cpu_im2col


def max_pool(x: Any, size: int, stride: int) -> tuple[Any, Any]:
    """Return the largest entry of each window and, in uint8, its place there; a NaN counts as larger than all."""
    x = np.ascontiguousarray(x)
    shape = (len(x), (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1, x.shape[3])
    y, choice = empty(shape, x.dtype), empty(shape, np.uint8)
    for_slices(
        lambda first, last: _pool(x[first:last], size, stride, y[first:last], choice[first:last]),
        len(x),
        max(1, -(-len(x) // SLICES)),
    )
    return y, choice


@njit(cache=True, nogil=True, error_model="numpy")
def _pool(x, size, stride, y, choice):
    images, rows, columns, features = y.shape
    for place in range(images * rows * columns):
        line, j = divmod(place, columns)
        image, i = divmod(line, rows)
        largest, which = y[image, i, j], choice[image, i, j]
        for tap in range(size * size):
            pixel = x[image, i * stride + tap // size, j * stride + tap % size]
            for c in range(features):
                better = tap == 0 or pixel[c] > largest[c] or pixel[c] != pixel[c]
                largest[c] = pixel[c] if better else largest[c]
                which[c] = tap if better else which[c]


def max_unpool(delta: Any, choice: Any, shape: tuple[int, int], size: int, stride: int) -> Any:
    """Return the error at the input of :func:`max_pool`: each error goes to the winner of its window."""
    delta, choice = np.ascontiguousarray(delta), np.ascontiguousarray(choice)
    dx = np.zeros((len(delta), *shape, delta.shape[3]), delta.dtype)
    for_slices(
        lambda first, last: _unpool(delta[first:last], choice[first:last], size, stride, dx[first:last]),
        len(delta),
        max(1, -(-len(delta) // SLICES)),
    )
    return dx


@njit(cache=True, nogil=True, error_model="numpy")
def _unpool(delta, choice, size, stride, dx):
    images, rows, columns, features = delta.shape
    for place in range(images * rows * columns):
        line, j = divmod(place, columns)
        image, i = divmod(line, rows)
        error, which = delta[image, i, j], choice[image, i, j]
        for tap in range(size * size):
            pixel = dx[image, i * stride + tap // size, j * stride + tap % size]
            for c in range(features):
                pixel[c] += error[c] if which[c] == tap else 0
