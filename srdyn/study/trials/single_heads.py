"""What each head alone is worth: the model's answers without it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from tqdm.auto import tqdm

from srdyn import ablation, models, scores
from srdyn.study.trials import battery


def damage(
    model: models.Model, sheet: dict[str, battery.Probe], held: Sequence[tuple[int, int]] | None = None
) -> pd.DataFrame:
    """Bits that every probe costs more when one head alone is removed: the oracle, a pass a head.

    `held` are places (along axis L, head), by default those of all heads.
    Columns: axis (the layer's place along axis L), layer (in the decoder), head, probe, damage (bits per byte of text,
    per answer of a task), intact.
    """
    intact = _bits(model, sheet)
    held = held or model.held.nonzero().tolist()
    rows = []
    for axis, head in tqdm(held, desc=f"{model.name}: single heads", leave=False):
        alone = torch.zeros_like(model.held)
        alone[axis, head] = True
        with ablation.ablate_heads(model, alone):
            more = _bits(model, sheet) - intact
        found = {"probe": intact.index, "damage": more.to_numpy(), "intact": intact.to_numpy()}
        rows.append(pd.DataFrame({"axis": axis, "layer": model.layers[axis].index, "head": head, **found}))
    return pd.concat(rows, ignore_index=True)


def oracle(damages: pd.DataFrame, model: models.Model) -> scores.Scores:
    """Minus the largest share of a probe's damage that a head bears, as scores: the least needed head first.

    Shares of all heads' damage (where positive) to the same probe, since the damage to a task that is solved exceeds
    that to text by orders; the largest, since a head on which one task hangs alone is needed.
    """
    harm = damages["damage"].clip(lower=0)
    total = harm.groupby(damages["probe"]).transform("sum")
    borne = damages.assign(score=-(harm / total.where(total > 0, 1.0)))
    score_of = torch.full((model.grid.L, model.grid.H), torch.nan, dtype=torch.float64)
    for (layer, head), score in borne.groupby(["axis", "head"])["score"].min().items():
        score_of[layer, head] = score
    return score_of


def _bits(model: models.Model, sheet: dict[str, battery.Probe]) -> pd.Series:
    """Bits per unit of weight for every probe."""
    found = battery.answers(model, sheet).groupby("probe")[["bits", "weight"]].sum()
    return found["bits"] / found["weight"]
