"""What the caches of linear-attention models cost, from their configurations, or from models without weights."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import transformers
from torch import nn
from transformers import PreTrainedConfig

from srdyn import architectures
from srdyn.loading import files

FLOAT32_BYTES, BFLOAT16_BYTES = 4, 2
PAPER_SHARE = 0.389
RECURRENT = {"linear_attention", "hybrid"}
ATTENDING = {"full_attention", "indexed_attention", "hybrid"}
"""The kinds of layers that hold a state, keys and values; `hybrid` layers hold both."""
WITHOUT_CACHE = {"moe", "mlp"}


class Fields(NamedTuple):
    """Where a configuration says how many heads a layer has and how many keys they share, K, V, the conv's width."""

    heads: str
    keys: str
    K: str
    V: str
    width: str


DELTA = Fields(
    "linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim",
)  # fmt: skip
KIMI = Fields("linear_num_heads", "linear_num_heads", "linear_head_dim", "linear_head_dim", "linear_conv_kernel_dim")
BAMBA = Fields("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv")
FAMILIES: dict[type[PreTrainedConfig], Fields] = {
    transformers.Qwen3NextConfig: DELTA,
    transformers.Qwen3_5TextConfig: DELTA,
    transformers.Qwen3_5MoeTextConfig: DELTA,
    transformers.Qwen4ExpTextConfig: DELTA,
    transformers.OlmoHybridConfig: DELTA,
    transformers.KimiLinearConfig: KIMI,
    transformers.BailingHybridConfig: KIMI,
    transformers.Glm5NextTextConfig: KIMI,
    transformers.BambaConfig: BAMBA,
    transformers.GraniteMoeHybridConfig: BAMBA,
    transformers.FalconH1Config: BAMBA,
    transformers.Mamba2Config: Fields("num_heads", "n_groups", "state_size", "head_dim", "conv_kernel"),
    transformers.NemotronHConfig: Fields(
        "mamba_num_heads", "n_groups", "ssm_state_size", "mamba_head_dim", "conv_kernel"
    ),
    transformers.Zamba2Config: Fields(
        "n_mamba_heads", "mamba_ngroups", "mamba_d_state", "mamba_headdim", "mamba_d_conv"
    ),
}
"""By class, never by `model_type`: importing flash-linear-attention re-registers some of those."""


class Geometry(NamedTuple):
    """`recurrent` layers of H heads with a K × V state each, `attention` layers, and how many numbers the rest takes.

    `conv` is what the short convolutions of all layers keep, `per_token` the keys and values of one token.
    """

    recurrent: int
    attention: int
    H: int
    K: int
    V: int
    conv: int
    per_token: int


def ledger(
    tokens: Sequence[int], *, removed: float = PAPER_SHARE, configs: Mapping[str, PreTrainedConfig] | None = None
) -> pd.DataFrame:
    """Bytes of the whole cache of one sequence, a row for each configuration and context length.

    States count as float32; short convolutions, keys and values as bfloat16. `removed_heads` is k = round(removed ×
    heads) over all layers, as the paper cuts; `removed_bytes` are their states alone, and `freed` is the share of the
    whole cache that these make up. `break_even` is the context length in tokens at which keys and values cost as much
    as the states, NaN without attention. The index of a sparse attention is not counted. By default all of
    `reference_models` and `families`.

    Raises ValueError for a negative length, a share outside 0 … 1, or a configuration that `geometry` refuses.
    """
    if any(length < 0 for length in tokens):
        raise ValueError(f"a context holds 0 tokens or more, got {list(tokens)}")
    if not 0 <= removed <= 1:
        raise ValueError(f"removed is a share of the heads, between 0 and 1, got {removed}")
    configs = reference_models() | families() if configs is None else configs
    pairs = itertools.product(configs.items(), tokens)
    return pd.DataFrame([_row(name, config, length, removed) for (name, config), length in pairs])


def families() -> dict[str, PreTrainedConfig]:
    """The default configuration of every known class, by model type; a checkpoint's own may differ much from it."""
    return {family.model_type: family() for family in FAMILIES}


def reference_models() -> dict[str, PreTrainedConfig]:
    """The configurations of the two reference models that differ in their caches, by name."""
    folder = files.data_dir() / "models"
    return {name: transformers.Qwen3NextConfig.from_pretrained(folder / name) for name in ("hybrid", "pure")}


def state_bytes(hf: nn.Module) -> int:
    """Bytes of recurrent state that one sequence costs a model, whatever its length (float32)."""
    return sum(_state_values(site) for site in architectures.sites(hf)) * FLOAT32_BYTES


def cache_bytes(hf: nn.Module, tokens: int) -> int:
    """Bytes of the whole cache of one sequence: states as float32; convolutions, keys, values as the model's dtype.

    Recurrent layers are counted as they stand in the model, pruned or not; none of its weights is looked at. Raises
    ValueError as `attention_values` does.
    """
    convolutions = sum(site.recipe.conv_values(site.mixer) for site in architectures.sites(hf))
    return state_bytes(hf) + (convolutions + attention_values(hf.config, tokens)) * hf.dtype.itemsize


def attention_values(config: PreTrainedConfig, tokens: int) -> int:
    """How many numbers the attention layers of a model keep after `tokens` tokens.

    Raises ValueError for a configuration whose attention layers are not known here.
    """
    decoder = config.get_text_config(decoder=True)
    if type(decoder).__module__.startswith("fla."):
        return _fla_attention_values(decoder, tokens)
    return tokens * _per_token(decoder)


def geometry(config: PreTrainedConfig) -> Geometry:
    """The layers, heads and cache sizes that a configuration describes.

    Raises ValueError for a class that is not in `FAMILIES`, or layers whose cache does not grow by equal steps.
    """
    decoder = config.get_text_config(decoder=True)
    H, keys, K, V, width = (getattr(decoder, name) for name in _fields(decoder))
    recurrent, attention = _counted(decoder, RECURRENT), _counted(decoder, ATTENDING)
    conv = recurrent * (2 * keys * K + H * V) * width
    return Geometry(recurrent, attention, H, K, V, conv, _per_token(decoder))


def _state_values(site: architectures.Site) -> int:
    heads = site.recipe.heads(site.mixer)
    return len(site.recipe.kept(site.mixer)) * heads.K * heads.V


def _fields(decoder: PreTrainedConfig) -> Fields:
    fields = FAMILIES.get(type(decoder))
    if fields is None:
        known = ", ".join(sorted(family.__name__ for family in FAMILIES))
        raise ValueError(f"{type(decoder).__name__} has no entry in memory.FAMILIES; known are {known}")
    return fields


def _counted(decoder: PreTrainedConfig, kinds: set[str]) -> int:
    return sum(kind in kinds for kind in decoder.layer_types)


def _per_token(decoder: PreTrainedConfig) -> int:
    """Values that all attention layers keep of one token."""
    _fields(decoder)
    unknown = set(decoder.layer_types) - RECURRENT - ATTENDING - WITHOUT_CACHE
    if unknown:
        raise ValueError(f"{decoder.model_type} has {', '.join(sorted(unknown))} layers, whose cache is not known here")
    attention = _counted(decoder, ATTENDING)
    return attention * key_values(decoder) if attention else 0


def _fla_attention_values(decoder: PreTrainedConfig, tokens: int) -> int:
    """As `attention_values`, for a model of flash-linear-attention, whose `attn` describes the layers that attend."""
    if not hasattr(decoder, "attn"):
        raise ValueError(f"{type(decoder).__name__} does not say which of its layers attend, so its cache is not known")
    if not decoder.attn:
        return 0
    heads, window = decoder.attn["num_heads"], decoder.attn.get("window_size")
    per_token = 2 * (decoder.attn.get("num_kv_heads") or heads) * (decoder.hidden_size // heads)
    return len(decoder.attn["layers"]) * per_token * min(tokens, window or tokens)


def key_values(config: PreTrainedConfig) -> int:
    """Values that an attention layer keeps of a token: keys and values, or what both are expanded from (MLA)."""
    if hasattr(config, "kv_lora_rank"):
        return config.kv_lora_rank + config.qk_rope_head_dim
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_key_value_heads * head


def _row(name: str, config: PreTrainedConfig, tokens: int, removed: float) -> dict:
    size = geometry(config)
    heads, head_bytes = size.recurrent * size.H, size.K * size.V * FLOAT32_BYTES
    state, conv, per_token = heads * head_bytes, size.conv * BFLOAT16_BYTES, size.per_token * BFLOAT16_BYTES
    total, k = state + conv + per_token * tokens, round(removed * heads)
    return {
        "model": name,
        "model_type": config.model_type,
        "recurrent": size.recurrent,
        "attention": size.attention,
        "heads": heads,
        "K": size.K,
        "V": size.V,
        "tokens": tokens,
        "state_bytes": state,
        "conv_bytes": conv,
        "kv_bytes": per_token * tokens,
        "total_bytes": total,
        "removed_heads": k,
        "removed_bytes": k * head_bytes,
        "freed": k * head_bytes / total,
        "break_even": state / per_token if per_token else float("nan"),
    }
