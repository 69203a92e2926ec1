"""One tiny random model of every family, for `test_families`: a new family is a new row of `FAMILIES`."""

import dataclasses
import functools
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import small
import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor

from srdyn import models

LINEAR, SOFTMAX = "linear_attention", "full_attention"
EXPERTS = {"num_experts": 12, "num_experts_per_tok": 2}  # ten or more: names are sorted by number
EXPERTS |= {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
NO_TOKENS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
SMALL = {"vocab_size": 64, "hidden_size": 32, **NO_TOKENS}
LATENT = SMALL | {"intermediate_size": 48, "moe_intermediate_size": 8, "num_experts_per_tok": 2}
LATENT |= {"num_attention_heads": 2, "num_key_value_heads": 2}
LATENT |= {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
"""Softmax layers that keep keys and values in a latent space."""
Array = np.ndarray
Keys = Float[Array, "B T Hk K"]
Values = Float[Array, "B T H V"]
PerHead = Float[Array, "B T H"]
PerChannel = Float[Array, "B T H K"]
State = Float[Array, "B H K V"]


def last(moved: Float[Array, "B T H K K"], written: Float[Array, "B T H K V"]) -> State:
    """The last state of S ← A S + W, with these A and W of each token."""
    state = np.zeros_like(written[:, 0])
    for t in range(written.shape[1]):
        state = moved[:, t] @ state + written[:, t]
    return state


def outer(a: Float[Array, "... K"], b: Float[Array, "... V"]) -> Float[Array, "... K V"]:
    return a[..., :, None] * b[..., None, :]


def kept(g: Float[Array, "B T H *K"], K: int) -> Float[Array, "B T H K K"]:
    """diag(exp(g)) of a decay of each head, or of each of its key channels."""
    return np.exp(g if g.ndim == 4 else g[..., None])[..., None] * np.eye(K)


def each(k: Keys, v: Values) -> PerChannel:
    """The key of every value head."""
    return np.repeat(k, v.shape[2] // k.shape[2], axis=2)


def delta(q: Keys, k: Keys, v: Values, g: Float[Array, "B T H *K"], beta: PerHead) -> State:
    """The delta rule, decay per head or per key channel: A = (1 − β k kᵀ) diag(exp(g)), W = β k vᵀ."""
    k, decay = each(k, v), kept(g, k.shape[3])
    strong = beta[..., None] * k
    return last(decay - outer(strong, k) @ decay, outer(strong, v))


def dual(q: Keys, k: Keys, v: Values, g: PerHead, beta: PerHead) -> State:
    """Mamba-2: A = exp(g), W = β k vᵀ."""
    return last(kept(g, k.shape[3]), outer(beta[..., None] * each(k, v), v))


def written(q: PerChannel, k: PerChannel, v: Values, g: PerChannel) -> State:
    """What only decays and writes, by key channel: A = diag(exp(g)), W = k vᵀ."""
    return last(kept(g, k.shape[3]), outer(k, v))


def products(
    q: PerChannel, k: Float[Array, "B T n H K"], v: Float[Array, "B T n H V"], g: PerHead, beta: Float[Array, "B T n H"]
) -> State:
    """Several delta-rule writes a token: `delta` for all of them in turn, the first one decaying."""
    B, T, n, H, _ = k.shape
    decay = np.zeros((B, T, n, H))
    decay[:, :, 0] = g
    k, v, decay, beta = (x.reshape(B, T * n, *x.shape[3:]) for x in (k, v, decay, beta))
    return delta(k, k, v, decay, beta)


def asked(q: Keys, k: Keys, v: Values, p: Keys, g: PerHead, beta: PerHead) -> State:
    """Comba: A = exp(g) − β k pᵀ, W = β k vᵀ."""
    strong = beta[..., None] * each(k, v)
    return last(kept(g, k.shape[3]) - outer(strong, each(p, v)), outer(strong, v))


def transitions(q: PerChannel, k: PerChannel, v: Values, g: PerChannel, a: PerChannel, b: PerChannel) -> State:
    """RWKV-7: A = diag(exp(g)) + b aᵀ, W = k vᵀ."""
    return last(kept(g, k.shape[3]) + outer(b, a), outer(k, v))


def any_heads(L: int, H: int, generator: torch.Generator) -> Bool[Tensor, "L H"]:
    """Some heads of every layer, but of one layer none."""
    keep = torch.rand(L, H, generator=generator) < 0.6
    keep[:, int(torch.randint(H, (), generator=generator))] = True
    keep[int(torch.randint(L, (), generator=generator))] = False
    return keep


def even_heads(groups: int, L: int, H: int, generator: torch.Generator) -> Bool[Tensor, "L H"]:
    """In every layer equally many heads of each group, or none of a group but the first; of one layer none."""
    keep, size = torch.zeros(L, groups, H // groups, dtype=torch.bool), H // groups
    for layer in keep:
        n = int(torch.randint(1, size, (), generator=generator))
        for group in layer[: int(torch.randint(1, groups + 1, (), generator=generator))]:
            group[torch.randperm(size, generator=generator)[:n]] = True
    keep[int(torch.randint(L, (), generator=generator))] = False
    return keep.flatten(1)


@dataclasses.dataclass(frozen=True)
class Family:
    """What `test_families` has to know about a family.

    `build` returns a model on the CPU, in evaluation mode, its vocabulary at least 64; L ≠ H and K ≠ V where that can
    be. `last_state` is the family's recurrence in float64 numpy, from `states.inputs` by place to the last state.
    `tolerance` is for states, relative to the largest number in them: float32, summed in another order. `keep` draws
    heads that may be kept alone. `needs_fla` says that the model itself is flash-linear-attention's.
    """

    id: str
    build: Callable[[], transformers.PreTrainedModel]
    last_state: Callable[..., State] = delta
    tolerance: float = 1e-5
    keep: Callable[[int, int, torch.Generator], Bool[Tensor, "L H"]] = any_heads
    needs_fla: bool = False

    def __str__(self) -> str:
        return self.id


def named(id: str) -> Family:
    return next(family for family in FAMILIES if family.id == id)


@functools.cache
def model(family: Family) -> models.Model:
    """The model, made once; tests leave it as it is."""
    return models.from_hf(family.build(), name=family.id)


def held_by_convolutions(cache: object) -> int:
    """How many numbers the recurrent layers' short convolutions keep in a cache.

    They come first; Qwen4-Exp keeps those of its n-gram embeddings beside them.
    """
    held = [getattr(layer, "conv_states", {}).get(0) for layer in cache.layers]
    for layer in cache.layers:
        state = getattr(layer, "state", None) or {}
        for kept in (state.get("conv_state"), state.get("ffn_state")):
            held += kept if isinstance(kept, tuple) else [kept]
    return sum(x.numel() for x in held if x is not None)


def qwen35_moe(kinds: list[str]) -> transformers.PreTrainedModel:
    config = transformers.Qwen3_5MoeTextConfig(**small.SIZES, **EXPERTS, **layers(kinds))
    return random(transformers.Qwen3_5MoeForCausalLM, config)


def qwen4_exp() -> transformers.PreTrainedModel:
    """With hyper-connections, an index for the attention, and n-gram embeddings in its second layer.

    Enough index heads that no two blocks of tokens score 0: which of equals attention sees depends on the cuts.
    """
    config = transformers.Qwen4ExpTextConfig(
        **small.SIZES | {"pad_token_id": 0}, **EXPERTS, **layers([LINEAR, LINEAR, SOFTMAX]),
        hc_count=2, hc_lowrank=4,
        indexer_n_heads=8, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=16, indexer_compress_ratio=4,
        ple_layer_ids=[2], ngram_vocab_size_base=16, heads_per_ngram=2, split_ngram_parts=2, eos_token_id=0,
    )  # fmt: skip
    return random(transformers.Qwen4ExpForCausalLM, config)


def olmo_hybrid() -> transformers.PreTrainedModel:
    config = transformers.OlmoHybridConfig(**small.SIZES, **layers([LINEAR, SOFTMAX, LINEAR]), eos_token_id=None)
    return random(transformers.OlmoHybridForCausalLM, config)


def kimi_linear() -> transformers.PreTrainedModel:
    config = transformers.KimiLinearConfig(
        **LATENT, **layers([LINEAR, SOFTMAX, LINEAR]), linear_num_heads=4, linear_head_dim=8, num_local_experts=12
    )
    return random(transformers.KimiLinearForCausalLM, config)


def bailing_hybrid() -> transformers.PreTrainedModel:
    config = transformers.BailingHybridConfig(
        **LATENT | {"num_attention_heads": 4, "num_key_value_heads": 4}, **layers([LINEAR, SOFTMAX, LINEAR]),
        head_dim=8, num_local_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1,
    )  # fmt: skip
    return random(transformers.BailingHybridForCausalLM, config)


def glm5_next() -> transformers.PreTrainedModel:
    text = transformers.Glm5NextTextConfig(
        **LATENT | {"qk_rope_head_dim": 0, "q_lora_rank": 8}, **layers([LINEAR, SOFTMAX, LINEAR]),
        linear_num_heads=4, linear_head_dim=8, n_routed_experts=4, hc_mult=2,
        index_topk=32, index_kpool=4, index_head_dim=8, index_n_heads=8, mlp_layer_types=["dense", "sparse", "sparse"],
    )  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    config = transformers.Glm5NextConfig(text_config=text.to_dict(), vision_config=vision)
    return random(transformers.Glm5NextForConditionalGeneration, config)


def layers(kinds: list[str]) -> dict[str, object]:
    return {"num_hidden_layers": len(kinds), "layer_types": kinds}


def random(build: type, config: transformers.PreTrainedConfig) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return small.with_slow_decays(build(config))


MODULES = {
    "Mamba2": "mamba2", "Bamba": "bamba", "GraniteMoeHybrid": "granitemoehybrid", "NemotronH": "nemotron_h",
    "FalconH1": "falcon_h1", "Zamba2": "zamba2",
}  # fmt: skip
SSM = SMALL | {"initializer_range": 0.1, "tie_word_embeddings": True}
SSM_ATTENTION = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
BAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 12, "mamba_chunk_size": 16, "num_hidden_layers": 3}
NO_LIMIT = {"time_step_min": 1e-30}
"""A step size below the limit is read otherwise one token at a time, see `test_mamba`."""


def state_spaces(stem: str, sizes: dict) -> transformers.PreTrainedModel:
    """A model of a Mamba-2 family with 8 heads, whose classes bear this name."""
    torch.manual_seed(0)
    # Not by the automatic classes, which flash-linear-attention changes.
    module = importlib.import_module(f"transformers.models.{MODULES[stem]}")
    config = getattr(module, f"{stem}Config")(**SSM | sizes)
    return small.with_slow_decays(getattr(module, f"{stem}ForCausalLM")(config))


def mamba2(groups: int = 2, **sizes) -> transformers.PreTrainedModel:
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 12, "n_groups": groups, "chunk_size": 16} | sizes
    return state_spaces("Mamba2", {"num_hidden_layers": 3} | sizes)


def bamba(groups: int = 1, **sizes) -> transformers.PreTrainedModel:
    sizes = SSM_ATTENTION | BAMBA | {"mamba_n_groups": groups, "attn_layer_indices": [1]} | sizes
    return state_spaces("Bamba", sizes)


def granite(groups: int = 2) -> transformers.PreTrainedModel:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16}
    kinds = {"layer_types": [LINEAR, SOFTMAX, LINEAR], "mamba_n_groups": groups}
    return state_spaces("GraniteMoeHybrid", SSM_ATTENTION | BAMBA | experts | kinds)


def nemotron_h(groups: int = 2, **sizes) -> transformers.PreTrainedModel:
    experts = {"n_routed_experts": 4, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16}
    mixer = {"mamba_num_heads": 8, "mamba_head_dim": 6, "ssm_state_size": 12, "n_groups": groups, "chunk_size": 16}
    kinds = {"layers_block_type": [LINEAR, "moe", SOFTMAX, LINEAR, "mlp"], "head_dim": 16}
    return state_spaces("NemotronH", SSM_ATTENTION | experts | mixer | kinds | NO_LIMIT | sizes)


def falcon_h1(groups: int = 2, **sizes) -> transformers.PreTrainedModel:
    multipliers = {"ssm_in_multiplier": 0.7, "ssm_multipliers": [0.5, 1.6, 1.7, 1.8, 0.9]}
    mixer = BAMBA | {"mamba_n_groups": groups, "mamba_d_ssm": 64, "head_dim": 16}
    return state_spaces("FalconH1", SSM_ATTENTION | mixer | multipliers | sizes)


def zamba2(groups: int = 2, **sizes) -> transformers.PreTrainedModel:
    # Larger weights make its attention so sharp that an input changed by 1e-6 changes the logits by 2e-3.
    sizes = {"initializer_range": 0.02} | sizes
    mixer = {"n_mamba_heads": 8, "mamba_d_state": 12, "mamba_ngroups": groups, "chunk_size": 16}
    mixer |= {"add_bias_linear": True}
    kinds = {"num_hidden_layers": 4, "layers_block_type": [LINEAR, "hybrid", LINEAR, "hybrid"]}
    return state_spaces("Zamba2", SSM_ATTENTION | mixer | kinds | NO_LIMIT | sizes)


def dual_family(id: str, build: Callable[[], transformers.PreTrainedModel], groups: int) -> Family:
    return Family(id, build, last_state=dual, keep=functools.partial(even_heads, groups))


FLA = SSM | {"num_hidden_layers": 3, "intermediate_size": 48}
PRODUCTS = {"num_heads": 4, "head_dim": 8, "expand_v": 1.5, "num_householder": 2, "use_forget_gate": True}
LOW_RANKS = {
    6: {"proj_low_rank_dim": 4, "gate_low_rank_dim": 4},
    7: {"decay_low_rank_dim": 4, "gate_low_rank_dim": 4, "a_low_rank_dim": 4, "v_low_rank_dim": 4},
}
SHARED_KEYS = {"num_heads": 2, "num_v_heads": 4, "head_dim": 8, "expand_v": 1.5}


def fla(stem: str, kind: str, **sizes) -> transformers.PreTrainedModel:
    """A model of flash-linear-attention whose classes bear this name; what would start all but equal is random."""
    torch.manual_seed(0)
    module = importlib.import_module(f"fla.models.{kind}")
    config = getattr(module, f"{stem}Config")(**FLA | sizes)
    hf = small.with_slow_decays(getattr(module, f"{stem}ForCausalLM")(config))
    for parameter in hf.parameters():
        if parameter.std() < 0.01:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return hf


def fla_family(stem: str, kind: str, last_state: Callable = delta, keep: Callable = any_heads, **sizes) -> Family:
    build = functools.partial(fla, stem, kind, **sizes)
    return Family(f"fla {kind}", build, last_state, keep=keep, needs_fla=True)


KERNELS = """
    import os, sys, warnings
    os.environ["TRITON_INTERPRET"] = "1"
    sys.modules["srdyn"] = None  # importing it raises
    warnings.simplefilter("ignore")
    import torch, fla
    from transformers import AutoModelForCausalLM
    from triton.runtime import autotuner
    # Timing kernels fails in the interpreter; any of them will do.
    autotuner.Autotuner.do_bench = property(lambda self: lambda *_, **__: [1.0] * 3, lambda self, value: None)
    tokens, new, found = torch.load(sys.argv[1]), int(sys.argv[2]), {}
    options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    for path in sys.argv[3:]:
        hf, told = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
        with torch.no_grad():
            first = hf.eval()(tokens[:, :3], use_cache=True)
            rest = hf(tokens[:, 3:], past_key_values=first.past_key_values, use_cache=True)
        states = [layer.state["recurrent_state"] for layer in rest.past_key_values.layers]
        written = [hf.generate(tokens, use_cache=use, **options) for use in (True, False) if new]
        found[path] = torch.cat([first.logits, rest.logits], 1), states, written
    torch.save(found, sys.argv[1])
"""


def by_kernels(*folders: Path, tokens: Tensor, new: int = 0) -> list[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """For each: logits, last states, `new` more tokens with a cache and without, by flash-linear-attention's kernels.

    In Triton's interpreter, which takes them for at most 64 tokens, not the chunked ones; without srdyn.
    """
    place = folders[0].parent / "tokens"
    torch.save(tokens, place)
    command = [sys.executable, "-c", textwrap.dedent(KERNELS), place, str(new), *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(torch.load(place).values())


def first_covers(L: int, H: int, generator: torch.Generator) -> Bool[Tensor, "L H"]:
    """Some heads of the first layer, some of these of each other layer, but of one of those none."""
    keep = any_heads(L, H, generator)
    keep[int(torch.randint(1, L, (), generator=generator))] = False
    keep[0] = keep.any(0)
    return keep


FAMILIES = [
    Family("qwen3_next", lambda: small.qwen3_next([LINEAR, SOFTMAX, LINEAR])),
    Family("qwen3_next, pure", lambda: small.qwen3_next([LINEAR, LINEAR])),
    Family("qwen3_5", lambda: small.qwen35([LINEAR, SOFTMAX, LINEAR])),
    Family("qwen3_5_moe", lambda: qwen35_moe([LINEAR, SOFTMAX, LINEAR])),
    Family("qwen4_exp", qwen4_exp),
    Family("olmo_hybrid", olmo_hybrid),
    Family("kimi_linear", kimi_linear),
    Family("bailing_hybrid", bailing_hybrid),
    Family("glm5_next", glm5_next),
    dual_family("mamba2", mamba2, 2),
    dual_family("bamba", bamba, 1),
    dual_family("granitemoehybrid", granite, 2),
    dual_family("nemotron_h", nemotron_h, 2),
    dual_family("falcon_h1", falcon_h1, 2),
    dual_family("falcon_h1, norm", functools.partial(falcon_h1, mamba_rms_norm=True), 2),
    dual_family("zamba2", zamba2, 2),
    fla_family("GatedDeltaNet", "gated_deltanet", **SHARED_KEYS),
    fla_family("KDA", "kda", **SHARED_KEYS),
    fla_family("DeltaNet", "delta_net", num_heads=4, expand_v=1.5),
    fla_family("GLA", "gla", written, num_heads=4, num_kv_heads=2),
    fla_family("RetNet", "retnet", written, num_heads=4, num_kv_heads=2, intermediate_size=48),
    fla_family("GatedDeltaProduct", "gated_deltaproduct", products, **PRODUCTS),
    fla_family("Comba", "comba", asked, **SHARED_KEYS),
    fla_family("HGRN2", "hgrn2", written, expand_ratio=8),
    fla_family("RWKV6", "rwkv6", lambda *read: written(*read[:4]), num_heads=4, **LOW_RANKS[6]),
    fla_family("RWKV7", "rwkv7", transitions, keep=first_covers, head_dim=8, **LOW_RANKS[7]),
]
