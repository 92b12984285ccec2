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
OVERHEAD = 48
"""Time of Winograd's transforms of a tile and a feature over that of a multiplication, measured."""


def convolve(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    """Convolve images (batch, height, width, in) with a kernel (out, kh, kw, in)."""
    places = (x.shape[1] + 2 * padding - 2, x.shape[2] + 2 * padding - 2)
    way = _way(kernel.shape[1:3], stride, padding, places, kernel.shape[0], kernel.shape[3])
    return way.convolve(x, kernel, stride, padding)


def convolve_grad(x: Any, delta: Any, size: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the gradient of the kernel, shape (out, kh, kw, in)."""
    way = _way(size, stride, padding, delta.shape[1:3], delta.shape[3], x.shape[3])
    return way.convolve_grad(x, delta, size, stride, padding)


def convolve_pull(delta: Any, kernel: Any, shape: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the error at the input."""
    way = _way(kernel.shape[1:3], stride, padding, shape, kernel.shape[0], kernel.shape[3])
    return way.convolve_pull(delta, kernel, shape, stride, padding)


def _way(
    size: tuple[int, ...], stride: int, padding: int, places: tuple[int, ...], n_out: int, n_in: int
) -> ModuleType:
    """Return the way with the least multiplications, transforms counted as `OVERHEAD` of them for each feature."""
    if not cpu_winograd.applies(size, stride, padding, n_out, n_in):
        return cpu_im2col
    tiles = -(-places[0] // 4) * -(-places[1] // 4)
    direct, fast = 9 * places[0] * places[1] * n_in * n_out, 36 * tiles * (n_in * n_out + OVERHEAD * (n_in + n_out))
    return cpu_winograd if fast < direct else cpu_im2col


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
