"""What models answer while some of their heads are removed: every arm of an experiment, run once.

An arm names a way to choose heads and a dose. Random draws, and ties broken at random, are many draws of one arm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from srdyn import ablation, models, pruning, scores, spectra, strata
from srdyn.architectures import linear_cache
from srdyn.kernels import denormals
from srdyn.loading import memory
from srdyn.study.run import code, opened, store
from srdyn.study.trials import battery, controls, single_heads

CODE = code.hash_of(__name__)
INTACT, ORACLE, DECAY_MATCHED = "intact", "oracle", "decay-matched"
BY_RANK: dict[str, Callable[[scores.Scores, int], scores.Scores]] = {
    "high": lambda rank, d: rank,
    "low": lambda rank, d: -rank,
    "tied high": lambda rank, d: rank.clamp(max=strata.HIGH * d),
    "tied low": lambda rank, d: -rank.clamp(min=strata.LOW * d),
    DECAY_MATCHED: lambda rank, d: rank,
}
"""What the arms that are not among `scores.RULES` take the highest of."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """Heads removed by a rule up to a share of all heads: in every layer alike, or over the whole model.

    `name` is `intact`, `high` or `low` (effective rank), `tied high` or `tied low` (the same, ranks within a stratum
    counting as equal), `decay-matched` (random heads with the decays of `high`), `oracle` or one of `scores.RULES`
    (their highest scores, `random` among them). `layers` restricts the choice to these decoder layers; `window` lets
    softmax attention see that many tokens only (0: all). With `truncated` the heads stay, their states cut to this rank
    every `Plan.truncated_every` tokens. `matched` takes instead as many heads of every layer as the rule does, at
    random.
    """

    name: str
    share: float = 0.0
    cut: Literal["per layer", "overall"] = "per layer"
    layers: tuple[int, ...] = ()
    window: int = 0
    truncated: int = 0
    matched: bool = False

    @property
    def label(self) -> str:
        """The arm's rule, as tables call it."""
        return f"matched, {self.name}" if self.matched else self.name

    @property
    def about(self) -> dict[str, object]:
        """What tables say of the arm."""
        dose = {name: getattr(self, name) for name in ("share", "cut", "window", "truncated")}
        return {"arm": self.label, **dose, "layers": "-".join(map(str, self.layers)) or "all"}

    @property
    def key(self) -> str:
        """The arm as the name of a file."""
        layers = self.about["layers"]
        return f"{self.label}--{self.share:.4f}--{self.cut}--{layers}--{self.window}--{self.truncated}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """The questions, what calibrates the choice of heads, and how many draws of it are made.

    Draw k of K answers the rows with row % K = k, so that all draws together cost one pass. `truncated_every` are the
    tokens between two truncations of a state.
    """

    questions: battery.Battery
    calibration: battery.Battery
    domains: tuple[str, ...]
    sequences: int = 16
    length: int = 1024
    draws: int = 10
    truncated_every: int = 64
    eps: float = spectra.EPS
    seed: int = 0


def plan(
    tasks: Sequence[str],
    domains: Sequence[str],
    *,
    items: int,
    windows: int,
    text_alone: bool = False,
    **options: object,
) -> Plan:
    """A plan with at least `items` of each task, `windows` of each domain; `options` are the other fields of `Plan`.

    Single heads are left out on fewer questions, of the calibration part: all tasks, two windows of a domain or
    a third of up to ten.
    """
    ask = functools.partial(battery.Battery, domains=tuple(domains), seed=options.get("seed", 0), text_alone=text_alone)
    few = {"rows": min(battery.Battery.rows, items), "copies": min(battery.Battery.copies, items)}
    # One pass a head: a larger run does not ask more.
    asked, read = min(items, 120) // 12, max(min(windows, 2), min(windows, 10) // 3)
    fewer = {"items": max(1, asked), "rows": max(2, asked), "windows": read, "copies": 0}
    calibrates = ask(tuple(tasks), **fewer, part="calibration")
    return Plan(ask(tuple(tasks), items=items, windows=windows, **few), calibrates, tuple(domains), **options)


def truncating(tasks: Sequence[str], domains: Sequence[str], *, rows: int, **options: object) -> Plan:
    """A plan for arms that cut the states of all heads, so that none are chosen or drawn: `rows` rows of each task."""
    return plan(tasks, domains, items=rows, windows=2, sequences=1, draws=1, text_alone=True, **options)


def answers(names: Sequence[str | Path], arms: Sequence[Arm], plan: Plan) -> pd.DataFrame:
    """Every answer of every model under every arm, kept in build/trials.

    Columns: those of `battery.answers`, draw, removed (heads, or those truncated), arm, share, cut, window, truncated,
    layers, model, kind, seed. Models and arms are dealt out to all cores, one thread each.
    """
    prepare(names, plan, [arm.name for arm in arms])
    return _everywhere("answers", names, plan, [(arm,) for arm in arms])


def prepare(names: Sequence[str | Path], plan: Plan, rules: Sequence[str]) -> None:
    """Find once what these rules choose heads by, which every process that asks for an arm would else find."""
    profiles(names, plan)
    if ORACLE in rules:
        damages(names, plan)


def profiles(names: Sequence[str | Path], plan: Plan) -> pd.DataFrame:
    """What every head of every model scores on calibration text, kept in build/trials.

    Columns: layer (in the decoder), axis (its place among those traced), head, D, the fields of `scores.Profile`,
    model, kind, seed.
    """
    return _everywhere("profile", names, plan)


def damages(names: Sequence[str | Path], plan: Plan) -> pd.DataFrame:
    """What removing each head alone costs on the calibration questions, kept in build/trials.

    Columns: those of `single_heads.damage`, model, kind, seed.
    """
    return _everywhere("damage", names, plan)


def overlaps(names: Sequence[str | Path], arm: Arm, plan: Plan, others: dict[str, Plan]) -> pd.DataFrame:
    """How many of an arm's heads other calibrations remove as well, averaged over draws.

    Columns: variant (the key in `others`), overlap (share of the arm's heads), chance (of as many random heads), model,
    kind, seed.
    """
    return _everywhere("overlap", names, plan, [(arm, label, other) for label, other in others.items()])


def compositions(names: Sequence[str | Path], arms: Sequence[Arm], plan: Plan) -> pd.DataFrame:
    """What the heads of each arm are like, averaged over draws.

    Columns: heads (removed), rank, decay (their means), high and low (shares in these strata), distance (standardised
    difference of their decays to those of `high` at the same share, `controls.balance`: below 0.1 counts as matched),
    arm, share, cut, places (the first draw's heads, layer.head), chosen (a short hash of them), model, kind, seed.
    """
    return _everywhere("composition", names, plan, [(arm,) for arm in arms])


def audits(names: Sequence[str | Path], arm: Arm, plan: Plan) -> pd.DataFrame:
    """What physically removing the heads of an arm's first draw changes, measured on a text of 256 tokens at most.

    Columns: removed (heads), tokens; with _before and _after: parameters, bytes of state and of the whole cache as the
    real cache holds them, and as predicted (`state_predicted`, `cache_predicted`); logits_differ: the largest
    difference of a logit from the model whose heads are only masked; model, kind, seed.
    """
    return _everywhere("audit", names, plan, [(arm,)])


def known() -> list[str]:
    """The names that an arm can have."""
    return [INTACT, *BY_RANK, ORACLE, *scores.RULES]


class Subject:
    """One model under a plan, asked for its part of the tables above; what it found is kept in the folder `kept`."""

    def __init__(self, name: str | Path, plan: Plan, kept: Path) -> None:
        self.name, self.model, self.plan, self.folder = name, opened.model(name), plan, kept
        made_by = opened.made_by(name) | {"plan": dataclasses.asdict(plan), "seed": self.model.seed}
        made_by |= {"code": CODE}
        self.kept = store.RunStore(kept, made_by=made_by)
        self._sheet = functools.cache(functools.partial(battery.sheet, tokenizer=self.model.tokenizer))

    def ask(self, question: str, *details: object) -> pd.DataFrame:
        """A table of one of the methods below with the model's names; denormal numbers count as zeros meanwhile."""
        with denormals.flushed():
            return getattr(self, question)(*details).assign(**opened.about(self.model))

    def profile(self) -> pd.DataFrame:
        return self.kept.once("profile", self._profile)

    def damage(self) -> pd.DataFrame:
        return self.kept.once("damage", lambda: single_heads.damage(self.model, self._sheet(self.plan.calibration)))

    def answers(self, arm: Arm) -> pd.DataFrame:
        return self.kept.once(arm.key, lambda: self._answers(arm))

    def overlap(self, arm: Arm, variant: str, other: Plan) -> pd.DataFrame:
        elsewhere = Subject(self.name, other, self.folder)
        pairs = [(self.heads(arm, draw), elsewhere.heads(arm, draw)) for draw in range(self.plan.draws)]
        shared = [float((a & b).sum() / a.sum()) for a, b in pairs]
        chance = float(pairs[0][0].sum()) / int(self.model.held.sum())
        return pd.DataFrame([{"variant": variant, "overlap": sum(shared) / len(shared), "chance": chance}])

    def composition(self, arm: Arm) -> pd.DataFrame:
        found, rows, high_arm = self._found(), [], dataclasses.replace(arm, name="high", matched=False)
        for draw in range(self.plan.draws):
            chosen = self.heads(arm, draw)
            rank, decay = found.rank[chosen], found.decay[chosen]
            high, low = rank >= strata.HIGH * found.D, rank <= strata.LOW * found.D
            means = {"rank": rank, "decay": decay, "high": high.double(), "low": low.double()}
            row = {"heads": len(rank)} | {name: float(values.mean()) for name, values in means.items()}
            rows.append(row | {"distance": controls.balance(chosen, self.heads(high_arm, draw), found.decay)})
        means = pd.DataFrame(rows).mean().to_frame().T
        first = self.heads(arm, 0)
        chosen = hashlib.sha256(first.numpy().tobytes()).hexdigest()[:8]
        places = " ".join(f"{self.model.layers[axis].index}.{head}" for axis, head in first.nonzero().tolist())
        return means.assign(arm=arm.label, share=arm.share, cut=arm.cut, places=places, chosen=chosen)

    def audit(self, arm: Arm) -> pd.DataFrame:
        heads, model = self.heads(arm, 0), models.load(self.name)
        read = next(iter(self._sheet(self.plan.questions).values())).tokens[:1, :256]
        pruned = pruning.prune_heads(model, ~heads)
        with ablation.ablate_heads(model, heads), torch.inference_mode():
            masked = model.hf(read, use_cache=False).logits
        row = {"removed": int(heads.sum()), "tokens": read.shape[1]}
        for name, which in (("before", model), ("after", pruned)):
            with torch.inference_mode():
                read_by = which.hf(read, use_cache=True)
            state, whole = linear_cache.held_bytes(read_by.past_key_values)
            row |= {f"parameters_{name}": which.hf.num_parameters(), f"state_{name}": state, f"cache_{name}": whole}
            row |= {f"state_predicted_{name}": models.state_bytes(which)}
            row |= {f"cache_predicted_{name}": memory.cache_bytes(which.hf, read.shape[1])}
        row["logits_differ"] = float((read_by.logits - masked).abs().max())
        return pd.DataFrame([row])

    def heads(self, arm: Arm, draw: int) -> Bool[Tensor, "L H"]:
        """The heads that one draw of an arm removes. Raises ValueError for an arm that is not known."""
        if arm.layers and arm.cut != "per layer":
            raise ValueError(f"{arm.label}: an arm within some layers takes its heads per layer, not {arm.cut}")
        if arm.name == INTACT:
            return torch.zeros_like(self.model.held)
        generator = self.drawing(draw, self.model.name)
        score, per_layer = self._score(arm.name, generator), arm.cut == "per layer"
        chosen = ~pruning.select(score, arm.share, per_layer=per_layer, generator=generator) & ~score.isnan()
        if arm.name == DECAY_MATCHED:
            chosen = controls.decay_matched(chosen, self._found().decay, generator=generator)
        if arm.matched:
            chosen = ablation.matched_random(chosen, generator=generator)
        if arm.layers:
            chosen[[i for i, layer in enumerate(self.model.layers) if layer.index not in arm.layers]] = False
        return chosen

    def drawing(self, *what: int | str) -> torch.Generator:
        """Draws of their own for the plan's seed and these numbers and names.

        The model's is one of them: the same places removed in each model would look like agreement between them.
        """
        numbers = [x if isinstance(x, int) else zlib.crc32(x.encode()) for x in what]
        seeds = np.random.SeedSequence([self.plan.seed, *numbers])
        return torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))

    def _score(self, name: str, generator: torch.Generator) -> scores.Scores:
        """What an arm takes the highest of."""
        if name == ORACLE:
            return single_heads.oracle(self.damage(), self.model)
        found = self._found()
        if name in BY_RANK:
            return BY_RANK[name](found.rank, found.D)
        if name not in scores.RULES:
            raise ValueError(f"no arm is called {name!r}; there are {', '.join(known())}")
        return scores.under(name, found, generator)

    def _answers(self, arm: Arm) -> pd.DataFrame:
        plan, model, tables = self.plan, self.model, []
        draws = 1 if arm.name == INTACT else plan.draws
        positions = range(plan.truncated_every, plan.questions.length, plan.truncated_every)
        for draw in range(draws):
            heads = self.heads(arm, draw)
            cut = functools.partial(ablation.truncate_states, rank=arm.truncated, positions=positions)
            seen = ablation.attention_window(model, arm.window) if arm.window else contextlib.nullcontext()
            with (cut if arm.truncated else ablation.ablate_heads)(model, heads=heads), seen:
                given = battery.answers(model, self._sheet(plan.questions), fold=(draw, draws))
            tables.append(given.assign(draw=draw, removed=int(heads.sum())))
        return pd.concat(tables, ignore_index=True).assign(**arm.about)

    def _profile(self) -> pd.DataFrame:
        plan, model = self.plan, self.model
        tokens = scores.calibration(model, domains=plan.domains, n=plan.sequences, length=plan.length, seed=plan.seed)
        found = scores.profile(model, tokens, eps=plan.eps)
        fields = {name: getattr(found, name).flatten().numpy() for name in scores.MEANS}
        places = [(axis, at.index, head) for axis, at in enumerate(model.layers) for head in range(model.grid.H)]
        return pd.DataFrame(places, columns=["axis", "layer", "head"]).assign(D=found.D, **fields)

    def _found(self) -> scores.Profile:
        table = self.profile()
        fields = {name: torch.tensor(table[name].to_numpy()).view(self.model.grid[:2]) for name in scores.MEANS}
        return scores.Profile(**fields, D=int(table["D"].iloc[0]))


def _everywhere(
    question: str, names: Sequence[str | Path], plan: Plan, details: Sequence[tuple] = ((),)
) -> pd.DataFrame:
    """One table of what every model answers to a question, asked with each of the details; all cores work on it."""
    opening = plan, store.kept_dir() / "trials"
    return opened.table(Subject, names, opening, [(question, *each) for each in details], desc=question)
