"""Normalisation and sums over rows in few passes over memory, compiled by numba, in slices for threads.

Twins of :mod:`linfb.kernels.reference_norms`, where they are explained. Sums over rows are taken in the precision
of the array over `BLOCK` rows and in double precision over blocks, slice by slice of a fixed number of rows and then in
the order of the slices, whatever the number of threads. Of an ensemble, a slice is some runs with all their rows. What
:mod:`linfb.engine.fusing` calls has no twin and is not exported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels.cpu_activations import _normal

__all__ = [
    "batch_norm", "batch_norm_grad_pull", "feature_sums", "feature_variances", "layer_norm", "layer_norm_pull",
    "norm_grad", "shifted",
]  # fmt: skip

SLICE = 1 << 16
BLOCK = 8
RUNS = 1 << 14
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def shifted(x: Any, offset: Any) -> Any:
    """Return x plus an offset of its features."""
    if offset.ndim == 2:
        return _of_runs(lambda a, b, x, out: np.add(x, offset[a:b, None], out=out), x)
    rows, out = rows_of(x), empty(x.shape, x.dtype)
    into = out.reshape(rows.shape)
    sliced(rows, lambda first, last: np.add(rows[first:last], offset, out=into[first:last]))
    return out


def shifted_gelu(x: Any, offset: Any) -> tuple[Any, Any]:
    """Return what GELU gives of :func:`shifted`, and its derivative; no twin but the two layers."""
    rows, out, slope = rows_of(x), empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    into, slopes = out.reshape(rows.shape), slope.reshape(rows.shape)
    sliced(rows, lambda first, last: _shifted_gelu(rows[first:last], offset, into[first:last], slopes[first:last]))
    return out, slope


def shifted_gelu_pull(delta: Any, slope: Any) -> tuple[Any, Any]:
    """Return the sums over all rows of the error times the derivative, and that error."""
    rows, slopes, out = rows_of(delta), rows_of(slope), empty(delta.shape, delta.dtype)
    into = out.reshape(rows.shape)

    def apply(first: int, last: int) -> np.ndarray:
        return _shifted_gelu_pull(rows[first:last], slopes[first:last], into[first:last])

    return summed(rows, apply).astype(delta.dtype), out


def feature_sums(delta: Any, leading: int = 0) -> Any:
    """Return the sums over all rows."""
    if leading:
        sums = _for_runs(delta)
        _over_runs(lambda a, b, delta: _sums_runs(delta, sums[a:b]), delta)
        return sums
    rows = rows_of(delta)
    return summed(rows, lambda first, last: _sums(rows[first:last])).astype(delta.dtype)


def feature_variances(x: Any, leading: int = 0) -> Any:
    """Return the variance of every feature over all rows."""
    if leading:
        variances = _for_runs(x)
        _over_runs(lambda a, b, x: _variances_runs(x, variances[a:b]), x)
        return variances
    return mean_variance(rows_of(x))[1].astype(x.dtype)


def norm_grad(delta: Any, normalised: Any, leading: int = 0) -> tuple[Any, Any]:
    """Return the gradients of gain and shift."""
    if leading:
        gain, shift, scaled = _for_runs(delta), _for_runs(delta), _runs(normalised)
        _over_runs(lambda a, b, delta: _products_runs(delta, scaled[a:b], gain[a:b], shift[a:b]), delta)
        return gain, shift
    left, right = rows_of(delta), rows_of(normalised)
    products, sums = summed(left, lambda first, last: _products(left[first:last], right[first:last]))
    return products.astype(delta.dtype), sums.astype(delta.dtype)


def batch_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any, Any]:
    """Normalise every feature over all rows, then apply gain and shift."""
    if gain.ndim == 2:
        y, inverse, mean, variance = empty(x.shape, x.dtype), *(_for_runs(x) for _ in range(3))
        others = (gain, shift, _runs(y), inverse, mean, variance)

        def several(a: int, b: int, x: np.ndarray, out: np.ndarray) -> None:
            _batch_norm_runs(x, out, epsilon, *(array[a:b] for array in others))

        normalised = _of_runs(several, x)
        return y, normalised, inverse, mean, variance
    rows = rows_of(x)
    mean, variance = mean_variance(rows)
    inverse = 1 / np.sqrt(variance + epsilon)
    mean, variance, inverse = (moment.astype(x.dtype) for moment in (mean, variance, inverse))
    y, normalised = empty(rows.shape, rows.dtype), empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _normalise(rows[first:last], mean, inverse, gain, shift, y[first:last], normalised[first:last])

    sliced(rows, apply)
    return y.reshape(x.shape), normalised.reshape(x.shape), inverse, mean, variance


def mean_variance(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the moments of every feature over all rows, in double precision."""
    counts, means, squares = (
        np.stack(part) for part in zip(*sliced(rows, lambda first, last: _moments(rows[first:last])), strict=True)
    )
    mean = np.sum(counts * means, axis=0) / len(rows)
    return mean, np.sum(squares + counts * (means - mean) ** 2, axis=0) / len(rows)


def batch_norm_grad_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of gain and shift, and the error at the input of :func:`batch_norm`."""
    if gain.ndim == 2:
        gradients = _for_runs(delta), _for_runs(delta)
        others = (_runs(normalised), gain * inverse_deviation, *gradients)
        error = _of_runs(
            lambda a, b, delta, out: _batch_norm_pull_runs(delta, *(array[a:b] for array in others), out), delta
        )
        return *gradients, error
    rows, scaled = rows_of(delta), rows_of(normalised)
    gradients = norm_grad(rows, scaled)
    slope, mean = (gradient / rows.dtype.type(len(rows)) for gradient in gradients)
    scale, out = gain * inverse_deviation, empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _project_features(rows[first:last], scaled[first:last], mean, slope, scale, out[first:last])

    sliced(rows, apply)
    return *gradients, out.reshape(delta.shape)


def layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise every row over its features, then apply gain and shift."""
    if gain.ndim == 2:
        y, deviations = empty(x.shape, x.dtype), empty((*x.shape[:-1], 1), x.dtype)
        others = (_runs(y), deviations.reshape(len(x), -1), gain, shift)
        normalised = _of_runs(
            lambda a, b, x, out: _layer_norm_runs(x, out, x.dtype.type(epsilon), *(array[a:b] for array in others)), x
        )
        return y, normalised, deviations
    rows = rows_of(x)
    y, normalised, inverse = empty(rows.shape, rows.dtype), empty(rows.shape, rows.dtype), empty(len(rows), rows.dtype)
    added = rows.dtype.type(epsilon)

    def apply(first: int, last: int) -> None:
        _normalise_rows(
            rows[first:last], gain, shift, added, y[first:last], normalised[first:last], inverse[first:last]
        )

    sliced(rows, apply)
    return y.reshape(x.shape), normalised.reshape(x.shape), inverse.reshape(*x.shape[:-1], 1)


def layer_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`layer_norm`."""
    if gain.ndim == 2:
        others = (_runs(normalised), inverse_deviation.reshape(len(delta), -1), gain)
        return _of_runs(
            lambda a, b, delta, out: _layer_norm_pull_runs(delta, *(array[a:b] for array in others), out), delta
        )
    rows, scaled, inverse = rows_of(delta), rows_of(normalised), inverse_deviation.reshape(-1)
    out = empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _project_rows(rows[first:last], scaled[first:last], inverse[first:last], gain, out[first:last])

    sliced(rows, apply)
    return out.reshape(delta.shape)


def layer_norm_grad_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> tuple[Any, Any, Any]:
    """Return what :func:`norm_grad` and :func:`layer_norm_pull` do; no twin but the two."""
    rows, scaled, inverse = rows_of(delta), rows_of(normalised), inverse_deviation.reshape(-1)
    out = empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> np.ndarray:
        _project_rows(rows[first:last], scaled[first:last], inverse[first:last], gain, out[first:last])
        return _products(rows[first:last], scaled[first:last])

    products, sums = summed(rows, apply)
    return products.astype(rows.dtype), sums.astype(rows.dtype), out.reshape(delta.shape)


def rows_of(x: np.ndarray) -> np.ndarray:
    """Return all axes but the last as one."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def _runs(x: np.ndarray) -> np.ndarray:
    """Return an array as (run, row, feature)."""
    return np.ascontiguousarray(x).reshape(x.shape[0], -1, x.shape[-1])


def _for_runs(x: np.ndarray) -> np.ndarray:
    """Return an array for numbers of each run and feature."""
    return np.empty((x.shape[0], x.shape[-1]), x.dtype)


def _over_runs(function: Callable[..., Any], *arrays: np.ndarray) -> None:
    """Call ``function(start, stop, *parts)`` on slices of runs; arrays are as large as the first."""
    parts = [_runs(array) for array in arrays]
    each = max(1, arrays[0].size // len(arrays[0]))
    for_slices(lambda a, b: function(a, b, *(part[a:b] for part in parts)), len(arrays[0]), max(1, RUNS // each))


def _of_runs(function: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    """Return an array like x that ``function(start, stop, x, out)`` writes, slice by slice of runs."""
    out = empty(x.shape, x.dtype)
    _over_runs(function, x, out)
    return out


def sliced(rows: np.ndarray, function: Callable[[int, int], Any]) -> list[Any]:
    """Return what a function of the first and last row gives on every slice."""
    return for_slices(function, len(rows), max(1, SLICE // rows.shape[1]))


def summed(rows: np.ndarray, function: Callable[[int, int], Any]) -> np.ndarray:
    return np.sum(np.stack(sliced(rows, function)), axis=0)


@njit(**_OPTIONS)
def _shifted_gelu(rows, offset, out, slope):
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            value = rows[i, j] + offset[j]
            below, density = _normal(value)
            out[i, j] = value * below
            slope[i, j] = below + value * density


@njit(**_OPTIONS)
def _shifted_gelu_pull(delta, slope, out):
    total = np.zeros(delta.shape[1])
    for i in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            value = delta[i, j] * slope[i, j]
            out[i, j] = value
            total[j] += value
    return total


@njit(**_OPTIONS)
def _sums(rows):
    total, part = np.zeros(rows.shape[1]), np.zeros(rows.shape[1], rows.dtype)
    for start in range(0, rows.shape[0], BLOCK):
        for i in range(start, min(start + BLOCK, rows.shape[0])):
            for j in range(rows.shape[1]):
                part[j] += rows[i, j]
        total += part
        part[:] = 0
    return total


@njit(**_OPTIONS)
def _products(delta, normalised):
    total, part = np.zeros((2, delta.shape[1])), np.zeros((2, delta.shape[1]), delta.dtype)
    products, sums = part[0], part[1]
    for start in range(0, delta.shape[0], BLOCK):
        for i in range(start, min(start + BLOCK, delta.shape[0])):
            for j in range(delta.shape[1]):
                products[j] += delta[i, j] * normalised[i, j]
                sums[j] += delta[i, j]
        total += part
        part[:] = 0
    return total


@njit(**_OPTIONS)
def _moments(rows):
    """Return the number of rows, and the mean and the summed squared deviation of every feature."""
    n = np.float64(rows.shape[0])
    mean, squares, part = _sums(rows) / n, np.zeros(rows.shape[1]), np.zeros(rows.shape[1], rows.dtype)
    near = mean.astype(rows.dtype)
    for start in range(0, rows.shape[0], BLOCK):
        for i in range(start, min(start + BLOCK, rows.shape[0])):
            for j in range(rows.shape[1]):
                deviation = rows[i, j] - near[j]
                part[j] += deviation * deviation
        squares += part
        part[:] = 0
    return np.full(1, n), mean, squares - n * (mean - near) ** 2


@njit(**_OPTIONS)
def _normalise(rows, mean, inverse, gain, shift, y, normalised):
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            value = (rows[i, j] - mean[j]) * inverse[j]
            normalised[i, j] = value
            y[i, j] = gain[j] * value + shift[j]


@njit(**_OPTIONS)
def _project_features(delta, normalised, mean, slope, scale, out):
    for i in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            out[i, j] = (delta[i, j] - mean[j] - normalised[i, j] * slope[j]) * scale[j]


@njit(**_OPTIONS)
def _normalise_rows(rows, gain, shift, epsilon, y, normalised, inverse):
    n, kind = rows.shape[1], rows.dtype.type
    one, share = kind(1), kind(1) / kind(rows.shape[1])
    for i in range(rows.shape[0]):
        total = kind(0)
        for j in range(n):
            total += rows[i, j]
        mean, squares = total * share, kind(0)
        for j in range(n):
            deviation = rows[i, j] - mean
            normalised[i, j] = deviation
            squares += deviation * deviation
        inverse[i] = one / np.sqrt(squares * share + epsilon)
        for j in range(n):
            value = normalised[i, j] * inverse[i]
            normalised[i, j] = value
            y[i, j] = gain[j] * value + shift[j]


@njit(**_OPTIONS)
def _project_rows(delta, normalised, inverse, gain, out):
    n, kind = delta.shape[1], delta.dtype.type
    for i in range(delta.shape[0]):
        mean, slope = kind(0), kind(0)
        for j in range(n):
            error = delta[i, j] * gain[j]
            mean += error
            slope += error * normalised[i, j]
        mean, slope = mean / kind(n), slope / kind(n)
        for j in range(n):
            out[i, j] = (delta[i, j] * gain[j] - mean - normalised[i, j] * slope) * inverse[i]


@njit(**_OPTIONS)
def _sums_runs(delta, sums):
    for r in range(delta.shape[0]):
        sums[r] = _sums(delta[r])


@njit(**_OPTIONS)
def _variances_runs(x, variances):
    for r in range(x.shape[0]):
        variances[r] = _moments(x[r])[2] / x.shape[1]


@njit(**_OPTIONS)
def _products_runs(delta, normalised, products, sums):
    for r in range(delta.shape[0]):
        products[r], sums[r] = _products(delta[r], normalised[r])


@njit(**_OPTIONS)
def _batch_norm_runs(x, normalised, epsilon, gain, shift, y, inverse, mean, variance):
    for r in range(x.shape[0]):
        _, middle, squares = _moments(x[r])
        for j in range(x.shape[2]):
            spread = squares[j] / x.shape[1]
            mean[r, j], variance[r, j], inverse[r, j] = middle[j], spread, 1 / np.sqrt(spread + epsilon)
        _normalise(x[r], mean[r], inverse[r], gain[r], shift[r], y[r], normalised[r])


@njit(**_OPTIONS)
def _batch_norm_pull_runs(delta, normalised, scale, products, sums, out):
    share = delta.dtype.type(1) / delta.dtype.type(delta.shape[1])
    slope, mean = np.empty(delta.shape[2], delta.dtype), np.empty(delta.shape[2], delta.dtype)
    for r in range(delta.shape[0]):
        products[r], sums[r] = _products(delta[r], normalised[r])
        for j in range(delta.shape[2]):
            slope[j], mean[j] = products[r, j] * share, sums[r, j] * share
        _project_features(delta[r], normalised[r], mean, slope, scale[r], out[r])


@njit(**_OPTIONS)
def _layer_norm_runs(x, normalised, epsilon, y, inverse, gain, shift):
    for r in range(x.shape[0]):
        _normalise_rows(x[r], gain[r], shift[r], epsilon, y[r], normalised[r], inverse[r])


@njit(**_OPTIONS)
def _layer_norm_pull_runs(delta, normalised, inverse, gain, out):
    for r in range(delta.shape[0]):
        _project_rows(delta[r], normalised[r], inverse[r], gain[r], out[r])
