"""Threads outside of BLAS: fixed slices of the work on any number of threads, so that bits do not depend on it.

Inside ``with threads(n):`` BLAS runs on one thread (the caller's setting comes back afterwards) and slices go to n
Python threads. Outside of it everything is one plain call. BLAS rounds differently for different numbers of rows, so
what must not depend on the batch size multiplies rows in blocks of a fixed size: of few rows where there are few, and
otherwise of so many that BLAS, which copies the matrix once per block, spends little on that. Blocks of both sizes are
whole tiles of its kernels; where BLAS gives a row the same bits in every place of one, it does so in both.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import count
from threading import Thread
from typing import Any

import numpy as np

from linfb._checks import integer
from linfb._workspace import empty, workspace
from linfb.backend import reshape, transpose

__all__ = ["add", "columns", "for_slices", "rows", "sliced", "threads"]

ROWS = 64
MANY_ROWS = 8 * ROWS
COLUMNS = 64
TALL = 8
SUMS = 8
ENTRIES = 1 << 16
NARROW = 256


class _Helper:
    """A thread that waits for work; handing it over and waiting for its end are one lock each."""

    def __init__(self) -> None:
        self._begin, self._end = allocate_lock(), allocate_lock()
        self._begin.acquire()
        self._end.acquire()
        self._work: Callable[[], Any] | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._loop, name="linfb", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            self._begin.acquire()
            if self._work is None:
                return
            try:
                self._work()
            except BaseException as error:
                self._error = error
            self._work = None  # lets go of its arrays
            self._end.release()

    def start(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._begin.release()

    def wait(self) -> BaseException | None:
        """Return, after the end of the work, the error that ended it."""
        self._end.acquire()
        error, self._error = self._error, None
        return error

    def stop(self) -> None:
        self._begin.release()
        self._thread.join()


_workers: ContextVar[tuple[tuple[_Helper, ...], int]] = ContextVar("workers", default=((), 0))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run slices on `n` threads and BLAS on one, in a workspace, for the duration of a block.

    Parameters
    ----------
    n : int
        Number of Python threads, at least 1.
    """
    from threadpoolctl import threadpool_limits

    integer("threads", n, at_least=1)
    helpers = tuple(_Helper() for _ in range(n - 1))
    token = _workers.set((helpers, n))
    try:
        with threadpool_limits(1, user_api="blas"), workspace():
            yield
    finally:
        _workers.reset(token)
        for helper in helpers:
            helper.stop()


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

    helpers = _workers.get()[0][: max(0, len(bounds) - 1)]
    token = _workers.set(((), 0))
    errors: list[BaseException | None] = []
    try:
        for helper in helpers:
            helper.start(partial(copy_context().run, work))
        try:
            work()
        finally:
            errors = [helper.wait() for helper in helpers]
    finally:
        _workers.reset(token)
    for error in errors:
        if error is not None:
            raise error
    return results


def add(left: Any, right: Any) -> Any:
    """Return the sum of two arrays of one shape; in slices."""
    if not sliced(left, right) or not (left.flags.c_contiguous and right.flags.c_contiguous):
        return left + right
    result = empty(left.shape, np.result_type(left, right))
    first, second, out = left.reshape(-1), right.reshape(-1), result.reshape(-1)
    for_slices(lambda a, b: np.add(first[a:b], second[a:b], out=out[a:b]), out.size, ENTRIES)
    return result


def rows(x: Any, matrix: Any) -> Any:
    """Return ``x @ matrix`` with features on the last axis of x; in slices, in blocks of a fixed number of rows."""
    if matrix.ndim != 2:
        return x @ matrix
    flat = x if x.ndim <= 2 else reshape(x, -1, x.shape[-1])
    if not sliced(x, matrix):
        return flat @ matrix if x.ndim <= 2 else reshape(flat @ matrix, *x.shape[:-1], matrix.shape[1])
    result = empty((flat.shape[0], matrix.shape[1]), np.result_type(x, matrix))
    if _is_narrow(flat, matrix):
        from linfb.kernels.cpu_products import narrow

        for_slices(lambda a, b: narrow(flat[a:b], matrix, result[a:b]), len(flat), max(ROWS, -(-len(flat) // SUMS)))
        return result.reshape(*x.shape[:-1], matrix.shape[1])

    def block(start: int, stop: int) -> None:
        size = MANY_ROWS if stop - start == MANY_ROWS else ROWS
        for i in range(start, stop, size):
            part, out = flat[i : i + size], result[i : i + size]
            if len(part) == size:
                np.matmul(part, matrix, out=out)
            else:
                padded = np.zeros((ROWS, flat.shape[1]), flat.dtype)
                padded[: len(part)] = part
                out[...] = (padded @ matrix)[: len(part)]

    several = len(flat) // SUMS // ROWS * ROWS
    for_slices(block, len(flat), min(max(several, ROWS), MANY_ROWS))
    return result.reshape(*x.shape[:-1], matrix.shape[1])


def _is_narrow(x: np.ndarray, matrix: np.ndarray) -> bool:
    """Return whether a product has too few columns for BLAS to be fast, and only whole vectors of them."""
    bytes_of_row = matrix.shape[1] * matrix.itemsize
    return x.dtype == matrix.dtype in (np.float32, np.float64) and 0 < bytes_of_row <= NARROW and bytes_of_row % 64 == 0


def columns(delta: Any, x: Any) -> Any:
    """Return the products of all features of `delta` with all of `x`, summed over rows, shape (features, features)."""
    left, right = reshape(delta, -1, delta.shape[-1]), reshape(x, -1, x.shape[-1])
    if not sliced(left, right):
        return transpose(left) @ right
    n, shape, dtype = left.shape[0], (left.shape[1], right.shape[1]), np.result_type(left, right)
    result = empty(shape, dtype)
    if n > TALL * max(shape):
        size = -(-n // SUMS)
        parts = empty((-(-n // size), *shape), dtype)
        for_slices(lambda a, b: np.matmul(left[a:b].T, right[a:b], out=parts[a // size]), n, size)
        for_slices(lambda a, b: np.sum(parts[:, a:b], axis=0, out=result[a:b]), shape[0], COLUMNS)
        return result

    def block(start: int, stop: int) -> None:
        if shape[0] >= shape[1]:
            np.matmul(left[:, start:stop].T, right, out=result[start:stop])
        else:
            np.matmul(left.T, right[:, start:stop], out=result[:, start:stop])

    for_slices(block, max(shape), COLUMNS)
    return result
