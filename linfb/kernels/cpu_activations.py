"""Activation functions in one pass over memory each, compiled by numba, in slices for threads.

Twins of :mod:`linfb.kernels.reference_activations`, where they are explained. In single precision the exponential and
the normal tail are polynomials of our own, minimax fits of the relative error (below 4e-9 and 4e-8), which the compiler
can vectorise; in double precision they come from the C library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from linfb._threads import for_slices
from linfb._workspace import empty

__all__ = ["erf", "gelu", "product", "relu", "relu_pull"]

SLICE = 1 << 16
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}
_FLOAT = np.float32


def product(left: Any, right: Any) -> Any:
    """Return the products of the entries of two arrays of one shape."""
    out = empty(left.shape, left.dtype)
    _apply(np.multiply, left, right, out)
    return out


def relu(x: Any) -> tuple[Any, Any]:
    """Return the rectified entries, and where they are positive."""
    y, positive = empty(x.shape, x.dtype), empty(x.shape, np.bool_)
    _apply(_relu, x, y, positive)
    return y, positive


def relu_pull(delta: Any, positive: Any) -> Any:
    """Return the error where the output was positive, 0 elsewhere."""
    out = empty(delta.shape, delta.dtype)
    _apply(_relu_pull, delta, positive, out)
    return out


def erf(x: Any) -> Any:
    """Return the error function of every entry."""
    y = empty(x.shape, x.dtype)
    _apply(import_module("scipy.special").erf, x, y)
    return y


def gelu(x: Any) -> tuple[Any, Any]:
    """Return x times the normal law's distribution function, and the derivative of that."""
    y, slope = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
    _apply(_gelu, x, y, slope)
    return y, slope


def _apply(function: Callable[..., Any], *arrays: np.ndarray) -> None:
    """Call a function of flat arrays, which writes to some of them, slice by slice."""
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    for_slices(lambda first, last: function(*(array[first:last] for array in flat)), flat[0].size, SLICE)


@njit(**_OPTIONS)
def _relu(x, y, positive):
    for i in range(x.size):
        y[i] = x.dtype.type(0) if x[i] <= 0 else x[i]
        positive[i] = x[i] > 0


@njit(**_OPTIONS)
def _relu_pull(delta, positive, out):
    for i in range(delta.size):
        out[i] = delta[i] if positive[i] else delta.dtype.type(0)


def _exp(x):
    """Return exp(x) for x <= 0, inside of compiled functions."""
    return math.exp(x)


@overload(_exp)
def _exp_by_type(x):
    if x == types.float32:
        return lambda x: _exp_single(x)
    return lambda x: math.exp(x)


@njit(**_OPTIONS)
def _exp_single(x):
    """Return 2^n e^r with |r| <= log(2) / 2; below the normal numbers it stops at the smallest of them."""
    x = _FLOAT(-87.3) if x < _FLOAT(-87.3) else x  # keeps NaN
    n = np.floor(x * _FLOAT(1.4426950) + _FLOAT(0.5))
    r = (x - n * _FLOAT(0.693359375)) + n * _FLOAT(2.1219444e-4)
    p = _FLOAT(8.3694188e-3) + r * _FLOAT(1.3813145e-3)
    p = _FLOAT(0.16666515) + r * (_FLOAT(0.041668457) + r * p)
    p = _FLOAT(1) + (r + r * r * (_FLOAT(0.49999993) + r * p))
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(**_OPTIONS)
def _gelu_single(x):
    """Return Phi(x) and phi(x); the tail is exp(-x^2 / 2) s p(s) with s = 1 / (1 + 0.35 |x|)."""
    density, s = _exp_single(_FLOAT(-0.5) * x * x), _FLOAT(1) / (_FLOAT(1) + _FLOAT(0.35) * abs(x))
    p = _FLOAT(0.14397164) - s * _FLOAT(0.029145919)
    p = _FLOAT(0.15917403) + s * (s * p - _FLOAT(0.25571412))
    p = _FLOAT(0.10550796) + s * (s * p - _FLOAT(0.023109742))
    p = _FLOAT(0.13962141) + s * (_FLOAT(0.13986187) + s * (_FLOAT(0.11983288) + s * p))
    tail = density * s * p
    return tail if x < 0 else _FLOAT(1) - tail, density * _FLOAT(0.39894228)


@njit(**_OPTIONS)
def _gelu_double(x):
    return 0.5 * math.erfc(-x * math.sqrt(0.5)), math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _normal(x):
    """Return Phi(x) and phi(x), inside of compiled functions."""
    return _gelu_double(x)


@overload(_normal)
def _normal_by_type(x):
    if x == types.float32:
        return lambda x: _gelu_single(x)
    return lambda x: _gelu_double(x)


@njit(**_OPTIONS)
def _gelu(x, y, slope):
    for i in range(x.size):
        below, density = _normal(x[i])
        y[i] = x[i] * below
        slope[i] = below + x[i] * density
