"""Eight float64 at a time in numba: `simd_float32` for double precision, with operators and selection.

Kernels that put one matrix in every lane are written as if for one matrix: `a + b`, `a - b`, `a * b`, `a / b` act on
each lane alone and round once, so a lane's result has the same bits whatever the others hold. LLVM splits
`<8 x double>` as the processor needs. Arrays are read flat and must be C-contiguous; nothing checks the index.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from srdyn.kernels.simd import vectors

WIDTH = 8
_DOUBLES = vectors(f"Doubles{WIDTH}xf64", types.float64, ir.DoubleType(), WIDTH)
doubles_type, _VECTOR, load, store, splat = _DOUBLES[1:]


@intrinsic
def where_less(typingctx, a, b, x, y) -> tuple:
    """x in the lanes where a < b, y in the others."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return doubles_type(*[doubles_type] * 4), codegen


@intrinsic
def mul_add(typingctx, a, b, c) -> tuple:
    """a·b + c, rounded once where the processor can."""

    def codegen(context, builder, signature, args):
        return _called(builder, f"llvm.fmuladd.v{WIDTH}f64", args)

    return doubles_type(*[doubles_type] * 3), codegen


@intrinsic
def root(typingctx, vector) -> tuple:
    """The square root of each lane."""

    def codegen(context, builder, signature, args):
        return _called(builder, f"llvm.sqrt.v{WIDTH}f64", args)

    return doubles_type(doubles_type), codegen


@intrinsic
def size(typingctx, vector) -> tuple:
    """The absolute value of each lane."""

    def codegen(context, builder, signature, args):
        return _called(builder, f"llvm.fabs.v{WIDTH}f64", args)

    return doubles_type(doubles_type), codegen


@intrinsic
def largest(typingctx, vector) -> tuple:
    """The largest of the eight lanes."""

    def codegen(context, builder, signature, args):
        return _called(builder, f"llvm.vector.reduce.fmax.v{WIDTH}f64", args, result=ir.DoubleType())

    return types.float64(doubles_type), codegen


def _called(builder, name, args, result=_VECTOR):
    kind = ir.FunctionType(result, [_VECTOR] * len(args))
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _overloaded(symbol, instruction):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, instruction)(*args)

        return doubles_type(doubles_type, doubles_type), codegen

    @overload(symbol)
    def operate(a, b):
        if isinstance(a, _DOUBLES.numba_class) and isinstance(b, _DOUBLES.numba_class):
            return lambda a, b: operation(a, b)
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overloaded(_symbol, _instruction)
