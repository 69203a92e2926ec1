"""Recurrent layers that srdyn does not study, each with the reason."""

_MAMBA_1 = (
    "a Mamba-1 scan decays each of its channels and states at a rate of its own, so that no head holds a K × V state, "
    "and transformers 5.23 goes on from its cache by one token at a time only"
)
_VECTOR = "its recurrent state is a vector, a number for each channel, and has no rank"
_SLOTS = "each head holds two states, of keys and of values by slot, whose rank the paper does not define"
_PRECONDITIONED = "each head holds a preconditioner beside its state, which the rules of kernels.recurrence do not have"
_GPU_ONLY = "its recurrence runs on a GPU only, where srdyn's reading of it has not been checked"
_NO_RULE = "its rule of update is not among those of srdyn.kernels.recurrence"

REASONS: dict[str, str] = {
    "transformers.models.mamba.modeling_mamba.MambaMixer": _MAMBA_1,
    "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer": _MAMBA_1,
    "transformers.models.jamba.modeling_jamba.JambaMambaMixer": _MAMBA_1,
    "transformers.models.zamba.modeling_zamba.ZambaMambaMixer": _MAMBA_1,
    "transformers.models.rwkv.modeling_rwkv.RwkvSelfAttention": _VECTOR,
    "transformers.models.recurrent_gemma.modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock": _VECTOR,
    "transformers.models.zaya.modeling_zaya.ZayaCCAProjection": (
        "what it calls recurrent is the last token's value, a vector beside softmax attention"
    ),
    "transformers.models.minimax.modeling_minimax.MiniMaxLightningAttention": (
        "its recurrence is written into the layer, so that it cannot be fed or silenced, and transformers 5.23 goes on "
        "from its cache with wrong logits after more than one token at a time"
    ),
    "transformers.models.xlstm.modeling_xlstm.xLSTMBlock": (
        "its state is known only up to a factor that a stabiliser and a normaliser beside it carry, which srdyn does "
        "not read"
    ),
    "fla.layers.mamba2.Mamba2": (
        "flash-linear-attention's Mamba-2 goes on from a cache by one token at a time only; srdyn studies the Mamba-2 "
        "of transformers"
    ),
    "fla.layers.mamba.Mamba": _MAMBA_1,
    "fla.layers.mamba3.Mamba3": _GPU_ONLY,
    "fla.layers.lightnet.LightNetAttention": _GPU_ONLY,
    "fla.layers.log_linear_mamba2.LogLinearMamba2": (
        "each head holds a hierarchy of states, as many as the length of the text has binary digits"
    ),
    "fla.layers.hgrn.HGRNAttention": _VECTOR,
    "fla.layers.mom.MomAttention": (
        "tokens are sent to several memories, which share a list of states, and flash-linear-attention 0.6 goes on "
        "from its cache with wrong logits"
    ),
    "fla.layers.mesa_net.MesaNet": "each head holds two states, and its output solves an equation with both",
    "fla.layers.abc.ABCAttention": _SLOTS,
    "fla.layers.gsa.GatedSlotAttention": _SLOTS,
    "fla.layers.raven.Raven": _SLOTS,
    "fla.layers.precond_gated_deltanet.PrecondGatedDeltaNet": _PRECONDITIONED,
    "fla.layers.precond_kda.PrecondKDA": _PRECONDITIONED,
    "fla.layers.linear_attn.LinearAttention": _NO_RULE,
    "fla.layers.rodimus.RodimusAttention": _NO_RULE,
    "fla.layers.yoco.YOCOGatedRetention": _NO_RULE,
    "fla.layers.cyfa.CyclicFlowAttention": _NO_RULE,
}
"""By full class name of the layer."""
