"""Vector types for numba, whose operations become the machine's own vector instructions: 16 × float32, 8 × float64.

Numba leaves vectorisation to LLVM's heuristics, which give up on the loops here. With explicit vectors LLVM splits or
widens `<16 x float>` as the processor needs (one AVX-512 register, two of AVX2, four of NEON). Arrays are read flat,
whatever their shape, and must be C-contiguous; nothing checks the index.

float32 has `mul`, `add`, `sub`, whose sums may be reordered. float64 has the operators instead: `a + b`, `a - b`,
`a * b`, `a / b` act on each lane alone and round once, so that kernels that put one matrix in every lane are written as
if for one, and a lane's result has the same bits whatever the others hold.
"""

import inspect
import math
import operator
import struct
import warnings
from collections.abc import Callable, Collection

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic, overload

WIDTH, DOUBLES = 16, 8
"""Lanes of float32 and of float64."""
_REORDERED = ("reassoc", "contract", "nsz", "arcp")


class _Vector(types.Type):
    """`width` numbers of one kind, with the flags that its sums and products take."""

    def __init__(self, scalar: types.Type, element: ir.Type, width: int, flags: Collection[str] = ()) -> None:
        super().__init__(name=f"Vector{width}x{scalar}")
        self.scalar, self.llvm, self.flags = scalar, ir.VectorType(element, width), flags
        self.suffix = f"v{width}f{scalar.bitwidth}"


@register_default(_Vector)
def _kept_as_it_is(manager, kind: _Vector) -> models.PrimitiveModel:
    return models.PrimitiveModel(manager, kind, kind.llvm)


_F32 = _Vector(types.float32, ir.FloatType(), WIDTH, _REORDERED)
_F64 = _Vector(types.float64, ir.DoubleType(), DOUBLES)
_OF = {types.float32: _F32, types.float64: _F64}


def compiled(function: Callable, *, flags: Collection[str] = _REORDERED) -> Callable:
    """`numba.njit` as the loops here need it: sums may be reordered, NaN and infinity keep their meaning.

    The machine code is kept beside the module, or in the user's cache; where neither can be written, it warns. Numba
    notices changes in the function's own file only: after a change here, delete __pycache__.
    """
    function = inspect.unwrap(function)  # of the shape checks that the tests put around everything
    options = {"fastmath": set(flags), "nogil": True}
    try:
        return njit(**options, cache=True)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        warnings.warn("no folder to keep compiled code in, set NUMBA_CACHE_DIR; compiling again", stacklevel=2)
        return njit(**options)(function)


@intrinsic
def load(typingctx, array, index) -> tuple:
    """array.flat[index : index + width]."""
    vector = _OF[array.dtype]

    def codegen(context, builder, signature, args):
        place = _address(context, builder, signature.args[0], *args, vector)
        return builder.load(place, align=vector.scalar.bitwidth // 8)

    return vector(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, vector) -> tuple:
    """Puts the vector at array.flat[index : index + width]."""

    def codegen(context, builder, signature, args):
        place = _address(context, builder, signature.args[0], *args[:2], vector)
        builder.store(args[2], place, align=vector.scalar.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def splat(typingctx, number) -> tuple:
    """The number in every lane."""
    vector = _OF[number]

    def codegen(context, builder, signature, args):
        undefined, integer = ir.Constant(vector.llvm, ir.Undefined), ir.IntType(32)
        single = builder.insert_element(undefined, args[0], ir.Constant(integer, 0))
        first = ir.Constant(ir.VectorType(integer, vector.llvm.count), [0] * vector.llvm.count)
        return builder.shuffle_vector(single, undefined, first)

    return vector(number), codegen


def _address(context, builder, array_type, array, index, vector):
    """Where array.flat[index] lies, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.llvm.as_pointer())


def _called(builder, name, args, *, result=None, flags=()):
    """A call of one of LLVM's own functions."""
    kind = ir.FunctionType(result or args[-1].type, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, fastmath=flags)


@intrinsic
def prefetch(typingctx, array, index) -> tuple:
    """Asks for the cache line of array.flat[index], to be written: rows of one head lie a page apart."""

    def codegen(context, builder, signature, args):
        place = _address(context, builder, signature.args[0], *args, _F32)
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        hints = [ir.Constant(ir.IntType(32), hint) for hint in (1, 3, 1)]  # to be written, kept near, data
        _called(builder, "llvm.prefetch.p0", [place, *hints], result=ir.VoidType())
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def mul_add(typingctx, a, b, c) -> tuple:
    """a·b + c, rounded once where the processor can."""

    def codegen(context, builder, signature, args):
        return _called(builder, f"llvm.fmuladd.{a.suffix}", args, flags=a.flags)

    return a(a, a, a), codegen


def _binary(instruction, vector):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, instruction)(*args, flags=vector.flags)

        return vector(vector, vector), codegen

    return operation


mul, add, sub = (_binary(instruction, _F32) for instruction in ("fmul", "fadd", "fsub"))


def _overloaded(symbol, instruction):
    operation = _binary(instruction, _F64)

    @overload(symbol)
    def operate(a, b):
        return (lambda a, b: operation(a, b)) if a == b == _F64 else None


_overloaded(operator.add, "fadd")
_overloaded(operator.sub, "fsub")
_overloaded(operator.mul, "fmul")
_overloaded(operator.truediv, "fdiv")


@intrinsic
def where_less(typingctx, a, b, x, y) -> tuple:
    """float64: x in the lanes where a < b, y in the others."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return _F64(*[_F64] * 4), codegen


def _unary(name, vector, result=None, first=()):
    result = result or vector

    @intrinsic
    def operation(typingctx, x):
        def codegen(context, builder, signature, args):
            kind, llvm = context.get_value_type(result), f"llvm.{name}.{vector.suffix}"
            return _called(builder, llvm, [*first, *args], result=kind, flags=vector.flags)

        return result(vector), codegen

    return operation


root, size = (_unary(name, _F64) for name in ("sqrt", "fabs"))
largest = _unary("vector.reduce.fmax", _F64, types.float64)
"""Of float64: square root and absolute value of each lane, and the largest lane."""
total = _unary("vector.reduce.fadd", _F32, types.float32, [ir.Constant(ir.FloatType(), 0.0)])
"""float32: the sum of the lanes."""


@intrinsic
def sigmoid(typingctx, vector) -> tuple:
    """float32: 1 / (1 + e^−x) to 3 units in the last place; NaN stays NaN."""

    def codegen(context, builder, signature, args):
        one = _constant(1.0)
        return builder.fdiv(one, builder.fadd(one, _exp(builder, builder.fneg(args[0]))))

    return _F32(_F32), codegen


def _exp(builder, x):
    """e^x = 2^n e^r with n the integer next to x / log 2, |r| ≤ log 2 / 2, e^r by its Taylor polynomial of degree 7.

    Adding 1.5·2^23 rounds to an integer and leaves it in the low bits, from where a shift takes it to the exponent.
    Order matters throughout: no fast-math flags. x is clamped to where n stays in range; the comparisons keep NaN.
    """

    def fused(a, b, c):
        return _called(builder, f"llvm.fmuladd.{_F32.suffix}", [a, b, c])

    for limit, order in ((-87.3, "<"), (88.3, ">")):
        x = builder.select(builder.fcmp_ordered(order, x, _constant(limit)), _constant(limit), x)
    magic = _constant(12582912.0)
    shifted = fused(x, _constant(1.4426950408889634), magic)
    # An operation without flags gets numba's, and a processor without fused multiply-add then cancels the rounding.
    n = builder.fsub(shifted, magic, flags=("nsz",))
    # log 2 in two parts, the first of few bits, so that n times it is exact
    r = fused(n, _constant(-0.693359375), x)
    r = fused(n, _constant(2.12194440e-4), r)
    result = _constant(1 / math.factorial(7))
    for degree in range(6, -1, -1):
        result = fused(result, r, _constant(1 / math.factorial(degree)))
    integers = ir.VectorType(ir.IntType(32), WIDTH)
    bits = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * WIDTH))
    power = builder.bitcast(builder.add(bits, ir.Constant(integers, [127 << 23] * WIDTH)), _F32.llvm)
    return builder.fmul(result, power)


def _constant(number):
    # llvmlite writes a float32 constant exactly only when the number is one
    return ir.Constant(_F32.llvm, [struct.unpack("f", struct.pack("f", number))[0]] * WIDTH)
