"""What each head scores under the rules that say which heads may go.

A score is one number per head from calibration text; heads with the highest scores are removed first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from srdyn import ablation, architectures, battery, contexts, models, pruning, resuming, spectra, states

Scores = Float[Tensor, "L H"]


class Profile(NamedTuple):
    """Means of every head over calibration sequences, NaN for a head that the model no longer holds.

    Effective rank and nuclear norm of the state, and their means over the captured positions (`rank_in_time`,
    `norm_in_time`); log-decay; norm of what the head adds to the layer's output; D.
    """

    rank: Scores
    norm: Scores
    rank_in_time: Scores
    norm_in_time: Scores
    decay: Scores
    output: Scores
    D: int


MEANS = Profile._fields[:-1]
"""The fields that hold a number per head."""
Rule = Callable[[Profile, torch.Generator], Scores]


def calibration(
    model: models.Model, *, domains: tuple[str, ...], n: int, length: int, seed: int = 0
) -> Int[Tensor, "B T"]:
    """`n` windows of `length` tokens from the calibration part of each of the domains."""
    draw = lambda name: contexts.domain(  # noqa: E731
        name,
        model.tokenizer,
        n=n,
        length=length,
        generator=torch.Generator().manual_seed(seed),
        part="calibration",
    )
    return torch.cat([draw(name) for name in domains])


def profile(
    model: models.Model, tokens: Int[Tensor, "B T"], *, eps: float = spectra.EPS, batch: int | None = None
) -> Profile:
    """The heads' means over the sequences: spectra at the end, and at a quarter, half and three quarters of it.

    `batch` sequences are read together, by default `models.batch_size`.
    """
    T = tokens.shape[1]
    batch = models.batch_size(model, T) if batch is None else batch
    positions = sorted({max(1, T * quarter // 4) for quarter in (1, 2, 3, 4)})
    sums, rows = None, 0
    for part in tokens.split(batch):
        with states.gates_of(model, *part.shape) as (g, _), _outputs(model) as output:
            sigma = states.trace(model, part, positions)
        rank, norm = spectra.effective_rank(sigma, eps).sum(1), spectra.nuclear_norm(sigma).sum(1)
        last, means = (rank[:, -1], norm[:, -1]), (rank.mean(1), norm.mean(1))
        found = torch.stack([*last, *means, g.double().mean(2).sum(1), output])
        sums, rows = found if sums is None else sums + found, rows + len(part)
    return Profile(*(sums / rows), D=min(model.grid.K, model.grid.V))


def joint(alpha: float) -> Rule:
    """The saturation score of Eq. 14 with this α: the rule of joint rank-norm pruning."""
    return lambda profile, generator: pruning.saturation_score(profile.rank, profile.norm, profile.D, alpha)


def joint_rule(alpha: float) -> str:
    """The name in `RULES` of the joint score with this α. Raises ValueError for an α that has none."""
    name = {0.0: "norm", 1.0: "rank"}.get(float(alpha), f"joint, α = {alpha:g}")
    if name not in RULES:
        raise ValueError(f"no rule has α = {alpha:g}; there are {', '.join(RULES)}")
    return name


def _random(profile: Profile, generator: torch.Generator) -> Scores:
    return torch.rand(profile.rank.shape, generator=generator).double().masked_fill(profile.rank.isnan(), torch.nan)


RULES: dict[str, Rule] = {
    **{f"joint, α = {alpha:g}": joint(alpha) for alpha in (0.25, 0.5, 0.75)},
    "rank": joint(1.0),
    "norm": joint(0.0),
    "rank and norm over time": lambda profile, generator: pruning.saturation_score(
        profile.rank_in_time, profile.norm_in_time, profile.D, 0.5
    ),
    "fast decay": lambda profile, generator: -profile.decay,
    "slow decay": lambda profile, generator: profile.decay,
    "small output": lambda profile, generator: -profile.output,
    "random": _random,
}
"""Which heads go first, by name. α = 1 is rank alone, α = 0 norm alone."""


def damage(model: models.Model, sheet: dict[str, battery.Probe]) -> pd.DataFrame:
    """Bits that every probe costs more when one head alone is removed: the oracle, a pass from its layer on per head.

    Columns: axis (the layer's place along axis L), layer (in the decoder), head, probe, damage (bits per byte of text,
    per answer of a task), intact.
    """
    asked = resuming.Resumable(model, lambda: _bits(model, sheet))
    intact = asked.first
    held = [(axis, layer.index, head) for axis, layer in enumerate(model.layers) for head in layer.heads]
    rows = []
    for axis, layer, head in tqdm(held, desc=f"{model.name}: single heads", leave=False):
        with ablation.ablate_heads(model, _only(model, axis, head)):
            more = asked.from_layer(layer) - intact
        found = {"probe": intact.index, "damage": more.to_numpy(), "intact": intact.to_numpy()}
        rows.append(pd.DataFrame({"axis": axis, "layer": layer, "head": head, **found}))
    return pd.concat(rows, ignore_index=True)


def oracle(damages: pd.DataFrame, model: models.Model) -> Scores:
    """Minus the mean over probes of the head's place by damage, as scores: the least needed head first.

    Places, since the damage to a task that is solved exceeds that to text by orders, in whatever unit.
    """
    relative = damages.assign(score=-damages.groupby("probe")["damage"].rank())
    scores = torch.full((model.grid.L, model.grid.H), torch.nan, dtype=torch.float64)
    for (layer, head), score in relative.groupby(["axis", "head"])["score"].mean().items():
        scores[layer, head] = score
    return scores


def _bits(model: models.Model, sheet: dict[str, battery.Probe]) -> pd.Series:
    """Bits per unit of weight for every probe."""
    found = battery.answers(model, sheet).groupby("probe")[["bits", "weight"]].sum()
    return found["bits"] / found["weight"]


def _only(model: models.Model, axis: int, head: int) -> Bool[Tensor, "L H"]:
    heads = torch.zeros(model.grid.L, model.grid.H, dtype=torch.bool)
    heads[axis, head] = True
    return heads


@contextlib.contextmanager
def _outputs(model: models.Model) -> Iterator[Scores]:
    """While this is open, a pass adds to each head, summed over sequences, the mean norm of what it writes."""
    sums = torch.full((model.grid.L, model.grid.H), torch.nan, dtype=torch.float64)

    def keep(layer: int, readout: nn.Linear, arguments: tuple) -> None:
        heads = list(model.layers[layer].heads)
        read = arguments[0].unflatten(-1, (len(heads), -1)).double()
        weight = readout.weight.double().unflatten(1, (len(heads), -1))
        gram = torch.einsum("mhv,mhw->hvw", weight, weight)
        squares = torch.einsum("bthv,hvw,bthw->bth", read, gram, read)
        sums[layer, heads] = squares.clamp(min=0).sqrt().mean(1).sum(0).cpu()

    with contextlib.ExitStack() as hooks:
        for layer, site in enumerate(architectures.sites(model.hf)):
            if model.layers[layer].heads:
                readout = site.recipe.readout(site.mixer)
                hook = readout.register_forward_pre_hook(lambda module, given, at=layer: keep(at, module, given))
                hooks.enter_context(hook)
        yield sums
