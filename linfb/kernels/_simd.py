"""Vectors of numbers as values inside of functions compiled by numba, for straight-line sums of several at once.

A loop over ``range(0, n, lanes(array))`` that loads, adds, scales and stores such vectors is vectorised as it stands:
nothing has to be proved about which arrays overlap. The compiler splits vectors that the machine does not have.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, overload, register_model

__all__ = ["BYTES", "lanes", "load", "store", "zeros"]

BYTES = 32
intrinsic: Any = numba_intrinsic  # what it makes is called with one argument fewer than it is written with


class Vector(types.Type):
    """As many numbers of one kind as have `BYTES` bytes."""

    def __init__(self, kind: Any) -> None:
        self.kind, self.lanes = kind, 8 * BYTES // kind.bitwidth
        super().__init__(name=f"Vector({kind}, {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        entry = ir.FloatType() if fe_type.kind == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(entry, fe_type.lanes))


@intrinsic
def lanes(typingctx, array):
    """Return how many entries of an array a vector holds."""
    number = Vector(array.dtype).lanes
    return types.intp(array), lambda context, builder, signature, args: context.get_constant(types.intp, number)


@intrinsic
def load(typingctx, array, index):
    """Return the entries in memory from a place on, counted from the first entry of the array."""
    kind = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        return builder.load(_pointer(context, builder, array, args, kind), align=array.dtype.bitwidth // 8)

    return kind(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, vector):
    """Write a vector to memory from a place on, counted from the first entry of the array."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, array, args, vector)
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, vector), codegen


@intrinsic
def zeros(typingctx, array):
    """Return a vector of zeros of an array's kind."""
    kind = Vector(array.dtype)
    return kind(array), lambda context, builder, signature, args: ir.Constant(context.get_value_type(kind), None)


def _pointer(context, builder, array, args, kind):
    data = cgutils.create_struct_proxy(array)(context, builder, args[0]).data
    place = builder.gep(data, [args[1]], inbounds=True)
    return builder.bitcast(place, context.get_value_type(kind).as_pointer())


def _arithmetic(name: str) -> Any:
    @intrinsic
    def apply(typingctx, left, right):
        def codegen(context, builder, signature, args):
            return getattr(builder, name)(*args, flags=("contract",))

        return left(left, left), codegen

    return apply


@intrinsic
def _scaled(typingctx, number, vector):
    def codegen(context, builder, signature, args):
        kind = context.get_value_type(vector)
        one = context.cast(builder, args[0], number, vector.kind)
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), one, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
        return builder.fmul(builder.shuffle_vector(first, first, mask), args[1], flags=("contract",))

    return vector(number, vector), codegen


_sum, _difference = _arithmetic("fadd"), _arithmetic("fsub")


@overload(operator.add)
def _add(left, right):
    if isinstance(left, Vector) and left == right:
        return lambda left, right: _sum(left, right)
    return None


@overload(operator.sub)
def _sub(left, right):
    if isinstance(left, Vector) and left == right:
        return lambda left, right: _difference(left, right)
    return None


@overload(operator.mul)
def _mul(left, right):
    if isinstance(left, types.Float) and isinstance(right, Vector):
        return lambda left, right: _scaled(left, right)
    return None
