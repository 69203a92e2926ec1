"""Update rules of linear attention, one token at a time in plain torch.

They are the oracle that faster forms must meet, so they are written to be read: each says what one token does to the
state `[B, H, K, V]`, and `rule` makes of it a function of all tokens, `gated_delta_rule(q, k, v, g, beta)`. Names and
layout follow flash-linear-attention (https://github.com/fla-org/flash-linear-attention): q, k `[B, T, H, K]`, v
`[B, T, H, V]`, beta `[B, T, H]`, and g, the log of the decay (≤ 0), `[B, T, H]` or `[B, T, H, K]`. Queries are scaled
by K^-1/2 where the rule says so.

Yang, Kautz & Hatamizadeh, Gated Delta Networks, ICLR 2025, https://arxiv.org/abs/2412.06464.
Dao & Gu, Transformers are SSMs, ICML 2024, https://arxiv.org/abs/2405.21060.
"""

import inspect
import itertools
import operator
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Keys = Float[Tensor, "B T Hk K"]
Values = Float[Tensor, "B T H V"]
PerHead = Float[Tensor, "B T H"]
PerChannel = Float[Tensor, "B T H K"]
State = Float[Tensor, "B H K V"]
Positions = Sequence[int] | Int[Tensor, " C"]
Initial = State | None
Result = tuple[Values, Float[Tensor, "B C H K V"]]
Read = tuple[Tensor, Tensor]


def rule(step: Callable[..., Read]) -> Callable[..., Result]:
    """A function of all tokens, from what one does: the step takes the state and a token's inputs to state and output.

    It returns the outputs with the states after the tokens named by `positions` (1 to T; the last alone by default),
    starts from `initial_state`, or zero, and computes in the dtype it is given. Several value heads may share one key
    head: value head h uses key head h // (H / Hk).
    """
    names = list(inspect.signature(step).parameters)[1:]

    def read(*inputs: Tensor, initial_state: Initial = None, positions: Positions | None = None) -> Result:
        given = dict(zip(names, inputs, strict=True))
        v = given["v"]
        given |= {name: per_value_head(given[name], v) for name in ("q", "k", "p") if name in given}
        state, captured = initial_state, set(checked_positions(positions, v.shape[1]))
        if state is None:
            state = v.new_zeros(len(v), v.shape[-2], given["k"].shape[-1], v.shape[-1])
        outputs, states = [], []
        for t in range(v.shape[1]):
            state, output = step(state, *(x[:, t] if x.ndim > 2 else x for x in given.values()))
            outputs.append(output)
            if t + 1 in captured:
                states.append(state)
        return torch.stack(outputs, 1), torch.stack(states, 1)

    read.__name__ = read.__qualname__ = step.__name__
    read.__doc__ = step.__doc__
    return read


@rule
def gated_delta_rule(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Read:
    """Decay, then replace what the key reads: S ← exp(g)·S; S ← S + k (β (v − Sᵀk))ᵀ; o = Sᵀq·K^-1/2.

    Queries and keys are taken as they come; `l2norm` them first where the model does.
    """
    return _replaced(g.exp()[..., None, None] * state, q, k, v, beta)


@rule
def kimi_delta_rule(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Read:
    """The gated delta rule with a decay for each key channel: S ← diag(exp(g))·S; S ← S + k (β (v − Sᵀk))ᵀ.

    Kimi Team, Kimi Linear, 2025, https://arxiv.org/abs/2510.26692.
    """
    return _replaced(g.exp()[..., None] * state, q, k, v, beta)


@rule
def gated_linear_attention(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Read:
    """Decay of each key channel without erasure: S ← diag(exp(g))·S + k vᵀ; o = Sᵀq·K^-1/2."""
    state = g.exp()[..., None] * state + _outer(k, v)
    return state, _read(state, _scaled(q))


@rule
def state_space_dual(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Read:
    """Decay of each head without erasure: S ← exp(g)·S + k (β v)ᵀ; o = Sᵀq, without a scale.

    Mamba-2: q is its C, k its B, v its x, β its step size dt and g = A·dt. Its skip D·x is no part of this.
    """
    state = g.exp()[..., None, None] * state + _outer(k, beta[..., None] * v)
    return state, _read(state, q)


@rule
def gated_delta_product(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Read:
    """n writes of the delta rule for each token, one decay before them, one reading after: S ← exp(g)·S, then n times
    S ← S + k (β (v − Sᵀk))ᵀ; o = Sᵀq·K^-1/2. Here k is `[B, T, n, Hk, K]`, v `[B, T, n, H, V]`, beta `[B, T, n, H]`.

    Siems et al., DeltaProduct, NeurIPS 2025, https://arxiv.org/abs/2502.10297.
    """
    state = g.exp()[..., None, None] * state
    for i in range(k.shape[1]):
        state, output = _replaced(state, q, k[:, i], v[:, i], beta[:, i])
    return state, output


@rule
def comba(state: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, g: Tensor, beta: Tensor) -> Read:
    """The gated delta rule that asks with another key, p, and before the decay: S ← exp(g)·S + k (β (v − Sᵀp))ᵀ.

    Hu et al., Improving Bilinear RNNs with Closed-loop Control, 2025, https://arxiv.org/abs/2506.02475.
    """
    write = beta[..., None] * (v - _read(state, p))
    state = g.exp()[..., None, None] * state + _outer(k, write)
    return state, _read(state, _scaled(q))


@rule
def rwkv6(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, bonus: Tensor) -> Read:
    """Read, with a bonus `[H, K]` for the token itself, then write: o = (S + diag(bonus)·k vᵀ)ᵀq, without a scale;
    S ← diag(exp(g))·S + k vᵀ.

    Peng et al., Eagle and Finch, COLM 2024, https://arxiv.org/abs/2404.05892.
    """
    output = _read(state + _outer(bonus * k, v), q)
    return g.exp()[..., None] * state + _outer(k, v), output


@rule
def rwkv7(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, a: Tensor, b: Tensor) -> Read:
    """A transition that is diagonal plus rank one: S ← (diag(exp(g)) + b aᵀ)·S + k vᵀ; o = Sᵀq, without a scale.

    Peng et al., RWKV-7 "Goose" with Expressive Dynamic State Evolution, 2025, https://arxiv.org/abs/2503.14456.
    """
    state = g.exp()[..., None] * state + _outer(b, _read(state, a)) + _outer(k, v)
    return state, _read(state, q)


def l2norm(x: Float[Tensor, "*batch K"], *, eps: float = 1e-6) -> Float[Tensor, "*batch K"]:
    """x / √(Σx² + eps), the normalisation that transformers gives queries and keys; the result is at most 1 long."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def checked_positions(positions: Positions | None, tokens: int) -> list[int]:
    """Positions as a list, the last token alone for None. Raises ValueError unless they increase from 1 to `tokens`."""
    try:
        if getattr(positions, "ndim", 1) != 1:
            raise TypeError
        listed = [tokens] if positions is None else [operator.index(position) for position in positions]
    except TypeError as error:
        raise ValueError(f"positions must be whole numbers in a list, got {positions!r:.60}") from error
    increasing = all(a < b for a, b in itertools.pairwise(listed))
    if not listed or not increasing or listed[0] < 1 or listed[-1] > tokens:
        raise ValueError(
            f"positions must increase strictly from 1 or more to at most {tokens}, the tokens read; got {listed}"
        )
    return listed


def per_value_head(x: Tensor, v: Tensor) -> Tensor:
    """Key heads repeated for the value heads that share them; ValueError where these share unevenly."""
    value_heads, key_heads = v.shape[-2], x.shape[-2]
    if value_heads % key_heads:
        raise ValueError(f"value heads must be a multiple of the key heads they share, {value_heads} on {key_heads}")
    return x.repeat_interleave(value_heads // key_heads, dim=-2)


def _replaced(state: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Read:
    """Replace a share β of what the key reads by the value, then read."""
    state = state + _outer(k, beta[..., None] * (v - _read(state, k)))
    return state, _read(state, _scaled(q))


def _outer(key: Tensor, value: Tensor) -> Tensor:
    return key[..., :, None] * value[..., None, :]


def _read(state: Tensor, query: Tensor) -> Tensor:
    return (query[:, :, None, :] @ state)[:, :, 0]


def _scaled(query: Tensor) -> Tensor:
    return query * query.shape[-1] ** -0.5
