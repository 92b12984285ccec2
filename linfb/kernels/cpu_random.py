"""Counter-based uniform numbers in one pass over memory, compiled by numba, in slices for threads.

Twin of :mod:`linfb.kernels.reference_random`, where it is explained, with the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from linfb._checks import integer
from linfb._threads import for_slices
from linfb._workspace import empty
from linfb.kernels.reference_random import FIRST, SECOND, STEP

__all__ = ["uniform"]

SLICE = 1 << 16
_STEP, _FIRST, _SECOND = np.uint64(STEP), np.uint64(FIRST), np.uint64(SECOND)


def uniform(state: int, shape: tuple[int, ...], like: Any) -> Any:
    """Return uniform numbers in [0, 1)."""
    start = np.uint64(integer("state", state, at_least=0, at_most=2**64 - 1))
    if like.dtype not in (np.float32, np.float64):
        raise TypeError(f"like must be an array of single or double precision, got dtype {like.dtype}")
    out = empty(math.prod(shape), like.dtype)
    fill = _single if like.dtype == np.float32 else _double
    for_slices(lambda first, last: fill(out, start, first, last), out.size, SLICE)
    return out.reshape(shape)


@njit(cache=True, nogil=True, error_model="numpy")
def _mixed(z):
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True, error_model="numpy")
def _double(out, state, first, last):
    for i in range(first, last):
        out[i] = np.int64(_mixed(state + np.uint64(i + 1) * _STEP) >> np.uint64(11)) * 2.0**-53


@njit(cache=True, nogil=True, error_model="numpy")
def _single(out, state, first, last):
    for i in range(first, last):
        z = np.int32(_mixed(state + np.uint64(i + 1) * _STEP) >> np.uint64(40))
        out[i] = np.float32(z) * np.float32(2.0**-24)
