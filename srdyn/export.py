"""Pruned models as ordinary checkpoints of their family, which transformers, vLLM, SGLang and llama.cpp read as such.

All of these read one number of heads for the whole model, so that a cut must be the same in every layer
(`pruning.select(..., uniform=True)`). Where value heads share keys, whole key groups go, or equally many of each, or
else every value head that stays gets a copy of its key. Nothing is trained or tuned.
"""

import copy
import functools
import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedConfig

from srdyn import architectures, models
from srdyn.architectures.counts import COUNTS, REASONS, Counts
from srdyn.loading import checkpoints, engines, folders, markdown, report, streaming

NORMS = (
    "A norm over a group of heads has fewer of them here: its weights make up for that, its ε, which the configuration "
    "shares with other norms, does not, so that the logits are those of the pruned model up to ε."
)


class Shape(NamedTuple):
    """How many value heads every layer keeps, how many keys or groups they share, whether keys were repeated for it."""

    heads: int
    keys: int
    repeated: bool = False


def save(model: models.Model, folder: str | Path, *, cost: pd.DataFrame | None = None) -> Path:
    """Write a model as an ordinary checkpoint of its family: `AutoModelForCausalLM.from_pretrained` reads it.

    Weights (safetensors, in the model's precision), a configuration without a key of ours, generation settings,
    tokenizer, and README.md (`card`). The logits are those of the pruned model, but for what `NORMS` says. Of a model
    that also sees the part that reads is written; one without attention says `use_cache` false where transformers fails
    with a cache. Weights that come from elsewhere are written a file for each layer, of which one is held at a time.
    Raises ValueError as `shape` does, FileExistsError and OSError as `pruning.save` does.
    """
    config, target, repeat_keys = configuration(model), Path(folder).expanduser(), shape(model).repeated

    def as_stock(site: architectures.Site) -> None:
        if site.recipe.is_pruned(site.mixer):
            site.recipe.as_stock(site.mixer, repeat_keys=repeat_keys)

    with torch.device("meta"):
        stock = type(model.hf)._from_config(config, dtype=model.hf.dtype)
    stock.generation_config = copy.deepcopy(model.hf.generation_config)
    if not engines.can_cache(engines.sizes(model.hf)):
        stock.generation_config.use_cache = False
    with folders.replacing(target, wanted=report.weight_bytes(stock)[0]) as new:
        site = architectures.sites(stock)[0]
        named = functools.partial(site.recipe.as_engines_read, site.mixer, stock)
        weights = streaming.Changed(model.hf, as_stock)
        streaming.save(stock, new, weights, apart=streaming.is_attached(model.hf), named=named)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(new)
        (new / "README.md").write_text(card(model, cost), "utf-8")
    return target


def shape(model: models.Model) -> Shape:
    """What an ordinary configuration would say of the model's heads.

    Raises ValueError for a family whose configuration cannot say it, and for layers that keep unequal numbers of heads
    or of groups: then with the nearest cut that can be said.
    """
    counts, sites = _counts(model), architectures.sites(model.hf)
    held = sorted({len(layer.heads) for layer in model.layers})
    sharing = {tuple(site.recipe.sharing(site.mixer)) for site in sites}
    heads, keys = held[0], len(set(next(iter(sharing))))
    alike = heads > 0 and heads % keys == 0 and sharing == {tuple(head * keys // heads for head in range(heads))}
    if len(held) > 1 or not heads:
        wrong = f"{heads} to {held[-1]} heads in a layer"
    elif not (alike or counts.repeats):
        wrong = "heads of unequal numbers of groups"
    elif heads not in _allowed(model, counts, step=1):
        wide = f"{heads} heads of {model.grid.V} channels"
        wrong = f"{wide}, which is no whole multiple ({counts.expand}) of its hidden size"
    else:
        return Shape(heads, keys) if alike else Shape(heads, heads, repeated=True)
    raise ValueError(f"{model.name} keeps {wrong}{_nearest(model, counts)}")


def choices(model: models.Model) -> dict[str, int]:
    """What `pruning.select(..., uniform=True)` has to know of a model: value heads go by whole key, or by group alike.

    Without it, single value heads go, and `save` repeats keys where the family lets it.
    """
    counts, site = _counts(model), architectures.sites(model.hf)[0]
    H, keys, _, _ = site.recipe.unpruned(site.mixer)
    if counts.repeats:
        return {"whole": H // keys}
    return {} if counts.keys is None else {"groups": keys}


def configuration(model: models.Model) -> PreTrainedConfig:
    """The family's own configuration with the numbers of `shape`, as which it raises."""
    found, counts, config = shape(model), _counts(model), model.hf.config
    text = config.get_text_config(decoder=True)
    stated = {name: value for name, value in config.to_dict().items() if not name.startswith("srdyn_")}
    inner = stated if text is config else next(stated[x] for x in config.sub_configs if getattr(config, x) is text)
    width = found.heads * model.grid.V
    numbers = {"heads": found.heads, "keys": found.keys, "width": width, "expand": width // text.hidden_size}
    inner.update({getattr(counts, x): number for x, number in numbers.items() if getattr(counts, x) is not None})
    if not engines.can_cache(engines.sizes(model.hf)):
        inner["use_cache"] = False
    if counts.shares:
        inner["expand_k"], inner["expand_v"] = (found.heads * n / text.hidden_size for n in model.grid[2:])
    if "linear_attn_config" in inner:  # Kimi Linear's own, which goes before the others
        inner["linear_attn_config"] = inner["linear_attn_config"] | {"num_heads": found.heads}
    return type(config).from_dict(stated)


def realised(model: models.Model, *, tp: int = 1, state_itemsize: int = 4) -> pd.DataFrame:
    """What a cut saves of each engine's memory for a sequence: a row an engine, bytes on one of `tp` devices.

    `before` and `after` as `loading.engines.state_bytes` counts them; `after` is NaN where the engine cannot load the
    model, and `lacks` says what it asks for in vain. Beside it the bytes of all weights, which are those of any engine.
    """
    options = {"tp": tp, "state_itemsize": state_itemsize}
    table = pd.DataFrame({"before": engines.state_bytes(engines.sizes(model.hf), **options)})
    try:
        vain = demands(model, tp=tp).query("not ok")
    except ValueError as error:
        table = table.assign(after=math.nan, lacks=str(error))
    else:
        after, unloaded = pd.Series(engines.state_bytes(_cut(model), **options)), vain["engine"][vain["needed"]]
        lacks = (vain["asks"] + " (" + vain["ours"] + ")").groupby(vain["engine"]).agg("; ".join)
        table = table.assign(after=after.mask(after.index.isin(unloaded)), lacks=lacks).fillna({"lacks": ""})
    config = copy.deepcopy(model.hf.config)
    vars(config).pop("srdyn_kept", None)
    whole = checkpoints.outline(config, dtype=model.hf.dtype)
    table["weights_before"], table["weights_after"] = (report.weight_bytes(hf)[0] for hf in (whole, model.hf))
    return table.rename_axis("engine").reset_index()


def keys_left(whole: engines.Sizes, heads: int) -> int:
    """Keys or groups of a layer that `heads` are kept of: whole keys go, or each head gets one; groups all stay."""
    counts = COUNTS.get(whole.mixer, Counts(""))
    if counts.keys is not None and not counts.repeats:
        return whole.keys
    return heads if whole.keys * heads % whole.heads else whole.keys * heads // whole.heads


def demands(model: models.Model, *, tp: int = 1) -> pd.DataFrame:
    """What each engine asks of the exported model's heads, our value, whether it is met; raises as `shape` does."""
    return engines.demands(_cut(model), tp=tp)


def card(model: models.Model, cost: pd.DataFrame | None = None) -> str:
    """The README.md of an exported model: what was removed, what it saves where, what it cost as far as is known."""
    found, whole, L, H = shape(model), engines.sizes(model.hf), model.grid.L, model.grid.H
    norms = [NORMS] if whole.keys * found.heads != H * found.keys and not _counts(model).repeats else []
    how = ", a copy of its key for each" if found.repeated else f" on {found.keys} keys or groups"
    kept = [(str(layer.index), ", ".join(map(str, layer.heads))) for layer in model.layers]
    rows = list(realised(model).itertuples())
    before, after = map(report.in_mib, rows[0][-2:])
    saved = [
        (row.engine, *("–" if math.isnan(x) else report.in_mib(int(x)) for x in (row.before, row.after)), row.lacks)
        for row in rows
    ]
    parts = [
        f"# {model.name}: {found.heads} of {H} recurrent heads in each of {L} layers",
        f"Of {H} heads a layer {found.heads} were kept{how}; the others' weights, states and convolutions are gone. "
        f"Weights: {before} before, {after} after. It is an ordinary "
        f"{type(model.hf).__name__}: `AutoModelForCausalLM.from_pretrained` reads it, nothing else is needed.",
        *norms,
        "## What it cost",
        "Not measured." if cost is None else markdown.table(list(cost.columns), cost.astype(str).to_numpy().tolist()),
        "## What it saves",
        "Recurrent memory of one sequence, one device, float32 states, by each engine's own formula; the engines were "
        "not run.",
        markdown.table(["engine", "before", "after", "asks for in vain"], saved),
        "## Heads that were kept, by their old numbers",
        markdown.table(["layer", "heads"], kept),
    ]
    return "\n\n".join(parts) + "\n"


def _counts(model: models.Model) -> Counts:
    name = type(architectures.sites(model.hf)[0].mixer).__name__
    if name not in COUNTS:
        reason = REASONS.get(name, f"no configuration is known for {name}")
        raise ValueError(f"{model.name} cannot be written as an ordinary checkpoint with fewer heads: {reason}")
    return COUNTS[name]


def _allowed(model: models.Model, counts: Counts, *, step: int) -> list[int]:
    """The numbers of heads in every layer that the family's configuration can state."""
    hidden, _, H, _, V = model.hf.config.get_text_config(decoder=True).hidden_size, *model.grid
    return [n for n in range(step, H + 1, step) if counts.expand is None or n * V % hidden == 0]


def _nearest(model: models.Model, counts: Counts) -> str:
    """The cut closest to the model's that can be said, as the end of a sentence."""
    chosen, H = choices(model), model.grid.H
    mean = sum(len(layer.heads) for layer in model.layers) / model.grid.L
    fewer = [n for n in _allowed(model, counts, step=max(chosen.values(), default=1)) if n < H]
    if not fewer:
        return ", and an ordinary checkpoint has one number for all; there is no smaller one than its own"
    n = min(fewer, key=lambda x: abs(x - mean))
    options = ", ".join(f"{name}={value}" for name, value in chosen.items() if value > 1)
    call = f"pruning.select(score, {1 - n / H:.4g}, uniform=True{', ' if options else ''}{options})"
    return f", and an ordinary checkpoint has one number for all: the nearest keeps {n} in each, {call}"


def _cut(model: models.Model) -> engines.Sizes:
    """The recurrent layers as the exported model has them."""
    found = shape(model)
    return engines.sizes(model.hf)._replace(heads=found.heads, keys=found.keys)
