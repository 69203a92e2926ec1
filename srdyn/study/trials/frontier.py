"""Loss and accuracy against the bytes of the state, by every way to make these fewer: one frontier.

Heads are removed; or all stay, and their states are rounded or cut to a rank from one stretch of tokens to the next;
or the states are whole while the model reads, and heads are left out of the checkpoint of a prefix alone: zero where
reading goes on, or read again from as far back as what they hold reaches (horizon). Every way answers the same rows,
and only what comes behind the prefix counts.

What is left out goes by a rule of `scores.RULES`. DASC (arXiv:2608.30386) leaves heads that forget fast out of
checkpoints, Tail-Replay (arXiv:2608.30310) reads the tail of the prefix again; engines that hold int8 states keep what
rounding lost in int4 (vllm-project/vllm#55196) or round checkpoints alone (sgl-project/sglang#28185).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from srdyn import ablation, evals
from srdyn.kernels import rounding
from srdyn.study.run import code, opened, store
from srdyn.study.trials import battery, contrasts, effects, sets, trials

CODE = code.hash_of(__name__)
LOSS, RANDOM = "bits a token more", "random"
WHOLE, REMOVED, RANK = "whole", "removed", "rank"
ROUNDED = {form: (form, False) for form in ("int8", "fp8", "int4")}
ROUNDED |= {f"{form} + int4": (form, True) for form in ("int8", "fp8")}
ZEROED, REPLAYED, POOLED = CHECKPOINTS = "checkpoint, zero", "checkpoint, replayed", "checkpoint, int8"
ROUNDED |= {POOLED: ("int8", False)}
"""By name a format, and whether what it lost is kept in int4."""
KNOWN = (REMOVED, *ROUNDED, RANK, ZEROED, REPLAYED)
LEFT = 0.01
"""What is left of a write after a head's horizon."""
_WAY = ["how", "rule", "share", "rank"]
_ABOUT = ["model", "kind", "seed", *_WAY, "heads", "where", "bytes", "replayed"]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to hold less: how, of which share of all heads, those that a rule takes first; the rank, or the draw."""

    how: str
    rule: str = ""
    share: float = 1.0
    rank: int = 0
    draw: int = 0


@dataclasses.dataclass(frozen=True)
class Questions:
    """`rows` rows of each task and `windows` of each domain, `length` tokens long, of which half are the prefix.

    States are rounded every `every` tokens and cut to a rank every `cut_every`. Random sets answer the first row alone
    of each task and domain.
    """

    tasks: tuple[str, ...]
    domains: tuple[str, ...]
    length: int = 256
    rows: int = 2
    windows: int = 1
    every: int = 16
    cut_every: int = 64
    seed: int = 0

    @property
    def prefix(self) -> int:
        """Tokens of a row before a checkpoint."""
        return self.length // 2


def ways(doses: Mapping[str, Sequence[float | int]], rules: Sequence[str], *, first: str, draws: int) -> list[Way]:
    """The whole model, the one without any state, and every way at its doses: shares of all heads, or ranks of all.

    Heads are removed by each of the rules and `draws` times at random; those that `first` takes first are rounded, or
    left out of checkpoints. Raises ValueError for a way that is not known.
    """
    if strange := [how for how in doses if how not in KNOWN]:
        raise ValueError(f"no way to hold less is called {', '.join(strange)}; there are {', '.join(KNOWN)}")
    found = [Way(WHOLE, share=0.0), Way(REMOVED)]
    for how, dose in ((how, dose) for how, listed in doses.items() for dose in listed):
        if how == REMOVED:
            found += [Way(how, rule, dose) for rule in rules]
            found += [Way(how, RANDOM, dose, draw=draw) for draw in range(draws)]
        else:
            found.append(Way(how, rank=int(dose)) if how == RANK else Way(how, first if dose < 1 else "", dose))
    return found


def measured(names: Sequence[str | Path], listed: Sequence[Way], plan: trials.Plan, asked: Questions) -> pd.DataFrame:
    """What every model answers under every way, beside the whole model: a row for each way and of `KEPT` and `LOSS`.

    Columns: model, kind, seed, how, rule, share (of all heads), rank, heads, where (`state`, or `checkpoint`: the state
    itself is whole), bytes (share of the state's that is left), replayed (tokens read again), probe, estimate (share of
    the accuracy kept; bits a token more than the whole model), low, high, uncertain, n (answers, or tokens), over (what
    the ends speak of). Random sets are one row: the mean, and the least and greatest of them. `uncertain` is how far
    off another machine may find them: where states are rounded, entries next to a boundary fall on its other side
    there, and errors are drawn anew, which the interval's half is about, as rows differ in their errors too.
    """
    trials.prepare(names, plan, [way.rule for way in listed])
    opening = plan, asked, store.kept_dir()
    answers = opened.table(Subject, names, opening, [("under", way) for way in listed], desc="frontier")
    tables = [table(given.reset_index(drop=True)) for _, given in answers.groupby("model", sort=False)]
    return pd.concat(tables, ignore_index=True)


def table(answers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `measured` from what one model answered under some ways, the whole model's answers among them."""
    tables = []
    whole = answers[answers["how"] == WHOLE]
    for _, rows in answers[answers["how"] != WHOLE].groupby([*_WAY, "draw"], sort=False):
        asked = whole.merge(rows[["probe", "row"]].drop_duplicates())
        both = pd.concat([asked.assign(arm=trials.INTACT), rows.assign(arm="way")], ignore_index=True)
        tasks, text = effects.with_kept(both.assign(window=0)), both[both["probe_kind"] == "text"]
        for probe, part in {effects.KEPT: tasks[tasks["probe"] == effects.KEPT], LOSS: text.assign(probe=LOSS)}.items():
            if len(part):
                tables.append(rows.iloc[[0]][[*_ABOUT, "draw"]].assign(probe=probe, **_difference(part)))
    found = pd.concat(tables, ignore_index=True)
    found["uncertain"] = ((found["high"] - found["low"]) / 2).where(found["how"].isin(ROUNDED), 0.0)
    drawn = found["rule"] == RANDOM
    return pd.concat([found[~drawn].drop(columns="draw"), _band(found[drawn])], ignore_index=True)


class Subject(trials.Subject):
    """One model that holds less in some way; what it answers is kept under the way."""

    def __init__(self, name: str | Path, plan: trials.Plan, asked: Questions, kept: Path) -> None:
        super().__init__(name, plan, kept / "trials")
        made_by = opened.made_by(name) | {"questions": dataclasses.asdict(asked), "code": CODE}
        made_by |= {"plan": dataclasses.asdict(plan)}  # which calibrates the choice of heads
        self.asked, self.answered = asked, store.RunStore(kept / "frontier", made_by=made_by)

    def under(self, way: Way) -> pd.DataFrame:
        """One line for every item of a task and every window of text.

        Columns: probe, probe_kind, row, item, value, weight (their sums' ratio: share right, bits a token), those of
        `Way`, heads, where, bytes, replayed.
        """
        return self.answered.once("--".join(map(str, dataclasses.astuple(way))), lambda: self._answers(way))

    def chosen(self, way: Way) -> Bool[Tensor, "L H"]:
        """The heads that a way acts on."""
        if way.rule == RANDOM:
            generator = self.drawing(self.model.name, "frontier")
            first = self.heads(trials.Arm(RANDOM, way.share, "overall"), 0)
            return sets.drawn(first, self.model.held, n=way.draw + 1, per_layer=False, generator=generator)[way.draw]
        if way.rule:
            return self.heads(trials.Arm(way.rule, way.share, "overall"), 0)
        return self.model.held & (way.share > 0)

    def replayed(self, way: Way) -> int:
        """Tokens that are read again so that what the heads left out have forgotten is all that they lack."""
        if way.how != REPLAYED:
            return 0
        slowest = float(self._found().decay[self.chosen(way)].max())
        horizon = math.inf if slowest == 0 else math.ceil(math.log(LEFT) / slowest)
        return min(horizon, self.asked.prefix)

    def _answers(self, way: Way) -> pd.DataFrame:
        heads = self.chosen(way)
        tokens, items, about = self._rows(first=way.rule == RANDOM)
        with self._holding(way, heads):
            found = evals.outcomes(self.model, tokens, items)
        lines = about.iloc[found["row"]].reset_index(drop=True)
        text = lines["probe_kind"] == "text"
        value, weight = found["bits"].where(text, found["right"]), found["tokens"].where(text, 1)
        lines = lines.assign(item=found["item"], value=value.astype(float), weight=weight.astype(float))
        where = "checkpoint" if way.how in CHECKPOINTS else "state"
        held = {"heads": int(heads.sum()), "where": where, "bytes": self._bytes(way, heads)}
        return lines.assign(**dataclasses.asdict(way), **held, replayed=self.replayed(way))

    def _holding(self, way: Way, heads: Bool[Tensor, "L H"]) -> contextlib.AbstractContextManager:
        """While this is open, the model holds its states in this way."""
        model, length, prefix = self.model, self.asked.length, self.asked.prefix
        often, seldom = (range(n, length, n) for n in (self.asked.every, self.asked.cut_every))
        if way.how == WHOLE or prefix == (replayed := self.replayed(way)):  # what is read again as a whole is not lost
            return contextlib.nullcontext()
        if way.how == REMOVED:
            return ablation.ablate_heads(model, heads)
        if way.how == RANK:
            return ablation.truncate_states(model, way.rank, heads, seldom)
        if way.how in (ZEROED, REPLAYED):
            return ablation.change_states(model, torch.zeros_like, heads, [prefix - replayed])
        form, feedback = ROUNDED[way.how]
        change = functools.partial(rounding.rounded, form=form, feedback=feedback)
        return ablation.change_states(model, change, heads, [prefix] if way.how == POOLED else often)

    def _bytes(self, way: Way, heads: Bool[Tensor, "L H"]) -> float:
        """The share of the states' bytes that is left."""
        _, _, K, V = self.model.grid
        whole = rounding.head_bytes(K, V)
        of_head = {WHOLE: whole, RANK: way.rank * (K + V) * 4}
        of_head |= {how: rounding.head_bytes(K, V, form, feedback=lost) for how, (form, lost) in ROUNDED.items()}
        n, held = int(heads.sum()), int(self.model.held.sum())
        return 1 - n / held * (1 - of_head.get(way.how, 0) / whole)

    @functools.cache  # noqa: B019  one subject a process
    def _rows(self, *, first: bool) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"], pd.DataFrame]:
        """Tokens, the items behind the prefix that they are answers of, and which probe and row of it they are."""
        asked, tokens, items, about, number = self.asked, [], [], [], 0
        size = {"length": asked.length, "items": 1, "windows": asked.windows, "copies": 0, "rows": asked.rows}
        questions = battery.Battery(asked.tasks, asked.domains, **size, seed=asked.seed)
        for probe in battery.sheet(questions, self.model.tokenizer).values():
            n = 1 if first else len(probe.tokens)
            kept = torch.ones_like(probe.tokens) if probe.items is None else probe.items
            tokens.append(probe.tokens[:n])
            items.append(behind(kept[:n], asked.prefix, alone=probe.items is not None))
            about += [(probe.name, probe.kind, number + row) for row in range(n)]
            number += len(probe.tokens)
        return torch.cat(tokens), torch.cat(items), pd.DataFrame(about, columns=["probe", "probe_kind", "row"])


def behind(items: Int64[Tensor, "B T"], prefix: int, *, alone: bool) -> Int64[Tensor, "B T"]:
    """The items that what is read behind the prefix foretells; `alone`: all their tokens, or they are left out.

    Token `prefix`, counted from 0, is still foretold by the last one before it.
    """
    kept = items.clone()
    kept[:, : prefix + 1] = 0
    if alone:
        for row, whole in zip(kept, items, strict=True):
            row[torch.isin(row, whole[: prefix + 1])] = 0
    return kept


def _difference(rows: pd.DataFrame) -> dict[str, object]:
    """The way against the whole model, paired by row, with its interval over rows; of a random set the value alone.

    Of `KEPT`, the share of the accuracy on the tasks that the whole model solves on these rows, 1 is the whole model's.
    """
    way, whole = (rows[rows["arm"] == arm].drop(columns="draw") for arm in ("way", trials.INTACT))
    kept = (way["probe"] == effects.KEPT).all()
    n, plus = (len(way), 1.0) if kept else (int(way["weight"].sum()), 0.0)
    if (way["rule"] == RANDOM).all():
        found = [x["value"].sum() / x["weight"].sum() for x in (way, whole)]
        return {"n": n, "estimate": found[0] - found[1] + plus}
    found = contrasts.difference(way, whole)
    estimate, low, high = (end + plus for end in found)
    return {"n": n, "estimate": estimate, "low": low, "high": high, "over": f"{way['row'].nunique()} rows"}


def _band(found: pd.DataFrame) -> pd.DataFrame:
    """Several random sets as one row: the mean, the least and the greatest."""
    of = found.groupby([*_ABOUT, "probe"], sort=False, as_index=False)
    sums = of.agg(n=("n", "first"), mean=("estimate", "mean"), low=("estimate", "min"), high=("estimate", "max"),
                  uncertain=("uncertain", "max"), sets=("draw", "nunique"))  # fmt: skip
    over = sums["sets"].astype(str) + " sets, least and greatest"
    return sums.rename(columns={"mean": "estimate"}).drop(columns="sets").assign(over=over)
