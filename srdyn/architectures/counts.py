"""What the configuration of an ordinary checkpoint calls the numbers of heads, where it can state a cut at all."""

from typing import NamedTuple


class Counts(NamedTuple):
    """What a family's configuration calls the numbers that a cut changes.

    Value heads, the keys or groups that they share, their width together, the whole multiple of the hidden size that
    this width must be. Only where `repeats` may keys be repeated: where nothing but heads reads them. With `shares` the
    widths of all keys and of all values are stated, as any share of the hidden size (`expand_k`, `expand_v`).
    """

    heads: str
    keys: str | None = None
    width: str | None = None
    expand: str | None = None
    repeats: bool = False
    shares: bool = False


DELTA = Counts("linear_num_value_heads", "linear_num_key_heads", repeats=True)
FLA = Counts("num_v_heads", "num_heads", repeats=True)
COUNTS: dict[str, Counts] = {
    **dict.fromkeys(("Qwen3NextGatedDeltaNet", "Qwen3_5GatedDeltaNet", "Qwen3_5MoeGatedDeltaNet"), DELTA),
    **dict.fromkeys(("Qwen4ExpTextGatedDeltaNet", "OlmoHybridGatedDeltaNet"), DELTA),
    **dict.fromkeys(("KimiLinearDeltaAttention", "Glm5NextTextLinearAttention"), Counts("linear_num_heads")),
    "NemotronHMamba2Mixer": Counts("mamba_num_heads", "n_groups"),
    "FalconH1Mixer": Counts("mamba_n_heads", "mamba_n_groups", width="mamba_d_ssm"),
    "Mamba2Mixer": Counts("num_heads", "n_groups", expand="expand"),
    "BambaMixer": Counts("mamba_n_heads", "mamba_n_groups", expand="mamba_expand"),
    "GraniteMoeHybridMambaLayer": Counts("mamba_n_heads", "mamba_n_groups", expand="mamba_expand"),
    "Zamba2MambaMixer": Counts("n_mamba_heads", "mamba_ngroups", expand="mamba_expand"),
    **dict.fromkeys(("GatedDeltaNet", "KimiDeltaAttention", "GatedDeltaProduct", "Comba"), FLA),
    **dict.fromkeys(("DeltaNet", "RWKV6Attention"), Counts("num_heads", shares=True)),
    "GatedLinearAttention": Counts("num_heads", "num_kv_heads", repeats=True, shares=True),
}
"""By the class of the recurrent layers."""
REASONS = {
    "BailingHybridDeltaAttention": "its configuration has one number for the heads of linear layers and of attention",
    **dict.fromkeys(("HGRN2Attention", "RWKV7Attention"), "its heads are together as wide as its hidden size"),
    "MultiScaleRetention": "its heads decay by their place among the others, which a cut changes",
}
"""Why a family's configuration cannot state a cut."""
