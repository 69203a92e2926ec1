"""Head tables of several models and their nulls over the same contexts."""

import dataclasses
import functools
import itertools
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from srdyn import contexts, evals, models, nulls, reference, spectra, states, store, strata

log = logging.getLogger(__name__)

MODEL = "model"
COMMON = "common decay"
NULLS = ("untrained", "mechanism", "permuted decays", COMMON)
RARE_CHARACTERS = "ßøþ¶§ðœæ¿¤"
COMMON_NUMBERS = "1234567890"
SWEEP = (1e-2, 1e-3, 1e-5, 1e-6)
"""Thresholds that the rank is also taken at, in the columns `rank 1e-02` …"""

Gates = tuple[Float[Tensor, "L B T H"], Float[Tensor, "L B T H"]]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What every model reads: `n` samples of each context, `length` tokens each, spectra taken at `positions`.

    `domains` are those of `contexts.domain`, `tasks` those of `evals.TASKS`, `attacks` those of `contexts.ATTACKS`.
    """

    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    attacks: tuple[str, ...]
    positions: tuple[int, ...]
    length: int = 2048
    n: int = 8
    seed: int = 0
    eps: float = spectra.EPS

    def names(self) -> list[str]:
        """The contexts in reading order: domains, tasks, attacks."""
        return [*self.domains, *self.tasks, *self.attacks]

    def tokens(self, name: str, tokenizer: PreTrainedTokenizerBase) -> Int[Tensor, "B T"]:
        """The samples of one context. Raises ValueError for a name that is not in this reading."""
        return self.samples(name, tokenizer).tokens

    def samples(self, name: str, tokenizer: PreTrainedTokenizerBase) -> contexts.Windows:
        """The samples of one context, those of a domain from as many documents as there are, with their documents.

        Samples of a task or an attack count as documents of their own; so do, and this is logged, the windows of a
        domain that is a single document. Raises ValueError for a name that is not in this reading.
        """
        if name in self.domains:
            return self._windows(name, tokenizer)
        if name in self.tasks:
            text = evals.held_out_text(tokenizer, "trace")
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            write = functools.partial(evals.task_rows, name, tokenizer=tokenizer, text=text, n=1, length=self.length)
            return _apart(torch.stack([write(rng=rng)[0][0] for _ in range(self.n)]))
        if name in self.attacks:
            repeat = functools.partial(contexts.repeated, tokenizer=tokenizer, length=self.length)
            blocks = attack_blocks(name, tokenizer)
            if self.n > len(blocks):
                raise ValueError(f"{name} has {len(blocks)} variants, fewer than n = {self.n}; ask for fewer samples")
            return _apart(torch.cat([repeat(block.tolist()) for block in blocks[: self.n]]))
        raise ValueError(f"{name!r} is not in this reading, which has {', '.join(self.names())}")

    def _windows(self, name: str, tokenizer: PreTrainedTokenizerBase) -> contexts.Windows:
        generator = torch.Generator().manual_seed(self.seed)
        found = contexts.spread(name, tokenizer, n=self.n, length=self.length, generator=generator)
        if found.document.unique().numel() > 1:
            return found
        log.warning("%s has one document: intervals speak of windows of it, which are not independent", name)
        return _apart(found.tokens)


def _apart(tokens: Int[Tensor, "B T"]) -> contexts.Windows:
    return contexts.Windows(tokens, torch.arange(len(tokens)))


def attack_blocks(name: str, tokenizer: PreTrainedTokenizerBase) -> list[Int[Tensor, " P"]]:
    """The token blocks that variants of an attack repeat: rare characters, or one-digit numbers.

    Raises ValueError for an unknown attack.
    """
    variants = {"rare character": RARE_CHARACTERS, "common number": COMMON_NUMBERS}
    if name not in variants:
        raise ValueError(f"no attack is called {name!r}; there are {', '.join(variants)}")
    encode = functools.partial(tokenizer.encode, add_special_tokens=False, return_tensors="pt")
    return [encode(character)[0] for character in variants[name]]


def heads(names: Sequence[str | Path], reading: Reading, *, sources: Sequence[str] = NULLS) -> pd.DataFrame:
    """One row for every model, source, context, sample, layer, head and position, over all that `reading` names.

    `source` is `model`, or the null that the states came from: the `untrained` model; random keys and values under the
    model's own decays and write strengths (`mechanism`); the same with heads exchanged at random over the model, alike
    in every context (`permuted decays`); the same with one decay and one write strength for all heads, tokens and
    contexts, those of the median head (`common decay`). A null has as many samples as its model, since agreement grows
    with their number. Nulls are made for models of seed 0 alone; a model that is no reference model has no `untrained`
    null, which is logged. Finished contexts are kept in build/survey, so that a second call only reads them.
    Columns: those of `strata.head_table`, document, kind, source, log_decay and write_strength (means over the
    context), `rank 1e-02` ….
    """
    tables = []
    for name in tqdm(names, desc="models"):
        name = found(name)
        model = models.load(name)
        finished = _Finished(model, name, reading)
        pairs = list(itertools.product(reading.names(), _sources(model, sources)))
        # The common decay comes last: it needs what the model did in every context.
        for context, source in tqdm(sorted(pairs, key=lambda pair: pair[1] == COMMON), desc=model.name, leave=False):
            tables.append(finished.table(source, context))
    return pd.concat(tables, ignore_index=True)


def _sources(model: models.Model, sources: Sequence[str]) -> list[str]:
    if model.seed:
        return [MODEL]
    if "untrained" in sources and not _is_reference(model):
        log.warning("%s does not say what it was started from, so it is shown without its untrained null", model.name)
        sources = [source for source in sources if source != "untrained"]
    return [MODEL, *sources]


def _is_reference(model: models.Model) -> bool:
    return model.seed is not None and hasattr(model.hf.config, "srdyn_kind")


class _Finished:
    """The tables of one model, made when asked for the first time."""

    def __init__(self, model: models.Model, name: str | Path, reading: Reading) -> None:
        self.model, self.reading = model, reading
        made_by = dataclasses.asdict(reading) | {"weights": identity(model, name)}
        made_by["code"] = store.content_hash(Path(__file__).parent)
        made_by["contexts"] = store.content_hash(store.data_dir() / "contexts")
        made_by |= {"torch": torch.__version__, "transformers": transformers.__version__}
        self.kept = store.RunStore(kept_in(), made_by=made_by)
        self._samples = functools.lru_cache(maxsize=1)(lambda name: reading.samples(name, model.tokenizer))
        self._last: tuple[str, Gates] | None = None

    def table(self, source: str, context: str) -> pd.DataFrame:
        key = f"{source}--{context}"
        if not self.kept.has(key):
            self.kept.put(key, self._make(source, context))
        return self.kept.get(key)

    def _make(self, source: str, context: str) -> pd.DataFrame:
        make: dict[str, Callable] = {
            MODEL: self._model,
            "untrained": self._untrained,
            "mechanism": self._mechanism,
            "permuted decays": self._permuted,
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
        with states.gates_of(model, *tokens.shape) as gates:
            return states.trace(model, tokens, self.reading.positions, measure=measure), gates

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
        table = self.table("mechanism", context)
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
        return table.assign(document=self._samples(context).document.numpy()[table["sample"]])


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
    return models.from_hf(start, model.tokenizer, name=model.name, seed=model.seed)
