"""Attention and sums over tokens on a CUDA device.

Twins of :mod:`linfb.kernels.reference_sequences`, where they are explained. The products of attention go to cuBLAS;
scale, mask and softmax are one pass, in which the 32 threads of a warp share a row.
"""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace, transpose
from linfb.kernels import _cuda
from linfb.kernels._cuda import WARP
from linfb.kernels.reference_sequences import _merge, _split

__all__ = ["attention", "attention_pull", "token_sums"]

SOURCE = """
template <typename V>
__device__ V warp_sum(V value) {
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

template <typename V>
__device__ V warp_max(V value) {
    for (int lane = 16; lane > 0; lane /= 2) {
        V other = __shfl_xor_sync(0xffffffffu, value, lane);
        if (other > value) value = other;
    }
    return value;
}

template <typename T>
__global__ void softmax(T* scores, wide<T> scale, int causal, int rows, int columns) {
    int r = row();
    if (r >= rows) return;
    T* own = scores + (long long)r * columns;
    int seen = causal ? r % columns + 1 : columns;
    wide<T> top = wide<T>(own[0]), sum = 0;
    for (COLUMNS(c, seen)) {
        wide<T> value = wide<T>(own[c]);
        if (value > top) top = value;
    }
    top = warp_max(top);
    for (COLUMNS(c, seen)) sum += exp(scale * (wide<T>(own[c]) - top));
    sum = warp_sum(sum);
    for (COLUMNS(c, columns)) own[c] = T(c < seen ? exp(scale * (wide<T>(own[c]) - top)) / sum : wide<T>(0));
}

template <typename T>
__global__ void softmax_pull(T* delta, const T* probabilities, wide<T> scale, int rows, int columns) {
    int r = row();
    if (r >= rows) return;
    long long start = (long long)r * columns;
    wide<T> sum = 0;
    for (COLUMNS(c, columns)) sum += wide<T>(delta[start + c]) * wide<T>(probabilities[start + c]);
    sum = warp_sum(sum);
    for (COLUMNS(c, columns))
        delta[start + c] = T(scale * wide<T>(probabilities[start + c]) * (wide<T>(delta[start + c]) - sum));
}

template <typename T>
__global__ void token_sums(const T* delta, const int* order, const int* starts, T* out, int tokens, int columns) {
    int t = row();
    if (t >= tokens) return;
    for (COLUMNS(c, columns)) {
        wide<T> sum = 0;
        for (int i = starts[t]; i < starts[t + 1]; i++) sum += wide<T>(delta[(long long)order[i] * columns + c]);
        out[(long long)c * tokens + t] = T(sum);
    }
}
"""


def attention(x: Any, heads: int, causal: bool) -> tuple[Any, Any]:
    """Mix the values of all tokens by how well their keys fit a query."""
    q, k, v = (_split(x, part, 3, heads) for part in range(3))
    scores = namespace(x).ascontiguousarray(q @ transpose(k))
    tokens, scale = x.shape[1], 1 / math.sqrt(q.shape[-1])
    rows = scores.size // max(1, tokens)
    _cuda.launch(SOURCE, "softmax", x.dtype, rows, WARP, scores, scale, int(causal), rows, tokens)
    return _merge(scores @ v), scores


def attention_pull(delta: Any, x: Any, probabilities: Any) -> Any:
    """Return the error at the input of :func:`attention`."""
    xp, heads, tokens = namespace(delta), probabilities.shape[1], x.shape[1]
    q, k, v = (_split(x, part, 3, heads) for part in range(3))
    delta, probabilities = _split(delta, 0, 1, heads), xp.ascontiguousarray(probabilities)
    change = xp.ascontiguousarray(delta @ transpose(v))
    rows, scale = change.size // max(1, tokens), 1 / math.sqrt(q.shape[-1])
    _cuda.launch(SOURCE, "softmax_pull", x.dtype, rows, WARP, change, probabilities, scale, rows, tokens)
    errors = (change @ k, transpose(change) @ q, transpose(probabilities) @ delta)
    return xp.concat([_merge(error) for error in errors], axis=-1)


def token_sums(delta: Any, tokens: Any, n_tokens: int) -> Any:
    """Return the sum of the errors of each token, added in their order."""
    xp, columns = namespace(delta, tokens), delta.shape[-1]
    flat = xp.reshape(tokens, (-1,))
    order = xp.argsort(flat, stable=True)
    starts = xp.searchsorted(xp.take(flat, order), xp.arange(n_tokens + 1, dtype=flat.dtype))
    order, starts = (xp.astype(index, xp.int32) for index in (order, starts))
    out = xp.empty((columns, n_tokens), dtype=delta.dtype)
    delta = xp.ascontiguousarray(delta)
    _cuda.launch(SOURCE, "token_sums", delta.dtype, n_tokens, columns, delta, order, starts, out, n_tokens, columns)
    return out
