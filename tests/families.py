"""One tiny random model of every family, for `test_families`: a new family is a new row of `FAMILIES`."""

import dataclasses
import functools
from collections.abc import Callable

import conftest
import numpy as np
import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor

from srdyn import models

LINEAR, SOFTMAX = "linear_attention", "full_attention"
Array = np.ndarray


def delta(
    q: Float[Array, "B T Hk K"],
    k: Float[Array, "B T Hk K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H *K"],
    beta: Float[Array, "B T H"],
) -> Float[Array, "B H K V"]:
    """The last state of the delta rule, decay per head or per key channel."""
    B, T, H, V = v.shape
    K, share = k.shape[3], H // k.shape[2]
    last = np.zeros((B, H, K, V))
    for b, h in np.ndindex(B, H):
        for t in range(T):
            key, S = k[b, t, h // share], np.broadcast_to(np.exp(g[b, t, h]), (K,))[:, None] * last[b, h]
            last[b, h] = S + np.outer(key, beta[b, t, h] * (v[b, t, h] - S.T @ key))
    return last


def any_heads(L: int, H: int, generator: torch.Generator) -> Bool[Tensor, "L H"]:
    """Some heads of every layer, but of one layer none."""
    keep = torch.rand(L, H, generator=generator) < 0.6
    keep[:, int(torch.randint(H, (), generator=generator))] = True
    keep[int(torch.randint(L, (), generator=generator))] = False
    return keep


@dataclasses.dataclass(frozen=True)
class Family:
    """What `test_families` has to know about a family.

    `build` returns a model on the CPU, in evaluation mode, its vocabulary at least 64; L ≠ H and K ≠ V where that can
    be. `last_state` is the family's recurrence in float64 numpy, from `states.inputs` by place to the last state.
    `tolerance` is for states, relative to the largest number in the state. `keep` draws heads that may be kept alone.
    """

    id: str
    build: Callable[[], transformers.PreTrainedModel]
    last_state: Callable[..., Float[Array, "B H K V"]] = delta
    tolerance: float = 1e-5
    keep: Callable[[int, int, torch.Generator], Bool[Tensor, "L H"]] = any_heads
    needs_fla: bool = False

    def __str__(self) -> str:
        return self.id


@functools.cache
def model(family: Family) -> models.Model:
    """The model, made once; tests leave it as it is."""
    return models.from_hf(family.build(), name=family.id)


def held_by_convolutions(cache: object) -> int:
    """How many numbers the short convolutions keep in a cache."""
    layers = (getattr(layer, "conv_states", {}) for layer in cache.layers)
    return sum(x.numel() for held in layers for x in held.values() if x is not None)


def qwen35_moe(kinds: list[str]) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.Qwen3_5MoeTextConfig(
        **conftest.SIZES,
        num_hidden_layers=len(kinds),
        layer_types=kinds,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )
    return conftest.with_slow_decays(transformers.Qwen3_5MoeForCausalLM(config))


FAMILIES = [
    Family("qwen3_next", lambda: conftest.qwen3_next([LINEAR, SOFTMAX, LINEAR])),
    Family("qwen3_next, pure", lambda: conftest.qwen3_next([LINEAR, LINEAR])),
    Family("qwen3_5", lambda: conftest.qwen35([LINEAR, SOFTMAX, LINEAR])),
    Family("qwen3_5_moe", lambda: qwen35_moe([LINEAR, SOFTMAX, LINEAR])),
]
