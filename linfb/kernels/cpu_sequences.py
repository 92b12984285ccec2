"""Attention and sums over tokens, compiled by numba, in slices for threads.

Twins of :mod:`linfb.kernels.reference_sequences`, where they are explained. Slices are of whole samples, and all
products of one head of one sample are done while it is in the cache, so that bits depend neither on the threads nor on
the rest of the batch. Rows of scores are made in blocks; under a causal mask a block ends at its last query, and the
half that is masked is not computed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels.cpu_activations import _exp
from linfb.kernels.cpu_products import multiply, padded

__all__ = ["attention", "attention_pull", "token_sums"]

SLICE = 1 << 16
BLOCK = 32
_OPTIONS: Any = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def attention(x: Any, heads: int, causal: bool) -> tuple[Any, Any]:
    """Mix the values of all tokens by how well their keys fit a query."""
    return shifted_attention(x, np.zeros(x.shape[-1], x.dtype), heads, causal)


def attention_pull(delta: Any, x: Any, probabilities: Any) -> Any:
    """Return the error at the input of :func:`attention`."""
    return shifted_attention_pull(delta, x, np.zeros(x.shape[-1], x.dtype), probabilities)[1]


def shifted_attention(x: Any, offset: Any, heads: int, causal: bool) -> tuple[Any, Any]:
    """Return what :func:`attention` gives for x plus an offset of its features; no twin but the two layers."""
    batch, tokens, width = x.shape
    x, y = np.ascontiguousarray(x), empty((batch, tokens, width // 3), x.dtype)
    probabilities = empty((batch, heads, tokens, tokens), x.dtype)
    parts = (x, y, probabilities)

    def apply(first: int, last: int) -> None:
        _attention(*(part[first:last] for part in parts), offset, causal)

    for_slices(apply, batch, _samples(heads, tokens))
    return y, probabilities


def shifted_attention_pull(delta: Any, x: Any, offset: Any, probabilities: Any) -> tuple[Any, Any]:
    """Return the error at the input of :func:`shifted_attention`, after its sums over batch and tokens."""
    batch, heads, tokens, _ = probabilities.shape
    delta, x, out = np.ascontiguousarray(delta), np.ascontiguousarray(x), empty(x.shape, x.dtype)
    parts = (delta, x, probabilities, out)

    def apply(first: int, last: int) -> np.ndarray:
        return _attention_pull(*(part[first:last] for part in parts), offset)

    sums = for_slices(apply, batch, _samples(heads, tokens))
    return np.sum(np.stack(sums), axis=0).astype(x.dtype), out


def token_sums(delta: Any, tokens: Any, n_tokens: int) -> Any:
    """Return the sum of the errors of each token."""
    rows, flat = delta.reshape(-1, delta.shape[-1]), tokens.reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < n_tokens:
        raise ValueError(f"tokens must be from 0 to {n_tokens - 1}, got {flat.min()} to {flat.max()}")
    total = np.zeros((n_tokens, rows.shape[1]), delta.dtype)
    _scatter(rows, flat, total)
    return np.ascontiguousarray(total.T)


def _samples(heads: int, tokens: int) -> int:
    return max(1, SLICE // (heads * tokens * tokens))


@njit(**_OPTIONS)
def _part(x, offset, start, features, out):
    """Set out, (head, token, feature), to features of one sample from `start` on plus their offset, token by token."""
    heads = out.shape[0]
    for i in range(x.shape[0]):
        for h in range(heads):
            first = start + h * features
            for j in range(features):
                out[h, i, j] = x[i, first + j] + offset[first + j]


@njit(**_OPTIONS)
def _attention(x, y, probabilities, offset, causal):
    samples, heads, tokens, _ = probabilities.shape
    features, kind = y.shape[2] // heads, x.dtype.type
    room, width = padded(features, x.itemsize), padded(tokens, x.itemsize)
    q, values = np.empty((heads, tokens, features), x.dtype), np.zeros((heads, tokens, room), x.dtype)
    keys, scores = np.zeros((heads, features, width), x.dtype), np.empty((BLOCK, width), x.dtype)
    mixed, result = np.empty((BLOCK, room), x.dtype), np.empty(y.shape[1:], x.dtype)
    scale = kind(1 / math.sqrt(features))
    for n in range(samples):
        _part(x[n], offset, 0, features, q)
        _part(x[n], offset, y.shape[2], features, keys.transpose(0, 2, 1))
        _part(x[n], offset, 2 * y.shape[2], features, values)
        for h in range(heads):
            weights = probabilities[n, h]
            for first in range(0, tokens, BLOCK):
                last = min(first + BLOCK, tokens)
                seen = last if causal else tokens
                whole = padded(seen, x.itemsize)
                multiply(q[h, first:last], keys[h, :, :whole], scores[: last - first, :whole])
                for i in range(first, last):
                    _softmax(scores[i - first], weights[i], i + 1 if causal else tokens, scale)
                multiply(weights[first:last, :seen], values[h, :seen], mixed[: last - first])
                _put(mixed, result[first:last], h * features, features)
        y[n] = result


@njit(**_OPTIONS)
def _softmax(row, weights, seen, scale):
    """Set weights to the softmax of scale times a row of scores, of which the first so many are seen."""
    kind = row.dtype.type
    top, total = row[0], kind(0)
    for j in range(1, seen):
        top = max(top, row[j])
    for j in range(seen):
        weight = _exp(scale * (row[j] - top))
        weights[j] = weight
        total += weight
    inverse = kind(1) / total
    for j in range(seen):
        weights[j] *= inverse
    for j in range(seen, weights.size):
        weights[j] = kind(0)


@njit(**_OPTIONS)
def _attention_pull(delta, x, probabilities, out, offset):
    """Write the error at queries, keys and values, and return its sums over all rows."""
    samples, heads, tokens, _ = probabilities.shape
    every, kind, total = delta.shape[2], x.dtype.type, np.zeros(x.shape[2])
    features = every // heads
    room, width = padded(features, x.itemsize), padded(tokens, x.itemsize)
    q, keys = np.zeros((heads, tokens, room), x.dtype), np.zeros((heads, tokens, room), x.dtype)
    error, values = np.zeros((heads, tokens, room), x.dtype), np.zeros((heads, features, width), x.dtype)
    change, mixed = np.empty((tokens, width), x.dtype), np.empty((BLOCK, room), x.dtype)
    none, result = np.zeros(every, x.dtype), np.empty(x.shape[1:], x.dtype)
    scale = kind(1 / math.sqrt(features))
    for n in range(samples):
        _part(x[n], offset, 0, features, q)
        _part(x[n], offset, every, features, keys)
        _part(x[n], offset, 2 * every, features, values.transpose(0, 2, 1))
        _part(delta[n], none, 0, features, error)
        for h in range(heads):
            weights, start = probabilities[n, h], h * features
            causal = _looks_back(weights)
            for first in range(0, tokens, BLOCK):
                last = min(first + BLOCK, tokens)
                seen = last if causal else tokens
                whole = padded(seen, x.itemsize)
                multiply(error[h, first:last, :features], values[h, :, :whole], change[first:last, :whole])
                for i in range(first, last):
                    _softmax_pull(change[i, :seen], weights[i, :seen], scale)
                multiply(change[first:last, :seen], keys[h, :seen], mixed[: last - first])
                _put(mixed, result[first:last], start, features)
            for first in range(0, tokens, BLOCK):
                last, since = min(first + BLOCK, tokens), first if causal else 0
                multiply(change[since:, first:last].T, q[h, since:], mixed[: last - first])
                _put(mixed, result[first:last], every + start, features)
                multiply(weights[since:, first:last].T, error[h, since:], mixed[: last - first])
                _put(mixed, result[first:last], 2 * every + start, features)
        for i in range(tokens):
            for j in range(result.shape[1]):
                out[n, i, j] = result[i, j]
                total[j] += result[i, j]
    return total


@njit(**_OPTIONS)
def _looks_back(weights):
    """Return whether nothing is taken of later tokens."""
    for i in range(weights.shape[0]):
        for j in range(i + 1, weights.shape[1]):
            if weights[i, j] != 0:
                return False
    return True


@njit(**_OPTIONS)
def _softmax_pull(delta, weights, scale):
    """Overwrite a row of the error at probabilities with that at the unscaled scores."""
    total = delta.dtype.type(0)
    for j in range(delta.size):
        total += delta[j] * weights[j]
    for j in range(delta.size):
        delta[j] = scale * weights[j] * (delta[j] - total)


@njit(**_OPTIONS)
def _put(mixed, out, start, features):
    """Write rows to the features of out from `start` on."""
    for i in range(out.shape[0]):
        for j in range(features):
            out[i, start + j] = mixed[i, j]


@njit(**_OPTIONS)
def _scatter(rows, tokens, total):
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            total[tokens[i], j] += rows[i, j]
