import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from transformers import AutoTokenizer

from srdyn import ablation, models, pruning
from srdyn.loading import files

lm_eval = pytest.importorskip("lm_eval")
harness = pytest.importorskip("srdyn.bench.harness")

LM_EVAL_TASKS = Path(lm_eval.__file__).parent / "tasks"
GSM8K = LM_EVAL_TASKS / "gsm8k"
ITEMS = Path(__file__).parents[1] / "data" / "gsm8k_like.jsonl"
ROWS = [json.loads(line) for line in ITEMS.read_text().splitlines()]
QUESTIONS = [row["question"] for row in ROWS]
SHORT = {"until": ["Question:"], "do_sample": False, "max_gen_toks": 12}
LINEAR, FULL = "linear_attention", "full_attention"
FAMILIES = {
    "hybrid": (small.qwen3_next, [LINEAR, LINEAR, FULL, LINEAR]),
    "pure": (small.qwen3_next, [LINEAR] * 3),
    "qwen35": (small.qwen35, [LINEAR, FULL, LINEAR]),
}


@pytest.fixture(params=FAMILIES)
def reader(request, monkeypatch, tokenizer):
    """A small random model that reads text."""
    build, kinds = FAMILIES[request.param]
    monkeypatch.setitem(small.SIZES, "vocab_size", len(tokenizer))
    return models.from_hf(build(kinds), tokenizer, name=request.param)


@pytest.fixture
def hybrid(monkeypatch, tokenizer):
    monkeypatch.setitem(small.SIZES, "vocab_size", len(tokenizer))
    return models.from_hf(small.qwen3_next([LINEAR, FULL, LINEAR]), tokenizer, name="hybrid")


def gsm8k(*, data=ITEMS, num_fewshot=0):
    """lm_eval's own task on our three items, found without the index of its other tasks."""
    return harness.load("gsm8k", data=data, folder=GSM8K, num_fewshot=num_fewshot, generation_kwargs=SHORT)


def own_task(folder, rows, **config):
    """A task of our own on these rows."""
    base = {"task": "own", "dataset_path": "none", "test_split": "validation", "doc_to_text": "{{question}}"}
    (folder / "own.yaml").write_text(json.dumps(base | {"doc_to_target": "{{answer}}"} | config))
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return harness.load("own", data=folder / "own.jsonl", folder=folder)


def writing(folder, answers):
    """A task whose outcome is 1 where the model writes exactly this answer after the question."""
    rows = [{"question": question, "answer": answer} for question, answer in zip(QUESTIONS, answers, strict=True)]
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    return own_task(folder, rows, output_type="generate_until", generation_kwargs=SHORT, metric_list=exact)


def written(model, question):
    """The 12 most probable tokens after the question, each from a pass over everything before it."""
    tokens = model.tokenizer(question, return_tensors="pt")["input_ids"]
    start = tokens.shape[1]
    with torch.no_grad():
        while tokens.shape[1] < start + SHORT["max_gen_toks"] and tokens[0, -1] != model.tokenizer.eos_token_id:
            tokens = torch.cat([tokens, model.hf(tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return model.tokenizer.decode(tokens[0, start:], skip_special_tokens=True)


def log_likelihood(model, question, answer):
    """Sum of the log-probabilities of the answer's tokens after the question, in float64."""
    before, after = (model.tokenizer(text)["input_ids"] for text in (question, answer))
    with torch.no_grad():
        logits = model.hf(torch.tensor([before + after]), use_cache=False).logits[0].double()
    return float(logits.log_softmax(-1)[range(len(before) - 1, len(before + after) - 1), after].sum())


def answering(model, monkeypatch, answer):
    """Let the model always write this answer; the prompts that it gets are listed."""
    prompts = []

    def generate(input_ids, **_):
        prompts.append(input_ids)
        return torch.cat([input_ids, model.tokenizer(answer, return_tensors="pt")["input_ids"]], dim=1)

    monkeypatch.setattr(model.hf, "generate", generate)
    return prompts


def values(frame):
    return [list(part) for _, part in frame.groupby("metric", sort=False)["value"]]


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        (" 1000 + 48 = 1048\n#### 1048", [0, 1, 0], [0, 1, 0]),
        (" There are 5 rolls.", [0, 0, 0], [1, 0, 0]),
        ("\n#### 7\nQuestion: 3?", [0, 0, 1], [0, 0, 1]),
        (" nobody knows", [0, 0, 0], [0, 0, 0]),
    ],
)
def test_gsm8k_scores_what_the_model_writes_about_our_items(hybrid, monkeypatch, answer, strict, flexible):
    prompts = answering(hybrid, monkeypatch, answer)
    frame = harness.evaluate(hybrid, gsm8k())
    assert values(frame) == [strict, flexible]
    assert list(frame.columns) == ["task", "item", "metric", "value"]
    assert set(frame["task"]) == {"gsm8k"}
    assert list(frame["item"]) == [0, 1, 2, 0, 1, 2]
    assert list(frame["metric"].unique()) == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert values(harness.evaluate(hybrid, gsm8k(), limit=2)) == [strict[:2], flexible[:2]]
    assert {hybrid.tokenizer.decode(p[0]) for p in prompts} == {f"Question: {q}\nAnswer:" for q in QUESTIONS}


def test_what_is_generated_is_the_models_first_choice(reader, tmp_path):
    first, second, third = (written(reader, question) for question in QUESTIONS)
    assert len({first, second, third, "", "other"}) == 5
    frame = harness.evaluate(reader, writing(tmp_path, [first, first, third]))
    assert values(frame) == [[1, 0, 1]]


def test_ablated_and_pruned_models_answer_for_themselves(hybrid, tmp_path):
    heads = torch.zeros(hybrid.grid.L, hybrid.grid.H, dtype=torch.bool)
    heads[0, 1:3] = heads[1, 0] = True
    with ablation.ablate_heads(hybrid, heads):
        task = writing(tmp_path, [written(hybrid, question) for question in QUESTIONS])
        ablated = harness.evaluate(hybrid, task)
    assert values(ablated) == [[1, 1, 1]]
    assert values(harness.evaluate(pruning.prune_heads(hybrid, ~heads), task)) == [[1, 1, 1]]
    assert values(harness.evaluate(hybrid, task)) == [[0, 0, 0]]


def test_a_choice_is_the_likeliest_answer(hybrid, tmp_path):
    choices = ["5", "1,048"]
    likeliest = [int(np.argmax([log_likelihood(hybrid, q, " " + c) for c in choices])) for q in QUESTIONS]
    rows = [{"question": q, "answer": n, "choices": choices} for q, n in zip(QUESTIONS, likeliest, strict=True)]
    rows[1]["answer"] = 1 - likeliest[1]
    mean = {"aggregation": "mean", "higher_is_better": True}
    metrics = [{"metric": "acc"} | mean, {"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    columns = {"doc_to_choice": "choices", "doc_to_target": "answer"}
    task = own_task(tmp_path, rows, output_type="multiple_choice", **columns, metric_list=metrics)
    frame = harness.evaluate(hybrid, task)
    assert list(frame["metric"].unique()) == ["acc,none"]
    assert values(frame) == [[1, 0, 1]]


def test_examples_in_the_prompt_are_the_other_items(hybrid, monkeypatch):
    prompts, task = answering(hybrid, monkeypatch, ""), gsm8k(num_fewshot=2)
    harness.evaluate(hybrid, task)
    harness.evaluate(hybrid, task)
    texts = [hybrid.tokenizer.decode(prompt[0]) for prompt in prompts]
    assert texts[:3] == texts[3:]
    asked = [QUESTIONS.index(text.rsplit("Question: ", 1)[1].removesuffix("\nAnswer:")) for text in texts]
    assert sorted(asked) == [0, 0, 1, 1, 2, 2]
    for text, own in zip(texts, asked, strict=True):
        assert [text.count(question) for question in QUESTIONS] == [1, 1, 1]
        assert [row["answer"] in text for row in ROWS] == [item != own for item in range(3)]


def test_examples_that_a_task_brings_along_stay(hybrid, monkeypatch):
    prompts = answering(hybrid, monkeypatch, "")
    harness.evaluate(hybrid, harness.load("gsm8k_cot", data=ITEMS, folder=GSM8K))
    for prompt in prompts:
        text = hybrid.tokenizer.decode(prompt[0])
        assert text.startswith("Q: There are 15 trees in the grove.")
        assert [question in text for question in QUESTIONS].count(True) == 1


# lm_eval's own file for MATH holds "\%", which Python reports whenever that file is not compiled yet.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:SyntaxWarning")
def test_math_500_reads_a_file_in_its_format(hybrid, monkeypatch, tmp_path):
    solutions = {"What is $2+3$?": r"It is $\boxed{5}$.", "Halve one.": r"We get $\boxed{\frac{1}{2}}$."}
    rows = [{"problem": p, "solution": s, "answer": "unused"} for p, s in solutions.items()]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = answering(hybrid, monkeypatch, r" So it is $\frac12$.")
    folder = LM_EVAL_TASKS / "hendrycks_math"
    task = harness.load("hendrycks_math500", data=tmp_path / "math.jsonl", folder=folder)
    assert values(harness.evaluate(hybrid, task)) == [[0, 1]]
    assert {hybrid.tokenizer.decode(p[0]) for p in prompts} == {f"Problem: {p}\nAnswer:" for p in solutions}


def test_neither_the_tokenizer_nor_the_global_random_numbers_change(hybrid):
    bare = dataclasses.replace(hybrid, tokenizer=AutoTokenizer.from_pretrained(files.data_dir() / "tokenizer"))
    bare.tokenizer.pad_token = None
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    harness.evaluate(bare, gsm8k(num_fewshot=1), limit=1)
    after = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    assert bare.tokenizer.pad_token is None
    assert bare.tokenizer.padding_side == "right"
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


@pytest.mark.parametrize("name", ["gsm9k", "math_word_problems"])
def test_what_is_not_a_single_task_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is not a single task"):
        harness.load(name, folder=GSM8K)


def test_a_file_with_too_few_items_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 3 items, and 4 are needed"):
        gsm8k(num_fewshot=3)
    with pytest.raises(ValueError, match="has 0 items, and 1 are needed"):
        own_task(tmp_path, [])
    with pytest.raises(FileNotFoundError, match="missing"):
        gsm8k(data=tmp_path / "missing")


def test_a_hub_out_of_reach_is_said(monkeypatch):
    def load_dataset(**_):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(OSError, match=r"gsm8k reads its items from the Hugging Face hub.*data=.*Couldn't reach"):
        harness.load("gsm8k", folder=GSM8K)


def test_a_model_without_a_tokenizer_is_refused(hybrid):
    with pytest.raises(ValueError, match="hybrid has no tokenizer"):
        harness.evaluate(dataclasses.replace(hybrid, tokenizer=None), gsm8k())


def test_a_task_without_values_of_single_items_is_refused(hybrid, tmp_path):
    perplexity = [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}]
    task = own_task(tmp_path, ROWS, output_type="loglikelihood_rolling", metric_list=perplexity)
    with pytest.raises(ValueError, match="own has no metric that single items have"):
        harness.evaluate(hybrid, task)
