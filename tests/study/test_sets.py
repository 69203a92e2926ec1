"""Sets of heads placed among random ones: who is called better or worse, and how often wrongly."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from small import seeded

from srdyn.study.trials import battery, sets, testable, trials

L, H = 6, 8
SETS, ROWS = 200, 8
HELD = torch.ones(L, H, dtype=torch.bool)


def quarter(layers=L, heads=H, n=2):
    chosen = torch.zeros(layers, heads, dtype=torch.bool)
    chosen[:, :n] = True
    return chosen


def accuracy(masks, damage, items):
    """Share of items that survive: each bears as much damage as its threshold."""
    hurt = (masks.double() * damage).flatten(1).sum(1).numpy()
    return (hurt[:, None] < items).mean(1)


def test_random_sets_are_as_large_and_fall_on_every_head_alike():
    held = HELD.clone()
    held[2, 5:] = False
    masks = sets.drawn(quarter(), held, n=4000, generator=seeded())
    assert (masks.sum(2) == 2).all()
    assert not masks[:, ~held].any()
    share = masks.double().mean(0)
    torch.testing.assert_close(share[:2], torch.full((2, H), 0.25, dtype=torch.float64), rtol=0, atol=0.03)
    overall = sets.drawn(quarter(), held, n=500, per_layer=False, generator=seeded())
    assert (overall.flatten(1).sum(1) == 2 * L).all()
    assert overall.sum(2).double().std(0).min() > 0.5
    with pytest.raises(ValueError, match="some of the chosen are gone"):
        sets.drawn(HELD, held, n=2, generator=seeded())


def test_equally_large_sets_have_the_same_random_ones():
    first, second = (sets.drawn(x, HELD, n=9, generator=seeded()) for x in (quarter(), quarter().flip(1)))
    assert torch.equal(first, second)


def test_a_place_counts_ties_half():
    found = sets.place(0.5, np.array([0.1, 0.5, 0.5, 0.9, 0.2, 0.3]))
    assert (found.place, found.n) == (4 / 6, 6)
    assert found.low < found.place < found.high
    with pytest.raises(ValueError, match="at least one random set"):
        sets.place(np.nan, np.array([0.1]))
    assert sets.place(1.0, np.ones(200)).verdict == "undecided"
    lowest = sets.place(0.0, np.linspace(0.1, 1, 200))
    assert (lowest.place, lowest.verdict, lowest.p) == (0, "worse", pytest.approx(0.5 / 201))
    assert sets.place(2.0, np.linspace(0.1, 1, 200)).verdict == "better"
    assert sets.place(np.array([0.1, 0.9]), np.linspace(0, 1, 101)).place == pytest.approx(0.5)


@pytest.mark.parametrize("critical", [0, 1, 3, 8])
def test_a_random_set_is_called_undecided_in_95_of_100_cases(critical):
    """Against all others of its batch; damage sits in few heads, as in the models, or is spread."""
    rng, undecided = np.random.default_rng(critical), []
    for trial in range(10):
        damage = torch.from_numpy(rng.gamma(0.3, 0.3, (L, H)))
        damage.view(-1)[torch.from_numpy(rng.choice(L * H, critical, replace=False))] = 4.0
        masks = sets.drawn(quarter(), HELD, n=SETS + 1, generator=seeded(trial))
        values = accuracy(masks, damage, rng.gamma(2.0, 1.0, 2 * ROWS))
        undecided += [sets.place(values[i], np.delete(values, i)).verdict == "undecided" for i in range(len(values))]
    assert len(undecided) == 10 * (SETS + 1)
    assert np.mean(undecided) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("free", "most"), [(0, 0.98), (1, 1.0), (8, 1.0)])
def test_a_choice_of_ten_draws_that_share_heads_is_called_undecided_in_95_of_100_cases_or_more(free, most):
    """Each choice takes the same `free` fewest heads in every draw; relabelled at random, it is like any other."""
    rng, undecided = np.random.default_rng(free), []
    for trial in range(10):
        damage = torch.from_numpy(rng.gamma(0.3, 0.3, (L, H)))
        cost = lambda masks, damage=damage: (masks.double() * damage).flatten(1).sum(1).numpy()  # noqa: E731
        random = -cost(sets.drawn(quarter(), HELD, n=SETS, generator=seeded(trial)))
        for _ in range(40):
            ranks = torch.from_numpy(np.tile(rng.random((1, L, H)), (10, 1, 1)))
            ranks += torch.from_numpy(free * rng.random((10, L, H)))  # 0: all draws alike
            undecided.append(sets.place(-cost(ranks.argsort(-1).argsort(-1) < 2), random).verdict == "undecided")
    assert 0.92 <= np.mean(undecided) <= most


def test_draws_that_are_worse_than_nearly_all_sets_are_called_so():
    random = np.linspace(0, 1, SETS)
    assert sets.place(random[:4], random).verdict == "worse"
    assert sets.place(random[[0, 1, 100]], random).verdict == "undecided"


def test_the_interval_of_a_place_is_over_draws_too():
    random = np.linspace(0, 1, 201)
    narrow, wide = (sets.place(np.array([0.5 - by, 0.5 + by]), random) for by in (0.001, 0.4))
    assert narrow.place == pytest.approx(wide.place, abs=0.01)
    assert narrow.low > 0.4 > 0.15 > wide.low
    assert sets.place(0.5, random).low == pytest.approx(narrow.low)  # Wilson's, for so many random sets


@pytest.mark.parametrize(("heads", "n", "verdict"), [(64, 1, "worse"), (8, 2, "undecided")])
def test_a_planted_critical_head_is_found_where_few_random_sets_lack_it(heads, n, verdict):
    """One of 64 heads is missing in 1.6 % of random sets; two of 8 in a quarter, which nothing can make rare."""
    chosen, damage = quarter(3, heads, n), torch.zeros(3, heads, dtype=torch.float64)
    damage[0, 0] = 1.0
    verdicts, rng = [], np.random.default_rng(0)
    for trial in range(50):
        masks = sets.drawn(chosen, torch.ones_like(chosen), n=SETS, generator=seeded(trial))
        items = rng.uniform(0.2, 1.4, 2 * ROWS)
        values = accuracy(torch.cat([chosen[None], masks]), damage, items)
        verdicts.append(sets.place(values[0], values[1:]).verdict)
    assert np.mean(np.array(verdicts) == verdict) > 0.9


def table():
    """Two seeds; without the arm's heads the first is worse than 19 of 20 random sets, the second than 15."""
    rows = []
    for seed, better in ((0, 19), (1, 15)):
        values = {"chosen": [0.5, 0.5], "random": [0.9] * better + [0.1] * (20 - better)}
        for which, shares in values.items():
            rows += [{"arm": "low", "share": 0.25, "which": which, "value": x, "seed": seed} for x in shares]
        rows.append({"arm": "intact", "share": 0.0, "which": "chosen", "value": 0.95, "seed": seed})
        rows.append({"arm": "all off", "share": 0.0, "which": "chosen", "value": 0.0, "seed": seed})
    frame = pd.DataFrame(rows).assign(cut="per layer", probe="needle", probe_kind="task", n=24, removed=12)
    names = {"model": frame["seed"].map("m{}".format), "kind": "m", "draw": frame.groupby("which").cumcount()}
    names["bits"] = 1 - frame["value"]
    return frame.assign(set=frame.index.astype(str), **names)


def test_places_by_seed_and_over_seeds():
    found = sets.places(table()).set_index("seed")
    assert found["place"].to_dict() == {0: 0.05, 1: 0.25}
    assert found[["least", "greatest"]].drop_duplicates().to_numpy().tolist() == [[0.05, 0.25]]
    rows = sets.measured(found.reset_index(), "place of low")
    assert rows["estimate"].tolist() == [0.05, 0.25]
    assert (rows["low"] < rows["estimate"]).all()
    kept = sets.places(sets.with_kept(table()))
    assert kept.loc[kept["probe"] == "accuracy kept", "chosen"].tolist() == pytest.approx([0.5 / 0.95] * 2)
    more = sets.places(table().assign(bits=lambda frame: frame["value"])).set_index("seed")
    assert more["place"].to_dict() == {0: 0.95, 1: 0.75}  # fewer bits are better, however many answers are right


def test_draws_that_chose_the_same_heads_are_one():
    twice = table().assign(set=lambda frame: frame["set"].where(frame["which"] == "random", "the same"))
    assert sets.places(twice)["draws"].tolist() == [1, 1]
    assert sets.places(table())["draws"].tolist() == [2, 2]


def test_the_gate_is_what_is_right_with_every_state_off():
    found = sets.gate(table(), probe="needle", name="needles without state")
    assert found["estimate"].tolist() == [0, 0]
    assert found["high"].between(0.1, 0.15).all()


def test_the_dose_is_the_paper_s_or_the_largest_that_the_oracle_bears():
    assert testable.share({0.389: 0.95, 0.25: 0.2}) == 0.389
    assert testable.share({0.389: 0.9, 0.35: 0.94, 0.2: 0.97, 0.05: 1.0}) == 0.2
    assert np.isnan(testable.share({0.389: 0.1, 0.05: 0.9}))


def test_a_set_is_asked_once_for_all_purposes(place, tmp_path, monkeypatch):
    questions = dataclasses.replace(sets.questions(rows=2), length=64)
    assert questions.rows == 2
    plan = trials.plan(["needle"], ["code"], items=2, windows=1, length=64, sequences=1, draws=2)
    one = lambda self, arm, draw: self.model.held & (torch.arange(self.model.grid.H) == draw)  # noqa: E731
    monkeypatch.setattr(trials.Subject, "heads", one)
    subject = sets.Subject(place, plan, questions, tmp_path)
    arm = trials.Arm("low", 0.25)
    beside, chosen, random = (subject.ask(*x) for x in (("beside",), ("chosen", arm), ("random", arm, 4, 0)))
    assert beside["removed"].tolist() == [0, int(subject.model.held.sum())]
    assert chosen["set"].nunique() == 2
    assert len(random) == 4
    asked = []
    monkeypatch.setattr(battery, "answers", lambda *_: asked.append(1))
    again = sets.Subject(place, plan, questions, tmp_path)
    pd.testing.assert_frame_equal(again.ask("chosen", arm), chosen)
    pd.testing.assert_frame_equal(again.ask("random", arm, 4, 0), random)
    assert not asked
