r"""An offset or batch normalisation, a rectifier and pooling over 2x2 pixels in one pass over memory each.

The layers one by one are the oracle (``tests/test_fusing.py``). All start from

.. math:: y = \max(0, (x - \mu)\, s + b)

with one number of each kind per feature (mean 0 and scale 1 of a plain offset change no bits); on the way back a
normalisation recomputes what it needs from its input, so that no second array has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels.cpu_norms import (
    BLOCK,
    _for_runs,
    _moments,
    _of_runs,
    _runs,
    mean_variance,
    rows_of,
    sliced,
    summed,
)  # fmt: skip

__all__ = [
    "average", "average_pull", "moments", "rectify", "rectify_norm", "rectify_norm_pull", "rectify_pool",
    "rectify_pool_norm_pull", "rectify_pool_pull", "rectify_pull",
]  # fmt: skip

NONE = 255
SLICE = 1 << 16
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}


def moments(x: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Return the mean and the variance of every feature over all rows, and one over the root of it and `epsilon`."""
    mean, variance = mean_variance(rows_of(x))
    return mean.astype(x.dtype), variance.astype(x.dtype), (1 / np.sqrt(variance + epsilon)).astype(x.dtype)


def rectify(x: Any, mean: Any, scale: Any, shift: Any) -> Any:
    """Return the rectified output."""
    if shift.ndim == 2:
        others = mean, scale, shift
        return _of_runs(lambda a, b, x, y: _rectify_runs(x, *(array[a:b] for array in others), y), x)
    rows, y = rows_of(x), empty(x.shape, x.dtype)
    into = y.reshape(rows.shape)
    sliced(rows, lambda first, last: _rectify(rows[first:last], mean, scale, shift, into[first:last]))
    return y


def rectify_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any]:
    """Return the rectified output of a normalisation, and :func:`moments`."""
    if gain.ndim == 1:
        mean, variance, inverse = moments(x, epsilon)
        return rectify(x, mean, gain * inverse, shift), mean, variance, inverse
    others = gain, shift, *(_for_runs(x) for _ in range(3))
    y = _of_runs(lambda a, b, x, y: _rectify_norm_runs(x, epsilon, *(array[a:b] for array in others), y), x)
    return y, *others[2:]


def rectify_pull(delta: Any, y: Any, leading: int = 0) -> tuple[Any, Any]:
    """Return the gradient of the offset, and the error at the input, which is that where the output y is positive."""
    if leading:
        sums, outputs = _for_runs(delta), _runs(y)
        error = _of_runs(lambda a, b, delta, out: _rectify_pull_runs(delta, outputs[a:b], sums[a:b], out), delta)
        return sums, error
    errors, outputs, out = rows_of(delta), rows_of(y), empty(delta.shape, delta.dtype)
    into = out.reshape(errors.shape)

    def apply(first: int, last: int) -> np.ndarray:
        return _rectify_pull(errors[first:last], outputs[first:last], into[first:last])

    return summed(errors, apply).astype(delta.dtype), out


def rectify_norm_pull(delta: Any, x: Any, mean: Any, inverse: Any, gain: Any, shift: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of gain and shift, and the error at the input of a normalisation."""
    if gain.ndim == 2:
        gradients = _for_runs(delta), _for_runs(delta)
        others = _runs(x), mean, inverse, gain, shift, *gradients
        error = _of_runs(
            lambda a, b, delta, out: _rectify_norm_pull_runs(delta, *(array[a:b] for array in others), out), delta
        )
        return *gradients, error
    errors, rows, out = rows_of(delta), rows_of(x), empty(x.shape, x.dtype)
    into, scale = out.reshape(rows.shape), gain * inverse

    def sums(first: int, last: int) -> np.ndarray:
        return _norm_sums(errors[first:last], rows[first:last], mean, scale, shift)

    gradients, level, slope = _projection(summed(rows, sums), inverse, scale, len(rows))

    def apply(first: int, last: int) -> None:
        _norm_pull(errors[first:last], rows[first:last], mean, scale, shift, level, slope, into[first:last])

    sliced(rows, apply)
    return *gradients, out


def rectify_pool(x: Any, mean: Any, scale: Any, shift: Any) -> tuple[Any, Any]:
    """Return the largest rectified output of each 2x2 window, and its place there (`NONE` if it is not positive)."""
    x = np.ascontiguousarray(x)
    shape = (len(x), x.shape[1] // 2, x.shape[2] // 2, x.shape[3])
    y, choice = empty(shape, x.dtype), empty(shape, np.uint8)
    _images(x, lambda part: _rectify_pool(x[part], mean, scale, shift, y[part], choice[part]))
    return y, choice


def rectify_pool_pull(delta: Any, choice: Any, shape: tuple[int, int]) -> tuple[Any, Any]:
    """Return the gradient of the offset, and the error at the input."""
    delta = np.ascontiguousarray(delta)
    out = empty((len(delta), *shape, delta.shape[3]), delta.dtype)
    total = _summed(out, lambda part: _pool_pull(delta[part], choice[part], out[part]))
    return total.astype(delta.dtype), out


def rectify_pool_norm_pull(delta: Any, choice: Any, x: Any, mean: Any, inverse: Any, gain: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of gain and shift, and the error at the input of a normalisation."""
    delta, x = np.ascontiguousarray(delta), np.ascontiguousarray(x)
    out, scale = empty(x.shape, x.dtype), gain * inverse
    total = _summed(x, lambda part: _pool_norm_sums(delta[part], choice[part], x[part], mean))
    gradients, level, slope = _projection(total, inverse, scale, x.size // x.shape[3])

    def apply(part: slice) -> None:
        _pool_norm_pull(delta[part], choice[part], x[part], mean, scale, level, slope, out[part])

    _images(x, apply)
    return *gradients, out


def average(x: Any) -> Any:
    """Return the averages of every feature over the places of a sample, shape (batch, features)."""
    places = np.ascontiguousarray(x).reshape(len(x), -1, x.shape[-1])
    y = empty((len(x), x.shape[-1]), x.dtype)
    _images(places, lambda part: _average(places[part], y[part]))
    return y


def average_pull(delta: Any, shape: tuple[int, ...]) -> Any:
    """Return the error at the input, of a given shape: an equal part for each place."""
    out = empty(shape, delta.dtype)
    places = out.reshape(shape[0], -1, shape[-1])
    share = (delta / delta.dtype.type(places.shape[1]))[:, None]
    _images(places, lambda part: np.copyto(places[part], share[part]))
    return out


def _images(x: np.ndarray, function: Callable[[slice], Any]) -> list[Any]:
    size = max(1, SLICE // max(1, x[0].size)) if len(x) else 1
    return for_slices(lambda first, last: function(slice(first, last)), len(x), size)


def _summed(x: np.ndarray, function: Callable[[slice], np.ndarray]) -> np.ndarray:
    return np.sum(np.stack(_images(x, function)), axis=0)


def _projection(sums: np.ndarray, inverse: Any, scale: Any, n: int) -> tuple[tuple[Any, Any], Any, Any]:
    """Return the gradients of gain and shift, and what the error at the input loses: level + slope (x - mean)."""
    dtype, (products, total) = scale.dtype, sums
    products = products * inverse
    level, slope = -scale * total / n, -scale * inverse * products / n
    return (products.astype(dtype), total.astype(dtype)), level.astype(dtype), slope.astype(dtype)


@njit(**_OPTIONS)
def _rectify(rows, mean, scale, shift, y):
    zero = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            value = (rows[i, j] - mean[j]) * scale[j] + shift[j]
            y[i, j] = zero if value <= 0 else value


@njit(**_OPTIONS)
def _rectify_pull(delta, y, out):
    total, part, zero = np.zeros(delta.shape[1]), np.zeros(delta.shape[1], delta.dtype), delta.dtype.type(0)
    for start in range(0, delta.shape[0], BLOCK):
        for i in range(start, min(start + BLOCK, delta.shape[0])):
            for j in range(delta.shape[1]):
                value = delta[i, j] if y[i, j] > 0 else zero
                out[i, j] = value
                part[j] += value
        total += part
        part[:] = 0
    return total


@njit(**_OPTIONS)
def _norm_sums(delta, rows, mean, scale, shift):
    total, part = np.zeros((2, rows.shape[1])), np.zeros((2, rows.shape[1]), rows.dtype)
    products, sums, zero = part[0], part[1], rows.dtype.type(0)
    for start in range(0, rows.shape[0], BLOCK):
        for i in range(start, min(start + BLOCK, rows.shape[0])):
            for j in range(rows.shape[1]):
                deviation = rows[i, j] - mean[j]
                error = delta[i, j] if deviation * scale[j] + shift[j] > 0 else zero
                products[j] += error * deviation
                sums[j] += error
        total += part
        part[:] = 0
    return total


@njit(**_OPTIONS)
def _norm_pull(delta, rows, mean, scale, shift, level, slope, out):
    zero = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            deviation = rows[i, j] - mean[j]
            error = delta[i, j] if deviation * scale[j] + shift[j] > 0 else zero
            out[i, j] = error * scale[j] + (deviation * slope[j] + level[j])


@njit(**_OPTIONS)
def _rectify_pool(x, mean, scale, shift, y, choice):
    images, rows, columns, features = y.shape
    zero, none = x.dtype.type(0), np.uint8(NONE)
    for place in range(images * rows * columns):
        line, j = divmod(place, columns)
        image, i = divmod(line, rows)
        above, below = x[image, 2 * i], x[image, 2 * i + 1]
        a, b, c, d = above[2 * j], above[2 * j + 1], below[2 * j], below[2 * j + 1]
        largest, which = y[image, i, j], choice[image, i, j]
        for f in range(features):
            value = (a[f] - mean[f]) * scale[f] + shift[f]
            other = (b[f] - mean[f]) * scale[f] + shift[f]
            better = other > value or other != other
            value, winner = (other, np.uint8(1)) if better else (value, np.uint8(0))
            other = (c[f] - mean[f]) * scale[f] + shift[f]
            better = other > value or other != other
            value, winner = (other, np.uint8(2)) if better else (value, winner)
            other = (d[f] - mean[f]) * scale[f] + shift[f]
            better = other > value or other != other
            value, winner = (other, np.uint8(3)) if better else (value, winner)
            largest[f] = zero if value <= 0 else value
            which[f] = winner if value > 0 else none


@njit(**_OPTIONS)
def _pool_pull(delta, choice, out):
    images, rows, columns, features = delta.shape
    total, part, zero = np.zeros(features), np.zeros(features, delta.dtype), delta.dtype.type(0)
    out[:, 2 * rows :] = 0
    out[:, :, 2 * columns :] = 0
    for place in range(images * rows * columns):
        line, j = divmod(place, columns)
        image, i = divmod(line, rows)
        error, which = delta[image, i, j], choice[image, i, j]
        for tap in range(4):
            pixel = out[image, 2 * i + tap // 2, 2 * j + tap % 2]
            for f in range(features):
                pixel[f] = error[f] if which[f] == np.uint8(tap) else zero
        for f in range(features):
            part[f] += error[f] if which[f] != np.uint8(NONE) else zero
        if place % BLOCK == BLOCK - 1:
            total += part
            part[:] = 0
    return total + part


@njit(**_OPTIONS)
def _pool_norm_sums(delta, choice, x, mean):
    images, rows, columns, features = delta.shape
    total, part = np.zeros((2, features)), np.zeros((2, features), delta.dtype)
    products, sums, zero = part[0], part[1], delta.dtype.type(0)
    for place in range(images * rows * columns):
        line, j = divmod(place, columns)
        image, i = divmod(line, rows)
        error, which = delta[image, i, j], choice[image, i, j]
        for tap in range(4):
            pixel = x[image, 2 * i + tap // 2, 2 * j + tap % 2]
            for f in range(features):
                value = error[f] if which[f] == np.uint8(tap) else zero
                products[f] += value * (pixel[f] - mean[f])
                sums[f] += value
        if place % BLOCK == BLOCK - 1:
            total += part
            part[:] = 0
    return total + part


@njit(**_OPTIONS)
def _pool_norm_pull(delta, choice, x, mean, scale, level, slope, out):
    images, height, width, features = x.shape
    rows, columns, zero = delta.shape[1], delta.shape[2], delta.dtype.type(0)
    for place in range(images * height * width):
        line, j = divmod(place, width)
        image, i = divmod(line, height)
        pixel, to = x[image, i, j], out[image, i, j]
        if i < 2 * rows and j < 2 * columns:
            error, which = delta[image, i // 2, j // 2], choice[image, i // 2, j // 2]
            tap = np.uint8(2 * (i % 2) + j % 2)
            for f in range(features):
                value = error[f] if which[f] == tap else zero
                to[f] = value * scale[f] + ((pixel[f] - mean[f]) * slope[f] + level[f])
        else:
            for f in range(features):
                to[f] = (pixel[f] - mean[f]) * slope[f] + level[f]


@njit(**_OPTIONS)
def _average(x, y):
    samples, places, features = x.shape
    for sample in range(samples):
        total, part = np.zeros(features), np.zeros(features, x.dtype)
        for place in range(places):
            for f in range(features):
                part[f] += x[sample, place, f]
            if place % BLOCK == BLOCK - 1:
                total += part
                part[:] = 0
        for f in range(features):
            y[sample, f] = (total[f] + part[f]) / places


@njit(**_OPTIONS)
def _rectify_runs(x, mean, scale, shift, y):
    for r in range(x.shape[0]):
        _rectify(x[r], mean[r], scale[r], shift[r], y[r])


@njit(**_OPTIONS)
def _rectify_norm_runs(x, epsilon, gain, shift, mean, variance, inverse, y):
    for r in range(x.shape[0]):
        _, middle, squares = _moments(x[r])
        for j in range(x.shape[2]):
            spread = squares[j] / x.shape[1]
            mean[r, j], variance[r, j], inverse[r, j] = middle[j], spread, 1 / np.sqrt(spread + epsilon)
        _rectify(x[r], mean[r], gain[r] * inverse[r], shift[r], y[r])


@njit(**_OPTIONS)
def _rectify_pull_runs(delta, y, sums, out):
    for r in range(delta.shape[0]):
        sums[r] = _rectify_pull(delta[r], y[r], out[r])


@njit(**_OPTIONS)
def _rectify_norm_pull_runs(delta, x, mean, inverse, gain, shift, products, sums, out):
    share, features = delta.dtype.type(1) / delta.dtype.type(delta.shape[1]), delta.shape[2]
    level, slope = np.empty(features, delta.dtype), np.empty(features, delta.dtype)
    for r in range(delta.shape[0]):
        scale = gain[r] * inverse[r]
        total = _norm_sums(delta[r], x[r], mean[r], scale, shift[r])
        for j in range(features):
            products[r, j], sums[r, j] = total[0, j] * inverse[r, j], total[1, j]
            level[j] = -scale[j] * sums[r, j] * share
            slope[j] = -scale[j] * inverse[r, j] * products[r, j] * share
        _norm_pull(delta[r], x[r], mean[r], scale, shift[r], level, slope, out[r])
