"""Models of other update rules, as small as the reference models and by their own classes, before training.

Eight layers with eight heads of 64 × 64, but RWKV-7, whose heads share out the hidden width: four of them on 256.
"""

import importlib

import transformers
from transformers import PreTrainedModel

from srdyn.loading import reference

_LAYERS = {"hidden_size": 128, "num_hidden_layers": 8, "tie_word_embeddings": True}
_LAYERS |= {"bos_token_id": 0, "eos_token_id": 0}
_DENSE = _LAYERS | {"intermediate_size": 384, "num_heads": 8}
_WIDE = {"expand_k": 4.0, "expand_v": 4.0}
_DUAL = {"num_heads": 8, "head_dim": 64, "state_size": 64, "n_groups": 4, "expand": 4, "chunk_size": 64}
_RANKS = dict.fromkeys(("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"), 32)
_FOUR = _LAYERS | _RANKS | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
CLASSES = {
    "mamba2": ("transformers", "Mamba2", _LAYERS | _DUAL | {"initializer_range": 0.02, "pad_token_id": 0}),
    "deltanet": ("fla.models.delta_net", "DeltaNet", _DENSE | _WIDE),
    "gla": ("fla.models.gla", "GLA", _DENSE | _WIDE | {"use_short_conv": True}),
    "kda": ("fla.models.kda", "KDA", _DENSE | {"head_dim": 64}),
    "rwkv7": ("fla.models.rwkv7", "RWKV7", _FOUR),
}
"""By kind: the module and the stem of its classes, and their sizes. The last four need flash-linear-attention."""


def initialise(kind: str, *, seed: int, **options) -> PreTrainedModel:
    """A model of this kind from a seed, as its class starts it; the last four need flash-linear-attention."""
    module, stem, sizes = CLASSES[kind]
    found = transformers if module == "transformers" else importlib.import_module(module)
    config = getattr(found, f"{stem}Config")(**{"vocab_size": 1024} | sizes | options)
    return reference.drawn(getattr(found, f"{stem}ForCausalLM"), config, seed=seed)
