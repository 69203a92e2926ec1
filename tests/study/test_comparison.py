"""The tolerances of a rerun let through what machines differ in, and nothing more."""

import numpy as np
import pandas as pd
import pytest

from srdyn.study.run import comparison

ROWS = 400


@pytest.fixture
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "model": ["hybrid", "pure"] * (ROWS // 2),
            "head": np.arange(ROWS),
            "rank": rng.integers(1, 60, ROWS),
            "uncertain": np.arange(ROWS) % 4 == 0,
            "norm": rng.uniform(0.5, 2.0, ROWS),
        }
    )


def changed(table: pd.DataFrame, column: str, rows: list[int], by: object) -> pd.DataFrame:
    copy = table.copy()
    copy[column] = copy[column].astype(object)
    for row in rows:
        copy.loc[row, column] = copy.loc[row, column] + by if column != "model" else by
    return copy.astype({column: table[column].dtype})


def faults(fresh, standing):
    return comparison.compared(fresh, standing)[1]


@pytest.mark.parametrize(("factor", "within"), [(1 + 0.5e-4, True), (1 - 0.5e-4, True), (1 + 2e-4, False)])
def test_reals_agree_to_1e_4(table, factor, within):
    fresh = table.assign(norm=table["norm"] * factor)
    said = faults(fresh, table)
    assert said == ([] if within else [f"norm: {ROWS} of {ROWS} reals differ, by 0.0002 relative at most"])


@pytest.mark.parametrize(
    ("rows", "by", "within"),
    [
        ([0], 1, True),
        ([0, 4, 8, 12], -1, True),  # 1 % of 400
        ([0, 4, 8, 12, 16], 1, False),  # more than 1 %
        ([0], 2, False),  # two off
        ([1], 1, False),  # outside the band
    ],
)
def test_ranks_differ_by_one_in_few_entries_of_their_band(table, rows, by, within):
    said = faults(changed(table, "rank", rows, by), table)
    assert (said == []) is within
    assert within or said[0].startswith(f"rank: {len(rows)} of {ROWS} ranks differ")


def test_without_a_band_ranks_are_exact(table):
    bare = table.drop(columns="uncertain")
    assert faults(changed(bare, "rank", [0], 1), bare) != []


@pytest.mark.parametrize(("column", "by"), [("head", 1), ("model", "uniform")])
def test_counts_and_names_are_exact(table, column, by):
    assert faults(changed(table, column, [7], by), table) == [f"{column}: 1 of {ROWS} entries differ"]


@pytest.mark.parametrize(("rows", "within"), [(4, True), (5, False)])
def test_the_band_itself_may_move_a_little(table, rows, within):
    flags = table["uncertain"].to_numpy(copy=True)
    flags[:rows] = ~flags[:rows]
    assert (faults(table.assign(uncertain=flags), table) == []) is within


@pytest.mark.parametrize("column", ["norm", "rank"])
def test_a_missing_value_equals_only_a_missing_value(table, column):
    holed = table.assign(**{column: table[column].where(table["head"] != 3)})
    assert faults(holed, holed.copy()) == []
    assert faults(holed, table) != []


def test_shape_and_columns_must_agree(table):
    assert faults(table.iloc[:-1], table) == ["399 rows for 400"]
    assert faults(table.rename(columns={"norm": "nuclear"}), table)[0].startswith("columns")


def test_units_say_how_far_off_each_cell_is(table):
    same = comparison.units(table, table)
    assert same.shape == table.shape
    assert not same.to_numpy().any()
    assert faults(table, table.copy()) == []
    off = table.assign(norm=table["norm"] * (1 + 3e-5), rank=table["rank"] + 1, model="pure")
    found = comparison.units(off, table)
    np.testing.assert_allclose(found["norm"], 0.3, rtol=1e-2)
    assert found["rank"].tolist() == [1.0 if doubtful else np.inf for doubtful in table["uncertain"]]
    assert found["model"].tolist() == [np.inf, 0.0] * (ROWS // 2)
    holed = table.assign(norm=np.nan)
    assert np.isinf(comparison.units(holed, table)["norm"]).all()
    assert not comparison.units(holed, holed)["norm"].any()


def test_a_mean_of_ranks_may_be_as_far_off_as_its_row_says():
    table = pd.DataFrame({"rank": [3.5, 40.25, 64.0], "low": [3.0, 40.0, 64.0], "uncertain": [0.0, 0.25, 0.5]})
    assert faults(table.assign(rank=[3.5, 40.5, 63.75], low=[3.0, 39.75, 64.0]), table) == []
    assert faults(table.assign(rank=[3.5, 40.75, 64.0]), table)[0].startswith("rank: 1 of 3 reals differ")
    assert faults(table.assign(rank=[3.75, 40.25, 64.0]), table) != []
    assert faults(table.assign(uncertain=[0.25, 0.25, 0.5]), table) == []
    assert faults(table.assign(uncertain=[0.25, 0.5, 0.5]), table) == []  # 1.25 for 0.75
    assert faults(table.assign(uncertain=[0.5, 0.75, 0.5]), table) == ["uncertain: 2 of 3 entries differ"]
    assert faults(table.assign(uncertain=[np.nan, np.nan, 0.5]), table) == ["uncertain: 2 of 3 entries differ"]


@pytest.mark.parametrize("name", ["estimate", "low_lo", "kappa_hi", "spearman", "p"])
def test_a_statistic_of_ranks_may_be_as_far_off_as_its_row_says(name):
    table = pd.DataFrame({name: [0.5, 0.25], "norm": [1.0, 2.0], "uncertain": [0.0, 0.01]})
    assert faults(table.assign(**{name: [0.5, 0.259]}), table) == []
    assert faults(table.assign(**{name: [0.5, 0.261]}), table) != []
    assert faults(table.assign(**{name: [0.509, 0.25]}), table) != []
    assert faults(table.assign(norm=[1.0, 2.009]), table) != []
    flagged = table.assign(uncertain=[False, True])
    assert faults(flagged.assign(**{name: [0.5, 0.259]}), flagged) != []


@pytest.mark.parametrize(("rank", "within"), [(15.95, True), (15.5, False), (57.65, True), (57.0, False)])
def test_a_head_at_a_limit_may_be_in_the_next_stratum(rank, within):
    """The limits lie at a quarter and 0.9 of 64; at another position, and in another precision, too."""
    table = pd.DataFrame({"model": "pure", "layer": 0, "head": [0, 0, 1], "D": 64, "rank": [rank, 30.0, 40.0]})
    table = table.assign(uncertain=[0.1, 0.0, 0.1], stratum=["low", "low", "middle"], moved=[False, False, False])
    fresh = table.assign(stratum=["middle", "middle", "middle"], moved=[False, True, False])
    assert (faults(fresh, table) == []) is within
    assert faults(table.assign(stratum=["low", "low", "low"]), table) == ["stratum: 1 of 3 entries differ"]
    assert faults(fresh.drop(columns="uncertain"), table.drop(columns="uncertain")) != []


def test_cosines_agree_to_what_float32_leaves_and_a_missing_band_is_none():
    table = pd.DataFrame({"bound": [-2e-5, 0.5], "norm": [1e-5, 1.0], "uncertain": [np.nan, np.nan]})
    assert faults(table.assign(bound=[-2.09e-5, 0.5]), table) == []
    assert faults(table.assign(bound=[-2.2e-5, 0.5]), table) != []
    assert faults(table.assign(norm=[1.09e-5, 1.0]), table) != []


def test_bits_that_cancel_are_as_far_off_as_their_logits():
    table = pd.DataFrame({"probe": ["needle", "bits code"], "estimate": [0.75, 1e-5], "norm": [1.0, 1e-5]})
    assert faults(table.assign(estimate=[0.75, 5e-5]), table) == []
    assert faults(table.assign(estimate=[0.75, 1e-3]), table) != []
    assert faults(table.assign(estimate=[0.7505, 1e-5]), table) != []
    assert faults(table.assign(norm=[1.0, 5e-5]), table) != []
    bare = table.drop(columns="probe")
    assert faults(bare.assign(estimate=[0.75, 5e-5]), bare) != []
