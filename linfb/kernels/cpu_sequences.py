"""Attention and sums over tokens, compiled by numba around matrix products, in slices for threads.

Twins of :mod:`linfb.kernels.reference_sequences`, where they are explained. Slices are of whole samples, and every
product is of one head of one sample, so that bits depend neither on the threads nor on the rest of the batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels.cpu_activations import _exp

__all__ = ["attention", "attention_pull", "token_sums"]

SLICE = 1 << 16
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def attention(x: Any, heads: int, causal: bool) -> tuple[Any, Any]:
    """Mix the values of all tokens by how well their keys fit a query."""
    batch, tokens, width = x.shape
    q, k, v = _heads(x, 3, heads)
    y = empty((batch, tokens, width // 3), x.dtype)
    probabilities = empty((batch, heads, tokens, tokens), x.dtype)
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
    out = empty(x.shape, x.dtype)
    (to_q, to_k, to_v), (error,) = _heads(out, 3, heads), _heads(delta, 1, heads)
    scale = x.dtype.type(1 / math.sqrt(q.shape[-1]))

    def apply(first: int, last: int) -> None:
        here, part = slice(first, last), probabilities[first:last]
        change = empty(part.shape, x.dtype)
        np.matmul(error[here], v[here].swapaxes(-1, -2), out=change)
        _softmax_pull(change.reshape(-1, tokens), part.reshape(-1, tokens), scale)
        np.matmul(change, k[here], out=to_q[here])
        np.matmul(change.swapaxes(-1, -2), q[here], out=to_k[here])
        np.matmul(part.swapaxes(-1, -2), error[here], out=to_v[here])

    for_slices(apply, batch, _samples(heads, tokens))
    return out


def token_sums(delta: Any, tokens: Any, n_tokens: int) -> Any:
    """Return the sum of the errors of each token."""
    rows, flat = delta.reshape(-1, delta.shape[-1]), tokens.reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < n_tokens:
        raise ValueError(f"tokens must be from 0 to {n_tokens - 1}, got {flat.min()} to {flat.max()}")
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
