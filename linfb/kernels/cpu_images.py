"""Convolutions as products with patches, and pooling, on NumPy arrays: patches cut by numba, products by BLAS.

Twins of :mod:`linfb.kernels.reference_images`, where they are explained; ``tests/test_layers_images.py`` holds them
together. Products have a number of rows that depends on the shapes of an image and a kernel alone: those of several
whole images (the last product filled up with zeros), or of a part of one image. So an image gives the same bits in
every batch (several to a product: where BLAS rounds all rows of a product alike, as it does with AVX-512), and
everything the same bits on any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty

__all__ = ["convolve", "convolve_grad", "convolve_pull", "max_pool", "max_unpool"]

ENTRIES = 2**19
ROWS = (512, 4096)
SLICES = 32
SUMS = 8


def convolve(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    """Convolve images (batch, height, width, in) with a kernel (out, kh, kw, in)."""
    ends = [length + 2 * padding - taps for length, taps in zip(x.shape[1:3], kernel.shape[1:3], strict=True)]
    places = (ends[0] // stride + 1, ends[1] // stride + 1)
    return _correlate(x, kernel, _Window(kernel.shape[1:3], places, stride, (padding, padding)))


def convolve_grad(x: Any, delta: Any, size: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the gradient of the kernel, shape (out, kh, kw, in): at most `SUMS` sums over blocks, added in order."""
    window = _Window(size, delta.shape[1:3], stride, (padding, padding))
    x, errors = np.ascontiguousarray(x), np.ascontiguousarray(delta).reshape(-1, delta.shape[3])
    shape, dtype = (delta.shape[3], window.taps * x.shape[3]), np.result_type(x, delta)

    def part(first: int, last: int) -> Any:
        total, term = np.zeros(shape, dtype), empty(shape, dtype)
        for start, patches in window.blocks(x, first, last):
            rows = errors[start : start + len(patches)]
            total += np.matmul(rows.T, patches[: len(rows)], out=term)
        return total

    total = np.zeros(shape, dtype)
    for one in for_slices(part, len(x), window.slices(x, SUMS)):
        total += one
    return total.reshape(delta.shape[3], *size, x.shape[3])


def convolve_pull(delta: Any, kernel: Any, shape: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the error at the input: pixels of one phase of the stride see the taps of that phase, reversed."""
    if stride == 1:
        return _pull_phase(delta, kernel, shape, (padding, padding))
    dx = np.zeros((delta.shape[0], *shape, kernel.shape[3]), np.result_type(delta, kernel))
    for p in range(stride):
        for q in range(stride):
            taps = kernel[:, p::stride, q::stride]
            first = ((p - padding) % stride, (q - padding) % stride)
            pixels = dx[:, first[0] :: stride, first[1] :: stride]
            if taps.size and pixels.size:
                ahead = ((first[0] + padding - p) // stride, (first[1] + padding - q) // stride)
                pixels[...] = _pull_phase(delta, taps, pixels.shape[1:3], ahead)
    return dx


def _pull_phase(delta: Any, kernel: Any, shape: tuple[int, int], padding: tuple[int, int]) -> Any:
    """Return the error at the input of a convolution of stride 1."""
    size = kernel.shape[1:3]
    window = _Window(size, shape, 1, (size[0] - 1 - padding[0], size[1] - 1 - padding[1]))
    return _correlate(delta, kernel[:, ::-1, ::-1].transpose(3, 1, 2, 0), window)


def _correlate(x: Any, kernel: Any, window: _Window) -> Any:
    x, matrix = np.ascontiguousarray(x), np.ascontiguousarray(kernel).reshape(kernel.shape[0], -1).T
    result = empty((x.shape[0], *window.places, kernel.shape[0]), np.result_type(x, kernel))
    flat = result.reshape(-1, kernel.shape[0])

    def part(first: int, last: int) -> None:
        for start, patches in window.blocks(x, first, last):
            rows = flat[start : start + len(patches)]
            if len(rows) == len(patches):
                np.matmul(patches, matrix, out=rows)
            else:
                rows[...] = (patches @ matrix)[: len(rows)]

    for_slices(part, len(x), window.slices(x, SLICES))
    return result


@dataclass(frozen=True)
class _Window:
    """A window of some size that takes (rows, columns) places on a padded image, a stride apart."""

    size: tuple[int, int]
    places: tuple[int, int]
    stride: int
    padding: tuple[int, int]

    @property
    def taps(self) -> int:
        return self.size[0] * self.size[1]

    def block(self, x: Any) -> tuple[int, int]:
        """Return how many images and how many patches make a block."""
        places = self.places[0] * self.places[1]
        most = min(max(ENTRIES // (self.taps * x.shape[3]), ROWS[0]), ROWS[1])
        images, parts = max(1, most // places), -(-places // most)
        return images, -(-images * places // parts)

    def slices(self, x: Any, most: int) -> int:
        """Return the number of images, in whole blocks, in each of at most so many slices."""
        images, _ = self.block(x)
        return max(1, -(-len(x) // (images * most))) * images

    def blocks(self, x: Any, first: int, last: int) -> Iterator[tuple[int, Any]]:
        """Yield the number of its first patch and the patches of each block; they share one buffer."""
        images, length = self.block(x)
        pixels, places = x.reshape(-1, x.shape[3]), self.places[0] * self.places[1]
        buffer = empty((length, self.taps * x.shape[3]), x.dtype)
        plain = (*self.size, self.stride, *self.padding) == (1, 1, 1, 0, 0) and self.places == x.shape[1:3]
        for image in range(first, last, images):
            end = (image + images) * places
            for start in range(image * places, end, length):
                stop = min(start + length, end)
                if plain and stop <= len(pixels):
                    yield start, pixels[start:stop]
                else:
                    patches = buffer[: stop - start]
                    _cut(x, start, *self.places, *self.size, self.stride, *self.padding, patches)
                    yield start, patches


@njit(cache=True, nogil=True, error_model="numpy")
def _cut(x, start, rows, columns, kh, kw, stride, top, left, patches):
    images, height, width, features = x.shape
    for row in range(patches.shape[0]):
        image, place = divmod(start + row, rows * columns)
        i, j = divmod(place, columns)
        at = 0
        for a in range(kh):
            y = i * stride + a - top
            for b in range(kw):
                z = j * stride + b - left
                to = patches[row, at : at + features]
                if image < images and 0 <= y < height and 0 <= z < width:
                    pixel = x[image, y, z]
                    for c in range(features):
                        to[c] = pixel[c]
                else:
                    for c in range(features):
                        to[c] = 0
                at += features


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
