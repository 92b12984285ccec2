"""Normalisation and sums over rows, written plainly in the array-API standard. The oracles.

Every function has a twin of the same name and signature in :mod:`linfb.kernels.cpu_norms`. Features are on the last
axis; all axes before it are rows. Of an ensemble all arrays have a leading run axis: where there are weights (a gain,
an offset) of shape (run, features), each run has rows, moments and sums of its own; where there are none, `leading`
says how many axes come before the rows.
"""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace

__all__ = [
    "batch_norm", "batch_norm_grad_pull", "feature_sums", "feature_variances", "layer_norm", "layer_norm_pull",
    "norm_grad", "shifted",
]  # fmt: skip


def shifted(x: Any, offset: Any) -> Any:
    """Return x (..., features) plus an offset (features,); x (run, ..., features) plus one (run, features)."""
    return x + _spread(offset, x)


def feature_sums(delta: Any, leading: int = 0) -> Any:
    """Return the sums over all rows, shape (features,), after the shape of `leading` axes that are kept."""
    return namespace(delta).sum(delta, axis=_rows(delta, leading))


def feature_variances(x: Any, leading: int = 0) -> Any:
    """Return the variance of every feature over all rows, after the shape of `leading` axes that are kept."""
    return namespace(x).var(x, axis=_rows(x, leading))


def norm_grad(delta: Any, normalised: Any, leading: int = 0) -> tuple[Any, Any]:
    """Return the gradients of gain and shift, shape (features,) each.

    Parameters
    ----------
    delta, normalised : array, shape (..., features)
        Error at the output, and what the gain multiplies.
    leading : int
        Number of axes before the rows, which the gradients have too.
    """
    return feature_sums(delta * normalised, leading), feature_sums(delta, leading)


def batch_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any, Any]:
    """Normalise every feature over all rows, then apply gain and shift.

    Parameters
    ----------
    x : array, shape (..., features)
    gain, shift : array, shape (features,) or (run, features)
    epsilon : float
        Added to the variance.

    Returns
    -------
    y, normalised : array, shape (..., features)
    inverse_deviation, mean, variance : array of the shape of the gain
        The variance divides by the number of rows.
    """
    xp, rows = namespace(x), _rows(x, gain.ndim - 1)
    mean = xp.mean(x, axis=rows)
    centred = x - _spread(mean, x)
    variance = xp.mean(centred * centred, axis=rows)
    inverse = 1 / xp.sqrt(variance + epsilon)
    normalised = centred * _spread(inverse, x)
    return _spread(gain, x) * normalised + _spread(shift, x), normalised, inverse, mean, variance


def batch_norm_grad_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> tuple[Any, Any, Any]:
    """Return :func:`norm_grad`, and the error at the input of :func:`batch_norm`, through mean and variance as well."""
    leading = gain.ndim - 1
    gradients, rows = norm_grad(delta, normalised, leading), math.prod(delta.shape[leading:-1])
    slope, mean = (_spread(gradient / rows, delta) for gradient in gradients)
    return *gradients, (delta - mean - normalised * slope) * _spread(gain * inverse_deviation, delta)


def layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise every row over its features, then apply gain and shift.

    Parameters
    ----------
    x : array, shape (..., features)
    gain, shift : array, shape (features,) or (run, features)
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
    return _spread(gain, x) * normalised + _spread(shift, x), normalised, inverse


def layer_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`layer_norm`, through mean and variance as well."""
    xp, error = namespace(delta), delta * _spread(gain, delta)
    mean = xp.mean(error, axis=-1, keepdims=True)
    slope = xp.mean(error * normalised, axis=-1, keepdims=True)
    return (error - mean - normalised * slope) * inverse_deviation


def _rows(x: Any, leading: int) -> tuple[int, ...]:
    return tuple(range(leading, x.ndim - 1))


def _spread(weights: Any, x: Any) -> Any:
    """Return weights (features,) as they are; those of runs, (run, features), so that each acts on its own rows."""
    if weights.ndim == 1:
        return weights
    return namespace(weights).reshape(weights, (weights.shape[0], *(1,) * (x.ndim - 2), weights.shape[1]))
