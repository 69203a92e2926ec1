"""Head tables of several models and their nulls over the same contexts."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm.auto import tqdm

from srdyn import (
    architectures,
    documents,
    models,
    nulls,
    parameters,
    processes,
    readings,
    reference,
    spectra,
    speedups,
    states,
    store,
    strata,
    tasks,
)

log = logging.getLogger(__name__)

MODEL = "model"
UNTRAINED, MECHANISM, PERMUTED, COMMON = "untrained", "mechanism", "permuted decays", "common decay"
NULLS = (UNTRAINED, MECHANISM, PERMUTED, COMMON)
SETTLING = 120
"""Seconds after which what another machine has written must be seen here: network file systems show it late."""
SWEEP = (1e-2, 1e-3, 1e-5, 1e-6)
"""Thresholds that the rank is also taken at, in the columns `rank 1e-02` …"""

Reading = readings.Reading
Gates = tuple[Float[Tensor, "L B T H"], Float[Tensor, "L B T H"]]


def heads(names: Sequence[str | Path], reading: Reading, *, sources: Sequence[str] = NULLS) -> pd.DataFrame:
    """One row for every model, source, context, sample, layer, head and position, over all that `reading` names.

    `source` is `model`, or the null that the states came from: the `untrained` model; random keys and values under the
    model's own decays and write strengths (`mechanism`); the same with heads exchanged at random over the model, alike
    in every context (`permuted decays`); the same with one decay and one write strength for all heads, tokens and
    contexts, those of the median head (`common decay`). A null has as many samples as its model, since agreement grows
    with their number. Nulls are made for models of seed 0 alone. What a model cannot have is left out, which is logged:
    one that is no reference model has no `untrained` null, one whose states follow another rule none of the others.
    Finished contexts are kept in build/survey, so that a second call only reads them; several processes
    (`srdyn.processes`) share the work if they all make this call, or `fill`.
    Columns: those of `strata.head_table`, document, kind, source, log_decay (NaN without decay) and write_strength
    (means over the context), `rank 1e-02` ….
    """
    finished = _finished(names, reading, sources)
    return pd.concat((of_model.table(*item) for of_model, items in finished for item in items), ignore_index=True)


def fill(names: Sequence[str | Path], reading: Reading, *, sources: Sequence[str] = NULLS) -> None:
    """Do this process's share of what `heads` would, and put nothing together."""
    for _ in _finished(names, reading, sources):
        pass


def _finished(
    names: Sequence[str | Path], reading: Reading, sources: Sequence[str]
) -> Iterator[tuple["_Finished", list[tuple[str, str]]]]:
    """Each model with its (source, context) pairs in the order of the table, when all processes have made them."""
    made_by = _made_by(reading)
    for name in tqdm(names, desc="models", disable=not processes.is_first()):
        name = found(name)
        model = models.load(name, device=processes.device(), offload="auto")
        speedups.use_if_fit(model.hf)
        own = _readable(reading, model)
        finished = _Finished(model, own, made_by | {"weights": identity(model, name), "tasks": own.tasks})
        wanted = _sources(model, sources)
        early = [source for source in wanted if source != COMMON]
        late = [source for source in wanted if source == COMMON]
        # The common decay comes last: it needs what the model did in every context.
        for together in filter(None, (early, late)):
            finished.make(together)
        items = itertools.chain(itertools.product(own.names(), early), itertools.product(own.names(), late))
        yield finished, [(source, context) for context, source in items]


def _made_by(reading: Reading) -> dict[str, object]:
    """What the tables of any model depend on besides its weights. Raises where a domain is not there."""
    return {
        **dataclasses.asdict(reading),
        "code": store.content_hash(Path(__file__).parent),
        "contexts": store.content_hash(store.data_dir() / "contexts"),
        "places": [documents.content_hash(name) for name in reading.domains if documents.is_place(name)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _readable(reading: Reading, model: models.Model) -> Reading:
    """The reading without the tasks, which is logged, where the model's tokenizer has no words to write them with.

    Raises ValueError for a model without a tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError(
            f"{model.name} has no tokenizer beside its weights, and what it reads is text: put its tokenizer files "
            "(tokenizer.json, tokenizer_config.json) into the folder"
        )
    try:
        tasks.Alphabet.of(model.tokenizer)
    except ValueError as error:
        if reading.tasks:
            log.warning("%s reads no tasks (%s): %s", model.name, ", ".join(reading.tasks), error)
        return dataclasses.replace(reading, tasks=())
    return reading


def _sources(model: models.Model, sources: Sequence[str]) -> list[str]:
    """The model and those of its nulls that it can have; a log line says which it cannot, and why."""
    if model.seed:
        return [MODEL]
    lacking = {}
    if not _is_reference(model):
        lacking["what it was started from is not known"] = [UNTRAINED]
    if not follows_gated_delta(model):
        lacking["its states do not follow the gated delta rule with one decay a head"] = [MECHANISM, PERMUTED, COMMON]
    elif not forgets(model):
        lacking["its heads do not forget"] = [PERMUTED, COMMON]
    for why, nulls_of_it in lacking.items():
        if out := [source for source in sources if source in nulls_of_it]:
            which = f"{', '.join(out)} null{'s' if len(out) > 1 else ''}"
            log.warning("%s is shown without its %s: %s", model.name, which, why)
            sources = [source for source in sources if source not in out]
    return [MODEL, *sources]


def _is_reference(model: models.Model) -> bool:
    return model.seed is not None and hasattr(model.hf.config, "srdyn_kind")


class _Finished:
    """The tables of one model, made when asked for the first time."""

    def __init__(self, model: models.Model, reading: Reading, made_by: dict[str, object]) -> None:
        self.model, self.reading = model, reading
        self.kept = store.RunStore(kept_in(), made_by=made_by)
        self._samples = functools.lru_cache(maxsize=1)(lambda name: reading.samples(name, model.tokenizer))
        self._last: tuple[str, Gates] | None = None

    def make(self, sources: Sequence[str]) -> None:
        """Finish these sources in all contexts, together with the other processes."""
        left = [context for context in self.reading.names() if self._lacks(context, sources)]
        bar = tqdm(processes.share(left), desc=self.model.name, leave=False, disable=not processes.is_first())
        for context, source in itertools.product(bar, sources):
            self.table(source, context)
        processes.barrier()
        deadline = time.monotonic() + SETTLING
        while lost := [context for context in left if self._lacks(context, sources)]:
            if time.monotonic() > deadline:
                raise FileNotFoundError(
                    f"{', '.join(lost)} were finished by other processes, but {self.kept.folder} does not hold them: "
                    "build/ must lie in a folder that all machines share"
                )
            time.sleep(1)

    def table(self, source: str, context: str) -> pd.DataFrame:
        key = _key(source, context)
        if not self.kept.has(key):
            self.kept.put(key, self._make(source, context))
        return self.kept.get(key)

    def _lacks(self, context: str, sources: Sequence[str]) -> bool:
        return not all(self.kept.has(_key(source, context)) for source in sources)

    def _make(self, source: str, context: str) -> pd.DataFrame:
        make: dict[str, Callable] = {
            MODEL: self._model,
            UNTRAINED: self._untrained,
            MECHANISM: self._mechanism,
            PERMUTED: self._permuted,
            COMMON: self._common,
        }
        if source not in make:
            raise ValueError(f"no source is called {source!r}; there are {', '.join(make)}")
        return make[source](context).assign(source=source, kind=kind(self.model))

    def _model(self, context: str) -> pd.DataFrame:
        sigma, gates = self._read(self.model, context)
        self._last = context, gates
        return self._tidy(sigma, context, gates)

    def _untrained(self, context: str) -> pd.DataFrame:
        sigma, gates = self._read(untrained(self.model), context)
        return self._tidy(sigma, context, gates)

    def _read(self, model: models.Model, context: str) -> tuple[Float64[Tensor, "L B C H D"], Gates]:
        tokens = self._samples(context).tokens
        measure = functools.partial(spectra.singular_values, thresholds=(self.reading.eps, *SWEEP))
        sigmas, gates = [], []
        for part in tokens.split(models.batch_size(model, tokens.shape[1])):
            with states.gates_of(model, *part.shape) as found:
                sigmas.append(states.trace(model, part, self.reading.positions, measure=measure))
            gates.append(found)
        g, beta = (torch.cat(parts, dim=1) for parts in zip(*gates, strict=True))
        return torch.cat(sigmas, dim=1), (g, beta)

    def _gates(self, context: str) -> Gates:
        """The model's gates: those of the context that it read last are at hand."""
        if self._last and self._last[0] == context:
            return self._last[1]
        return states.gates(self.model, self._samples(context).tokens)

    def _mechanism(self, context: str) -> pd.DataFrame:
        return self._null(self._gates(context), context)

    def _common(self, context: str) -> pd.DataFrame:
        shape = self.model.grid.L, len(self._samples(context).tokens), self.reading.length, self.model.grid.H
        g, beta = (x[:, None, None].expand(shape) for x in self._median_gates)
        return self._null((g, beta), context)

    @functools.cached_property
    def _median_gates(self) -> tuple[Float64[Tensor, "L H"], Float64[Tensor, "L H"]]:
        """Log-decay and write strength of the median head over the reading; heads that were pruned away stay NaN."""
        own = pd.concat([self.table(MODEL, context) for context in self.reading.names()])
        means = own.groupby(["layer", "head"])[["log_decay", "write_strength"]].mean()
        common = means.where(means.isna(), means.median(), axis=1).to_numpy()
        g, beta = torch.tensor(common).T.reshape(2, self.model.grid.L, self.model.grid.H)
        return g, beta

    def _permuted(self, context: str) -> pd.DataFrame:
        """Keys and values are alike for all heads: exchanging decays is exchanging the mechanism null's heads."""
        table = self.table(MECHANISM, context)
        grid = self.model.grid
        order = torch.randperm(grid.L * grid.H, generator=torch.Generator().manual_seed(self.reading.seed)).numpy()
        layers = np.array([layer.index for layer in self.model.layers])
        place = order[np.searchsorted(layers, table["layer"]) * grid.H + table["head"]]
        return table.assign(layer=layers[place // grid.H], head=place % grid.H)

    def _null(self, gates: Gates, context: str) -> pd.DataFrame:
        (g, beta), (K, V) = gates, (self.model.grid.K, self.model.grid.V)
        generator = self._generator(context)
        sigma = nulls.decay_only(g, K, V, self.reading.positions, beta=beta, generator=generator)
        return self._tidy(sigma, context, gates)

    def _generator(self, context: str) -> torch.Generator:
        return torch.Generator().manual_seed((self.reading.seed + zlib.crc32(context.encode())) % 2**32)

    def _tidy(self, sigma: Float64[Tensor, "L B C H D"], context: str, gates: Gates) -> pd.DataFrame:
        layers = [layer.index for layer in self.model.layers]
        reading = self.reading
        table = strata.head_table(
            sigma,
            positions=reading.positions,
            layers=layers,
            context=context,
            model=self.model.name,
            seed=self.model.seed or 0,
            eps=reading.eps,
        )
        for eps in SWEEP:
            table[f"rank {eps:.0e}"] = spectra.effective_rank(sigma, eps).numpy().ravel()
        L, B, C, H, _ = sigma.shape
        for name, gate in zip(("log_decay", "write_strength"), gates, strict=True):
            table[name] = gate.double().mean(2)[:, :, None].expand(L, B, C, H).numpy().ravel()
        if not forgets(self.model):
            table["log_decay"] = np.nan
        return table.assign(document=self._samples(context).document.numpy()[table["sample"]])


def _key(source: str, context: str) -> str:
    return f"{source}--{context}"


def found(name: str | Path) -> str | Path:
    """The name as it is, or the folder of that name in the repository: notebooks run in a folder of their own."""
    inside = store.root() / name
    return inside if not Path(name).exists() and inside.is_dir() else name


def identity(model: models.Model, name: str | Path) -> str:
    """What tells these weights from others: the folder's content, or the hub's commit."""
    return store.content_hash(name) if Path(name).is_dir() else f"{name}@{model.hf.config._commit_hash}"


def kept_in() -> Path:
    """The ignored folder of finished contexts."""
    return store.root() / "build" / "survey"


def follows_gated_delta(model: models.Model) -> bool:
    """Whether the nulls of decay and Eq. 13 speak of this model (`Recipe.gated_delta`)."""
    return all(site.recipe.gated_delta for site in architectures.sites(model.hf))


def forgets(model: models.Model) -> bool:
    """Whether the model's heads have decays (`Recipe.has_decay`)."""
    return all(site.recipe.has_decay for site in architectures.sites(model.hf))


def kind(model: models.Model) -> str:
    """`hybrid`, `pure`, `uniform` for a reference model, the model's own name for any other."""
    return getattr(model.hf.config, "srdyn_kind", model.name)


def untrained(model: models.Model) -> models.Model:
    """A reference model as it was before its first step.

    Raises ValueError for a model that is none: its initialisation is not known.
    """
    config = model.hf.config
    if not _is_reference(model):
        raise ValueError(f"{model.name} does not say what it was started from; leave the null 'untrained' out")
    start = reference.initialise(
        config.srdyn_kind,
        seed=model.seed,
        vocab_size=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        head=config.linear_key_head_dim,
    )
    started = models.from_hf(start, model.tokenizer, name=model.name, seed=model.seed)
    speedups.use_if_fit(started.hf)
    return started


def main(arguments: Sequence[str]) -> None:
    """Survey what notebooks 01, 02 and 05 will ask for: `[preset] [parameter=value …]`, as in `make reproduce`.

    Every process that torchrun or accelerate launch started takes its share; the first one says what there is then.
    """
    first = processes.is_first()
    if not first:
        logging.disable(logging.WARNING)
        transformers.utils.logging.disable_progress_bar()
    overrides = [text for text in arguments if "=" in text]
    preset = [text for text in arguments if "=" not in text] or [store.REFERENCE]
    if len(preset) > 1:
        raise ValueError(f"give one preset, then parameter=value …, not {' '.join(arguments)}")
    with contextlib.chdir(store.root() / "notebooks"):  # where the paths among the parameters are seen from
        given = parameters.of_run("01_stratification", preset[0], overrides)
        axes = {name: tuple(given[name]) for name in ("domains", "tasks", "attacks", "positions")}
        reading = Reading(**axes, length=axes["positions"][-1], n=given["n"], seed=given["seed"], eps=given["eps"])
        if not first:
            return fill(given["models"], reading)
        table = heads(given["models"], reading)
    for model, rows in table.groupby("model", sort=False):
        print(f"{model}: {rows['context'].nunique()} contexts of {rows['source'].nunique()} sources, {len(rows)} rows")


if __name__ == "__main__":
    main(sys.argv[1:])
