"""The figure of cache sizes draws what its table says and refuses a table that does not fit."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from srdyn import figures
from srdyn.figures import style

TOKENS = [2**power for power in range(8, 19)]
MODELS = {"early": 1024.0, "pure": np.nan, "late": 12000.0, "never": 2.0**30}
NEEDED = ["model", "tokens", "heads", "removed_heads", "total_bytes", "removed_bytes", "freed", "break_even"]


def cache_sizes():
    """Caches of 50 heads of 1 MiB each, 20 of them removed, whose keys and values cost as much at `break_even`."""
    table = pd.DataFrame([(model, even, t) for model, even in MODELS.items() for t in TOKENS])
    table.columns = ["model", "break_even", "tokens"]
    growth = (table["tokens"] / table["break_even"]).fillna(0)
    table = table.assign(heads=50, removed_heads=20, removed_bytes=20 * 2**20, total_bytes=50 * 2**20 * (1 + growth))
    return table.assign(freed=table["removed_bytes"] / table["total_bytes"])


@pytest.fixture(scope="module")
def drawn():
    return figures.memory(cache_sizes())


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


@pytest.mark.parametrize(("place", "column"), [(0, "total_bytes"), (1, "freed")])
def test_a_line_for_each_model_by_break_even(drawn, place, column):
    lines = [line for line in drawn.axes[place].lines if len(line.get_xdata()) == len(TOKENS)]
    table = cache_sizes()
    wanted = [table.loc[table["model"] == model, column].tolist() for model in ("early", "late", "never", "pure")]
    assert [list(line.get_ydata()) for line in lines] == wanted
    assert {tuple(line.get_xdata()) for line in lines} == {tuple(TOKENS)}
    assert len({line.get_color() for line in lines}) == len(MODELS)


def test_bands_reach_from_the_intact_cache_down_to_what_is_left(drawn):
    table = cache_sizes().set_index("model")
    for band, model in zip(drawn.axes[0].collections, ("early", "late", "never", "pure"), strict=True):
        intact = table.loc[model, "total_bytes"]
        assert set(band.get_paths()[0].vertices[:, 1]) == {*intact, *(intact - 20 * 2**20)}


def test_circles_stand_where_keys_and_values_cost_what_the_states_do(drawn):
    for panel, height in zip(drawn.axes, (100 * 2**20, 0.2), strict=True):
        marks = [line for line in panel.lines if line.get_marker() == "o"]
        assert [mark.get_xdata()[0] for mark in marks] == [1024, 12000]
        # Between two points the drawn line is straight, a little off the curve.
        assert [mark.get_ydata()[0] for mark in marks] == pytest.approx([height] * 2, rel=0.03)
        assert marks[0].get_ydata()[0] == pytest.approx(height)


def test_names_units_and_the_share_removed_are_said(drawn):
    said = texts(drawn)
    assert all(said.count(model) == 2 for model in MODELS)
    assert {"32 MiB", "1 GiB", "10%", "40.0% of the states"} <= set(said)
    (bound,) = [line for line in drawn.axes[1].lines if line.get_color() == style.BOUND["color"]]
    assert set(bound.get_ydata()) == {0.4}
    assert any("40.0% of the states · circles" in text for text in said)


def test_nothing_leaves_the_figure(drawn):
    box = drawn.get_tightbbox(FigureCanvasAgg(drawn).get_renderer())
    assert drawn.get_figwidth() == style.WIDE
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= drawn.get_figwidth() + 0.01
    assert box.y1 <= drawn.get_figheight() + 0.01


@pytest.mark.parametrize("column", NEEDED)
def test_every_missing_column_is_named(column):
    with pytest.raises(ValueError, match=rf"lacks the columns {column}\b"):
        figures.memory(cache_sizes().drop(columns=column))


def test_repeated_rows_are_refused():
    with pytest.raises(ValueError, match="one row for every model, tokens"):
        figures.memory(pd.concat([cache_sizes()] * 2))
