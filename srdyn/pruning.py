"""From scores of the heads to a model that holds fewer of them."""

import copy
import math
from pathlib import Path

import accelerate
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from srdyn import architectures, models
from srdyn.loading import checkpoints, folders, report, streaming

_Scores = Float[Tensor, "L H"]


def saturation_score(rank: _Scores, norm: _Scores, d: int, alpha: float = 0.5) -> _Scores:
    """How full a head's state is (Eq. 14): s = α·rank/d + (1 − α)·norm/max norm; the highest are pruned.

    `rank` and `norm` are means over a calibration set, `d` is the most that a rank can be. Heads that were pruned away
    are NaN. Raises ValueError when rank and norm differ in shape, unless 0 ≤ alpha ≤ 1, and for a rank above d.
    """
    if rank.shape != norm.shape:
        raise ValueError(f"rank and norm must be of the same heads, got {list(rank.shape)} and {list(norm.shape)}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha, the weight of the rank, must lie between 0 and 1, got {alpha}")
    if d < 1:
        raise ValueError(f"d, the most that a rank can be, must be 1 or more, got {d}")
    if (fullest := float(rank.nan_to_num().max())) > d:
        raise ValueError(f"a rank is at most d = min(K, V), got a rank of {fullest} with d = {d}")
    largest = norm.nan_to_num(nan=0.0).max()
    return alpha * rank / d + (1 - alpha) * norm / torch.where(largest > 0, largest, 1)


def select(
    score: _Scores,
    fraction: float,
    *,
    per_layer: bool = False,
    groups: int = 1,
    uniform: bool = False,
    whole: int = 1,
    tp: int = 1,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "L H"]:
    """Which heads to keep when the `fraction` of them with the highest scores goes, overall or of each layer.

    That is round(fraction·n) of the n heads that have a score, of each layer one at least unless the fraction is 0.
    NaN marks a head that was pruned away: it is not among the n, nor kept. Equal scores go at random with a generator,
    else the first layer and head first. To let the lowest go, give minus the score. With `groups` above 1, every one of
    the groups that a layer's heads lie in, as many in a row in each, loses this share: layers of state-space duals
    (Mamba-2) must keep equally many heads of each, and have as many as `Heads.key_heads` says.

    `whole` heads in a row, those that share a key say, stay or go together, by the mean of their scores. `uniform`
    keeps equally many in every layer, as a configuration with one count can say: as close to the share as a count comes
    that `tp` devices can divide among them, blocks that stay whole included. `export.choices` knows what a model needs.
    Raises ValueError unless 0 ≤ fraction ≤ 1, groups of whole blocks divide H, a block has a score for all of its heads
    or none, and a layer holds enough for such a count.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction, of the heads that go, must lie between 0 and 1, got {fraction}")
    if min(groups, whole, tp) < 1 or score.shape[1] % (groups * whole):
        blocks = f", each of blocks of {whole}" if whole > 1 else ""
        raise ValueError(f"{score.shape[1]} heads do not lie in {groups} groups of equal size{blocks}")
    score = _of_blocks(score, whole)
    keep, apart = ~score.isnan(), per_layer or uniform or groups > 1
    rows = len(score) * groups if apart else 1
    left = _left(keep, fraction, math.lcm(groups, tp)) // groups if uniform else None
    for scores, kept in zip(score.reshape(rows, -1), keep.view(rows, -1), strict=True):
        places = kept.nonzero()[:, 0]
        n = max(round(fraction * len(places)), int(apart and fraction > 0)) if left is None else len(places) - left
        if n < 0:
            raise ValueError(f"a group holds {len(places)} blocks of heads, fewer than the {left} that others keep")
        if generator is not None:
            places = places[torch.randperm(len(places), generator=generator)]
        order = scores[places].sort(descending=True, stable=True).indices
        kept[places[order[:n]]] = False
    return keep.repeat_interleave(whole, dim=1)


def _of_blocks(score: Float[Tensor, "L H"], whole: int) -> Float[Tensor, "L blocks"]:
    """The mean score of every `whole` heads in a row; NaN where they are gone, ValueError where only some are."""
    blocks = score.unflatten(1, (-1, whole))
    gone = blocks.isnan()
    if (gone.any(-1) != gone.all(-1)).any():
        raise ValueError(f"blocks of {whole} heads stay or go together: in one some have a score and others NaN")
    return blocks.mean(-1)


def _left(held: Bool[Tensor, "L blocks"], fraction: float, step: int) -> int:
    """How many of the blocks each layer keeps: a multiple of `step`, above 0, that every layer has."""
    wanted, most = (1 - fraction) * int(held.sum()) / len(held), int(held.sum(1).min()) // step * step
    if not most:
        raise ValueError(f"a layer holds fewer than {step}, the least that all layers can keep alike")
    return min(max(round(wanted / step) * step, step), most)


def prune_heads(model: models.Model, keep: Bool[Tensor, "L H"]) -> models.Model:
    """A new, smaller model with the heads that `keep` names and no trace of the others; the old one stays as it is.

    Weights, states and convolution caches of the others are gone, keys that nobody reads with as well. Its logits are
    those of the model with the others' outputs at zero. L, H and the heads' numbers remain; a layer without heads adds
    nothing. An open ablation is not taken over. Weights that come from elsewhere are cut on their way, layer by layer.
    Raises ValueError for a mask of another shape or type, and for one that keeps a head that was pruned away before.
    """
    models.checked_mask(model, keep, "keep")
    kept = {str(layer.index): row.nonzero()[:, 0].tolist() for layer, row in zip(model.layers, keep, strict=True)}
    copies = {}  # of what, else copied itself
    if streaming.is_attached(model.hf):
        cut = streaming.Changed(model.hf, lambda site: site.recipe.keep(site.mixer, kept[str(site.index)]))
        copies[id(streaming.weights(model.hf))] = cut
    hf = copy.deepcopy(model.hf, copies)
    for site in architectures.sites(hf):
        # On several GPUs the decoder's layer moves what its mixer reads; a hook of the mixer's own would hide the cut.
        accelerate.hooks.remove_hook_from_module(site.mixer)
    architectures.keep_heads(hf, kept)
    return models.from_hf(hf, model.tokenizer, name=model.name, seed=model.seed)


def save(model: models.Model, folder: str | Path) -> Path:
    """Write weights (safetensors), configuration and tokenizer, whole or not at all, for `models.load` to read back.

    `srdyn_kept` in config.json lists the heads that each linear layer kept; srdyn_files.json lists what was written.
    What else reads such a folder is stopped by its `model_type`, which says where to turn (transformers, asked for the
    class itself, only warns of that before it names sizes); `export.save` writes what others read. A folder that holds
    exactly what an earlier call wrote is replaced. Raises FileExistsError for one that holds anything else: files that
    were added or changed, a model from elsewhere; OSError for a disk that is too full.
    """
    target = Path(folder).expanduser()
    with folders.replacing(target, wanted=report.weight_bytes(model.hf)[0]) as new:
        streaming.save(model.hf, new, streaming.weights(model.hf), apart=streaming.is_attached(model.hf))
        checkpoints.mark(new)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)
    return target
