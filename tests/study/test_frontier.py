"""Every way to hold less: what it acts on, what it leaves in bytes, which answers count."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import saved
import torch

from srdyn import ablation, evals
from srdyn.study.run import opened
from srdyn.study.trials import battery, contrasts, effects, frontier, trials

DOSES = {"removed": [0.25], "int8 + int4": [0.5, 1.0], "rank": [4], "checkpoint, replayed": [0.5]}


@pytest.fixture(scope="module")
def asked():
    return frontier.Questions(("recall4",), ("code", "prose"), length=96, rows=2)


@pytest.fixture(scope="module")
def subject(tmp_path_factory, asked):
    folder = saved.tiny(tmp_path_factory.mktemp("models") / "tiny", head=16, times=1.5)
    few = battery.Battery(("recall4",), ("code",), length=64, items=1, rows=1, windows=1, copies=0, part="calibration")
    plan = trials.Plan(few, few, ("code",), sequences=1, length=48, draws=2)
    return frontier.Subject(folder, plan, asked, tmp_path_factory.mktemp("kept"))


def test_every_way_is_listed_with_the_heads_that_it_takes_first():
    found = frontier.ways(DOSES, ["rank", "oracle"], first="fast decay", draws=3)
    assert [way.how for way in found[:2]] == ["whole", "removed"]
    removed = [way for way in found[2:] if way.how == "removed"]
    assert [way.rule for way in removed] == ["rank", "oracle", *["random"] * 3]
    assert [(way.how, way.rule, way.share, way.rank) for way in found if way.how not in ("whole", "removed")] == [
        ("int8 + int4", "fast decay", 0.5, 0), ("int8 + int4", "", 1.0, 0), ("rank", "", 1.0, 4),
        ("checkpoint, replayed", "fast decay", 0.5, 0),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    with pytest.raises(ValueError, match="no way to hold less is called int3; there are removed, int8"):
        frontier.ways({"int3": [1.0]}, [], first="rank", draws=1)


def test_bytes_are_those_of_all_heads_by_hand(subject):
    K = V = 16  # of 24 heads
    whole, scales = K * V * 4, {"int8": 4, "int8 + int4": 8}
    of = lambda how, share=1.0, **more: subject.under(frontier.Way(how, share=share, **more))["bytes"].iloc[0]  # noqa: E731
    assert of("whole", 0.0) == 1
    assert of("removed") == 0
    assert of("removed", 0.25, rule="rank") == 0.75
    assert of("int8") == pytest.approx((K * V + scales["int8"]) / whole)
    assert of("int8 + int4", 0.5, rule="rank") == pytest.approx(
        0.5 + 0.5 * (K * V * 1.5 + scales["int8 + int4"]) / whole
    )
    assert of("rank", rank=4) == 4 * (K + V) / (K * V)  # at K·V/(K + V) = 8 factors are as large as the state
    assert of("rank", rank=8) == 1
    assert of("checkpoint, zero", 0.5, rule="rank") == 0.5


def test_only_what_is_foretold_behind_the_prefix_counts():
    items = torch.tensor([[0, 1, 1, 0, 2, 2, 0, 3, 3, 0]])
    assert frontier.behind(items, 4, alone=True).tolist() == [[0, 0, 0, 0, 0, 0, 0, 3, 3, 0]]  # half of 2 is before
    assert frontier.behind(torch.ones_like(items), 4, alone=False).tolist() == [[0] * 5 + [1] * 5]


def test_answers_behind_the_prefix_do_not_know_what_the_checkpoint_held_until_the_prefix_is_over(subject, asked):
    whole, zero = (subject.under(way) for way in (frontier.Way("whole", share=0.0), frontier.Way("checkpoint, zero")))
    text = (whole["probe_kind"] == "text").to_numpy()
    assert (whole.loc[text, "weight"] == asked.length - asked.prefix - 1).all()
    assert (whole.loc[text, "value"] != zero.loc[text, "value"]).all()
    gone = subject.under(frontier.Way("removed"))
    assert not np.allclose(gone.loc[text, "value"], zero.loc[text, "value"])


def test_removal_is_ablation_of_the_same_rows(subject):
    way = frontier.Way("removed", "rank", 0.25)
    heads, (tokens, items, _) = subject.chosen(way), subject._rows(first=False)
    assert torch.equal(heads, subject.heads(trials.Arm("rank", 0.25, "overall"), 0))
    with ablation.ablate_heads(subject.model, heads):
        expected = evals.outcomes(subject.model, tokens, items)
    found = subject.under(way)
    text = (found["probe_kind"] == "text").to_numpy()
    np.testing.assert_allclose(found.loc[text, "value"], expected.loc[text, "bits"], rtol=1e-5)


def test_the_horizon_is_that_of_the_slowest_head_left_out_and_the_prefix_at_most(subject, asked):
    decay = subject._found().decay
    for share in (0.1, 0.5):
        way = frontier.Way("checkpoint, replayed", "fast decay", share)
        slowest = float(decay[subject.chosen(way)].max())
        n = subject.replayed(way)
        assert n == asked.prefix or math.exp(slowest * n) <= frontier.LEFT < math.exp(slowest * (n - 1))
    everything = frontier.Way("checkpoint, replayed")
    assert subject.replayed(everything) == asked.prefix
    assert subject.under(everything)["value"].equals(subject.under(frontier.Way("whole", share=0.0))["value"])
    assert subject.replayed(dataclasses.replace(everything, how="checkpoint, zero")) == 0


def test_random_sets_differ_and_answer_the_first_rows(subject):
    drawn = [frontier.Way("removed", "random", 0.25, draw=draw) for draw in range(3)]
    heads = [subject.chosen(way) for way in drawn]
    assert [int(x.sum()) for x in heads] == [6, 6, 6]
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[2], subject.chosen(drawn[2]))
    rows = subject.under(drawn[0]).groupby("probe")["row"].nunique()
    assert (rows == 1).all()
    assert subject.under(frontier.Way("removed")).groupby("probe")["row"].nunique()["recall4"] == 2


def test_the_table_has_a_row_for_each_way_with_the_interval_of_its_rows(subject):
    ways = frontier.ways(DOSES, ["rank"], first="fast decay", draws=3)
    answers = pd.concat([subject.ask("under", way) for way in ways], ignore_index=True)
    answers.loc[(answers["how"] == "whole") & (answers["probe_kind"] == "task"), "value"] = 1.0  # it can do the task
    found = frontier.table(answers)
    assert not found.duplicated(["how", "rule", "share", "rank", "probe"]).any()
    assert set(found["probe"]) == {effects.KEPT, frontier.LOSS}
    band = found[(found["rule"] == "random") & (found["probe"] == frontier.LOSS)].iloc[0]
    text = answers[answers["probe_kind"] == "text"]
    whole = text[text["how"] == "whole"]
    means = [
        (t["value"].sum() - whole["value"].sum()) / t["weight"].sum()
        for _, t in text[text["rule"] == "random"].groupby("draw")
    ]
    assert (band["estimate"], band["low"], band["high"]) == pytest.approx((np.mean(means), min(means), max(means)))
    assert band["over"] == "3 sets, least and greatest"
    cut = found[(found["how"] == "rank") & (found["probe"] == frontier.LOSS)].iloc[0]
    pair = [text[text["how"] == how].assign(probe="text").drop(columns="draw") for how in ("rank", "whole")]
    expected = contrasts.difference(*pair)
    assert (cut["estimate"], cut["low"], cut["high"]) == pytest.approx(tuple(expected))
    assert (cut["n"], cut["over"]) == (pair[0]["weight"].sum(), "2 rows")


def test_what_was_answered_is_not_asked_again(subject, monkeypatch):
    way = frontier.Way("int8")
    first = subject.under(way)
    monkeypatch.setattr(evals, "outcomes", None)
    pd.testing.assert_frame_equal(subject.under(way), first)
    assert opened.about(subject.model)["kind"] == "hybrid"
