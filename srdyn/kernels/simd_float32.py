"""Sixteen float32 at a time in numba: a vector type whose operations become the machine's own vector instructions.

Numba leaves vectorisation to LLVM's heuristics, which give up on the loops of `scan` and `fused`. Here the vectors are
explicit: LLVM splits or widens `<16 x float>` as the processor needs (one AVX-512 register, two of AVX2, four of NEON).
Arrays are read flat, whatever their shape, and must be C-contiguous; nothing checks the index.
"""

import math
import struct
import warnings
from collections.abc import Callable, Collection

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from srdyn.kernels.simd import address, shuffled, vectors

WIDTH = 16
_LANES = vectors("Lanes16xf32", types.float32, ir.FloatType(), WIDTH)
lanes_type, _VECTOR, load, store, splat = _LANES[1:]
_FLAGS = ("reassoc", "contract", "nsz", "arcp")
_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO = 0x8000, 0x0040


def compiled(function: Callable, *, flags: Collection[str] = _FLAGS) -> Callable:
    """`numba.njit` as `scan_loops` and `fused` need it: sums may be reordered, NaN and infinity keep their meaning.

    The machine code is kept beside the module, or in the user's cache where that cannot be written; where neither can,
    it warns and compiles in every process. Numba notices changes in the function's own file only: after a change here,
    delete __pycache__.
    """
    options = {"fastmath": set(flags), "nogil": True}
    try:
        return njit(**options, cache=True)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        warnings.warn("no folder to keep compiled code in, set NUMBA_CACHE_DIR; compiling again", stacklevel=2)
        return njit(**options)(function)


@intrinsic
def mul_add(typingctx, a, b, c) -> tuple:
    """a·b + c, rounded once where the processor can."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")
        return builder.call(function, args, fastmath=_FLAGS)

    return lanes_type(lanes_type, lanes_type, lanes_type), codegen


def _binary(name):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, name)(*args, flags=_FLAGS)

        return lanes_type(lanes_type, lanes_type), codegen

    return operation


mul = _binary("fmul")
add = _binary("fadd")
sub = _binary("fsub")


@intrinsic
def sigmoid(typingctx, vector) -> tuple:
    """1 / (1 + e^−x) to 3 units in the last place; NaN stays NaN."""

    def codegen(context, builder, signature, args):
        one = _constant(1.0)
        return builder.fdiv(one, builder.fadd(one, _exp(builder, builder.fneg(args[0]))))

    return lanes_type(lanes_type), codegen


@intrinsic
def total(typingctx, vector) -> tuple:
    """The sum of the sixteen lanes."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
        return builder.call(function, [ir.Constant(ir.FloatType(), 0.0), args[0]], fastmath=_FLAGS)

    return types.float32(lanes_type), codegen


@intrinsic
def row_totals(typingctx, array, index) -> tuple:
    """The sixteen row sums of array.flat[index : index + 256] seen as 16 × 16, by a tree of shuffles."""

    def codegen(context, builder, signature, args):
        rows = []
        for row in range(WIDTH):
            start = builder.add(args[1], context.get_constant(types.intp, WIDTH * row))
            place = address(context, builder, signature.args[0], args[0], start, _VECTOR)
            rows.append((builder.load(place, align=4), [row]))
        while len(rows) > 1:
            half = len(rows) // 2
            rows = [_folded(builder, a, b) for a, b in zip(rows[:half], rows[half:], strict=True)]
        vector, order = rows[0]
        return shuffled(builder, vector, vector, [order.index(row) for row in range(WIDTH)])

    return lanes_type(array, types.intp), codegen


def _exp(builder, x):
    """e^x = 2^n e^r with n the integer next to x / log 2, |r| ≤ log 2 / 2, e^r by its Taylor polynomial of degree 7.

    Adding 1.5·2^23 rounds to an integer and leaves it in the low bits, from where a shift takes it to the exponent.
    Order matters throughout: no fast-math flags. x is clamped to where n stays in range; the comparisons keep NaN.
    """
    for limit, order in ((-87.3, "<"), (88.3, ">")):
        x = builder.select(builder.fcmp_ordered(order, x, _constant(limit)), _constant(limit), x)
    magic = _constant(12582912.0)
    shifted = _fused(builder, x, _constant(1.4426950408889634), magic)
    n = builder.fsub(shifted, magic)
    # log 2 in two parts, the first of few bits, so that n times it is exact
    r = _fused(builder, n, _constant(-0.693359375), x)
    r = _fused(builder, n, _constant(2.12194440e-4), r)
    result = _constant(1 / math.factorial(7))
    for degree in range(6, -1, -1):
        result = _fused(builder, result, r, _constant(1 / math.factorial(degree)))
    integers = ir.VectorType(ir.IntType(32), WIDTH)
    bits = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * WIDTH))
    power = builder.bitcast(builder.add(bits, ir.Constant(integers, [127 << 23] * WIDTH)), _VECTOR)
    return builder.fmul(result, power)


def _fused(builder, a, b, c):
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32"), [a, b, c])


def _constant(number):
    # llvmlite writes a float32 constant exactly only when the number is one
    return ir.Constant(_VECTOR, [struct.unpack("f", struct.pack("f", number))[0]] * WIDTH)


def _folded(builder, first, second):
    (a, rows_a), (b, rows_b) = first, second
    groups = len(rows_a)
    width = WIDTH // groups
    low = [group * width + lane for group in range(2 * groups) for lane in range(width // 2)]
    high = [lane + width // 2 for lane in low]
    return builder.fadd(shuffled(builder, a, b, low), shuffled(builder, a, b, high), flags=_FLAGS), rows_a + rows_b


@intrinsic
def flush_denormals(typingctx) -> tuple:
    """Makes this thread treat denormal numbers as zero; returns the control word that `restore_denormals` takes.

    They slow an x86 processor down a hundredfold, and a decaying state is full of them. No effect on others.
    """

    def codegen(context, builder, signature, args):
        if not _is_x86(builder):
            return ir.Constant(ir.IntType(32), 0)
        word = cgutils.alloca_once(builder, ir.IntType(32))
        _control_word(builder, "stmxcsr", word)
        before = builder.load(word)
        builder.store(builder.or_(before, ir.Constant(ir.IntType(32), _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO)), word)
        _control_word(builder, "ldmxcsr", word)
        return before

    return types.uint32(), codegen


@intrinsic
def restore_denormals(typingctx, before) -> tuple:
    """Sets this thread's control word back to what `flush_denormals` found."""

    def codegen(context, builder, signature, args):
        if _is_x86(builder):
            word = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(args[0], word)
            _control_word(builder, "ldmxcsr", word)
        return context.get_dummy_value()

    return types.void(types.uint32), codegen


def _is_x86(builder):
    return builder.module.triple.startswith(("x86", "i386", "i686"))


def _control_word(builder, instruction, word):
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{instruction}")
    builder.call(function, [builder.bitcast(word, pointer)])
