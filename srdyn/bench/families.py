"""Tokens per second through one linear layer of every family, at the size that its configuration has by default."""

import importlib

import pandas as pd
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from srdyn import architectures, models
from srdyn.bench import timing
from srdyn.loading import checkpoints

_READ = "read"
PARTLY_SPECIFIED = {"qwen4_exp"}
"""Families whose defaults describe no whole model. The linear layer of this one computes what Qwen3.5's does."""


def table(*, T: int, rounds: int) -> pd.DataFrame:
    """A row for each family: kind, layer (its class), hidden, H, K, V, beside `timing.compared`.

    One sequence of T tokens goes through one layer alone, its projections and convolutions included, with drawn
    weights in float32. Families are read one after the other: their times do not share rounds.
    """
    return pd.concat([_timed(config, T, rounds) for config in configs()], ignore_index=True)


def configs() -> list[transformers.PreTrainedConfig]:
    """The configuration of every family as its class has it by default; of a model with images, the whole one's."""
    importlib.import_module("fla.models")  # makes its configurations known by their model types
    kinds = [kind for kinds in architectures.supported()["model_types"] for kind in kinds.split(", ")]
    whole = dict.fromkeys(kind for kind in kinds if kind not in PARTLY_SPECIFIED and not kind.endswith("_text"))
    own = {kind: getattr(transformers, CONFIG_MAPPING_NAMES.get(kind, ""), None) for kind in whole if kind}
    return [build() if build else transformers.AutoConfig.for_model(kind) for kind, build in own.items()]


def layer(config: transformers.PreTrainedConfig) -> architectures.Site:
    """The first linear layer of the model that a configuration describes: it alone has weights, drawn ones."""
    model = models.from_hf(checkpoints.outline(config, dtype=torch.float32), name=config.model_type)
    site = architectures.sites(model.hf)[0]
    site.mixer.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in site.mixer.parameters():
            weight.normal_(0, 0.02, generator=generator)
        for buffer in site.mixer.buffers():
            buffer.zero_()
    return site


def _timed(config: transformers.PreTrainedConfig, T: int, rounds: int) -> pd.DataFrame:
    site = layer(config)
    hidden, heads = config.get_text_config(decoder=True).hidden_size, site.recipe.heads(site.mixer)
    coming = torch.randn(1, T, hidden, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def read() -> None:
        site.mixer(hidden_states=coming)

    named = {"kind": config.model_type, "layer": type(site.mixer).__name__, "hidden": hidden}
    return timing.compared({_READ: read}, rounds=rounds, base=_READ, tokens=T, **named, H=heads.H, K=heads.K, V=heads.V)
