"""Update rules of linear attention, one token at a time in plain torch.

They are the oracle that faster forms must meet, so they are written to be read. Names and layout follow
flash-linear-attention (https://github.com/fla-org/flash-linear-attention): q, k `[B, T, H, K]`, v `[B, T, H, V]`, and
g is the log of the decay (≤ 0). Every function returns the outputs `[B, T, H, V]` with the states `[B, C, H, K, V]`
after the tokens named by `positions` (1 to T; the last alone by default), computes in the dtype it is given, and lets
several value heads share one key head: value head h uses key head h // (H / Hk). Queries are scaled by K^-1/2,
except in `state_space_dual`.

Yang, Kautz & Hatamizadeh, Gated Delta Networks, ICLR 2025, https://arxiv.org/abs/2412.06464.
Dao & Gu, Transformers are SSMs, ICML 2024, https://arxiv.org/abs/2405.21060.
"""

import itertools
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
Asked = Positions | None
Step = Callable[[Tensor, int], tuple[Tensor, Tensor]]
Result = tuple[Values, Float[Tensor, "B C H K V"]]


def gated_delta_rule(
    q: Keys, k: Keys, v: Values, g: PerHead, beta: PerHead, *, initial_state: Initial = None, positions: Asked = None
) -> Result:
    """Decay, then replace what the key reads: S ← exp(g)·S; S ← S + k (β (v − Sᵀk))ᵀ; o = Sᵀq·K^-1/2."""
    return _scan(q, k, v, decay=g.exp()[..., None], beta=beta, initial_state=initial_state, positions=positions)


def kimi_delta_rule(
    q: Keys, k: Keys, v: Values, g: PerChannel, beta: PerHead, *, initial_state: Initial = None, positions: Asked = None
) -> Result:
    """The gated delta rule with a decay for each key channel: S ← diag(exp(g))·S; S ← S + k (β (v − Sᵀk))ᵀ.

    Kimi Team, Kimi Linear, 2025, https://arxiv.org/abs/2510.26692.
    """
    return _scan(q, k, v, decay=g.exp(), beta=beta, initial_state=initial_state, positions=positions)


def gated_linear_attention(
    q: Keys, k: Keys, v: Values, g: PerChannel, *, initial_state: Initial = None, positions: Asked = None
) -> Result:
    """Decay of each key channel without erasure: S ← diag(exp(g))·S + k vᵀ."""
    return _scan(q, k, v, decay=g.exp(), initial_state=initial_state, positions=positions)


def state_space_dual(
    q: Keys, k: Keys, v: Values, g: PerHead, beta: PerHead, *, initial_state: Initial = None, positions: Asked = None
) -> Result:
    """Decay of each head without erasure: S ← exp(g)·S + k (β v)ᵀ; o = Sᵀq, without a scale.

    Mamba-2: q is its C, k its B, v its x, β its step size dt and g = A·dt. Its skip D·x is no part of this.
    """
    decay, q, v = g.exp()[..., None], q * q.shape[-1] ** 0.5, beta[..., None] * v
    return _scan(q, k, v, decay=decay, initial_state=initial_state, positions=positions)


def gated_delta_product(
    q: Keys, k: Float[Tensor, "B T n Hk K"], v: Float[Tensor, "B T n H V"], g: PerHead, beta: Float[Tensor, "B T n H"],
    *, initial_state: Initial = None, positions: Asked = None,
) -> Result:  # fmt: skip
    """n writes of the delta rule for each token, one decay before them, one reading after: S ← exp(g)·S, then n times
    S ← S + k (β (v − Sᵀk))ᵀ; o = Sᵀq·K^-1/2.

    Siems et al., DeltaProduct, NeurIPS 2025, https://arxiv.org/abs/2502.10297.
    """
    q = _per_value_head(q * q.shape[-1] ** -0.5, v[:, :, 0])
    keys = [_per_value_head(k[:, :, i], v[:, :, i]) for i in range(k.shape[2])]

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = g[:, t, :, None, None].exp() * state
        for i, key in enumerate(keys):
            write = beta[:, t, i, :, None] * (v[:, t, i] - _read(state, key[:, t]))
            state = state + _outer(key[:, t], write)
        return state, _read(state, q[:, t])

    return _stepped(step, keys[0], v[:, :, 0], initial_state, positions)


def comba(
    q: Keys, k: Keys, v: Values, p: Keys, g: PerHead, beta: PerHead, *,
    initial_state: Initial = None, positions: Asked = None,
) -> Result:  # fmt: skip
    """The gated delta rule that asks with another key, p, and before the decay: S ← exp(g)·S + k (β (v − Sᵀp))ᵀ.

    Hu et al., Improving Bilinear RNNs with Closed-loop Control, 2025, https://arxiv.org/abs/2506.02475.
    """
    q, k, p = (_per_value_head(x, v) for x in (q * q.shape[-1] ** -0.5, k, p))

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        write = beta[:, t, :, None] * (v[:, t] - _read(state, p[:, t]))
        state = g[:, t, :, None, None].exp() * state + _outer(k[:, t], write)
        return state, _read(state, q[:, t])

    return _stepped(step, k, v, initial_state, positions)


def rwkv6(
    q: PerChannel, k: PerChannel, v: Values, g: PerChannel, bonus: Float[Tensor, "H K"], *,
    initial_state: Initial = None, positions: Asked = None,
) -> Result:  # fmt: skip
    """Read, with a bonus for the token itself, then write: o = (S + diag(bonus)·k vᵀ)ᵀq; S ← diag(exp(g))·S + k vᵀ.

    Queries are not scaled. Peng et al., Eagle and Finch, COLM 2024, https://arxiv.org/abs/2404.05892.
    """

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        output = _read(state + _outer(bonus * k[:, t], v[:, t]), q[:, t])
        return g[:, t, :, :, None].exp() * state + _outer(k[:, t], v[:, t]), output

    return _stepped(step, k, v, initial_state, positions)


def rwkv7(
    q: PerChannel, k: PerChannel, v: Values, g: PerChannel, a: PerChannel, b: PerChannel, *,
    initial_state: Initial = None, positions: Asked = None,
) -> Result:  # fmt: skip
    """A transition that is diagonal plus rank one: S ← (diag(exp(g)) + b aᵀ)·S + k vᵀ; o = Sᵀq, without a scale.

    Peng et al., RWKV-7 "Goose" with Expressive Dynamic State Evolution, 2025, https://arxiv.org/abs/2503.14456.
    """

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        moved = _outer(b[:, t], _read(state, a[:, t]))
        state = g[:, t, :, :, None].exp() * state + moved + _outer(k[:, t], v[:, t])
        return state, _read(state, q[:, t])

    return _stepped(step, k, v, initial_state, positions)


def l2norm(x: Float[Tensor, "*batch K"], *, eps: float = 1e-6) -> Float[Tensor, "*batch K"]:
    """x / √(Σx² + eps), the normalisation that transformers gives queries and keys; the result is at most 1 long."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def checked_positions(positions: Asked, tokens: int) -> list[int]:
    """Positions as a list, the last token alone for None. Raises ValueError unless they increase from 1 to `tokens`."""
    listed = [tokens] if positions is None else [int(position) for position in positions]
    increasing = all(a < b for a, b in itertools.pairwise(listed))
    if not listed or not increasing or listed[0] < 1 or listed[-1] > tokens:
        raise ValueError(
            f"positions must increase strictly from 1 or more to at most {tokens}, the tokens read; got {listed}"
        )
    return listed


def _scan(
    q: Keys, k: Keys, v: Values, *, decay: Float[Tensor, "B T H _"], beta: PerHead | None = None, **options: object
) -> Result:
    """One decay and one write for each token; without beta nothing is erased."""
    q, k = _per_value_head(q, v) * q.shape[-1] ** -0.5, _per_value_head(k, v)

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = decay[:, t, :, :, None] * state
        write = v[:, t] if beta is None else beta[:, t, :, None] * (v[:, t] - _read(state, k[:, t]))
        state = state + _outer(k[:, t], write)
        return state, _read(state, q[:, t])

    return _stepped(step, k, v, **options)


def _stepped(step: Step, k: PerChannel, v: Values, initial_state: Initial, positions: Asked) -> Result:
    """Outputs and states of a rule that is given as its step: from state and token's number to state and output."""
    captured = set(checked_positions(positions, v.shape[1]))
    state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1]) if initial_state is None else initial_state
    outputs, states = [], []
    for t in range(v.shape[1]):
        state, output = step(state, t)
        outputs.append(output)
        if t + 1 in captured:
            states.append(state)
    return torch.stack(outputs, 1), torch.stack(states, 1)


# Plain annotations here, since checking shapes for every token takes longer than the arithmetic.
def _outer(key: Tensor, value: Tensor) -> Tensor:
    return key[..., :, None] * value[..., None, :]


def _read(state: Tensor, query: Tensor) -> Tensor:
    return (query[:, :, None, :] @ state)[:, :, 0]


def _per_value_head(x: Keys, v: Values) -> PerChannel:
    value_heads, key_heads = v.shape[2], x.shape[2]
    if value_heads % key_heads:
        raise ValueError(f"value heads must be a multiple of the key heads they share, {value_heads} on {key_heads}")
    return x.repeat_interleave(value_heads // key_heads, dim=2)
