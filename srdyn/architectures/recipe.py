"""What one family of recurrent layers has to say about itself."""

import contextlib
import copy
import functools
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from srdyn.architectures import linear_cache, rebinding, slicing
from srdyn.architectures.calls import Call, Decay, Heads, Inputs, Rows
from srdyn.kernels import recurrence


class Recipe:
    """A family whose layers call one function for many tokens, another for a single one, both looked up as globals."""

    mixers: ClassVar[tuple[str, ...]]  # full class names of the layers
    model_types: ClassVar[tuple[str, ...]]
    slicing: ClassVar[str] = "any heads"  # which heads can be cut out
    gating: ClassVar[str] = "per head"  # what decays at a rate of its own
    has_decay: ClassVar[bool] = True  # whether heads forget: whether g is not 0 throughout
    sizes: ClassVar[tuple[str, ...]]  # the module's attributes that `Heads` is made of
    rows: ClassVar[dict[str, str]]  # whose the rows of each part are, or what a number counts, by `units`
    state_axes: ClassVar[tuple[str, str]] = ("K", "V")
    rule: ClassVar[Callable] = staticmethod(recurrence.gated_delta_rule)  # the recurrence as `kernels` has it
    # The functions for many tokens and for a single one, and their arguments: by place, and those over the tokens.
    chunk_tap: ClassVar[str]
    step_tap: ClassVar[str]
    chunk: ClassVar[int] = 64  # cuts at multiples of so many tokens change no result
    places: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    timed: ClassVar[tuple[str, ...]] = ("query", "key", "value", "g", "beta")
    written: ClassVar[str] = "beta"  # where this is 0 a head writes nothing
    log_decay: ClassVar[tuple[str, ...]] = ("g",)  # what calls name the log-decay, whichever of these they have
    first_state: ClassVar[str] = "initial_state"
    wants_state: ClassVar[str] = "output_final_state"
    cache_argument: ClassVar[str] = "past_key_values"
    convolutions: ClassVar[tuple[str, ...]] = ("causal_conv1d_fn", "causal_conv1d_update")
    # The arguments whose heads are key heads, which serve unequal numbers of value heads once some of these are gone:
    # then each value head gets its own copy before the recurrence, while weights and cache hold a key once.
    shared: ClassVar[tuple[str, ...]] = ()
    own_key: Callable[[torch.device], Int64[Tensor, " held"]] | None = None  # then the key head of each value head

    def heads(self, mixer: nn.Module) -> Heads:
        """Head grid as the module stands, after any pruning."""
        return Heads(*(getattr(mixer, name) for name in self.sizes))

    def cut(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> None:
        """Leave the module, in place, the weights of these heads, named by their present places in it."""
        units, parts = self.units(mixer, value_heads, key_heads), dict(mixer.named_modules())
        for path, unit in self.rows.items():
            owner, _, name = path.rpartition(".")
            if getattr(parts.get(owner), name, None) is not None:
                slicing.cut(parts[owner], name, units[unit])
        readout, columns = self.readout(mixer), units["value"]
        readout.weight, readout.in_features = slicing.taken(readout.weight, columns, axis=1), len(columns)
        for name, kept in zip(self.sizes[:2], (value_heads, key_heads), strict=True):
            setattr(mixer, name, len(kept))

    def units(self, mixer: nn.Module, value_heads: Sequence[int], key_heads: Sequence[int]) -> dict[str, Rows]:
        """The rows of these heads in a part of the module, by whose rows the part has.

        A value head has one row in a part of "head", K in one of "channel", V in one of "value"; a key head one in a
        part of "key head", K in one of "key", V in one of "shared value". "qkv" has key, key and value, one by one.
        """
        _, all_keys, K, V = self.heads(mixer)
        units = {unit: slicing.blocks(value_heads, n) for unit, n in (("head", 1), ("channel", K), ("value", V))}
        units |= {x: slicing.blocks(key_heads, n) for x, n in (("key head", 1), ("key", K), ("shared value", V))}
        keys, values = units["key"], units["value"]
        return units | {"qkv": torch.cat([keys, all_keys * K + keys, 2 * all_keys * K + values])}

    def conv_values(self, mixer: nn.Module) -> int:
        """How many numbers the layer's short convolutions keep in the cache, per sequence."""
        return sum(part.weight.numel() for part in mixer.modules() if isinstance(part, nn.Conv1d))

    def inputs(self, call: Call) -> Inputs:
        """What the call reads, as `rule` takes it by place; here the recurrence itself normalises queries and keys."""
        q, k, v, g, beta = call.floats(*self.timed)
        return Inputs(q=recurrence.l2norm(q), k=recurrence.l2norm(k), v=v, g=g, beta=beta)

    def of(self, mixer: nn.Module) -> "Recipe":
        """The recipe for this one module: one that knows of it what a call of the recurrence does not tell."""
        if not self.shared or not self.is_pruned(mixer):
            return self
        known = copy.copy(self)
        known.own_key = functools.cache(torch.tensor(self.sharing(mixer), dtype=torch.int64).to)
        return known

    @property
    def gated_delta(self) -> bool:
        """Whether states follow the gated delta rule with one decay a head, as nulls of decay and Eq. 13 assume."""
        return self.rule is recurrence.gated_delta_rule

    @property
    def readers(self) -> tuple[str, ...]:
        """The functions that may be given a sequence from its first token on."""
        return (self.chunk_tap,)

    def taken_apart(self, arguments: tuple, options: dict) -> Call:
        """A call of `chunk_tap` or `step_tap` by its parts."""
        named = self._named(arguments, options)
        state = named.pop(self.first_state, None)
        named.pop(self.wants_state, None)
        timed = {name: named.pop(name) for name in self.timed if named.get(name) is not None}
        return Call(timed, state, named)

    def run(self, function: Callable, call: Call) -> tuple[Tensor, Tensor]:
        """Outputs and last state of the function so called."""
        named = call.options | call.timed | {self.first_state: call.state, self.wants_state: True}
        arguments = [named.pop(name) for name in self.places]
        return function(*arguments, **named)

    def chunk_of(self, call: Call) -> int:
        """How many tokens a chunk of this call has; on a CPU one, where `cpu_functions` read token by token."""
        return 1 if next(iter(call.timed.values())).device.type == "cpu" else self.chunk

    def returned(self, outputs: Tensor, state: Tensor, options: dict) -> object:
        """What the layer expects back from a function that it called with these options."""
        return outputs, state if options.get(self.wants_state) else None

    def silenced(self, call: Call, chosen: Bool[Tensor, " held"]) -> Call:
        """The call with nothing to write (`written` zero) and a zero first state for the chosen of the heads held."""
        x = call.timed[self.written]
        out = chosen.to(x.device)
        timed = call.timed | {self.written: x.masked_fill(out if x.ndim == 3 else out[:, None], 0)}
        state = None if call.state is None else call.state.masked_fill(out[:, None, None], 0)
        return call._replace(timed=timed, state=state)

    def forgetting(self, call: Call, decay: Decay) -> Call:
        """The call with other log-decays. Keys and write strengths stay, though the layer may make them of the same."""
        name = next(name for name in self.log_decay if name in call.timed)
        return call._replace(timed=call.timed | {name: decay.of(call.timed[name])})

    def silencing(self, mixer: nn.Module, chosen: Bool[Tensor, " held"]) -> contextlib.AbstractContextManager:
        """While this is open, what the chosen heads add to the layer's output beside the recurrence is out as well."""
        return contextlib.nullcontext()

    def empty_cache(self, hf: PreTrainedModel) -> object:
        """A cache for the model, before its first token, to be handed over as `cache_argument`."""
        return linear_cache.empty(hf)

    def stored(self, cache: object, index: int) -> Tensor:
        """The state of the decoder's layer `index` in a cache, axes as the family has them."""
        return cache.get_recurrent_state(index, state_idx=0)

    def convolution_width(self, mixer: nn.Module) -> int | None:
        """How many tokens a value that the layer writes depends on, 1 without a short convolution; None: not known."""
        return max((part.kernel_size[0] for part in mixer.modules() if isinstance(part, nn.Conv1d)), default=1)

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

        Keys that none of them reads with go too, and what was bound to the forward: `make_runnable` comes after this.
        Raises ValueError unless the numbers increase and the module holds them all.
        """
        held, heads, unpruned = self.kept(mixer), tuple(heads), self.unpruned(mixer)
        if list(heads) != sorted(set(heads) & set(held)):
            raise ValueError(
                f"decoder layer {mixer.layer_idx} holds the heads {list(held)}: keep some of these, in increasing "
                f"order, got {list(heads)}"
            )
        for bound in ("forward", "srdyn_decay"):
            vars(mixer).pop(bound, None)
        if heads == held:
            return
        keys_held, keys = (sorted(set(self._keys(mixer, x))) for x in (held, heads))
        self.cut(mixer, [held.index(head) for head in heads], [keys_held.index(key) for key in keys])
        mixer.srdyn_kept, mixer.srdyn_unpruned = heads, unpruned
        if not heads:
            for name, _ in [*mixer.named_children(), *mixer.named_parameters(recurse=False)]:
                delattr(mixer, name)
            # transformers would otherwise give weights that are not there their first values.
            mixer._is_hf_initialized = True

    def as_stock(self, mixer: nn.Module, *, repeat_keys: bool) -> None:
        """Put a pruned module's weights, in place, as its family reads them, if need be with a key for each value head.

        What is left holds the tensors of a stock layer with fewer heads, and cannot run.
        """
        if repeat_keys:
            self.cut(mixer, range(self.heads(mixer).H), self.sharing(mixer))

    def as_engines_read(self, mixer: nn.Module, stock: PreTrainedModel, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A `stock` model's tensors under names that engines read too, where transformers alone reads its own."""
        return state

    def _keys(self, mixer: nn.Module, heads: Sequence[int]) -> list[int]:
        """The key head that each value head reads with, numbered as before any pruning."""
        unpruned = self.unpruned(mixer)
        return [head // (unpruned.H // unpruned.key_heads) for head in heads]

    def readout(self, mixer: nn.Module) -> nn.Linear:
        """The projection of the heads' outputs, side by side, to the layer's output."""
        return mixer.out_proj if hasattr(mixer, "out_proj") else mixer.o_proj

    def oriented(self, state: Float[Tensor, "B H _ _"]) -> Float[Tensor, "B H K V"]:
        """The state as `[B, H, K, V]`, whichever axis the family puts first."""
        return state if self.state_axes == ("K", "V") else state.transpose(-1, -2)

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """What the layer calls on a CPU, by global name: the plain torch functions.

        transformers binds flash-linear-attention's at import whatever the device; they need a GPU.
        """
        names = (self.chunk_tap, self.step_tap, *self.convolutions)
        return {name: inspect.unwrap(rebinding.meaning(mixer, name)) for name in names}

    def make_model_runnable(self, hf: PreTrainedModel) -> None:
        """Let the rest of this one model run on a CPU too, where it would not; once for a model, after its layers."""

    def make_runnable(self, mixer: nn.Module) -> None:
        """Let this one module call its `cpu_functions` where its tensors are on a CPU, the stock ones elsewhere.

        A module that lost all its heads does `nothing`.
        """
        if self.kept(mixer):
            self.bind(mixer)
        else:
            mixer.forward = types.MethodType(self.nothing, mixer)

    def bind(self, mixer: nn.Module) -> None:
        """`make_runnable` for a module with heads."""
        bind_on_cpu(mixer, self.cpu_functions(mixer))
        known = self.of(mixer)
        if known.own_key is not None:
            names = (self.chunk_tap, self.step_tap)
            rebinding.bind(mixer, {name: known._with_own_keys(rebinding.meaning(mixer, name)) for name in names})

    @staticmethod
    def nothing(mixer: nn.Module, hidden_states: Tensor, *_arguments, **_options) -> Tensor:
        """The forward of a module without heads."""
        return torch.zeros_like(hidden_states)

    @staticmethod
    def copied(x: Shaped[Tensor, "B T held *K"], own: Int64[Tensor, " H"]) -> Shaped[Tensor, "B T H *K"]:
        """Of the heads of x that each value head uses a copy."""
        return x.index_select(2, own)

    def _named(self, arguments: tuple, options: dict) -> dict:
        """The arguments of a call by name, of key heads a copy for each value head, unless they have it."""
        named = dict(zip(self.places, arguments, strict=False)) | options
        if self.own_key is not None:
            for name in self.shared:
                x = named.get(name)
                if x is not None and x.shape[2] != len(own := self.own_key(x.device)):
                    named[name] = self.copied(x, own)
        return named

    def _with_own_keys(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*arguments, **options):
            named = self._named(arguments, options)
            arguments = [named.pop(name) for name in self.places]
            return function(*arguments, **named)

        return call


def bind_on_cpu(module: nn.Module, functions: Mapping[str, Callable]) -> None:
    """`rebinding.bind` where the module's tensors are on a CPU; elsewhere it calls what it did."""
    rebinding.bind(module, {name: by_device(functions[name], rebinding.meaning(module, name)) for name in functions})


def by_device(on_cpu: Callable, elsewhere: Callable) -> Callable:
    """One function on a CPU, another elsewhere, by the first tensor that it is called with."""

    @functools.wraps(on_cpu)
    def call(*arguments, **options):
        x = next(x for x in (*arguments, *options.values()) if isinstance(x, Tensor))
        return (on_cpu if x.device.type == "cpu" else elsewhere)(*arguments, **options)

    return call
