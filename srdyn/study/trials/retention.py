"""How long heads keep what they hold, set by hand: what it does to needles and to ranks.

Effective rank is a censored proxy of retention: a head of D dimensions saturates at a half-life of ln 2 · D / ln(1/ε)
tokens, whatever it holds beyond. So the saturated heads are split into those that forget slowly and those that forget
fast, the half-life of either half is set (`ablation.set_half_life`), and facts are asked for at fixed distances.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from tqdm.auto import tqdm

from srdyn import ablation, contexts, evals, spectra, states, strata
from srdyn.kernels import denormals
from srdyn.study.analysis import intervals
from srdyn.study.run import code, opened, store
from srdyn.text import tasks

CODE = code.hash_of(__name__)
INTACT, SLOW, FAST, OTHERS = "intact", "saturated, slow", "saturated, fast", "others"
GROUPS = (SLOW, FAST, OTHERS)
REMOVED, SHORTER, FACTOR = "removed", "half-life ÷ 16", 1 / 16
PREFIX = 32
"""Tokens of text before the two facts."""
LENGTH = 512
"""Tokens of text after which ranks are taken."""
FEW = 2
"""Rows of each distance on which single heads are left out."""
PASSAGE = 16
"""Tokens of text that come twice."""
PASSAGES = 4
"""Of them, for each row of facts that would be asked for."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """`rows` rows of two facts at each of the `distances`, tokens from a value to where it is asked for.

    Ranks and half-lives are those in a window of text of each of the `domains`.
    """

    distances: tuple[int, ...]
    domains: tuple[str, ...]
    rows: int = 4
    eps: float = spectra.EPS
    seed: int = 0


def set_to(names: Sequence[str | Path], asked: Questions, half_lives: Sequence[float]) -> pd.DataFrame:
    """What is answered, by distance, while all heads of a group have one half-life; `intact` beside.

    In another row every head of the group forgets sixteen times as fast. Columns: group, half_life (NaN where none is
    set), factor (of half-lives, NaN where they are set), heads, distance, estimate (share right), low, high (Wilson),
    bits (an answer), n, rank (mean over the group meanwhile; NaN for intact), D, model, kind, seed.
    """
    work = [("answered", INTACT, math.nan, math.nan)]
    work += [("answered", group, tokens, math.nan) for group in GROUPS for tokens in half_lives]
    work += [("answered", group, math.nan, FACTOR) for group in GROUPS]
    return _everywhere(names, asked, work)


def repeated(names: Sequence[str | Path], asked: Questions) -> pd.DataFrame:
    """Text that comes twice, whole and without each group of heads: bits a token when it is new, and when it is not.

    Columns: group (left out; `intact` beside), heads, distance, row, new, again. The same passages for every group.
    """
    return _everywhere(names, asked, [("repeated", group) for group in (INTACT, *GROUPS)])


def single(names: Sequence[str | Path], asked: Questions) -> pd.DataFrame:
    """Bits that an answer costs more, by distance, without one head and with its half-life sixteen times shorter.

    Columns: layer, axis, head, changed (`removed`, `half-life ÷ 16`), distance, damage, those of `Subject.heads`.
    """
    return _everywhere(names, asked, [("single",)])


class Subject:
    """One model; what it answered is kept in the folder `kept`."""

    def __init__(self, name: str | Path, asked: Questions, kept: Path) -> None:
        self.model, self.asked = opened.model(name), asked
        made_by = opened.made_by(name) | {"questions": dataclasses.asdict(asked), "code": CODE}
        self.kept = store.RunStore(kept, made_by=made_by)

    def ask(self, question: str, *details: object) -> pd.DataFrame:
        """A table of one of the methods below with the model's names."""
        key, make = "--".join(map(str, [question, *details])), functools.partial(getattr(self, question), *details)
        with denormals.flushed():
            return self.kept.once(key, make).assign(**opened.about(self.model))

    def heads(self) -> pd.DataFrame:
        """One row for every head: rank, nuclear norm, half_life (tokens), write (strength), D, group (of `GROUPS`)."""
        tokens, model = self._text(), self.model
        rank, norm, d = self._ranks(tokens)
        log_decay, write = (gate.double().mean((1, 2)) for gate in states.gates(model, tokens))
        places = [(at.index, axis, head) for axis, at in enumerate(model.layers) for head in range(model.grid.H)]
        columns = {"rank": rank, "norm": norm, "half_life": -math.log(2) / log_decay, "write": write}
        table = pd.DataFrame(places, columns=["layer", "axis", "head"]).assign(
            D=d, **{k: x.flatten().numpy() for k, x in columns.items()}
        )
        return grouped(table.dropna(subset="rank").reset_index(drop=True))

    def answered(self, group: str, tokens: float, factor: float) -> pd.DataFrame:
        """One row for every distance."""
        table, rank = self.ask("heads"), math.nan
        mask = self._mask(table[table["group"] == group])
        with contextlib.ExitStack() as stack:
            if group != INTACT:
                change = {"factor": factor} if math.isnan(tokens) else {"tokens": tokens}
                stack.enter_context(ablation.set_half_life(self.model, mask, **change))
                rank = float(self._ranks(self._text())[0][mask].mean())
            found = self._by_distance(self.asked.rows)
        about = {"group": group, "half_life": tokens, "factor": factor, "heads": int(mask.sum()), "rank": rank}
        return found.assign(**about, D=table["D"].iloc[0])

    def single(self) -> pd.DataFrame:
        """One row for every head, change and distance."""
        table, intact, rows = self.ask("heads").drop(columns=[*opened.about(self.model)]), self._bits(), []
        shorten = functools.partial(ablation.set_half_life, factor=FACTOR)
        for _, head in tqdm(table.iterrows(), total=len(table), desc=f"{self.model.name}: single heads", leave=False):
            for changed, change in {REMOVED: ablation.ablate_heads, SHORTER: shorten}.items():
                with change(self.model, self._mask(head.to_frame().T)):
                    damage = self._bits() - intact
                rows.append(damage.rename("damage").reset_index().assign(changed=changed, **head))
        return pd.concat(rows, ignore_index=True)

    def repeated(self, group: str) -> pd.DataFrame:
        """One row for every distance and passage."""
        table, found = self.ask("heads"), []
        mask = self._mask(table[table["group"] == group])
        with ablation.ablate_heads(self.model, mask):
            for distance, (tokens, items) in self._passages.items():
                bits = evals.outcomes(self.model, tokens, items).pivot(index="row", columns="item", values="bits")
                twice = bits.set_axis(["new", "again"], axis=1) / PASSAGE
                found.append(twice.reset_index().assign(distance=distance))
        return pd.concat(found, ignore_index=True).assign(group=group, heads=int(mask.sum()))

    def _bits(self) -> pd.Series:
        """Bits of an answer by distance, on the few rows."""
        return self._by_distance(FEW).set_index("distance")["bits"]

    def _by_distance(self, n: int) -> pd.DataFrame:
        rows = []
        for distance, (tokens, items) in self._needles.items():
            found = evals.outcomes(self.model, tokens[:n], items[:n])
            share = intervals.wilson(int(found["right"].sum()), len(found))
            rows.append({"distance": distance, **share._asdict(), "bits": found["bits"].mean(), "n": len(found)})
        return pd.DataFrame(rows)

    @functools.cached_property
    def _needles(self) -> dict[int, tuple[Tensor, Tensor]]:
        return self._rows("needles at a distance", needles, max(self.asked.rows, FEW))

    @functools.cached_property
    def _passages(self) -> dict[int, tuple[Tensor, Tensor]]:
        return self._rows("text that comes twice", passages, PASSAGES * self.asked.rows)

    def _rows(self, name: str, write: Callable, n: int) -> dict[int, tuple[Tensor, Tensor]]:
        """So many rows at each distance: tokens and items."""
        text = evals.held_out_text(self.model.tokenizer, "evaluation")
        rng = evals.draws(name, part="evaluation", seed=self.asked.seed)
        writer = tasks.Writer(tasks.Alphabet.of(self.model.tokenizer), text, rng)
        return {distance: write(writer, distance, n) for distance in self.asked.distances}

    def _text(self) -> Int64[Tensor, "B T"]:
        draw = torch.Generator().manual_seed(self.asked.seed)
        read = functools.partial(contexts.domain, tokenizer=self.model.tokenizer, n=1, length=LENGTH, generator=draw)
        return torch.cat([read(name) for name in self.asked.domains])

    def _ranks(self, tokens: Int64[Tensor, "B T"]) -> tuple[Tensor, Tensor, int]:
        """The mean rank and nuclear norm of every head after the text, and D."""
        sigma = states.trace(self.model, tokens, [LENGTH])[:, :, 0]
        rank = spectra.effective_rank(sigma, self.asked.eps).double().mean(1)
        rank = rank.masked_fill(sigma.isnan().all(-1).any(1), math.nan)
        return rank, spectra.nuclear_norm(sigma).mean(1), sigma.shape[-1]

    def _mask(self, table: pd.DataFrame) -> Bool[Tensor, "L H"]:
        mask = torch.zeros(self.model.grid.L, self.model.grid.H, dtype=torch.bool)
        mask[table["axis"].astype(int).tolist(), table["head"].astype(int).tolist()] = True
        return mask


def grouped(table: pd.DataFrame) -> pd.DataFrame:
    """The heads of a model with their `group`: saturated from 0.9 D on, slow above the median half-life of those."""
    saturated = table["rank"] >= strata.HIGH * table["D"]
    slow = table["half_life"] > table.loc[saturated, "half_life"].median()
    return table.assign(group=np.select([saturated & slow, saturated], [SLOW, FAST], OTHERS))


def needles(writer: tasks.Writer, distance: int, n: int) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, "n T"]]:
    """Rows with two facts side by side and, `distance` tokens later, both asked for: tokens, and their items.

    Raises ValueError where the facts themselves are longer than the distance.
    """
    gap, rows = distance - 2 * writer.sentence_length(), []
    if gap < 0:
        raise ValueError(f"a distance of {distance} tokens is shorter than two facts, {distance - gap}")
    for _ in range(n):
        passage, facts = tasks.Passage(), writer.facts(2)
        writer.snippet(passage, PREFIX)
        for fact in facts:
            writer.sentence(passage, *fact, weight=0.0)
        writer.snippet(passage, gap)
        for item, fact in enumerate(facts, 1):
            writer.sentence(passage, *fact, weight=tasks.ANSWER_WEIGHT, item=item)
        rows.append(passage)
    return torch.tensor([row.tokens for row in rows]), torch.tensor([row.items for row in rows])


def passages(writer: tasks.Writer, distance: int, n: int) -> tuple[Int64[Tensor, "n T"], Int64[Tensor, "n T"]]:
    """Rows with a passage of text that comes again after `distance` tokens: tokens, and items 1 (new) and 2 (again).

    Raises ValueError where the passage is longer than the distance.
    """
    if distance < PASSAGE:
        raise ValueError(f"a distance of {distance} tokens is shorter than the passage that comes again, {PASSAGE}")
    rows = []
    for _ in range(n):
        passage, again = tasks.Passage(), writer.text.snippet(PASSAGE, rng=writer.rng)
        writer.snippet(passage, PREFIX)
        passage.add(again, 1.0, 1)
        writer.snippet(passage, distance - PASSAGE)
        passage.add(again, 1.0, 2)
        rows.append(passage)
    return torch.tensor([row.tokens for row in rows]), torch.tensor([row.items for row in rows])


def _everywhere(names: Sequence[str | Path], asked: Questions, work: Sequence[tuple]) -> pd.DataFrame:
    opening = asked, store.kept_dir() / "retention"
    return opened.table(Subject, names, opening, work, desc=f"retention: {work[-1][0]}")
