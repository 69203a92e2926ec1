"""From scores of the heads to a model that holds fewer of them."""

import copy
from pathlib import Path

import accelerate
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from srdyn import architectures, models
from srdyn.loading import folders, streaming


def saturation_score(
    rank: Float[Tensor, "L H"], norm: Float[Tensor, "L H"], d: int, alpha: float = 0.5
) -> Float[Tensor, "L H"]:
    """How full a head's state is (Eq. 14): s = α·rank/d + (1 − α)·norm/max norm; the highest are pruned.

    `rank` and `norm` are means over a calibration set of the effective rank and the nuclear norm, `d` is the most that
    a rank can be. The maximum is taken over the model. Heads that were pruned away are NaN, here and in the result.
    Raises ValueError when rank and norm differ in shape, unless 0 ≤ alpha ≤ 1, and for a rank above d.
    """
    if rank.shape != norm.shape:
        raise ValueError(f"rank and norm must be of the same heads, got {list(rank.shape)} and {list(norm.shape)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha, the weight of the rank, must lie between 0 and 1, got {alpha}")
    if (fullest := float(rank.nan_to_num().max())) > d:
        raise ValueError(f"a rank is at most d = min(K, V), got a rank of {fullest} with d = {d}")
    largest = norm.nan_to_num(nan=0.0).max()
    return alpha * rank / d + (1 - alpha) * norm / torch.where(largest > 0, largest, 1)


def select(
    score: Float[Tensor, "L H"],
    fraction: float,
    *,
    per_layer: bool = False,
    groups: int = 1,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "L H"]:
    """Which heads to keep when the `fraction` of them with the highest scores goes, overall or of each layer.

    That is round(fraction·n) of the n heads that have a score, of each layer one at least unless the fraction is 0.
    NaN marks a head that was pruned away: it is not among the n, nor kept. Equal scores go at random with a generator,
    else the first layer and head first. To let the lowest go, give minus the score. With `groups` above 1 each of the
    groups of a layer loses this share, as layers of state-space duals (Mamba-2) need it; `Heads.key_heads` says how
    many they have. Raises ValueError unless 0 ≤ fraction ≤ 1 and groups divide H.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction, of the heads that go, must lie between 0 and 1, got {fraction}")
    if groups < 1 or score.shape[1] % groups:
        raise ValueError(f"{score.shape[1]} heads do not lie in {groups} groups of equal size")
    keep = ~score.isnan()
    apart = per_layer or groups > 1
    rows = len(score) * groups if apart else 1
    for scores, kept in zip(score.reshape(rows, -1), keep.view(rows, -1), strict=True):
        places = kept.nonzero()[:, 0]
        n = max(round(fraction * len(places)), int(apart and fraction > 0))
        if generator is not None:
            places = places[torch.randperm(len(places), generator=generator)]
        order = scores[places].sort(descending=True, stable=True).indices
        kept[places[order[:n]]] = False
    return keep


def prune_heads(model: models.Model, keep: Bool[Tensor, "L H"]) -> models.Model:
    """A new, smaller model with the heads that `keep` names and no trace of the others; the old one stays as it is.

    Weights, states and convolution caches of the others are gone, keys that nobody reads with as well. Its logits are
    those of the model with the others' outputs at zero. L, H and the heads' numbers remain; a layer without heads adds
    nothing. An open ablation is not taken over. Raises ValueError for a mask of another shape or type, for one that
    keeps a head that was pruned away before, and for a model whose weights are on disk or on the CPU for a GPU.
    """
    if streaming.is_attached(model.hf):
        raise ValueError(f"{model.name} holds no weights to cut, they come from elsewhere: load it without offload")
    models.checked_mask(model, keep, "keep")
    kept = {str(layer.index): row.nonzero()[:, 0].tolist() for layer, row in zip(model.layers, keep, strict=True)}
    hf = copy.deepcopy(model.hf)
    for site in architectures.sites(hf):
        # On several GPUs the decoder's layer moves what its mixer reads; a hook of the mixer's own would hide the cut.
        accelerate.hooks.remove_hook_from_module(site.mixer)
    architectures.keep_heads(hf, kept)
    return models.from_hf(hf, model.tokenizer, name=model.name, seed=model.seed)


def save(model: models.Model, folder: str | Path) -> Path:
    """Write weights (safetensors), configuration and tokenizer, whole or not at all, for `models.load` to read back.

    `srdyn_kept` in config.json lists the heads that each linear layer kept. A folder that holds exactly what an earlier
    call wrote (srdyn_files.json) is replaced. Raises FileExistsError for one that holds anything else.
    """
    target = Path(folder).expanduser()
    with folders.replacing(target) as new:
        model.hf.save_pretrained(new)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)
    return target
