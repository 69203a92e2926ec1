"""What one family of recurrent layers has to say about itself."""

import abc
import functools
import inspect
import types
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from srdyn import rebinding


class Heads(NamedTuple):
    """Head grid of one layer: H value heads, each with a K × V state of its own, sharing `key_heads` keys."""

    H: int
    key_heads: int
    K: int
    V: int


class Inputs(NamedTuple):
    """What the recurrence of one layer read, in float32: the arguments of `recurrence.gated_delta_rule`, in its order.

    Queries and keys are normalised; value head h reads with key head h // (H / Hk).
    """

    q: Float[Tensor, "B T Hk K"]
    k: Float[Tensor, "B T Hk K"]
    v: Float[Tensor, "B T H V"]
    g: Float[Tensor, "B T H"]
    beta: Float[Tensor, "B T H"]


class Recipe(abc.ABC):
    """A family whose layers call one function for many tokens, another for a single one, both looked up as globals.

    `mixers` are full class names; `slicing` and `gating` name the rules for cutting heads out and for the decay;
    `chunk_tap` and `step_tap` are the two functions; cuts at multiples of `chunk` tokens leave their results unchanged.
    """

    mixers: ClassVar[tuple[str, ...]]
    model_types: ClassVar[tuple[str, ...]]
    slicing: ClassVar[str]
    gating: ClassVar[str]
    state_axes: ClassVar[tuple[str, str]] = ("K", "V")
    chunk: ClassVar[int] = 64
    chunk_tap: ClassVar[str]
    step_tap: ClassVar[str]
    convolutions: ClassVar[tuple[str, ...]] = ("causal_conv1d_fn", "causal_conv1d_update")

    @abc.abstractmethod
    def index(self, mixer: nn.Module) -> int:
        """Place of the layer in the decoder."""

    @abc.abstractmethod
    def heads(self, mixer: nn.Module) -> Heads:
        """Head grid as the module stands, after any pruning."""

    @abc.abstractmethod
    def gates(
        self, mixer: nn.Module, hidden: Float[Tensor, "B T M"]
    ) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
        """Log-decay g ≤ 0 and write strength beta, both float32, from the hidden states that the layer reads."""

    @abc.abstractmethod
    def conv_values(self, mixer: nn.Module) -> int:
        """How many numbers the layer's short convolution keeps in the cache, per sequence."""

    @abc.abstractmethod
    def inputs(self, query: Tensor, key: Tensor, value: Tensor, *, g: Tensor, beta: Tensor) -> Inputs:
        """The chunk function's arguments as the update rule of `recurrence` takes them."""

    @abc.abstractmethod
    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        """Leave the module, in place, the weights of these heads, named by their present places in it."""

    def is_pruned(self, mixer: nn.Module) -> bool:
        """Whether heads were taken out of the module."""
        return hasattr(mixer, "srdyn_kept")

    def kept(self, mixer: nn.Module) -> tuple[int, ...]:
        """The value heads that the module holds, by the numbers they had before any pruning."""
        return getattr(mixer, "srdyn_kept", tuple(range(self.heads(mixer).H)))

    def unpruned(self, mixer: nn.Module) -> Heads:
        """Head grid before any pruning."""
        return getattr(mixer, "srdyn_unpruned", self.heads(mixer))

    def sharing(self, mixer: nn.Module) -> list[int]:
        """The key head of each value head, both among those that the module holds."""
        keys = self._keys(mixer, self.kept(mixer))
        places = {key: place for place, key in enumerate(sorted(set(keys)))}
        return [places[key] for key in keys]

    def keep(self, mixer: nn.Module, heads: Sequence[int]) -> None:
        """Cut the module down, in place, to these value heads, by the numbers they had before any pruning.

        Keys that none of them reads with go too; without heads no parameter stays. Nor does what was bound to the
        forward: `make_runnable` comes after this.
        Raises ValueError unless the numbers increase and the module holds them all.
        """
        held, heads, unpruned = self.kept(mixer), tuple(heads), self.unpruned(mixer)
        if list(heads) != sorted(set(heads) & set(held)):
            raise ValueError(
                f"decoder layer {self.index(mixer)} holds the heads {list(held)}: keep some of these, in increasing "
                f"order, got {list(heads)}"
            )
        vars(mixer).pop("forward", None)
        if heads == held:
            return
        keys_held, keys = (sorted(set(self._keys(mixer, x))) for x in (held, heads))
        self.cut(mixer, [held.index(head) for head in heads], [keys_held.index(key) for key in keys])
        mixer.srdyn_kept, mixer.srdyn_unpruned = heads, unpruned
        if not heads:
            _strip(mixer)

    def _keys(self, mixer: nn.Module, heads: Sequence[int]) -> list[int]:
        """The key head that each value head reads with, numbered as before any pruning."""
        unpruned = self.unpruned(mixer)
        return [head // (unpruned.H // unpruned.key_heads) for head in heads]

    def readout(self, mixer: nn.Module) -> nn.Linear:
        """The projection of the heads' outputs, side by side, to the layer's output."""
        return mixer.out_proj

    def oriented(self, state: Float[Tensor, "B H _ _"]) -> Float[Tensor, "B H K V"]:
        """The state as `[B, H, K, V]`, whichever axis the family puts first."""
        return state if self.state_axes == ("K", "V") else state.transpose(-1, -2)

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """What the layer calls on a CPU, by global name: the plain torch functions.

        transformers binds flash-linear-attention's functions at import whatever the device; they need a GPU.
        """
        names = (self.chunk_tap, self.step_tap, *self.convolutions)
        return {name: inspect.unwrap(rebinding.meaning(mixer, name)) for name in names}

    def make_runnable(self, mixer: nn.Module) -> None:
        """Let this one module call its `cpu_functions` where its tensors are on a CPU, the stock ones elsewhere.

        A module that lost all its heads returns zeros.
        """
        if not self.kept(mixer):
            mixer.forward = types.MethodType(_zeros, mixer)
            return
        functions = self.cpu_functions(mixer)
        rebinding.bind(
            mixer, {name: _by_device(on_cpu, rebinding.meaning(mixer, name)) for name, on_cpu in functions.items()}
        )


def _by_device(on_cpu: Callable, elsewhere: Callable) -> Callable:
    @functools.wraps(on_cpu)
    def call(x: Tensor, *arguments, **options):
        return (on_cpu if x.device.type == "cpu" else elsewhere)(x, *arguments, **options)

    return call


def _strip(mixer: nn.Module) -> None:
    """Take all parameters away."""
    for name, _ in [*mixer.named_children(), *mixer.named_parameters(recurse=False)]:
        delattr(mixer, name)
    # transformers would otherwise give weights that are not there their first values.
    mixer._is_hf_initialized = True


def _zeros(_mixer: nn.Module, hidden_states: Tensor, *_arguments, **_options) -> Tensor:
    return torch.zeros_like(hidden_states)
