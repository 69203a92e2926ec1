import dataclasses

import numpy as np
import pytest

from srdyn.text import tasks
from srdyn.training import mixture

STEPS = [0, 100, 300, 700, 800, 1300, 1400, 1500, 1900]  # one at least in each stage of every table

CURRICULA = [mixture.SMALL, mixture.MAIN]


@pytest.fixture(scope="module")
def stream(tokenizer):
    """The alphabet, and a text of one token that is neither name, value, digit nor mark."""
    alphabet = tasks.Alphabet.of(tokenizer)
    return {"alphabet": alphabet, "text": tasks.Text({"a": np.full(20_000, 1)})}


def test_a_batch_depends_on_seed_and_number_alone(stream):
    alone = [mixture.batch(i, seed=3, **stream) for i in (7, 900)]
    np.random.default_rng(0).random()
    after_others = [mixture.batch(i, seed=3, **stream) for i in (5, 900, 7)]
    for ours, theirs in zip(alone, [after_others[2], after_others[1]], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert not np.array_equal(alone[0][0], mixture.batch(7, seed=4, **stream)[0])
    assert not np.array_equal(alone[0][0], mixture.batch(8, seed=3, **stream)[0])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("curriculum", CURRICULA)
def test_every_batch_holds_as_many_tokens(stream, step, curriculum):
    now = curriculum.level(step * curriculum.tokens_per_batch)
    for i in range(step, step + 4):
        tokens, weights, items = mixture.batch(i, seed=0, **stream, curriculum=curriculum)
        assert tokens.size == curriculum.tokens_per_batch
        assert tokens.shape == weights.shape == items.shape
        assert tokens.shape[1] == now.lengths[i % len(now.lengths)]
        assert (tokens.dtype, weights.dtype, items.dtype) == (np.int64, np.float32, np.int64)


def test_answers_are_weighted_and_every_kind_occurs(stream):
    batches = [mixture.batch(i, seed=0, **stream) for i in range(700, 715)]
    weights, items = (np.concatenate([b[k].ravel() for b in batches]) for k in (1, 2))
    assert set(items) == {0, *tasks.KINDS.values()} - {tasks.KINDS["copy"]}
    assert (weights[items < 0] > 1).all()
    assert (weights[items == 0] <= 1).all()


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_the_curriculum_only_grows_harder(curriculum):
    levels = [curriculum.level(tokens) for tokens in range(0, 13_000_000, 25_000)]
    for measure in (lambda x: x.symbols, lambda x: x.pairs, lambda x: x.gap, lambda x: max(x.lengths)):
        values = [measure(level) for level in levels]
        assert values == sorted(values)
        assert values[-1] > values[0]
    assert levels[-1].symbols == tasks.SYMBOLS + (tasks.MORE_SYMBOLS if curriculum is mixture.MAIN else 0)


def test_what_goes_on_is_as_hard_from_its_first_token_on():
    begun, ended = mixture.SMALL.at_its_end({"text": 1.0}).level(0), mixture.SMALL.level(10**9)
    assert begun == dataclasses.replace(ended, shares={"text": 1.0})


def test_the_longest_length_follows_the_schedule():
    seen = (800_000, 2_200_000, 5_000_000)
    assert [mixture.SMALL.longest(tokens) for tokens in seen] == [256, 512, 2048]
    assert mixture.MAIN.longest(24_000_000) == 4096


def test_copies_are_copies(stream):
    tokens, weights, items = mixture.batch(2500, seed=0, **stream, curriculum=mixture.MAIN)
    marked = items == tasks.KINDS["copy"]
    assert marked.any()
    for row, chosen, weight in zip(tokens, marked, weights, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]])))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            if stop < len(row):  # else the row cuts it short
                length = stop - start
                assert np.array_equal(row[start:stop], row[start - 1 - length : start - 1])
                assert not weight[start - 1 - length : start].any()


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_shares_are_shares(curriculum):
    for _, shares in curriculum.shares:
        assert sum(shares.values()) == pytest.approx(1)
        assert set(shares) <= {"text", *mixture._ROWS}


@pytest.mark.parametrize("first", [0, 400, 800, 1500])
@pytest.mark.parametrize("curriculum", CURRICULA)
def test_half_of_all_tokens_or_more_are_real_text(stream, first, curriculum):
    batches = [mixture.batch(i, seed=0, **stream, curriculum=curriculum)[0] for i in range(first, first + 24)]
    share = np.mean([(tokens == 1).mean() for tokens in batches])
    assert 0.4 < share < 0.8
