"""Vector types for numba, whose operations become the machine's own vector instructions.

LLVM splits or widens a vector as the processor needs. Arrays are read flat, whatever their shape, and must be
C-contiguous; nothing checks the index.
"""

from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic


class Vectors(NamedTuple):
    """One vector type: its class and instance in numba, its type in LLVM, and what every such type can do.

    `load(array, index)` is array.flat[index : index + width], `store(array, index, vector)` puts it there, `splat(x)`
    is x in every lane.
    """

    numba_class: type
    numba: types.Type
    llvm: ir.VectorType
    load: object
    store: object
    splat: object


def vectors(name: str, scalar: types.Type, element: ir.Type, width: int) -> Vectors:
    """A new type of `width` numbers, which numba calls `scalar` and LLVM `element`."""
    llvm = ir.VectorType(element, width)
    numba_class = type(name, (types.Type,), {"__init__": lambda self: types.Type.__init__(self, name=name)})
    # A vector is kept as what it is.
    register_default(numba_class)(type(f"{name}Model", (models.PrimitiveModel,), {"__init__": _model_of(llvm)}))
    vector = numba_class()
    return Vectors(
        numba_class, vector, llvm, *_memory(vector, llvm, scalar.bitwidth // 8), _splat(vector, llvm, scalar)
    )


def address(context, builder, array_type, array, index, llvm: ir.VectorType) -> ir.Value:
    """Where array.flat[index] lies, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), llvm.as_pointer())


def shuffled(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    """The lanes of `a` and, counted on, of `b` in this order."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _model_of(llvm):
    return lambda self, manager, kind: models.PrimitiveModel.__init__(self, manager, kind, llvm)


def _memory(vector, llvm, align):
    @intrinsic
    def load(typingctx, array, index):
        def codegen(context, builder, signature, args):
            return builder.load(address(context, builder, signature.args[0], *args, llvm), align=align)

        return vector(array, types.intp), codegen

    @intrinsic
    def store(typingctx, array, index, stored):
        def codegen(context, builder, signature, args):
            builder.store(args[2], address(context, builder, signature.args[0], *args[:2], llvm), align=align)
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), codegen

    return load, store


def _splat(vector, llvm, scalar):
    @intrinsic
    def splat(typingctx, number):
        def codegen(context, builder, signature, args):
            undefined = ir.Constant(llvm, ir.Undefined)
            single = builder.insert_element(undefined, args[0], ir.Constant(ir.IntType(32), 0))
            return shuffled(builder, single, undefined, [0] * llvm.count)

        return vector(scalar), codegen

    return splat
