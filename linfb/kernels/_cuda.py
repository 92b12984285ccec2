"""CUDA kernels from source: compiled by CuPy on first use for a precision, kept, and started.

A source holds templates over the precision T of its arrays. Sums are taken in ``wide<T>``, in which all real numbers
are handed over; integers are ``int``. A thread works on one row, ``row()``, and on every ``blockDim.x``-th of its
columns; rows times columns is what the caller makes of it. No kernel adds to memory that another thread writes, so that
results are the same bits in every run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

__all__ = ["PRELUDE", "TYPES", "launch", "names"]

TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float", "float64": "double"}
THREADS = 256
OPTIONS = ("-std=c++17",)

PRELUDE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>

template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };
template <typename T> using wide = typename Wide<T>::type;

__device__ inline int row() { return blockIdx.x * blockDim.y + threadIdx.y; }
#define COLUMNS(c, n) int c = threadIdx.x; c < (n); c += blockDim.x
"""


def launch(source: str, name: str, dtype: Any, rows: int, columns: int, *arguments: Any) -> None:
    """Start a kernel on the device in use, on the stream in use.

    Parameters
    ----------
    source : str
        CUDA C++ that continues :data:`PRELUDE`.
    name : str
        Of a kernel in it.
    dtype : dtype
        What to put for T, a key of :data:`TYPES`.
    rows, columns : int
        How many rows there are to work on, and how many threads to put to one at most.
    *arguments
        As the kernel takes them: arrays, integers (``int``), floats (``wide<T>``), ``numpy.uint64``; None is a null
        pointer.

    Raises
    ------
    TypeError
        For another dtype, or an array of real numbers that are neither of it nor of the one of sums.
    ValueError
        If an array is not C-contiguous, or an integer beyond 32 bits: arrays may hold 2,147,483,647 entries.
    """
    if dtype.name not in TYPES:
        raise TypeError(f"kernels take arrays of dtype {', '.join(TYPES)}, got {dtype.name}")
    if rows == 0:
        return
    across = min(THREADS, 1 << (columns - 1).bit_length())
    along = THREADS // across
    wide = np.float64 if dtype.name == "float64" else np.float32
    handed = tuple(_argument(argument, dtype, wide) for argument in arguments)
    function(source, name, TYPES[dtype.name])((-(-rows // along),), (across, along), handed)


def _argument(value: Any, dtype: Any, wide: type) -> Any:
    if hasattr(value, "flags") and value.ndim > 0:
        if value.dtype.name in TYPES and value.dtype not in (dtype, wide):
            raise TypeError(f"arrays must agree: one is of dtype {dtype}, another of {value.dtype}")
        if not value.flags.c_contiguous:
            raise ValueError(f"kernels for GPUs take C-contiguous arrays, got one with strides {value.strides}")
        return value
    if value is None:
        return np.uintp(0)
    if isinstance(value, float):
        return wide(value)
    if isinstance(value, int | np.signedinteger):
        if abs(int(value)) >= 2**31:
            raise ValueError(f"kernels for GPUs work on arrays of fewer than 2**31 entries, got {value}")
        return np.int32(value)
    return value


def names(source: str) -> list[str]:
    """Return the names of the kernels in a source."""
    return re.findall(r"__global__ void (\w+)\(", source)


def function(source: str, name: str, type: str) -> Callable[..., None]:
    """Return a kernel for one precision, as a function of grid, block and arguments."""
    return _module(source, type)[name]


@cache
def _module(source: str, type: str) -> dict[str, Callable[..., None]]:
    import cupy

    found = {name: f"{name}<{type}>" for name in names(source)}
    module = cupy.RawModule(code=PRELUDE + source, options=OPTIONS, name_expressions=tuple(found.values()))
    return {name: module.get_function(expression) for name, expression in found.items()}
