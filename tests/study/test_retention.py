"""Needles at a distance, and heads that keep them for as long as they are told."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from srdyn import evals, models
from srdyn.study.trials import retention
from srdyn.text import tasks

ASKED = retention.Questions((24, 40), ("code",), rows=3, few=2)


@pytest.fixture(scope="module")
def subject(place, tmp_path_factory):
    return retention.Subject(place, ASKED, tmp_path_factory.mktemp("kept"))


@pytest.mark.parametrize("distance", [24, 100])
def test_an_answer_stands_as_far_from_its_fact_as_told(tokenizer, distance):
    text = evals.held_out_text(tokenizer, "evaluation")
    writer = tasks.Writer(tasks.Alphabet.of(tokenizer), text, np.random.default_rng(0))
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
    intact = subject.ask("answered", retention.INTACT, math.nan)
    assert intact["distance"].tolist() == [24, 40]
    assert (intact["n"] == 6).all()
    assert intact["rank"].isna().all()
    subject.kept.put("heads", subject.kept.get("heads").assign(group=retention.SLOW))
    short, long = (subject.ask("answered", retention.SLOW, tokens) for tokens in (0.5, 500.0))
    assert (short["rank"] < long["rank"]).all()
    assert (short["heads"] == len(heads)).all()
    assert not np.allclose(short["bits"], long["bits"], rtol=1e-6)
    rows = subject._needles()[24]
    fresh = evals.outcomes(models.load(place), rows[0][:3], rows[1][:3])["bits"].mean()
    assert intact["bits"].iloc[0] == pytest.approx(fresh, rel=1e-5)  # and nothing is left of what was set


def test_single_heads_are_changed_one_at_a_time(subject):
    found = subject.ask("single")
    heads = subject.model.grid.L * subject.model.grid.H
    assert len(found) == heads * 2 * len(ASKED.distances)
    assert set(found["changed"]) == {retention.REMOVED, retention.SHORTER}
    assert found["damage"].abs().max() > 0
