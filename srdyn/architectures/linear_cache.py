"""A cache that knows its length although no layer of the model attends.

transformers 5.23 asks the first softmax layer how many tokens were read. A model of linear layers only has none, so
that `use_cache=True` and `generate` raise.
"""

import types

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin


class LinearCache(DynamicCache):
    """`DynamicCache` with a token count, kept by the hooks of `attach`."""

    seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.seen + query_length, 0


def is_needed(hf: PreTrainedModel) -> bool:
    """Whether no layer of the model's own cache knows a length."""
    return not any(isinstance(layer, CacheLayerMixin) for layer in DynamicCache(config=_config(hf)).layers)


def empty(hf: PreTrainedModel) -> DynamicCache:
    """A cache for the model, before its first token."""
    return (LinearCache if is_needed(hf) else DynamicCache)(config=_config(hf))


def held_bytes(cache: Cache) -> tuple[int, int]:
    """Bytes of the recurrent states that a cache holds, and of all that it holds."""
    states, others = [], []
    for layer in cache.layers:
        # flash-linear-attention's layers keep all they hold in one dictionary.
        held = dict(getattr(layer, "state", None) or {})
        states.append(held.pop("recurrent_state", None))
        others += [x for kept in held.values() for x in (kept if isinstance(kept, tuple) else (kept,))]
        states += getattr(layer, "recurrent_states", {}).values()
        others += getattr(layer, "conv_states", {}).values()
        others += [getattr(layer, name, None) for name in ("keys", "values")]
    own, rest = (sum(x.numel() * x.itemsize for x in held if x is not None) for held in (states, others))
    return own, own + rest


def attach(hf: PreTrainedModel) -> None:
    """Let this one model, called or generating with a cache that it makes itself, use a `LinearCache`."""
    if getattr(hf.generate, "__func__", None) is _generate:
        return
    decoder = hf.get_decoder()
    decoder.register_forward_pre_hook(_supply, with_kwargs=True)
    decoder.register_forward_hook(_count, with_kwargs=True)
    hf.generate = types.MethodType(_generate, hf)


def _config(hf: PreTrainedModel):
    return hf.config.get_text_config(decoder=True)


def _supply(decoder: nn.Module, arguments: tuple, options: dict) -> tuple[tuple, dict]:
    use_cache = options.get("use_cache")
    use_cache = _config(decoder).use_cache if use_cache is None else use_cache
    if use_cache and options.get("past_key_values") is None:
        options = {**options, "past_key_values": LinearCache(config=_config(decoder))}
    return arguments, options


def _count(decoder: nn.Module, arguments: tuple, options: dict, output) -> None:
    cache = options.get("past_key_values")
    if isinstance(cache, LinearCache):
        given = (options.get("input_ids"), options.get("inputs_embeds"), *arguments)
        cache.seen += next(x for x in given if x is not None).shape[1]


@torch.no_grad()
def _generate(hf: PreTrainedModel, *arguments, **options):
    settings = options.get("generation_config") or hf.generation_config
    cached = options.get("use_cache", settings.use_cache) is not False
    if cached and options.get("past_key_values") is None:
        options["past_key_values"] = LinearCache(config=_config(hf))
    return type(hf).generate(hf, *arguments, **options)
