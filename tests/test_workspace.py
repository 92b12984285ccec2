"""Memory that is handed out again: never while anybody can still see it."""

import threading

import numpy as np
import pytest

from linfb import rules
from linfb._threads import for_slices, threads
from linfb._workspace import SMALLEST, Workspace, empty, workspace
from linfb.backend import Key
from linfb.engine import Optimizers, amsgrad, cross_entropy, mlp
from linfb.engine.state import initial_state, step

SIZE = 2 * SMALLEST


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[10:],
        lambda x: x.reshape(2, -1)[1].view(np.float64),
        lambda x: x.reshape(2, -1).T[3:, :1],
        lambda x: np.broadcast_to(x[:1], (5, 1)),
        lambda x: memoryview(x),
        lambda x: [x[5:6]],
    ],
)
def test_memory_is_kept_while_any_view_of_it_is(view):
    memory = Workspace()
    kept = view(memory.empty((SIZE,), np.float32))
    first = memory.empty((SIZE,), np.float32)
    assert memory.nbytes > 8 * SIZE  # a second block: the first is in use
    where = address(first)
    del first
    again = memory.empty((SIZE,), np.float32)
    assert address(again) == where  # and the second is handed out again
    del kept
    other = memory.empty((SIZE,), np.float32)
    assert not np.shares_memory(other, again)
    assert memory.nbytes < 12 * SIZE + 3 * 4096  # no third block


def test_control_without_a_reference_the_memory_is_another_arrays():
    memory = Workspace()
    x = memory.empty((SIZE,), np.float32)
    where = address(x)
    del x
    assert address(memory.empty((SIZE,), np.float32)) == where


def test_small_and_odd_arrays():
    memory = Workspace()
    assert memory.empty((), np.float64).shape == ()
    assert memory.empty((0, 5), np.float32).shape == (0, 5)
    assert memory.nbytes == 0
    x = memory.empty((SIZE + 1, 3), np.dtype(np.bool_))
    assert (x.shape, x.dtype, x.flags.c_contiguous, x.flags.writeable) == ((SIZE + 1, 3), np.bool_, True, True)
    assert address(x) % 64 == 0


def test_a_workspace_lasts_for_its_block_and_inner_ones_are_the_same():
    assert empty(SIZE, np.float32).base is None
    with workspace() as outer:
        x = empty((SIZE,), np.float32)
        with workspace() as inner:
            assert inner is outer
        with threads(2):
            assert all(for_slices(lambda first, last: empty((SIZE,), np.float32).base is not None, 2, 1))
        assert outer.nbytes
    assert empty(SIZE, np.float32).base is None
    x[:] = 1  # outlives the block


def test_threads_never_share_memory():
    memory, found = Workspace(), []

    def work(mark):
        for _ in range(300):
            x = memory.empty((SIZE,), np.uint8)
            x[:] = mark
            found.append(bool((x == mark).all()))

    workers = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 1200
    assert all(found)


def test_a_training_step_asks_for_no_more_memory_after_the_first():
    model, rule, optimisers = mlp(200, (150, 150), 10), rules.low_rank(10), Optimizers(amsgrad(1e-3))
    state, _ = initial_state(model, rule, optimisers, 0, lambda array: np.array(array, np.float32))
    rng = np.random.default_rng(0)
    x, targets = rng.random((128, 200), np.float32), np.eye(10, dtype=np.float32)[rng.integers(0, 10, 128)]
    sizes, outputs = [], None
    with workspace() as memory, threads(2):
        for number in range(1, 6):
            state, _, outputs = step(
                model, rule, cross_entropy, optimisers, state, x, targets, number=number, key=Key(0)
            )
            sizes.append(memory.nbytes)
        kept = np.array(outputs)
        step(model, rule, cross_entropy, optimisers, state, x, targets, number=6, key=Key(0))
    assert sizes[0] > 1e5
    assert sizes[1:] == sizes[1:2] * 4
    assert np.array_equal(outputs, kept)  # what is held is not written to
