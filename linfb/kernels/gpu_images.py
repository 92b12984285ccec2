"""Convolutions as products with patches, and pooling, on a CUDA device.

Twins of :mod:`linfb.kernels.reference_images`, where they are explained. Patches are cut for as many images at a time
as have `BUFFER` bytes of them (for one image if it has more), so that the memory they take does not grow with the
batch and they may stay in the cache of the device; products go to cuBLAS. Sums over overlapping windows are gathered by
the thread that writes them, in a fixed order; the loops over windows are short, and not unrolled: that takes 32
registers, so that a multiprocessor holds all the threads it can, where unrolled ones take 48 to 72.

Why 32 MiB: a 3x3 convolution of 128 images of 32 x 32 with 64 channels in and out has 34 MB of input, as much output,
302 MB of patches and 9.7 GFLOP (0.03 to 0.04 ms in TF32). With all patches in memory 671 MB go through it: 0.20 ms at
the 3.35 TB/s of an H100, 0.14 ms at the 4.8 TB/s of an H200. In nine parts of 32 MiB patches fit its cache of 50 MB:
604 MB at some 5.5 TB/s are 0.11 ms, 18 launches add about 0.04 ms, and a product has 14,563 rows, enough for 114 of 132
multiprocessors at 128 rows each. So estimated, not measured: a quarter faster on the one, no slower on the other, and
32 MiB in the place of 302 MB. In half precision patches have half the size, since layers round before they cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from linfb.backend import namespace
from linfb.kernels import _cuda

__all__ = ["convolve", "convolve_grad", "convolve_pull", "max_pool", "max_unpool"]

BUFFER = 1 << 25
SOURCE = """
template <typename T>
__global__ void im2col(const T* x, T* patches, int rows, int height, int width, int channels, int out_height,
                       int out_width, int kh, int kw, int stride, int padding) {
    int r = row();
    if (r >= rows) return;
    int left = r % out_width * stride - padding, top = r / out_width % out_height * stride - padding;
    int image = r / out_width / out_height, line = width * channels, length = kw * channels;
    T* to = patches + (long long)r * kh * length;
    for (int i = 0; i < kh; i++) {
        bool inside = 0 <= top + i && top + i < height;
        const T* from = x + ((long long)image * height + (inside ? top + i : 0)) * line;
        for (COLUMNS(c, length)) {
            int place = left * channels + c;
            to[i * length + c] = inside && 0 <= place && place < line ? from[place] : T(0.0f);
        }
    }
}

template <typename T>
__global__ void col2im(const T* patches, T* x, int rows, int height, int width, int channels, int out_height,
                       int out_width, int kh, int kw, int stride, int padding) {
    int r = row();
    if (r >= rows) return;
    int left = r % width + padding, top = r / width % height + padding, image = r / width / height;
    int first_i = top < kh ? 0 : (top - kh) / stride + 1, end_i = top / stride + 1;
    int first_j = left < kw ? 0 : (left - kw) / stride + 1, end_j = left / stride + 1;
    if (end_i > out_height) end_i = out_height;
    if (end_j > out_width) end_j = out_width;
    for (COLUMNS(c, channels)) {
        wide<T> sum = 0;
        for (int i = first_i; i < end_i; i++)
#pragma unroll 1
            for (int j = first_j; j < end_j; j++) {
                long long patch = ((long long)image * out_height + i) * out_width + j;
                sum += wide<T>(patches[((patch * kh + top - i * stride) * kw + left - j * stride) * channels + c]);
            }
        x[(long long)r * channels + c] = T(sum);
    }
}

template <typename T>
__global__ void max_pool(const T* x, T* y, unsigned char* choice, int rows, int height, int width, int channels,
                         int out_height, int out_width, int size, int stride) {
    int r = row();
    if (r >= rows) return;
    int left = r % out_width * stride, top = r / out_width % out_height * stride, image = r / out_width / out_height;
    const T* from = x + (((long long)image * height + top) * width + left) * channels;
    for (COLUMNS(c, channels)) {
        wide<T> best = wide<T>(from[c]);
        int winner = 0;
        for (int k = 1; k < size * size; k++) {
            wide<T> value = wide<T>(from[((long long)(k / size) * width + k % size) * channels + c]);
            if (value > best || value != value) { best = value; winner = k; }
        }
        y[(long long)r * channels + c] = T(best);
        choice[(long long)r * channels + c] = winner;
    }
}

template <typename T>
__global__ void max_unpool(const T* delta, const unsigned char* choice, T* dx, int rows, int height, int width,
                           int channels, int out_height, int out_width, int size, int stride) {
    int r = row();
    if (r >= rows) return;
    int left = r % width, top = r / width % height, image = r / width / height;
    int first_i = top < size ? 0 : (top - size) / stride + 1, end_i = top / stride + 1;
    int first_j = left < size ? 0 : (left - size) / stride + 1, end_j = left / stride + 1;
    if (end_i > out_height) end_i = out_height;
    if (end_j > out_width) end_j = out_width;
    for (COLUMNS(c, channels)) {
        wide<T> sum = 0;
        for (int i = first_i; i < end_i; i++)
#pragma unroll 1
            for (int j = first_j; j < end_j; j++) {
                long long window = (((long long)image * out_height + i) * out_width + j) * channels + c;
                if (choice[window] == (top - i * stride) * size + left - j * stride) sum += wide<T>(delta[window]);
            }
        dx[(long long)r * channels + c] = T(sum);
    }
}
"""


def convolve(x: Any, kernel: Any, stride: int, padding: int) -> Any:
    """Convolve images (batch, height, width, in) with a kernel (out, kh, kw, in)."""
    xp, size = namespace(x, kernel), kernel.shape[1:3]
    shape = tuple((length + 2 * padding - k) // stride + 1 for length, k in zip(x.shape[1:3], size, strict=True))
    matrix = kernel.reshape(kernel.shape[0], -1).T
    result = xp.empty((x.shape[0] * shape[0] * shape[1], kernel.shape[0]), dtype=xp.result_type(x, kernel))
    for part, patches in _patches(x, size, shape, stride, padding):
        xp.matmul(patches, matrix, out=result[part])
    return result.reshape(x.shape[0], *shape, kernel.shape[0])


def convolve_grad(x: Any, delta: Any, size: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the gradient of the kernel, summed over batch and positions, in order of slices of images."""
    xp, features = namespace(x, delta), delta.shape[3]
    flat = delta.reshape(-1, features)
    total = xp.zeros((features, size[0] * size[1] * x.shape[3]), dtype=xp.result_type(x, delta))
    for part, patches in _patches(x, size, delta.shape[1:3], stride, padding):
        total += flat[part].T @ patches
    return total.reshape(features, *size, x.shape[3])


def convolve_pull(delta: Any, kernel: Any, shape: tuple[int, int], stride: int, padding: int) -> Any:
    """Return the error at the input: as a convolution with the kernel turned around where errors are narrower."""
    xp = namespace(delta, kernel)
    out, kh, kw, features = kernel.shape
    if stride == 1 and kh == kw > padding and out <= features:
        turned = xp.permute_dims(xp.flip(kernel, axis=(1, 2)), (3, 1, 2, 0))
        return convolve(delta, turned, 1, kh - 1 - padding)
    dx = xp.empty((delta.shape[0], *shape, features), dtype=xp.result_type(delta, kernel))
    matrix, positions = kernel.reshape(out, -1), delta.shape[1:3]
    together = _together(positions, matrix.shape[1] * dx.dtype.itemsize)
    for start in range(0, delta.shape[0], together):
        part = dx[start : start + together]
        patches = delta[start : start + together].reshape(-1, out) @ matrix
        _cuda.launch(
            SOURCE, "col2im", dx.dtype, part.shape[0] * shape[0] * shape[1], features,
            patches, part, part.shape[0] * shape[0] * shape[1], *shape, features, *positions, kh, kw, stride, padding,
        )  # fmt: skip
    return dx


def _together(positions: tuple[int, int], size: int) -> int:
    """Return how many images have their patches, of `size` bytes each, in memory at a time."""
    return max(1, BUFFER // (positions[0] * positions[1] * size))


def _patches(
    x: Any, size: tuple[int, int], positions: tuple[int, int], stride: int, padding: int
) -> Iterator[tuple[slice, Any]]:
    """Yield rows of the result, and the patches (rows, kh * kw * in) they are made of; valid until the next."""
    images, height, width, channels = x.shape
    pixels, columns, xp = positions[0] * positions[1], size[0] * size[1] * channels, namespace(x)
    if tuple(size) == (1, 1) and padding == 0:
        yield slice(0, images * pixels), x[:, ::stride, ::stride].reshape(-1, channels)
        return
    x, together = xp.ascontiguousarray(x), _together(positions, columns * x.dtype.itemsize)
    buffer = xp.empty((min(together, images) * pixels, columns), dtype=x.dtype)
    for start in range(0, images, together):
        part = x[start : start + together]
        rows = part.shape[0] * pixels
        _cuda.launch(
            SOURCE, "im2col", x.dtype, rows, size[1] * channels,
            part, buffer, rows, height, width, channels, *positions, *size, stride, padding,
        )  # fmt: skip
        yield slice(start * pixels, start * pixels + rows), buffer[:rows]


def max_pool(x: Any, size: int, stride: int) -> tuple[Any, Any]:
    """Return the largest entries of windows, and which they are."""
    xp, (images, height, width, channels) = namespace(x), x.shape
    shape = ((height - size) // stride + 1, (width - size) // stride + 1)
    rows = images * shape[0] * shape[1]
    y = xp.empty((images, *shape, channels), dtype=x.dtype)
    choice = xp.empty(y.shape, dtype=xp.uint8)
    _cuda.launch(
        SOURCE, "max_pool", x.dtype, rows, channels,
        xp.ascontiguousarray(x), y, choice, rows, height, width, channels, *shape, size, stride,
    )  # fmt: skip
    return y, choice


def max_unpool(delta: Any, choice: Any, shape: tuple[int, int], size: int, stride: int) -> Any:
    """Return errors at the places of the largest entries, added where windows overlap, and zeros elsewhere."""
    xp, (images, *positions, channels) = namespace(delta, choice), delta.shape
    dx = xp.empty((images, *shape, channels), dtype=delta.dtype)
    rows = images * shape[0] * shape[1]
    _cuda.launch(
        SOURCE, "max_unpool", delta.dtype, rows, channels,
        xp.ascontiguousarray(delta), xp.ascontiguousarray(choice), dx, rows, *shape, channels, *positions, size, stride,
    )  # fmt: skip
    return dx
