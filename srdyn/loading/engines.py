"""What inference engines make of a model's recurrent layers: bytes of a sequence, and what they ask of the heads.

From their sources as read in November 2026 (nothing was served), by file and commit where a formula stands:
- transformers 5.23, cache_utils.py: float32 states, convolutions of the whole kernel in the model's precision.
- vLLM, model_executor/layers/mamba/mamba_utils.py (02d7108, shapes and precisions), `_align_hybrid_block_size` of
  platforms/interface.py (0.28; the attention block grows until its page holds a layer's state, in steps of 16 tokens,
  of 128 with multi-head latent attention, and the state is padded to this page) and v1/kv_cache_interface.py (001cabc:
  a page for a layer and sequence). Not counted: with `--enable-prefix-caching`, off for these models unless asked for,
  the mode "align" holds two pages, and a checkpoint at each block that ended a step; v1/core/kv_cache_utils.py makes
  groups of as many layers as attend, and pads the last group where that does not divide the recurrent ones.
- SGLang, srt/configs/mamba_utils.py (02e208d): float32 states unless the configuration has `mamba_ssm_dtype`, bfloat16
  convolutions, slots without padding.
- llama.cpp, `n_embd_r` and `n_embd_s` of src/llama-hparams.cpp (8b1d44b; the newest has Kimi's beside them), and
  src/llama-memory-recurrent.cpp (0054ee8): float32 throughout, allocated at the start, a row for a sequence.
Issues: vLLM #41112, #41142 (a ratio of 1 with Qwen3-Next), #52539 (ratios of the fused decode); SGLang #21843, #31091.
"""

import math
from typing import NamedTuple

import pandas as pd
from transformers import PreTrainedModel

from srdyn import architectures
from srdyn.loading import memory

_DELTA = ("Qwen3NextGatedDeltaNet", "Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet")
_NARROW = (*_DELTA, "FalconH1Mixer", "NemotronHMamba2Mixer", "GraniteMoeHybridMambaLayer")
KNOWN = {
    "vLLM": (*_NARROW, "OlmoHybridGatedDeltaNet", "KimiLinearDeltaAttention", "BambaMixer", "Mamba2Mixer",
             "Zamba2MambaMixer"),
    "SGLang": (*_NARROW, "KimiLinearDeltaAttention"),
    "llama.cpp": (*_NARROW, "BambaMixer", "Mamba2Mixer"),
}  # fmt: skip
"""Layers whose heads each engine counts by the configuration; llama.cpp has one number for Kimi's and attention's."""

_COUNTING = ("Mamba2Mixer", "GatedDeltaNet", "KimiDeltaAttention", "GatedDeltaProduct", "Comba", "DeltaNet",
             "GatedLinearAttention", "RWKV6Attention")  # fmt: skip
"""Layers whose models read on from a cache without being told how much it has read."""


class Sizes(NamedTuple):
    """The recurrent layers of a model, all alike, and the attention beside them.

    `mixer` is the class of the layers. `attention` is what an attention layer keeps of a token, in numbers, over `kv`
    key heads (0: latent, not divided among devices); 0 numbers without attention.
    """

    mixer: str
    layers: int
    heads: int
    keys: int
    K: int
    V: int
    kernel: int
    attention: int
    kv: int
    itemsize: int


def sizes(hf: PreTrainedModel) -> Sizes:
    """A model's recurrent layers before any pruning; raises as `memory.attention`."""
    (site, *others), attention = architectures.sites(hf), memory.attention(hf.config)
    text = hf.config.get_text_config(decoder=True)
    latent = hasattr(text, "kv_lora_rank") or not attention.layers
    kv = 0 if latent else getattr(text, "num_key_value_heads", None) or 1
    kernel, of_token = site.recipe.convolution_width(site.mixer) or 1, attention.per_token if attention.layers else 0
    unpruned = site.recipe.unpruned(site.mixer)
    return Sizes(type(site.mixer).__name__, 1 + len(others), *unpruned, kernel, of_token, kv, hf.dtype.itemsize)


def state_bytes(sizes: Sizes, *, tp: int = 1, state_itemsize: int = 4) -> dict[str, int]:
    """Bytes that one sequence takes in each engine beside keys and values, on one of `tp` devices (vLLM and SGLang).

    `state_itemsize` is that of vLLM's states: 4 with `--mamba-ssm-cache-dtype float32`, and as Qwen3.5 and Nemotron-H
    have it by themselves; Qwen3-Next takes the model's own without it, Kimi Linear's is 4. No drafts, no prefix cache.
    """
    itemsize = 4 if sizes.mixer == "KimiLinearDeltaAttention" else state_itemsize
    # Groups that the devices do not divide are held by each (`extra_groups_for_head_shards` of both engines).
    shared = sizes.keys if sizes.keys % tp == 0 else tp
    channels, sharded = (2 * keys * sizes.K + sizes.heads * sizes.V for keys in (sizes.keys, shared))  # q, k, v
    state, shift = sizes.heads * sizes.K * sizes.V, sizes.kernel - 1
    page = (sharded * shift * sizes.itemsize + state * itemsize) // tp
    if sizes.attention:
        token = sizes.attention * sizes.itemsize // max(1, min(tp, sizes.kv))
        step = (16 if sizes.kv else 128) * token
        page = math.ceil(page / step) * step
    by_layer = {
        "transformers": channels * sizes.kernel * sizes.itemsize + state * 4,
        "vLLM": page,
        "SGLang": (sharded * shift * 2 + state * 4) // tp,
        "llama.cpp": (channels * shift + state) * 4,
    }
    return {engine: sizes.layers * size for engine, size in by_layer.items()}


def can_cache(sizes: Sizes) -> bool:
    """Whether transformers 5.23 reads on from a cache: it asks a layer of attention how many tokens were read."""
    return sizes.attention > 0 or sizes.mixer in _COUNTING


def demands(sizes: Sizes, *, tp: int = 1) -> pd.DataFrame:
    """What each engine asks, our value, whether that will do; what is not `needed` is for speed or so."""
    mixer, heads, keys, ratio = sizes.mixer, sizes.heads, sizes.keys, sizes.heads // sizes.keys
    delta, shown, whole = mixer in _DELTA, f"{heads} heads, {keys} keys", heads % keys == 0
    rows = [
        ("transformers", "keys divide heads", shown, whole, True),
        ("transformers", "attention, to read through a cache", str(sizes.attention), can_cache(sizes), True),
    ]
    for engine, known in KNOWN.items():
        rows.append((engine, "takes the number of heads from the configuration", mixer, mixer in known, True))
        rows.append((engine, "keys divide heads", shown, whole, True))
    divided = heads % tp == 0 and (keys % tp == 0 or (keys == 1 and not delta))
    rows += [(engine, f"{tp} devices divide heads and keys", shown, divided, True) for engine in ("vLLM", "SGLang")]
    if delta:
        square, drafts, fused = sizes.K == sizes.V in (16, 32, 64, 128), ratio in (1, 2, 3, 4, 8), ratio in (1, 2, 4)
        rows += [
            ("llama.cpp", "square states of 16, 32, 64 or 128", f"{sizes.K} × {sizes.V}", square, True),
            ("vLLM", "1, 2, 3, 4 or 8 heads a key, to draft tokens (#52539)", str(ratio), drafts, False),
            ("SGLang", "1, 2 or 4 heads a key, for the fused split (#31091)", str(ratio), fused, False),
        ]
    if mixer == "Qwen3NextGatedDeltaNet":
        rows += [
            ("vLLM", "more than 1 head a key, where #41142 is not in", str(ratio), ratio > 1, False),
            ("SGLang", "more than 1 head a key, off the fused path (#21843)", str(ratio), ratio > 1, False),
        ]
    return pd.DataFrame(rows, columns=["engine", "asks", "ours", "ok", "needed"])
