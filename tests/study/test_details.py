"""What pages, README and scorecard say in numbers, found again in the tables, by other code.

A sentence is held against its tables by a function that says whether it is true; where it has a # for a number, by one
that gives the numbers, and the page must say these, rounded as it rounds.
"""

import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from srdyn.loading import files
from srdyn.study.analysis import update_rules
from srdyn.study.claims import registration
from srdyn.study.run import store
from srdyn.study.trials import effects
from srdyn.training import mixture

FOUR = ["hybrid", "pure", "hybrid-seed1", "pure-seed1"]
MAIN = ["main-hybrid", "main-pure"]
SIZES = ["hybrid-d32", "hybrid-d128", "pure-d32"]
ON = ["pure-text", "pure-chains"]
FIRST, SEEDS = FOUR[:2], FOUR[2:]
TASKS = ["needle", "recall8", "chain", "sum"]
FIVE = [*FOUR, "uniform"]
CELL, ENDS = "# [#, #]", ["estimate", "low", "high"]


def of(stem, where=""):
    """Rows of a table, `thorough/…` for one of the thorough run."""
    found = store.load_table(Path(stem).name, run=Path(stem).parent.name or "reference")
    return found.query(where) if where else found


def said(page):
    """A page without its ends of line."""
    return " ".join((files.root() / page).read_text().split())


def by(stem, where, index="arm", value="estimate"):
    """One number a model (columns) and line."""
    return of(stem, where).pivot_table(index=index, columns="model", values=value, sort=False)


def each(stem, where, value="estimate"):
    """One number a model."""
    return of(stem, where).set_index("model")[value]


def across(stem, where, by, order, values=ENDS):
    """The numbers of a table's rows, in this order."""
    return of(stem, where).set_index(by).loc[order, values].to_numpy().ravel()


def ends(*numbers):
    """The least and the greatest of each."""
    return [end for found in numbers for end in (found.min(), found.max())]


def rows(names, cells, numbers):
    """Of a table in a page: what rows begin with, the cells that follow, and the numbers in them, by name."""
    return {f"| {label} | {' | '.join(cells)} |": functools.partial(numbers, x) for label, x in names.items()}


def full_from_twenty():
    heads = of("05_mechanism_heads", "D == 64").assign(full=lambda x: x["rank"] >= 0.9 * x["D"])
    full = heads.groupby([heads["half_life"] > 25, heads["half_life"] > 15])["full"].mean()
    return full[True, True] == 1 and full[False, False] == 0


def without(arm, versus="random", value="difference", share=0.25, probe="needle"):
    """Of the thorough run: what removing an arm's heads of every layer changes, a number a model."""
    asked = f"probe == '{probe}' and share == {share} and arm == '{arm}' and versus == '{versus}'"
    return each("thorough/03_ablation_differences", asked, value)


def retained(factor=True):
    """Needles found by group, half-life and distance, where the half-lives are a sixteenth, or set."""
    table = of("05_mechanism_retention", "group != 'intact'")
    return table[table["factor"].notna() == factor].set_index(["group", "half_life", "distance", "model"])["estimate"]


def ranks_with_a_sixteenth():
    changed = of("05_mechanism_retention", "factor == factor and group == 'saturated, fast'")
    heads = of("05_mechanism_heads", "stratum == 'high' and model in @FOUR")
    return changed.groupby("model")["rank"].first() / heads["rank"].mean()


def set_to(times):
    """Needles found at this many half-lives, of the slower half, from 20 tokens on."""
    found = retained(factor=False)["saturated, slow"].reset_index()
    return found[(found["distance"] / found["half_life"]).between(*times) & (found["half_life"] >= 20)]


def share_of_two():
    """How much of the needles that single heads cost two of them bear, the most they cost; a line a model."""
    cost = each("03_ablation_heads", "probe == 'needle'", "damage").clip(lower=0).groupby("model")
    return cost.apply(lambda cost: cost.nlargest(2).sum() / cost.sum()), cost.max()


def worst():
    """The head of each second seed that costs most at any distance."""
    found = of("05_mechanism_single", "changed == 'removed' and model in @SEEDS")
    return found.loc[found.groupby("model")["damage"].idxmax()]


def picked(changed, predictor):
    """The share of the damage that the worst tenth bears by a property, a number a model."""
    asked = f"changed == '{changed}' and predictor == '{predictor}' and quantity.str.startswith('share')"
    return each("05_mechanism_damage", asked)


def recall(distance):
    """The lower end of what a passage saves that stood so far back."""
    return by("05_mechanism_gaps", "group == 'intact' and quantity == 'recall'", "distance", "low").loc[distance]


def kept_at(share, arm):
    """Accuracy kept of the thorough run by one cut, first seeds."""
    asked = f"probe == '{effects.KEPT}' and share == {share} and cut == 'overall'"
    return by("thorough/04_pruning_estimates", asked).loc[arm, FIRST]


def paper(probe, arm):
    """What the four do at the paper's share without an arm's heads, beside all heads."""
    found = of("04_pruning_rivals", f"share == 0.389 and arm == '{arm}' and probe == '{probe}'").set_index("model")
    return (found["estimate"] / found["intact"].fillna(1))[FOUR]


def back():
    """How much of what text lost training gives back, by arm."""
    found = by("thorough/04_pruning_healed", f"probe == '{effects.TEXT}'", ["arm", "when"])["pure"]
    whole = found["intact", "whole"]
    ends = found.unstack()
    return ((ends["pruned"] - ends["healed"]) / (ends["pruned"] - whole)).dropna()


def sizes(model, stratum, side):
    """Whether the registered share of a stratum lies below (-1), in (0) or above (1) the measured interval."""
    found = of("05_mechanism_sizes", f"model == '{model}'").set_index("quantity")
    low, high = found.loc["measured", [f"{stratum}_lo", f"{stratum}_hi"]]
    told = found.loc["registered", stratum]
    return (-1 if told < low else int(told > high)) == side


def order_kept():
    table = of("06_emergence_kept").set_index("model").loc[FOUR]
    return table["only_shares"] > table["kappa"], table["same_shares"] / table["kappa"]


def low_share(model):
    return each("01_stratification_claims_second", "measure == 'low-rank heads' and source == 'model'")[model]


def modes(quantity):
    return each("01_stratification_modes", f"quantity == '{quantity}'")


def most_uncertain(stem, where):
    """How far off another processor may find the farthest of a model's numbers."""
    return of(stem, where)["uncertain"].max()


def outcomes():
    """By registration, measure and model: whether what a rule says hangs on how far off another processor may be."""
    found, ways = {}, np.array([*itertools.product((-1, 0, 1), repeat=3)])
    for which, suffix in ((registration.FIRST, "claims"), (registration.SECOND, "claims_second")):
        rules = registration.load(which)
        for stem in ("01_stratification", "02_consistency"):
            for row in of(f"{stem}_{suffix}", "source == 'model' and uncertain.notna()").itertuples():
                [rule] = [x for x in rules.claim(row.claim).measures if x.name == row.measure]
                numbers = np.array([row.estimate, row.low, row.high]) + ways * row.uncertain
                said = {rule.outcome(*each) for each in numbers.tolist()}
                found[which, row.measure, row.model] = len(said) > 1
    return found


def others(measure):
    """The registrations and models whose outcome of such a measure could be another."""
    return {(which, model) for (which, name, model), other in outcomes().items() if other and name.startswith(measure)}


DETAILS = {
    f"beside random heads, {CELL} without the lowest quarter of each layer and {CELL} without": lambda: (
        [x for model, arm in (("main-hybrid", "low"), ("main-hybrid", "high")) for x in kept_in_main(model, arm)]
    ),
    f"`main-pure` {CELL} and {CELL} (`main/03_ablation_differences`; below 0": lambda: [
        x for arm in ("low", "high") for x in kept_in_main("main-pure", arm)
    ],
    "costs `main-hybrid` # bits a token, # without the lowest quarter, # without the highest, # without": lambda: (
        again_in_main("main-hybrid").loc[["intact", "low", "high", "random"]]
    ),
    "highest quarter #, # and # are found in `main-hybrid`, #, # and # in `main-pure`": lambda: np.ravel(
        [of_main("recall8", model)[:9:3] for model in MAIN]
    ),
    "find fewer without the highest, those that miss them for needles but `hybrid-d32`": lambda: (
        {x for x in NINE if beside_random(x)[2] < 0} - {x for x in NINE if beside_random(x, "recall8")[2] < 0}
        == {"hybrid-d32"}
    ),
    f"Of other update rules `kda` misses the highest quarter ({CELL})": lambda: of(
        "10_rules_removed", "model == 'kda' and arm == 'high' and probe == 'needle' and reference == 'random'"
    )[ENDS].to_numpy()[0],
    "one fewer without the lowest, `main-hybrid`": lambda: (
        [x for x in NINE if beside_random(x, "recall8")[5] < 0] == MAIN[:1]
    ),
    "What a text read once costs more was not resolved: there are # windows": lambda: [
        of("main/03_ablation_estimates", f"probe == '{effects.TEXT}'")["n"].max()
    ],
    "Still it has the paper's order at 38.9 %": lambda: (
        np.diff(found_without("hybrid", 0.389, ["low", "random", "high"])[::3]) > 0.2
    ).all(),
    "In the small hybrid softmax is not what retrieves: with 16 tokens of it all needles are found": lambda: (
        of("03_ablation_narrowed", "probe == 'needle' and arm == 'intact' and window == 16 and model == 'hybrid'")[
            "estimate"
        ]
        > 0.98
    ).all(),
    "full from a half-life of some twenty tokens on": full_from_twenty,
    "their ranks fall by about half": lambda: ranks_with_a_sixteenth().between(0.4, 0.65).all(),
    "most needles are found up to one and a half half-lives back": lambda: (
        (set_to((1.5, 1.7)).groupby("half_life")["estimate"].max() >= 0.9).all()
        and set_to((1.5, 1.7)).query("half_life >= 80")["estimate"].min() >= 0.8
    ),
    "at three, of a half-life of 320 tokens, four to nine of ten are lost": lambda: (
        lambda far: (far.min(), far.max()) == (0.1, 0.6)
    )(set_to((3, 3.3)).query("half_life == 320")["estimate"]),
    "with those of the slow heads one in ten at most": lambda: (
        retained()["saturated, slow"].xs("hybrid-seed1", level="model").min() >= 0.9
        and retained()["others"].xs("hybrid-seed1", level="model").iloc[-1] <= 0.1
    ),
    "Cut to rank 8 every 64 tokens": lambda: (
        of("05_mechanism_truncation", "probe == 'needle' and truncated == 8 and every == 64")["estimate"] > 0.8
    ).all(),
    "up to some 16 tokens back in the pure models and some hundreds in the hybrids": lambda: (
        (recall(16) > 0).all()
        and (recall(256) > 0).tolist() == ["hybrid" in model for model in recall(256).index]
        and (recall(1024) < 0).all()
    ),
    "one or two heads bear nearly all of what single heads cost; in the first pure one hardly": lambda: (
        (share_of_two()[0][["hybrid", *SEEDS]] > 0.95).all() and share_of_two()[1]["pure"] < 0.05
    ),
    "the tenth that the half-life picks bears most of the damage in three of four models": lambda: (
        (picked("half-life ÷ 16", "half-life") > 0.5).sum() == 3
    ),
    "in the first hybrid alone, and the number of its layer does in three": lambda: (
        (picked("removed", "half-life") > 0.5).pipe(lambda x: list(x[x].index)) == ["hybrid"]
        and (picked("removed", "layer") > 0.5).sum() == 3
    ),
    "with ties drawn within strata up to half": lambda: (
        0.45 < max(picked(x, "rank, ties within strata").max() for x in ("removed", "half-life ÷ 16")) < 0.5
        and max(picked(x, "effective rank").max() for x in ("removed", "half-life ÷ 16")) < 0.25
    ),
    "In both second seeds the head that costs most alone is of low rank and forgets within a token": lambda: (
        (worst()["rank"] < 0.25 * worst()["D"]).all() and (worst()["half_life"] < 1).all()
    ),
    "a thousand needles are found as well without the highest ranks as with them": lambda: (
        abs(without("high", "intact")["hybrid"]) < 0.001 and without("high", "intact", "n")["hybrid"] == 1000
    ),
    "in two of these although the ranks stay above 0.85 of the bound": lambda: (
        far_lost()[0].sum() == 3 and (far_lost()[0] & (far_lost()[1] > 0.85)).sum() == 2
    ),
    "and at most one needle in ten is lost": lambda: far_lost()[2] <= 0.1 + 1e-9,
    "its half-lives are # tokens in the median": lambda: [
        of("05_mechanism_single", "model == 'hybrid-seed1' and group == 'saturated, slow'")["half_life"].median()
    ],
    "at 80 tokens nearly all that lie 512 tokens back and all that lie 1024 back": lambda: (
        slower_half(80, 512)["estimate"].max() <= 0.2 and slower_half(80, 1024)["estimate"].max() == 0
    ),
    "is in that quarter, with a half-life of # tokens": lambda: [half_life_of_the_worst_of_uniform()],
    "In `hybrid` and `pure` that quarter costs nothing": lambda: (
        abs(without("fast decay", "intact")[FIRST]) < 0.01
    ).all(),
    "each interval lies above 0, and none is significant after Holm's adjustment": lambda: (
        (without("low", value="low")[FOUR] > 0).all() and (without("low", value="adjusted")[FOUR] > 0.05).all()
    ),
    "the high stratum stands at places # to #, the low one at # to #": lambda: ends(
        *(of("03_ablation_places", f"arm == 'tied {side}'")["place"] for side in ("high", "low"))
    ),
    f"nearly all needles in both first seeds, {CELL} and {CELL} more than random heads": lambda: cost_of_one_cut(),
    f"more without the lowest ranks than without random heads, {CELL}, and {CELL} of all without": lambda: [
        *(without("low", value=value, share=0.389)["pure"] for value in ("difference", "low", "high")),
        *found_without("pure", 0.389, ["high"]),
    ],
    f"than nearly all random sets (places {CELL} and {CELL})": lambda: among_sets(["place", "low", "high"]).loc[FIRST],
    f"it is like any other ({CELL} and {CELL})": lambda: among_sets(["place", "low", "high"]).loc[SEEDS],
    f"text is open in `pure-seed1` too, {CELL}, and worse in `hybrid`, {CELL}": lambda: across(
        *bits("removed", 0.75, "small output"), "model", ["pure-seed1", "hybrid"]
    ),
    "at half the bytes it is worse in all four, whichever of these rules chooses": lambda: all(
        (of(*bits("removed", 0.5, rule))["low"] > 0).sum() == 4 for rule in ("oracle", "small output")
    ),
    f"text is worse in `pure-seed1` alone, {CELL}": lambda: across(
        *bits("int4", 0.125), "model", of(*bits("int4", 0.125)).query("low > 0")["model"].tolist()
    ),
    "they cost more needles than the claim allows in all four models and in `uniform`": lambda: (
        (-without("tied high", "intact", "high") > 0.03).sum() == 5
    ),
    "within the low stratum, about a third of the needles at most; in `uniform` it costs all": lambda: (
        (without("low", "intact")[FOUR] > -0.02).all()
        and without("tied low", "intact")[FOUR].min().round(2) == -0.34
        and without("low", "intact")["uniform"] < -0.98
    ),
    "Half of the heads called highest in the hybrids are not high-rank": lambda: (
        each("03_ablation_composition", "arm == 'high' and share == 0.25", "high")[FOUR[::2]].between(0.4, 0.5).all()
    ),
    "two hundred random sets of as many heads: of these eight choices, two in each": lambda: (
        of("03_ablation_places")["n"].eq(200).all()
        and of("03_ablation_places").groupby("model").size().tolist() == [2] * 4
        and of("03_ablation_places")["verdict"].eq("undecided").all()
    ),
    "do worse than without random heads in three of five cases and, before adjusting for": lambda: (
        (without("low", value="adjusted", share=0.389) < 0.05).pipe(lambda x: sorted(x[x].index))
        == ["hybrid-seed1", "pure-seed1", "uniform"]
        and without("low", value="high", share=0.389)["hybrid"] < 0
    ),
    "all needles are found without the highest ranks, three of ten without the lowest": lambda: (
        by("thorough/03_ablation_estimates", "probe == 'needle' and share == 0.389 and window == 0")
        .loc[["high", "low"], "hybrid"]
        .round(1)
        .tolist()
        == [1.0, 0.3]
    ),
    "worse than without random heads in four of five models, without the highest better in three": lambda: (
        (without("low", value="low", probe=effects.TEXT) > 0).sum() == 4
        and (without("high", value="high", probe=effects.TEXT) < 0).sum() == 3
    ),
    "At 38.9 % the joint score leaves next to nothing": lambda: (paper(effects.KEPT, "joint, α = 0.5") < 0.06).all(),
    "keeps them in all four models; removing first what forgets fastest keeps them in the first": lambda: (
        paper("needle", "oracle").ge(0.9).all()
        and paper("needle", "fast decay")[FIRST].ge(0.9).all()
        and (paper("needle", "fast decay")[SEEDS] == 0).all()
    ),
    "(three in the second pure model): at a tenth of the heads in the first seeds, at a twentieth": lambda: (
        each("04_pruning_oracle", "testable", "share")[FOUR].tolist() == [0.1, 0.1, 0.05, 0.05]
        and (each("04_pruning_oracle", "testable", "kept") >= 0.95).all()
        and each("04_pruning_rivals", "arm == 'intact' and probe in @TASKS", "testable")["pure-seed1"].sum() == 3
    ),
    "at 15 % of all heads, rank alone keeps nine tenths of the accuracy in the first pure model": lambda: (
        kept_at(0.15, "rank").round(1).tolist() == [0.3, 0.9]
        and kept_at(0.15, "joint, α = 0.5").round(1).tolist() == [0.0, 0.1]
    ),
    "a quarter of the bytes is left, and none of the four models loses anything that the few rows": lambda: (
        (quarter(["int8", "fp8"])["low"] <= 0).sum() == len(quarter(["int8", "fp8"])) == 8
        and (quarter(["int8", "fp8"], effects.KEPT)["estimate"] == 1).all()
    ),
    "Cut to rank 8, states take a quarter too, and the pure model loses five thousandths of a bit a token": lambda: (
        lambda found: found["model"].tolist() == ["pure"] and found["estimate"].round(3).tolist() == [0.005]
    )(quarter(["rank"]).query("low > 0")),
    "Where heads are removed until three quarters of the bytes are left, both pure models predict text worse": lambda: (
        (text_without_the_oracles_choice() > 0).loc[FOUR].tolist() == [False, True, False, True]
    ),
    "Trained on 131,072 tokens more, `pure` without a quarter of every layer's heads gets back half": lambda: (
        set(of("thorough/04_pruning_healed")["tokens"]) == {0, 131072} and back().round(1).between(0.5, 0.6).all()
    ),
    "(of `uniform` a fifth, of the hybrid's heads of 128 seven in ten)": lambda: (
        round(low_share("uniform"), 1) == 0.2
        and of("05_mechanism_sizes", "D == 128 and quantity == 'measured'")["low"].round(1).tolist() == [0.7]
    ),
    "two peaks, p ≤ .001 in all but one of the models (`hybrid-seed1`: #)": lambda: (
        [modes("ranks").max()] if (modes("ranks") < 0.0015).sum() == 4 else []
    ),
    "in `uniform` they do so in a third of draws only": lambda: (
        0.3 < modes("two groups from one mode of half-lives")["uniform"] < 0.37
    ),
    "above a hundredth of the largest count, no head of the median layer is full": lambda: (
        of("01_stratification_shares", "source == 'model' and split == '1e-02'")["high"].tolist() == [0.0] * 5
    ),
    "nearly the same ranks, the middle ones a quarter higher": lambda: (
        lambda x: (x["mechanism"] / x["rank"]).between(1.2, 1.3).all()
    )(of("05_mechanism_heads", "stratum == 'middle'").groupby("model")[["rank", "mechanism"]].mean()),
    "While one token is repeated no head comes to a high rank": lambda: (
        of("02_consistency_attacks").eval("rank / D").max() < 0.5
    ),
    "In the three that are here the low shares came out within their intervals": lambda: all(
        sizes(model, "low", 0) for model in ("hybrid-d32", "hybrid-d128", "pure-d32")
    ),
    "In the hybrid with heads of 32 so did all other shares": lambda: all(
        sizes("hybrid-d32", stratum, 0) for stratum in ("middle", "high")
    ),
    "and of the pure model's of 32, more are between, and fewer high, than was foretold": lambda: all(
        sizes(model, "middle", -1) and sizes(model, "high", 1) for model in ("hybrid-d128", "pure-d32")
    ),
    "Nearly half of the heads of `pure` are low, and the ranks of its layers fork": lambda: (
        0.4 < trained("low heads")["pure"] < 0.5 and trained("smaller group", "low")["pure"] > 0.1
    ),
    "none has more than a few low heads, nor do layers fork": lambda: (
        (trained("low heads")[RULES] < 0.05).all() and (trained("smaller group")[RULES] == 0).all()
    ),
    "In DeltaNet, RWKV-7 and GLA no head forgets within two tokens": lambda: (
        (forgetting_fast()[SLOW] == 0).all() and forgetting_fast()["pure"] > 0.5
    ),
    "In KDA most do, by the mean decay of their channels": lambda: forgetting_fast()["kda"] > 0.8,
    "but foretells far lower ranks than are measured": lambda: (
        trained("closed form, Spearman ρ", "low")["kda"] > 0.9
        and (lambda x: x["rank"] - x["predicted"])(of("10_rules_heads", "model == 'kda'")).median() > 16
    ),
    "has their order (Spearman ρ #)": lambda: [trained("closed form, Spearman ρ")["kda"]],
    f"the closed form explains most, R² {CELL} between heads": lambda: closed_form("R² between heads", ["rwkv7"]),
    f"it explains nothing, R² {CELL}, though": lambda: closed_form("R² between heads", ["mamba2"]),
    "it has the order in part (ρ #)": lambda: [trained("closed form, Spearman ρ")["mamba2"]],
    "at a rank of # in the median where it says #": lambda: median_of_mamba(),
    "The heads of all six agree between texts in order, those of KDA best": lambda: (
        trained(update_rules.RHO, "low")["kda"] > trained(update_rules.RHO, "high").drop("kda").max()
        and (trained(update_rules.RHO, "low") > 0.8).all()
    ),
    "before training all states of DeltaNet and GLA are full, and there is no order": lambda: all(
        trained("high heads", source="untrained")[model] == 1
        and trained(update_rules.RHO, source="untrained")[model] < 0.2
        for model in ("deltanet", "gla")
    ),
    "random writes under its write strengths fill every state of DeltaNet": lambda: (
        trained("high heads", source="mechanism")["deltanet"] == 1
    ),
    "with which ranks hardly go together (Spearman ρ #)": lambda: [trained("closed form, Spearman ρ")["gla"]],
    "Recall of eight pairs by DeltaNet, GLA and KDA stays whole without the lowest quarter by rank of each": lambda: (
        (recall_lost("low", "low")[RECALLING] > -0.02).all() and (recall_lost("high", "high")[RECALLING] < 0).all()
    ),
    f"KDA and GLA then recall less, {CELL} and {CELL}; of DeltaNet, {CELL}, that is open": lambda: across(
        "10_rules_removed", over_random("recall8", "high"), "model", ["kda", "gla", "deltanet"]
    ),
    "Of needles KDA and Mamba-2 find fewer than without random heads; of GLA and DeltaNet that is open": lambda: (
        lambda found: (
            (found["high"] < 0).loc[["kda", "mamba2", "gla", "deltanet"]].tolist() == [True, True, False, False]
            and (found["low"] < 0)[["gla", "deltanet"]].all()
        )
    )(of("10_rules_removed", over_random("needle", "high")).set_index("model")),
    "Without the lowest ranks no interval of the difference to random heads lies below 0": lambda: all(
        (of("10_rules_removed", over_random(probe, "low"))["high"] > 0).sum() == 6 for probe in ("needle", "recall8")
    ),
    "the hybrid of 128 has too few heads at the bound; of the other two that is open": lambda: (
        lambda high: (high < 0.2).to_dict() == {"hybrid-d32": False, "hybrid-d128": True, "pure-d32": False}
    )(each("05_mechanism_sizes", "D != 64 and quantity == 'measured'", "high_hi")),
    "which heads, only in part: ρ with the start is # to #": lambda: ends(identity_with_the_start()),
    "agree in both far better than by chance, and each of them with `pure`, while `pure` and the model of another": (
        lambda: (as_by_chance() == [False, False, False, True]).all(axis=None)
    ),
    "asks for κ of 0.8, that is open for the two (#, # to #)": lambda: trained_on("kappa")[:3],
    "called low and high at the start as at the end, it is two to six times as high": lambda: (
        order_kept()[0].tolist() == [False, False, False, True] and order_kept()[1].round().isin(range(2, 7)).all()
    ),
}
README = {
    "about half of the heads of the four models hold little": lambda: all(0.4 < low_share(x) < 0.67 for x in FOUR),
    "Of six update rules, one model each, trained alike, one alone has many low heads": lambda: (
        trained("low heads", "low")["pure"] > 0.3 and (trained("low heads", "high")[RULES] < 0.1).all()
    ),
    "and when a model is trained on, with other data": lambda: (trained_on("spearman")[:9] > 0.98).all(),
    "six of nine models find fewer without the highest quarter by rank of each layer than without random": lambda: (
        sum(beside_random(model)[2] < 0 for model in NINE) == 6
    ),
    "three of them after adjustment for 18 contrasts": lambda: len(holm()["high"]) == 3,
    "One finds fewer without the lowest, `main-hybrid`": lambda: (
        [model for model in NINE if beside_random(model)[5] < 0] == MAIN[:1]
    ),
    "none then, and all without the highest, as the paper says": lambda: (
        of_main("needle", "main-hybrid")[[0, 6]].tolist() == [0, 1]
    ),
    "n = # needles in `hybrid` and `hybrid-seed1`, # in the others": lambda: (
        lambda n: [n[["hybrid", "hybrid-seed1"]].min(), n[[MAIN[0], *SIZES[:2]]].max()]
    )(of("08_scorecard_removal", "probe == 'needle' and arm == 'low' and share == 0.25").set_index("model")["n"]),
    "At the paper's share four of the nine miss the lowest, six the highest": lambda: at_papers_share() == [6, 4],
    "Where the main pair loses needles, one head or two decide": lambda: all(
        (alone_in_main(model)["damage"] > 0.5).sum() == 2 for model in MAIN
    ),
    "leaves next to nothing where random heads leave a third; in the main hybrid": lambda: (
        (paper(effects.KEPT, "joint, α = 0.5") < 0.06).all() and paper(effects.KEPT, "random").between(0.25, 0.36).all()
    ),
    "in the main hybrid # where these leave #": lambda: rivals_of_main("joint, α = 0.5", "random")[::3],
}
VERDICTS = {
    "κ between domains (C5) moves by # at most, ρ by #; R² between heads by #": lambda: [
        *(
            most_uncertain("02_consistency_claims_second", f"measure == '{x} between domains' and source == 'model'")
            for x in ("kappa", "spearman")
        ),
        most_uncertain("05_mechanism_explained", "quantity == 'R² between heads'"),
    ],
    "Of # outcomes of rules in 01 and 02, # could be others by it": lambda: [len(outcomes()), sum(outcomes().values())],
    "the middle group (C1: hybrid; second: uniform, pure-seed1)": lambda: (
        others("middle") == {("first", "hybrid"), ("second", "uniform"), ("second", "pure-seed1")}
    ),
    "order in time (C3: hybrid, hybrid-seed1, uniform)": lambda: (
        others("spearman ") == {("first", "hybrid"), ("first", "hybrid-seed1"), ("first", "uniform")}
    ),
    "high heads at the bound (C2, second: uniform, pure-seed1)": lambda: (
        others("high heads hold") == {("second", "uniform"), ("second", "pure-seed1")}
    ),
    "κ between domains (C5, second: pure, hybrid-seed1) and between checkpoints (C6)": lambda: (
        others("kappa") == {("second", "pure"), ("second", "hybrid-seed1"), ("first", "pure-text / chains")}
    ),
    "Below a threshold of 1e-5, ranks of float32 states say nothing certain of strata": lambda: (
        most_uncertain("05_mechanism_sweep", "eps == 1e-6") == 1
        and most_uncertain("05_mechanism_sweep", "eps == 1e-5") < 0.1
    ),
}


def far_lost():
    """What heads of a group lose at 512 tokens and farther, their half-lives a sixteenth; and their ranks, by model."""
    far = of("05_mechanism_retention", "distance >= 512")
    intact = far[far["group"] == "intact"].set_index(["model", "distance"])["estimate"]
    cut = far[far["factor"] == 1 / 16].set_index(["model", "distance"])
    lost = -cut.set_index("group", append=True)["estimate"].unstack().sub(intact, axis=0)
    full = (cut["rank"] / cut["D"])[cut["group"] == "saturated, slow"].groupby("model").first()
    return lost["saturated, slow"].groupby("model").min() >= 0.4, full, lost["saturated, fast"].max()


RULES = ["kda", "rwkv7", "mamba2", "gla", "deltanet"]
SLOW = ["rwkv7", "gla", "deltanet"]
RECALLING = ["kda", "gla", "deltanet"]


def trained(measure, value="estimate", source="model"):
    """Of the models of several update rules, by model."""
    return by("10_rules_measures", f"source == '{source}' and measure == '{measure}'", "measure", value).iloc[0]


def forgetting_fast():
    """The share of heads with half-lives below two tokens, by model."""
    return of("10_rules_heads").assign(fast=lambda x: x["half_life"] < 2).groupby("model")["fast"].mean()


def recall_lost(arm, value):
    """By the models of several update rules, without heads."""
    return each("10_rules_removed", f"probe == 'recall8' and reference == 'intact' and arm == '{arm}'", value)


def least_kept():
    """At the paper's share, by model and rule, on the task that is kept least."""
    rivals = of("04_pruning_rivals", "share == 0.389 and testable and probe in @TASKS")
    return (rivals["estimate"] / rivals["intact"]).groupby([rivals["model"], rivals["arm"]]).min()


def among_sets(column):
    """Of the joint score at the dose that the oracle stands."""
    return each("04_pruning_places", f"probe == '{effects.KEPT}'", column)


def quarter(how, probe="bits a token more"):
    """Held in a quarter of the bytes."""
    return of("04_pruning_frontier", f"share == 1 and 0.24 < bytes < 0.26 and how in {how} and probe == '{probe}'")


def primary(end):
    asked = "probe == 'needle' and share == 0.25 and arm == 'high' and versus == 'random' and kind == 'hybrid'"
    return of("thorough/03_ablation_differences", asked).set_index("seed")[end]


def text_without_the_oracles_choice():
    asked = "how == 'removed' and rule == 'oracle' and share == 0.25 and probe == 'bits a token more'"
    return each("04_pruning_frontier", asked, "low")


def found_without(model, share, arms):
    asked = f"probe == 'needle' and share == {share} and window == 0 and model == '{model}'"
    return across("thorough/03_ablation_estimates", asked, "arm", arms)


def slower_half(half_life, distance):
    return of(
        "05_mechanism_retention",
        f"group == 'saturated, slow' and factor != factor and half_life == {half_life} and distance == {distance}",
    )


def after_a_cut(group):
    asked = "factor != factor" if group == "intact" else "factor == 1 / 16"
    return across(
        "05_mechanism_retention", f"group == '{group}' and {asked} and distance == 1024", "model", FOUR, "estimate"
    )


def certain(found):
    """The interval of a needle share that is 0 or 1."""
    return of("05_mechanism_retention", f"estimate == {found}")[["low", "high"]].max()


def the_worst_heads():
    """In the thorough run, the head of each model whose removal costs most needles."""
    heads = of("thorough/03_ablation_heads", "probe == 'needle'")
    heads["place"] = heads.groupby(["model", "layer"])["decay"].rank()
    return heads.loc[heads.groupby("model")["damage"].idxmax()].set_index("model")


def half_life_of_the_worst_of_uniform():
    worst = the_worst_heads().loc["uniform"]
    asked = f"model == 'uniform' and layer == {worst['layer']} and head == {worst['head']}"
    return of("05_mechanism_heads", asked)["half_life"].iloc[0]


def heads_that_decide():
    """Heads of great damage that go with the lowest ranks at 38.9 % and not at 25 %, without those of `pure`."""
    gone = of("03_ablation_composition", "arm == 'low' and cut == 'per layer' and share in [0.25, 0.389]")
    places = gone.set_index(["model", "share"])["places"].str.split()
    heads = of("03_ablation_heads", "probe == 'needle' and damage > 1")
    name = heads["layer"].astype(str) + "." + heads["head"].astype(str)
    late = [
        x in places[model, 0.389] and x not in places[model, 0.25]
        for model, x in zip(heads["model"], name, strict=True)
    ]
    return heads[late].set_index("model")


def cost_of_one_cut():
    """Needles that the quarter of highest rank of the whole model costs beside random heads."""
    asked = "probe == 'needle' and arm == 'high' and cut == 'overall'"
    return -across("thorough/03_ablation_elsewhere", asked, "model", FIRST, ["difference", "high", "low"])


def bits(how, bytes_, rule=None):
    """Table and rows of what text loses, by how states are held, or by which rule heads go."""
    asked = f"probe == 'bits a token more' and how == '{how}' and abs(bytes - {bytes_}) < 0.005"
    return "04_pruning_frontier", asked + (f" and rule == '{rule}'" if rule else "")


def closed_form(quantity, models):
    return across("10_rules_measures", f"measure == 'closed form, {quantity}'", "model", models)


def over_random(probe, arm):
    return f"probe == '{probe}' and reference == 'random' and arm == '{arm}'"


def median_of_mamba():
    return of("10_rules_heads", "model == 'mamba2'")[["rank", "predicted"]].median()


def of_a_rule(model):
    """Shares of the strata and agreement of texts."""
    measures = ["low heads", "middle heads", "high heads", update_rules.RHO]
    return across("10_rules_measures", f"model == '{model}' and source == 'model'", "measure", measures)


def removed_of_a_rule(model):
    asked = f"model == '{model}' and reference != reference and share == 0.25 and probe == "
    return np.ravel(
        [across("10_rules_removed", f"{asked}'{x}'", "arm", ["low", "random", "high"]) for x in ("needle", "recall8")]
    )


def agreement(measure, source, models):
    asked = f"measure == '{measure} between contexts' and source == '{source}'"
    return across("02_consistency_claims", asked, "model", models)


PAIRS = ["pure-text / chains", "pure / text", "pure / chains", "pure / seed1"]


def trained_on(measure, source="model"):
    asked = f"measure == '{measure} between checkpoints' and source == '{source}'"
    return across("02_consistency_checkpoints", asked, "model", PAIRS)


def as_by_chance():
    """Of each pair, whether its agreement lies among those with heads in random order."""
    found = of("02_consistency_checkpoints")
    null = found[found["source"] == "permuted heads"].set_index(["measure", "model"])
    estimate = found[found["source"] == "model"].set_index(["measure", "model"])["estimate"]
    return estimate.between(null["low"], null["high"]).unstack()[PAIRS]


def in_time(source):
    return of("02_consistency_claims", f"measure == 'spearman 128 to 2048' and source == '{source}'")["estimate"]


def low_in_training(last):
    found = of("06_emergence_distribution", "measure == 'share of low' and position == 512 and model in @FOUR")
    return found[(found["step"] == found["step"].max()) == last].query("step == 0 or step > 3000")["estimate"]


def identity_with_the_start():
    return of("06_emergence_claims", "measure == 'identity with untrained' and model in @FOUR")["estimate"]


def told_from_zero():
    """Whether rank's or decay's part in the damage of text and needles is, by probe and model."""
    found = of("03_ablation_regression", "predictor in ['effective rank', 'log-decay']")
    found = found[found["probe"].str.startswith(("needle", "bits"))]
    return (found["low"] * found["high"] > 0).groupby([found["probe"], found["model"]]).any()


NINE = [*MAIN, *FOUR, *SIZES]


def contrasts(model, probe="needle", share=0.25):
    """What is found less or more than without random heads, without the highest and the lowest of each layer."""
    run = "main" if model in MAIN else "sizes" if model in SIZES else "thorough"
    asked = f"probe == '{probe}' and versus == 'random' and share == {share} and cut == 'per layer' and layers == 'all'"
    found = of(f"{run}/03_ablation_differences", f"{asked} and model == '{model}'")
    return found.set_index("arm").loc[["high", "low"]]


def beside_random(model, probe="needle", share=0.25):
    return contrasts(model, probe, share)[["difference", "low", "high"]].to_numpy().ravel()


def holm():
    """By arm, the models that miss it where p is adjusted for all of them."""
    found = pd.concat([contrasts(model) for model in NINE]).reset_index().sort_values("p", ignore_index=True)
    found["adjusted"] = (found["p"] * (len(found) - found.index)).cummax()
    found = found[(found["adjusted"] < 0.05) & (found["difference"] < 0)]
    return {arm: sorted(found.loc[found["arm"] == arm, "model"]) for arm in ("high", "low")}


def at_papers_share():
    """How many models miss the highest, and the lowest."""
    return [sum(beside_random(model, share=0.389)[end] < 0 for model in NINE) for end in (2, 5)]


def seen_by_softmax(window, model):
    """Needles found while it sees so many tokens, 0 for all."""
    asked = f"probe == 'needle' and window == {window} and model == '{model}'"
    return of("08_scorecard_window", asked)[ENDS].to_numpy()[0]


def of_main(probe, model):
    """Of the main pair: what is found without heads of each layer, at either share."""
    asked = f"probe == '{probe}' and window == 0 and cut == 'per layer' and model == '{model}' and share == "
    arms = ["low", "random", "high"]
    return np.ravel([across("main/03_ablation_estimates", f"{asked}{share}", "arm", arms) for share in (0.25, 0.389)])


def kept_in_main(model, arm):
    """Accuracy beside random heads without a quarter of each layer."""
    asked = f"probe == '{effects.KEPT}' and share == 0.25 and arm == '{arm}' and versus == 'random'"
    return across("main/03_ablation_differences", asked, "model", [model], ["difference", "low", "high"])


def again_in_main(model):
    """Bits a token of a text that comes a second time, by arm."""
    asked = (
        f"probe == 'induction second' and share <= 0.25 and window == 0 and cut == 'per layer' and model == '{model}'"
    )
    return of("main/03_ablation_estimates", asked).set_index("arm")["estimate"]


def alone_in_main(model):
    """What single heads cost needles, the most first."""
    heads = of("main/03_ablation_heads", f"probe == 'needle' and model == '{model}'")
    return heads.sort_values("damage", ascending=False, ignore_index=True)


def against_random(stem, arm, cut="per layer"):
    """Needles in `main-hybrid`, beside as many random heads."""
    asked = f"probe == 'needle' and model == 'main-hybrid' and versus == 'random' and share == 0.25 and cut == '{cut}'"
    return across(f"main/03_ablation_{stem}", asked, "arm", [arm], ["difference", "low", "high"])


def rivals_of_main(*arms):
    """Accuracy that `main-hybrid` keeps at the paper's share."""
    asked = f"probe == '{effects.KEPT}' and share == 0.389 and model == 'main-hybrid'"
    return across("main/04_pruning_rivals", asked, "arm", list(arms))


def judged_in_main(stem, measure, models=MAIN, source="model"):
    asked = f"measure == '{measure}' and source == '{source}'"
    return across(f"main/{stem}_claims_second", asked, "model", models)


MODELS = {f"`{model}`": model for model in FIVE}
NAMED = {"Gated DeltaNet (`pure`)": "pure", "KDA": "kda", "RWKV-7": "rwkv7", "Mamba-2": "mamba2", "GLA": "gla"}
NAMED |= {"DeltaNet": "deltanet"}
OF_THE_MODELS = "2.3 to 5.0 million parameters, 8 million tokens read (`uniform` 5)"
FINDINGS = {
    f"while that sees the last # tokens alone, {CELL} of its needles": lambda: of(
        "main/03_ablation_narrowed", "probe == 'needle' and arm == 'intact' and window > 0"
    )[["window", *ENDS]].to_numpy()[0],
    "(n = #, one seed each, # random draws; the small pairs, n = #, # draws;": lambda: np.ravel(
        [
            of(f"{run}/03_ablation_estimates", "probe == 'needle' and arm == 'random' and share == 0.25")[x].max()
            for run in ("sizes", "thorough")
            for x in ("n", "draws")
        ]
    ),
    **rows(
        {f"`{x}`": x for x in [*MAIN, *FOUR]}
        | {f"`{x}`, heads of {size}": x for x, size in zip(SIZES, (32, 128, 32), strict=True)},
        [CELL] * 2,
        beside_random,
    ),
    "for these 18, three of the six stay (`hybrid-seed1`, `main-pure`, `pure-seed1`), and the one": lambda: (
        holm() == {"high": ["hybrid-seed1", "main-pure", "pure-seed1"], "low": ["main-hybrid"]}
    ),
    "At 38.9 % four of the nine miss the lowest, six the highest": lambda: at_papers_share() == [6, 4],
    "`hybrid` and `pure`, which miss no high ones, do not fit; nor do the two seeds of `hybrid` agree": lambda: all(
        beside_random(x)[2] > 0 > beside_random("hybrid-seed1")[2] for x in ["hybrid", "pure"]
    ),
    "six of nine models miss the highest ranks, one the lowest": lambda: (
        sum(beside_random(x)[2] < 0 for x in NINE) == 6 and [x for x in NINE if beside_random(x)[5] < 0] == MAIN[:1]
    ),
    f"finds {CELL} of the needles, without the highest {CELL}, without random heads {CELL}": lambda: of_main(
        "needle", "main-hybrid"
    )[[0, 1, 2, 6, 7, 8, 3, 4, 5]],
    f"In `hybrid-d32` {CELL} are, so that softmax retrieves in part, and the highest ranks are missed": lambda: (
        seen_by_softmax(16, "hybrid-d32")
    ),
    "in the other hybrids # or more, as when softmax sees all": lambda: [
        min(seen_by_softmax(window, x)[0] for x in ("hybrid", "hybrid-seed1", "hybrid-d128") for window in (0, 16))
    ],
    "`uniform`, a control and not counted, misses both ends": lambda: (
        (without("high", value="high")["uniform"] < 0) and (without("low", value="high")["uniform"] < 0)
    ),
    "`main-pure`, #, # and # in `pure-d32`, in these two in the paper's order": lambda: across(
        "sizes/03_ablation_estimates",
        "probe == 'chain' and window == 0 and cut == 'per layer' and model == 'pure-d32' and share == 0.25",
        "arm",
        ["low", "random", "high"],
        ["estimate"],
    ),
    "in `hybrid-d128` #, and # low-rank": lambda: of(
        "sizes/03_ablation_composition", "model == 'hybrid-d128' and arm == 'high' and share == 0.25"
    )[["high", "low"]].to_numpy()[0],
    "without its lowest # are found, without random heads #: open": lambda: across(
        "sizes/03_ablation_estimates",
        "probe == 'needle' and window == 0 and cut == 'per layer' and model == 'hybrid-d128' and share == 0.25",
        "arm",
        ["low", "random"],
        ["estimate"],
    ),
    "with # draws *high against random*, in the first row, does not pass": lambda: (
        of("main/03_ablation_estimates", "arm == 'random' and probe == 'needle' and share == 0.25")["draws"].unique()
        if beside_random(MAIN[0])[1] < 0
        else []
    ),
    "In `main-hybrid` one of rank #, in the last layer before the last softmax, costs # bits": lambda: (
        lambda worst: [worst["rank"], worst["damage"]] if worst["layer"] == 6 else []
    )(alone_in_main("main-hybrid").iloc[0]),
    "a needle alone, the next #, any other # at most": lambda: alone_in_main("main-hybrid")["damage"][1:3],
    "It forgets within a token, so that its state cannot carry a needle": lambda: (
        alone_in_main("main-hybrid")["decay"][0] < -np.log(2)
    ),
    "two heads cost # each, of ranks # and #, which forget nothing in a text": lambda: (
        lambda two: (
            [two["damage"].mean(), *two["rank"]]
            if (two["decay"] * 2048 > -1e-3).all() and np.ptp(two["damage"]) < 0.01
            else []
        )
    )(alone_in_main("main-pure")[:2]),
    "highest quarter #, # and # are right in `main-hybrid`, #, # and # in `main-pure`": lambda: np.ravel(
        [of_main("chain", model)[:9:3] for model in MAIN]
    ),
    "Of the highest ranks that go in `main-hybrid` # are high-rank": lambda: of(
        "main/03_ablation_composition", "model == 'main-hybrid' and arm == 'high' and share == 0.25"
    )["high"],
    "neither coefficient differs from zero (`main/03_ablation_regression`)": lambda: (
        lambda found: (found["low"] * found["high"] < 0).all() and len(found) == 4
    )(of("main/03_ablation_regression", "probe == 'needle' and predictor in ['effective rank', 'log-decay']")),
    "place among # random sets, #, has an interval that ends at #": lambda: of(
        "main/03_ablation_places", "model == 'main-hybrid' and arm == 'tied low'"
    )[["n", "place", "high"]].to_numpy()[0],
    f"the highest ranks are missed as well, {CELL}": lambda: against_random("elsewhere", "high", "overall"),
    f"the lowest more, {CELL}": lambda: against_random("elsewhere", "low", "overall"),
    f"keeps {CELL} of the accuracy at 38.9 %, random heads {CELL}, the oracle {CELL}": lambda: rivals_of_main(
        "joint, α = 0.5", "random", "oracle"
    ),
    "by them neither of its models, of one seed each, has what C1, C2, C4, C5 and C10 say": lambda: (
        (judged_in_main("01_stratification", "high heads hold")[[2, 5]] < 0.9).all()
        and (judged_in_main("02_consistency", "kappa between domains")[[2, 5]] < 0.8).all()
        and judged_in_main("02_consistency", "cosine of ranks", MAIN[:1])[2] < 0.97
        and judged_in_main("02_consistency", "cosine of norms", MAIN[1:])[2] < 0.98
        and (judged_in_main("06_emergence", "rho with untrained, relative")[[1, 4]] > 0.5).all()
    ),
    f"High heads are {CELL} of all in `main-hybrid`": lambda: judged_in_main(
        "01_stratification", "high-rank heads", MAIN[:1]
    ),
    f"a layer's smaller group is {CELL}": lambda: judged_in_main("01_stratification", "smaller group", MAIN[1:]),
    f"near the bound in {CELL} and {CELL} of positions": lambda: judged_in_main("01_stratification", "high heads hold"),
    f"κ between domains is {CELL} and {CELL}, where": lambda: judged_in_main("02_consistency", "kappa between domains"),
    f"ρ is {CELL} and {CELL}, in random writes {CELL} and {CELL}": lambda: np.ravel(
        [judged_in_main("02_consistency", "spearman between domains", source=x) for x in ("model", "mechanism")]
    ),
    **rows(MODELS, [CELL] * 3, lambda x: found_without(x, 0.25, ["slow decay", "fast decay", "random"])),
    "(n = #; random: # draws; `thorough/03_ablation_estimates`)": lambda: of(
        "thorough/03_ablation_estimates", "probe == 'needle' and share == 0.25 and arm == 'random'"
    )[["n", "draws"]].min(),
    "far fewer needles are found than without as many random heads, in all five models": lambda: (
        (without("slow decay") < -0.2).sum() == 5
    ),
    "In three the fastest quarter costs about as much, or more": lambda: (
        (without("fast decay", "intact") - without("slow decay", "intact") < 0.05).sum() == 3
    ),
    "In both second seeds it holds the head whose removal alone costs most, of low rank": lambda: (
        (the_worst_heads().loc[[*SEEDS, "uniform"], "place"] <= 2).all()
        and (the_worst_heads().loc[SEEDS, "rank"] < 16).all()
        and the_worst_heads().loc["uniform", "rank"] > 57.6
    ),
    "with a half-life of # tokens (`05_mechanism_single`); in `uniform` a saturated one, with #": lambda: [
        worst()["half_life"].max(),
        half_life_of_the_worst_of_uniform(),
    ],
    f"at most # are found, 1024 back {CELL}, in each of the four": lambda: [
        slower_half(80, 512)["estimate"].max(),
        *slower_half(80, 1024)[ENDS].max(),
    ],
    "Set it to 1280: # to # are": lambda: ends(slower_half(1280, 1024)["estimate"]),
    "Rank hardly tells the two apart: # to # of 64, and # to #": lambda: ends(
        slower_half(80, 1024)["rank"], slower_half(1280, 1024)["rank"]
    ),
    "(n = #: .00 is [#, #], 1.00 is [#, #]": lambda: [slower_half(80, 1024)["n"].max(), *certain(0), *certain(1)],
    **rows(
        {
            "none": "intact",
            "slower half of the saturated heads": "saturated, slow",
            "faster half of the saturated heads": "saturated, fast",
            "all other heads": "others",
        },
        ["#"] * 4,
        after_a_cut,
    ),
    "far needles are lost in three of the four, in two": lambda: (
        far_lost()[0].sum() == 3 and far_lost()[2] <= 0.1 + 1e-9
    ),
    "in two of these although its ranks stay at # and # of their bound": lambda: far_lost()[1][["pure", "pure-seed1"]],
    **rows(
        MODELS,
        [CELL] * 6,
        lambda x: np.ravel([found_without(x, share, ["low", "random", "high"]) for share in (0.25, 0.389)]),
    ),
    f"by {CELL}, {CELL}, {CELL} and {CELL}, none significant": lambda: across(
        "thorough/03_ablation_differences",
        "probe == 'needle' and share == 0.25 and arm == 'low' and versus == 'random'",
        "model",
        FOUR,
        ["difference", "low", "high"],
    ),
    "none significant after Holm's adjustment; `uniform` loses all": lambda: (
        (without("low", value="adjusted")[FOUR] > 0.05).all() and without("low", "intact")["uniform"] < -0.98
    ),
    "finds more than without random heads in the first seed,": lambda: (
        primary("low")[0] > 0 > primary("high")[1] and len(primary("low")) == 2
    ),
    f"in the first seed, {CELL}, fewer in the second, {CELL}": lambda: [
        primary(value)[seed] for seed in (0, 1) for value in ("difference", "low", "high")
    ],
    "neither the highest nor the lowest ranks are told apart in any model; that rests on six answers a set": lambda: (
        of("03_ablation_places")["n"].eq(200).all()
        and of("03_ablation_places")["verdict"].eq("undecided").sum() == 8
        and of("03_ablation_sets", "probe == 'needle'")["n"].eq(6).all()
    ),
    f"fewer needles without the lowest ranks than without random heads, {CELL}, {CELL} and {CELL}": lambda: across(
        "thorough/03_ablation_differences",
        "probe == 'needle' and share == 0.389 and arm == 'low' and versus == 'random'",
        "model",
        ["hybrid", *SEEDS],
        ["difference", "low", "high"],
    ),
    "in both second seeds after adjustment too": lambda: (
        (without("low", value="adjusted", share=0.389)[FOUR] < 0.05).tolist() == [False, False, True, True]
    ),
    f"`pure` finds more, {CELL}": lambda: [
        without("low", value=value, share=0.389)["pure"] for value in ("difference", "low", "high")
    ],
    "High-rank heads are redundant in `hybrid`, nearly in `pure`, not in the second seeds": lambda: (
        lambda lost: abs(lost["hybrid"]) < 0.01 and -0.15 < lost["pure"] < -0.05 and (lost[SEEDS] < -0.7).all()
    )(without("high", "intact", share=0.389)),
    "one head decides in each of the three, spared at 25 %: in `hybrid` a saturated one, in the others one": lambda: (
        lambda heads: (
            sorted(heads.index) == sorted(["hybrid", *SEEDS])
            and heads["rank"]["hybrid"] > 57.6
            and (heads["rank"][SEEDS] < 16).all()
            and (heads["decay"][SEEDS] < -np.log(2)).all()
        )
    )(heads_that_decide()),
    f"Without the highest quarter nearly all needles are lost, {CELL} (`hybrid`) and {CELL}": cost_of_one_cut,
    "At 38.9 % no rule keeps all tasks": lambda: (least_kept() < 0.9).all(),
    "(n = #, `pure-seed1` #; oracle": lambda: across(
        "04_pruning_rivals",
        f"probe == '{effects.KEPT}' and share == 0.389 and arm == 'oracle'",
        "model",
        ["hybrid", "pure-seed1"],
        "n",
    ),
    **rows(
        {"oracle": "oracle", "random heads": "random", "the paper's joint score": "joint, α = 0.5"},
        [CELL] * 4,
        lambda x: across(
            "04_pruning_rivals", f"probe == '{effects.KEPT}' and share == 0.389 and arm == '{x}'", "model", FOUR
        ),
    ),
    "at a tenth of the heads in the first seeds, the joint score is worse than nearly all random sets": lambda: (
        among_sets("place")[FIRST] < 0.05
    ).all(),
    "at a twentieth, in the second, like any other": lambda: (
        each("04_pruning_oracle", "testable", "share")[FOUR].tolist() == [0.1, 0.1, 0.05, 0.05]
        and (among_sets("verdict")[SEEDS] == "undecided").all()
        and among_sets("place")[SEEDS].between(0.02, 0.98).all()
    ),
    **rows(
        {
            "int8 | .25": ("int8", 0.25),
            "rank 8 | .25": ("rank", 0.25),
            "int4 | .13": ("int4", 0.125),
            "fewer heads, by the oracle | .75": ("removed", 0.75, "oracle"),
            "fewer heads, by the oracle | .50": ("removed", 0.5, "oracle"),
        },
        [CELL] * 4,
        lambda x: across(*bits(*x), "model", FOUR),
    ),
    "Bits a token more (n = #, of four rows": lambda: [quarter(["int8"])["n"].max()],
    "accuracy kept is # in all four (# answers, `pure-seed1` #)": lambda: [
        quarter(["int8", "fp8"], effects.KEPT)["estimate"].min(),
        *quarter(["int8"], effects.KEPT).set_index("model")["n"][["hybrid", "pure-seed1"]],
    ],
    f"it is {CELL}, {CELL}, {CELL} and {CELL}: open in each": lambda: across(
        "04_pruning_frontier",
        f"how == 'removed' and rule == 'oracle' and share == 0.25 and probe == '{effects.KEPT}'",
        "model",
        FOUR,
    ),
    "fewer heads cost text in the pure models, in the hybrids that is open": lambda: (
        (text_without_the_oracles_choice() > 0).loc[FOUR].tolist() == [False, True, False, True]
    ),
    "brings back # to # of what text loses": lambda: (
        ends(back()) if set(of("thorough/04_pruning_healed")["tokens"]) == {0, 131072} else []
    ),
    **rows(
        {"formula, decay alone": "closed form", "random writes": "mechanism"},
        [CELL] * 3,
        lambda x: across(
            "05_mechanism_explained",
            f"quantity == 'R² between heads' and predictor == '{x}'",
            "model",
            [*FIRST, "uniform"],
        ),
    ),
    "write strengths (n = #; `05_mechanism_explained`)": lambda: [of("05_mechanism_explained")["n"].max()],
    "has ranks of #, of # so, of # by random writes": lambda: of(
        "05_mechanism_shuffled", "model == 'pure' and stratum == 'middle'"
    )[["rank", "shuffled", "mechanism"]].mean(),
    **rows(
        {"R² between heads": "R² between heads", "order, Spearman's ρ": "Spearman ρ"},
        [CELL] * 5,
        lambda x: closed_form(x, ["pure", "rwkv7", "mamba2", "kda", "gla"]),
    ),
    "their median is #, where it foretells #": median_of_mamba,
    f"about half of the heads hold little, {CELL}, {CELL}, {CELL} and {CELL}": lambda: across(
        "01_stratification_claims_second", "measure == 'low-rank heads' and source == 'model'", "model", FOUR
    ),
    "In the four about half of the heads hold little": lambda: all(0.4 < low_share(x) < 0.67 for x in FOUR),
    "ranks have two peaks, less a fork": lambda: (
        (modes("ranks")[FOUR] < 0.05).all() and (modes("two groups from one mode of half-lives")[FOUR] > 0.95).all()
    ),
    **rows(NAMED, [CELL] * 4, of_a_rule),
    "ρ (n = # documents; `10_rules_measures`)": lambda: [of("10_rules_measures")["n"].max()],
    "Half-lives below two tokens have # of the heads of `pure`, # of Mamba-2's": lambda: forgetting_fast()[
        ["pure", "mamba2"]
    ],
    "none of RWKV-7's, GLA's and DeltaNet's": lambda: (
        (forgetting_fast()[SLOW] == 0).all() and 0 < forgetting_fast()["mamba2"] < 0.05
    ),
    "in KDA # do, by the mean of their channels": lambda: [forgetting_fast()["kda"]],
    "(n = #, #; random: # draws; `10_rules_removed`)": lambda: [
        *(of("10_rules_removed", f"probe == '{x}'")["n"].max() for x in ("needle", "recall8")),
        of("10_rules_removed", "probe == 'recall8' and arm == 'random'")["draws"].min(),
    ],
    **rows(NAMED, [CELL] * 6, removed_of_a_rule),
    "KDA loses all without its highest ranks": lambda: recall_lost("high", "estimate")["kda"] < -0.99,
    "GLA then recalls less than without random heads; DeltaNet's intervals overlap": lambda: (
        lambda found: found["gla"] < 0 < found["deltanet"]
    )(each("10_rules_removed", over_random("recall8", "high"), "high")),
    "Mamba-2 answers # % of the questions": lambda: [
        100 * each("10_rules_removed", "probe == 'recall8' and arm == 'intact'")["mamba2"]
    ],
    **rows(
        {
            "ρ, trained": ("spearman", "model"),
            "ρ, untrained": ("spearman", "untrained"),
            "ρ, random writes": ("spearman", "mechanism"),
            "κ, trained": ("kappa", "model"),
        },
        [CELL] * 5,
        lambda x: agreement(*x, FIVE),
    ),
    f"| κ, untrained | {CELL} | {CELL} | {CELL} | {CELL} | all": lambda: agreement("kappa", "untrained", FOUR),
    "all heads high": lambda: (
        of("06_emergence_distribution", "model == 'uniform' and step == 0 and measure == 'share of high'")["estimate"]
        == 1
    ).all(),
    "ρ # to # in the five, # to # in random writes": lambda: ends(in_time("model"), in_time("mechanism")),
    "from # to # at the start to # to # in the four": lambda: ends(low_in_training(False), low_in_training(True)),
    "which heads, only in part: ρ with the start is # to #": lambda: ends(identity_with_the_start()),
    "learned decays explain # to #": lambda: ends(
        of("06_emergence_origin", "measure == 'decay at the end' and position == 512")["estimate"]
    ),
    "began elsewhere (n = #; `02_consistency_checkpoints`)": lambda: [of("02_consistency_checkpoints")["n"].max()],
    **rows({"ρ of the order": ("spearman",), "κ of the strata": ("kappa",)}, [CELL] * 4, lambda x: trained_on(*x)),
    "neither coefficient differs from zero for needles; for text some do, in the pure models": lambda: (
        lambda told: (
            not told.loc["needle"].any()
            and sorted(told.drop("needle").groupby("model").any().pipe(lambda x: x[x].index)) == ["pure", "pure-seed1"]
        )
    )(told_from_zero()),
}
ASKED = {
    "share",
    "factor",
    "D",
    "truncated",
    "every",
    "position",
    "distance",
    "window",
    "seed",
    "layer",
    "head",
    "step",
}
"""Numbers that say where something was measured; all others are found."""
PAGES = {"notebooks/site/details.md": DETAILS, "README.md": README, "notebooks/site/verdicts.md": VERDICTS}
PAGES |= {"notebooks/site/findings.md": FINDINGS}


EVERY = pytest.mark.parametrize(("page", "sentence"), [(page, x) for page, found in PAGES.items() for x in found])
NUMBER = r"(−?\d*\.?\d+)"


def said_so(page, sentence):
    """Where a page has this sentence, with any numbers for its #."""
    found = [*re.finditer(re.escape(sentence).replace(r"\#", NUMBER), said(page))]
    assert found, "who changes a sentence looks at its test"
    return found


def rounded_alike(text, number):
    """Whether a text is this number, with as many decimals as it has."""
    decimals = len(text.partition(".")[2])
    return abs(float(text.replace("−", "-")) - number) <= 0.5 * 10**-decimals + 1e-9


def true(page, sentence):
    """Where a page says what the tables say."""
    found, held = said_so(page, sentence), PAGES[page][sentence]()
    if "#" not in sentence:
        return found if held else []
    numbers = np.ravel(held)
    right = lambda texts: len(texts) == len(numbers) and all(map(rounded_alike, texts, numbers))  # noqa: E731
    return [match for match in found if right(match.groups())]


@EVERY
def test_a_page_says_what_the_tables_say(page, sentence):
    assert true(page, sentence)


@EVERY
def test_of_other_tables_it_would_not_be_true(page, sentence, monkeypatch):
    """All numbers that were found made others, in two ways: negative, or nearly alike."""
    load, held = store.load_table, []

    def changed(stem, run, by, to):
        table = load(stem, run=run)
        asked = ASKED | ({"half_life"} if "retention" in stem else {"rank"} if "frontier" in stem else set())
        found = [name for name in table.select_dtypes("number") if name not in asked]
        return table.assign(**{name: by * table[name] + to for name in found})

    for by, to in ((-3, 0.45), (0.01, 40)):
        monkeypatch.setattr(store, "load_table", functools.partial(changed, by=by, to=to))
        try:
            held.append(bool(true(page, sentence)))
        except KeyError:  # no head or row of the kind that the sentence is about
            held.append(False)
    assert not all(held)


def test_every_number_of_the_findings_is_held_against_a_table():
    page = "notebooks/site/findings.md"
    held = {at for sentence in FINDINGS for match in true(page, sentence) for at in range(*match.span())}
    text = said(page).replace(OF_THE_MODELS, " " * len(OF_THE_MODELS))
    assert OF_THE_MODELS in said(page)
    numbers = list(re.finditer(r"\.\d+(?!\d| %)", text))
    assert len(numbers) > 400
    assert [text[x.start() - 20 : x.end() + 20] for x in numbers if x.start() not in held] == []


def test_the_findings_say_how_small_the_models_are_and_what_they_were_trained_on():
    card = (files.root() / "data/models/README.md").read_text()
    sizes = re.findall(r"^\| ((?!main-)[\w-]+) \| \w+ \| \d \| ([\d,]+) \| ([\d,]+) \|$", card, re.MULTILINE)
    assert set(ON) < {name for name, *_ in sizes}  # of those that went on, the card counts what they read since
    parameters, tokens = (
        {name: round(int(numbers[at].replace(",", "")) / 1e6, 1 - at) for name, *numbers in sizes} for at in (0, 1)
    )
    assert f"{min(parameters.values())} to {max(parameters.values())} million parameters" in OF_THE_MODELS
    assert {name: read for name, read in tokens.items() if read != 8} == {"uniform": 5} | dict.fromkeys(ON, 2)
    assert "8 million tokens read (`uniform` 5)" in OF_THE_MODELS
    asked = [sum(shares[x] for x in ("recall", "needles", "arithmetic")) for _, shares in mixture.SMALL.shares]
    assert min(asked) > 0.5
    assert "more than half of all training rows are recall, needles or arithmetic" in said("notebooks/site/findings.md")


def test_the_findings_say_what_models_do_that_were_trained_on():
    [sums] = re.findall(r"^\| sum \| 512 .*$", (files.root() / "data/models/README.md").read_text(), re.MULTILINE)
    [heads] = re.findall(r"^\| task \| .*$", (files.root() / "data/models/README.md").read_text(), re.MULTILINE)
    right = dict(zip(heads.split(" | "), sums.split(" | "), strict=True))
    text, chains = (round(float(right[name].split()[0])) for name in ON)
    assert f"sums are {text} % right in `pure-text`, {chains} % in `pure-chains`" in said("notebooks/site/findings.md")


def recorded(stem, measure):
    return of(stem, f"measure == '{measure}' and source == 'model'").set_index("model")


def test_the_share_of_low_heads():
    """C1, second: from the ranks of single heads."""
    own = of("01_stratification_heads", "source == 'model'")
    found = recorded("01_stratification_claims_second", "low-rank heads")
    assert set(own["model"]) == set(found.index)
    for model, part in own.groupby("model"):
        share = sum(rank <= d / 4 for rank, d in zip(part["rank"], part["D"], strict=True)) / len(part)
        assert found.loc[model, "estimate"] == pytest.approx(share, abs=1e-9)
        assert found.loc[model, "low"] < share < found.loc[model, "high"]


def test_the_place_of_the_low_heads():
    """C8, second: from what every set answers."""
    own = of("03_ablation_sets", "arm == 'tied low' and probe == 'needle'")
    found = recorded("03_ablation_claims_second", "place of low")
    assert set(own["model"]) == set(found.index)
    for model, part in own.groupby("model"):
        apart = part.drop_duplicates(["which", "set"])  # draws that chose the same heads are one
        random, chosen = part[part["which"] == "random"]["bits"], apart[apart["which"] == "chosen"]["bits"]
        assert len(random) >= 200
        better = np.sign(random.to_numpy()[None, :] - chosen.to_numpy()[:, None])  # fewer bits: 1, as many: 0
        assert found.loc[model, "estimate"] == pytest.approx((better.mean() + 1) / 2, abs=1e-9)


def test_what_pruning_keeps():
    """C9, first: from the accuracy on each task, over that of the intact model."""
    found = recorded("04_pruning_claims", "accuracy kept")
    for model, part in of("04_pruning_estimates", "probe in @TASKS").groupby("model"):
        intact = part[part["arm"] == "intact"].set_index("probe")["estimate"]
        arm = (part["arm"] == "joint, α = 0.5") & (part["share"] == 0.389) & (part["cut"] == "overall")
        pruned = part[arm].set_index("probe")["estimate"]
        solved = [task for task in intact.index if intact[task] >= 0.9]
        kept = np.mean([pruned[task] / intact[task] for task in solved])
        assert found.loc[model, "estimate"] == pytest.approx(kept, abs=1e-6)
