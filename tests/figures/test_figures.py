"""Every figure draws what its table says, refuses a table that does not fit, and is saved as the same bytes again."""

import itertools
import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import colors, image
from matplotlib.backends.backend_agg import FigureCanvasAgg

from srdyn import figures
from srdyn.figures import style

LAYERS = {"hybrid": (0, 1, 2, 4, 5, 6), "pure": tuple(range(8)), "uniform": tuple(range(8))}
MODELS = [("hybrid", "hybrid", 0), ("hybrid-seed1", "hybrid", 1), ("pure", "pure", 0), ("pure-seed1", "pure", 1)]
MODELS += [("uniform", "uniform", 0)]
NULLS = ("untrained", "mechanism", "permuted decays", "common decay")
H, D = 8, 64
POSITIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
CONTEXTS = ("code", "mathematics", "prose", "technical", "needle", "recall", "arithmetic")
ATTACKS = {"rare character": 5, "common number": 4}
MEASURES = {
    ("C1", "smaller group"): (0.2, np.nan),
    ("C1", "middle"): (np.nan, 0.2),
    ("C2", "low heads drift"): (np.nan, 0.02),
    ("C3", "spearman 128 to 2048"): (0.9, np.nan),
    ("C3", "spearman d to 16d"): (0.9, np.nan),
    ("C4", "cosine of ranks"): (0.97, np.nan),
    ("C5", "kappa between contexts"): (0.8, np.nan),
    ("C7", "spearman attack to text"): (0.8, np.nan),
    ("Eq. 13", "within bound"): (1.0, np.nan),
}


def ceilings(kind, source, seed=0):
    """Where every head [layer, head] settles."""
    rng = np.random.default_rng([len(kind), len(source), seed])
    low, high = rng.uniform(2, 14, (len(LAYERS[kind]), H)), rng.uniform(58, 64, (len(LAYERS[kind]), H))
    if source == "common decay":
        return np.full(low.shape, 17.0)
    if source == "untrained":
        return 64 * rng.beta(1.2, 1.2, low.shape)
    return np.where(rng.random(low.shape) < 0.45, low, np.where(rng.random(low.shape) < 0.2, 30, high))


def ranks(kind, source, seed=0, positions=(2048,)):
    """A row for every layer, head and position."""
    top = ceilings(kind, source, seed)
    rows = itertools.product(enumerate(LAYERS[kind]), range(H), positions)
    table = pd.DataFrame([(layer, head, t, min(t, top[i, head], D)) for (i, layer), head, t in rows])
    table.columns = ["layer", "head", "position", "rank"]
    width = 0.02 + 0.06 * table["rank"] * (1 - table["rank"] / D)
    ends = {"low": table["rank"] - width, "high": np.minimum(table["rank"] + width, D)}
    stratum = pd.cut(table["layer"].map(dict(zip(LAYERS[kind], top, strict=True))).str[0], [0, 16, 57.6, 65])
    return table.assign(**ends, D=D, seed=seed, kind=kind, source=source, model=kind, stratum=stratum)


def settled():
    parts = [ranks(kind, "model", seed).assign(model=model, n=56) for model, kind, seed in MODELS]
    parts += [ranks(kind, null).assign(n=14) for kind in LAYERS for null in NULLS]
    return pd.concat(parts, ignore_index=True)


def trajectories_table():
    parts = [
        ranks(kind, source, positions=POSITIONS).query("layer == @layer").assign(n=8 if source == "model" else 2)
        for kind, layer in (("hybrid", 4), ("pure", 4), ("uniform", 5))
        for source in ("model", "mechanism")
    ]
    table = pd.concat(parts, ignore_index=True)
    share = table.groupby(["model", "source", "head"])["rank"].transform("max") / D
    return table.assign(stratum=np.select([share <= 0.25, share < 0.9], ["low", "middle"], "high"))


def head_map_table():
    return settled().query("seed == 0 and source in ('model', 'untrained')").reset_index(drop=True)


def shares_table():
    rows = []
    for (model, kind, seed), split in itertools.product(
        MODELS, ["1e-04", "1e-02", "1e-03", "1e-05", "1e-06", "half-life 9.6"]
    ):
        low = np.clip(0.55 - 0.05 * int(split[-1]) + 0.03 * seed, 0, 1)
        values = {"low": low, "middle": 0.15, "high": 0.85 - low}
        ends = {f"{k}_{e}": v + s * 0.05 for k, v in values.items() for e, s in (("lo", -1), ("hi", 1))}
        rows.append({"model": model, "kind": kind, "seed": seed, "split": split, "n": 8} | values | ends)
    return pd.DataFrame(rows)


def measures_table():
    rng = np.random.default_rng(3)
    rows = []
    sources = [(model, kind, seed, "model") for model, kind, seed in MODELS]
    sources += [(kind, kind, 0, null) for kind in LAYERS for null in NULLS]
    for (claim, name), (model, kind, seed, source) in itertools.product(MEASURES, sources):
        at_least = not np.isnan(MEASURES[claim, name][0])
        value = rng.uniform(0.9, 1) if at_least and source != "common decay" else rng.uniform(0, 0.25)
        if claim == "C3" and source == "common decay":
            value = np.nan
        names = {"claim": claim, "measure": name, "model": model, "kind": kind, "seed": seed, "source": source}
        ends = {"low": value - 0.04 * rng.random(), "high": min(value + 0.03, 1), "n": 8 if source == "model" else 2}
        rows.append({**names, "estimate": value, **ends})
    return pd.DataFrame(rows)


def rules():
    return pd.DataFrame([(*name, *ends) for name, ends in MEASURES.items()]).set_axis(
        ["claim", "measure", "at_least", "at_most"], axis=1
    )


def context_matrix_table():
    rng = np.random.default_rng(4)
    rows = []
    for model in LAYERS:
        for i, a in enumerate([*CONTEXTS, *ATTACKS]):
            for j, b in enumerate([*CONTEXTS, *ATTACKS]):
                rho = (
                    1.0 if i == j else (rng.uniform(0.85, 0.99) if max(i, j) < len(CONTEXTS) else rng.uniform(0.2, 0.7))
                )
                undefined = model == "uniform" and i != j and max(i, j) == 8
                rows.append({"model": model, "a": a, "b": b, "spearman": np.nan if undefined else rho, "n": 8})
    return pd.DataFrame(rows)


def attacks_table():
    parts = []
    for kind, (attack, bound) in itertools.product(LAYERS, ATTACKS.items()):
        table = ranks(kind, "model").rename(columns={"rank": "text_rank"})
        first = table["layer"] == table["layer"].min()
        rank = np.where(first, np.minimum(table["text_rank"], bound), table["text_rank"] * 0.7)
        ends = {"rank": rank, "low": rank * 0.95, "high": rank * 1.05, "bound": np.where(first, bound, np.nan)}
        parts.append(table.assign(context=attack, n=10, **ends))
    return pd.concat(parts, ignore_index=True)


def cosine_bound_table():
    rng = np.random.default_rng(5)
    rows = [
        {"model": kind, "layer": layer, "sample": sample, "position": t}
        | {"cosine": 1 - 0.2 * rng.uniform(0.5, 1) / t**2 / (layer + 1), "bound": 1 - 3 / t**0.8}
        for kind in LAYERS
        for layer, sample, t in itertools.product(LAYERS[kind], range(2), POSITIONS[1:])
    ]
    return pd.DataFrame(rows)


def time_order_table():
    sources = [(model, kind, seed, "model", 0.97) for model, kind, seed in MODELS]
    sources += [
        (kind, kind, 0, null, top) for kind in LAYERS for null, top in zip(NULLS, (0.8, 0.95, 0.9, np.nan), strict=True)
    ]
    rows = [
        {"model": model, "kind": kind, "seed": seed, "source": source, "position": t}
        | {"spearman": rho, "low": rho - 0.06, "high": min(rho + 0.02, 1), "n": 8 if source == "model" else 2}
        for model, kind, seed, source, top in sources
        for t in POSITIONS[1:-1]
        for rho in [top * (1 - np.exp(-t / (20 + 9 * seed + 8 * len(kind)))) if t > 2 else np.nan]
    ]
    return pd.DataFrame(rows)


TABLES = {
    "trajectories": trajectories_table,
    "head_map": head_map_table,
    "rank_distribution": settled,
    "shares": shares_table,
    "measures": measures_table,
    "context_matrix": context_matrix_table,
    "attacks": attacks_table,
    "cosine_bound": cosine_bound_table,
    "time_order": time_order_table,
}
NEEDED = {
    "trajectories": "model source layer head position rank low high D stratum",
    "head_map": "model source layer head rank D",
    "rank_distribution": "model kind seed source layer head rank D",
    "shares": "model kind seed split low low_lo low_hi middle middle_lo middle_hi high high_lo high_hi",
    "measures": "claim measure model kind seed source estimate low high",
    "context_matrix": "model a b spearman",
    "attacks": "model layer head context rank low high D bound text_rank",
    "cosine_bound": "model layer position cosine bound",
    "time_order": "model kind seed source position spearman low high",
}


def draw(name, table):
    return getattr(figures, name)(*([table, rules()] if name == "measures" else [table]))


@pytest.fixture(scope="module")
def drawn():
    return {name: draw(name, make()) for name, make in TABLES.items()}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", "test")
    return tmp_path / "build" / "test" / "figures"


def panels(figure):
    """The panels by their titles."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def lines(axes, colour):
    return [line for line in axes.lines if colors.same_color(line.get_color(), colour) and len(line.get_xdata()) > 2]


@pytest.mark.parametrize("name", TABLES)
def test_size_labels_and_n(drawn, name):
    figure = drawn[name]
    assert figure.get_figwidth() in (style.NARROW, style.WIDE)
    labels = {axes.get_xlabel() for axes in figure.axes} | {axes.get_ylabel() for axes in figure.axes}
    assert len(labels - {""}) >= (0 if name == "context_matrix" else 1)
    assert any("n = " in text for text in texts(figure))


@pytest.mark.parametrize("name", TABLES)
def test_nothing_leaves_the_figure(drawn, name):
    figure = drawn[name]
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01
    assert box.y1 <= figure.get_figheight() + 0.01


def test_drawing_leaves_pyplot_as_it_was(monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "font.size", 17)
    before = dict(mpl.rcParams)
    figure = draw("time_order", time_order_table())
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    assert {axes.title.get_fontsize() for axes in figure.axes} == {8}


@pytest.mark.parametrize("name", TABLES)
def test_every_missing_column_is_named(name):
    table = TABLES[name]().iloc[:3]
    for column in NEEDED[name].split():
        with pytest.raises(ValueError, match=rf"lacks the columns {column}\b"):
            draw(name, table.drop(columns=column))


@pytest.mark.parametrize("name", TABLES)
def test_empty_and_repeated_rows_are_refused(name):
    table = TABLES[name]()
    with pytest.raises(ValueError, match="no rows"):
        draw(name, table.iloc[:0])
    with pytest.raises(ValueError, match="one row for every"):
        draw(name, pd.concat([table, table]))


@pytest.mark.parametrize(("name", "column"), [("time_order", "source"), ("trajectories", "stratum")])
def test_an_unknown_name_is_refused(name, column):
    with pytest.raises(ValueError, match=f"no {column} is called 'tall'"):
        draw(name, TABLES[name]().assign(**{column: "tall"}))


def test_trajectories_draws_each_head_in_the_colour_of_its_stratum(drawn):
    table = trajectories_table()
    for (model, source, layer), part in table.groupby(["model", "source", "layer"]):
        axes = panels(drawn["trajectories"])[f"{model}, layer {layer}: {source}"]
        for stratum, heads in part.groupby("stratum"):
            drawn_heads = lines(axes, style.STRATA[stratum].colour)
            expected = [head["rank"].tolist() for _, head in heads.groupby("head")]
            assert sorted(list(line.get_ydata()) for line in drawn_heads) == sorted(expected)
        (bound,) = lines(axes, style.BOUND["color"])
        assert dict(zip(bound.get_xdata(), bound.get_ydata(), strict=True)) == {t: min(t, D) for t in POSITIONS}
        assert len(axes.collections) == H


def test_trajectories_refuses_several_layers_of_a_model():
    table = trajectories_table()
    with pytest.raises(ValueError, match="one layer of each model"):
        draw("trajectories", pd.concat([table, table.assign(layer=0)]))


def test_a_pruned_head_is_left_out_of_the_trajectories():
    table = trajectories_table().query("model == 'pure'").astype({"rank": float, "stratum": object})
    table.loc[table["head"] == 3, ["rank", "low", "high", "stratum"]] = np.nan
    figure = draw("trajectories", table)
    assert [len(axes.collections) for axes in figure.axes] == [H - 1, H - 1]


def test_head_map_shades_rank_over_d_and_leaves_nan_blank():
    table = head_map_table().query("model == 'hybrid'").astype({"rank": float})
    table.loc[(table["layer"] == 4) & (table["head"] == 5), "rank"] = np.nan
    figure = draw("head_map", table)
    (own, *_) = figure.axes
    shown = own.collections[0].get_array().reshape(len(LAYERS["hybrid"]), H)
    wanted = table.query("source == 'model'").pivot(index="layer", columns="head", values="rank").to_numpy() / D
    np.testing.assert_allclose(shown.filled(np.nan), wanted)
    assert np.isnan(wanted).sum() == 1
    assert own.collections[0].get_clim() == (0, 1)
    assert [label.get_text() for label in own.get_yticklabels()] == list("012456")


def test_head_map_shows_only_the_sources_asked_for():
    table = settled().query("kind == 'pure' and seed == 0")
    assert [axes.get_ylabel() for axes in draw("head_map", table).axes[:-1]] == ["model\nlayer ℓ", "untrained\nlayer ℓ"]
    with pytest.raises(ValueError, match="no rows"):
        figures.head_map(table, sources=["nobody"])


def test_the_distribution_is_the_share_of_heads_at_or_below(drawn):
    table = settled().query("model == 'pure-seed1'")
    curves = [line.get_xydata() for line in lines(panels(drawn["rank_distribution"])["pure"], "#111111")]
    share = np.sort(table["rank"] / D)
    (step,) = [curve for curve in curves if len(curve) == len(share) + 2 and np.allclose(curve[1:-1, 0], share)]
    np.testing.assert_allclose(step[1:-1, 1], np.arange(1, len(share) + 1) / len(share))


def test_thresholds_of_the_distribution_follow_the_arguments():
    figure = figures.rank_distribution(settled().query("kind == 'pure'"), low=0.1, high=0.8)
    bounds = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert bounds == [0.1, 0.8]


def test_shares_orders_thresholds_and_leaves_nulls_out():
    table = shares_table().assign(source="model")
    null = table.assign(source="mechanism", low=0.99)
    figure = draw("shares", pd.concat([table, null]))
    axes = panels(figure)["pure"]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == [f"$10^{{-{power}}}$" for power in (2, 3, 4, 5, 6)] + ["half-life\n9.6"]
    low = [line.get_ydata().tolist() for line in lines(axes, style.STRATA["low"].colour) if line.get_marker() == "o"]
    assert sorted(low) == [
        pytest.approx(v) for v in ([0.45, 0.4, 0.35, 0.3, 0.25, 0.25], [0.48, 0.43, 0.38, 0.33, 0.28, 0.28])
    ]


def test_measures_fills_what_passes_and_says_what_is_undefined(drawn):
    table = measures_table().query("kind == 'hybrid'")
    axes = panels(drawn["measures"])["hybrid"]
    points = {line.get_xdata()[0]: line for line in axes.lines if len(line.get_xdata()) == 1}
    assert len(points) == table["estimate"].notna().sum()
    for row in table.dropna(subset="estimate").itertuples():
        at_least, at_most = MEASURES[row.claim, row.measure]
        passes = row.high <= at_most if np.isnan(at_least) else row.low >= at_least
        line = points[row.estimate]
        assert colors.same_color(line.get_markerfacecolor(), line.get_color() if passes else "white"), row
        assert round(line.get_ydata()[0]) == list(MEASURES).index((row.claim, row.measure))
    assert [text.get_text() for text in axes.texts] == ["common decay: undefined"] * 2


@pytest.mark.parametrize("ends", [(np.nan, np.nan), (0.1, 0.9)])
def test_a_measure_needs_exactly_one_threshold(ends):
    wrong = rules()
    wrong.loc[0, ["at_least", "at_most"]] = ends
    with pytest.raises(ValueError, match="smaller group"):
        figures.measures(measures_table(), wrong)
    with pytest.raises(ValueError, match="smaller group"):
        figures.measures(measures_table(), rules().iloc[1:])


def test_the_context_matrix_keeps_the_order_and_leaves_nan_blank(drawn):
    axes = panels(drawn["context_matrix"])
    names = [*CONTEXTS, *ATTACKS]
    assert [label.get_text() for label in axes["hybrid"].get_yticklabels()] == names
    shown = axes["uniform"].collections[0].get_array().reshape(9, 9)
    wanted = context_matrix_table().query("model == 'uniform'")["spearman"].to_numpy().reshape(9, 9)
    np.testing.assert_allclose(shown.filled(np.nan), wanted)
    assert {text.get_text() for text in axes["hybrid"].texts} >= {"1.00", f"{_rho('hybrid', 'code', 'prose'):.2f}"[1:]}


def _rho(model, a, b):
    return context_matrix_table().query("model == @model and a == @a and b == @b")["spearman"].item()


def test_attacks_marks_the_first_layer_and_its_bound(drawn):
    for attack, bound in ATTACKS.items():
        axes = panels(drawn["attacks"])[f"pure: {attack}"]
        (first,) = [line for line in axes.lines if line.get_marker() == "D"]
        (others,) = [line for line in axes.lines if line.get_marker() == "o"]
        assert (len(first.get_xdata()), len(others.get_xdata())) == (H, 7 * H)
        assert first.get_ydata().max() <= bound < others.get_ydata().max()
        assert f"p + 3 = {bound}" in [text.get_text() for text in axes.texts]


def test_the_cosine_figure_shows_turn_and_bound_and_counts_what_it_cannot(drawn):
    table = cosine_bound_table().query("model == 'pure'").reset_index(drop=True)
    (bound, *_) = lines(panels(drawn["cosine_bound"])["pure"], style.BOUND["color"])
    np.testing.assert_allclose(bound.get_ydata(), [3 / t**0.8 for t in POSITIONS[1:]])
    table.loc[[0, 5], "cosine"] = [1.0, 1 + 1e-16]
    assert any(f"2 of {len(table)} values are 0" in text for text in texts(draw("cosine_bound", table)))
    again = pd.concat([table.assign(context=context, bound=bound) for context, bound in (("a", -1), ("b", 0.5))])
    [foot] = [text for text in texts(draw("cosine_bound", again)) if "Eq. 13 allows" in text]
    assert "n = 4 samples" in foot
    assert "in 50% of steps" in foot.replace("\n", " ")


def test_time_order_is_drawn_where_no_order_is_defined():
    undefined = time_order_table().assign(spearman=np.nan, low=np.nan, high=np.nan)
    left, right = panels(figures.time_order(undefined))["hybrid"].get_xlim()
    assert (left, right) == (undefined["position"].min(), undefined["position"].max())


def test_time_order_breaks_at_nan_and_names_the_undefined(drawn):
    axes = panels(drawn["time_order"])["hybrid"]
    own = sorted(lines(axes, "#111111"), key=lambda line: -line.get_linewidth())
    assert len(own) == 2
    assert own[0].get_linewidth() > own[1].get_linewidth()
    assert np.isnan(own[0].get_ydata()).tolist() == [True] + [False] * 9
    legend = [text.get_text() for text in drawn["time_order"].legends[0].get_texts()]
    assert legend == ["model, seed 0", "model, seed 1", *NULLS[:3], "common decay (undefined)"]


def test_n_is_told_by_source_where_it_differs():
    table = pd.DataFrame({"source": ["model", "untrained", "mechanism"], "n": [8, 2, np.nan]})
    assert style.counted(table.iloc[:1]) == "n = 8 samples"
    assert style.counted(table) == "n = 8 (model), 2 (untrained) samples"
    assert style.counted(table.assign(n=[8, 2, 2])) == "n = 8 (model), 2 (nulls) samples"
    assert style.counted(table.assign(n=np.nan)) == style.counted(table[["source"]]) == ""


def test_a_single_model_by_any_name_gets_a_text_column():
    for name in ("trajectories", "head_map", "measures"):
        table = TABLES[name]()
        for column in {"kind", "model"} & set(table):
            table = table[table[column] == "pure"].assign(**{column: "Qwen3-Next"})
        assert draw(name, table).get_figwidth() == style.NARROW


@pytest.mark.parametrize("name", ["trajectories", "measures", "context_matrix"])
def test_files_are_small_and_open(clone, drawn, name):
    path = figures.save(drawn[name], name)
    assert path == clone / f"{name}.png"
    assert path.stat().st_size <= 300_000
    width = image.imread(path).shape[1]
    assert width == pytest.approx(300 * drawn[name].get_figwidth(), abs=1)
    content = path.with_suffix(".pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"CreationDate" not in content
    assert b"Type3" not in content
    assert sorted(p.name for p in clone.iterdir()) == [f"{name}.pdf", f"{name}.png"]


def test_saving_again_writes_only_what_differs(clone, drawn):
    figures.save(drawn["time_order"], "02_time")
    (clone / "02_time.pdf").write_bytes(b"torn")
    untouched = clone / "02_time.png"
    before = (untouched.stat().st_mtime_ns, untouched.stat().st_ino)
    figures.save(drawn["time_order"], "02_time")
    assert (untouched.stat().st_mtime_ns, untouched.stat().st_ino) == before
    assert (clone / "02_time.pdf").read_bytes().startswith(b"%PDF")


def test_a_line_moved_by_rounding_leaves_the_files_and_a_moved_point_does_not(clone):
    def saved(moved):
        table = TABLES["time_order"]()
        column = table.select_dtypes("float").columns[-1]
        figures.save(draw("time_order", table.assign(**{column: table[column] + moved})), "02_time")
        return [(clone / f"02_time.{suffix}").read_bytes() for suffix in ("png", "pdf")]

    first = saved(0.0)
    assert saved(1e-9) == first
    assert all(new != old for new, old in zip(saved(0.05), first, strict=True))


def test_another_process_writes_the_same_bytes(clone, drawn):
    figures.save(drawn["context_matrix"], "pairs")
    before = {p.name: p.read_bytes() for p in clone.iterdir()}
    code = "import test_figures as t; t.figures.save(t.figures.context_matrix(t.context_matrix_table()), 'pairs')"
    env = os.environ | {"SRDYN_RUN": "again", "PYTHONHASHSEED": "7", "PYTHONPATH": os.path.dirname(__file__)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    again = clone.parents[1] / "again" / "figures"
    assert {p.name: p.read_bytes() for p in again.iterdir()} == before


@pytest.mark.parametrize("stem", ["", "../x", "a b", "x.png"])
def test_a_stem_is_a_plain_name(clone, drawn, stem):
    with pytest.raises(ValueError, match="plain name"):
        figures.save(drawn["shares"], stem)


def mechanism_table():
    """A row for every head of every model; the null lies above, and in another stratum for head 3."""
    table = settled().query("seed == 0 and source == 'model'").drop(columns="source").reset_index(drop=True)
    stratum = np.select([table["rank"] <= 0.25 * D, table["rank"] < 0.9 * D], ["low", "middle"], "high")
    null = np.minimum(table["rank"] + np.where(table["head"] == 1, 9, 0), D)
    others = {"low": "middle", "middle": "high", "high": "middle"}
    residual = table["rank"] - null
    return table.assign(
        stratum=stratum,
        mechanism=null,
        mechanism_stratum=[others[s] if h == 3 else s for s, h in zip(stratum, table["head"], strict=True)],
        half_life=np.log(2) * table["rank"] / np.log(1e4),
        residual=residual,
        residual_low=residual - 0.5,
        residual_high=residual + 0.5,
    )


def explained_table():
    rows = []
    for model, predictor in itertools.product(LAYERS, ["closed form", "monotone fit", "untrained"]):
        for quantity, estimate in {"R² between heads": 0.9, "R² within heads": 0.4, "Spearman ρ": 0.95}.items():
            value = -1.25 if predictor == "untrained" and "between" in quantity else estimate
            spread = {"R² between heads": (0.97, 0.99), "R² within heads": (0.03, 0.8)}.get(quantity, (np.nan, np.nan))
            ends = {"low": value - 0.1, "high": value + 0.04, "n": 8, "variance": spread[0], "reproducible": spread[1]}
            rows.append({"model": model, "predictor": predictor, "quantity": quantity, "estimate": value} | ends)
    return pd.DataFrame(rows)


def rounded_table():
    exact = settled().query("seed == 0 and source == 'model'").drop(columns="source")
    lifts = {"float64": 0, "float16": 1, "bfloat16": 12}
    parts = [
        exact.assign(precision=name, exact=exact["rank"], rank=np.minimum(exact["rank"] + lift, D))
        for name, lift in lifts.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    strata = [np.digitize(table[name] / D, [0.25 + 1e-9, 0.9]) for name in ("rank", "exact")]
    return table.assign(moved=strata[0] != strata[1], low=table["rank"] - 1, high=table["rank"] + 1)


def fork_table():
    rows = itertools.product(LAYERS, ["float64", "float16", "bfloat16"], ["smaller group", "middle"])
    table = pd.DataFrame(rows, columns=["model", "precision", "measure"])
    return table.assign(moved=(table["precision"] == "bfloat16") & (table["model"] != "pure"))


def sweep_table():
    rows = []
    for model, source, power in itertools.product(LAYERS, ["model", "mechanism", "closed form"], range(2, 7)):
        low, high = 0.7 - 0.05 * power, 0.05 * power
        ends = {"low_lo": low - 0.03, "low_hi": low + 0.03, "high_lo": high - 0.03, "high_hi": high + 0.03}
        rows.append({"model": model, "ranks_of": source, "eps": 10.0**-power, "low": low, "high": high, "n": 8} | ends)
    return pd.DataFrame(rows)


def splits_table():
    table = shares_table().query("seed == 0").drop(columns=["kind", "seed"])
    kappa = np.where(table["split"] == "1e-04", 1.0, 0.7)
    return table.assign(kappa=kappa, kappa_lo=kappa - (kappa < 1) * 0.1, kappa_hi=kappa + (kappa < 1) * 0.05)


MECHANISM = {
    "rank_against_decay": (mechanism_table, "model layer head rank low high D half_life stratum mechanism"),
    "explained_variance": (explained_table, "model predictor quantity estimate low high variance reproducible"),
    "residual_map": (
        mechanism_table,
        "model layer head residual residual_low residual_high n stratum mechanism_stratum",
    ),
    "rounded_ranks": (rounded_table, "model layer head precision rank low high D exact moved"),
    "threshold_sweep": (sweep_table, "model ranks_of eps low low_lo low_hi high high_lo high_hi"),
    "head_splits": (
        splits_table,
        "model split kappa kappa_lo kappa_hi low low_lo low_hi middle middle_lo middle_hi high high_lo high_hi",
    ),
}


def draw_mechanism(name, table):
    return getattr(figures, name)(*([table, fork_table()] if name == "rounded_ranks" else [table]))


@pytest.fixture(scope="module")
def of_mechanism():
    return {name: draw_mechanism(name, make()) for name, (make, _) in MECHANISM.items()}


@pytest.mark.parametrize("name", MECHANISM)
def test_figures_of_the_mechanism_fit_and_say_n(of_mechanism, name):
    figure = of_mechanism[name]
    assert figure.get_figwidth() == style.WIDE
    assert any("n = " in text for text in texts(figure))
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01
    assert box.y1 <= figure.get_figheight() + 0.01


@pytest.mark.parametrize("name", MECHANISM)
def test_figures_of_the_mechanism_refuse_a_table_that_does_not_fit(name):
    make, columns = MECHANISM[name]
    table = make()
    for column in columns.split():
        with pytest.raises(ValueError, match=rf"lacks the columns {column}\b"):
            draw_mechanism(name, table.drop(columns=column))
    with pytest.raises(ValueError, match="no rows"):
        draw_mechanism(name, table.iloc[:0])
    with pytest.raises(ValueError, match="one row for every"):
        draw_mechanism(name, pd.concat([table, table]))


def test_the_closed_form_is_drawn_through_heads_that_follow_it(of_mechanism):
    for axes in of_mechanism["rank_against_decay"].axes:
        (curve,) = [line for line in axes.lines if len(line.get_xdata()) == 200]
        heads = mechanism_table().query(f"model == '{axes.get_title()}'")
        np.testing.assert_allclose(
            np.interp(heads["half_life"], *curve.get_data()), heads["rank"], atol=0.7
        )  # between 200 points, on a curve that bends once
        assert curve.get_ydata().max() == D


def test_an_r2_beyond_the_panel_is_written_at_its_edge(of_mechanism):
    axes = panels(of_mechanism["explained_variance"])["pure"]
    assert [text.get_text() for text in axes.texts] == [" ◂ −1.25"]
    assert any("between heads 97.0 %, within heads 3.0 %" in t for t in texts(of_mechanism["explained_variance"]))


def test_the_residual_map_blanks_what_is_within_chance_and_frames_strata(of_mechanism):
    figure = of_mechanism["residual_map"]
    for model in LAYERS:
        axes, table = panels(figure)[model], mechanism_table().query("model == @model")
        shown = axes.collections[0].get_array().reshape(len(LAYERS[model]), H)
        expected = table.pivot(index="layer", columns="head", values="residual").to_numpy()
        np.testing.assert_allclose(shown, np.where(np.abs(expected) > 0.5, expected, 0))
        assert (shown != 0).any()
        framed = [p for p in axes.patches if isinstance(p, mpl.patches.Rectangle)]
        assert [int(p.get_x()) for p in framed] == [3] * len(LAYERS[model])
    with pytest.raises(ValueError, match="no rows"):
        figures.residual_map(mechanism_table().assign(residual=np.nan))


def test_the_precision_figure_counts_heads_and_measures(of_mechanism):
    figure, table = of_mechanism["rounded_ranks"], rounded_table()
    assert not any("float64" in title for title in panels(figure))
    for model in LAYERS:
        rows = table.query("model == @model and precision == 'bfloat16'")
        told = [text.get_text() for text in panels(figure)[f"{model}: bfloat16"].texts]
        assert told == [f"{rows['moved'].sum()} of {len(rows)} move"]
    (note,) = [text for text in texts(figure) if "measures" in text]
    assert "0 of 6 (float16), 4 of 6 (bfloat16)" in note.replace("\n", " ")


def test_the_sweep_runs_from_large_to_small_thresholds(of_mechanism):
    axes = panels(of_mechanism["threshold_sweep"])["pure"]
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    drawn_lines = lines(axes, style.STRATA["high"].colour)
    assert len(drawn_lines) == 3
    for line in drawn_lines:
        np.testing.assert_allclose(sorted(line.get_ydata()), [0.1, 0.15, 0.2, 0.25, 0.3])


def test_the_splits_stack_to_one_and_tell_kappa_where_it_says_something(of_mechanism):
    axes = panels(of_mechanism["head_splits"])["hybrid"]
    bars = [p for p in axes.patches if isinstance(p, mpl.patches.Rectangle)]
    for row in range(6):
        assert sum(bar.get_width() for bar in bars if round(bar.get_y() + 0.31) == row) == pytest.approx(1)
    assert [text.get_text() for text in axes.texts if "κ" in text.get_text()] == ["κ .70\n(.60–.75)"] * 5
