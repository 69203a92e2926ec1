"""Figures of ablation, pruning and verdicts draw what their tables say and refuse tables that do not fit."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib import colors

from srdyn import figures
from srdyn.figures import interventions, scorecard, style

MODELS = ("hybrid", "pure")
PROBES = ("needle", "recall8")
ARMS = ("high", "low", "random")


def grid(**axes):
    table = pd.DataFrame(itertools.product(*axes.values()), columns=list(axes))
    value = np.linspace(0.1, 0.9, len(table))
    return table.assign(estimate=value, low=value - 0.05, high=value + 0.05, n=200)


@pytest.fixture
def doses():
    removed = grid(model=MODELS, panel=PROBES, arm=ARMS, share=(0.125, 0.25, 0.389))
    return pd.concat([grid(model=MODELS, panel=PROBES, arm=("intact",), share=(0.0,)), removed], ignore_index=True)


@pytest.fixture
def differences():
    table = grid(model=MODELS, probe=PROBES, arm=("high", "low")).rename(columns={"estimate": "difference"})
    return table.assign(testable=table["probe"] == "needle")


def drawn(panel, colour):
    """The points of the lines of a colour, [points, 2]."""
    lines = [line for line in panel.get_lines() if colors.same_color(line.get_color(), colour)]
    return np.concatenate([np.column_stack(line.get_data()) for line in lines])


def test_doses_show_every_arm_in_every_panel(doses):
    figure = figures.doses(doses, marked=0.389)
    assert len(figure.axes) == 4
    first = doses.query("model == 'hybrid' and panel == 'needle' and arm == 'low'")
    shown = drawn(figure.axes[0], interventions.ARMS["low"].colour)
    np.testing.assert_allclose(sorted(shown[:, 1]), sorted(first["estimate"]))
    assert [panel.get_title() for panel in figure.axes[:2]] == list(MODELS)


def test_contrasts_are_hollow_where_the_intact_model_does_not_solve_the_task(differences):
    figure = figures.contrasts(differences, unit="share of items")
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() in "^o"]
    faces = {round(float(line.get_ydata()[0])): line.get_markerfacecolor() for line in lines}
    assert colors.same_color(faces[1], "white")
    assert not colors.same_color(faces[0], "white")
    assert "hollow" in figure.texts[-1].get_text()


def test_single_heads_lie_at_their_rank_and_damage():
    table = grid(model=MODELS, probe=PROBES, layer=(0, 1), head=range(4)).rename(columns={"estimate": "damage"})
    figure = figures.single_heads(table.assign(rank=np.arange(len(table)), D=64))
    points = figure.axes[0].collections[0].get_offsets()
    part = table.assign(rank=np.arange(len(table))).query("model == 'hybrid' and probe == 'needle'")
    np.testing.assert_allclose(points, part[["rank", "damage"]])


def test_coefficients_lie_beside_their_predictor():
    table = grid(model=MODELS, probe=PROBES, predictor=("rank", "decay")).rename(columns={"estimate": "coefficient"})
    figure = figures.coefficients(table)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["rank", "decay"]
    assert len(figure.axes[0].collections) == 4


def test_more_probes_than_looks_are_refused():
    table = grid(model=MODELS, probe=tuple("abcde"), predictor=("rank",)).rename(columns={"estimate": "coefficient"})
    with pytest.raises(ValueError, match="at most 4 probes can be told apart, got a, b, c, d, e"):
        figures.coefficients(table)


def test_windows_are_in_order_of_their_size():
    table = grid(probe=PROBES, arm=("high", "low"), window=(64, 16)).rename(columns={"estimate": "interaction"})
    figure = figures.windows(table)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["16", "64"]
    high = drawn(figure.axes[0], interventions.ARMS["high"].colour)
    part = table.query("probe == 'needle' and arm == 'high'").sort_values("window")
    np.testing.assert_allclose(high[:, 1], part["interaction"])


def test_rules_lie_at_what_they_keep():
    table = grid(model=MODELS, panel=("kept",), rule=("joint, α = 0.5", "random", "norm"), state=(0.61,))
    figure = figures.rules(table)
    shown = {line.get_ydata()[0]: line.get_xdata()[0] for line in figure.axes[0].get_lines()}
    assert list(shown.values()) == table.query("model == 'hybrid'")["estimate"].tolist()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["joint, α = 0.5", "random", "norm"]


def test_random_removal_is_a_band_behind_the_alphas():
    table = grid(model=MODELS, panel=("accuracy kept", "bits per byte"), alpha=(0.0, 0.5, 1.0, np.nan))
    table["chosen"] = np.where(table["alpha"] == 0, "a", "b")
    figure = figures.alphas(table, wanted={"accuracy kept": 0.95})
    assert len(figure.axes) == 4
    assert len(figure.axes[0].patches) == 1
    shown = drawn(figure.axes[0], "#111111")
    np.testing.assert_allclose(shown[:, 0], [0, 0.5, 1])
    joined = [len(line.get_xdata()) for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert joined == [1, 2]  # where the heads differ, no line goes
    wanted = [sum(list(line.get_ydata()) == [0.95, 0.95] for line in panel.get_lines()) for panel in figure.axes]
    assert wanted == [1, 1, 0, 0]


def test_calibrations_stand_beside_chance():
    table = grid(model=MODELS, variant=("code alone", "seed 1")).rename(columns={"estimate": "overlap"})
    figure = figures.calibrations(table.assign(chance=0.39))
    bound = [line for line in figure.axes[0].get_lines() if line.get_xdata()[0] == 0.39]
    assert len(bound) == 1


@pytest.fixture
def ledger():
    rows = [
        ("C1", "hybrid", "reproduced (null passes too: mechanism)", "smaller group 0.25 (≥ 0.2)"),
        ("C1", "pure", "not reproduced", "smaller group 0.1 (≥ 0.2)"),
        ("C1", "uniform", "control (one seed): undecided", "smaller group 0.2 (≥ 0.2)"),
        ("C6", "", "not testable here", ""),
    ]
    return pd.DataFrame(rows, columns=["claim", "kind", "verdict", "leading"]).assign(why="needs other checkpoints")


def test_verdicts_are_drawn_by_what_they_amount_to(ledger):
    figure = figures.verdicts(ledger)
    (panel,) = figure.axes
    marks = {(round(line.get_xdata()[0] + 0.1), line.get_ydata()[0]): line for line in panel.get_lines()}
    assert marks[1, 0].get_color() == scorecard.OUTCOMES["not reproduced"].colour
    assert colors.same_color(marks[0, 0].get_markerfacecolor(), "white")
    assert {place for place in marks if place[1] == 1} == {(0, 1), (1, 1), (2, 1)}
    assert marks[2, 0].get_markersize() < marks[1, 0].get_markersize()
    assert [label.get_text() for label in panel.get_xticklabels()] == ["hybrid", "pure", "uniform (control)"]
    assert scorecard.outcome("one seed: fails") == "not reproduced"
    with pytest.raises(ValueError, match="no verdict is called 'perhaps'"):
        scorecard.outcome("perhaps")


@pytest.mark.parametrize(
    ("draw", "table"),
    [
        (functools.partial(figures.doses, marked=0.389), grid(model=MODELS, panel=PROBES, arm=ARMS)),
        (figures.rules, grid(model=MODELS, panel=PROBES)),
        (functools.partial(figures.alphas, wanted={}), grid(model=MODELS)),
        (figures.windows, grid(probe=PROBES, arm=ARMS)),
    ],
)
def test_a_table_without_a_column_is_refused(draw, table):
    with pytest.raises(ValueError, match="the table lacks the columns"):
        draw(table)


def test_repeated_rows_are_refused(doses):
    with pytest.raises(ValueError, match="one row for every"):
        figures.doses(pd.concat([doses, doses.head(1)]), marked=0.389)


def test_looks_are_the_same_in_all_figures():
    assert interventions.ARMS["high"] == style.STRATA["high"]
