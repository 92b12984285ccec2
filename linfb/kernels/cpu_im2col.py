"""Convolutions as products with patches, on NumPy arrays: patches cut by numba, products by BLAS.

One of the ways of :mod:`linfb.kernels.cpu_images`, which takes every size, stride and padding. Products have a number
of rows that depends on the shapes of an image and a kernel alone: those of several whole images (the last product
filled up with zeros), or of a part of one image. So an image gives the same bits in every batch (several to a product:
where BLAS rounds all rows of a product alike, as it does with AVX-512), and everything the same bits on any number of
threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels._simd import lanes, load, store

__all__ = ["convolve", "convolve_grad", "convolve_pull"]

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
    line = kw * features
    pixels, to = x.reshape(-1), patches.reshape(-1)
    for row in range(patches.shape[0]):
        image, place = divmod(start + row, rows * columns)
        i, j = divmod(place, columns)
        first = j * stride - left
        before = min(max(0, -first), kw)  # taps outside of the image
        after = min(max(before, width - first), kw)
        for a in range(kh):
            y, at = i * stride + a - top, (row * kh + a) * line
            if image < images and 0 <= y < height:
                to[at : at + before * features] = 0
                begin, end = at + before * features, at + after * features
                _copy(pixels, ((image * height + y) * width + first + before) * features, to, begin, end - begin)
                to[end : at + line] = 0
            else:
                to[at : at + line] = 0


@njit(cache=True, nogil=True, error_model="numpy")
def _copy(source, begin, to, at, length):
    step = lanes(source)
    if length < step:
        for c in range(length):
            to[at + c] = source[begin + c]
    else:
        for c in range(0, length - step, step):
            store(to, at + c, load(source, begin + c))
        store(to, at + length - step, load(source, begin + length - step))
