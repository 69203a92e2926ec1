"""Recurrent layers that srdyn does not study, each with the reason."""

_CLASSES: dict[str, tuple[str, ...]] = {
    "a Mamba-1 scan decays each of its channels and states at a rate of its own, so that no head holds a K × V state, "
    "and transformers 5.23 goes on from its cache by one token at a time only": (
        "transformers.models.mamba.modeling_mamba.MambaMixer",
        "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer",
        "transformers.models.jamba.modeling_jamba.JambaMambaMixer",
        "transformers.models.zamba.modeling_zamba.ZambaMambaMixer",
        "fla.layers.mamba.Mamba",
    ),
    "its recurrent state is a vector, a number for each channel, and has no rank": (
        "transformers.models.rwkv.modeling_rwkv.RwkvSelfAttention",
        "transformers.models.recurrent_gemma.modeling_recurrent_gemma.RecurrentGemmaRecurrentBlock",
        "fla.layers.hgrn.HGRNAttention",
    ),
    "what it calls recurrent is the last token's value, a vector beside softmax attention": (
        "transformers.models.zaya.modeling_zaya.ZayaCCAProjection",
    ),
    "its recurrence is written into the layer, so that it cannot be fed or silenced, and transformers 5.23 goes on "
    "from its cache with wrong logits after more than one token at a time": (
        "transformers.models.minimax.modeling_minimax.MiniMaxLightningAttention",
    ),
    "its state is known only up to a factor that a stabiliser and a normaliser beside it carry, which srdyn does not "
    "read": ("transformers.models.xlstm.modeling_xlstm.xLSTMBlock",),
    "flash-linear-attention's Mamba-2 goes on from a cache by one token at a time only; srdyn studies the Mamba-2 of "
    "transformers": ("fla.layers.mamba2.Mamba2",),
    "its recurrence runs on a GPU only, where srdyn's reading of it has not been checked": (
        "fla.layers.mamba3.Mamba3", "fla.layers.lightnet.LightNetAttention",
    ),
    "each head holds a hierarchy of states, as many as the length of the text has binary digits": (
        "fla.layers.log_linear_mamba2.LogLinearMamba2",
    ),
    "tokens are sent to several memories, which share a list of states, and flash-linear-attention 0.6 goes on from "
    "its cache with wrong logits": ("fla.layers.mom.MomAttention",),
    "each head holds two states, and its output solves an equation with both": ("fla.layers.mesa_net.MesaNet",),
    "each head holds two states, of keys and of values by slot, whose rank the paper does not define": (
        "fla.layers.abc.ABCAttention", "fla.layers.gsa.GatedSlotAttention", "fla.layers.raven.Raven",
    ),
    "each head holds a preconditioner beside its state, which the rules of kernels.recurrence do not have": (
        "fla.layers.precond_gated_deltanet.PrecondGatedDeltaNet", "fla.layers.precond_kda.PrecondKDA",
    ),
    "its rule of update is not among those of srdyn.kernels.recurrence": (
        "fla.layers.linear_attn.LinearAttention", "fla.layers.rodimus.RodimusAttention",
        "fla.layers.yoco.YOCOGatedRetention", "fla.layers.cyfa.CyclicFlowAttention",
    ),
}  # fmt: skip
REASONS = {name: reason for reason, names in _CLASSES.items() for name in names}
"""By full class name of the layer."""
