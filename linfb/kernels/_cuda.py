"""CUDA kernels from source: compiled by CuPy on first use for a precision, kept, and started.

A source holds templates over the precision T of its arrays. Sums are taken in ``wide<T>``, in which all real numbers
are handed over; integers are ``int``. A thread works on one row, ``row()``, and on its ``COLUMNS``, those of neighbours
next to each other; rows times columns is what the caller makes of it. No kernel adds to memory that another thread
writes, so that results are the same bits in every run.

Enough reads must be on their way: for ReLU, which reads 4 of 9 bytes, at 3.35 TB/s in all and 0.6 to 1 us from request
to answer, 7 to 11 kB on each multiprocessor of an H100; 2048 threads with one float each have 8, half of it in half
precision. Kernels that read one array once give every thread :data:`EACH` entries, all of which are read before one is
written (``Several``).

Numbers that change from step to step are handed over in device memory (:func:`held`), so that a captured step
(:mod:`linfb.engine.graph`) finds the new ones there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import Any

import numpy as np

from linfb._live import Live
from linfb.backend import namespace

__all__ = ["EACH", "PRELUDE", "TYPES", "WARP", "block", "held", "holding", "launch", "names", "wide"]

TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float", "float64": "double"}
THREADS = 256
WARP = 32
EACH = 4
OPTIONS = ("-std=c++17",)

PRELUDE = """
#include <cuda_fp16.h>
#include <cuda_bf16.h>

template <typename T> struct Wide { typedef float type; };
template <> struct Wide<double> { typedef double type; };
template <typename T> using wide = typename Wide<T>::type;

__device__ inline int row() { return blockIdx.x * blockDim.y + threadIdx.y; }
#define COLUMNS(c, n) int c = blockIdx.y * blockDim.x + threadIdx.x; c < (n); c += gridDim.y * blockDim.x

// The entries of a thread, a block apart: neighbours have neighbours. For kernels started with one column.
#define EACH 4
#define ENTRIES(k, i, n) \
    int k = 0, i = blockIdx.x * (EACH * blockDim.y) + threadIdx.y; k < EACH && i < (n); k++, i += blockDim.y
template <typename V> struct Several {
    V at[EACH];
    __device__ Several(const V* from, int size) {
#pragma unroll
        for (ENTRIES(k, i, size)) at[k] = from[i];
    }
};
"""


def block(columns: int, most: int = THREADS) -> tuple[int, int]:
    """Return how many threads of a block share a row (`most` at most: a power of two or some warps), and its rows."""
    own = -(-columns // -(-columns // most)) if columns > 0 else 1
    across = 1 << (own - 1).bit_length() if own <= WARP else -(-own // WARP) * WARP
    return across, THREADS // across


def launch(source: str, name: str, dtype: Any, rows: int, columns: int, *arguments: Any, most: int = THREADS) -> None:
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
        How many rows there are to work on, and how many threads to put to one: a block has up to 256 of them.
    *arguments
        As the kernel takes them: arrays, integers (``int``), floats (``wide<T>``), ``numpy.uint64``; None is a null
        pointer.
    most : int
        Of :func:`block`.

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
    across, along = block(columns, most)
    grid = (-(-rows // along), max(1, -(-columns // across)))
    handed = tuple(_argument(argument, dtype) for argument in arguments)
    function(source, name, TYPES[dtype.name])(grid, (across, along), handed)


def wide(dtype: Any) -> type:
    """Return the type in which sums are taken and numbers are handed over."""
    return np.float64 if dtype.name == "float64" else np.float32


def _argument(value: Any, dtype: Any) -> Any:
    if hasattr(value, "flags") and value.ndim > 0:
        if value.dtype.name in TYPES and value.dtype not in (dtype, wide(dtype)):
            raise TypeError(f"arrays must agree: one is of dtype {dtype}, another of {value.dtype}")
        if not value.flags.c_contiguous:
            raise ValueError(f"kernels for GPUs take C-contiguous arrays, got one with strides {value.strides}")
        return value
    if value is None:
        return np.uintp(0)
    if isinstance(value, float):
        return wide(dtype)(value)
    if isinstance(value, int | np.signedinteger):
        if abs(int(value)) >= 2**31:
            raise ValueError(f"kernels for GPUs work on arrays of fewer than 2**31 entries, got {value}")
        return np.int32(value)
    return value


_rows: ContextVar[Mapping[str, Callable[[Live], Any]]] = ContextVar("rows")


@contextmanager
def holding(rows: Mapping[str, Callable[[Live], Any]]) -> Iterator[None]:
    """Let :func:`held` find live numbers for the duration of a block.

    Parameters
    ----------
    rows : mapping
        From the name of a dtype to what returns the place in device memory of a live value.
    """
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def held(numbers: Any, dtype: Any, like: Any) -> Any:
    """Return numbers in device memory; live ones are where the present step finds them.

    Parameters
    ----------
    numbers : float, sequence of float, array on the host, or Live of one of these
    dtype : dtype
        What they are rounded to.
    like : array
        Of the library and on the device to use.

    Notes
    -----
    What is not live is kept for the next call with the same numbers: those of an optimiser are the same for all arrays
    of a network.
    """
    dtype = np.dtype(dtype)
    if isinstance(numbers, Live):
        return _rows.get()[dtype.name](numbers)
    array = np.ascontiguousarray(numbers, dtype=dtype)
    return _uploaded(array.tobytes(), np.shape(numbers), dtype.name, namespace(like), str(like.device))


@lru_cache(maxsize=64)
def _uploaded(data: bytes, shape: tuple[int, ...], dtype: str, xp: Any, device: str) -> Any:
    return xp.asarray(np.frombuffer(data, dtype=dtype).reshape(shape))


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
