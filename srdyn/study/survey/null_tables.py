"""The states of one model and of its nulls, read context by context into tables that are kept."""

import functools
import logging
import zlib
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from srdyn import architectures, models, nulls, spectra, states, strata
from srdyn.architectures import cpu_speedups
from srdyn.loading import reference
from srdyn.study.run import opened, store
from srdyn.study.survey import samples

log = logging.getLogger(__name__)

MODEL = "model"
UNTRAINED, MECHANISM, COMMON = NULLS = ("untrained", "mechanism", "common decay")
SWEEP = (1e-2, 1e-3, 1e-5, 1e-6)
"""Thresholds that the rank is also taken at."""

_Gates = tuple[Float[Tensor, "L B T H"], Float[Tensor, "L B T H"]]


def rank_columns(eps: float) -> dict[float, str]:
    """The columns with ranks of a table by their threshold: `rank` at ε, `rank 1e-02` … at those of `SWEEP`."""
    return {eps: "rank"} | {other: f"rank {other:.0e}" for other in SWEEP}


def available(model: models.Model, sources: Sequence[str]) -> list[str]:
    """The model and those of its nulls that it can have; a log line says which it cannot, and why."""
    for can, why, lost in (
        (_is_reference, "what it was started from is not known", [UNTRAINED]),
        (follows_gated_delta, "its states do not follow the gated delta rule with one decay a head", NULLS[1:]),
        (forgets, "its heads do not forget", [COMMON]),
    ):
        if not can(model) and (out := [source for source in sources if source in lost]):
            which = f"{', '.join(out)} null{'s' if len(out) > 1 else ''}"
            log.warning("%s is shown without its %s: %s", model.name, which, why)
            sources = [source for source in sources if source not in out]
    return [MODEL, *sources]


def _is_reference(model: models.Model) -> bool:
    return model.seed is not None and hasattr(model.hf.config, "srdyn_kind")


class Tables:
    """The tables of one model, made when asked for the first time and kept."""

    def __init__(self, model: models.Model, reading: samples.Reading, kept: store.RunStore) -> None:
        self.model, self.reading, self.kept = model, reading, kept
        self.layers = [layer.index for layer in model.layers]
        self._samples = functools.lru_cache(maxsize=1)(lambda name: reading.samples(name, model.tokenizer))
        self._own = functools.lru_cache(maxsize=1)(lambda context: self._read(model, context))

    def table(self, source: str, context: str) -> pd.DataFrame:
        """The rows of one source in one context; columns as in `survey.heads`. Raises ValueError for another source."""
        of_source = {
            MODEL: lambda context: self._own(context)[0],
            UNTRAINED: lambda context: self._read(untrained(self.model), context)[0],
            MECHANISM: lambda context: self._null(self._own(context)[1], context),
            COMMON: self._common,
        }
        if source not in of_source:
            raise ValueError(f"no source is called {source!r}; there are {', '.join(of_source)}")
        about = {"source": source, "kind": opened.kind(self.model)}
        return self.kept.once(f"{source}--{context}", lambda: of_source[source](context).assign(**about))

    def ask(self, context: str, sources: Sequence[str]) -> None:
        """Make and keep those tables of a context that are not there yet."""
        for source in sources:
            self.table(source, context)

    def lacks(self, context: str, sources: Sequence[str]) -> bool:
        """Whether one of the sources is not made yet in this context."""
        return not all(self.kept.has(f"{source}--{context}") for source in sources)

    def _read(self, model: models.Model, context: str) -> tuple[pd.DataFrame, _Gates]:
        tokens, sigmas, gates = self._samples(context).tokens, [], []
        for part in tokens.split(models.batch_size(model, tokens.shape[1])):
            with states.gates_of(model, *part.shape) as found:
                sigmas.append(states.trace(model, part, self.reading.positions))
            gates.append(found)
        g, beta = (torch.cat(parts, dim=1) for parts in zip(*gates, strict=True))
        return self._tidy(torch.cat(sigmas, dim=1), context, (g, beta)), (g, beta)

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

    def _null(self, gates: _Gates, context: str) -> pd.DataFrame:
        (g, beta), (K, V) = gates, (self.model.grid.K, self.model.grid.V)
        generator = torch.Generator().manual_seed((self.reading.seed + zlib.crc32(context.encode())) % 2**32)
        sigma = nulls.decay_only(g, K, V, self.reading.positions, beta=beta, generator=generator)
        return self._tidy(sigma, context, gates)

    def _tidy(self, sigma: Float64[Tensor, "L B C H D"], context: str, gates: _Gates) -> pd.DataFrame:
        positions, eps, seed = self.reading.positions, self.reading.eps, self.model.seed or 0
        names = {"layers": self.layers, "context": context, "model": self.model.name, "seed": seed}
        table = strata.head_table(sigma, positions=positions, eps=eps, **names)
        for other in SWEEP:
            table[f"rank {other:.0e}"] = spectra.effective_rank(sigma, other).numpy().ravel()
            table[f"uncertain {other:.0e}"] = spectra.uncertain(sigma, other).sum(-1).numpy().ravel()
        L, B, C, H, _ = sigma.shape
        for name, gate in zip(("log_decay", "write_strength"), gates, strict=True):
            table[name] = gate.double().mean(2)[:, :, None].expand(L, B, C, H).numpy().ravel()
        if not forgets(self.model):
            table["log_decay"] = np.nan
        return table.assign(document=self._samples(context).document.numpy()[table["sample"]])


def follows_gated_delta(model: models.Model) -> bool:
    """Whether the nulls of decay and Eq. 13 speak of this model (`Recipe.gated_delta`)."""
    return all(site.recipe.gated_delta for site in architectures.sites(model.hf))


def forgets(model: models.Model) -> bool:
    """Whether the model's heads have decays (`Recipe.has_decay`)."""
    return all(site.recipe.has_decay for site in architectures.sites(model.hf))


def untrained(model: models.Model) -> models.Model:
    """A reference model as it was before its first step; ValueError for any other, whose start is not known."""
    config = model.hf.config
    if not _is_reference(model):
        raise ValueError(f"{model.name} does not say what it was started from; leave the null 'untrained' out")
    if config.srdyn_kind in reference.KINDS:
        sizes = {"layers": config.num_hidden_layers, "hidden": config.hidden_size, "head": config.linear_key_head_dim}
        sizes |= {"heads": config.linear_num_value_heads, "softmax_head": config.head_dim}
        start = reference.initialise(config.srdyn_kind, seed=model.seed, vocab_size=config.vocab_size, **sizes)
    else:
        start = reference.drawn(type(model.hf), config, seed=model.seed)
    started = models.from_hf(start, model.tokenizer, name=model.name, seed=model.seed)
    cpu_speedups.use(started.hf)
    return started
