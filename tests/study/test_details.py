"""What pages, README and scorecard say in numbers, found again in the tables, by other code."""

import functools

import bands
import numpy as np
import pytest

from srdyn.loading import files
from srdyn.study.analysis import update_rules
from srdyn.study.run import store
from srdyn.study.trials import effects

FOUR = ["hybrid", "pure", "hybrid-seed1", "pure-seed1"]
FIRST, SEEDS = FOUR[:2], FOUR[2:]
TASKS = ["needle", "recall8", "chain", "sum"]


def of(stem, where=""):
    """Rows of a table, `thorough/…` for one of the thorough run."""
    found = store.load_table(stem.removeprefix("thorough/"), run="thorough" if "/" in stem else "reference")
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


def close_pairs():
    """How many pairs of heads of a layer another processor may order otherwise, a number a model."""
    heads = of("01_stratification_heads", "source == 'model'")
    both = heads.merge(heads, on=["model", "layer"], suffixes=("", "_b")).query("head < head_b")
    close = (both["rank"] - both["rank_b"]).abs() <= both["uncertain"] + both["uncertain_b"]
    return (close & (both["uncertain"] + both["uncertain_b"] > 0)).groupby(both["model"]).sum()


DETAILS = {
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
    "they cost more needles than the claim allows in all four models and in `uniform`": lambda: (
        (-without("tied high", "intact", "high") > 0.03).sum() == 5
    ),
    "within the low stratum, about a third of the needles at most; in `uniform` they cost all": lambda: (
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
    "the pure model loses five thousandths of a bit a token": lambda: (
        quarter(["rank"]).set_index("model")["estimate"]["pure"].round(3) == 0.005
    ),
    "Trained on 131,072 tokens more, `pure` without a quarter of every layer's heads gets back half": lambda: (
        set(of("thorough/04_pruning_healed")["tokens"]) == {0, 131072} and back().round(1).between(0.5, 0.6).all()
    ),
    "(of `uniform` a fifth, of heads of 128 seven in ten)": lambda: (
        round(low_share("uniform"), 1) == 0.2
        and of("05_mechanism_sizes", "D == 128 and quantity == 'measured'")["low"].round(1).tolist() == [0.7, 0.7]
    ),
    "two groups in all but one of the models": lambda: (modes("ranks") < 0.01).sum() == 4,
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
    "within their intervals in three of four": lambda: all(
        sizes(model, "low", 0) for model in ("hybrid-d32", "hybrid-d128", "pure-d32")
    ),
    "foretold, 0.53, lies at the end of the interval (0.66, 0.53 to 0.77)": lambda: (
        lambda found: (
            found.loc["measured", ["low", "low_lo", "low_hi"]].tolist() == [0.66, 0.53, 0.77]
            and found.loc["registered", "low"] == 0.53
        )
    )(of("05_mechanism_sizes", "model == 'pure-d128'").set_index("quantity")[["low", "low_lo", "low_hi"]].round(2)),
    "In the hybrid with heads of 32 so did all other shares": lambda: all(
        sizes("hybrid-d32", stratum, 0) for stratum in ("middle", "high")
    ),
    "and of the pure model's of 32, more are between, and fewer high, than was foretold": lambda: all(
        sizes(model, "middle", -1) and sizes(model, "high", 1) for model in ("hybrid-d128", "pure-d32")
    ),
    "of the pure model's of 128 fewer are high": lambda: (
        sizes("pure-d128", "high", 1) and not sizes("pure-d128", "middle", 1)
    ),
    "has their order (Spearman ρ 0.96)": lambda: round(trained("closed form, Spearman ρ")["kda"], 2) == 0.96,
    "with which ranks hardly go together (Spearman ρ 0.04)": lambda: (
        round(trained("closed form, Spearman ρ")["gla"], 2) == 0.04
    ),
    "128 has too few heads at the bound; of the other three that is open": lambda: (
        lambda high: (
            (high < 0.2).to_dict() == {"hybrid-d32": False, "hybrid-d128": True, "pure-d32": False, "pure-d128": False}
        )
    )(of("05_mechanism_sizes", "D != 64 and quantity == 'measured'").set_index("model")["high_hi"]),
    "called low and high at the start as at the end, it is two to six times as high": lambda: (
        order_kept()[0].tolist() == [False, False, False, True] and order_kept()[1].round().isin(range(2, 7)).all()
    ),
}
README = {
    "about half of the heads of the four models hold little": lambda: all(0.4 < low_share(x) < 0.67 for x in FOUR),
    "Of six update rules, one model each, trained alike, one alone has many low heads": lambda: (
        trained("low heads", "low")["pure"] > 0.3 and (trained("low heads", "high")[RULES] < 0.1).all()
    ),
    "find more facts hidden in a text (*needles*) than without as many random heads, all four of them": lambda: (
        all(without("low", value="low")[FOUR] > 0) and all(without("low", value="high")[FOUR] < 1)
    ),
    "fewer are lost than without random heads in one hybrid, more in the other": lambda: (
        without("high", value="low")["hybrid"] > 0 > without("high", value="high")["hybrid-seed1"]
    ),
    "with one cut over the whole model nearly all are (first seeds)": lambda: (
        each("thorough/03_ablation_elsewhere", "probe == 'needle' and arm == 'high' and cut == 'overall'", "difference")
        .loc[FIRST]
        .lt(-0.75)
        .all()
    ),
    "At 38.9 % of each layer one hybrid does what C8 says, the other three models do not": lambda: (
        ((without("high", value="low", share=0.389) > 0) & (without("low", value="high", share=0.389) < 0))[FOUR].sum()
        == 1
    ),
    "in two of four models on one that forgets at once": lambda: (
        (without("fast decay", "intact")[FOUR] < -0.5).tolist() == [False, False, True, True]
        and (worst()["half_life"] < 1).all()
    ),
}
VERDICTS = {
    "in no model is more than one head as close to the limit of a stratum as its mean rank": lambda: (
        lambda heads: bands.near_limits(heads).groupby(heads["model"]).sum().max() == 1
    )(of("01_stratification_heads", "source == 'model'")),
    "at most three pairs of heads in the layers of a model are as close to each other": lambda: (
        close_pairs().max() == 3
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


FINDINGS = {
    "About half of the heads hold little in the four models": lambda: all(0.4 < low_share(x) < 0.67 for x in FOUR),
    "far fewer needles are found than without as many random heads, in all five models": lambda: (
        (without("slow decay") < -0.2).sum() == 5
    ),
    "lost in three of the four models, in two of these although the ranks stay above 0.85 of their bound": lambda: (
        far_lost()[0].sum() == 3 and (far_lost()[0] & (far_lost()[1] > 0.85)).sum() == 2
    ),
    "at most one needle in ten is lost": lambda: far_lost()[2] <= 0.1 + 1e-9,
    "nearly half of the heads of `pure` are low, and the ranks of its layers fork": lambda: (
        0.4 < trained("low heads")["pure"] < 0.5 and trained("smaller group", "low")["pure"] > 0.1
    ),
    "next to none is low, and the ranks of their layers do not fork": lambda: (
        (trained("low heads")[RULES] < 0.05).all() and (trained("smaller group")[RULES] == 0).all()
    ),
    "no head of these three has a half-life of less than two tokens, as more than half of `pure`'s have": lambda: (
        (forgetting_fast()[SLOW] == 0).all() and forgetting_fast()["pure"] > 0.5
    ),
    "and few of Mamba-2 have one": lambda: 0 < forgetting_fast()["mamba2"] < 0.05,
    "more than four of five forget as fast, by the mean over their channels": lambda: forgetting_fast()["kda"] > 0.8,
    "their ranks follow that mean in order, far above what it foretells": lambda: (
        trained("closed form, Spearman ρ", "low")["kda"] > 0.9
        and (lambda x: x["rank"] - x["predicted"])(of("10_rules_heads", "model == 'kda'")).median() > 16
    ),
    "the heads of all six agree between texts in order, those of KDA best": lambda: (
        trained(update_rules.RHO, "low")["kda"] > trained(update_rules.RHO, "high").drop("kda").max()
        and (trained(update_rules.RHO, "low") > 0.8).all()
    ),
    "KDA's to nothing, against what the paper says": lambda: recall_lost("high", "estimate")["kda"] < -0.99,
    "Mamba-2 recalls too little to be asked": lambda: (
        each("10_rules_removed", "probe == 'recall8' and arm == 'intact'")["mamba2"] < 0.3
    ),
    "before training all states of DeltaNet and GLA are full, and there is no order": lambda: all(
        trained("high heads", source="untrained")[model] == 1
        and trained(update_rules.RHO, source="untrained")[model] < 0.2
        for model in ("deltanet", "gla")
    ),
    "Recall of eight pairs by DeltaNet, GLA and KDA stays whole without the quarter of lowest rank of each": lambda: (
        (recall_lost("low", "low")[RECALLING] > -0.02).all() and (recall_lost("high", "high")[RECALLING] < 0).all()
    ),
    "the paper's share, no rule keeps all tasks": lambda: (least_kept() < 0.9).all(),
    "at a tenth of the heads, it is worse than nearly all random sets;": lambda: (
        among_sets("place")[FIRST] < 0.05
    ).all(),
    "in the second, at a twentieth, like any other": lambda: (
        each("04_pruning_oracle", "testable", "share")[FOUR].tolist() == [0.1, 0.1, 0.05, 0.05]
        and (among_sets("verdict")[SEEDS] == "undecided").all()
        and among_sets("place")[SEEDS].between(0.02, 0.98).all()
    ),
    "a quarter of the bytes is left, and nothing is lost that the few rows read could show": lambda: (
        (quarter(["int8", "fp8"])["low"] <= 0).sum() == len(quarter(["int8", "fp8"])) == 8
        and (quarter(["int8", "fp8"], effects.KEPT)["estimate"] == 1).all()
    ),
    "Cut to rank 8, states take as many bytes, and one model loses five thousandths of a bit a token": lambda: (
        quarter(["rank"]).query("low > 0")["estimate"].round(3).tolist() == [0.005]
    ),
    "It comes out for the paper in one seed and against it in the other": lambda: (
        primary("low")[0] > 0 > primary("high")[1] and len(primary("low")) == 2
    ),
    "neither the highest nor the lowest ranks are told apart from them, in any model": lambda: (
        of("03_ablation_places")["n"].eq(200).all() and of("03_ablation_places")["verdict"].eq("undecided").sum() == 8
    ),
    "text is predicted worse in both pure models, even if the oracle chooses; in the hybrids that is open": lambda: (
        (text_without_the_oracles_choice() > 0).loc[FOUR].tolist() == [False, True, False, True]
    ),
}
ASKED = {"share", "factor", "D", "truncated", "every", "position", "distance", "window", "seed", "layer", "head"}
"""Numbers that say where something was measured; all others are found."""
PAGES = {"notebooks/site/details.md": DETAILS, "README.md": README, "notebooks/site/verdicts.md": VERDICTS}
PAGES |= {"notebooks/site/findings.md": FINDINGS}


EVERY = pytest.mark.parametrize(("page", "sentence"), [(page, x) for page, found in PAGES.items() for x in found])


@EVERY
def test_a_page_says_what_the_tables_say(page, sentence):
    assert sentence in said(page), "who changes a sentence looks at its test"
    assert PAGES[page][sentence]()


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
            held.append(bool(PAGES[page][sentence]()))
        except KeyError:  # no head or row of the kind that the sentence is about
            held.append(False)
    assert not all(held)


def test_an_order_moves_by_so_much_where_two_neighbours_change_places():
    assert "moves by 12/(m(m + 1)) at most, a sixth where it has eight" in said("notebooks/site/verdicts.md")
    assert of("01_stratification_heads")["head"].nunique() == 8
    draw, most = np.random.default_rng(0), 0.0
    for _ in range(300):
        order, other, at = draw.permutation(8), np.arange(8), draw.integers(7)
        other[[at, at + 1]] = at + 1, at
        most = max(most, abs(np.corrcoef(order, np.arange(8))[0, 1] - np.corrcoef(order, other)[0, 1]))
    assert most == pytest.approx(12 / (8 * 9))


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
