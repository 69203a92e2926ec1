"""What a global name means inside the forward of one module instance, and of no other."""

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping

from torch import nn


def bind(module: nn.Module, functions: Mapping[str, Callable]) -> None:
    """Give the module a forward of its own, which `copy.deepcopy` carries over: each name means its function there.

    It is a copy of the present one with a globals dictionary of its own: the modelling file, the class, every other
    instance and what accelerate does around the forward stay as they are. Raises RuntimeError where the forward does
    not use a name, as a changed modelling file would make it.
    """
    innermost = _chain(module)[-1]
    unused = [name for name in functions if name not in innermost.__code__.co_names]
    if unused:
        raise RuntimeError(
            f"{type(module).__name__}.forward does not call {', '.join(unused)}, as it does in transformers 5.23 and "
            "flash-linear-attention 0.6; check the installed version"
        )
    copied = _copied(innermost, innermost.__globals__ | functions, innermost.__closure__)
    for wrapper in reversed(_chain(module)[:-1]):
        copied = _rewrapped(wrapper, copied)
    setattr(module, _place(module), types.MethodType(copied, module))


@contextlib.contextmanager
def bound(module: nn.Module, functions: Mapping[str, Callable]) -> Iterator[None]:
    """`bind` for the length of a with block; the forward that stood before comes back whatever happens inside."""
    place = _place(module)
    before = vars(module).get(place)
    bind(module, functions)
    try:
        yield
    finally:
        delattr(module, place)
        if before is not None:
            setattr(module, place, before)


def meaning(module: nn.Module, name: str) -> Callable:
    """The function that the module's forward calls by this global name at present."""
    return _chain(module)[-1].__globals__[name]


def _place(module: nn.Module) -> str:
    """Where the forward is: accelerate's hooks put it aside and call it from there."""
    return "_old_forward" if "_old_forward" in vars(module) else "forward"


def names(module: nn.Module) -> tuple[str, ...]:
    """The global names, among others, that the module's forward uses."""
    return _chain(module)[-1].__code__.co_names


def _chain(module: nn.Module) -> list[types.FunctionType]:
    """The forward and, from the outside in, what its decorators wrap."""
    chain = [getattr(module, _place(module)).__func__]
    while hasattr(chain[-1], "__wrapped__"):
        chain.append(chain[-1].__wrapped__)
    return chain


def _rewrapped(wrapper: types.FunctionType, inner: types.FunctionType) -> types.FunctionType:
    """A copy of a decorator's wrapper that calls `inner` where it called what it wrapped."""
    cells = wrapper.__closure__ or ()
    if not any(cell.cell_contents is wrapper.__wrapped__ for cell in cells):
        raise RuntimeError(f"{wrapper.__qualname__} hides the function that it wraps; srdyn cannot copy it")
    closure = tuple(types.CellType(inner) if cell.cell_contents is wrapper.__wrapped__ else cell for cell in cells)
    copied = _copied(wrapper, wrapper.__globals__, closure)
    copied.__wrapped__ = inner
    return copied


def _copied(function: types.FunctionType, names: dict, closure: tuple | None) -> types.FunctionType:
    copied = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, closure)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied
