"""Counter-based uniform numbers on a CUDA device, one thread each.

Twin of :mod:`linfb.kernels.reference_random`, where it is explained, with the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from linfb._checks import integer
from linfb._live import Live
from linfb.backend import namespace
from linfb.kernels import _cuda
from linfb.kernels._cuda import held

__all__ = ["uniform"]

BITS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
SOURCE = """
template <typename T>
__global__ void uniform(T* out, const unsigned long long* stored, unsigned long long state, int bits, wide<T> scale,
                        int size) {
    int i = row();
    if (i >= size) return;
    if (stored) state = *stored;
    unsigned long long z = state + (i + 1ull) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    out[i] = T(wide<T>(z >> (64 - bits)) * scale);
}
"""


def uniform(state: int | Live, shape: tuple[int, ...], like: Any) -> Any:
    """Return uniform numbers in [0, 1)."""
    stored, start = None, 0
    if isinstance(state, Live):
        stored = held(state, np.uint64, like)
    else:
        start = integer("state", state, at_least=0, at_most=2**64 - 1)
    if like.dtype.name not in BITS:
        raise TypeError(f"like must be an array of real floating point numbers, got dtype {like.dtype}")
    bits, size = BITS[like.dtype.name], math.prod(shape)
    out = namespace(like).empty(shape, dtype=like.dtype)
    _cuda.launch(SOURCE, "uniform", like.dtype, size, 1, out, stored, np.uint64(start), bits, 2.0**-bits, size)
    return out
