"""Eight float64 at a time in numba: `lanes` for double precision, with operators and selection.

Kernels that put one matrix in every lane are written as if for one matrix: `a + b`, `a - b`, `a * b`, `a / b` act on
each lane alone and round once, so a lane's result has the same bits whatever the others hold. LLVM splits
`<8 x double>` as the processor needs. Arrays are read flat and must be C-contiguous; nothing checks the index.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, overload

WIDTH = 8
_VECTOR = ir.VectorType(ir.DoubleType(), WIDTH)


class DoublesType(types.Type):
    """The numba type of a vector of eight float64."""

    def __init__(self) -> None:
        super().__init__(name=f"Doubles{WIDTH}xf64")


doubles_type = DoublesType()


@register_default(DoublesType)
class DoublesModel(models.PrimitiveModel):
    """A vector is kept as what it is."""

    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, _VECTOR)


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _VECTOR.as_pointer())


@intrinsic
def load(typingctx, array, index) -> tuple:
    """array.flat[index : index + 8]."""

    def codegen(context, builder, signature, args):
        return builder.load(_address(context, builder, signature.args[0], *args), align=8)

    return doubles_type(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, vector) -> tuple:
    """array.flat[index : index + 8] = vector."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2]), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, doubles_type), codegen


@intrinsic
def splat(typingctx, scalar) -> tuple:
    """The same number in all eight lanes."""

    def codegen(context, builder, signature, args):
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        single = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        return builder.shuffle_vector(single, undefined, everywhere)

    return doubles_type(types.float64), codegen


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
        if isinstance(a, DoublesType) and isinstance(b, DoublesType):
            return lambda a, b: operation(a, b)
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overloaded(_symbol, _instruction)
