"""What every model of a survey reads: samples of domains, tasks and attacks as tokens."""

import dataclasses
import functools
import itertools
import logging
import zlib

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from srdyn import contexts, evals, spectra
from srdyn.text import documents

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What every model reads: `n` samples of each context, up to the last of the `positions` that spectra are taken at.

    `domains` are those of `contexts.domain`, `tasks` those of `evals.TASKS`, `attacks` those of `contexts.ATTACKS`.
    """

    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    attacks: tuple[str, ...]
    positions: tuple[int, ...]
    n: int = 8
    seed: int = 0
    eps: float = spectra.EPS

    @property
    def length(self) -> int:
        """Tokens of every sample."""
        return self.positions[-1]

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """What tables call the domains: a place by its short name, numbered where that is taken.

        Raises ValueError for a domain that comes twice.
        """
        if len(set(self.domains)) < len(self.domains):
            raise ValueError(f"every domain is read once, but these are {', '.join(self.domains)}")
        found, taken = [], {*contexts.domains(), *evals.TASKS, *contexts.ATTACKS}
        for name in self.domains:
            if documents.is_place(name):
                short = documents.short_name(name)
                numbered = itertools.chain([short], (f"{short} {i}" for i in itertools.count(2)))
                name = next(x for x in numbered if x not in taken)
                taken.add(name)
            found.append(name)
        return tuple(found)

    def names(self) -> list[str]:
        """The contexts in reading order: domains by their names in `texts`, tasks, attacks."""
        return [*self.texts, *self.tasks, *self.attacks]

    def samples(self, name: str, tokenizer: PreTrainedTokenizerBase) -> contexts.Windows:
        """The samples of one context, those of a domain from as many documents as there are, with their documents.

        Samples of a task or an attack count as documents; so do, and this is logged, the windows of a domain that is a
        single document. Raises ValueError for a name that is not in this reading.
        """
        if name in self.texts:
            return self._windows(self.domains[self.texts.index(name)], tokenizer)
        if name in self.tasks:
            text = evals.held_out_text(tokenizer, "trace")
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            write = functools.partial(evals.task_rows, name, tokenizer=tokenizer, text=text, n=1, length=self.length)
            return _apart(torch.stack([write(rng=rng)[0][0] for _ in range(self.n)]))
        if name in self.attacks:
            blocks = contexts.blocks(name, tokenizer)
            if self.n > len(blocks):
                raise ValueError(f"{name} has {len(blocks)} variants, fewer than n = {self.n}; ask for fewer samples")
            rows = [contexts.repeated(block, tokenizer, length=self.length) for block in blocks[: self.n]]
            return _apart(torch.cat(rows))
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
