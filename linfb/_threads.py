"""Threads outside of BLAS: fixed slices of the work on any number of threads, so that bits do not depend on it.

Inside ``with threads(n):`` BLAS runs on one thread (the caller's setting comes back afterwards) and slices go to n
Python threads. Outside of it everything is one plain call. BLAS rounds differently for different numbers of rows, so
what must not depend on the batch size multiplies rows in blocks of a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from itertools import count
from typing import Any

import numpy as np

from linfb._checks import integer
from linfb.backend import reshape, transpose

__all__ = ["columns", "for_slices", "rows", "sliced", "threads"]

ROWS = 64
COLUMNS = 64
_workers: ContextVar[tuple[Executor | None, int]] = ContextVar("workers", default=(None, 0))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run slices on `n` threads and BLAS on one for the duration of a block.

    Parameters
    ----------
    n : int
        Number of Python threads, at least 1.
    """
    from threadpoolctl import threadpool_limits

    integer("threads", n, at_least=1)
    pool = ThreadPoolExecutor(n - 1, thread_name_prefix="linfb") if n > 1 else None
    token = _workers.set((pool, n))
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        _workers.reset(token)
        if pool is not None:
            pool.shutdown()


def sliced(*arrays: Any) -> bool:
    """Return whether products of these arrays are to be done in fixed slices."""
    return _workers.get()[1] > 0 and all(isinstance(array, np.ndarray) for array in arrays)


def for_slices(function: Callable[[int, int], Any], length: int, size: int) -> list[Any]:
    """Call ``function(start, stop)`` on consecutive slices and return what it returns, in their order.

    Parameters
    ----------
    function : callable
        Must write to disjoint places. Inside of it everything is one plain call again.
    length, size : int
        What is cut, and into slices of how much; the last may be shorter.
    """
    bounds = [(start, min(start + size, length)) for start in range(0, length, size)]
    results: list[Any] = [None] * len(bounds)
    turn = count()

    def work() -> None:
        while (i := next(turn)) < len(bounds):
            results[i] = function(*bounds[i])

    pool, n = _workers.get()
    token = _workers.set((None, 0))
    try:
        helpers = [] if pool is None else [pool.submit(copy_context().run, work) for _ in bounds[1:n]]
        work()
        for helper in helpers:
            helper.result()
    finally:
        _workers.reset(token)
    return results


def rows(x: Any, matrix: Any) -> Any:
    """Return ``x @ matrix`` with features on the last axis of x; in slices, in blocks of a fixed number of rows."""
    if matrix.ndim != 2:
        return x @ matrix
    flat = x if x.ndim <= 2 else reshape(x, -1, x.shape[-1])
    if not sliced(x, matrix):
        return flat @ matrix if x.ndim <= 2 else reshape(flat @ matrix, *x.shape[:-1], matrix.shape[1])
    result = np.empty((flat.shape[0], matrix.shape[1]), np.result_type(x, matrix))

    def block(start: int, stop: int) -> None:
        for i in range(start, stop, ROWS):
            part, out = flat[i : i + ROWS], result[i : i + ROWS]
            if len(part) == ROWS:
                np.matmul(part, matrix, out=out)
            else:
                padded = np.zeros((ROWS, flat.shape[1]), flat.dtype)
                padded[: len(part)] = part
                out[...] = (padded @ matrix)[: len(part)]

    several = max(1, flat.shape[0] // (8 * ROWS))
    for_slices(block, flat.shape[0], several * ROWS)
    return result.reshape(*x.shape[:-1], matrix.shape[1])


def columns(delta: Any, x: Any) -> Any:
    """Return the products of all features of `delta` with all of `x`, summed over rows, shape (features, features)."""
    left, right = reshape(delta, -1, delta.shape[-1]), reshape(x, -1, x.shape[-1])
    if not sliced(left, right):
        return transpose(left) @ right
    result = np.empty((left.shape[1], right.shape[1]), np.result_type(left, right))
    for_slices(
        lambda start, stop: np.matmul(left[:, start:stop].T, right, out=result[start:stop]), left.shape[1], COLUMNS
    )
    return result
