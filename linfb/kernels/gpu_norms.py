"""Normalisation and sums over rows in few passes over memory on a CUDA device.

Twins of :mod:`linfb.kernels.reference_norms`, where they are explained. Sums over rows are taken by blocks, 32 columns
wide where there are as many, over slices: of `SLICE` rows, or so long that there are `SLICE` of them; then over the
sums of slices. So two launches do, and the threads of a block share a slice. Sums over features are taken by the 32
threads of a warp, which exchange theirs. Both orders depend on shapes alone.
"""

from __future__ import annotations

import math
from typing import Any

from linfb.backend import namespace
from linfb.kernels import _cuda
from linfb.kernels._cuda import WARP
from linfb.kernels.reference_norms import shifted

__all__ = [
    "batch_norm", "batch_norm_grad_pull", "feature_sums", "feature_variances", "layer_norm", "layer_norm_pull",
    "norm_grad", "shifted",
]  # fmt: skip

SLICE = 256
SOURCE = """
template <typename V>
__device__ V block_sum(V value) {  // over the rows of a block, for each of its columns; right in the first row
    __shared__ V held[256];
    int own = threadIdx.y * blockDim.x + threadIdx.x;
    held[own] = value;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) held[own] += held[own + half * blockDim.x];
    }
    value = held[own];
    __syncthreads();
    return value;
}

template <typename T>
__global__ void sums(const T* x, const wide<T>* centre, wide<T>* out, int slices, int rows, int columns, int length) {
    int run = blockIdx.x / slices, first = blockIdx.x % slices * length;
    int last = rows - first < length ? rows : first + length, c = blockIdx.y * blockDim.x + threadIdx.x;
    wide<T> sum = 0;
    if (c < columns) {
        const T* own = x + (long long)run * rows * columns + c;
        wide<T> middle = centre ? centre[run * columns + c] : wide<T>(0);
        for (int r = first + threadIdx.y; r < last; r += blockDim.y) {
            wide<T> value = wide<T>(own[(long long)r * columns]) - middle;
            sum += centre ? value * value : value;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.y == 0 && c < columns) out[(long long)blockIdx.x * columns + c] = sum;
}

template <typename T>
__global__ void products(const T* x, const T* factor, wide<T>* out, int slices, int rows, int columns, int length) {
    int run = blockIdx.x / slices, first = blockIdx.x % slices * length;
    int last = rows - first < length ? rows : first + length, c = blockIdx.y * blockDim.x + threadIdx.x;
    wide<T> sum = 0, product = 0;
    if (c < columns) {
        long long start = (long long)run * rows * columns + c;
        for (int r = first + threadIdx.y; r < last; r += blockDim.y) {
            wide<T> value = wide<T>(x[start + (long long)r * columns]);
            sum += value;
            product += value * wide<T>(factor[start + (long long)r * columns]);
        }
    }
    product = block_sum(product);
    sum = block_sum(sum);
    if (threadIdx.y == 0 && c < columns) {
        out[2ll * blockIdx.x * columns + c] = product;
        out[(2ll * blockIdx.x + 1) * columns + c] = sum;
    }
}

template <typename T>
__global__ void normalise(const T* x, const wide<T>* mean, const wide<T>* inverse, const T* gain, const T* shift, T* y,
                          T* normalised, int rows, int per_run, int columns) {
    int r = row();
    if (r >= rows) return;
    for (COLUMNS(c, columns)) {
        long long at = (long long)r * columns + c;
        int own = r / per_run * columns + c;
        wide<T> value = (wide<T>(x[at]) - mean[own]) * inverse[own];
        normalised[at] = T(value);
        y[at] = T(wide<T>(gain[own]) * value + wide<T>(shift[own]));
    }
}

template <typename T>
__global__ void project(const T* delta, const T* normalised, const wide<T>* mean, const wide<T>* slope,
                        const wide<T>* scale, T* out, int rows, int per_run, int columns) {
    int r = row();
    if (r >= rows) return;
    for (COLUMNS(c, columns)) {
        long long at = (long long)r * columns + c;
        int own = r / per_run * columns + c;
        out[at] = T((wide<T>(delta[at]) - mean[own] - wide<T>(normalised[at]) * slope[own]) * scale[own]);
    }
}

template <typename V>
__device__ V warp_sum(V value) {
    for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
    return value;
}

template <typename T>
__global__ void normalise_rows(const T* x, const T* gain, const T* shift, T* y, T* normalised, T* inverse,
                               wide<T> epsilon, int rows, int per_run, int columns) {
    int r = row();
    if (r >= rows) return;
    long long start = (long long)r * columns;
    gain += r / per_run * columns;
    shift += r / per_run * columns;
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
                             int per_run, int columns) {
    int r = row();
    if (r >= rows) return;
    long long start = (long long)r * columns;
    gain += r / per_run * columns;
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


def feature_sums(delta: Any, leading: int = 0) -> Any:
    """Return the sums over all rows, after the shape of `leading` axes that are kept."""
    return _cast(_total("sums", delta, None, leading), delta).reshape((*delta.shape[:leading], delta.shape[-1]))


def feature_variances(x: Any, leading: int = 0) -> Any:
    """Return the variance of every feature over all rows."""
    return namespace(x).var(x, axis=tuple(range(leading, x.ndim - 1)))


def norm_grad(delta: Any, normalised: Any, leading: int = 0) -> tuple[Any, Any]:
    """Return the gradients of gain and shift."""
    shape = (*delta.shape[:leading], delta.shape[-1])
    products, sums = (_cast(gradient, delta).reshape(shape) for gradient in _gradients(delta, normalised, leading))
    return products, sums


def batch_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any, Any, Any]:
    """Normalise every feature over all rows, then apply gain and shift."""
    xp, rows, per_run, leading = namespace(x), _rows(x), _per_run(x, gain), gain.ndim - 1
    mean = _total("sums", x, None, leading) / per_run
    variance = _total("sums", x, mean, leading) / per_run
    inverse = 1 / xp.sqrt(variance + epsilon)
    y, normalised = xp.empty_like(rows), xp.empty_like(rows)
    _cuda.launch(
        SOURCE, "normalise", x.dtype, *rows.shape,
        rows, mean, inverse, gain, shift, y, normalised, rows.shape[0], per_run, rows.shape[1],
    )  # fmt: skip
    moments = (_cast(moment, x).reshape(gain.shape) for moment in (inverse, mean, variance))
    return y.reshape(x.shape), normalised.reshape(x.shape), *moments


def batch_norm_grad_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of gain and shift, and the error at the input of :func:`batch_norm`."""
    xp, rows, scaled, per_run = namespace(delta), _rows(delta), _rows(normalised), _per_run(delta, gain)
    gradients = _gradients(delta, normalised, gain.ndim - 1)
    slope, mean = (gradient / per_run for gradient in gradients)
    scale, out = xp.astype(gain * inverse_deviation, slope.dtype), xp.empty_like(rows)
    _cuda.launch(
        SOURCE, "project", delta.dtype, *rows.shape,
        rows, scaled, mean, slope, scale, out, rows.shape[0], per_run, rows.shape[1],
    )  # fmt: skip
    products, sums = (_cast(gradient, delta).reshape(gain.shape) for gradient in gradients)
    return products, sums, out.reshape(delta.shape)


def layer_norm(x: Any, gain: Any, shift: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise every row over its features, then apply gain and shift."""
    xp, rows = namespace(x), _rows(x)
    n, columns = rows.shape
    y, normalised, inverse = xp.empty_like(rows), xp.empty_like(rows), xp.empty((*x.shape[:-1], 1), dtype=x.dtype)
    _cuda.launch(
        SOURCE, "normalise_rows", x.dtype, n, WARP,
        rows, gain, shift, y, normalised, inverse, float(epsilon), n, _per_run(x, gain), columns,
    )  # fmt: skip
    return y.reshape(x.shape), normalised.reshape(x.shape), inverse


def layer_norm_pull(delta: Any, normalised: Any, inverse_deviation: Any, gain: Any) -> Any:
    """Return the error at the input of :func:`layer_norm`."""
    xp, rows = namespace(delta), _rows(delta)
    n, columns = rows.shape
    out, inverse = xp.empty_like(rows), xp.ascontiguousarray(inverse_deviation)
    _cuda.launch(
        SOURCE, "project_rows", delta.dtype, n, WARP,
        rows, _rows(normalised), inverse, gain, out, n, _per_run(delta, gain), columns,
    )  # fmt: skip
    return out.reshape(delta.shape)


def _gradients(delta: Any, normalised: Any, leading: int) -> tuple[Any, Any]:
    """Return the sums over rows of products and of errors, shape (run, features), in the precision of sums."""
    both, columns = _total("products", delta, _rows(normalised), leading), delta.shape[-1]
    return both[:, :columns], both[:, columns:]


def _total(name: str, x: Any, other: Any, leading: int = 1) -> Any:
    """Return what a kernel sums over the rows of each run, in slices and slices of slices, shape (run, ...)."""
    xp, columns = namespace(x), x.shape[-1]
    runs, n = (math.prod(x.shape[part]) for part in (slice(0, leading), slice(leading, -1)))
    length = max(SLICE, -(-n // SLICE))
    slices, (_, along) = max(1, -(-n // length)), _cuda.block(columns, WARP)
    out = xp.empty((runs, slices, 2 * columns if name == "products" else columns), dtype=getattr(xp, _wide(x)))
    _cuda.launch(
        SOURCE, name, x.dtype, runs * slices * along, columns,
        xp.ascontiguousarray(x), other, out, slices, n, columns, length, most=WARP,
    )  # fmt: skip
    return out[:, 0, :] if slices == 1 else _total("sums", out, None)


def _wide(x: Any) -> str:
    return _cuda.wide(x.dtype).__name__


def _per_run(x: Any, gain: Any) -> int:
    """Return how many rows share a gain."""
    return math.prod(x.shape[gain.ndim - 1 : -1])


def _rows(x: Any) -> Any:
    return namespace(x).ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _cast(sums: Any, like: Any) -> Any:
    return namespace(sums).astype(sums, like.dtype)
