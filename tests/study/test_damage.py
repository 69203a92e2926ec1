"""Who foretells damage that was planted."""

import numpy as np
import pandas as pd
import pytest

from srdyn.study.analysis import damage

DISTANCES = (32, 512)


def planted(model, rng, heads=40):
    """Damage grows with what decay leaves of a write at the distance; rank is drawn apart."""
    half_life, rank, write = np.exp(rng.uniform(0, 8, heads)), rng.uniform(1, 64, heads), rng.uniform(size=heads)
    rows = []
    for distance in DISTANCES:
        harm = 2.0 ** (-distance / half_life) + 1e-3 * rng.normal(size=heads)
        columns = {"half_life": half_life, "rank": rank, "write": write, "damage": harm, "distance": distance}
        columns |= {"D": 64, "norm": rng.uniform(size=heads)}
        rows.append(pd.DataFrame(columns | {"layer": np.arange(heads) // 8, "head": np.arange(heads) % 8}))
    return pd.concat(rows).assign(model=model, kind=model, seed=0, changed="removed")


def test_the_planted_cause_is_found_in_a_model_left_out():
    rng = np.random.default_rng(0)
    found = damage.predicted(pd.concat([planted(f"m{i}", rng) for i in range(3)], ignore_index=True))
    rho = found[found["quantity"] == damage.RHO].groupby("predictor")["estimate"].min()
    assert rho[damage.LEFT] > 0.8
    assert rho["all of them"] > 0.8
    assert found.query("predictor == 'effective rank' and quantity == @damage.RHO")["estimate"].abs().max() < 0.5
    assert (found["low"] <= found["high"]).all()
    assert (found["n"] == 40).all()


def test_what_is_caught_is_the_damage_in_the_tenth_foretold_worst():
    harm = np.array([[5.0, 1, 1, 1, 1, 1, 0, 0, -3, 0]])
    assert damage.caught(np.arange(10.0, 0, -1)[None], harm) == pytest.approx([0.5])
    assert damage.caught(np.arange(10.0)[None], harm) == pytest.approx([0])
    assert damage.caught(np.zeros((1, 10)), harm) == pytest.approx([0.1])
