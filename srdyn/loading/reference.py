"""The reference models before training: their configuration and their initialisation from a seed."""

import math
import zlib

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3NextConfig

KINDS = ("hybrid", "pure", "uniform")
_LAYERS, TOKENS_PER_BATCH = 8, 2048
_ODD = 0x9E3779B1  # spreads seeds over the 32 bits that torch's generator keeps of a seed
_FULL_ATTENTION_EVERY = 4  # in the hybrid, as in Qwen3-Next: 3 linear layers, then one of softmax attention


def name_of(kind: str, seed: int) -> str:
    """`hybrid` for seed 0, `hybrid-seed1` for seed 1."""
    return f"{kind}-seed{seed}" if seed else kind


def config(
    kind: str, *, vocab_size: int = 1024, layers: int = _LAYERS, hidden: int = 128, head: int = 64, heads: int = 8,
    softmax_head: int = 32,
) -> Qwen3NextConfig:  # fmt: skip
    """The configuration of a reference model; ValueError for an unknown kind.

    `hybrid` has softmax attention in every fourth layer, `pure` and `uniform` in none. Value heads share key heads two
    to one, as in Qwen3-Next; feed-forward layers are dense, since 128 dimensions feed no experts.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no reference model; the kinds are {', '.join(KINDS)}")
    every = _FULL_ATTENTION_EVERY if kind == "hybrid" else layers + 1
    return Qwen3NextConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        layer_types=["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(layers)],
        num_attention_heads=4, num_key_value_heads=2, head_dim=softmax_head,
        linear_num_key_heads=heads // 2, linear_num_value_heads=heads,
        linear_key_head_dim=head, linear_value_head_dim=head, linear_conv_kernel_dim=4,
        mlp_only_layers=list(range(layers)), num_experts=0, tie_word_embeddings=True, max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        eos_token_id=0, bos_token_id=0,
    )  # fmt: skip


def initialise(kind: str, *, seed: int, **options) -> PreTrainedModel:
    """A reference model as it is before its first training step; every parameter depends only on `seed` and its name.

    `hybrid` and `pure` start their decays as Mamba-2 does (A uniform in [1, 16], step size log-uniform in 1e-3 … 1e-1),
    which already gives the heads different decays. `uniform` starts every head at A = 1 and step size 1e-2.
    """
    model = transformers.Qwen3NextForCausalLM(config(kind, **options))  # by name, only now: its file imports fla
    depth = model.config.num_hidden_layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed((seed * _ODD + zlib.crc32(name.encode())) % 2**32)
            parameter.copy_(_start(name, parameter, depth, equal=kind == "uniform", generator=generator))
    return model


def drawn(build: type[PreTrainedModel], config: PreTrainedConfig, *, seed: int) -> PreTrainedModel:
    """A model as its class starts it, from a seed; other random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config)


def _start(name: str, like: Tensor, depth: int, *, equal: bool, generator: torch.Generator) -> Float[Tensor, "..."]:
    uniform = torch.rand(like.shape, generator=generator)
    if name.endswith("A_log"):
        return torch.zeros_like(like) if equal else torch.log(1 + 15 * uniform)
    if name.endswith("dt_bias"):
        step = torch.full_like(like, 1e-2) if equal else torch.exp(math.log(1e-3) + uniform * math.log(100))
        return step + torch.log(-torch.expm1(-step))  # the inverse of softplus
    if name.endswith("conv1d.weight"):
        return uniform - 0.5
    if like.ndim == 1:
        return like  # norms: Qwen3-Next starts them at the identity
    normal = 0.02 * torch.randn(like.shape, generator=generator)
    if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight")):
        return normal / math.sqrt(2 * depth)
    return normal / 4 if name.endswith("in_proj_ba.weight") else normal
