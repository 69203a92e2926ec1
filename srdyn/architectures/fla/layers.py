"""Layers of flash-linear-attention's models, on a GPU with its kernels and on a CPU without them.

https://github.com/fla-org/flash-linear-attention 0.6. It is imported by those who have such a model, not from here.
Its registry of backends would change every model in the process; twins come by `rebinding`, module by module.
"""

import functools
import importlib
import types
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srdyn.architectures import rebinding, recipe
from srdyn.architectures.fla import ops
from srdyn.kernels import recurrence, scan

_COMPILED = {
    recurrence.gated_delta_rule: functools.partial(scan.gated_delta_rule, output_final_state=True),
    recurrence.kimi_delta_rule: scan.kimi_delta_rule,
    recurrence.gated_linear_attention: scan.gated_linear_attention,
    recurrence.rwkv7: scan.rwkv7,
}
"""Faster forms of rules, which return the last state alone."""


class Layer(recipe.Recipe):
    """What all of these layers have in common; they name every argument of their recurrence.

    An ablated head has values of zero, which write nothing.
    """

    places = ()
    timed = ("q", "k", "v", "g", "beta")
    convolutions = ()
    written = "v"
    shared = ("q", "k")
    rows: ClassVar = {"key_dim": "key", "value_dim": "value"}
    sizes = ("num_v_heads", "num_heads", "head_k_dim", "head_v_dim")

    @property
    def readers(self) -> tuple[str, ...]:
        """Both, since a short sequence is read by the function for single tokens."""
        return self.chunk_tap, self.step_tap

    def empty_cache(self, hf: PreTrainedModel) -> object:
        return importlib.import_module("fla.models.cache_utils").Cache()

    def stored(self, cache: object, index: int) -> Tensor:
        return cache[index]["recurrent_state"]

    def cpu_functions(self, mixer: nn.Module) -> dict[str, Callable]:
        """Whatever the layer calls that has a twin, and the recurrence."""
        twins = {name: ops.FUNCTIONS[name] for name in rebinding.names(mixer) if name in ops.FUNCTIONS}
        return twins | dict.fromkeys(self.readers, self.of(mixer).on_cpu)

    def on_cpu(self, **options) -> tuple[Tensor, Tensor | None]:
        """What `chunk_tap` and `step_tap` return: the recipe's rule for what they read, in float32.

        Token by token, so that the results are the same wherever a pass is cut. Raises ValueError for packed sequences.
        """
        call = self.taken_apart((), options)
        ops.require_unpacked(options.get("cu_seqlens"))
        state = None if call.state is None else self.oriented(call.state.float())
        outputs, last = _COMPILED.get(self.rule, self.rule)(*self.inputs(call), initial_state=state)
        last = last if self.rule in _COMPILED else last[:, -1]
        last = self.oriented(last).contiguous() if options.get(self.wants_state) else None
        return outputs.to(call.timed["v"].dtype), last

    def bind(self, mixer: nn.Module) -> None:
        if getattr(mixer, "mode", None) in ("fused_chunk", "parallel"):
            mixer.mode = "chunk"  # The same outputs from a kernel that hands out a state.
        super().bind(mixer)

    @staticmethod
    def copied(x: Tensor, own: Tensor) -> Tensor:
        """By indexing, which keeps the order of x in memory, in which sums over its channels are taken."""
        return x[:, :, own]

    def make_model_runnable(self, hf: PreTrainedModel) -> None:
        stock = importlib.import_module("fla.modules.activations")
        activations = {getattr(stock, name): twin for name, twin in ops.ACTIVATIONS.items()}
        for module in hf.modules():
            if type(module).__module__.startswith("fla."):
                _make_module_runnable(module, activations)
        # Training that penalises large logits within the loss stays with flash-linear-attention's own.
        penalised = all(getattr(hf.config, name, False) for name in ("fuse_linear_cross_entropy", "use_l2warp"))
        if getattr(hf, "criterion", 0) is None and not penalised:
            hf.criterion = ops.CrossEntropy()

    @staticmethod
    def nothing(mixer: nn.Module, hidden_states: Tensor, past_key_values: object = None, **_options) -> tuple:
        """The forward of a layer without heads, which still counts the tokens that a cache has seen."""
        if past_key_values is not None:
            past_key_values.update(layer_idx=mixer.layer_idx, offset=hidden_states.shape[1])
        return torch.zeros_like(hidden_states), None, past_key_values


def _make_module_runnable(module: nn.Module, activations: dict[Callable, Callable]) -> None:
    """Replace what the module holds and calls that has a twin; layers have done so with what they call."""
    for name, stock in list(vars(module).items()):
        if callable(stock) and stock in activations:
            setattr(module, name, recipe.by_device(activations[stock], stock))
    if "forward" in vars(module):
        return
    if type(module).__name__ == "ShortConvolution":
        forward = recipe.by_device(ops.short_convolution, type(module).forward)
        module.forward = types.MethodType(forward, module)
        return
    twins = {name: ops.FUNCTIONS[name] for name in rebinding.names(module) if name in ops.FUNCTIONS}
    if twins:
        recipe.bind_on_cpu(module, twins)
