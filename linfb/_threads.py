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
from functools import cache, partial
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
    """A thread that shares products while it is awake, and can be given any work."""

    def __init__(self, pool: _Pool, number: int) -> None:
        self._pool, self._number = pool, number
        self._sleep, self._end = allocate_lock(), allocate_lock()
        self._sleep.acquire()
        self._end.acquire()
        self._work: Callable[[], Any] | None = None
        self._error: BaseException | None = None
        self._thread = Thread(target=self._loop, name="linfb", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            if not _compiled().serve(self._pool.words, self._number):
                self._sleep.acquire()
                continue
            if self._work is None:
                return
            try:
                self._work()
            except BaseException as error:
                self._error = error
            self._work = None  # lets go of its arrays
            self._end.release()

    def wake(self) -> None:
        """Make sure that it does not sleep."""
        if _compiled().wake(self._pool.words, self._number):
            self._sleep.release()

    def start(self, work: Callable[[], Any] | None) -> None:
        """Give it work; None ends it."""
        self._work = work
        _compiled().call(self._pool.words, self._number)
        self.wake()

    def wait(self) -> BaseException | None:
        """Return, after the end of the work, the error that ended it."""
        self._end.acquire()
        error, self._error = self._error, None
        return error

    def stop(self) -> None:
        self.start(None)
        self._thread.join()


class _Pool:
    """Helpers, and the words by which they and the thread that uses them share products."""

    def __init__(self, helpers: int) -> None:
        self.words = _compiled().shared(helpers)
        self.helpers = tuple(_Helper(self, number) for number in range(helpers))


@cache
def _compiled() -> Any:
    """Return the module of compiled waiting and products, imported where threads are used."""
    import linfb.kernels.cpu_pool

    return linfb.kernels.cpu_pool


_pool: ContextVar[_Pool | None] = ContextVar("pool", default=None)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run slices on `n` threads and BLAS on one, in a workspace, for the duration of a block.

    Parameters
    ----------
    n : int
        Number of Python threads, at least 1.
    """
    import scipy.linalg.cython_blas  # noqa: F401  the BLAS of products, which has to be there to be told
    from threadpoolctl import threadpool_limits

    integer("threads", n, at_least=1)
    pool = _Pool(n - 1)
    token = _pool.set(pool)
    try:
        with threadpool_limits(1, user_api="blas"), workspace():
            yield
    finally:
        _pool.reset(token)
        for helper in pool.helpers:
            helper.stop()


def sliced(*arrays: Any) -> bool:
    """Return whether products of these arrays are to be done in fixed slices."""
    return _pool.get() is not None and all(isinstance(array, np.ndarray) for array in arrays)


def _multiplied(*arrays: np.ndarray) -> bool:
    """Return whether the pool can multiply these arrays: of one type that BLAS has."""
    return sliced(*arrays) and arrays[0].dtype.char in "fd" and all(a.dtype == arrays[0].dtype for a in arrays)


def for_slices(function: Callable[[int, int], Any], length: int, size: int) -> list[Any]:
    """Call ``function(start, stop)`` on consecutive slices and return what it returns, in their order.

    Parameters
    ----------
    function : callable
        Must write to disjoint places. Inside of it everything is one plain call again.
    length, size : int
        What is cut, and into slices of how much; the last may be shorter.
    """
    pool = _pool.get()
    if length <= size:
        token = _pool.set(None)
        try:
            return [function(0, length)] if length else []
        finally:
            _pool.reset(token)
    bounds = [(start, min(start + size, length)) for start in range(0, length, size)]
    results: list[Any] = [None] * len(bounds)
    turn = count()

    def work() -> None:
        while (i := next(turn)) < len(bounds):
            results[i] = function(*bounds[i])

    helpers = pool.helpers[: len(bounds) - 1] if pool is not None else ()
    token = _pool.set(None)
    errors: list[BaseException | None] = []
    try:
        for helper in helpers:
            helper.start(partial(copy_context().run, work))
        try:
            work()
        finally:
            errors = [helper.wait() for helper in helpers]
    finally:
        _pool.reset(token)
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
    if not _multiplied(x, matrix):
        return flat @ matrix if x.ndim <= 2 else reshape(flat @ matrix, *x.shape[:-1], matrix.shape[1])
    n, many = len(flat), math.prod(x.shape[1:-1]) >= POSITIONS
    result = empty((n, matrix.shape[1]), x.dtype)
    if many and _is_narrow(matrix):
        from linfb.kernels.cpu_products import narrow, packed

        panels = packed(matrix)
        for_slices(lambda a, b: narrow(flat[a:b], panels, result[a:b]), n, max(ROWS, -(-n // SUMS)))
        return result.reshape(*x.shape[:-1], matrix.shape[1])

    size = MANY_ROWS if many else ROWS
    if not many and ROWS * matrix.size > SMALL:  # with less, BLAS may have another way for few rows than for many
        whole = n // (2 * ROWS) * (2 * ROWS)
        _pieces(flat[:whole], matrix, result[:whole], 2 * ROWS)
    else:
        whole = 0
    rest = (n - whole) // size * size
    _pieces(flat[whole : whole + rest], matrix, result[whole : whole + rest], size)
    if left := n - whole - rest:
        padded = np.zeros((size, flat.shape[1]), x.dtype)
        padded[:left] = flat[-left:]
        product = np.empty((size, matrix.shape[1]), x.dtype)
        _pieces(padded, matrix, product, size)
        result[-left:] = product[:left]
    return result.reshape(*x.shape[:-1], matrix.shape[1])


def _pieces(x: np.ndarray, matrix: np.ndarray, out: np.ndarray, size: int) -> None:
    """Set ``out = x @ matrix``, in blocks of so many rows, or where these are few in pieces of columns."""
    if out.size == 0:
        return
    module = _compiled()
    blocks = len(x) // size
    if size == 2 * ROWS and blocks < 4:
        product = module.described(x, matrix, out, module.COLUMNS, 2 * COLUMNS)
        _share(product, items=-(-out.shape[1] // (2 * COLUMNS)))
        return
    each = max(1, blocks // SUMS) if len(x) * matrix.size > SMALL else blocks
    _share(module.described(x, matrix, out, module.ROWS, size, each), items=-(-blocks // each))


def _share(*chain: tuple[list[int], Any], items: int) -> None:
    """Do products that :func:`~linfb.kernels.cpu_pool.described` describes, one after the other in every item."""
    module, pool = _compiled(), _pool.get()
    assert pool is not None
    words = pool.words
    for number, (description, _) in enumerate(chain):
        at = module.PRODUCTS + module.FIELDS * number
        words[at : at + module.FIELDS] = description
    words[module.LENGTH] = len(chain)
    if items > 1:
        for number, helper in enumerate(pool.helpers):
            if module.sleeps(words, number):
                helper.wake()
    module.multiply(words, items)


def _is_narrow(matrix: np.ndarray) -> bool:
    """Return whether a product has too few columns for BLAS to be fast, and only whole vectors of them."""
    bytes_of_row = matrix.shape[1] * matrix.itemsize
    return 0 < bytes_of_row <= NARROW and bytes_of_row % 64 == 0


def products(a: Any, b: Any) -> Any:
    """Return ``a @ b``; matrices (run, ..., ...) in slices of runs."""
    if not (a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0] and _multiplied(a, b)):
        return a @ b
    result = empty((*a.shape[:2], b.shape[2]), a.dtype)
    if result.size:
        module = _compiled()
        each = max(1, WORK // max(1, a.shape[1] * a.shape[2] * b.shape[2]))
        _share(module.described(a, b, result, module.NOTHING, 1, each), items=-(-len(a) // each))
    return result


def _merged(x: Any) -> Any:
    """Return x (run, ..., feature) with all rows of a run on one axis."""
    return x if x.ndim <= 3 else reshape(x, x.shape[0], -1, x.shape[-1])


def columns(delta: Any, x: Any, leading: int = 0, plus: tuple[Any, Any] | None = None) -> Any:
    """Return the products of all features of `delta` with all of `x`, summed over rows, shape (features, features).

    Of an ensemble, `leading` is 1: a run axis comes first, in `x` only if there are more axes than (row, feature).
    Those of a second pair of arrays, `plus`, are added.
    """
    if leading:
        result = products(transpose(_merged(delta)), _merged(x))
        return result if plus is None else add(result, columns(*plus, leading))
    left, right = reshape(delta, -1, delta.shape[-1]), reshape(x, -1, x.shape[-1])
    if not _multiplied(left, right):
        result = transpose(left) @ right
        return result if plus is None else result + columns(*plus)
    n, shape = left.shape[0], (left.shape[1], right.shape[1])
    result, module = empty(shape, left.dtype), _compiled()
    if result.size == 0:
        return result
    if n > TALL * max(shape):
        size = -(-n // SUMS)
        parts = empty((-(-n // size), *shape), left.dtype)
        for_slices(lambda a, b: np.matmul(left[a:b].T, right[a:b], out=parts[a // size]), n, size)
        for_slices(lambda a, b: np.sum(parts[:, a:b], axis=0, out=result[a:b]), shape[0], COLUMNS)
        return result if plus is None else add(result, columns(*plus))
    cut, most = (module.ROWS, shape[0]) if shape[0] >= shape[1] else (module.COLUMNS, shape[1])
    size = -(-most // (SUMS * COLUMNS)) * COLUMNS
    pieces = -(-most // size)
    each = 1 if n * shape[0] * shape[1] > SMALL else pieces
    chain = [module.described(left.T, right, result, cut, size, each)]
    if plus is not None:
        chain.append(module.described(plus[0].T, plus[1], result, cut, size, each, plus=True))
    _share(*chain, items=-(-pieces // each))
    return result
