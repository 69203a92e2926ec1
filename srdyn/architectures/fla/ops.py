"""Plain torch twins of what flash-linear-attention's decoder modules call beside the recurrence, for a CPU.

Names, arguments and results are those of https://github.com/fla-org/flash-linear-attention 0.6; arithmetic is float32.
Arguments that only steer a kernel are taken and not used.
"""

import pkgutil
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from srdyn.kernels import fused, recurrence

_Rows = Float[Tensor, "*batch D"]
_Vector = Float[Tensor, " D"]
_Sequences = Float[Tensor, "B T D"]


def layer_norm(
    x: _Rows, weight: _Vector | None, bias: _Vector | None, residual: _Rows | None = None, eps: float = 1e-5,
    prenorm: bool = False, residual_in_fp32: bool = False, is_rms_norm: bool = False, num_groups: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """(x + residual) normed within each group of channels; with `prenorm` also x + residual itself."""
    total = x.float() if residual is None else x.float() + residual.float()
    rows = total.unflatten(-1, (num_groups, -1))
    if not is_rms_norm:
        rows = rows - rows.mean(-1, keepdim=True)
    normed = (rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)).flatten(-2)
    normed = normed if weight is None else normed * weight.float()
    normed = (normed if bias is None else normed + bias.float()).to(x.dtype)
    if not prenorm:
        return normed
    widened = torch.float32 if residual_in_fp32 else x.dtype
    return normed, total.to(widened if residual is None else residual.dtype)


def rms_norm(*arguments, **options) -> Tensor | tuple[Tensor, Tensor]:
    """As `layer_norm`, without a mean to take off."""
    return layer_norm(*arguments, **options, is_rms_norm=True)


def rms_norm_linear(
    x: _Rows, norm_weight: _Vector | None, norm_bias: _Vector | None, linear_weight: Float[Tensor, "M D"],
    linear_bias: Float[Tensor, " M"] | None, residual: _Rows | None = None, eps: float = 1e-5,
) -> Float[Tensor, "*batch M"]:  # fmt: skip
    """A projection of the normed x + residual."""
    return F.linear(rms_norm(x, norm_weight, norm_bias, residual, eps), linear_weight, linear_bias)


def rms_norm_gated(
    x: _Rows, g: _Rows, weight: _Vector | None, bias: _Vector | None, activation: str = "swish",
    residual: _Rows | None = None, prenorm: bool = False, residual_in_fp32: bool = False, eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """The normed x + residual times SiLU(g), or times sigmoid(g) where `activation` says so."""
    normed, total = rms_norm(x.float(), weight, bias, residual, eps, True, residual_in_fp32)
    gated = (normed * (g.float().sigmoid() if activation == "sigmoid" else F.silu(g.float()))).to(x.dtype)
    return (gated, total if residual_in_fp32 else total.to(x.dtype)) if prenorm else gated


def l2norm(x: _Rows, eps: float = 1e-6, output_dtype: torch.dtype | None = None) -> _Rows:
    """x / √(Σx² + eps)."""
    return recurrence.l2norm(x.float(), eps=eps).to(output_dtype or x.dtype)


def causal_conv1d(
    x: _Sequences, weight: Float[Tensor, "D W"], bias: _Vector | None = None, residual: _Sequences | None = None,
    initial_state: Float[Tensor, "N D W"] | None = None, output_final_state: bool | None = False,
    activation: str | None = None, backend: str | None = None, cu_seqlens: Tensor | None = None,
) -> tuple[_Sequences, Float[Tensor, "N D W"] | None]:  # fmt: skip
    """Each channel convolved with what it was, then SiLU if `activation` is named, plus residual; the last W inputs."""
    D, W = weight.shape
    plain = initial_state is None and not output_final_state and bias is None and residual is None
    if plain and W == fused.TAPS and activation in ("silu", "swish") and fused.fit(x):
        return fused.causal_conv1d_fn(x.mT, weight, activation="silu").mT, None
    past = x.new_zeros(len(x), D, W) if initial_state is None else initial_state.to(x.dtype)
    stream = torch.cat([past, x.mT], dim=-1)
    y = F.conv1d(stream[..., 1:].float(), weight.float()[:, None], None if bias is None else bias.float(), groups=D).mT
    y = y if activation is None else F.silu(y)
    y = (y if residual is None else y + residual.float()).to(x.dtype)
    return y, stream[..., -W:].clone() if output_final_state else None


def short_convolution(
    module: nn.Conv1d, x: _Sequences, residual: _Sequences | None = None, mask: Tensor | None = None,
    cache: Float[Tensor, "N D W"] | None = None, output_final_state: bool | None = False,
    cu_seqlens: Tensor | None = None, chunk_indices: Tensor | None = None,
) -> tuple[_Sequences, Float[Tensor, "N D W"] | None]:  # fmt: skip
    """The forward of a `ShortConvolution`, for one token as for many; the cache that it is given stays as it is."""
    x = x if mask is None else x * mask[..., None]
    weight, bias, activation = module.weight[:, 0], module.bias, module.activation
    return causal_conv1d(x, weight, bias, residual, cache, output_final_state, activation)


def token_shift(
    x: _Sequences, cu_seqlens: Tensor | None = None, cache: Float[Tensor, "N D"] | None = None,
    output_cache: bool = False, chunk_indices: Tensor | None = None,
) -> _Sequences | tuple[_Sequences, Float[Tensor, "N D"]]:  # fmt: skip
    """What the token before was, minus what this one is; before the first is `cache`, or zero. And the last token."""
    first = torch.zeros_like(x[:, :1]) if cache is None else cache[:, None]
    moved = torch.cat([first, x[:, :-1]], dim=1) - x
    return (moved, x[:, -1]) if output_cache else moved


def rotary_embedding(
    x: Float[Tensor, "B T H D"], cos: Float[Tensor, "places half"], sin: Float[Tensor, "places half"],
    interleaved: bool = False, inplace: bool = False, seqlen_offsets: int | Int[Tensor, " N"] = 0,
    cu_seqlens: Tensor | None = None, chunk_indices: Tensor | None = None,
) -> Float[Tensor, "B T H D"]:  # fmt: skip
    """The first channels turned by the angle of their token's place, pair by pair; the others as they are."""
    offsets = torch.as_tensor(seqlen_offsets, device=x.device).reshape(-1, 1)
    places = offsets + torch.arange(x.shape[1], device=x.device)
    turn = theirs("fla.modules.rotary.ops:rotary_embedding_ref")
    return turn(x.float(), cos.float()[places], sin.float()[places], interleaved).to(x.dtype)


def sqrelu(x: Tensor) -> Tensor:
    """relu(x)²."""
    return F.relu(x.float()).square().to(x.dtype)


def elu_p1(x: Tensor) -> Tensor:
    """elu(x) + 1."""
    return (F.elu(x.float()) + 1).to(x.dtype)


def swiglu(x: _Rows, y: _Rows) -> _Rows:
    """SiLU(x)·y."""
    return fused.swiglu(x, y) if fused.fit(x) and fused.fit(y) else F.silu(x) * y


def swiglu_linear(
    x: _Rows, y: _Rows, weight: Float[Tensor, "M D"], bias: Float[Tensor, " M"] | None
) -> Float[Tensor, "*batch M"]:
    """A projection of SiLU(x)·y."""
    return F.linear(swiglu(x, y), weight, bias)


def theirs(path: str) -> Callable:
    """A plain torch reference that flash-linear-attention has itself, looked up when it is called."""
    return lambda *arguments, **options: pkgutil.resolve_name(path)(*arguments, **options)


class CrossEntropy(nn.CrossEntropyLoss):
    """Both of flash-linear-attention's losses: from logits, or from hidden states with the head's weight and bias."""

    def forward(self, x: Tensor, target: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        logits = x if weight is None else F.linear(x, weight, bias)
        return super().forward(logits.flatten(0, -2).float(), target.flatten())


def unpad_hidden_states(
    hidden_states: _Sequences, cu_seqlens: Tensor | None = None, attention_mask: Tensor | None = None, q_len: int = 0
) -> tuple[_Sequences, None, None]:
    """Sequences as they are, which need not be packed. Raises ValueError for padded and for packed ones."""
    padded = attention_mask is not None and not attention_mask[:, -q_len:].all()
    require_unpacked(attention_mask if padded else cu_seqlens)
    return hidden_states, None, None


def require_unpacked(told: Tensor | None) -> None:
    """Raises ValueError where tensors tell how sequences are padded or packed."""
    if told is not None:
        raise ValueError(
            "on a CPU models of flash-linear-attention read sequences of one length, without padding (attention_mask) "
            "or packing (cu_seqlens): call them for each sequence, or on a GPU"
        )


_TWINS = (
    causal_conv1d, elu_p1, l2norm, layer_norm, rms_norm, rms_norm_gated, rms_norm_linear, rotary_embedding, swiglu,
    swiglu_linear, token_shift, unpad_hidden_states,
)  # fmt: skip
FUNCTIONS = {twin.__name__: twin for twin in _TWINS} | {"l2_norm": l2norm, "swish": F.silu, "group_norm": layer_norm}
FUNCTIONS |= {
    "fused_attnres": theirs("fla.ops.attnres.naive:naive_attnres"),
    "fused_addcmul_rwkv7": theirs("fla.ops.rwkv7.fused_addcmul:torch_addcmul_rwkv7"),
    "fused_k_rwkv7": theirs("fla.ops.rwkv7.fused_k_update:k_update_ref"),
    "gate_output_correction": theirs("fla.ops.rwkv7.gate_output_correction:gate_output_correction_ref"),
}
"""The twins by the names that flash-linear-attention's modules call them by."""

ACTIVATIONS = dict(elu_p1=elu_p1, logsigmoid=F.logsigmoid, sigmoid=torch.sigmoid, sqrelu=sqrelu, swish=F.silu)
"""The twins of activations that modules hold as attributes, by their names in `layers.modules.activations`."""
