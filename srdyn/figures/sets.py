"""Figures of sets of heads among random ones."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from srdyn.figures import interventions, style

_BESIDE = {"intact": style.BOUND, "all off": {"color": "0.45", "linestyle": ":", "linewidth": 0.9}}


@style.draws("model arm share which draw", "value n")
def places(table: pd.DataFrame, *, value: str) -> Figure:
    """What is answered without random sets of heads, in order, and without chosen ones among them: a panel a model.

    An arm's `chosen` sets stand at the share of `random` ones that do worse, ties counted half.
    """
    names = list(table["model"].unique())
    figure, axes = style.grid(1, len(names), height=1.7, sharex=True, sharey=True)
    arms = [arm for arm in table["arm"].unique() if arm not in _BESIDE]
    looks = {arm: interventions.ARMS.get(arm, style.Look("#111111", "o")) for arm in arms}
    for panel, model in zip(axes[0], names, strict=True):
        part = table[table["model"] == model]
        for name, line in _BESIDE.items():
            for height in part.loc[part["arm"] == name, "value"]:
                panel.axhline(height, zorder=1, **line)
        for arm, rows in part[part["which"] == "random"].groupby("arm", sort=False):
            ordered = np.sort(rows["value"])
            panel.step((np.arange(len(ordered)) + 0.5) / len(ordered), ordered, color="0.6", where="mid", zorder=2)
            chosen = part.loc[(part["arm"] == arm) & (part["which"] == "chosen"), "value"]
            worse = [np.searchsorted(ordered, chosen, side) / len(ordered) for side in ("left", "right")]
            look, mark = looks[arm], {"markersize": 4, "zorder": 3, "alpha": 0.7}
            panel.plot(np.mean(worse, 0), chosen, look.marker, color=look.colour, **mark)
        panel.set_xlim(-0.03, 1.03)
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.set_title(model)
    style.outer_labels(figure.axes, x="share of random\nsets that do worse", y=value)
    handles = [style.handle(interventions.TITLES.get(arm, arm), look, linestyle="") for arm, look in looks.items()]
    handles += [style.handle("random sets, in order", color="0.6")]
    style.legend(figure, [*handles, *(style.handle(name, **line) for name, line in _BESIDE.items())])
    random = table[table["which"] == "random"].groupby(["model", "arm"]).size()
    drawn = "a symbol for each draw of ties"
    return style.finish(figure, f"{style.span(random)} random sets of as many heads", drawn, "all answer the same rows")
