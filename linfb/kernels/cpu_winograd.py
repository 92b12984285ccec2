r"""Convolutions of 3x3 at stride 1 with a quarter of the products: Winograd's F(4x4, 3x3), on NumPy arrays.

In one dimension, four neighbouring outputs of three taps g from six inputs d are :math:`A^T (G g \odot B^T d)`; an
image is cut into 4x4 tiles and this done along both axes:

.. math:: Y = A^T \Big[ \sum_c (G g_c G^T) \odot (B^T d_c B) \Big] A .

The sums over features are 36 matrix products. The error at the input is the convolution of the error with the kernel
turned around, and the gradient of the kernel is the adjoint, :math:`G^T [\sum (A\, \delta A^T) \odot (B^T d B)] G` with
its sum over all tiles. A, B and G interpolate a polynomial in the points 0, a, -a, b, -b and infinity. With a = 5/8 and
b = 3/2, A and B are exact in binary, and errors in single precision are 3 to 4 times those of a plain sum (7 times with
the usual 1 and 2).

Products have a number of rows that depends on the shape of an image and on the features alone, and every entry is
summed in one order, so that an image has the same bits in every batch (as far as BLAS rounds all rows of a product
alike) and everything on any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels._simd import lanes, load, store, zeros

__all__ = ["applies", "convolve", "convolve_grad", "convolve_pull"]

TILES = 64
SUMMED = 1 << 22
SLICES = 32
FEATURES = 16
FEWEST = 8
LINE = 16
_OPTIONS: Any = {"cache": True, "nogil": True, "error_model": "numpy"}

A, B = 5 / 8, 3 / 2
AA, BB, ABB, AAB = A * A, B * B, A * B * B, A * A * B
AABB, BOTH = AA * BB, AA + BB
AAA, BBB = A**3, B**3
NONE, NEAR, FAR = 1 / AABB, 1 / (2 * AA * (AA - BB)), 1 / (2 * BB * (BB - AA))


def applies(shape: tuple[int, ...], stride: int, padding: int) -> bool:
    """Return whether this is a way of a convolution with a kernel (out, kh, kw, in) at all."""
    return tuple(shape[1:3]) == (3, 3) and stride == 1 and padding <= 2 and min(shape[0], shape[3]) >= FEWEST


def convolve(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    """Convolve images (batch, height, width, in) with a kernel (out, 3, 3, in)."""
    places = (x.shape[1] + 2 * padding - 2, x.shape[2] + 2 * padding - 2)
    return _correlate(x, _spread_kernel(kernel, False).transpose(0, 2, 1), places, padding)


def convolve_pull(delta: Any, kernel: Any, shape: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the error at the input."""
    return _correlate(delta, _spread_kernel(kernel, True), shape, 2 - padding)


def convolve_grad(x: Any, delta: Any, size: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the gradient of the kernel, shape (out, 3, 3, in): threads share products, tiles are added in order."""
    dtype, tiles = np.result_type(x, delta), _Tiles(delta.shape[1:3])
    x, delta = np.ascontiguousarray(x, dtype), np.ascontiguousarray(delta, dtype)
    n_out, n_in = delta.shape[3], x.shape[3]
    lines = len(x) * tiles.rows
    step = max(1, -(-lines // max(1, 36 * (n_in + n_out) * tiles.columns * lines // SUMMED)))
    total, term = np.zeros((36, n_out, n_in), dtype), empty((36, n_out, n_in), dtype)
    left, right = tiles.products(step, n_out, dtype), tiles.products(step, n_in, dtype)
    for first in range(0, lines, step):

        def spread(start: int, stop: int, first: int = first) -> None:
            part = slice(start * tiles.columns, stop * tiles.columns)
            scratch = tiles.scratch(max(n_in, n_out), 0, dtype)
            tiles.spread(delta, 4, 0, first + start, scratch, left[:, part])
            tiles.spread(x, 6, padding, first + start, scratch, right[:, part])

        def add(start: int, stop: int) -> None:
            part = slice(start, stop)
            np.matmul(left[part].transpose(0, 2, 1), right[part], out=term[part])
            total[part] += term[part]

        for_slices(spread, step, -(-step // SLICES))
        for_slices(add, 36, 1)
    gradient = empty((n_out, 3, 3, n_in), dtype)
    for_slices(lambda start, stop: _gather_taps(total, start, stop, gradient.reshape(-1)), n_out, FEATURES)
    return gradient


def _spread_kernel(kernel: Any, turned: bool) -> np.ndarray:
    """Return G g G^T, shape (36, out, in), of a kernel or of one turned around."""
    kernel = np.ascontiguousarray(kernel)
    spread = empty((36, kernel.shape[0], kernel.shape[3]), kernel.dtype)
    first, step = (8, -1) if turned else (0, 1)
    for_slices(
        lambda start, stop: _spread_taps(kernel.reshape(-1), first, step, start, stop, spread), len(kernel), FEATURES
    )
    return spread


def _correlate(x: np.ndarray, matrices: np.ndarray, places: tuple[int, int], padding: int) -> np.ndarray:
    """Return the products of all tiles of images with matrices (36, in, out), gathered to outputs."""
    dtype, features, tiles = np.result_type(x, matrices), matrices.shape[2], _Tiles(places)
    x = np.ascontiguousarray(x, dtype)
    result = empty((len(x), *places, features), dtype)
    images = max(1, TILES // (tiles.rows * tiles.columns))
    step = -(-images * tiles.rows // -(-images * tiles.rows * tiles.columns // TILES))

    def part(start: int, stop: int) -> None:
        spread, products = tiles.products(step, x.shape[3], dtype), tiles.products(step, features, dtype)
        scratch = tiles.scratch(x.shape[3], features, dtype)
        for first in range(start, stop, step):
            tiles.spread(x, 6, padding, first, scratch, spread)
            np.matmul(spread, matrices, out=products)
            tiles.gather(products, first, min(step, stop - first), scratch, result)

    lines = len(x) * tiles.rows
    for_slices(part, lines, max(1, -(-lines // (step * SLICES))) * step)
    return result


@dataclass(frozen=True)
class _Tiles:
    """Tiles of 4x4 outputs; their rows, over all images, are numbered one after the other."""

    places: tuple[int, int]

    @property
    def rows(self) -> int:
        return -(-self.places[0] // 4)

    @property
    def columns(self) -> int:
        return -(-self.places[1] // 4)

    def products(self, rows: int, features: int, dtype: Any) -> np.ndarray:
        """Return room for the 36 entries of so many rows of tiles, a cache line more apart than a power of two."""
        size = rows * self.columns * features
        room = empty((36, size + LINE), dtype)[:, :size]
        return room.reshape(36, rows * self.columns, features, copy=False)

    def scratch(self, n_in: int, n_out: int, dtype: Any) -> np.ndarray:
        """Return room for one axis of the transform of a row of tiles."""
        return empty(max(6 * (4 * self.columns + 2) * n_in, 24 * n_out), dtype)

    def spread(self, x: np.ndarray, taps: int, padding: int, first: int, scratch: np.ndarray, out: np.ndarray) -> None:
        """Transform inputs (taps = 6) or errors (4) of rows of tiles from a number on, as many as `out` has."""
        _spread(x.reshape(-1), *x.shape, taps, padding, self.rows, self.columns, first, scratch, out)

    def gather(self, products: np.ndarray, first: int, rows: int, scratch: np.ndarray, y: np.ndarray) -> None:
        """Transform products to the outputs of so many rows of tiles."""
        _gather(products, self.rows, self.columns, first, rows, scratch, y.reshape(-1), *y.shape[1:])


@njit(inline="always", **_OPTIONS)
def _inputs(a, b, c, d, e, f):
    """Return B^T d."""
    even, odd = e - BB * c, A * d - ABB * b
    wide, far = e - AA * c, B * d - AAB * b
    return AABB * a - BOTH * c + e, even + odd, even - odd, wide + far, wide - far, AABB * b - BOTH * d + f


@njit(inline="always", **_OPTIONS)
def _errors(a, b, c, d):
    """Return A d."""
    even, odd = a + AA * c, A * b + AAA * d
    wide, far = a + BB * c, B * b + BBB * d
    return a, even + odd, even - odd, wide + far, wide - far, d


@njit(inline="always", **_OPTIONS)
def _outputs(a, b, c, d, e, f):
    """Return A^T m."""
    even, odd, wide, far = b + c, b - c, d + e, d - e
    return a + even + wide, A * odd + B * far, AA * even + BB * wide, AAA * odd + BBB * far + f


@njit(**_OPTIONS)
def _spread(x, images, height, width, features, taps, padding, rows, columns, first, scratch, out):
    """Transform the inputs (taps = 6) or errors (4) of rows of tiles; there are zeros around and after the images."""
    step, wide, line = lanes(x), width * features, (4 * columns + 2) * features
    apart = out.strides[0] // out.itemsize
    start = padding * features
    scratch[: 6 * line] = 0
    for row in range(out.shape[1] // columns):
        image, i = divmod(first + row, rows)
        begin = (image * height + 4 * i - padding) * wide
        above = padding - 4 * i  # of the six lines, those before this one are outside of the image,
        below = height + above if image < images else 0  # and so are those from this one on
        place = 0
        while place < wide:
            at = min(place, wide - step)
            a = load(x, begin + at) if above <= 0 < below else zeros(x)
            b = load(x, begin + wide + at) if above <= 1 < below else zeros(x)
            c = load(x, begin + 2 * wide + at) if above <= 2 < below else zeros(x)
            d = load(x, begin + 3 * wide + at) if above <= 3 < below else zeros(x)
            if taps == 6:
                e = load(x, begin + 4 * wide + at) if above <= 4 < below else zeros(x)
                f = load(x, begin + 5 * wide + at) if above <= 5 < below else zeros(x)
                a, b, c, d, e, f = _inputs(a, b, c, d, e, f)
            else:
                a, b, c, d, e, f = _errors(a, b, c, d)
            to = start + at
            store(scratch, to, a)
            store(scratch, line + to, b)
            store(scratch, 2 * line + to, c)
            store(scratch, 3 * line + to, d)
            store(scratch, 4 * line + to, e)
            store(scratch, 5 * line + to, f)
            place += step
        for u in range(6):
            for column in range(columns):
                begin, end = u * line + 4 * column * features, (row * columns + column) * features
                to = 6 * u * apart + end
                place = 0
                while place < features:
                    at = min(place, features - step)
                    one = begin + at
                    a, b = load(scratch, one), load(scratch, one + features)
                    c, d = load(scratch, one + 2 * features), load(scratch, one + 3 * features)
                    if taps == 6:
                        e, f = load(scratch, one + 4 * features), load(scratch, one + 5 * features)
                        a, b, c, d, e, f = _inputs(a, b, c, d, e, f)
                    else:
                        a, b, c, d, e, f = _errors(a, b, c, d)
                    store(out, to + at, a)
                    store(out, to + apart + at, b)
                    store(out, to + 2 * apart + at, c)
                    store(out, to + 3 * apart + at, d)
                    store(out, to + 4 * apart + at, e)
                    store(out, to + 5 * apart + at, f)
                    place += step


@njit(**_OPTIONS)
def _gather(products, rows, columns, first, count, scratch, y, height, width, features):
    """Transform products of rows of tiles to outputs, of which those outside of the image are dropped."""
    step, apart, line, wide = lanes(y), products.strides[0] // products.itemsize, 4 * features, width * features
    for row in range(count):
        image, i = divmod(first + row, rows)
        here = min(4, height - 4 * i)
        for column in range(columns):
            begin = (row * columns + column) * features
            for u in range(6):
                place = 0
                while place < features:
                    at = min(place, features - step)
                    one = 6 * u * apart + begin + at
                    a, b, c = load(products, one), load(products, one + apart), load(products, one + 2 * apart)
                    d, e = load(products, one + 3 * apart), load(products, one + 4 * apart)
                    a, b, c, d = _outputs(a, b, c, d, e, load(products, one + 5 * apart))
                    to = u * line + at
                    store(scratch, to, a)
                    store(scratch, to + features, b)
                    store(scratch, to + 2 * features, c)
                    store(scratch, to + 3 * features, d)
                    place += step
            to = ((image * height + 4 * i) * width + 4 * column) * features
            length, place = min(4, width - 4 * column) * features, 0
            while place < length:
                at = min(place, length - step)
                a, b, c = load(scratch, at), load(scratch, line + at), load(scratch, 2 * line + at)
                d, e, f = load(scratch, 3 * line + at), load(scratch, 4 * line + at), load(scratch, 5 * line + at)
                a, b, c, d = _outputs(a, b, c, d, e, f)
                store(y, to + at, a)
                if here > 1:
                    store(y, to + wide + at, b)
                if here > 2:
                    store(y, to + 2 * wide + at, c)
                if here > 3:
                    store(y, to + 3 * wide + at, d)
                place += step


@njit(inline="always", **_OPTIONS)
def _taps(a, b, c):
    """Return G g."""
    even, odd, wide, far = NEAR * a + (AA * NEAR) * c, (A * NEAR) * b, FAR * a + (BB * FAR) * c, (B * FAR) * b
    return NONE * a, even + odd, even - odd, wide + far, wide - far, c


@njit(inline="always", **_OPTIONS)
def _gradients(a, b, c, d, e, f):
    """Return G^T m."""
    even, odd, wide, far = b + c, b - c, d + e, d - e
    first = NONE * a + NEAR * even + FAR * wide
    return first, (A * NEAR) * odd + (B * FAR) * far, (AA * NEAR) * even + (BB * FAR) * wide + f


@njit(**_OPTIONS)
def _spread_taps(kernel, tap, turn, start, stop, out):
    """Transform kernels, whose nine taps are taken from number `tap` on, one forward or one back at a time."""
    step, features, apart = lanes(kernel), out.shape[2], out.shape[1] * out.shape[2]
    scratch = np.empty(18 * step, kernel.dtype)
    for o in range(start, stop):
        place = 0
        while place < features:
            at = min(place, features - step)
            for column in range(3):
                one = (9 * o + tap + turn * column) * features + at
                down = 3 * turn * features
                a, b, c, d, e, f = _taps(load(kernel, one), load(kernel, one + down), load(kernel, one + 2 * down))
                store(scratch, column * step, a)
                store(scratch, (3 + column) * step, b)
                store(scratch, (6 + column) * step, c)
                store(scratch, (9 + column) * step, d)
                store(scratch, (12 + column) * step, e)
                store(scratch, (15 + column) * step, f)
            for u in range(6):
                a, b, c = (
                    load(scratch, 3 * u * step),
                    load(scratch, (3 * u + 1) * step),
                    load(scratch, (3 * u + 2) * step),
                )
                a, b, c, d, e, f = _taps(a, b, c)
                to = 6 * u * apart + o * features + at
                store(out, to, a)
                store(out, to + apart, b)
                store(out, to + 2 * apart, c)
                store(out, to + 3 * apart, d)
                store(out, to + 4 * apart, e)
                store(out, to + 5 * apart, f)
            place += step


@njit(**_OPTIONS)
def _gather_taps(total, start, stop, gradient):
    """Transform sums over all tiles to gradients of kernels."""
    step, features, apart = lanes(total), total.shape[2], total.shape[1] * total.shape[2]
    scratch = np.empty(18 * step, total.dtype)
    for o in range(start, stop):
        place = 0
        while place < features:
            at = min(place, features - step)
            for u in range(6):
                one = 6 * u * apart + o * features + at
                a, b, c = load(total, one), load(total, one + apart), load(total, one + 2 * apart)
                d, e = load(total, one + 3 * apart), load(total, one + 4 * apart)
                a, b, c = _gradients(a, b, c, d, e, load(total, one + 5 * apart))
                store(scratch, u * step, a)
                store(scratch, (6 + u) * step, b)
                store(scratch, (12 + u) * step, c)
            for column in range(3):
                one = 6 * column * step
                a, b, c = load(scratch, one), load(scratch, one + step), load(scratch, one + 2 * step)
                d, e, f = load(scratch, one + 3 * step), load(scratch, one + 4 * step), load(scratch, one + 5 * step)
                a, b, c = _gradients(a, b, c, d, e, f)
                to = (9 * o + column) * features + at
                store(gradient, to, a)
                store(gradient, to + 3 * features, b)
                store(gradient, to + 6 * features, c)
            place += step
