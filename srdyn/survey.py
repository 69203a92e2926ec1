"""Head tables of several models and their nulls over the same contexts."""

import dataclasses
import functools
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from srdyn import contexts, evals, models, nulls, reference, spectra, states, store, strata

log = logging.getLogger(__name__)

MODEL = "model"
NULLS = ("untrained", "mechanism", "permuted decays", "common decay")
RARE_CHARACTERS = "ßøþ¶§ðœæ¿¤"
COMMON_NUMBERS = "1234567890"
SWEEP = (1e-2, 1e-3, 1e-5, 1e-6)
"""Thresholds that the rank is also taken at, in the columns `rank 1e-02` …"""


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
        if name in self.domains:
            generator = torch.Generator().manual_seed(self.seed)
            return contexts.domain(name, tokenizer, n=self.n, length=self.length, generator=generator)
        if name in self.tasks:
            text = evals.held_out_text(tokenizer, "trace")
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            write = functools.partial(evals.task_rows, name, tokenizer=tokenizer, text=text, n=1, length=self.length)
            return torch.stack([write(rng=rng)[0][0] for _ in range(self.n)])
        if name in self.attacks:
            repeat = functools.partial(contexts.repeated, tokenizer=tokenizer, length=self.length)
            blocks = attack_blocks(name, tokenizer)
            if self.n > len(blocks):
                raise ValueError(f"{name} has {len(blocks)} variants, fewer than n = {self.n}; ask for fewer samples")
            return torch.cat([repeat(block.tolist()) for block in blocks[: self.n]])
        raise ValueError(f"{name!r} is not in this reading, which has {', '.join(self.names())}")


def attack_blocks(name: str, tokenizer: PreTrainedTokenizerBase) -> list[Int[Tensor, " P"]]:
    """The token blocks that variants of an attack repeat: rare characters, or one-digit numbers.

    Raises ValueError for an unknown attack.
    """
    variants = {"rare character": RARE_CHARACTERS, "common number": COMMON_NUMBERS}
    if name not in variants:
        raise ValueError(f"no attack is called {name!r}; there are {', '.join(variants)}")
    encode = functools.partial(tokenizer.encode, add_special_tokens=False, return_tensors="pt")
    return [encode(character)[0] for character in variants[name]]


def heads(
    names: Sequence[str | Path], reading: Reading, *, sources: Sequence[str] = NULLS, null_n: int = 2
) -> pd.DataFrame:
    """One row for every model, source, context, sample, layer, head and position, over all that `reading` names.

    `source` is `model`, or the null that the states came from: the `untrained` model; random keys and values under the
    model's own decays and write strengths (`mechanism`); the same with heads exchanged at random over the model, alike
    in every context (`permuted decays`); the same with one decay for all heads, the mean over the context
    (`common decay`). Nulls are made for models of seed 0 alone, `null_n` samples each; a model that is no reference
    model has no `untrained` null, which is logged. Finished contexts are kept in build/survey, so that a second call
    only reads them.
    Columns: those of `strata.head_table`, kind, source, log_decay (mean g over the context), `rank 1e-02` ….
    """
    tables = []
    for name in tqdm(names, desc="models"):
        name = found(name)
        model = models.load(name)
        finished = _Finished(model, name, reading, null_n)
        for context in tqdm(reading.names(), desc=model.name, leave=False):
            tables += [finished.table(source, context) for source in _sources(model, sources)]
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

    def __init__(self, model: models.Model, name: str | Path, reading: Reading, null_n: int) -> None:
        self.model, self.reading, self.null_n = model, reading, null_n
        made_by = dataclasses.asdict(reading) | {"weights": _identity(model, name), "null_n": null_n}
        made_by["code"] = store.content_hash(Path(__file__).parent)
        made_by["contexts"] = store.content_hash(store.data_dir() / "contexts")
        made_by |= {"torch": torch.__version__, "transformers": transformers.__version__}
        self.kept = store.RunStore(kept_in(), made_by=made_by)
        self._gates = functools.lru_cache(maxsize=1)(self._measure_gates)

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
            "common decay": self._common,
        }
        if source not in make:
            raise ValueError(f"no source is called {source!r}; there are {', '.join(make)}")
        return make[source](context).assign(source=source, kind=kind(self.model))

    def _tokens(self, context: str) -> Int[Tensor, "B T"]:
        return self.reading.tokens(context, self.model.tokenizer)

    def _measure_gates(self, context: str) -> tuple[Float[Tensor, "L B T H"], Float[Tensor, "L B T H"]]:
        return states.gates(self.model, self._tokens(context)[: self.null_n])

    def _model(self, context: str) -> pd.DataFrame:
        return self._read(self.model, context, self._tokens(context))

    def _untrained(self, context: str) -> pd.DataFrame:
        return self._read(untrained(self.model), context, self._tokens(context)[: self.null_n])

    def _read(self, model: models.Model, context: str, tokens: Int[Tensor, "B T"]) -> pd.DataFrame:
        with states.gates_of(model, *tokens.shape) as (g, _):
            sigma = states.trace(model, tokens, self.reading.positions)
        return self._tidy(sigma, context, g)

    def _mechanism(self, context: str) -> pd.DataFrame:
        g, beta = self._gates(context)
        return self._tidy(self._null(g, beta, context), context, g)

    def _common(self, context: str) -> pd.DataFrame:
        g, beta = self._gates(context)
        g = nulls.common_decay(g)
        return self._tidy(self._null(g, beta, context), context, g)

    def _permuted(self, context: str) -> pd.DataFrame:
        """Keys and values are alike for all heads: exchanging decays is exchanging the mechanism null's heads."""
        table = self.table("mechanism", context)
        grid = self.model.grid
        order = torch.randperm(grid.L * grid.H, generator=torch.Generator().manual_seed(self.reading.seed)).numpy()
        layers = np.array([layer.index for layer in self.model.layers])
        place = order[np.searchsorted(layers, table["layer"]) * grid.H + table["head"]]
        return table.assign(layer=layers[place // grid.H], head=place % grid.H)

    def _null(self, g: Float[Tensor, "L B T H"], beta: Float[Tensor, "L B T H"], context: str) -> Tensor:
        K, V = self.model.grid.K, self.model.grid.V
        generator = self._generator(context)
        return nulls.decay_only(g, K, V, self.reading.positions, beta=beta, generator=generator)

    def _generator(self, context: str) -> torch.Generator:
        return torch.Generator().manual_seed((self.reading.seed + zlib.crc32(context.encode())) % 2**32)

    def _tidy(self, sigma: Tensor, context: str, g: Float[Tensor, "L B T H"]) -> pd.DataFrame:
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
        table["log_decay"] = g.double().mean(2)[:, :, None].expand(L, B, C, H).numpy().ravel()
        return table


def found(name: str | Path) -> str | Path:
    """The name as it is, or the folder of that name in the repository: notebooks run in a folder of their own."""
    inside = store.root() / name
    return inside if not Path(name).exists() and inside.is_dir() else name


def _identity(model: models.Model, name: str | Path) -> str:
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
