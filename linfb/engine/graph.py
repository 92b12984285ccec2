"""Training steps that the host does not run: one CUDA graph, launched once per step.

The step of a small network is over before the host has started its kernels one by one. So the work of one step is
captured from CuPy's stream and launched as a whole. What changes from step to step lies in device memory, laid out for
a block of steps at once: the rows of their batches, and all numbers that the host makes (:class:`linfb._live.Live`:
rates, bias corrections, states of random numbers). The captured step itself goes on to the next of them, puts its loss
in a list and counts what was right, so that a block is an upload, as many launches, and one reading at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from linfb._live import Live
from linfb.engine.trees import flatten
from linfb.kernels import _cuda

__all__ = ["Blocks", "CudaStream", "Step", "capturable"]

WIDTH = 1024
"""How many numbers of one precision may change from step to step."""

Step = Callable[[Any, Any, Any, Any], tuple[Any, Any, Any]]
"""One step: from the state, rows of the data, number and factor to the state, the loss, and how many were right.

The state is any tree of arrays (:mod:`linfb.engine.trees`).
"""


def capturable(*parts: Any) -> bool:
    """Return whether a step that is made of these parts never decides, draws or waits on the host.

    Parameters
    ----------
    *parts
        Layers, reader, mirror, optimisers, augmentations. One of which it does not hold says ``capturable = False``.
    """
    return all(getattr(part, "capturable", True) for part in parts)


class CudaStream:
    """A stream of CuPy for the steps, and a pool of memory that nothing else takes from.

    A captured step knows its arrays by address, also those that are gone when it ends: their memory must not be given
    to others as long as the step may be launched again.
    """

    def __init__(self) -> None:
        import cupy

        self.cuda = cupy.cuda
        self.stream, self.pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let everything in a block run on this stream: after what was started before, and before what comes then."""
        outer = self.cuda.get_current_stream()
        self.stream.wait_event(outer.record())
        with self.stream:
            yield
        outer.wait_event(self.stream.record())

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Do some work, and return what does the same work again: the launch of a CUDA graph.

        The first time compiles kernels, and leaves in the pool all the memory that is needed; the second time is
        captured, and nothing runs.
        """
        with self.cuda.using_allocator(self.pool.malloc):
            work()
            self.stream.begin_capture()
            try:
                work()
            finally:
                graph = self.stream.end_capture()
        return graph.launch


@dataclass(eq=False)
class _Clock:
    """What the host knows of the present step; a captured step sees it through live numbers alone."""

    number: int = 0
    factor: float = 1.0


class _Row:
    """The live numbers of one precision in device memory: a table with a row for every step, and the row in use."""

    def __init__(self, xp: Any, dtype: str, steps: int) -> None:
        self.xp, self.dtype = xp, dtype
        self.table, self.row = (xp.zeros(shape, dtype=getattr(xp, dtype)) for shape in ((steps, WIDTH), (WIDTH,)))
        self.places: dict[Any, tuple[Live, slice, tuple[int, ...]]] = {}

    def __call__(self, number: Live) -> Any:
        """Return the place of a live number in the row in use; one that was not known is put there."""
        if number.identity not in self.places:
            value = np.atleast_1d(np.asarray(number.now(), dtype=self.dtype))
            first = sum(place.stop - place.start for _, place, _ in self.places.values())
            place = slice(first, first + value.size)
            if place.stop > WIDTH:
                raise ValueError(f"more than {WIDTH} numbers of dtype {self.dtype} change from step to step")
            self.places[number.identity] = number, place, value.shape
            self.row[place] = self.xp.asarray(value.ravel())
        _, place, shape = self.places[number.identity]
        return self.row[place].reshape(shape)

    def lay_out(self, clock: _Clock, clocks: Sequence[tuple[int, float]]) -> None:
        """Make all known numbers for the steps at these times."""
        if not self.places:
            return
        table = np.zeros(self.table.shape, dtype=self.dtype)
        for row, (clock.number, clock.factor) in zip(table, clocks, strict=False):
            for number, place, _ in self.places.values():
                row[place] = np.ravel(number.now())
        self.table[...] = self.xp.asarray(table)


class Blocks:
    """Steps in blocks: the first is taken and captured, all others are launched.

    Parameters
    ----------
    step : callable
        See :data:`Step`; called with live number and factor.
    xp : module
        CuPy, as array-API module.
    dtype : str
        Precision of losses.
    shape : tuple of int
        Steps in a block at most, the number of seeds in an ensemble, and rows in a batch.
    stream : CudaStream
        Or what does the same elsewhere.
    runs : tuple of int
        Shape of a step's losses: the number of runs in an ensemble.
    """

    def __init__(
        self, step: Step, xp: Any, dtype: str, shape: tuple[int, ...], stream: Any, runs: tuple[int, ...] = ()
    ) -> None:
        self.step, self.xp, self.stream, self.clock = step, xp, stream, _Clock()
        self.number, self.factor = (Live(getattr, (self.clock, name)) for name in ("number", "factor"))
        self.numbers = {name: _Row(xp, name, shape[0]) for name in ("uint64", "float32", "float64")}
        self.rows, self.turn = xp.zeros(shape, dtype=xp.int64), xp.zeros(1, dtype=xp.int64)
        self.losses = xp.zeros((shape[0], *runs), dtype=getattr(xp, dtype))
        self.right = xp.zeros((1, *runs), dtype=xp.int64)
        self.state: Any = None
        self.launch: Callable[[], None]

    def __call__(
        self, state: Any, rows: Any, clocks: Sequence[tuple[int, float]], done: Callable[[], Any]
    ) -> tuple[Any, Any, Any]:
        """Take steps.

        Parameters
        ----------
        state : tree of arrays
            They are overwritten, and are those of the result.
        rows : array of int, shape (step, ..., batch)
        clocks : sequence of (int, float)
            Number and factor of every step.
        done : callable
            Called once for every step.

        Returns
        -------
        state : tree of arrays
        losses : array, shape (step, ...)
            Of this block: the next one overwrites it.
        right : array, shape (...)
            How many rows of all these steps were classified rightly; likewise.
        """
        with self.stream.used():
            self.rows[: len(clocks), ...], self.turn[...], self.right[...] = rows, 0, 0
            self._lay_out(clocks)
            first = 0
            if state is not self.state:
                self.state, first = state, 1
                self.clock.number, self.clock.factor = clocks[0]
                self.launch = self.stream.captured(self._work)
                self._lay_out(clocks)
            for i in range(len(clocks)):
                if i >= first:
                    self.launch()
                done()
        return state, self.losses[: len(clocks)], self.right[0]

    def _lay_out(self, clocks: Sequence[tuple[int, float]]) -> None:
        for row in self.numbers.values():
            row.lay_out(self.clock, clocks)

    def _work(self) -> None:
        """Take the step whose turn it is: what is captured."""
        for row in self.numbers.values():
            row.row[...] = self._present(row.table)
        with _cuda.holding(self.numbers):
            state, loss, right = self.step(self.state, self._present(self.rows), self.number, self.factor)
        before = flatten(self.state)
        for path, array in flatten(state).items():
            if array is not before[path]:  # not overwritten where it is
                before[path][...] = array
        self.losses[self.turn] = loss
        self.right += right
        self.turn += 1

    def _present(self, table: Any) -> Any:
        return self.xp.take(table, self.turn, axis=0)[0, ...]
