from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from srdyn import contexts, evals
from srdyn.text import episodes, tasks


@pytest.fixture(scope="module")
def text(tokenizer):
    return evals.held_out_text(tokenizer, "calibration")


def rows_of(name, tokenizer, text, *, n=8, length=256, seed=0):
    rng = evals.draws(name, part="calibration", seed=seed)
    return evals.task_rows(name, tokenizer=tokenizer, text=text, n=n, length=length, rng=rng)


def foretell(model, tokens, *, wrong=()):
    """Let the model put all its weight on the token that follows, but for the places (row, token) in `wrong`."""
    best = tokens.roll(-1, dims=1).clone()
    for row, at in wrong:
        best[row, at - 1] += 1
    done = iter(best.split(2))
    model.hf.forward = lambda rows, use_cache: SimpleNamespace(logits=F.one_hot(next(done), 1030).float())


@pytest.mark.parametrize("name", evals.TASKS)
def test_rows_hold_items_enough_numbered_from_one(name, tokenizer, text):
    tokens, items = rows_of(name, tokenizer, text, n=20)
    assert tokens.shape == items.shape
    assert tokens.shape[1] == 256
    counts = [sorted(set(row.tolist()) - {0}) for row in items]
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in counts)
    assert 20 <= sum(map(len, counts)) < 20 + max(map(len, counts))
    again, other = rows_of(name, tokenizer, text, n=20), rows_of(name, tokenizer, text, n=20, seed=1)
    assert torch.equal(tokens, again[0])
    assert not torch.equal(tokens[0], other[0][0])


@pytest.mark.parametrize(("name", "pairs"), [("recall4", 4), ("recall8", 8), ("recall16", 16)])
def test_recall_counts_each_name_once_an_episode_and_answers_with_its_value(name, pairs, tokenizer, text):
    tokens, items = rows_of(name, tokenizer, text, n=40)
    alphabet = tasks.Alphabet.of(tokenizer)
    size = 2 * pairs
    for row, numbers in zip(tokens.numpy(), items.numpy(), strict=True):
        starts = [
            i + 1
            for i in range(len(row) - size)
            if np.isin(row[i + 1 : i + 1 + size : 2], alphabet.names).all()
            and np.isin(row[i + 2 : i + 2 + size : 2], alphabet.values).all()
            and row[i] == row[i + 1 + size] == alphabet.marks["\n"]
        ]
        assert len(starts) >= 2
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            value = dict(row[start : start + size].reshape(-1, 2))
            asked = [i for i in range(start + size, end) if numbers[i]]
            names = [row[i - 1] for i in asked]
            assert len(set(names)) == len(names)
            assert [row[i] for i in asked] == [value[name] for name in names]


@pytest.mark.parametrize(("name", "steps"), [("chain", {4, 8}), ("chain4", {4}), ("chain8", {8})])
def test_chains_by_number_of_steps(name, steps, tokenizer, text):
    _, items = rows_of(name, tokenizer, text, n=12)
    assert {int((row == item).sum()) for row in items for item in row.unique() if item > 0} <= steps


@pytest.mark.parametrize(("name", "needles"), [("needle", 2), ("needle4", 4)])
def test_needles_by_their_number(name, needles, tokenizer, text):
    _, items = rows_of(name, tokenizer, text)
    assert (items.amax(1) == needles).all()


@pytest.mark.parametrize("length", [64, 300])
@pytest.mark.parametrize(("name", "depth"), episodes.NEEDLES_AT.items())
def test_one_needle_lies_at_its_depth_and_is_asked_at_the_end(name, depth, length, tokenizer, text):
    tokens, items = rows_of(name, tokenizer, text, n=4, length=length)
    assert (items.sum(1) == 1).all()
    assert (items[:, -3] == 1).all()  # the full stop and the line break follow
    sentence = tasks.Writer(tasks.Alphabet.of(tokenizer), text, np.random.default_rng(0)).sentence_length()
    start = round(depth * (length - 2 * sentence))
    for row in tokens:
        assert torch.equal(row[start : start + sentence], row[-sentence:])


def test_depths_are_refused_where_a_needle_does_not_fit(tokenizer, text):
    with pytest.raises(ValueError, match="a needle does not fit into 16 tokens"):
        rows_of("needle at 50 %", tokenizer, text, length=16)


def test_arithmetic_lies_in_text(tokenizer, text):
    _, items = rows_of("sum", tokenizer, text, n=12)
    gaps = np.diff((items[0] > 0).nonzero()[:, 0].numpy())
    assert sorted(set(gaps))[0] == 1
    assert max(gaps) > episodes.TEXT_BETWEEN[0]


def test_parts_meet_neither_the_same_text_nor_the_same_draws(tokenizer, text):
    other = evals.held_out_text(tokenizer, "evaluation")
    assert set(text.ids) == set(other.ids) == set(contexts.domains())
    windows = [{tuple(ids[i : i + 64]) for i in range(0, len(ids) - 64, 64)} for ids in text.ids.values()]
    joined = {name: ids.tobytes() for name, ids in other.ids.items()}
    assert all(
        np.array(window).tobytes() not in joined[name]
        for name, some in zip(text.ids, windows, strict=True)
        for window in list(some)[:20]
    )
    first, second = (evals.draws("sum", part=part).integers(1 << 62) for part in ("calibration", "evaluation"))
    assert first != second


def test_unknown_tasks_and_short_rows_are_refused(tokenizer, text):
    with pytest.raises(ValueError, match="no task is called 'poem'; there are needle,"):
        rows_of("poem", tokenizer, text)
    with pytest.raises(ValueError, match="no item of 'recall16' fits into 32 tokens"):
        rows_of("recall16", tokenizer, text, length=32)


def test_an_item_is_right_when_all_its_answers_are(tiny_hybrid, tokenizer, text):
    tokens, items = rows_of("chain", tokenizer, text, n=30)
    row, at = len(tokens) - 1, int((items[-1] == 2).nonzero()[1, 0])
    unasked = int((items[0] == 0).nonzero()[5, 0])
    foretell(tiny_hybrid, tokens, wrong=[(row, at), (0, unasked)])
    frame = evals.outcomes(tiny_hybrid, tokens, items)
    assert list(frame.columns) == ["row", "item", "right", "bits", "tokens"]
    assert len(frame) == int(items.amax(1).sum())
    wrong = frame[~frame["right"]]
    assert wrong[["row", "item"]].to_numpy().tolist() == [[row, 2]]


def test_outcomes_are_those_of_the_model_itself(untrained, tokenizer, text):
    tokens, items = rows_of("recall4", tokenizer, text, n=24, length=128)
    items[items == 1] = 0
    tokens[0, 0], items[0, 0] = 5, 1  # nothing precedes it, hence nothing foretells it
    frame = evals.outcomes(untrained, tokens, items)
    with torch.no_grad():
        best = untrained.hf(tokens, use_cache=False).logits.argmax(-1)
    expected = [
        (row, int(items[row, at]), bool(best[row, at - 1] == tokens[row, at]), 1)
        for row, at in (items > 0).nonzero().tolist()
        if at > 0
    ]
    lines = frame[["row", "item", "right", "tokens"]].itertuples(index=False)
    assert [tuple(line) for line in lines] == sorted(expected)


def test_bits_of_an_item_are_those_of_all_its_answers(untrained, tokenizer, text):
    tokens, items = rows_of("sum", tokenizer, text, n=6, length=128)
    frame = evals.outcomes(untrained, tokens, items)
    with torch.no_grad():
        logs = untrained.hf(tokens, use_cache=False).logits.double().log_softmax(-1)
    for line in frame.itertuples():
        at = (items[line.row] == line.item).nonzero()[:, 0]
        bits = -logs[line.row, at - 1, tokens[line.row, at]].sum() / np.log(2)
        assert line.tokens == len(at)
        assert line.bits == pytest.approx(float(bits), rel=1e-5)  # float32 logits of another batch


def test_windows_cover_a_document_once_and_know_its_bytes(tokenizer):
    chosen = evals.windows("prose", tokenizer, length=64, part="calibration")
    documents = [document.encode() for document in contexts.held_out_documents("prose", part="calibration")]
    assert set(chosen.document) == set(range(len(documents)))
    spans = list(zip(chosen.tokens, chosen.document, chosen.start, chosen.stop, strict=True))
    for tokens, document, start, stop in spans[:40] + spans[-5:]:
        assert tokenizer.decode(tokens[1:]).encode() == documents[document][start:stop]
    firsts = [(tokens[0], start) for tokens, _, start, _ in spans if start == 0]
    assert [int(token) for token, _ in firsts] == [tokenizer.eos_token_id] * len(documents)
    for (before, i, _, stop), (after, j, start, _) in zip(spans, spans[1:], strict=False):
        assert i != j or (stop == start and before[-1] == after[0])


def test_some_windows_are_evenly_spaced_ones_of_all(tokenizer):
    every, some = (evals.windows("code", tokenizer, length=128, n=n) for n in (None, 5))
    places = [int((every.tokens == row).all(1).nonzero()[0, 0]) for row in some.tokens]
    assert places[0] == 0
    assert places[-1] == len(every.tokens) - 1
    assert max(np.diff(places)) - min(np.diff(places)) <= 1
    with pytest.raises(ValueError, match="9999 windows of 128 tokens asked for"):
        evals.windows("code", tokenizer, length=128, n=9999)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary(tiny_hybrid):
    tokens = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    tiny_hybrid.hf.forward = lambda rows, use_cache: SimpleNamespace(logits=torch.zeros(*rows.shape, 64))
    assert evals.window_bits(tiny_hybrid, tokens) == pytest.approx([19 * 6] * 3)
