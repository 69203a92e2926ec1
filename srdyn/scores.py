"""What each head scores under the rules that say which heads may go.

A score is one number per head from calibration text; heads with the highest scores are removed first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from srdyn import architectures, contexts, models, pruning, spectra, states

Scores = Float[Tensor, "L H"]


class Profile(NamedTuple):
    """Means over calibration sequences, NaN for a head that the model no longer holds.

    `rank` and nuclear `norm` are of the state at the end, `rank_in_time` and `norm_in_time` means over the positions;
    `decay` is the log-decay, 0 at most; `output` the norm of what a head puts out; `D` the most that a rank can be.
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
    model: models.Model, *, domains: Sequence[str] | None = None, n: int, length: int, seed: int = 0
) -> Int[Tensor, "B T"]:
    """`n` windows of `length` tokens from the calibration part of each of the domains, by default all that are held."""
    names = contexts.domains() if domains is None else domains
    return contexts.of_each(names, model.tokenizer, n=n, length=length, part="calibration", seed=seed)


def profile(model: models.Model, tokens: Int[Tensor, "B T"], *, eps: float = spectra.EPS) -> Profile:
    """The heads' means over the sequences: spectra at the end, and at a quarter, half and three quarters of it.

    Raises ValueError where a head that the model holds has no finite mean: NaN would count it as pruned away.
    """
    T = tokens.shape[1]
    positions = sorted({max(1, T * quarter // 4) for quarter in (1, 2, 3, 4)})
    sums, rows = None, 0
    for part in tokens.split(models.batch_size(model, T)):
        with states.gates_of(model, *part.shape) as (g, _), _outputs(model) as output:
            sigma = states.trace(model, part, positions)
        rank, norm = spectra.effective_rank(sigma, eps).sum(1), spectra.nuclear_norm(sigma).sum(1)
        found = {"rank": rank[:, -1], "norm": norm[:, -1], "rank_in_time": rank.mean(1), "norm_in_time": norm.mean(1)}
        found |= {"decay": g.double().mean(2).sum(1), "output": output}
        added = torch.stack([found[name] for name in MEANS])
        sums, rows = added if sums is None else sums + added, rows + len(part)
    for layer, broken in zip(model.layers, ~sums.isfinite().all(0), strict=True):
        if heads := [head for head in layer.heads if broken[head]]:
            raise ValueError(f"{model.name}: layer {layer.index} has no finite scores for the heads {heads}")
    return Profile(*(sums / rows), D=model.grid.D)


def _joint(alpha: float, rank: str = "rank", norm: str = "norm") -> Rule:
    """The saturation score of Eq. 14 with this α, of these means: the rule of joint rank-norm pruning."""
    return lambda x, generator: pruning.saturation_score(getattr(x, rank), getattr(x, norm), x.D, alpha)


def joint_rule(alpha: float) -> str:
    """The name in `RULES` of the joint score with this α. Raises ValueError for an α that has none."""
    name = {0.0: "norm", 1.0: "rank"}.get(float(alpha), f"joint, α = {alpha:g}")
    if name not in RULES:
        raise ValueError(f"no rule has α = {alpha:g}; there are {', '.join(RULES)}")
    return name


def _random(profile: Profile, generator: torch.Generator) -> Scores:
    return torch.rand(profile.rank.shape, generator=generator).double().masked_fill(profile.rank.isnan(), torch.nan)


RULES: dict[str, Rule] = {
    **{f"joint, α = {alpha:g}": _joint(alpha) for alpha in (0.25, 0.5, 0.75)},
    "rank": _joint(1.0),
    "norm": _joint(0.0),
    "rank and norm over time": _joint(0.5, "rank_in_time", "norm_in_time"),
    "fast decay": lambda profile, generator: -profile.decay,
    "slow decay": lambda profile, generator: profile.decay,
    "small output": lambda profile, generator: -profile.output,
    "random": _random,
}
"""Which heads go first, by name. α = 1 is rank alone, α = 0 norm alone.

A rule of your own, put in here, is a name that an arm can have: 03 and 04 then work in this process alone. What was
answered under a name is kept, so that an edited rule needs another one. Where a head never forgets, decay is 0.
"""
_SHIPPED = dict(RULES)


def under(rule: str, profile: Profile, generator: torch.Generator) -> Scores:
    """The heads' scores under one of `RULES`, NaN for those that the model no longer holds.

    Raises ValueError where the rule gives a head that the model holds NaN, which would count it as pruned away.
    """
    score = RULES[rule](profile, generator)
    if broken := (score.isnan() & ~profile.rank.isnan()).nonzero().tolist():
        raise ValueError(f"the rule {rule!r} gives no number for the heads (place along L, head) {broken}")
    return score


def own_rules() -> list[str]:
    """The names in `RULES` that this process alone knows, or means something else by."""
    return [name for name, rule in RULES.items() if _SHIPPED.get(name) is not rule]


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
                hooks.enter_context(readout.register_forward_pre_hook(functools.partial(keep, layer)))
        yield sums
