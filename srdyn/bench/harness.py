"""Tasks of lm-evaluation-harness on any model that is studied.

Needs the optional extra: `pip install -c constraints.txt -e '.[harness]'`. Whatever changes the model (an ablation that
is open, pruned heads) changes the outcome, because the harness calls `model.hf` itself.

Gao et al., The language model evaluation harness, https://github.com/EleutherAI/lm-evaluation-harness.
"""

import copy
import functools
import json
import numbers
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from lm_eval import evaluator, tasks
from lm_eval.api.task import Task
from lm_eval.models import huggingface

from srdyn import models

_FEWSHOT_SEED = 1234  # what `lm_eval run` takes
_brought_along = functools.cache(tasks.TaskManager)  # the index of lm_eval's own tasks, which takes seconds


def load(name: str, *, data: str | Path | None = None, folder: str | Path | None = None, **changes: Any) -> Task:
    """One task of lm_eval by its name, such as "gsm8k", with `changes` to its configuration, such as `num_fewshot=0`.

    `folder` holds task files (YAML) to look in instead of lm_eval's own. The items come from the hub, or from `data`, a
    local JSONL file with the fields of the task's data set; the examples in the prompt are then other items of it,
    unless the task brings its own. Raises ValueError for a name that is not that of a single task or too few items,
    OSError where the file cannot be read or the hub is out of reach.
    """
    manager = _brought_along() if folder is None else tasks.TaskManager(include_path=folder, include_defaults=False)
    entry = manager.task_index.get(name)
    if entry is None or entry.kind.name not in ("TASK", "PY_TASK"):
        raise ValueError(f"{name!r} is not a single task; `lm_eval ls subtasks` lists those that lm_eval brings along")
    local = {} if data is None else _from_file(Path(data), {**entry.cfg, **changes})
    # lm_eval changes a registered task only as a member of a group.
    group = {"group": "srdyn", "task": [{"task": name, **changes, **local}]}
    try:
        return manager.load(group)["tasks"][name]
    except ConnectionError as error:
        told = f"{name} reads its items from the Hugging Face hub, which is out of reach: give a local file (data=…)"
        raise OSError(f"{told}. datasets says: {error}") from error


def evaluate(model: models.Model, task: Task, *, limit: int | None = None) -> pd.DataFrame:
    """One line for every item and metric of the task: task, item, metric, value.

    Metrics are named as in lm_eval's results, with the filter that the answer went through
    ("exact_match,strict-match"); those of all items together (F1, perplexity) are left out. `limit` takes the first
    items only. Prompts longer than the configuration allows lose their beginning, which lm_eval reports. Items are read
    one by one, so that nothing is padded. The model is left in evaluation mode. Raises ValueError for a model without a
    tokenizer, and for a task that has no metric for single items.
    """
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, and tasks are text: load a folder that holds one")
    task.set_fewshot_seed(_FEWSHOT_SEED)
    name = task.config.task
    # The tokenizer is a copy because lm_eval gives one a padding token where there is none.
    lm = huggingface.HFLM(pretrained=model.hf, tokenizer=copy.deepcopy(model.tokenizer))
    results = evaluator.evaluate(lm=lm, task_dict={"tasks": {name: task}}, limit=limit, bootstrap_iters=0)
    rows = [
        (name, sample["doc_id"], f"{metric},{sample['filter']}", float(sample[metric]))
        for sample in results["samples"][name]
        for metric in sample["metrics"]
        if isinstance(sample[metric], numbers.Real)
    ]
    if not rows:
        raise ValueError(f"{name} has no metric that single items have a value of")
    return pd.DataFrame(rows, columns=["task", "item", "metric", "value"])


def _from_file(data: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The changes that make a task read its items from a file, and the examples of its prompts from the other items."""
    with data.open(encoding="utf-8") as lines:
        items = datasets.Dataset.from_list([json.loads(line) for line in lines if line.strip()])
    brings_examples = "samples" in (config.get("fewshot_config") or {})
    needed = 1 if brings_examples else 1 + (config.get("num_fewshot") or 0)
    if len(items) < needed:
        raise ValueError(f"{data} has {len(items)} items, and {needed} are needed: give more or another num_fewshot")
    splits = {"training_split": None, "validation_split": None, "test_split": "test"}
    examples = {} if brings_examples else {"fewshot_split": "test"}
    return {"custom_dataset": lambda **_: {"test": items}, **splits, **examples}
