import copy
import re

import numpy as np
import pytest

from srdyn.text import tasks


def writer_for(tokenizer, *, seed=0, pool=tasks.SYMBOLS):
    """Its text is token 1 over and over in one domain, token 2 in the other: no name, value, digit or mark."""
    text = tasks.Text({"ones": np.full(5000, 1), "twos": np.full(5000, 2)})
    return tasks.Writer(tasks.Alphabet.of(tokenizer), text, np.random.default_rng(seed), pool=pool)


def answers(passage, item):
    return [token for token, number in zip(passage.tokens, passage.items, strict=True) if number == item]


def test_names_and_values_are_words_of_one_token_and_differ(tokenizer):
    alphabet = tasks.Alphabet.of(tokenizer)
    symbols = [*alphabet.names, *alphabet.values]
    assert len(set(symbols)) == 2 * tasks.SYMBOLS
    assert all(re.fullmatch(r" [a-z]{3,}", tokenizer.decode([i])) for i in symbols)
    assert tokenizer.decode(alphabet.digits) == "0123456789"
    assert all(tokenizer.decode([token]) == mark for mark, token in alphabet.marks.items())
    assert tokenizer.decode([*alphabet.lead, *alphabet.verb]) == "The key of is"


def test_a_vocabulary_with_too_few_words_is_refused(tokenizer):
    poor = copy.deepcopy(tokenizer)
    poor.get_vocab = lambda: {"Ġfew": 0, "Ġwords": 1, "Ġno": 2}
    with pytest.raises(ValueError, match="has 2"):
        tasks.Alphabet.of(poor)


@pytest.mark.parametrize("seed", range(4))
def test_chains_hold_what_their_arithmetic_says(tokenizer, seed):
    passage = tasks.Passage()
    writer_for(tokenizer, seed=seed).chain(passage, 8, item=3)
    text = tokenizer.decode(passage.tokens).strip()
    value, steps = int(text[0]), re.findall(r"([+-])(\d)=(\d)", text)
    assert re.fullmatch(r"\d([+-]\d=\d){8}", text)
    for sign, operand, result in steps:
        value = eval(f"({value}{sign}{operand}) % 10")
        assert int(result) == value
    assert tokenizer.decode(answers(passage, 3)) == "".join(result for _, _, result in steps)


@pytest.mark.parametrize("seed", range(8))
def test_sums_are_worked_out_correctly(tokenizer, seed):
    passage = tasks.Passage()
    writer_for(tokenizer, seed=seed).sum(passage, item=7)
    text = tokenizer.decode(passage.tokens).strip()
    a, b, units, tens, total = re.fullmatch(r"(\d\d)\+(\d\d):(\S+?):(\S+)=(\d+)", text).groups()
    assert int(total) == int(a) + int(b)
    left, result = units.split("=")
    assert left == f"{a[1]}+{b[1]}"
    assert int(result) == eval(left)
    left, result = tens.split("=")
    assert left == f"{a[0]}+{b[0]}+{int(int(a[1]) + int(b[1]) > 9)}"
    assert int(result) == eval(left)
    assert tokenizer.decode(answers(passage, 7)) == text.split(":", 1)[1]


def test_recall_answers_with_the_value_of_the_name_that_is_asked(tokenizer):
    writer, passage = writer_for(tokenizer), tasks.Passage()
    queries = [5, 0, 5, 2]
    writer.recall(passage, 6, gap=20, queries=queries, item=1)
    mark, newline = (writer.alphabet.marks[m] for m in "?\n")
    assert passage.tokens[0] == newline
    pairs = np.reshape(passage.tokens[1:13], (6, 2))
    assert len(set(pairs[:, 0])) == 6
    assert set(passage.tokens[14:34]) <= {1, 2}
    assert passage.tokens[35] == mark
    assert np.array_equal(np.reshape(passage.tokens[36:44], (4, 2)), pairs[queries])
    assert [answers(passage, item) for item in (1, 2, 3, 4)] == [[value] for value in pairs[queries, 1]]


@pytest.mark.parametrize("count", [1, 4])
def test_needles_are_asked_for_the_value_that_was_stated(tokenizer, count):
    passage = tasks.Passage()
    writer_for(tokenizer, seed=count).needles(passage, count, length=256, item=1)
    assert len(passage.tokens) == len(passage.weights) == len(passage.items) == 256
    found = re.findall(r"\nThe key of ([a-z]+) is ([a-z]+)\.\n", tokenizer.decode(passage.tokens))
    stated, asked = found[:count], found[count:]
    assert len(found) == 2 * count
    assert sorted(stated) == sorted(asked)
    assert [tokenizer.decode(answers(passage, i + 1)).strip() for i in range(count)] == [value for _, value in asked]
    assert np.argmax(np.array(passage.items) > 0) >= 256 - count * writer_for(tokenizer).sentence_length()


def test_needles_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="4 needles do not fit into 64 tokens"):
        writer_for(tokenizer).needles(tasks.Passage(), 4, length=64)


def test_facts_are_stated_without_weight_and_asked_with_it(tokenizer):
    passage = tasks.Passage()
    writer_for(tokenizer).needles(passage, 2, length=128)
    weights, items = np.array(passage.weights), np.array(passage.items)
    assert set(weights[items == tasks.KINDS["needles"]]) == {tasks.ANSWER_WEIGHT}
    assert set(weights[np.isin(passage.tokens, [1, 2])]) == {1.0}


def test_a_small_pool_limits_the_symbols(tokenizer):
    writer, passage = writer_for(tokenizer, pool=12), tasks.Passage()
    for _ in range(20):
        writer.recall(passage, 8, queries=range(8))
    alphabet = writer.alphabet
    used = set(passage.tokens) - set(alphabet.marks.values())
    assert used == {*alphabet.names[:12], *alphabet.values[:12]}


def test_snippets_are_consecutive_tokens_of_any_domain():
    text, rng = tasks.Text({"a": np.arange(10), "b": np.arange(100, 110)}), np.random.default_rng(0)
    assert all(np.array_equal(np.diff(text.snippet(4, rng=rng)), [1, 1, 1]) for _ in range(10))
    assert {text.snippet(1, rng=rng)[0] >= 100 for _ in range(30)} == {True, False}
    with pytest.raises(ValueError, match="11 tokens was asked for, the text has 10"):
        text.snippet(11, rng=rng)
    with pytest.raises(ValueError, match="at least one domain"):
        tasks.Text({})


def test_a_repeat_holds_its_snippet_twice():
    text = tasks.Text({"a": np.arange(1000)})
    alphabet = tasks.Alphabet(np.array([]), np.array([]), np.array([]), {"\n": -1}, [], [])
    passage = tasks.Passage()
    tasks.Writer(alphabet, text, np.random.default_rng(0)).repeat(passage, 30)
    assert passage.tokens[:31] == passage.tokens[31:]
