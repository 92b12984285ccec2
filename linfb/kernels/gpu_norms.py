"""Normalisation and sums over rows in few passes over memory on a CUDA device.

Twins of :mod:`linfb.kernels.reference_norms`, where they are explained. Sums over rows are taken over `SLICE` rows by
one thread, then over as many of these sums, until one is left; sums over features by the 32 threads of a warp, which
exchange theirs. Both orders depend on shapes alone.
"""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace
from linfb.kernels import _cuda
from linfb.kernels.reference_norms import shifted

__all__ = [
    "batch_norm", "batch_norm_pull", "feature_sums", "feature_variances", "layer_norm", "layer_norm_pull", "norm_grad",
    "shifted",
]  # fmt: skip

SLICE = 64
WARP = 32
SOURCE = """
template <typename T>
__global__ void sums(const T* x, const wide<T>* centre, wide<T>* out, int slices, int rows, int columns, int length) {
    int s = row();
    if (s >= slices) return;
    int last = rows - s * length < length ? rows : (s + 1) * length;
    for (COLUMNS(c, columns)) {
        wide<T> sum = 0;
        for (int r = s * length; r < last; r++) {
            wide<T> value = wide<T>(x[(long long)r * columns + c]);
            if (centre) { value -= centre[c]; value *= value; }
            sum += value;
        }
        out[(long long)s * columns + c] = sum;
    }
}

template <typename T>
__global__ void products(const T* x, const T* factor, wide<T>* out, int slices, int rows, int columns, int length) {
    int s = row();
    if (s >= slices) return;
    int last = rows - s * length < length ? rows : (s + 1) * length;
    for (COLUMNS(c, columns)) {
        wide<T> sum = 0, product = 0;
        for (int r = s * length; r < last; r++) {
            wide<T> value = wide<T>(x[(long long)r * columns + c]);
            sum += value;
            product += value * wide<T>(factor[(long long)r * columns + c]);
        }
        out[2ll * s * columns + c] = product;
        out[(2ll * s + 1) * columns + c] = sum;
    }
}

template <typename T>
__global__ void normalise(const T* x, const wide<T>* mean, const wide<T>* inverse, const T* gain, const T* shift, T* y,
                          T* normalised, int rows, int columns) {
    int r = row();
    if (r >= rows) return;
    for (COLUMNS(c, columns)) {
        long long at = (long long)r * columns + c;
        wide<T> value = (wide<T>(x[at]) - mean[c]) * inverse[c];
        normalised[at] = T(value);
        y[at] = T(wide<T>(gain[c]) * value + wide<T>(shift[c]));
    }
}

template <typename T>
__global__ void project(const T* delta, const T* normalised, const wide<T>* mean, const wide<T>* slope,
                        const wide<T>* scale, T* out, int rows, int columns) {
    int r = row();
    if (r >= rows) return;
    for (COLUMNS(c, columns)) {
        long long at = (long long)r * columns + c;
        out[at] = T((wide<T>(delta[at]) - mean[c] - wide<T>(normalised[at]) * slope[c]) * scale[c]);
    }
}

template <typename V>
__device__ V warp_sum(V value) {
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

template <typename T>
__global__ void normalise_rows(const T* x, const T* gain, const T* shift, T* y, T* normalised, T* inverse,
                               wide<T> epsilon, int rows, int columns) {
    int r = row();
    if (r >= rows) return;
    long long start = (long long)r * columns;
    wide<T> sum = 0, squares = 0;
    for (COLUMNS(c, columns)) sum += wide<T>(x[start + c]);
    wide<T> mean = warp_sum(sum) / columns;
    for (COLUMNS(c, columns)) {
        wide<T> value = wide<T>(x[start + c]) - mean;
        squares += value * value;
    }
    wide<T> scale = 1 / sqrt(warp_sum(squares) / columns + epsilon);
    if (threadIdx.x == 0) inverse[r] = T(scale);
    for (COLUMNS(c, columns)) {
        wide<T> value = (wide<T>(x[start + c]) - mean) * scale;
        normalised[start + c] = T(value);
        y[start + c] = T(wide<T>(gain[c]) * value + wide<T>(shift[c]));
    }
}

template <typename T>
__global__ void project_rows(const T* delta, const T* normalised, const T* inverse, const T* gain, T* out, int rows,
                             int columns) {
    int r = row();
    if (r >= rows) return;
    long long start = (long long)r * columns;
    wide<T> mean = 0, slope = 0;
    for (COLUMNS(c, columns)) {
        wide<T> error = wide<T>(delta[start + c]) * wide<T>(gain[c]);
        mean += error;
        slope += error * wide<T>(normalised[start + c]);
    }
    mean = warp_sum(mean) / columns;
    slope = warp_sum(slope) / columns;
    for (COLUMNS(c, columns)) {
        wide<T> error = wide<T>(delta[start + c]) * wide<T>(gain[c]);
        out[start + c] = T((error - mean - wide<T>(normalised[start + c]) * slope) * wide<T>(inverse[r]));
    }
}
"""


def feature_sums(delta: Any) -> Any:
    """Return the sums over all rows."""
    rows = _rows(delta)
    return _cast(_total("sums", rows, None), delta)


def feature_variances(x: Any, leading: int = 0) -> Any:
    """Return the variance of every feature over all rows."""
    return namespace(x).var(x, axis=tuple(range(leading, x.ndim - 1)))


def norm_grad(delta: Any, normalised: Any) -> tuple[Any, Any]:
    """Return the gradients of gain and shift."""
    products, sums = _gradients(delta, normalised)
    return _cast(products, delta), _cast(sums, delta)


def batch_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any, Any]:
    """Normalise every feature over all rows, then apply gain and shift."""
    xp, rows = namespace(x), _rows(x)
    n, columns = rows.shape
    mean = _total("sums", rows, None) / n
    variance = _total("sums", rows, mean) / n
    inverse = 1 / xp.sqrt(variance + epsilon)
    y, normalised = xp.empty_like(rows), xp.empty_like(rows)
    _cuda.launch(SOURCE, "normalise", x.dtype, n, columns, rows, mean, inverse, gain, shift, y, normalised, n, columns)
    moments = (_cast(moment, x) for moment in (inverse, mean, variance))
    return y.reshape(x.shape), normalised.reshape(x.shape), *moments


def batch_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`batch_norm`."""
    xp, rows, scaled = namespace(delta), _rows(delta), _rows(normalised)
    n, columns = rows.shape
    slope, mean = (gradient / n for gradient in _gradients(rows, scaled))
    scale, out = xp.astype(gain * inverse_deviation, slope.dtype), xp.empty_like(rows)
    _cuda.launch(SOURCE, "project", delta.dtype, n, columns, rows, scaled, mean, slope, scale, out, n, columns)
    return out.reshape(delta.shape)


def layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise every row over its features, then apply gain and shift."""
    xp, rows = namespace(x), _rows(x)
    n, columns = rows.shape
    y, normalised, inverse = xp.empty_like(rows), xp.empty_like(rows), xp.empty((*x.shape[:-1], 1), dtype=x.dtype)
    _cuda.launch(
        SOURCE, "normalise_rows", x.dtype, n, WARP,
        rows, gain, shift, y, normalised, inverse, float(epsilon), n, columns,
    )  # fmt: skip
    return y.reshape(x.shape), normalised.reshape(x.shape), inverse


def layer_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`layer_norm`."""
    xp, rows = namespace(delta), _rows(delta)
    n, columns = rows.shape
    out, inverse = xp.empty_like(rows), xp.ascontiguousarray(inverse_deviation)
    _cuda.launch(SOURCE, "project_rows", delta.dtype, n, WARP, rows, _rows(normalised), inverse, gain, out, n, columns)
    return out.reshape(delta.shape)


def _gradients(delta: Any, normalised: Any) -> tuple[Any, Any]:
    """Return the sums over rows of products and of errors, in the precision of sums."""
    rows = _rows(delta)
    both = _total("products", rows, _rows(normalised))
    return both[: rows.shape[1]], both[rows.shape[1] :]


def _total(name: str, rows: Any, other: Any) -> Any:
    """Return what a kernel sums over rows, in slices and slices of slices."""
    xp, (n, columns) = namespace(rows), rows.shape
    slices, wide = max(1, -(-n // SLICE)), xp.float64 if rows.dtype == xp.float64 else xp.float32
    out = xp.empty((slices, 2 * columns if name == "products" else columns), dtype=wide)
    _cuda.launch(SOURCE, name, rows.dtype, slices, columns, rows, other, out, slices, n, columns, SLICE)
    return out[0, :] if slices == 1 else _total("sums", out, None)


def _rows(x: Any) -> Any:
    return namespace(x).ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _cast(sums: Any, like: Any) -> Any:
    return namespace(sums).astype(sums, like.dtype)
