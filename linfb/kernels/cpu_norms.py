"""Normalisation and sums over rows in few passes over memory, compiled by numba, in slices for threads.

Twins of :mod:`linfb.kernels.reference_norms`, where they are explained. Sums over rows are taken in the precision
of the array over `BLOCK` rows and in double precision over blocks, slice by slice of a fixed number of rows and then in
the order of the slices, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty

__all__ = [
    "batch_norm", "batch_norm_pull", "feature_sums", "feature_variances", "layer_norm", "layer_norm_pull", "norm_grad",
    "shifted",
]  # fmt: skip

SLICE = 1 << 16
BLOCK = 8
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def shifted(x: Any, offset: Any) -> Any:
    """Return x plus an offset of its features."""
    rows, out = rows_of(x), empty(x.shape, x.dtype)
    into = out.reshape(rows.shape)
    sliced(rows, lambda first, last: np.add(rows[first:last], offset, out=into[first:last]))
    return out


def feature_sums(delta: Any) -> Any:
    """Return the sums over all rows."""
    rows = rows_of(delta)
    return summed(rows, lambda first, last: _sums(rows[first:last])).astype(delta.dtype)


def feature_variances(x: Any) -> Any:
    """Return the variance of every feature over all rows."""
    return mean_variance(rows_of(x))[1].astype(x.dtype)


def norm_grad(delta: Any, normalised: Any) -> tuple[Any, Any]:
    """Return the gradients of gain and shift."""
    left, right = rows_of(delta), rows_of(normalised)
    products, sums = summed(left, lambda first, last: _products(left[first:last], right[first:last]))
    return products.astype(delta.dtype), sums.astype(delta.dtype)


def batch_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any, Any]:
    """Normalise every feature over all rows, then apply gain and shift."""
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


def batch_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`batch_norm`."""
    rows, scaled = rows_of(delta), rows_of(normalised)
    slope, mean = (gradient / rows.dtype.type(len(rows)) for gradient in norm_grad(rows, scaled))
    scale, out = gain * inverse_deviation, empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _project_features(rows[first:last], scaled[first:last], mean, slope, scale, out[first:last])

    sliced(rows, apply)
    return out.reshape(delta.shape)


def layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise every row over its features, then apply gain and shift."""
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
    rows, scaled, inverse = rows_of(delta), rows_of(normalised), inverse_deviation.reshape(-1)
    out = empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _project_rows(rows[first:last], scaled[first:last], inverse[first:last], gain, out[first:last])

    sliced(rows, apply)
    return out.reshape(delta.shape)


def rows_of(x: np.ndarray) -> np.ndarray:
    """Return all axes but the last as one."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def sliced(rows: np.ndarray, function: Callable[[int, int], Any]) -> list[Any]:
    """Return what a function of the first and last row gives on every slice."""
    return for_slices(function, len(rows), max(1, SLICE // rows.shape[1]))


def summed(rows: np.ndarray, function: Callable[[int, int], Any]) -> np.ndarray:
    return np.sum(np.stack(sliced(rows, function)), axis=0)


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
