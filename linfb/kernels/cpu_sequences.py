"""Error function, GELU, attention and token sums in few passes over memory, compiled by numba, in slices for threads.

Twins of :mod:`linfb.kernels.reference_sequences`, where they are explained. In single precision the exponential and the
normal tail are polynomials of our own, minimax fits of the relative error (below 4e-9 and 4e-8), which the compiler can
vectorise; in double precision they come from the C library.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from linfb._threads import for_slices

__all__ = ["attention", "attention_pull", "erf", "gelu", "token_sums"]

SLICE = 1 << 16
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
_FLOAT = np.float32


def erf(x: Any) -> Any:
    """Return the error function of every entry."""
    function, flat = import_module("scipy.special").erf, np.ascontiguousarray(x).reshape(-1)
    y = np.empty_like(flat)
    for_slices(lambda first, last: function(flat[first:last], out=y[first:last]), flat.size, SLICE)
    return y.reshape(x.shape)


def gelu(x: Any) -> tuple[Any, Any]:
    """Return the error linear unit of every entry and its derivative."""
    flat = np.ascontiguousarray(x).reshape(-1)
    y, slope = np.empty_like(flat), np.empty_like(flat)
    for_slices(lambda first, last: _gelu(flat[first:last], y[first:last], slope[first:last]), flat.size, SLICE)
    return y.reshape(x.shape), slope.reshape(x.shape)


def attention(x: Any, heads: int, causal: bool) -> tuple[Any, Any]:
    """Mix the values of all tokens by how well their keys fit a query."""
    batch, tokens, width = x.shape
    q, k, v = _heads(x, 3, heads)
    y = np.empty((batch, tokens, width // 3), x.dtype)
    probabilities = np.empty((batch, heads, tokens, tokens), x.dtype)
    (out,), scale = _heads(y, 1, heads), x.dtype.type(1 / math.sqrt(q.shape[-1]))

    def apply(first: int, last: int) -> None:
        part = probabilities[first:last]
        np.matmul(q[first:last], k[first:last].swapaxes(-1, -2), out=part)
        _softmax(part.reshape(-1, tokens), scale, causal)
        np.matmul(part, v[first:last], out=out[first:last])

    for_slices(apply, batch, _samples(heads, tokens))
    return y, probabilities


def attention_pull(delta: Any, x: Any, probabilities: Any) -> Any:
    """Return the error at the input of :func:`attention`."""
    batch, heads, tokens, _ = probabilities.shape
    q, k, v = _heads(x, 3, heads)
    out = np.empty_like(x)
    (to_q, to_k, to_v), (error,) = _heads(out, 3, heads), _heads(delta, 1, heads)
    scale = x.dtype.type(1 / math.sqrt(q.shape[-1]))

    def apply(first: int, last: int) -> None:
        here, part = slice(first, last), probabilities[first:last]
        change = error[here] @ v[here].swapaxes(-1, -2)
        _softmax_pull(change.reshape(-1, tokens), part.reshape(-1, tokens), scale)
        np.matmul(change, k[here], out=to_q[here])
        np.matmul(change.swapaxes(-1, -2), q[here], out=to_k[here])
        np.matmul(part.swapaxes(-1, -2), error[here], out=to_v[here])

    for_slices(apply, batch, _samples(heads, tokens))
    return out


def token_sums(delta: Any, tokens: Any, n_tokens: int) -> Any:
    """Return the sum of the errors of each token."""
    rows, flat = delta.reshape(-1, delta.shape[-1]), tokens.reshape(-1)
    total = np.zeros((n_tokens, rows.shape[1]), delta.dtype)
    _scatter(rows, flat, total)
    return np.ascontiguousarray(total.T)


def _heads(x: np.ndarray, parts: int, heads: int) -> list[np.ndarray]:
    """Return views of the parts of the features, each (batch, heads, token, features of a head)."""
    batch, tokens, width = x.shape
    split = x.reshape(batch, tokens, parts, heads, width // (parts * heads))
    return list(split.transpose(2, 0, 3, 1, 4))


def _samples(heads: int, tokens: int) -> int:
    return max(1, SLICE // (heads * tokens * tokens))


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
    x = max(x, _FLOAT(-87.3))
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


@njit(**_OPTIONS)
def _softmax(scores, scale, causal):
    """Overwrite rows of scores with the softmax of scale times them; row i sees i + 1 entries if causal."""
    n, kind = scores.shape[1], scores.dtype.type
    for i in range(scores.shape[0]):
        row, seen = scores[i], i % n + 1 if causal else n
        top = row[0]
        for j in range(1, seen):
            top = max(top, row[j])
        for j in range(seen):
            row[j] = _exp(scale * (row[j] - top))
        total = kind(0)
        for j in range(seen):
            total += row[j]
        inverse = kind(1) / total
        for j in range(seen):
            row[j] *= inverse
        for j in range(seen, n):
            row[j] = kind(0)


@njit(**_OPTIONS)
def _softmax_pull(delta, probabilities, scale):
    """Overwrite rows of the error at probabilities with that at the unscaled scores."""
    n, kind = delta.shape[1], delta.dtype.type
    for i in range(delta.shape[0]):
        total = kind(0)
        for j in range(n):
            total += delta[i, j] * probabilities[i, j]
        for j in range(n):
            delta[i, j] = scale * probabilities[i, j] * (delta[i, j] - total)


@njit(**_OPTIONS)
def _scatter(rows, tokens, total):
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            total[tokens[i], j] += rows[i, j]
