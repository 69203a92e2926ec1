import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from srdyn import evals
from srdyn.study.trials import battery
from srdyn.text import tasks

SMALL = battery.Battery(("needle", "sum"), ("code", "math"), length=96, items=30, windows=5, copies=3, rows=20)


@pytest.fixture(scope="module")
def sheet(tokenizer):
    return battery.sheet(SMALL, tokenizer)


@pytest.fixture(scope="module")
def frame(untrained, sheet):
    return battery.answers(untrained, sheet)


def needed(model, tokens):
    """Bits of every token but the first, from the model's own logits in float64."""
    with torch.no_grad():
        logs = model.hf(tokens, use_cache=False).logits.double().log_softmax(-1)
    return (-logs[:, :-1].gather(2, tokens[:, 1:, None])[..., 0] / np.log(2)).numpy()


def test_a_sheet_holds_every_probe_under_its_name(sheet):
    kinds = {"needle": "task", "sum": "task", "bits code": "text", "bits math": "text", "induction": "induction"}
    assert {name: probe.kind for name, probe in sheet.items()} == kinds
    assert all(probe.name == name and probe.tokens.shape[1] == 96 for name, probe in sheet.items())
    assert len(sheet["bits code"].tokens) == 5
    assert len(sheet["induction"].tokens) == 3


def test_a_tokenizer_without_words_is_asked_for_text_alone_where_that_is_wanted(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(tasks, "_is_word", lambda token: False)
    with pytest.raises(ValueError, match="this experiment asks tasks"):
        battery.sheet(SMALL, tokenizer)
    alone = battery.sheet(dataclasses.replace(SMALL, text_alone=True), tokenizer)
    assert list(alone) == ["bits code", "bits math"]
    assert "text alone is asked" in caplog.text
    assert list(battery.sheet(dataclasses.replace(SMALL, tasks=(), copies=0), tokenizer)) == ["bits code", "bits math"]


def test_a_task_has_items_enough_in_rows_enough(sheet, tokenizer):
    few = battery.sheet(dataclasses.replace(SMALL, tasks=("needle",), domains=(), copies=0, rows=1), tokenizer)
    assert list(few) == ["needle"]
    assert len(few["needle"].tokens) == 15  # two items each
    assert len(sheet["needle"].tokens) == SMALL.rows == 20
    assert len(sheet["sum"].tokens) == SMALL.rows
    assert int(sheet["sum"].items.amax(1).sum()) > 30


def test_rows_are_those_of_the_task(sheet, tokenizer):
    text, rng = evals.held_out_text(tokenizer, "evaluation"), evals.draws("needle", part="evaluation", seed=0)
    tokens, items = evals.task_rows("needle", tokenizer=tokenizer, text=text, n=40, length=96, rng=rng)
    assert torch.equal(sheet["needle"].tokens, tokens)
    assert torch.equal(sheet["needle"].items, items)


def test_a_sheet_is_decided_by_its_battery(sheet, tokenizer):
    again = battery.sheet(SMALL, tokenizer)
    assert all(torch.equal(again[name].tokens, probe.tokens) for name, probe in sheet.items())
    for change in ({"seed": 1}, {"part": "calibration"}):
        other = battery.sheet(dataclasses.replace(SMALL, **change), tokenizer)
        for name in ("needle", "sum", "induction"):
            shared = {tuple(row) for row in other[name].tokens.tolist()} & set(map(tuple, sheet[name].tokens.tolist()))
            assert not shared, name
    assert not torch.equal(other["bits code"].tokens, sheet["bits code"].tokens)


def test_the_induction_probe_reads_the_same_twice_and_counts_the_same_tokens(sheet):
    probe = sheet["induction"]
    first, second = probe.tokens.chunk(2, dim=1)
    assert torch.equal(first, second)
    counted = [probe.tokens[probe.items == copy] for copy in (1, 2)]
    assert torch.equal(*counted)
    assert len(counted[0]) == 3 * (48 - 1 - battery.SKIPPED)
    assert len({tuple(row) for row in first.tolist()}) == 3


def test_answers_are_those_of_the_model_itself(untrained, sheet, frame):
    assert list(frame.columns) == ["probe", "probe_kind", "row", "item", "value", "weight", "bits"]
    assert set(frame["probe"]) == {*sheet} - {"induction"} | set(battery.INDUCTION)
    kinds = {name: probe.kind for name, probe in sheet.items()} | dict.fromkeys(battery.INDUCTION, "induction")
    assert (frame["probe_kind"] == frame["probe"].map(kinds)).all()
    for name in ("needle", "sum"):
        found, probe = frame[frame["probe"] == name], sheet[name]
        expected = evals.outcomes(untrained, probe.tokens, probe.items)
        assert found["value"].tolist() == expected["right"].astype(float).tolist()
        assert (found["weight"] == 1).all()
        bits = needed(untrained, probe.tokens)
        pairs = zip(found["row"], found["item"], strict=True)
        asked = [bits[row][(probe.items[row, 1:] == item).numpy()].sum() for row, item in pairs]
        np.testing.assert_allclose(found["bits"], asked, rtol=1e-5)  # the model's float32 logits against float64


def test_text_is_weighed_by_its_bytes_and_copies_by_their_tokens(untrained, sheet, frame, tokenizer):
    found, tokens = frame[frame["probe"] == "bits math"], sheet["bits math"].tokens
    assert found["weight"].tolist() == [len(tokenizer.decode(row[1:]).encode()) for row in tokens]
    np.testing.assert_allclose(found["value"], needed(untrained, tokens).sum(1), rtol=1e-5)
    bits = needed(untrained, sheet["induction"].tokens)
    for name, start in zip(battery.INDUCTION, (battery.SKIPPED + 1, 48 + battery.SKIPPED + 1), strict=True):
        found = frame[frame["probe"] == name]
        assert found["row"].tolist() == [0, 1, 2]
        assert (found["weight"] == 48 - 1 - battery.SKIPPED).all()
        np.testing.assert_allclose(found["value"], bits[:, start - 1 : start + 38].sum(1), rtol=1e-5)


def test_folds_answer_every_row_once(untrained, sheet, frame):
    folds = [battery.answers(untrained, sheet, fold=(k, 4)) for k in range(4)]
    for k, fold in enumerate(folds):
        assert (fold["row"] % 4 == k).all()
    assert set(folds[3]["probe"]).isdisjoint(battery.INDUCTION)  # three rows for four draws
    keys = ["probe", "row", "item"]
    together = pd.concat(folds).sort_values(keys, ignore_index=True)
    whole = frame.sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(together, whole, rtol=1e-5)


def test_what_cannot_be_asked_is_refused(tokenizer):
    with pytest.raises(ValueError, match="rows of more than 19 tokens, got 19"):
        battery.sheet(battery.Battery((), (), length=19), tokenizer)
    with pytest.raises(ValueError, match="no task is called 'poem'"):
        battery.sheet(battery.Battery(("poem",), ()), tokenizer)
    with pytest.raises(ValueError, match="no part is called 'exam'"):
        battery.sheet(battery.Battery(("sum",), (), part="exam"), tokenizer)


def test_the_shortest_rows_of_the_induction_probe_count_one_token_each(untrained, tokenizer):
    shortest = battery.sheet(battery.Battery((), (), length=20, copies=2), tokenizer)
    assert battery.answers(untrained, shortest)["weight"].tolist() == [1, 1, 1, 1]
