"""Normalisation and sums over rows, written plainly in the array-API standard. The oracles.

Every function has a twin of the same name and signature in :mod:`linfb.kernels.cpu_norms`. Features are on the last
axis; all axes before it are rows.
"""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace

__all__ = [
    "batch_norm", "batch_norm_pull", "feature_sums", "feature_variances", "layer_norm", "layer_norm_pull", "norm_grad",
    "shifted",
]  # fmt: skip


def shifted(x: Any, offset: Any) -> Any:
    """Return x (..., features) plus an offset (features,)."""
    return x + offset


def feature_sums(delta: Any) -> Any:
    """Return the sums over all rows, shape (features,)."""
    return namespace(delta).sum(delta, axis=_rows(delta))


def feature_variances(x: Any) -> Any:
    """Return the variance of every feature over all rows."""
    return namespace(x).var(x, axis=tuple(range(x.ndim - 1)))


def norm_grad(delta: Any, normalised: Any) -> tuple[Any, Any]:
    """Return the gradients of gain and shift, shape (features,) each.

    Parameters
    ----------
    delta, normalised : array, shape (..., features)
        Error at the output, and what the gain multiplies.
    """
    return feature_sums(delta * normalised), feature_sums(delta)


def batch_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any, Any]:
    """Normalise every feature over all rows, then apply gain and shift.

    Parameters
    ----------
    x : array, shape (..., features)
    gain, shift : array, shape (features,)
    epsilon : float
        Added to the variance.

    Returns
    -------
    y, normalised : array, shape (..., features)
    inverse_deviation, mean, variance : array, shape (features,)
        The variance divides by the number of rows.
    """
    xp, rows = namespace(x), _rows(x)
    mean = xp.mean(x, axis=rows)
    centred = x - mean
    variance = xp.mean(centred * centred, axis=rows)
    inverse = 1 / xp.sqrt(variance + epsilon)
    normalised = centred * inverse
    return gain * normalised + shift, normalised, inverse, mean, variance


def batch_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`batch_norm`, through mean and variance as well."""
    products, sums = norm_grad(delta, normalised)
    rows = math.prod(delta.shape[:-1])
    return (delta - sums / rows - normalised * (products / rows)) * (gain * inverse_deviation)


def layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise every row over its features, then apply gain and shift.

    Parameters
    ----------
    x : array, shape (..., features)
    gain, shift : array, shape (features,)
    epsilon : float
        Added to the variance.

    Returns
    -------
    y, normalised : array, shape (..., features)
    inverse_deviation : array, shape (..., 1)
    """
    xp = namespace(x)
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    inverse = 1 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    normalised = centred * inverse
    return gain * normalised + shift, normalised, inverse


def layer_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`layer_norm`, through mean and variance as well."""
    xp, error = namespace(delta), delta * gain
    mean = xp.mean(error, axis=-1, keepdims=True)
    slope = xp.mean(error * normalised, axis=-1, keepdims=True)
    return (error - mean - normalised * slope) * inverse_deviation


def _rows(x: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim - 1))
