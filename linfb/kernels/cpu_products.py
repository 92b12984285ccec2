"""Products of small matrices that stay in the cache, compiled by numba without leaving it for BLAS.

A product is made of tiles of a few rows and a few vectors of columns, whose sums stay in registers; a tile is written
in the compiler's own vectors, for no loop over scalars is turned into that reliably. What calls it can do everything
about one pair of matrices, such as one head of one sample, at once, and holds no lock of the interpreter meanwhile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable
from numba.np.arrayobj import make_array

__all__ = ["multiply", "narrow", "packed", "padded"]

BYTES = 64 if binding.get_host_cpu_features().get("avx512f") else 32
"""Size of a vector; it decides no more than speed."""
ROWS = 4
BLOCK = 64
_OPTIONS: Any = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}


@register_jitable
def padded(columns: int, itemsize: int) -> int:
    """Return the number of columns with which the rows of a matrix end on a whole vector."""
    lanes = BYTES // itemsize
    return -(-columns // lanes) * lanes


def _tile(rows: int, vectors: int) -> Any:
    """Return a compiled function that sets rows x vectors of a product, from row i and column j."""

    @intrinsic
    def tile(context, left, right, out, i, j):
        def generate(context, builder, signature, args):
            scalar = context.get_data_type(signature.args[2].dtype)
            vector = ir.VectorType(scalar, BYTES // (signature.args[2].dtype.bitwidth // 8))
            whole = ir.IntType(64)
            pairs = zip(signature.args[:3], args[:3], strict=True)
            a, b, c = (make_array(kind)(context, builder, value) for kind, value in pairs)

            def address(array, row, column):
                down, across = cgutils.unpack_tuple(builder, array.strides)
                offset = builder.add(builder.mul(down, row), builder.mul(across, column))
                return builder.add(builder.ptrtoint(array.data, whole), offset)

            def pointer(at, kind):
                return builder.inttoptr(at, kind.as_pointer())

            def constant(value):
                return ir.Constant(whole, value)

            def spread(value):
                first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
                return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)

            align, zero = signature.args[2].dtype.bitwidth // 8, constant(0)
            lefts = [address(a, builder.add(args[3], constant(r)), zero) for r in range(rows)]
            rights = [builder.add(address(b, zero, args[4]), constant(BYTES * v)) for v in range(vectors)]
            along, _ = cgutils.unpack_tuple(builder, b.strides)
            _, step = cgutils.unpack_tuple(builder, a.strides)
            _, length = cgutils.unpack_tuple(builder, a.shape)
            start = builder.block
            loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
            builder.cbranch(builder.icmp_signed(">", length, zero), loop, end)
            builder.position_at_end(loop)
            number = builder.phi(whole)
            number.add_incoming(zero, start)
            sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(rows)]
            shift, down = builder.mul(number, step), builder.mul(number, along)
            columns = [builder.load(pointer(builder.add(at, down), vector), align=align) for at in rights]
            after = []
            for r in range(rows):
                factor = spread(builder.load(pointer(builder.add(lefts[r], shift), scalar)))
                products = [builder.fmul(factor, column, flags=("contract",)) for column in columns]
                after.append([builder.fadd(sums[r][v], products[v], flags=("contract",)) for v in range(vectors)])
            following = builder.add(number, constant(1))
            number.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, length), loop, end)
            builder.position_at_end(end)
            zeros = ir.Constant(vector, None)
            for r in range(rows):
                for v in range(vectors):
                    sums[r][v].add_incoming(zeros, start)
                    sums[r][v].add_incoming(after[r][v], loop)
                    total = builder.phi(vector)
                    total.add_incoming(zeros, start)
                    total.add_incoming(after[r][v], loop)
                    after[r][v] = total
            for r in range(rows):
                at = address(c, builder.add(args[3], constant(r)), args[4])
                for v in range(vectors):
                    place = pointer(builder.add(at, constant(BYTES * v)), vector)
                    builder.store(after[r][v], place, align=align)
            return context.get_dummy_value()

        return types.void(left, right, out, i, j), generate

    return tile


_tile_43, _tile_42, _tile_41 = (_tile(ROWS, vectors) for vectors in (3, 2, 1))
_tile_13, _tile_12, _tile_11 = (_tile(1, vectors) for vectors in (3, 2, 1))


@njit(**_OPTIONS)
def multiply(left, right, out):
    """Set ``out = left @ right``, inside of compiled functions.

    The right factor and the result have whole vectors as rows (:func:`padded`), the left one has any strides.
    """
    lanes = BYTES // out.itemsize
    for j in range(0, out.shape[1], 3 * lanes):
        vectors = min(3, (out.shape[1] - j) // lanes)
        for i in range(0, out.shape[0] // ROWS * ROWS, ROWS):
            if vectors == 3:
                _tile_43(left, right, out, i, j)
            elif vectors == 2:
                _tile_42(left, right, out, i, j)
            else:
                _tile_41(left, right, out, i, j)
        for i in range(out.shape[0] // ROWS * ROWS, out.shape[0]):
            if vectors == 3:
                _tile_13(left, right, out, i, j)
            elif vectors == 2:
                _tile_12(left, right, out, i, j)
            else:
                _tile_11(left, right, out, i, j)


@njit(cache=True, **_OPTIONS)
def packed(right):
    """Return a matrix cut into panels of at most three vectors of columns, (panel, row, column), for :func:`narrow`."""
    length, columns = right.shape
    wide = 3 * (BYTES // right.itemsize)
    panels = np.empty(((columns + wide - 1) // wide, length, wide), right.dtype)
    for p in range(panels.shape[0]):
        for j in range(min(wide, columns - p * wide)):
            for l in range(length):
                panels[p, l, j] = right[l, p * wide + j]
    return panels


@njit(cache=True, **_OPTIONS)
def narrow(left, panels, out):
    """Set ``out = left @ right`` for few columns, which must be whole vectors: every row has the same bits anywhere."""
    wide = panels.shape[2]
    for first in range(0, out.shape[0], BLOCK):
        last = min(first + BLOCK, out.shape[0])
        for p in range(panels.shape[0]):
            start, stop = p * wide, min((p + 1) * wide, out.shape[1])
            multiply(left[first:last], panels[p, :, : stop - start], out[first:last, start:stop])
