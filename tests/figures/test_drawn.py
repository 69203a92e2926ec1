"""Every figure labels its axes, says n, stays on its page, and draws what its committed table says.

Cases that no committed table has are made from one.
"""

import itertools
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from committed import CASES, drawn, foot, heights, lines, panels, rows, texts

from srdyn import figures
from srdyn.figures import interventions, scorecard, style
from srdyn.study.analysis import emergence
from srdyn.study.run import figure_files
from srdyn.study.trials import effects

MODEL, CEILING = style.SOURCES["model"].colour, "#117733"


def given(name):
    return CASES[name].given()[0]


def ticks(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def shown(axes):
    """The values of a heat map, NaN where it is blank."""
    return axes.collections[0].get_array().filled(np.nan)


def unlabelled(figure):
    """The columns (x) and rows (y) of panels along which stand numbers, not names, that no label tells of."""
    found = {}
    for axes in figure.axes:
        if place := axes.get_subplotspec():  # none of a colour bar
            for at, axis in ((("x", place.colspan.start), axes.xaxis), (("y", place.rowspan.start), axes.yaxis)):
                named = any(re.match(r"(?!\$).*[a-z]", text.get_text()) for text in axis.get_ticklabels())
                found[at] = found.get(at) or named or axis.get_label_text()
    return [at for at, told in found.items() if not told]


@pytest.mark.parametrize("name", CASES)
def test_axes_foot_and_size_and_nothing_leaves_the_figure(name):
    figure = drawn(name)
    assert figure.get_figwidth() in (style.NARROW, style.WIDE)
    titled = [("x", column) for column in (1, 2, 3, 4)] if name == "update_rules" else []
    assert unlabelled(figure) == titled
    assert re.search(CASES[name].foot, foot(figure))
    figure.dpi = figure_files.DPI
    box = figure.get_tightbbox()  # at the resolution of the files
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01
    assert box.y1 <= figure.get_figheight() + 0.01


def test_trajectories_draws_each_head_in_the_colour_of_its_stratum():
    for (model, source, layer), part in given("trajectories").groupby(["model", "source", "layer"]):
        axes, d = panels(drawn("trajectories"))[f"{model}, layer {layer}: {source}"], part["D"].iloc[0]
        for stratum, heads in part.groupby("stratum"):
            expected = [head["rank"].tolist() for _, head in heads.groupby("head")]
            assert sorted(heights(axes, style.STRATA[stratum].colour, longer=2)) == sorted(expected)
        (bound,) = lines(axes, style.BOUND["color"], longer=2)
        assert all(y == min(t, d) for t, y in zip(*bound.get_data(), strict=True))
        assert len(axes.collections) == part["head"].nunique()


def test_a_pruned_head_is_left_out_of_the_trajectories():
    table = given("trajectories").query("model == 'pure'")
    table.loc[table["head"] == 3, ["rank", "low", "high", "stratum"]] = np.nan
    assert {len(axes.collections) for axes in figures.trajectories(table).axes} == {table["head"].nunique() - 1}


def test_head_map_shades_rank_over_d_and_leaves_nan_blank():
    table = given("head_map").query("model == 'hybrid'")
    table.loc[(table["layer"] == 4) & (table["head"] == 5), "rank"] = np.nan
    own = figures.head_map(table).axes[0]
    wanted = rows(table, source="model").pivot(index="layer", columns="head", values="rank") / table["D"].iloc[0]
    np.testing.assert_allclose(shown(own).reshape(wanted.shape), wanted)
    assert np.isnan(shown(own)).sum() == 1
    assert own.collections[0].get_clim() == (0, 1)
    assert ticks(own) == [str(layer) for layer in wanted.index]


def test_the_distribution_is_the_share_of_heads_at_or_below():
    table = given("rank_distribution").query("model == 'pure-seed1' and source == 'model'")
    share = np.sort(table["rank"] / table["D"])
    curves = [line.get_xydata() for line in lines(panels(drawn("rank_distribution"))["pure"], MODEL, longer=2)]
    (step,) = [curve for curve in curves if len(curve) == len(share) + 2 and np.allclose(curve[1:-1, 0], share)]
    np.testing.assert_allclose(step[1:-1, 1], np.arange(1, len(share) + 1) / len(share))


def test_shares_orders_thresholds_and_leaves_nulls_out():
    axes = panels(drawn("shares"))["pure"]
    splits = ["1e-02", "1e-03", "1e-04", "1e-05", "1e-06", "half-life 9.6"]
    labels = [f"$10^{{-{power}}}$" for power in (2, 3, 4, 5, 6)] + ["half-life\n9.6"]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    own = rows(given("shares"), kind="pure", source="model")
    wanted = [rows(own, seed=seed).set_index("split")["low"].reindex(splits).tolist() for seed in (0, 1)]
    points = [line for line in lines(axes, style.STRATA["low"].colour, longer=2) if line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in points] == wanted


def test_measures_fills_what_passes_and_says_what_is_undefined():
    table, rules = CASES["measures"].given()
    measured = set(table["measure"] + "  " + table["claim"])
    table = rows(table, kind="hybrid").merge(rules, on=["claim", "measure"], validate="many_to_one")
    axes = panels(drawn("measures"))["hybrid"]
    every = [f"{row.measure}  {row.claim}" for row in rules.itertuples()]
    names = [name for name in every if name in measured]
    assert ticks(axes) == names
    points = [(round(x.get_ydata()[0]), x.get_xdata()[0], x) for x in axes.lines if len(x.get_xdata()) == 1]
    points.sort(key=lambda point: point[:2])
    defined = table.dropna(subset="estimate")
    defined = defined.assign(y=[names.index(f"{row.measure}  {row.claim}") for row in defined.itertuples()])
    defined = defined.sort_values(["y", "estimate"])
    assert [(y, x) for y, x, _ in points] == list(zip(defined["y"], defined["estimate"], strict=True))
    passes = (defined["low"] >= defined["at_least"]) | (defined["high"] <= defined["at_most"])
    tied = defined.duplicated(["y", "estimate"], keep=False)
    for (_, _, line), filled, same in zip(points, passes, tied, strict=True):
        assert same or mpl.colors.same_color(line.get_markerfacecolor(), line.get_color() if filled else "white")
    undefined = table[table["estimate"].isna()].groupby(["claim", "measure"], sort=False)["source"].unique()
    assert [text.get_text() for text in axes.texts] == [f"undefined: {', '.join(sources)}" for sources in undefined]


def test_the_context_matrix_keeps_the_order_and_leaves_nan_blank():
    table = given("context_matrix")
    names, first = list(table["a"].unique()), (table["model"] == "pure") & (table["a"] != table["b"])
    table.loc[first[first].index[0], "spearman"] = np.nan
    axes = panels(figures.context_matrix(table))
    assert ticks(axes["hybrid"]) == names
    for model in ("hybrid", "pure"):
        wanted = rows(table, model=model).pivot(index="a", columns="b", values="spearman").loc[names, names]
        np.testing.assert_allclose(shown(axes[model]).reshape(wanted.shape), wanted)
        assert len(axes[model].texts) == wanted.notna().sum().sum()
    assert f"{wanted.iloc[2, 1]:.2f}"[1:] in [text.get_text() for text in axes["pure"].texts]


def test_attacks_marks_the_first_layer_and_its_bound():
    for (model, attack), part in given("attacks").groupby(["model", "context"]):
        axes = panels(drawn("attacks"))[f"{model}: {attack}"]
        bound = part["bound"].dropna().unique().item()
        for marker, heads in (("D", part[part["bound"].notna()]), ("o", part[part["bound"].isna()])):
            (points,) = [line for line in axes.lines if line.get_marker() == marker]
            assert points.get_xydata().tolist() == heads[["text_rank", "rank"]].to_numpy().tolist()
        assert bound in [line.get_ydata()[0] for line in lines(axes, style.BOUND["color"])]
        assert f"p + 3 = {bound:g}" in [text.get_text() for text in axes.texts]


def test_the_cosine_figure_shows_turn_and_bound_and_counts_what_it_cannot():
    table = given("cosine_bound").query("model == 'pure'").reset_index(drop=True)
    axes = panels(drawn("cosine_bound"))["pure"]
    allowed = 1 - rows(table, layer=0).groupby("position")["bound"].mean()
    np.testing.assert_allclose(lines(axes, style.BOUND["color"])[0].get_ydata(), allowed)
    table.loc[[0, 5], "cosine"] = [1.0, 1 + 1e-16]
    lost = (table["cosine"] >= 1).sum()
    told = foot(figures.cosine_bound(table))
    assert f"{lost} of {len(table)} values are 0" in told
    assert f"in {(table['bound'] > 0).mean():.0%} of steps" in told


def test_time_order_breaks_at_nan_and_names_the_undefined():
    table = given("time_order")
    table.loc[(table["source"] == "model") & (table["position"] == 2), "spearman"] = np.nan
    table.loc[table["source"] == "common decay", "spearman"] = np.nan
    figure = figures.time_order(table)
    own = sorted(lines(panels(figure)["hybrid"], MODEL, longer=2), key=lambda line: -line.get_linewidth())
    assert len(own) == 2
    assert own[0].get_linewidth() > own[1].get_linewidth()
    wanted = rows(table, model="hybrid", source="model").sort_values("position")["spearman"]
    np.testing.assert_array_equal(own[0].get_ydata(), wanted)
    assert wanted.isna().any()
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    ends = {name: " (undefined)" * (name == "common decay") for name in style.sources(table)}
    assert legend == {f"{name}, seed {seed}{end}" for name, end in ends.items() for seed in (0, 1)}


def test_time_order_is_drawn_where_no_order_is_defined():
    undefined = given("time_order").assign(spearman=np.nan, low=np.nan, high=np.nan)
    limits = panels(figures.time_order(undefined))["hybrid"].get_xlim()
    assert limits == (undefined["position"].min(), undefined["position"].max())


def test_doses_show_every_arm_in_every_panel():
    table, figure = given("doses"), drawn("doses")
    models = list(table["model"].unique())
    assert [axes.get_title() for axes in figure.axes[: len(models)]] == models
    pairs = itertools.product(table["panel"].unique(), models)
    for axes, (panel, model) in zip(figure.axes, pairs, strict=True):
        for arm in ("high", "low", "random"):
            wanted = rows(table, model=model, panel=panel, arm=arm).sort_values("share")["estimate"]
            assert heights(axes, interventions.ARMS[arm].colour, longer=1) == [wanted.tolist()]


def test_contrasts_are_hollow_where_the_intact_model_does_not_solve_the_task():
    table = given("contrasts").assign(testable=lambda t: t["probe"] == "needle")
    figure = CASES["contrasts"].figure(table)
    points = [line for line in figure.axes[0].lines if line.get_marker() in "^ovp"]
    own = rows(table, model="hybrid")
    filled = [not mpl.colors.same_color(line.get_markerfacecolor(), "white") for line in points]
    assert filled == own["testable"].tolist()
    assert [line.get_xdata()[0] for line in points] == own["difference"].tolist()
    assert "hollow" in foot(figure)


def test_single_heads_lie_at_their_rank_and_damage():
    part, axes = given("single_heads"), drawn("single_heads").axes[0]
    part = rows(part, model="hybrid", probe=part["probe"].iloc[0])
    layers, share = sorted(part["layer"].unique()), part["rank"] / part["D"]
    named = [label.get_text() for label in drawn("single_heads").axes[-2].get_xticklabels()]
    assert named == [str(layer) for layer in layers] == list("012456")
    place = part["layer"].map(layers.index) + 0.8 * (share - 0.5)
    strata = {"low": share <= 0.25, "middle": (share > 0.25) & (share < 0.9), "high": share >= 0.9}
    for name, own in strata.items():
        [line] = [line for line in lines(axes, style.STRATA[name].colour) if line.get_marker() != "None"]
        np.testing.assert_allclose(line.get_xydata(), np.stack([place[own], part["damage"][own]], 1))


def test_coefficients_lie_beside_their_predictor_and_only_as_many_probes_as_looks_are_drawn():
    table, axes = given("coefficients"), drawn("coefficients").axes[0]
    assert ticks(axes) == list(table["predictor"].unique())
    own = rows(table, model="hybrid")
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in points] == own["coefficient"].tolist()
    many = pd.concat(
        [table.assign(probe=f"{table['probe'].iloc[0]} {i}").drop_duplicates(["model", "predictor"]) for i in "abcde"]
    )
    with pytest.raises(ValueError, match="at most 4 probes can be told apart, got "):
        figures.coefficients(many)


def test_windows_are_in_order_of_their_size():
    table = given("windows")
    table = pd.concat([table.assign(window=64), table.assign(window=16)])
    axes = figures.windows(table).axes[-1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "64"]
    assert axes.get_title() == "text"
    wanted = rows(table, probe=effects.TEXT, arm="high").sort_values("window")["interaction"].tolist()
    assert heights(axes, interventions.ARMS["high"].colour) == [wanted]


def test_loads_are_drawn_by_rank():
    table = given("loads")
    axes = drawn("loads").axes[0]
    assert [label.get_text() for label in drawn("loads").axes[-1].get_xticklabels()] == ["2", "4", "8", "16"]
    part = rows(table, model="hybrid", every=64)
    drawn_lines = [list(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 4]
    assert drawn_lines == [rows(part, probe=name)["estimate"].tolist() for name in table["probe"].unique()]


def test_a_chosen_set_stands_at_its_place():
    table = rows(given("places"), model="hybrid")
    axes = figures.places(table, value="needles found").axes[0]
    low = rows(table, arm="tied low")
    random, chosen = (rows(low, which=which)["value"].to_numpy() for which in ("random", "chosen"))
    places = [((random < x).mean() + (random <= x).mean()) / 2 for x in chosen]
    (line,) = [line for line in axes.lines if line.get_marker() == interventions.ARMS["tied low"].marker]
    np.testing.assert_allclose(line.get_xdata(), places)
    assert list(line.get_ydata()) == chosen.tolist()


def test_half_lives_are_drawn_beside_the_ranks_they_leave():
    table = rows(given("half_lives"), model="hybrid")
    axes = figures.half_lives(table).axes
    slow = rows(table, group="saturated, slow")
    expected = [part.sort_values("half_life")["estimate"].tolist() for _, part in slow.groupby("distance")]
    assert [list(line.get_ydata()) for line in axes[0].lines if len(line.get_xdata()) == 5] == expected
    ranks = slow.groupby("half_life")["rank"].first().tolist()
    assert ranks in [list(line.get_ydata()) for line in axes[-1].lines]


def test_rules_lie_at_what_they_keep():
    table, axes = given("rules"), drawn("rules").axes[0]
    names = list(table["rule"].unique())
    assert ticks(axes) == names
    assert (axes.get_title(), axes.get_xlabel()) == ("hybrid", table["panel"].iloc[0])
    part = rows(table, model="hybrid", panel=table["panel"].iloc[0]).sort_values("state", kind="stable")
    kept = [(names.index(row.rule), row.estimate) for row in part.itertuples()]
    assert sorted((int(line.get_ydata()[0]), line.get_xdata()[0]) for line in axes.lines) == sorted(kept)


def test_every_way_to_hold_less_lies_at_its_bytes_with_random_heads_as_a_band():
    table, figure = given("frontier"), drawn("frontier")
    first = rows(table, model=table["model"].iloc[0], probe=table["probe"].iloc[0])
    axes = figure.axes[0]
    (rank,) = (line for line in axes.lines if mpl.colors.same_color(line.get_color(), "#C99000"))
    cut = rows(first, how="rank").sort_values("bytes")
    assert list(rank.get_ydata()) == cut["estimate"].tolist()
    np.testing.assert_allclose(rank.get_xdata(), cut["bytes"], atol=0.03)  # moved aside, to be told apart
    random = rows(first, rule="random").sort_values("bytes")
    (band,) = (x for x in axes.collections if len(x.get_paths()[0].vertices) > 2)
    assert {random["low"].min(), random["high"].max()} <= set(band.get_paths()[0].vertices[:, 1])
    (off,) = rows(first, how="removed")["estimate"][rows(first, how="removed")["bytes"] == 0]
    assert [off, off] in heights(axes, "0.45")


def test_a_checkpoint_whose_prefix_is_read_again_saves_nothing_and_is_not_drawn():
    table, figure = given("frontier"), drawn("frontier")
    panels_of = [(probe, model) for probe in table["probe"].unique() for model in table["model"].unique()]
    for axes, (probe, model) in zip(figure.axes, panels_of, strict=True):
        replayed = rows(table, probe=probe, model=model, how="checkpoint, replayed").sort_values("bytes")
        kept = replayed[replayed["replayed"] < 128]
        assert 0 < len(kept) < len(replayed)
        assert kept["estimate"].tolist() in [list(line.get_ydata()) for line in axes.lines]


def test_random_removal_is_a_band_behind_the_alphas_and_heads_alike_are_joined():
    table = given("alphas")
    table["chosen"] = np.where(table["alpha"] == 0, "a", "b")
    figure = CASES["alphas"].figure(table)
    wanted = [sum(list(line.get_ydata()) == [0.95, 0.95] for line in axes.lines) for axes in figure.axes]
    assert wanted == [int(panel == "accuracy kept") for panel in table["panel"].unique() for _ in range(2)]
    axes, part = figure.axes[0], rows(table, model="hybrid", panel=table["panel"].iloc[0])
    assert len(axes.patches) == 1
    drawn_lines = lines(axes, "#111111")
    assert [len(line.get_xdata()) for line in drawn_lines] == [1, 4]  # where the heads differ, no line goes
    estimates = part.dropna(subset="alpha").sort_values("alpha")["estimate"].tolist()
    assert [y for line in drawn_lines for y in line.get_ydata()] == estimates


def test_calibrations_stand_beside_chance():
    table = rows(given("calibrations"), model="hybrid")
    axes = panels(drawn("calibrations"))["hybrid"]
    assert [line.get_xdata()[0] for line in lines(axes, style.BOUND["color"])] == [table["chance"].iloc[0]]
    assert list(lines(axes, "#111111")[0].get_xdata()) == table["overlap"].tolist()


def test_caches_have_a_line_a_model_by_break_even_with_circle_and_band():
    table, figure = given("memory"), drawn("memory")
    order = table.sort_values(["break_even", "model"])["model"].unique()
    length = table["tokens"].nunique()
    for axes, column in zip(figure.axes, ("total_bytes", "freed"), strict=True):
        own = [line for line in axes.lines if len(line.get_xdata()) == length]
        assert [list(x.get_ydata()) for x in own] == [rows(table, model=m)[column].tolist() for m in order]
        assert len({line.get_color() for line in own}) == len(order)
        even = table.groupby("model")["break_even"].first().reindex(order)
        inside = even[even.between(table["tokens"].min(), table["tokens"].max())]
        marks = [line for line in axes.lines if line.get_marker() == "o"]
        assert [mark.get_xdata()[0] for mark in marks] == inside.tolist()
        for mark, model in zip(marks, inside.index, strict=True):  # between two points the drawn line is straight
            part = rows(table, model=model)
            exact = np.interp(inside[model], part["tokens"], part["total_bytes"])
            exact = exact if column == "total_bytes" else part["removed_bytes"].iloc[0] / exact
            assert mark.get_ydata()[0] == pytest.approx(exact, rel=0.15)
    for band, model in zip(figure.axes[0].collections, order, strict=True):
        part = rows(table, model=model)
        left = part["total_bytes"] - part["removed_bytes"]
        assert set(band.get_paths()[0].vertices[:, 1]) == {*part["total_bytes"], *left}


def test_caches_say_names_units_and_the_share_removed():
    table, figure = given("memory"), drawn("memory")
    removed = table["removed_heads"].sum() / table["heads"].sum()
    assert all(texts(figure).count(model) == 2 for model in table["model"].unique())
    assert {"32 MiB", "1 GiB", "10%", f"{removed:.1%} of the states"} <= set(texts(figure))
    (bound,) = lines(figure.axes[1], style.BOUND["color"])
    assert set(bound.get_ydata()) == {removed}


def test_the_closed_form_is_drawn_through_heads_that_follow_it():
    table = given("rank_against_decay")
    table["rank"] = (table["half_life"] * np.log(1e4) / np.log(2)).clip(upper=table["D"])
    for axes in figures.rank_against_decay(table).axes:
        (curve,) = [line for line in axes.lines if len(line.get_xdata()) == 200]
        heads = rows(table, model=axes.get_title())
        between = np.interp(heads["half_life"], *curve.get_data())
        np.testing.assert_allclose(between, heads["rank"], atol=0.04 * heads["D"].max())  # 200 points, one bend
        assert curve.get_ydata().max() == heads["D"].max()


def test_an_r2_beyond_the_panel_is_written_at_its_edge():
    table = given("explained_variance")
    table.loc[table[table["model"] == "pure"].index[0], "estimate"] = -1.25
    axes = panels(figures.explained_variance(table))["pure"]
    assert " ◂ −1.25" in [text.get_text() for text in axes.texts]
    assert len(axes.texts) == (rows(table, model="pure")["estimate"] < -0.3).sum()


def test_the_residual_map_blanks_what_is_within_chance_and_frames_strata():
    table = given("residual_map")
    for model, part in table.groupby("model"):
        axes = panels(drawn("residual_map"))[model]
        certain = (part["residual_low"] > 0) | (part["residual_high"] < 0)
        wanted = part.assign(seen=part["residual"].where(certain, 0)).pivot(
            index="layer", columns="head", values="seen"
        )
        np.testing.assert_allclose(shown(axes).reshape(wanted.shape), wanted)
        moved = part[part["stratum"] != part["mechanism_stratum"]]
        framed = [(wanted.index[int(p.get_y())], int(p.get_x())) for p in axes.patches]
        assert framed == list(zip(moved["layer"], moved["head"], strict=True))


def test_the_precision_figure_counts_heads_and_measures():
    table, fork = CASES["rounded_ranks"].given()
    titles = panels(drawn("rounded_ranks"))
    assert not any("float64" in title for title in titles)
    for (model, precision), part in table.query("precision != 'float64'").groupby(["model", "precision"]):
        (told,) = [text.get_text() for text in titles[f"{model}: {precision}"].texts]
        assert told == f"{part['moved'].sum()} of {len(part)} move"
    moved = rows(fork, precision="bfloat16")["moved"]
    assert f"{moved.sum()} of {len(moved)} (bfloat16)" in foot(drawn("rounded_ranks"))


def test_the_sweep_runs_from_large_to_small_thresholds():
    axes, table = panels(drawn("threshold_sweep"))["pure"], rows(given("threshold_sweep"), model="pure")
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    wanted = [rows(table, ranks_of=of).sort_values("eps")["high"].tolist() for of in table["ranks_of"].unique()]
    assert heights(axes, style.STRATA["high"].colour, longer=2) == wanted


def test_the_splits_stack_to_one_and_tell_kappa_where_it_says_something():
    axes, table = panels(drawn("head_splits"))["hybrid"], rows(given("head_splits"), model="hybrid")
    bars = [p for p in axes.patches if isinstance(p, mpl.patches.Rectangle)]
    for row in range(len(table)):
        assert sum(bar.get_width() for bar in bars if round(bar.get_y() + 0.31) == row) == pytest.approx(1)
    told = [text.get_text() for text in axes.texts if "κ" in text.get_text()]
    assert len(told) == (table["kappa_lo"] < 1).sum() > 0


def wanted(table, **chosen):
    return rows(table, **chosen).sort_values("step")["estimate"].tolist()


def by_kind(name):
    """Each kind of model, its panels, above and below, and its rows of its tables."""
    table, *other = CASES[name].given()
    for kind, pair in zip(table["kind"].unique(), np.reshape(drawn(name).axes, (2, -1)).T, strict=True):
        yield kind, *pair, *(rows(each, kind=kind) for each in (table, *other))


def test_every_head_has_its_line_in_the_colour_of_its_stratum_above_the_shares_of_both_seeds():
    for kind, top, bottom, own, spread in by_kind("rank_formation"):
        assert top.get_title() == f"{kind}, {own.groupby(['layer', 'head']).ngroups} heads"
        for stratum, look in style.STRATA.items():
            ranks = [
                h.sort_values("step")["rank"].tolist() for _, h in rows(own, stratum=stratum).groupby(["layer", "head"])
            ]
            assert sorted(heights(top, look.colour, width=0.5)) == sorted(ranks)
            mean = wanted(spread, seed=0, measure=f"rank of {stratum}")
            assert heights(top, look.colour, width=1.4) == [mean]
            seeds = sorted(spread["seed"].unique())
            shares = [wanted(spread, seed=seed, measure=f"share of {stratum}") for seed in seeds]
            np.testing.assert_equal(heights(bottom, look.colour), shares)
        bounds = sorted(line.get_ydata()[0] for line in lines(top, style.BOUND["color"]))
        assert bounds == [0.25 * own["D"].iloc[0], 0.9 * own["D"].iloc[0]]
        assert len(bottom.collections) == 3
        high = wanted(spread, seed=0, measure="share of high")
        assert f"{kind} {high[0]:.2f} → {high[-1]:.2f}" in foot(drawn("rank_formation"))


def test_step_0_has_its_place_left_of_the_first_step():
    axes = drawn("rank_formation").axes[3]
    zero, *later = (int(label.get_text()) for label in axes.get_xticklabels())
    assert zero == 0
    assert later == [later[0] * 4**i for i in range(len(later))]
    places = [axes.transData.transform((step, 0))[0] for step in (zero, *later)]
    assert places[0] < places[1]
    assert np.diff(places[1:]) == pytest.approx(np.diff(places[1:])[0])


def test_identity_has_a_line_for_each_reference_and_leaves_kappa_out():
    table, figure = given("identity_formation"), drawn("identity_formation")
    looks = {"final": "#111111", "untrained": style.SOURCES["untrained"].colour, "other half": CEILING}
    pairs = itertools.product(("rank", "log_decay"), table["kind"].unique())
    for axes, (value, kind) in zip(figure.axes, pairs, strict=True):
        part = rows(table, kind=kind, value=value, measure="spearman")
        for reference, colour in looks.items():
            own = rows(part, reference=reference)
            # an undefined order interrupts its line
            np.testing.assert_equal(heights(axes, colour), [wanted(own, seed=s) for s in sorted(own["seed"].unique())])
        assert {line.get_linestyle() for line in lines(axes, CEILING)} == {"--"}
    end = rows(table, kind="uniform", value="rank", measure="spearman", reference="untrained", seed=0)
    end = end.sort_values("step").iloc[-1]
    told = f"uniform {end['estimate']:.2f} [{end['low']:.2f}, {end['high']:.2f}]".replace("-", "−")
    assert told in foot(figure)


def test_decays_stand_above_what_they_explain():
    for kind, axes, panel, own, shares in by_kind("decay_formation"):
        assert axes.get_yscale() == "log"
        drawn_lines = [values for look in style.STRATA.values() for values in heights(axes, look.colour, width=0.5)]
        every = [h.sort_values("step")["half_life"].tolist() for _, h in own.groupby(["layer", "head"])]
        assert sorted(drawn_lines) == sorted(every)
        (fills,) = lines(axes, style.BOUND["color"])
        assert fills.get_ydata()[0] == emergence.half_life_that_saturates(int(own["D"].iloc[0]))
        points = [(x, line.get_markerfacecolor()) for line in lines(panel, "#111111") for x in line.get_xdata()]
        shares = shares[shares["measure"] != "decay at the start"]
        faces = shares["seed"].map({0: "#111111", 1: "white"})
        assert sorted(points) == sorted(zip(shares["estimate"], faces, strict=True))
        first = rows(shares, seed=0).set_index("measure")["estimate"]
        explained = f"{kind} {first['rank at the start']:.2f} and {first['decay at the end']:.2f}"
        assert explained in foot(drawn("decay_formation"))


def test_costs_and_their_contrast_are_drawn_with_bars():
    looks = {"low": style.STRATA["low"].colour, "high": style.STRATA["high"].colour, "random": "#777777"}
    for _, above, below, part in by_kind("contrast_formation"):
        seeds = sorted(part["seed"].unique())
        for arm, colour in looks.items():
            costs = [wanted(part, seed=seed, arm=arm, reference="intact") for seed in seeds]
            assert heights(above, colour) == costs
        ends = rows(part, arm="low", reference="high")
        assert heights(below, "#111111") == [wanted(ends, seed=seed) for seed in seeds]
        bars = [sorted(segment[:, 1]) for segment in below.collections[0].get_segments()]
        np.testing.assert_allclose(bars, rows(ends, seed=0).sort_values("step")[["low", "high"]])


def test_costs_of_tracing_stand_beside_what_they_are_compared_with():
    table = given("tracing_cost")
    left, right = drawn("tracing_cost").axes
    beside = table[(table["what"] == "overhead") & (table["case"] != table["base"])]
    assert ticks(left) == beside["case"].tolist()
    assert list(left.lines[0].get_xdata()) == beside["ratio"].tolist()
    anew = table[(table["what"] == "prefixes") & (table["case"] != table["base"])]
    (bound,) = lines(right, style.BOUND["color"])
    assert list(bound.get_ydata()) == [(n + 1) / 2 for n in sorted(anew["positions"].unique())]


def test_growth_says_its_exponents():
    table = given("cost_growth").drop_duplicates("axis")
    told = [f"{row.axis}^{{{row.exponent:.2f}}}$ [{row.low:.2f}, {row.high:.2f}]" for row in table.itertuples()]
    assert [axes.get_title().removeprefix(r"$\propto ") for axes in drawn("cost_growth").axes] == told


def test_verdicts_are_drawn_by_what_they_amount_to():
    ledger = pd.DataFrame(
        [
            ("C1", "hybrid", "reproduced (null passes too: mechanism)", "smaller group 0.25 (≥ 0.2)", ""),
            ("C1", "pure", "not reproduced", "smaller group 0.1 (≥ 0.2)", ""),
            ("C1", "uniform", "control (one seed): undecided", "smaller group 0.2 (≥ 0.2)", ""),
            ("C6", "", "not testable here", "", "needs other checkpoints"),
        ],
        columns=["claim", "kind", "verdict", "leading", "why"],
    ).assign(second="", second_leading="")
    (panel,) = figures.verdicts(ledger).axes
    marks = {(round(line.get_xdata()[0] + 0.1), line.get_ydata()[0]): line for line in panel.get_lines()}
    assert marks[1, 0].get_color() == scorecard.OUTCOMES["not reproduced"].colour
    assert mpl.colors.same_color(marks[0, 0].get_markerfacecolor(), "white")
    assert {place for place in marks if place[1] == 1} == {(0, 1), (1, 1), (2, 1)}
    assert marks[2, 0].get_markersize() < marks[1, 0].get_markersize()
    assert [label.get_text() for label in panel.get_xticklabels()] == ["hybrid", "pure", "uniform (control)"]
    assert scorecard.outcome("one seed: fails") == "not reproduced"
    with pytest.raises(ValueError, match="no verdict is called 'perhaps'"):
        scorecard.outcome("perhaps")


def test_a_control_and_a_kind_of_one_seed_are_called_so():
    told = {"control (one seed): fails": "x (control)", "one seed: passes": "x (one seed)", "inconclusive": "x"}
    for verdict, name in told.items():
        assert scorecard._named("x", pd.Series([verdict, "not testable here"])) == name
    assert scorecard._named("x", pd.Series(["one seed: fails", "reproduced"])) == "x"
    assert scorecard._named("x", pd.Series(["not testable here"])) == "x"
