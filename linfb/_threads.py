"""Threads outside of BLAS: fixed slices of the work on any number of threads, so that bits do not depend on it.

Inside ``with threads(n):`` BLAS runs on one thread (the caller's setting comes back afterwards) and slices go to n
Python threads. Outside of it everything is one plain call. BLAS rounds differently for different numbers of rows, so
what must not depend on the batch size multiplies rows in blocks of a fixed size: of few rows where there are few, and
otherwise of so many that BLAS, which copies the matrix once per block, spends little on that. Blocks of both sizes are
whole tiles of its kernels; where BLAS gives a row the same bits in every place of one, it does so in both.
"""

from __future__ import annotations

import math
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

__all__ = ["add", "columns", "for_slices", "later", "products", "rows", "sliced", "threads", "together"]

ROWS = 64  # of a product
MANY_ROWS = 256  # of one with many positions to a sample,
POSITIONS = 32  # at least so many
COLUMNS = 128  # of one summed over rows
TALL = 8  # as many rows for each of the features are summed in parts,
SUMS = 8  # at most so many
SMALL = 1 << 20  # multiplications that are not worth a thread
WORK = 1 << 21  # multiplications of a slice of runs
ENTRIES = 1 << 16  # of a sum
NARROW = 256  # bytes of a row


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
    if length <= size:
        token = _workers.set(((), 0))
        try:
            return [function(0, length)] if length else []
        finally:
            _workers.reset(token)
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


_waiting: ContextVar[list[tuple[Callable[[int, int], Any], int, int]] | None] = ContextVar("waiting", default=None)


@contextmanager
def together() -> Iterator[None]:
    """Hand all slices that :func:`later` cuts in a block to the threads at once, at its end."""
    waiting: list[tuple[Callable[[int, int], Any], int, int]] = []
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
    size = 1 if sum(stop - start for _, start, stop in waiting) > ENTRIES else len(waiting)

    def some(first: int, last: int) -> None:
        for function, start, stop in waiting[first:last]:
            function(start, stop)

    for_slices(some, len(waiting), size)


def later(function: Callable[[int, int], Any], length: int, size: int) -> None:
    """Call a function on consecutive slices, as :func:`for_slices` does: at the end of a block of :func:`together`."""
    waiting = _waiting.get()
    if waiting is None:
        for_slices(function, length, size)
    else:
        waiting += [(function, start, min(start + size, length)) for start in range(0, length, size)]


def add(left: Any, right: Any) -> Any:
    """Return the sum of two arrays of one shape; in slices."""
    if not sliced(left, right) or not (left.flags.c_contiguous and right.flags.c_contiguous):
        return left + right
    result = empty(left.shape, np.result_type(left, right))
    first, second, out = left.reshape(-1), right.reshape(-1), result.reshape(-1)
    for_slices(lambda a, b: np.add(first[a:b], second[a:b], out=out[a:b]), out.size, ENTRIES)
    return result


def rows(x: Any, matrix: Any) -> Any:
    """Return ``x @ matrix`` with features on the last axis of x; in slices, in blocks of a fixed number of rows.

    Of an ensemble, matrices have a leading run axis, and x has it too unless it is (row, feature), the same for all.
    """
    if matrix.ndim != 2:
        y = products(_merged(x), matrix)
        return y if x.ndim <= 3 else reshape(y, *x.shape[:-1], matrix.shape[-1])
    flat = x if x.ndim <= 2 else reshape(x, -1, x.shape[-1])
    if not sliced(x, matrix):
        return flat @ matrix if x.ndim <= 2 else reshape(flat @ matrix, *x.shape[:-1], matrix.shape[1])
    result = empty((flat.shape[0], matrix.shape[1]), np.result_type(x, matrix))
    if _is_narrow(flat, matrix):
        from linfb.kernels.cpu_products import narrow, packed

        panels = packed(matrix)
        for_slices(lambda a, b: narrow(flat[a:b], panels, result[a:b]), len(flat), max(ROWS, -(-len(flat) // SUMS)))
        return result.reshape(*x.shape[:-1], matrix.shape[1])

    size = MANY_ROWS if math.prod(x.shape[1:-1]) >= POSITIONS else ROWS

    def block(start: int, stop: int) -> None:
        for i in range(start, stop, size):
            part, out = flat[i : i + size], result[i : i + size]
            if len(part) == size:
                np.matmul(part, matrix, out=out)
            else:
                padded = np.zeros((size, flat.shape[1]), flat.dtype)
                padded[: len(part)] = part
                out[...] = (padded @ matrix)[: len(part)]

    several = max(1, len(flat) // (SUMS * size)) * size
    for_slices(block, len(flat), several if len(flat) * matrix.size > SMALL else len(flat))
    return result.reshape(*x.shape[:-1], matrix.shape[1])


def _is_narrow(x: np.ndarray, matrix: np.ndarray) -> bool:
    """Return whether a product has too few columns for BLAS to be fast, and only whole vectors of them."""
    bytes_of_row = matrix.shape[1] * matrix.itemsize
    return x.dtype == matrix.dtype in (np.float32, np.float64) and 0 < bytes_of_row <= NARROW and bytes_of_row % 64 == 0


def products(a: Any, b: Any) -> Any:
    """Return ``a @ b``; matrices (run, ..., ...) in slices of runs."""
    if not (a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0] and sliced(a, b)):
        return a @ b
    result = empty((*a.shape[:2], b.shape[2]), np.result_type(a, b))
    each = max(1, a.shape[1] * a.shape[2] * b.shape[2])
    for_slices(lambda i, j: np.matmul(a[i:j], b[i:j], out=result[i:j]), len(a), max(1, WORK // each))
    return result


def _merged(x: Any) -> Any:
    """Return x (run, ..., feature) with all rows of a run on one axis."""
    return x if x.ndim <= 3 else reshape(x, x.shape[0], -1, x.shape[-1])


def columns(delta: Any, x: Any, leading: int = 0) -> Any:
    """Return the products of all features of `delta` with all of `x`, summed over rows, shape (features, features).

    Of an ensemble, `leading` is 1: a run axis comes first, in `x` only if there are more axes than (row, feature).
    """
    if leading:
        return products(transpose(_merged(delta)), _merged(x))
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

    most = max(shape)
    size = -(-most // (SUMS * COLUMNS)) * COLUMNS

    def blocks(first: int, last: int) -> None:
        for i in range(first, last, size):
            part = slice(i, i + size)
            if shape[0] >= shape[1]:
                np.matmul(left[:, part].T, right, out=result[part])
            else:
                np.matmul(left.T, right[:, part], out=result[:, part])

    for_slices(blocks, most, size if n * shape[0] * shape[1] > SMALL else most)
    return result
