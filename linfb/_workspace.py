"""Memory that the arrays of a training step take in turn.

Fresh memory is slow: every first touch of a page goes through the operating system. Inside ``with workspace():``
:func:`empty` hands out memory again as soon as nobody holds an array in it, so that after the first steps of a training
run hardly any is asked for. Whoever keeps a result keeps its memory: it is handed out again only when the last
reference to it is gone, and no lifetimes have to be declared.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import numpy as np

__all__ = ["Workspace", "empty", "workspace"]

SMALLEST = 1 << 14
PAGE = 1 << 12
ALIGNMENT = 64


class Workspace:
    """Blocks of memory, each in use for as long as an array in it is referred to.

    Attributes
    ----------
    nbytes : int
        Memory of all blocks, in use or not. An array is put where it wastes at most half.

    Examples
    --------
    >>> memory = Workspace()
    >>> x = memory.empty((64, 64), np.float64)
    >>> y = memory.empty((64, 64), np.float64)  # x is in use
    >>> del x
    >>> z = memory.empty((32, 64, 2), np.float64)  # where x was
    >>> memory.nbytes // y.nbytes
    2
    """

    def __init__(self) -> None:
        self._blocks: dict[int, list[tuple[np.ndarray, int]]] = {}
        self._lock = Lock()
        held = [(np.empty(1), 0)]
        self._idle = sys.getrefcount(held[0][0])  # of an object that only one tuple refers to

    @property
    def nbytes(self) -> int:
        """Memory of all blocks, in bytes."""
        return sum(block.nbytes for blocks in self._blocks.values() for block, _ in blocks)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array whose entries are not set; small ones do not come from the blocks."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype)
        pages = -(-size // PAGE)
        with self._lock:
            blocks = self._blocks.setdefault(pages, [])
            found = self._unused(blocks)
            if found is None:
                larger = sorted(size for size in self._blocks if pages < size <= 2 * pages)
                found = next(filter(None, map(self._unused, map(self._blocks.__getitem__, larger))), None)
            if found is None:
                block = np.empty(pages * PAGE + ALIGNMENT, np.uint8)
                found = block, -block.ctypes.data % ALIGNMENT
                blocks.append(found)
            return _array(*found, shape, dtype)

    def _unused(self, blocks: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, int] | None:
        for i in range(len(blocks)):
            if sys.getrefcount(blocks[i][0]) == self._idle:
                return blocks[i]
        return None


def _array(block: np.ndarray, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.ndarray(shape, dtype, buffer=block, offset=offset)  # the base of it and of every view of it is `block`


_present: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


@contextmanager
def workspace() -> Iterator[Workspace]:
    """Take the memory of :func:`empty` from one workspace for the duration of a block; inside of another, from that."""
    outer = _present.get()
    memory = Workspace() if outer is None else outer
    token = _present.set(memory)
    try:
        yield memory
    finally:
        _present.reset(token)


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a NumPy array whose entries are not set, from the present workspace if there is one."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    memory = _present.get()
    return np.empty(shape, dtype) if memory is None else memory.empty(shape, dtype)
