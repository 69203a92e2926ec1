"""Twins of flash-linear-attention's recurrences, for layers that run on a CPU.

Names, arguments and results are those of its version 0.6, arguments by name only, as its layers give them. State and
arithmetic are float32. Each reads token by token, so that its results are the same wherever a pass is cut.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from srdyn.architectures.fla import ops
from srdyn.kernels import recurrence, scan, transition
from srdyn.kernels.recurrence import PerHead

_Read = tuple[Float[Tensor, "B T H V"], Float[Tensor, "N H K V"]]


def _called(rule: Callable[..., _Read]) -> Callable:
    """A rule for float32 tensors and K × V states, called as flash-linear-attention's functions are.

    It adds packed sequences (`cu_seqlens`), V × K states (`state_v_first`), a last state only where it is wanted, and
    outputs in the dtype of v. Tensors with fewer than three axes hold for all tokens.
    """

    @functools.wraps(rule)
    def call(
        *, initial_state: Tensor | None = None, output_final_state: bool | None = False, state_v_first: bool = False,
        cu_seqlens: Tensor | None = None, **named,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        timed = {name: x.float() for name, x in named.items() if isinstance(x, Tensor) and x.ndim > 2}
        others = {name: x for name, x in named.items() if name not in timed}
        state = None if initial_state is None else initial_state.float()
        state = state.mT if state is not None and state_v_first else state
        if cu_seqlens is None:
            outputs, last = rule(**timed, **others, initial_state=state)
        else:
            outputs, last = _packed(functools.partial(rule, **others), timed, state, cu_seqlens)
        last = last.mT.contiguous() if state_v_first else last
        return outputs.to(named["v"].dtype), last if output_final_state else None

    return call


def _packed(rule: Callable[..., _Read], timed: dict[str, Tensor], state: Tensor | None, cu_seqlens: Tensor) -> _Read:
    """Sequence after sequence; a tensor that holds several rows a token is cut accordingly."""
    outputs, states = [], []
    for n, (start, end) in enumerate(ops.bounds(cu_seqlens)):
        share = {name: x.shape[1] // int(cu_seqlens[-1]) for name, x in timed.items()}
        part = {name: x[:, start * share[name] : end * share[name]] for name, x in timed.items()}
        output, last = rule(**part, initial_state=None if state is None else state[n : n + 1])
        outputs.append(output)
        states.append(last)
    return torch.cat(outputs, dim=1), torch.cat(states)


def log_decay(
    g: Float[Tensor, "B T H *K"], A_log: Float[Tensor, " H"] | None, dt_bias: Float[Tensor, " _"] | None,
    lower_bound: float | None = None,
) -> Float[Tensor, "B T H *K"]:  # fmt: skip
    """What the kernels make of a raw g: −exp(A_log)·softplus(g + dt_bias), or lower_bound·sigmoid(exp(A_log)·(…))."""
    g = g.float() if dt_bias is None else g.float() + dt_bias.float().view(g.shape[2:])
    rate = torch.ones(()) if A_log is None else A_log.float().exp().view(-1, *[1] * (g.ndim - 3))
    return -rate * F.softplus(g) if lower_bound is None else lower_bound * (rate * g).sigmoid()


def write_strength(beta: PerHead, *, is_logit: bool, allow_neg_eigval: bool = False) -> PerHead:
    """What the kernels make of beta: itself, or the sigmoid of it, doubled where negative eigenvalues are allowed."""
    return beta.float().sigmoid() * (2 if allow_neg_eigval else 1) if is_logit else beta.float()


@_called
def gated_delta_rule(
    q, k, v, beta, g=None, initial_state=None, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, A_log=None,
    dt_bias=None, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False,
) -> _Read:  # fmt: skip
    """The compiled scan; without g nothing decays."""
    beta = write_strength(beta, is_logit=use_beta_sigmoid_in_kernel, allow_neg_eigval=allow_neg_eigval)
    g = torch.zeros_like(beta) if g is None else g
    g = log_decay(g, A_log, dt_bias) if use_gate_in_kernel else g
    return scan.gated_delta_rule(
        q, k, v, g, beta, initial_state=initial_state, output_final_state=True,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
    )  # fmt: skip


@_called
def gated_delta_product(q, k, v, beta, num_householder, g=None, initial_state=None, **options) -> _Read:
    """`num_householder` writes for each token and one decay, which comes before them; read after the last."""
    B, T, H, K = q.shape
    queries, decays = q.new_zeros(B, T, num_householder, H, K), beta.new_zeros(B, T, num_householder, v.shape[2])
    queries[:, :, -1] = q
    if g is not None:
        decays[:, :, 0] = g
    outputs, state = gated_delta_rule(
        q=queries.flatten(1, 2), k=k, v=v, g=decays.flatten(1, 2), beta=beta,
        initial_state=initial_state, output_final_state=True, **options,
    )  # fmt: skip
    return outputs[:, num_householder - 1 :: num_householder], state


@_called
def kda(
    q, k, v, g, beta, initial_state=None, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, A_log=None,
    dt_bias=None, lower_bound=None, safe_gate=False, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False,
) -> _Read:  # fmt: skip
    """A decay for each key channel, bounded from below where there is a `lower_bound`."""
    beta = write_strength(beta, is_logit=use_beta_sigmoid_in_kernel, allow_neg_eigval=allow_neg_eigval)
    g = log_decay(g, A_log, dt_bias, lower_bound) if use_gate_in_kernel else g
    q, k = (recurrence.l2norm(x) if use_qk_l2norm_in_kernel else x for x in (q, k))
    return transition.kimi_delta_rule(q, k, v, g, beta, initial_state=initial_state)


@_called
def comba(q, k, v, p, g, beta, initial_state=None, use_qk_l2norm_in_kernel=False) -> _Read:
    """Erases by p what it writes by k, and erases before it decays, as the kernels do."""
    q, k, p = (recurrence.l2norm(x) if use_qk_l2norm_in_kernel else x for x in (q, k, p))
    return _last(recurrence.comba(q, k, v, p, g, beta, initial_state=initial_state))


@_called
def gated_linear_attention(q, k, v, g=None, gk=None, initial_state=None) -> _Read:
    """The decay is called g where a pass is chunked, gk where it is fused."""
    g = gk if g is None else g
    return transition.gated_linear_attention(q, k, v, g, initial_state=initial_state)


@_called
def simple_gla(q, k, v, g=None, g_gamma=None, initial_state=None) -> _Read:
    """One decay a head: `g` for each token, or `g_gamma` for all."""
    g = g_gamma.float().expand(v.shape[:3]) if g is None else g
    per_channel = g[..., None].expand(*g.shape, k.shape[-1])
    return _last(recurrence.gated_linear_attention(q, k, v, per_channel, initial_state=initial_state))


@_called
def rwkv6(r, k, v, w, u, scale, initial_state=None) -> _Read:
    """Reads before it writes; w is the log-decay, u the bonus."""
    return _last(recurrence.rwkv6(scale * r, k, v, w, u.float(), initial_state=initial_state))


@_called
def rwkv7(r, w, k, v, a, b, scale, initial_state=None, safe_gate=False, lower_bound=None, chunk_size=None) -> _Read:
    """A transition that is diagonal plus rank one; w is the log-decay."""
    return transition.rwkv7(scale * r, k, v, w, a, b, initial_state=initial_state)


@_called
def fused_rwkv7(r, w, k, v, kk, a, scale, initial_state=None) -> _Read:
    """As `rwkv7`, with −kk and kk·a for its a and b."""
    return transition.rwkv7(scale * r, k, v, w, -kk, kk * a, initial_state=initial_state)


def retention_decays(H: int) -> Float[Tensor, " H"]:
    """RetNet's log-decays: log(1 − 2^(−5−h))."""
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(H)))


def _last(result: recurrence.Result) -> _Read:
    outputs, states = result
    return outputs, states[:, -1]


_EITHER = {rule.__name__: rule for rule in (comba, gated_delta_rule, kda, rwkv6, simple_gla)}
_EITHER |= {"delta_rule": gated_delta_rule, "gla": gated_linear_attention}
FUNCTIONS = {f"{form}_{name}": rule for form in ("chunk", "fused_recurrent") for name, rule in _EITHER.items()}
FUNCTIONS |= {"chunk_gated_delta_product": gated_delta_product}
FUNCTIONS |= {"chunk_rwkv7": rwkv7, "fused_mul_recurrent_rwkv7": fused_rwkv7}
"""The twins by the names that flash-linear-attention's layers call them by."""
