"""The figures of emergence draw what their tables say and refuse tables that do not fit."""

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from srdyn import figures, strata
from srdyn.figures import style
from srdyn.study.analysis import emergence

STEPS = {"hybrid": (0, 4, 16, 64, 256, 1024), "uniform": (0, 4, 16, 64, 128)}
SEEDS = [("hybrid", 0), ("hybrid", 1), ("uniform", 0)]
LAYERS, H, D = 3, 5, 16
ORIGINS = ("rank at the start", "decay at the start", "decay at the end", "start beyond decay", "decay beyond start")


def heads_table():
    rng = np.random.default_rng(0)
    rows = []
    for kind, layer, head in itertools.product(STEPS, range(LAYERS), range(H)):
        stratum = strata.STRATA[(layer + head) % 3]
        for step, rank, half_life in zip(STEPS[kind], rng.uniform(0, D, 9), rng.uniform(0.1, 99, 9), strict=False):
            names = {"model": kind, "kind": kind, "seed": 0, "layer": layer, "head": head, "step": step}
            rows.append({**names, "D": D, "rank": rank, "half_life": half_life, "stratum": stratum})
    return pd.DataFrame(rows)


def over_steps(names):
    """A row for each seed, step and of `names` (dicts), with values that tell them apart."""
    rows = []
    for (kind, seed), (i, more) in itertools.product(SEEDS, enumerate(names)):
        for step in STEPS[kind]:
            value = 0.05 * i + 0.3 * seed + 0.1 * len(kind) + step / 1e4
            ends = {"estimate": value, "low": value - 0.01, "high": value + 0.02}
            rows.append({"kind": kind, "seed": seed, "step": step, **more, **ends, "n": 8})
    return pd.DataFrame(rows)


def distribution_table():
    return over_steps([{"measure": f"{what} of {name}"} for what in ("share", "rank") for name in strata.STRATA])


def identity_table():
    references = itertools.product(("rank", "log_decay"), ("final", "untrained", "other half"))
    names = [{"value": value, "reference": reference, "measure": "spearman"} for value, reference in references]
    return over_steps([*names, {"value": "rank", "reference": "final", "measure": "kappa"}])


def origin_table():
    rows = [
        {"kind": kind, "seed": seed, "measure": measure, "estimate": v, "low": v - 0.1, "high": v + 0.1, "n": 8}
        for (kind, seed), (i, measure) in itertools.product(SEEDS, enumerate(ORIGINS))
        for v in [0.1 + 0.15 * i + 0.02 * seed]
    ]
    return pd.DataFrame(rows)


def contrast_table():
    pairs = [("intact", ""), ("low", "intact"), ("high", "intact"), ("random", "intact"), ("low", "high")]
    table = over_steps([{"arm": arm, "reference": reference} for arm, reference in pairs])
    table = table[table["step"].isin([0, 16, 64, 128, 1024])].reset_index(drop=True)
    return table.assign(removed=np.where(table["arm"] == "intact", 0.0, 6.0))


TABLES = {
    "rank_formation": (heads_table, distribution_table),
    "identity_formation": (identity_table,),
    "decay_formation": (heads_table, origin_table),
    "contrast_formation": (contrast_table,),
}
NEEDED = {
    "rank_formation": ("layer head step rank D stratum kind seed", "kind seed step measure estimate low high"),
    "identity_formation": ("kind seed step value measure reference estimate low high n",),
    "decay_formation": ("layer head step half_life D stratum kind seed", "kind seed measure estimate low high"),
    "contrast_formation": ("kind seed step arm reference estimate low high n removed",),
}


def draw(name, *tables):
    return getattr(figures, name)(*(tables or [make() for make in TABLES[name]]))


def lines(axes, colour):
    return [line for line in axes.lines if mpl.colors.same_color(line.get_color(), colour)]


def drawn_values(axes, colour, *, width=None):
    found = [x for x in lines(axes, colour) if width is None or x.get_linewidth() == width]
    return [list(line.get_ydata()) for line in found]


def wanted(table, **chosen):
    for name, value in chosen.items():
        table = table[table[name] == value]
    return table.sort_values("step")["estimate"].tolist()


def said(figure):
    return " ".join(text.get_text() for text in figure.texts).replace("\N{NO-BREAK SPACE}", " ").replace("\n", " ")


@pytest.mark.parametrize("name", TABLES)
def test_what_is_missing_repeated_or_empty_is_refused(name):
    made = [make() for make in TABLES[name]]
    for i, (table, columns) in enumerate(zip(made, NEEDED[name], strict=True)):
        for column in columns.split():
            with pytest.raises(ValueError, match=rf"lacks the columns {column}\b"):
                draw(name, *made[:i], table.drop(columns=column), *made[i + 1 :])
        with pytest.raises(ValueError, match="one row for every"):
            draw(name, *made[:i], pd.concat([table, table]), *made[i + 1 :])
        with pytest.raises(ValueError, match="no rows"):
            draw(name, *made[:i], table.iloc[:0], *made[i + 1 :])


def test_every_head_has_its_line_in_the_colour_of_its_stratum():
    table, spread = heads_table(), distribution_table()
    figure = draw("rank_formation", table, spread)
    for axes, kind in zip(figure.axes[:2], STEPS, strict=True):
        assert axes.get_title() == f"{kind}, {LAYERS * H} heads"
        for stratum, look in style.STRATA.items():
            own = table[(table["kind"] == kind) & (table["stratum"] == stratum)]
            heads = [head["rank"].tolist() for _, head in own.groupby(["layer", "head"])]
            assert sorted(drawn_values(axes, look.colour, width=0.5)) == sorted(heads)
            mean = wanted(spread, kind=kind, seed=0, measure=f"rank of {stratum}")
            assert drawn_values(axes, look.colour, width=1.4) == [mean]
        bounds = sorted(line.get_ydata()[0] for line in lines(axes, style.BOUND["color"]))
        assert bounds == [0.25 * D, 0.9 * D]


def test_shares_are_drawn_for_both_seeds_with_the_interval_of_the_first():
    spread = distribution_table()
    figure = draw("rank_formation", heads_table(), spread)
    for axes, kind in zip(figure.axes[2:], STEPS, strict=True):
        seeds = [seed for k, seed in SEEDS if k == kind]
        for stratum, look in style.STRATA.items():
            shares = [wanted(spread, kind=kind, seed=seed, measure=f"share of {stratum}") for seed in seeds]
            assert drawn_values(axes, look.colour) == shares
        assert len(axes.collections) == 3
    first, last = (wanted(spread, kind="uniform", measure="share of high")[i] for i in (0, -1))
    assert f"uniform {first:.2f} → {last:.2f}" in said(figure)


def test_step_0_has_its_place_left_of_the_first_step():
    axes = draw("rank_formation").axes[2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "4", "16", "64", "256", "1024"]
    zero, *later = (axes.transData.transform((step, 0))[0] for step in (0, 4, 16, 64))
    assert zero < later[0]
    assert np.diff(later) == pytest.approx(np.diff(later)[0])


def test_identity_has_a_line_for_each_reference_and_leaves_kappa_out():
    table = identity_table()
    figure = draw("identity_formation", table)
    assert len(figure.axes) == 4
    looks = {"final": "#111111", "untrained": style.SOURCES["untrained"].colour, "other half": "#117733"}
    for axes, (value, kind) in zip(figure.axes, itertools.product(("rank", "log_decay"), STEPS), strict=True):
        seeds = [seed for k, seed in SEEDS if k == kind]
        for reference, colour in looks.items():
            chosen = {"kind": kind, "value": value, "reference": reference, "measure": "spearman"}
            assert drawn_values(axes, colour) == [wanted(table, seed=seed, **chosen) for seed in seeds]
        assert {line.get_linestyle() for line in lines(axes, "#117733")} == {"--"}
    end = table.query("kind == 'uniform' and value == 'rank' and reference == 'untrained' and step == 128").iloc[0]
    assert f"uniform {end['estimate']:.2f} [{end['low']:.2f}, {end['high']:.2f}]" in said(figure)
    assert "thin: second seed" in said(figure)
    assert "thin" not in said(draw("identity_formation", table[table["seed"] == 0]))


def test_an_undefined_identity_interrupts_its_line():
    table = identity_table()
    table.loc[(table["kind"] == "uniform") & (table["step"] == 0), ["estimate", "low", "high"]] = np.nan
    (line,) = drawn_values(draw("identity_formation", table).axes[1], "#111111")
    assert np.isnan(line).tolist() == [True, False, False, False, False]


def test_decays_stand_above_what_they_explain():
    heads, origin = heads_table(), origin_table()
    figure = draw("decay_formation", heads, origin)
    for axes, kind in zip(figure.axes[:2], STEPS, strict=True):
        assert axes.get_yscale() == "log"
        own = heads[heads["kind"] == kind]
        drawn = [values for look in style.STRATA.values() for values in drawn_values(axes, look.colour)]
        assert sorted(drawn) == sorted(head["half_life"].tolist() for _, head in own.groupby(["layer", "head"]))
        (fills,) = lines(axes, style.BOUND["color"])
        assert fills.get_ydata()[0] == emergence.half_life_that_saturates(D)
    panel = figure.axes[2]
    points = sorted((line.get_xdata()[0], line.get_markerfacecolor()) for line in lines(panel, "#111111"))
    shown = origin[(origin["kind"] == "hybrid") & (origin["measure"] != "decay at the start")]
    faces = shown["seed"].map({0: "#111111", 1: "white"})
    assert points == sorted(zip(shown["estimate"], faces, strict=True))
    assert "uniform 0.10 and 0.40" in said(figure)


def test_costs_and_their_contrast_are_drawn_with_bars():
    table = contrast_table()
    figure = draw("contrast_formation", table)
    looks = {"low": style.STRATA["low"].colour, "high": style.STRATA["high"].colour, "random": "#777777"}
    for column, kind in enumerate(STEPS):
        above, below = figure.axes[column], figure.axes[2 + column]
        assert above.get_title() == f"{kind}, 6 heads removed"
        seeds = [seed for k, seed in SEEDS if k == kind]
        for arm, colour in looks.items():
            costs = [wanted(table, kind=kind, seed=seed, arm=arm, reference="intact") for seed in seeds]
            assert drawn_values(above, colour) == costs
        contrast = [wanted(table, kind=kind, seed=seed, arm="low", reference="high") for seed in seeds]
        assert drawn_values(below, "#111111") == contrast
        (bars, *_) = below.collections
        ends = table[(table["kind"] == kind) & (table["reference"] == "high") & (table["seed"] == 0)]
        drawn = [sorted(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(drawn, ends.sort_values("step")[["low", "high"]])
    steps = [label.get_text() for label in figure.axes[3].get_xticklabels()]
    assert steps == ["0", "16", "64", "128"]
    assert "low − high at the end: hybrid" in said(figure)
