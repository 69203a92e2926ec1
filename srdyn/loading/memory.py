"""What the caches of linear-attention models cost, from models without weights."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from srdyn import architectures
from srdyn.loading import checkpoints, files

_FLOAT32_BYTES = 4
RECURRENT, _ATTENDING = {"linear_attention", "hybrid"}, {"full_attention", "indexed_attention", "hybrid"}
"""The kinds of layers that hold a state, keys and values; `hybrid` layers hold both."""
_WITHOUT_CACHE = {"moe", "mlp"}
_FAMILIES = ("Qwen3Next", "Qwen3_5Text", "Qwen3_5MoeText", "Qwen4ExpText", "OlmoHybrid", "KimiLinear", "BailingHybrid")
_FAMILIES += ("Glm5Next", "Bamba", "GraniteMoeHybrid", "FalconH1", "Mamba2", "NemotronH", "Zamba2")
"""Classes of configurations whose defaults the ledger lists, in its order."""
_INDEX = dict.fromkeys(("indexer_n_heads", "indexer_kv_heads", "indexer_budget", "indexer_compress_ratio"), 1)
_INDEX |= {"indexer_head_dim": 256}
"""What the defaults of Qwen4-Exp leave open: the index of its attention, which is not counted."""


class Attention(NamedTuple):
    """How many layers attend, the numbers that each keeps of a token, and of how many tokens (None: of all)."""

    layers: int
    per_token: int
    window: int | None = None

    def values(self, tokens: int) -> int:
        """How many numbers they keep together after `tokens` tokens."""
        return self.layers * self.per_token * min(tokens, self.window or tokens)


def ledger(
    tokens: Sequence[int], *, removed: float = 0.389, configs: Mapping[str, PreTrainedConfig] | None = None
) -> pd.DataFrame:
    """Bytes of the whole cache of one sequence, a row for each configuration and context length, by default `families`.

    States count as float32; short convolutions, keys and values as bfloat16. `removed_heads` is k = round(removed ×
    heads) over all layers, as the paper cuts; `removed_bytes` are their states alone, and `freed` is the share of the
    whole cache that these make up. `break_even` is the context length in tokens at which keys and values cost as much
    as the states, NaN without attention. The index of a sparse attention is not counted.
    Raises ValueError for a negative length, a share outside 0 … 1, a model without a state, and as `attention` does.
    """
    if any(length < 0 for length in tokens):
        raise ValueError(f"a context holds 0 tokens or more, got {list(tokens)}")
    if not 0 <= removed <= 1:
        raise ValueError(f"removed is a share of the heads, between 0 and 1, got {removed}")
    rows = []
    for name, config in (families() if configs is None else configs).items():
        hf = checkpoints.outline(config, dtype=torch.bfloat16)
        if not (sites := architectures.sites(hf)):
            raise ValueError(f"{name} ({type(config).__name__}) has no linear-attention layers")
        _, _, K, V = sites[0].recipe.heads(sites[0].mixer)
        heads = sum(len(site.recipe.kept(site.mixer)) for site in sites)
        state, conv, attends, k = state_bytes(hf), _conv_bytes(hf), attention(hf.config), round(removed * heads)
        for length in tokens:
            kept, per_token = (attends.values(n) * hf.dtype.itemsize for n in (length, 1))
            total, removed_bytes = state + conv + kept, k * K * V * _FLOAT32_BYTES
            rows.append({
                "model": name, "model_type": hf.config.get_text_config(decoder=True).model_type,
                "recurrent": len(sites), "attention": attends.layers, "heads": heads, "K": K, "V": V, "tokens": length,
                "state_bytes": state, "conv_bytes": conv, "kv_bytes": kept, "total_bytes": total,
                "removed_heads": k, "removed_bytes": removed_bytes, "freed": removed_bytes / total,
                "break_even": state / per_token if per_token else float("nan"),
            })  # fmt: skip
    return pd.DataFrame(rows)


def families() -> dict[str, PreTrainedConfig]:
    """The reference models that differ in their caches, then every class's default, which checkpoints differ from."""
    folder = files.data_dir() / "models"
    ours = {name: transformers.Qwen3NextConfig.from_pretrained(folder / name) for name in ("hybrid", "pure")}
    # By class, never by `model_type`: importing flash-linear-attention re-registers some of those.
    open_in = {"Qwen4ExpText": _INDEX}
    configs = [getattr(transformers, f"{stem}Config")(**open_in.get(stem, {})) for stem in _FAMILIES]
    return ours | {config.get_text_config(decoder=True).model_type: config for config in configs}


def state_bytes(hf: nn.Module) -> int:
    """Bytes of recurrent state that one sequence costs a model, whatever its length (float32)."""
    sizes = ((site.recipe.heads(site.mixer), site.recipe.kept(site.mixer)) for site in architectures.sites(hf))
    return sum(len(kept) * heads.K * heads.V for heads, kept in sizes) * _FLOAT32_BYTES


def cache_bytes(hf: nn.Module, tokens: int) -> int:
    """Bytes of the whole cache of one sequence: states as float32; convolutions, keys, values as the model's dtype.

    Layers are counted as they stand, pruned or not; no weight is looked at. Raises ValueError as `attention` does.
    """
    return state_bytes(hf) + _conv_bytes(hf) + attention(hf.config).values(tokens) * hf.dtype.itemsize


def attention(config: PreTrainedConfig) -> Attention:
    """The layers that keep keys and values. Raises ValueError where these, or what they keep, are not known."""
    decoder = config.get_text_config(decoder=True)
    origin = type(decoder).__module__.split(".")[0]
    if origin == "fla" and hasattr(decoder, "attn"):
        if not decoder.attn:
            return Attention(0, 0)
        heads = decoder.attn["num_heads"]
        per_token = 2 * (decoder.attn.get("num_kv_heads") or heads) * (decoder.hidden_size // heads)
        return Attention(len(decoder.attn["layers"]), per_token, decoder.attn.get("window_size"))
    if origin != "transformers" or not hasattr(decoder, "layer_types"):
        why = "no configuration of transformers or flash-linear-attention that says which layers attend"
        raise ValueError(f"the cache of {type(decoder).__name__} is not known, which is {why}")
    if unknown := set(decoder.layer_types) - RECURRENT - _ATTENDING - _WITHOUT_CACHE:
        raise ValueError(f"{decoder.model_type} has {', '.join(sorted(unknown))} layers, whose cache is not known here")
    layers = sum(kind in _ATTENDING for kind in decoder.layer_types)
    if not layers:
        return Attention(0, 0)
    if hasattr(decoder, "kv_lora_rank"):  # what keys and values are both expanded from (MLA)
        return Attention(layers, decoder.kv_lora_rank + decoder.qk_rope_head_dim)
    head = getattr(decoder, "head_dim", None) or decoder.hidden_size // decoder.num_attention_heads
    return Attention(layers, 2 * decoder.num_key_value_heads * head)


def _conv_bytes(hf: nn.Module) -> int:
    return sum(site.recipe.conv_values(site.mixer) for site in architectures.sites(hf)) * hf.dtype.itemsize
