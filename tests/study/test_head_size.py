"""Shares of heads of other sizes: measured, from decays, and as written down before."""

import math

import numpy as np
import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study.analysis import head_size

RANKS = {32: [1, 2, 16, 32], 64: [1, 2, 30, 64]}


@pytest.fixture(scope="module")
def heads():
    sizes = [
        pd.DataFrame({"model": f"hybrid-d{d}", "rank": ranks, "predicted": float(d), "D": d, "half_life": 4.8 * d})
        for d, ranks in RANKS.items()
    ]
    return pd.concat(sizes, ignore_index=True).assign(kind="hybrid", seed=0)


def told(*rows):
    return pd.DataFrame(rows, columns=["kind", "seed", "D", "low", "middle", "high"])


def test_shares_are_counted_from_ranks_and_from_decays(heads):
    table = head_size.shares(heads, told()).set_index(["D", "quantity"])
    for d in RANKS:
        assert table.loc[(d, "measured"), ["low", "middle", "high"]].tolist() == [0.5, 0.25, 0.25]
        assert table.loc[(d, "own decays"), ["low", "middle", "high"]].tolist() == [0, 0, 1]
    assert (table["n"] == 4).all()
    assert "registered" not in table.index.get_level_values("quantity")


@pytest.mark.parametrize(
    ("shares", "within"), [((0.5, 0.25, 0.25), True), ((0.0, 0.75, 0.25), True), ((0, 0, 1), False)]
)
def test_what_was_written_down_is_held_to_the_interval_over_heads(heads, shares, within):
    table = head_size.shares(heads, told(("hybrid", 0, 32, *shares), ("pure", 0, 64, *shares))).set_index("D")
    assert table.loc[32, "within"].tolist() == [within] * 3
    assert table.loc[64, "within"].isna().all()
    registered = table[table["quantity"] == "registered"]
    assert registered[["low", "middle", "high"]].to_numpy().tolist() == [list(shares)]


def test_half_lives_are_compared_with_the_first_size(heads):
    table = head_size.decays(heads).set_index("D")
    assert table["half_life"].tolist() == [4.8 * 32, 4.8 * 64]
    assert table.loc[32, "distance"] == 1
    assert table["slow"].tolist() == [1, 1]
    assert math.isnan(table.loc[64, "p"])


def test_what_is_registered_follows_from_the_decays_of_that_day():
    """By the closed form, written out, for the models of heads of 64 whose decays were known."""
    committed = pd.read_csv(files.data_dir() / "paper" / "head_size_decays.csv")
    for row in head_size.registered().itertuples():
        own = committed[committed["model"] == row.model]
        share = np.minimum(1, math.log(1e4) / -own["log_decay"] / row.D)
        assert len(own) == row.heads
        assert [row.low, row.high] == pytest.approx([(share <= 0.25).mean(), (share >= 0.9).mean()], abs=5e-5)
