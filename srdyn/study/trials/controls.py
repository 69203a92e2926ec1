"""Other heads beside those of an arm: as many of every layer, with decays like theirs.

Austin, Balance diagnostics for comparing the distribution of baseline covariates between treatment groups in
propensity-score matched samples, Stat. Med. 28, 2009 (the standardised difference).
"""

import torch
from jaxtyping import Bool, Float, Int64
from scipy import optimize
from torch import Tensor


def decay_matched(
    heads: Bool[Tensor, "L H"], decay: Float[Tensor, "L H"], *, generator: torch.Generator
) -> Bool[Tensor, "L H"]:
    """As many heads of every layer as `heads` has: others at the least sum of |Δdecay|, ties at random.

    In a layer with too few others the unpartnered ones of `heads` stay. Raises ValueError where one has no decay (NaN).
    """
    if decay[heads].isnan().any():
        raise ValueError("every head that is to be matched needs a decay, got NaN: was it pruned away?")
    matched = torch.zeros_like(heads)
    for layer, row in enumerate(decay):
        chosen = _shuffled(heads[layer], generator)
        others = _shuffled(~heads[layer] & ~row.isnan(), generator)
        distance = (row[chosen, None] - row[others]).abs()
        partnered, partners = optimize.linear_sum_assignment(distance.numpy())
        chosen[partnered] = others[partners]
        matched[layer, chosen] = True
    return matched


def balance(heads: Bool[Tensor, "L H"], others: Bool[Tensor, "L H"], decay: Float[Tensor, "L H"]) -> float:
    """Difference of mean decay between `heads` and `others` over their pooled standard deviation (Austin 2009).

    NaN where all decays are equal. Raises ValueError for a set of fewer than two heads.
    """
    if (fewest := min(int(heads.sum()), int(others.sum()))) < 2:
        raise ValueError(f"a spread needs at least two heads in either set, got {fewest}")
    a, b = decay[heads].double(), decay[others].double()
    return float((a.mean() - b.mean()) / ((a.var() + b.var()) / 2).sqrt())


def _shuffled(among: Bool[Tensor, " heads"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """The places that are True, in random order."""
    places = among.nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)]
