"""A pool of threads that wait inside compiled code, and matrix products that they share out.

Waking a thread through the interpreter takes as long as a small product: the thread has to be put on a processor, and
then waits for the interpreter's lock. Threads of a pool hold no lock while they wait. They look for work again and
again, for a short while after the last, and then sleep.

What they share is an array of words. One holds the number of items of the present work and how many of them are taken;
an item is taken by exchanging that word as a whole for the next. Who succeeds knows that the work is not over, so that
what describes it is still there; who comes late finds nothing to take.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import get_cython_function_address
from numba.extending import intrinsic as _intrinsic
from numba.np.arrayobj import make_array

__all__ = ["call", "described", "multiply", "serve", "shared", "sleeps", "wake"]

intrinsic: Any = _intrinsic  # its results are called without the context that its functions take
_OPTIONS: Any = {"nogil": True, "cache": True}
TICKET, DONE, LENGTH, PRODUCTS = 0, 8, 16, 24  # places in the shared words
FIELDS = 21  # words of a product
CHAIN = 2  # products that an item may consist of
CALLED, ASLEEP, EACH = 72, 80, 16  # places of the first helper, and words of every helper
PATIENCE = 2000  # looks for work before sleep, a few tenths of a millisecond
LOW = 0xFFFFFFFF
NOTHING, COLUMNS, ROWS = 0, 1, 2  # what of the result is cut

_pass = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


def shared(helpers: int) -> np.ndarray:
    """Return the words that a pool of so many helpers shares with the thread that uses it."""
    return np.zeros(CALLED + EACH * max(1, helpers), np.int64)


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def _load(context, words, index):
    def generate(context, builder, signature, args):
        return builder.load_atomic(_place(context, builder, signature, args), "seq_cst", 8)

    return types.int64(words, types.int64), generate


@intrinsic
def _exchange(context, words, index, value):
    def generate(context, builder, signature, args):
        return builder.atomic_rmw("xchg", _place(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(words, types.int64, types.int64), generate


@intrinsic
def _add(context, words, index, value):
    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", _place(context, builder, signature, args), args[2], "seq_cst")

    return types.int64(words, types.int64, types.int64), generate


@intrinsic
def _replace(context, words, index, old, new):
    """Put a new value in the place of an old one, if that is there; return whether it was."""

    def generate(context, builder, signature, args):
        place = _place(context, builder, signature, args)
        return builder.extract_value(builder.cmpxchg(place, args[2], args[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(words, types.int64, types.int64, types.int64), generate


@intrinsic
def _call_at(context, function, arguments):
    """Call the function at an address with addresses."""

    def generate(context, builder, signature, args):
        pointer, n = ir.IntType(8).as_pointer(), len(signature.args[1])
        kind = ir.FunctionType(ir.VoidType(), [pointer] * n).as_pointer()
        addresses = [builder.inttoptr(builder.extract_value(args[1], i), pointer) for i in range(n)]
        builder.call(builder.inttoptr(args[0], kind), addresses)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), generate


@cache
def _gemm(dtype: np.dtype) -> int:
    """Return the address of the matrix product of a type: in the BLAS of NumPy where that shows it, or SciPy's."""
    from threadpoolctl import ThreadpoolController

    name = {"f": "sgemm", "d": "dgemm"}[dtype.char]
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    for library in sorted(libraries, key=lambda library: "numpy" not in library.filepath):
        for symbol in (f"scipy_{name}_64_", f"scipy_{name}_", f"{name}_64_", f"{name}_"):
            if (found := getattr(library.dynlib, symbol, None)) is not None:
                return ctypes.cast(found, ctypes.c_void_p).value or 0
    return get_cython_function_address("scipy.linalg.cython_blas", name)


def _blas(matrix: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Return a matrix as BLAS takes it, whether it lies there transposed, and how far its rows (columns) are apart."""
    (rows, columns), (down, along), size = matrix.shape, matrix.strides, matrix.itemsize
    if along == size and down >= columns * size and down % size == 0:
        return matrix, 0, down // size
    if down == size and along >= rows * size and along % size == 0:
        return matrix, 1, along // size
    return np.ascontiguousarray(matrix), 0, max(1, columns)


def described(
    left: np.ndarray, right: np.ndarray, out: np.ndarray, cut: int, size: int, each: int = 1, plus: bool = False
) -> tuple[list[int], tuple[np.ndarray, ...]]:
    """Return what describes the product ``out = left @ right``, and arrays to keep alive until it is done.

    Parameters
    ----------
    left, right, out : array
        Matrices of one type, float32 or float64, rows of `out` without gaps between their entries; or stacks of so
        many matrices.
    cut, size : int
        What of the result is cut into pieces, ROWS or COLUMNS, and how many of it a piece has, the last one maybe less.
        Pieces of stacks are their matrices (NOTHING).
    each : int
        Pieces of an item.
    plus : bool
        Whether the product is added to `out`.
    """
    steps = [0, 0, 0]
    if cut == NOTHING:
        pieces, steps = len(out), [right.strides[0], left.strides[0], out.strides[0]]
        left, right, out = left[0], right[0], out[0]
    left, left_turned, left_apart = _blas(left)
    right, right_turned, right_apart = _blas(right)
    rows, columns = out.shape
    if cut == ROWS:
        pieces, steps = -(-rows // size), [0, size * left.strides[0], size * out.strides[0]]
    elif cut == COLUMNS:
        pieces, steps = -(-columns // size), [size * right.strides[1], 0, size * out.strides[1]]
    return [
        _gemm(out.dtype), right_turned, left_turned, columns, rows, left.shape[1],
        right.ctypes.data, max(1, right_apart), left.ctypes.data, max(1, left_apart),
        out.ctypes.data, max(1, columns, out.strides[0] // out.itemsize),
        *steps, pieces, each, cut, size, int(plus), out.itemsize,
    ], (left, right, out)  # fmt: skip


@njit(**_OPTIONS)
def _piece(words, at, piece, numbers, reals):
    """Multiply one piece of a product (in the order of Fortran, where it is the transposed product)."""
    address, cut, size = words[at], words[at + 17], words[at + 18]
    for field in range(3):
        numbers[field] = words[at + 3 + field]
    numbers[3], numbers[4], numbers[5] = words[at + 7], words[at + 9], words[at + 11]
    if cut != 0:
        numbers[cut - 1] = min(size, words[at + 2 + cut] - piece * size)
    kinds = numbers.ctypes.data + 48
    numbers[6], numbers[7] = 78 + 6 * words[at + 1], 78 + 6 * words[at + 2]  # the letters N and T
    first, bytes_each = numbers.ctypes.data, words[at + 20]
    one = reals.ctypes.data + (0 if bytes_each == 4 else 16)
    factor = one if words[at + 19] else one + bytes_each
    _call_at(
        address,
        (
            kinds, kinds + 8, first, first + 8, first + 16,
            one, words[at + 6] + piece * words[at + 12], first + 24,
            words[at + 8] + piece * words[at + 13], first + 32,
            factor, words[at + 10] + piece * words[at + 14], first + 40,
        ),
    )  # fmt: skip


@njit(**_OPTIONS)
def _item(words, item, numbers, reals):
    for p in range(words[LENGTH]):
        at = PRODUCTS + FIELDS * p
        pieces, each = words[at + 15], words[at + 16]
        for piece in range(item * each, min((item + 1) * each, pieces)):
            _piece(words, at, piece, numbers, reals)


@njit(**_OPTIONS)
def _constants():
    """Return memory for the numbers that BLAS is given by address, and 1 and 0 in single and double precision.

    Numbers have 64 bits; a BLAS of 32 reads the lower half, which comes first.
    """
    reals = np.zeros(8, np.float32)
    reals[0] = 1.0
    reals[4:8].view(np.float64)[0] = 1.0
    return np.zeros(8, np.int64), reals


@njit(**_OPTIONS)
def _taken(words):
    """Return the number of an item that is the caller's from now on, -1 if there is none."""
    while True:
        ticket = _load(words, TICKET)
        if ticket & LOW >= ticket >> 32:
            return -1
        if _replace(words, TICKET, ticket, ticket + 1):
            return ticket & LOW


@njit(**_OPTIONS)
def multiply(words, items):
    """Do the items of the products that are described in the words, with those helpers that are awake."""
    numbers, reals = _constants()
    if items == 1:
        _item(words, 0, numbers, reals)
        return
    _exchange(words, DONE, 0)
    _exchange(words, TICKET, items << 32)
    item = _taken(words)
    while item >= 0:
        _item(words, item, numbers, reals)
        _add(words, DONE, 1)
        item = _taken(words)
    while _load(words, DONE) < items:
        _pass()


@njit(**_OPTIONS)
def serve(words, helper):
    """Do items as they come, until a helper is called (True) or has to sleep (False)."""
    numbers, reals = _constants()
    called, asleep, looks = CALLED + EACH * helper, ASLEEP + EACH * helper, 0
    while True:
        item = _taken(words)
        if item >= 0:
            _item(words, item, numbers, reals)
            _add(words, DONE, 1)
            looks = 0
            continue
        if _load(words, called):
            _exchange(words, called, 0)
            return True
        looks += 1
        if looks < PATIENCE:
            _pass()
            continue
        _exchange(words, asleep, 1)
        if _load(words, called) and _exchange(words, asleep, 0):
            continue  # nobody has seen it asleep
        return False


@njit(**_OPTIONS)
def call(words, helper):
    """Ask a helper back from :func:`serve`."""
    _exchange(words, CALLED + EACH * helper, 1)


@njit(**_OPTIONS)
def wake(words, helper):
    """Return whether a helper sleeps, or is about to; who is told so has to let it go on, and is the only one."""
    return _exchange(words, ASLEEP + EACH * helper, 0) == 1


def sleeps(words: np.ndarray, helper: int) -> bool:
    """Return whether a helper seems to sleep."""
    return bool(words[ASLEEP + EACH * helper])
