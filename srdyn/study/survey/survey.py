"""Head tables of several models and their nulls over the same contexts."""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from srdyn import models
from srdyn.loading import processes, streaming
from srdyn.study.run import code, opened, store
from srdyn.study.survey import samples
from srdyn.study.survey.null_tables import COMMON, NULLS, Tables, available
from srdyn.text import documents, tasks

log = logging.getLogger(__name__)

_SETTLING = 120
"""Seconds after which what another machine has written must be seen here: network file systems show it late."""
_HELD_BY_EACH = 2**28
"""Bytes of weights up to which every process of this machine holds the model itself."""
_WORTH_WORKERS = 2**17
"""Tokens, times sources, that one process reads sooner than others have started."""
CODE = code.hash_of(__name__)
Reading = samples.Reading


def heads(names: Sequence[str | Path], reading: Reading, *, sources: Sequence[str] = NULLS) -> pd.DataFrame:
    """One row for every model, source, context, sample, layer, head and position, over all that `reading` names.

    `source` is `model`, or the null that the states came from: the `untrained` model; random keys and values under the
    model's own decays and write strengths (`mechanism`); the same with the decay and the write strength of the median
    head for all (`common decay`). What a model cannot have is left out, and logged.
    Finished contexts are kept in build/survey (`store.kept_dir`), so that a second call only reads them;
    several processes (`loading.processes`) share the work if they all make this call. Much work with a small model on a
    CPU is dealt out to `workers`: a script that makes this call needs its `if __name__ == "__main__":`.
    Columns: those of `strata.head_table`, document, kind, source, log_decay (NaN without decay) and write_strength
    (means over the context), `rank 1e-02` ….
    """
    kept, found = store.kept_dir() / "survey", []
    places = {name: documents.content_hash(name) for name in reading.domains if documents.is_place(name)}  # all there?
    # Other processes may be in other folders.
    domains = (str(Path(x).absolute()) if x in places and Path(x).exists() else x for x in reading.domains)
    reading = dataclasses.replace(reading, domains=tuple(domains))
    for name in tqdm(names, desc="models", leave=False, disable=not processes.is_first()):
        name = opened.found(name)
        model = opened.model(name, device=processes.device(), offload="auto")
        own = _readable(reading, model)
        made_by = dataclasses.asdict(own) | opened.made_by(name)
        made_by |= {"places": list(places.values()), "code": CODE}
        tables = Tables(model, own, store.RunStore(kept, made_by=made_by))
        wanted = available(model, sources)
        # The common decay comes last: it needs what the model did in every context.
        for together in ([x for x in wanted if x != COMMON], [x for x in wanted if x == COMMON]):
            _make(tables, together, (name, own, kept, json.dumps(made_by)))
            found += [tables.table(source, context) for context in own.names() for source in together]
    return pd.concat(found, ignore_index=True)


def _readable(reading: Reading, model: models.Model) -> Reading:
    """The reading without tasks, which is logged, where the tokenizer cannot write them; ValueError without one."""
    if model.tokenizer is None:
        needed = "put its tokenizer files (tokenizer.json, tokenizer_config.json) into the folder"
        raise ValueError(f"{model.name} has no tokenizer beside its weights, and what it reads is text: {needed}")
    reason = tasks.unwritable(model.tokenizer)
    if reason and reading.tasks:
        log.warning("%s reads no tasks (%s): %s", model.name, ", ".join(reading.tasks), reason)
    return dataclasses.replace(reading, tasks=()) if reason else reading


def _make(tables: Tables, sources: Sequence[str], opening: tuple) -> None:
    """Finish these sources in all contexts, together with the other processes."""
    left = [context for context in tables.reading.names() if tables.lacks(context, sources)]
    share = processes.share(left)
    tokens = len(share) * len(sources) * tables.reading.n * tables.reading.length
    if tokens >= _WORTH_WORKERS and _is_small(tables.model):
        done = opened.deal(_opened_again, [(opening, (context, sources)) for context in share])
    else:
        done = (tables.ask(context, sources) for context in share)
    list(tqdm(done, total=len(share), desc=tables.model.name, leave=False, disable=not processes.is_first()))
    processes.barrier()
    deadline = time.monotonic() + _SETTLING
    while lost := [context for context in left if tables.lacks(context, sources)]:
        if time.monotonic() > deadline:
            told = f"finished by other processes, but {tables.kept.folder} does not hold them"
            raise FileNotFoundError(f"{', '.join(lost)}: {told}; build/ must lie in a folder that all machines share")
        time.sleep(1)


def _is_small(model: models.Model) -> bool:
    """Whether several processes of this machine can hold the model, and are not there already."""
    weights = sum(parameter.nbytes for parameter in model.hf.parameters())
    here = processes.count() == 1 and model.device.type == "cpu" and not streaming.is_attached(model.hf)
    return here and weights <= _HELD_BY_EACH


def _opened_again(name: str | Path, reading: Reading, kept: Path, made_by: str) -> Tables:
    """The same tables in another process of this machine."""
    model, about = opened.model(name, device="cpu"), json.loads(made_by)
    if opened.identity(name) != about["weights"] or about["code"] != CODE:
        raise RuntimeError(f"{name} or srdyn changed while it was read: leave their files alone and start again")
    return Tables(model, reading, store.RunStore(kept, made_by=about))
