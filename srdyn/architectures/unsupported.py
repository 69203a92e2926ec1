"""Recurrent layers that srdyn does not study, each with the reason."""

MAMBA_1 = (
    "a Mamba-1 scan decays each of its channels and states at a rate of its own, so that no head holds a K × V state, "
    "and transformers 5.23 goes on from its cache by one token at a time only"
)
VECTOR = "its recurrent state is a vector, a number for each channel, and has no rank"
SLOTS = "each head holds two states, of keys and of values by slot, whose rank the paper does not define"
PRECONDITIONED = "each head holds a preconditioner beside its state, which the rules of kernels.recurrence do not have"
GPU_ONLY = "its recurrence runs on a GPU only, where srdyn's reading of it has not been checked"
NO_RULE = "its rule of update is not among those of srdyn.kernels.recurrence"

REASONS: dict[str, str] = {
    "transformers.models.mamba.modeling_mamba.MambaMixer": MAMBA_1,
    "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer": MAMBA_1,
    "transformers.models.jamba.modeling_jamba.JambaMambaMixer": MAMBA_1,
    "transformers.models.zamba.modeling_zamba.ZambaMambaMixer": MAMBA_1,
    "transformers.models.rwkv.modeling_rwkv.RwkvSelfAttention": VECTOR,
    "transformers.models.recurrent_gemma.modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock": VECTOR,
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
    "fla.layers.mamba.Mamba": MAMBA_1,
    "fla.layers.mamba3.Mamba3": GPU_ONLY,
    "fla.layers.lightnet.LightNetAttention": GPU_ONLY,
    "fla.layers.log_linear_mamba2.LogLinearMamba2": (
        "each head holds a hierarchy of states, as many as the length of the text has binary digits"
    ),
    "fla.layers.hgrn.HGRNAttention": VECTOR,
    "fla.layers.mom.MomAttention": (
        "tokens are sent to several memories, which share a list of states, and flash-linear-attention 0.6 goes on "
        "from its cache with wrong logits"
    ),
    "fla.layers.mesa_net.MesaNet": "each head holds two states, and its output solves an equation with both",
    "fla.layers.abc.ABCAttention": SLOTS,
    "fla.layers.gsa.GatedSlotAttention": SLOTS,
    "fla.layers.raven.Raven": SLOTS,
    "fla.layers.precond_gated_deltanet.PrecondGatedDeltaNet": PRECONDITIONED,
    "fla.layers.precond_kda.PrecondKDA": PRECONDITIONED,
    "fla.layers.linear_attn.LinearAttention": NO_RULE,
    "fla.layers.rodimus.RodimusAttention": NO_RULE,
    "fla.layers.yoco.YOCOGatedRetention": NO_RULE,
    "fla.layers.cyfa.CyclicFlowAttention": NO_RULE,
}
"""By full class name of the layer."""
