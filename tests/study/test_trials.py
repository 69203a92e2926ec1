"""Arms of an experiment: which heads they take, which rows they answer, that nothing is asked twice."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import saved
import torch

from srdyn import scores
from srdyn.kernels import denormals
from srdyn.loading import files
from srdyn.study.run import opened, workers
from srdyn.study.trials import battery, trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved.tiny(tmp_path_factory.mktemp("models") / "tiny", head=16)


@pytest.fixture(scope="module")
def plan():
    asked = battery.Battery(("recall4",), ("code",), length=64, items=4, rows=4, windows=4, copies=0)
    calibrates = dataclasses.replace(asked, domains=(), rows=1, items=1, part="calibration")
    return trials.Plan(asked, calibrates, ("code", "prose"), sequences=1, length=48, draws=2)


@pytest.fixture(scope="module")
def subject(folder, plan, tmp_path_factory):
    return trials.Subject(folder, plan, tmp_path_factory.mktemp("kept"))


@pytest.mark.parametrize("name", [name for name in trials.known() if name != trials.INTACT])
def test_every_arm_takes_the_same_share_of_every_layer(subject, name):
    heads = subject.heads(trials.Arm(name, 0.25), 0)
    assert heads.sum(1).tolist() == [2, 2, 2]


def test_the_cut_over_the_whole_model_counts_all_heads(subject):
    heads = subject.heads(trials.Arm("rank", 0.389, "overall"), 0)
    assert int(heads.sum()) == round(0.389 * 24)


def test_high_and_low_are_the_ends_of_the_ranks(subject):
    profile = subject.profile().set_index(["axis", "head"])["rank"]
    for name, worse in (("high", 1), ("low", -1)):
        heads = subject.heads(trials.Arm(name, 0.25), 0)
        for axis in range(3):
            ranks = torch.tensor(profile.loc[axis].to_numpy()) * worse
            assert ranks[heads[axis]].min() >= ranks[~heads[axis]].max()


def test_the_decay_matched_heads_are_others(subject):
    high, matched = (subject.heads(trials.Arm(name, 0.25), 1) for name in ("high", "decay-matched"))
    assert not (high & matched).any()


def test_matched_heads_are_as_many_in_every_layer_wherever_a_cut_over_the_model_falls(subject):
    arm = trials.Arm("rank", 0.389, "overall")
    matched = dataclasses.replace(arm, matched=True)
    assert matched.key == "matched, rank--0.3890--overall--all--0--0"
    assert subject.heads(matched, 0).sum(1).tolist() == subject.heads(arm, 0).sum(1).tolist()
    assert any(not torch.equal(subject.heads(matched, draw), subject.heads(arm, draw)) for draw in range(4))


def test_a_new_rule_that_scores_heads_is_an_arm(subject, monkeypatch):
    def last_head(profile, generator):
        return torch.arange(8.0, dtype=torch.float64).expand(profile.rank.shape)

    monkeypatch.setitem(scores.RULES, "last head", last_head)
    assert "last head" in trials.known()
    assert subject.heads(trials.Arm("last head", 1 / 8), 0)[:, 7].all()


def test_ranks_within_a_stratum_are_ties(subject, monkeypatch):
    table = subject.profile().assign(rank=lambda t: np.where(t["head"] < 4, 0.95 * t["D"] + t["head"] * 1e-3, 1.0))
    monkeypatch.setattr(subject, "profile", lambda: table)
    chosen = torch.stack([subject.heads(trials.Arm("tied high", 0.25), draw) for draw in range(40)])
    assert not chosen[..., 4:].any()
    assert chosen[..., :4].any(0).all()


def test_a_truncated_state_is_neither_whole_nor_gone(subject, plan):
    longer = dataclasses.replace(plan, questions=dataclasses.replace(plan.questions, length=96, windows=2))
    asked = trials.Subject(subject.name, longer, subject.folder)
    arms = {
        "whole": trials.Arm(trials.INTACT),
        "gone": trials.Arm("high", 1.0),
        "cut": trials.Arm("high", 1.0, truncated=1),
    }
    found = {name: asked.answers(arm) for name, arm in arms.items()}
    assert (found["cut"]["truncated"] == 1).all()
    bits = {name: table["bits"].sum() for name, table in found.items()}
    assert not any(np.allclose(bits["cut"], bits[other]) for other in ("whole", "gone"))


def test_draws_differ_where_chance_decides_and_repeat_with_their_number(subject):
    arm = trials.Arm("random", 0.5)
    first, second = (subject.heads(arm, draw) for draw in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first, subject.heads(arm, 0))


def test_an_arm_within_some_layers_leaves_the_others_whole(subject):
    heads = subject.heads(trials.Arm("high", 0.25, layers=(0, 2)), 0)
    assert heads.sum(1).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match="takes its heads per layer, not overall"):
        subject.heads(trials.Arm("high", 0.25, "overall", layers=(0,)), 0)


def test_an_unknown_arm_is_refused_with_the_known_ones(subject):
    with pytest.raises(ValueError, match="no arm is called 'best'; there are intact, high, low"):
        subject.heads(trials.Arm("best", 0.25), 0)


def test_draws_share_the_rows_and_together_answer_all(subject):
    answers = subject.answers(trials.Arm("random", 0.25))
    assert answers.groupby(["probe", "row"])["draw"].nunique().eq(1).all()
    assert answers.groupby("draw")["row"].apply(set).to_dict() == {0: {0, 2}, 1: {1, 3}}
    assert (answers["removed"] == 6).all()
    intact = subject.answers(trials.Arm(trials.INTACT))
    assert set(intact["draw"]) == {0}
    keys = ["probe", "row", "item"]
    pd.testing.assert_frame_equal(
        answers[keys].sort_values(keys, ignore_index=True), intact[keys].sort_values(keys, ignore_index=True)
    )


def test_a_finished_arm_is_not_asked_again(subject, monkeypatch):
    arm = trials.Arm("low", 0.25)
    first = subject.answers(arm)
    monkeypatch.setattr(trials.battery, "answers", None)
    pd.testing.assert_frame_equal(subject.answers(arm), first)
    with pytest.raises(TypeError):
        subject.answers(trials.Arm("low", 0.5))


def test_removal_is_audited_on_the_real_cache(subject):
    (row,) = subject.audit(trials.Arm("random", 0.389, "overall")).to_dict("records")
    for when in ("before", "after"):
        assert row[f"state_{when}"] == row[f"state_predicted_{when}"]
        assert row[f"cache_{when}"] == row[f"cache_predicted_{when}"]
    assert row["state_after"] * 24 == row["state_before"] * (24 - row["removed"])
    assert row["parameters_after"] < row["parameters_before"]
    assert row["logits_differ"] <= 1e-4


def test_overlap_is_one_with_the_same_calibration(subject, plan):
    arm = trials.Arm("rank", 0.25, "overall")
    (row,) = subject.overlap(arm, "same", plan).to_dict("records")
    assert row["overlap"] == 1.0
    assert row["chance"] == pytest.approx(0.25)


def test_all_cores_give_what_one_process_gives(folder, plan, tmp_path, monkeypatch):
    """The pool's work in this process: the tables must carry model, kind and seed, whoever made them."""
    (tmp_path / "data").symlink_to(files.data_dir())
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setattr(workers, "deal", lambda function, work: (function(*item) for item in work))
    opened._opened.cache_clear()
    table = trials.answers([folder], [trials.Arm("intact"), trials.Arm("low", 0.25)], plan)
    assert set(table["arm"]) == {"intact", "low"}
    assert table[["model", "kind", "seed"]].drop_duplicates().to_numpy().tolist() == [["tiny", "hybrid", 0]]
    assert opened._opened.cache_info().misses == 1
    assert not denormals.are_flushed()


def test_a_plan_calibrates_on_other_documents_than_it_asks():
    made = trials.plan(["needle"], ["code"], items=200, windows=10, draws=3)
    assert (made.questions.part, made.calibration.part) == ("evaluation", "calibration")
    assert made.draws == 3
