"""Activation functions in one pass over memory each on a CUDA device.

Twins of :mod:`linfb.kernels.reference_activations`, where they are explained. A product is one pass as it is.
"""

from __future__ import annotations

from typing import Any

from linfb.backend import namespace
from linfb.kernels import _cuda
from linfb.kernels.reference_activations import product

__all__ = ["erf", "gelu", "product", "relu", "relu_pull"]

SOURCE = """
template <typename T>
__global__ void relu(const T* x, T* y, bool* positive, int size) {
    Several<T> own(x, size);
#pragma unroll
    for (ENTRIES(k, i, size)) {
        wide<T> value = wide<T>(own.at[k]);
        y[i] = T(value <= 0 ? wide<T>(0) : value);
        positive[i] = value > 0;
    }
}

template <typename T>
__global__ void relu_pull(const T* delta, const bool* positive, T* out, int size) {
    Several<T> own(delta, size);
    Several<bool> kept(positive, size);
#pragma unroll
    for (ENTRIES(k, i, size)) out[i] = kept.at[k] ? own.at[k] : T(0.0f);
}

template <typename T>
__global__ void erf_of(const T* x, T* y, int size) {
    Several<T> own(x, size);
#pragma unroll
    for (ENTRIES(k, i, size)) y[i] = T(erf(wide<T>(own.at[k])));
}

template <typename T>
__global__ void gelu(const T* x, T* y, T* slope, int size) {
    Several<T> own(x, size);
#pragma unroll
    for (ENTRIES(k, i, size)) {
        wide<T> value = wide<T>(own.at[k]), half = wide<T>(0.5);
        wide<T> below = half * erfc(value * wide<T>(-0.70710678118654752440));
        wide<T> density = wide<T>(0.39894228040143267794) * exp(-half * value * value);
        y[i] = T(value * below);
        slope[i] = T(below + value * density);
    }
}
"""


def relu(x: Any) -> tuple[Any, Any]:
    """Return the rectified entries, and where they are positive."""
    xp = namespace(x)
    y, positive = xp.empty(x.shape, dtype=x.dtype), xp.empty(x.shape, dtype=xp.bool)
    _sweep("relu", x, y, positive)
    return y, positive


def relu_pull(delta: Any, positive: Any) -> Any:
    """Return the error where the output was positive, 0 elsewhere."""
    out = namespace(delta).empty(delta.shape, dtype=delta.dtype)
    _sweep("relu_pull", delta, namespace(positive).ascontiguousarray(positive), out)
    return out


def erf(x: Any) -> Any:
    """Return the error function of every entry."""
    y = namespace(x).empty(x.shape, dtype=x.dtype)
    _sweep("erf_of", x, y)
    return y


def gelu(x: Any) -> tuple[Any, Any]:
    """Return x times the normal law's distribution function, and the derivative of that."""
    xp = namespace(x)
    y, slope = xp.empty(x.shape, dtype=x.dtype), xp.empty(x.shape, dtype=x.dtype)
    _sweep("gelu", x, y, slope)
    return y, slope


def _sweep(name: str, x: Any, *others: Any) -> None:
    """Run a kernel over all entries of arrays of one shape."""
    threads = -(-x.size // _cuda.EACH)
    _cuda.launch(SOURCE, name, x.dtype, threads, 1, namespace(x).ascontiguousarray(x), *others, x.size)
