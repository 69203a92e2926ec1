"""Rules side by side: what has no decay has no half-life to foretell from, and all are measured alike."""

import numpy as np
import pandas as pd
import pytest

from srdyn.study.analysis import update_rules

pytestmark = pytest.mark.usefixtures("few_resamples")
D, POSITIONS = 16, [8, 64]
KEEPS = {"decays": [-2.0, -1.0, -0.5, -0.01], "erases": [np.nan] * 4}


def text(rule):
    """The head table of a model whose ranks are what its decays foretell, or full without decay, but for one head."""
    rows = []
    for source in ("model", "untrained"):
        for context in ("code", "prose"):
            for sample in range(2):
                for layer in (0, 1):
                    for head, decay in enumerate(KEEPS[rule]):
                        full = D if np.isnan(decay) else min(D, round(np.log(1e4) / -decay))
                        rank = full - (sample + layer) * (head == 1) if source == "model" else head
                        for t in POSITIONS:
                            place = {"context": context, "sample": sample, "layer": layer, "head": head, "position": t}
                            place |= {"rank": min(rank, t), "log_decay": decay, "source": source}
                            rows.append(place)
    about = {"model": rule, "kind": rule, "seed": 0, "D": D, "uncertain": False, "nuclear_norm": 1.0}
    return pd.DataFrame(rows).assign(**about, document=lambda table: table["sample"])


@pytest.fixture(scope="module")
def both():
    return pd.concat([text("decays"), text("erases")], ignore_index=True)


def test_without_decay_a_half_life_is_infinite_and_foretells_a_full_state(both):
    table = update_rules.heads(both, 64)
    erases, decays = (table[table["model"] == name] for name in ("erases", "decays"))
    assert np.isinf(erases["half_life"]).all()
    assert (erases["predicted"] == D).all()
    np.testing.assert_allclose(decays["half_life"], np.tile(np.log(2) / -np.array(KEEPS["decays"]), 2))
    np.testing.assert_allclose(decays.loc[decays["head"] == 3, "predicted"], D)
    assert len(table) == 16


def test_every_model_and_source_has_every_measure_but_those_of_decay(both):
    table = update_rules.measures(both, POSITIONS)
    assert not table.duplicated(["model", "source", "measure"]).any()
    counts = table.groupby(["model", "source"]).size()
    assert counts.drop(("decays", "model")).nunique() == 1
    foretold = table[table["measure"].str.startswith("closed form")]
    assert set(zip(foretold["model"], foretold["source"], strict=True)) == {("decays", "model")}
    assert counts["decays", "model"] - counts["erases", "model"] == len(foretold) == 3
    assert table["unit"].notna().all()


def test_measures_are_those_of_the_mean_ranks(both):
    found = update_rules.measures(both, POSITIONS).set_index(["model", "source", "measure"])["estimate"]
    own = both.query("position == 64 and source == 'model'").groupby(["model", "layer", "head"])["rank"].mean()
    assert found["erases", "model", "rank after 64 tokens"] == pytest.approx(own["erases"].mean())
    assert found["erases", "model", "rank after 8 tokens"] == 8
    assert found["decays", "model", "high heads"] == (own["decays"] >= 0.9 * D).mean()
    total = sum(found["decays", "model", name] for name in update_rules.SHARES.values())
    assert total == pytest.approx(1)
    assert found["decays", "model", update_rules.RHO] == 1
