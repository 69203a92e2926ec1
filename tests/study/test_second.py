"""Measures of the second registration on arrays made by hand."""

import functools

import numpy as np
import pandas as pd
import pytest

from srdyn.study.analysis import observations, second
from srdyn.study.claims import registration

D, POSITIONS = 64, (4, 8, 64, 128, 256)


def heads(ranks, **names):
    """A head table of ranks [samples, contexts, L, H, C]."""
    axes = np.indices(ranks.shape)
    columns = ("sample", "context", "layer", "head", "position")
    table = pd.DataFrame(
        {name: axis.ravel() for name, axis in zip(columns, axes, strict=True)} | {"rank": ranks.ravel()}
    )
    table["context"], table["position"] = "c" + table["context"].astype(str), np.array(POSITIONS)[table["position"]]
    return table.assign(**{"model": "m", "kind": "k", "seed": 0, "source": "model", "D": D} | names)


def ranks(*rows, layers=1):
    """Two samples of two contexts, all alike; a row is one head over the positions."""
    return np.broadcast_to(np.array(rows, dtype=float), (2, 2, layers, len(rows), len(POSITIONS))).copy()


def value(statistic, table, **options):
    cube = observations.cube(table)
    return statistic(cube.values.mean(0), cube, **options).value


def test_strata_are_shares_of_all_heads():
    low, middle, high = ([4, *[x] * 4] for x in (16, 32, 60))
    table = heads(ranks(low, low, low, high))
    table = pd.concat([table, heads(ranks(middle, high, high, high)).assign(layer=1)])
    shares = [value(second.share_of_all, table, at=256, stratum=name) for name in ("low", "middle", "high")]
    assert shares == [3 / 8, 1 / 8, 4 / 8]
    found = observations.measure(table, "low", second.share_of_all, at=256, stratum="low")
    assert found[["low", "high"]].to_numpy().tolist() == [[3 / 8, 3 / 8]]


def test_the_dip_is_of_all_heads_and_its_own_interval():
    rng = np.random.default_rng(0)
    fork = [[4.0, *[x] * 4] for x in [*rng.normal(8, 2, 24), *rng.normal(58, 2, 24)]]
    line = [[4.0, *[x] * 4] for x in np.linspace(2, 62, 48)]
    found = pd.concat([second.dip(heads(ranks(*rows)), "dip test", at=256) for rows in (fork, line, [[1] * 5] * 4)])
    assert (found["estimate"] < 0.01).tolist() == [True, False, False]
    assert found["estimate"].isna().tolist() == [False, False, True]
    assert found["estimate"].iloc[:2].equals(found["low"].iloc[:2])
    assert found["high"].iloc[0] == found["low"].iloc[0]


def test_high_heads_hold_from_an_eighth_of_d_on():
    # Of positions 8 … 256 the first head holds 4 of 4 though it lags at 4; the second 3, at 64 it has 50 < 57.6.
    rows = [0, 7.2, 57.6, 58, 64], [4, 8, 50, 60, 60], [4, 8, 8, 8, 8]
    table = heads(ranks(*rows))
    assert value(second.hold, table) == pytest.approx(7 / 8)
    assert np.isnan(value(second.hold, heads(ranks(rows[2]))))


def test_high_heads_settle_from_twice_d_on():
    # One doubling from 128 to 256, by 0, 2 and (not high) 20 ranks.
    rows = [4, 8, 10, 60, 60], [4, 8, 10, 62, 60], [4, 8, 10, 10, 30]
    assert value(second.settle, heads(ranks(*rows))) == pytest.approx(1 / 64)
    early = heads(ranks(*rows)).query("position < 200")
    assert np.isnan(value(second.settle, early))


def test_cosines_in_time_are_by_layer():
    table = pd.concat([heads(ranks([4, 8, 1, 0, 3], [4, 8, 0, 0, 4])), heads(ranks([1] * 5, [1] * 5)).assign(layer=1)])
    assert value(second.cosine_in_time, table, first=64, second=256) == pytest.approx((0.6 + 1) / 2)
    assert np.isnan(value(second.cosine_in_time, table, first=64, second=2048))


def history(start, end, noise=0.0):
    """Ranks of heads before the first and after the last step, in 8 windows of 2 contexts."""
    rng, tables = np.random.default_rng(0), []
    for step, values in ((0, start), (100, end)):
        grid = np.broadcast_to(np.asarray(values, dtype=float)[:, None], (8, 2, 1, len(values), 1))
        table = heads((grid + noise * rng.normal(size=grid.shape)).round(3)).assign(position=512, step=step)
        tables.append(table)
    return pd.concat(tables).drop(columns="source")


def test_what_is_kept_of_the_start_is_over_what_halves_share():
    order = np.arange(16) * 4.0
    same = second.identity(history(order, order), at=512).set_index("measure")["estimate"]
    assert same.to_dict() == {second.RHO: 1.0, second.KAPPA: 1.0}
    other = second.identity(history(order[::-1], order, noise=8.0), at=512).set_index("measure")
    assert other.loc[second.RHO, "estimate"] < -0.9
    assert (other["low"] <= other["estimate"]).all()
    assert (other["over"] == "pairs of windows").all()
    shuffled = np.random.default_rng(1).permutation(order)
    noisy = second.identity(history(shuffled, order, noise=30.0), at=512).set_index("measure")["estimate"]
    plain = second.identity(history(shuffled, order), at=512).set_index("measure")["estimate"]
    assert abs(noisy[second.RHO] - plain[second.RHO]) < 0.5


def test_heads_that_moved_are_named():
    found = second.moved(history([2, 30, 60, 60], [2, 60, 60, 3]), at=512)
    assert found["head"].tolist() == [1, 3]
    assert found[["before", "after"]].to_numpy().tolist() == [["middle", "high"], ["high", "low"]]
    assert found[["rank_before", "rank_after"]].to_numpy().tolist() == [[30, 60], [60, 3]]


def test_kappa_is_split_into_order_and_shares():
    kept = lambda *ends: second.kept(history(*ends), at=512).loc[0, ["kappa", "only_shares", "same_shares"]]  # noqa: E731
    assert kept([2, 3, 60, 61], [2, 3, 60, 61]).tolist() == [1, 1, 1]
    shares = kept([60, 61, 62, 63], [2, 3, 60, 61])  # all high before: the order is kept, and κ cannot say so
    assert shares.tolist() == [0, 0, 1]
    assert kept([2, 3, 60, 61], [60, 61, 2, 3]).tolist() == [-1, 1, -1]


def test_names_are_those_of_the_claims():
    named = [measure.name for measure in registration.load().claim("C10").second.measures]
    assert {second.RHO, second.KAPPA} <= set(named)


def test_intervals_are_over_documents():
    rng = np.random.default_rng(0)
    table = heads(rng.integers(0, D + 1, (6, 2, 2, 8, 5)).astype(float)).assign(document=lambda t: t["sample"] // 2)
    for statistic in (functools.partial(second.share_of_all, at=256, stratum="middle"),
                      functools.partial(second.cosine_in_time, first=64, second=256)):  # fmt: skip
        found = observations.measure(table, "x", statistic)
        assert found["over"].tolist() == ["3 documents of each context"]
        assert (found["low"] <= found["high"]).all()
