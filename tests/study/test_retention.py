"""Needles at a distance, heads that keep them for as long as they are told, who foretells what these are worth."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from srdyn import evals, models
from srdyn.study.analysis import damage
from srdyn.study.trials import retention
from srdyn.text import tasks

ASKED = retention.Questions((24, 40), ("code",), rows=3)


@pytest.fixture(scope="module")
def subject(place, tmp_path_factory):
    return retention.Subject(place, ASKED, tmp_path_factory.mktemp("kept"))


@pytest.fixture
def writer(tokenizer):
    text = evals.held_out_text(tokenizer, "evaluation")
    return tasks.Writer(tasks.Alphabet.of(tokenizer), text, np.random.default_rng(0))


@pytest.mark.parametrize("distance", [24, 100])
def test_an_answer_stands_as_far_from_its_fact_as_told(writer, distance):
    tokens, items = retention.needles(writer, distance, 4)
    row, at = (items > 0).nonzero(as_tuple=True)
    assert row.bincount().tolist() == [2] * 4
    assert torch.equal(tokens[row, at], tokens[row, at - distance])
    names = at - 1 - len(writer.alphabet.verb)
    assert torch.equal(tokens[row, names], tokens[row, names - distance])
    with pytest.raises(ValueError, match="shorter than two facts"):
        retention.needles(writer, 10, 1)


def test_saturated_heads_are_split_at_their_median_half_life():
    table = pd.DataFrame({"rank": [64, 60, 58, 63, 57, 3], "half_life": [9.0, 900, 20, 400, 5000, 0.1], "D": 64})
    assert retention.grouped(table)["group"].tolist() == [
        retention.FAST,
        retention.SLOW,
        retention.FAST,
        retention.SLOW,
        retention.OTHERS,
        retention.OTHERS,
    ]


def test_heads_and_answers_of_a_model(subject, place):
    heads = subject.ask("heads")
    assert len(heads) == subject.model.grid.L * subject.model.grid.H
    intact = subject.ask("answered", retention.INTACT, math.nan, math.nan)
    assert intact["distance"].tolist() == [24, 40]
    assert (intact["n"] == 6).all()
    assert intact["rank"].isna().all()
    subject.kept.put("heads", subject.kept.get("heads").assign(group=retention.SLOW))
    short, long = (subject.ask("answered", retention.SLOW, tokens, math.nan) for tokens in (0.5, 500.0))
    assert (short["rank"] < long["rank"]).all()
    assert (short["heads"] == len(heads)).all()
    assert not np.allclose(short["bits"], long["bits"], rtol=1e-6)
    faster = subject.ask("answered", retention.SLOW, math.nan, retention.FACTOR)
    assert not np.allclose(faster["bits"], intact["bits"], rtol=1e-6)
    rows = subject._needles[24]
    fresh = evals.outcomes(models.load(place), rows[0][:3], rows[1][:3])["bits"].mean()
    assert intact["bits"].iloc[0] == pytest.approx(fresh, rel=1e-5)  # and nothing is left of what was set


def test_single_heads_are_changed_one_at_a_time(subject):
    found = subject.ask("single")
    heads = subject.model.grid.L * subject.model.grid.H
    assert len(found) == heads * 2 * len(ASKED.distances)
    assert set(found["changed"]) == {retention.REMOVED, retention.SHORTER}
    assert found["damage"].abs().max() > 0


@pytest.mark.parametrize("distance", [16, 50])
def test_a_passage_comes_again_after_the_distance(writer, distance):
    tokens, items = retention.passages(writer, distance, 3)
    row, at = (items == 2).nonzero(as_tuple=True)
    assert row.bincount().tolist() == [retention.PASSAGE] * 3
    assert torch.equal(tokens[row, at], tokens[row, at - distance])
    assert (items[row, at - distance] == 1).all()
    with pytest.raises(ValueError, match="shorter than the passage"):
        retention.passages(writer, 8, 1)


def test_bits_of_a_passage_are_those_of_its_tokens(subject):
    found = subject.ask("repeated", retention.INTACT)
    tokens, _ = subject._passages[40]
    chances = subject.model.logits(tokens).log_softmax(-1) / -math.log(2)
    bits = chances[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].double()
    new, again = (
        bits[:, start - 1 :][:, : retention.PASSAGE].mean(1) for start in (retention.PREFIX, retention.PREFIX + 40)
    )
    rows = found[found["distance"] == 40]
    np.testing.assert_allclose(rows["new"], new.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(rows["again"], again.detach().numpy(), rtol=1e-5)


def test_worth_is_what_is_lost_without_a_group():
    names = {"model": "m", "kind": "k", "seed": 0, "heads": 3, "distance": 16}
    draw = np.random.default_rng(0)
    rows = pd.DataFrame({"row": range(6), "new": draw.uniform(4, 6, 6), "again": draw.uniform(1, 2, 6)})
    without = rows.assign(new=rows["new"] + 0.25, again=rows["again"] + 1.0, group=retention.SLOW)
    passages = pd.concat([rows.assign(group=retention.INTACT), without.sample(frac=1, random_state=0)]).assign(**names)
    table = damage.worth(passages).set_index(["group", "quantity"])["estimate"]
    assert table[retention.SLOW].round(9).to_dict() == {damage.LOCAL: 0.25, damage.RECALL: 0.75, damage.BALANCE: 0.5}
    intact = table[retention.INTACT]
    assert intact[damage.LOCAL] == pytest.approx(rows["new"].mean())
    assert intact[damage.RECALL] == pytest.approx((rows["new"] - rows["again"]).mean())


def planted(model, rng, heads=40):
    """Damage grows with what decay leaves of a write at the distance; rank is drawn apart."""
    half_life, rank, write = np.exp(rng.uniform(0, 8, heads)), rng.uniform(1, 64, heads), rng.uniform(size=heads)
    rows = []
    for distance in (32, 512):
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
