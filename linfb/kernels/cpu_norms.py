"""Normalisation and sums over rows in few passes over memory, compiled by numba, in slices for threads.

Twins of :mod:`linfb.kernels.reference_norms`, where they are explained. Sums over rows are taken in double precision,
slice by slice of a fixed number of rows and then in the order of the slices, whatever the number of threads. What
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
    "batch_norm", "batch_norm_pull", "feature_sums", "feature_variances", "layer_norm", "layer_norm_pull", "norm_grad",
    "shifted",
]  # fmt: skip

SLICE = 1 << 16
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def shifted(x: Any, offset: Any) -> Any:
    """Return x plus an offset of its features."""
    rows, out = _rows(x), empty(x.shape, x.dtype)
    into = out.reshape(rows.shape)
    _sliced(rows, lambda first, last: np.add(rows[first:last], offset, out=into[first:last]))
    return out


def shifted_relu(x: Any, offset: Any) -> Any:
    """Return what :func:`shifted` gives, rectified; no twin but the two layers."""
    rows, out = _rows(x), empty(x.shape, x.dtype)
    into = out.reshape(rows.shape)
    _sliced(rows, lambda first, last: _shifted_relu(rows[first:last], offset, into[first:last]))
    return out


def shifted_relu_pull(delta: Any, y: Any) -> tuple[Any, Any]:
    """Return the sums over all rows of the error where the output y is positive, and that error."""
    rows, outputs, out = _rows(delta), _rows(y), empty(delta.shape, delta.dtype)
    into = out.reshape(rows.shape)

    def apply(first: int, last: int) -> np.ndarray:
        return _shifted_relu_pull(rows[first:last], outputs[first:last], into[first:last])

    return _summed(rows, apply).astype(delta.dtype), out


def shifted_gelu(x: Any, offset: Any) -> tuple[Any, Any]:
    """Return what GELU gives of :func:`shifted`, and its derivative; no twin but the two layers."""
    rows, out, slope = _rows(x), empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    into, slopes = out.reshape(rows.shape), slope.reshape(rows.shape)
    _sliced(rows, lambda first, last: _shifted_gelu(rows[first:last], offset, into[first:last], slopes[first:last]))
    return out, slope


def shifted_gelu_pull(delta: Any, slope: Any) -> tuple[Any, Any]:
    """Return the sums over all rows of the error times the derivative, and that error."""
    rows, slopes, out = _rows(delta), _rows(slope), empty(delta.shape, delta.dtype)
    into = out.reshape(rows.shape)

    def apply(first: int, last: int) -> np.ndarray:
        return _shifted_gelu_pull(rows[first:last], slopes[first:last], into[first:last])

    return _summed(rows, apply).astype(delta.dtype), out


def feature_sums(delta: Any) -> Any:
    """Return the sums over all rows."""
    rows = _rows(delta)
    return _summed(rows, lambda first, last: _sums(rows[first:last])).astype(delta.dtype)


def feature_variances(x: Any) -> Any:
    """Return the variance of every feature over all rows."""
    return _mean_variance(_rows(x))[1].astype(x.dtype)


def norm_grad(delta: Any, normalised: Any) -> tuple[Any, Any]:
    """Return the gradients of gain and shift."""
    left, right = _rows(delta), _rows(normalised)
    products, sums = _summed(left, lambda first, last: _products(left[first:last], right[first:last]))
    return products.astype(delta.dtype), sums.astype(delta.dtype)


def batch_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any, Any]:
    """Normalise every feature over all rows, then apply gain and shift."""
    rows = _rows(x)
    mean, variance = _mean_variance(rows)
    inverse = 1 / np.sqrt(variance + epsilon)
    mean, variance, inverse = (moment.astype(x.dtype) for moment in (mean, variance, inverse))
    y, normalised = empty(rows.shape, rows.dtype), empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _normalise(rows[first:last], mean, inverse, gain, shift, y[first:last], normalised[first:last])

    _sliced(rows, apply)
    return y.reshape(x.shape), normalised.reshape(x.shape), inverse, mean, variance


def _mean_variance(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the moments of every feature over all rows, in double precision."""
    counts, means, squares = (
        np.stack(part) for part in zip(*_sliced(rows, lambda first, last: _moments(rows[first:last])), strict=True)
    )
    mean = np.sum(counts * means, axis=0) / len(rows)
    return mean, np.sum(squares + counts * (means - mean) ** 2, axis=0) / len(rows)


def batch_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`batch_norm`."""
    rows, scaled = _rows(delta), _rows(normalised)
    slope, mean = (gradient / rows.dtype.type(len(rows)) for gradient in norm_grad(rows, scaled))
    scale, out = gain * inverse_deviation, empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _project_features(rows[first:last], scaled[first:last], mean, slope, scale, out[first:last])

    _sliced(rows, apply)
    return out.reshape(delta.shape)


def layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise every row over its features, then apply gain and shift."""
    rows = _rows(x)
    y, normalised, inverse = empty(rows.shape, rows.dtype), empty(rows.shape, rows.dtype), empty(len(rows), rows.dtype)
    added = rows.dtype.type(epsilon)

    def apply(first: int, last: int) -> None:
        _normalise_rows(
            rows[first:last], gain, shift, added, y[first:last], normalised[first:last], inverse[first:last]
        )

    _sliced(rows, apply)
    return y.reshape(x.shape), normalised.reshape(x.shape), inverse.reshape(*x.shape[:-1], 1)


def layer_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`layer_norm`."""
    rows, scaled, inverse = _rows(delta), _rows(normalised), inverse_deviation.reshape(-1)
    out = empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> None:
        _project_rows(rows[first:last], scaled[first:last], inverse[first:last], gain, out[first:last])

    _sliced(rows, apply)
    return out.reshape(delta.shape)


def layer_norm_grad_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> tuple[Any, Any, Any]:
    """Return what :func:`norm_grad` and :func:`layer_norm_pull` do; no twin but the two."""
    rows, scaled, inverse = _rows(delta), _rows(normalised), inverse_deviation.reshape(-1)
    out = empty(rows.shape, rows.dtype)

    def apply(first: int, last: int) -> np.ndarray:
        _project_rows(rows[first:last], scaled[first:last], inverse[first:last], gain, out[first:last])
        return _products(rows[first:last], scaled[first:last])

    products, sums = _summed(rows, apply)
    return products.astype(rows.dtype), sums.astype(rows.dtype), out.reshape(delta.shape)


def _rows(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def _sliced(rows: np.ndarray, function: Callable[[int, int], Any]) -> list[Any]:
    return for_slices(function, len(rows), max(1, SLICE // rows.shape[1]))


def _summed(rows: np.ndarray, function: Callable[[int, int], Any]) -> np.ndarray:
    return np.sum(np.stack(_sliced(rows, function)), axis=0)


@njit(**_OPTIONS)
def _shifted_relu(rows, offset, out):
    zero = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            value = rows[i, j] + offset[j]
            out[i, j] = zero if value <= 0 else value


@njit(**_OPTIONS)
def _shifted_relu_pull(delta, y, out):
    total, zero = np.zeros(delta.shape[1]), delta.dtype.type(0)
    for i in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            value = delta[i, j] if y[i, j] > 0 else zero
            out[i, j] = value
            total[j] += value
    return total


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
    total = np.zeros(rows.shape[1])
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            total[j] += rows[i, j]
    return total


@njit(**_OPTIONS)
def _products(delta, normalised):
    total = np.zeros((2, delta.shape[1]))
    products, sums = total[0], total[1]
    for i in range(delta.shape[0]):
        for j in range(delta.shape[1]):
            d = np.float64(delta[i, j])
            products[j] += d * normalised[i, j]
            sums[j] += d
    return total


@njit(**_OPTIONS)
def _moments(rows):
    """Return the number of rows, and the mean and the summed squared deviation of every feature."""
    count = np.full(1, np.float64(rows.shape[0]))
    mean, squares = _sums(rows) / rows.shape[0], np.zeros(rows.shape[1])
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            deviation = rows[i, j] - mean[j]
            squares[j] += deviation * deviation
    return count, mean, squares


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
