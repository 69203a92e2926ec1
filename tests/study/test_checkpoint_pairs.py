"""Two checkpoints' heads side by side: independent agreement, planted identity, honest null."""

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import saved
import torch

from srdyn import figures, models, strata
from srdyn.loading import files
from srdyn.study.analysis import checkpoint_pairs, observations
from srdyn.study.claims import claims, registration
from srdyn.study.run import opened, store
from srdyn.study.survey import null_tables, survey

AT = 48


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv(store.KEPT, str(tmp_path / "kept"))


def planted(ranks, name="a"):
    """A head table with ranks [samples, contexts, L, H] at one position."""
    axes = np.indices(ranks.shape)
    names = {"sample": axes[0], "context": axes[1], "layer": axes[2], "head": axes[3], "rank": ranks}
    return pd.DataFrame({key: value.ravel() for key, value in names.items()}).assign(position=AT, D=64, model=name)


def side_by_side(a, b):
    return checkpoint_pairs._side_by_side(*(observations.cube(planted(ranks)) for ranks in (a, b)))


def drawn(seed):
    """Ranks of three layers that differ a lot, of five heads that differ in each."""
    rng = np.random.default_rng(seed)
    heads = np.array([5.0, 30.0, 55.0])[:, None] + rng.uniform(-5, 5, (3, 5))
    return np.round(heads + rng.uniform(-1, 1, (4, 2, 3, 5)))


@pytest.fixture
def ranks():
    return drawn(0)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A tiny model, and the same with every weight moved a little, as fine-tuning would."""
    folder = tmp_path_factory.mktemp("models")
    base = saved.tiny(folder / "tiny-base")
    tuned = models.load(shutil.copytree(base, folder / "tiny-tuned"))
    with torch.no_grad():
        for i, parameter in enumerate(tuned.hf.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.02 * noise * parameter.std(correction=0))
    tuned.hf.save_pretrained(folder / "tiny-tuned")
    return base, folder / "tiny-tuned"


@pytest.fixture
def reading(tmp_path):
    text = "".join(f"The number {i} is followed by {i + 1}.\n" for i in range(300))
    (tmp_path / "own.txt").write_text(text)
    return survey.Reading((str(tmp_path / "own.txt"),), (), ("common number",), (8, AT), n=4)


def test_two_checkpoints_are_compared_head_by_head(places, reading):
    table = checkpoint_pairs.compare(*places, reading, at=AT)
    assert table["measure"].tolist() == ["spearman between checkpoints"] * 2 + ["kappa between checkpoints"] * 2
    assert set(table["model"]) == {"tiny-base / tuned"}
    [kind] = {opened.kind(models.load(place)) for place in places}
    assert set(table["kind"]) == {kind}
    heads = survey.heads(places, reading, sources=())
    own = heads[(heads["context"] == "own") & (heads["position"] == AT)]
    a, b = (part.groupby(["layer", "head"])["rank"].mean() for _, part in own.groupby("model", sort=False))
    expected = strata.agreement(a, b, d=8)
    rows = table[table["source"] == null_tables.MODEL].set_index("measure")
    for name in ("spearman", "kappa"):
        found = rows.loc[f"{name} between checkpoints"]
        assert found["estimate"] == pytest.approx(expected[name], abs=1e-12)
        assert found["low"] <= found["estimate"] <= found["high"]
    nulls = table[table["source"] == checkpoint_pairs.NULL].set_index("measure")["estimate"]
    assert rows.at["spearman between checkpoints", "estimate"] > nulls["spearman between checkpoints"]


def test_a_pair_of_two_seeds_is_a_kind_of_its_own(places, reading, tmp_path):
    other = shutil.copytree(places[1], tmp_path / "tiny-other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"srdyn_seed": 1}))
    table = checkpoint_pairs.compare(places[0], other, reading, at=AT)
    assert set(table["kind"]) == {"tiny-base / other"}
    assert set(table["seed"]) == {0}


def test_what_a_pair_shows_is_recorded_and_drawn(places, reading, tmp_path, monkeypatch):
    table = checkpoint_pairs.compare(*places, reading, at=AT)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/paper").symlink_to(files.data_dir() / "paper")
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    claims.record("C6", table, run="02_consistency")
    [line] = claims.ledger().query("claim == 'C6'").to_dict("records")
    assert (line["kind"], line["verdict"].split(":")[0]) == (table["kind"].iloc[0], "one seed")
    figures.measures(store.load_table("02_consistency_claims"), registration.rules())


def test_the_null_keeps_what_the_layers_share_and_nothing_else(ranks):
    same = checkpoint_pairs._rows(strata.spearman, side_by_side(ranks, ranks))
    assert same["estimate"][0] == pytest.approx(1)
    assert same["why"][0].startswith("0 of 1000")
    assert 0.8 < same["estimate"][1] < 0.95  # three layers in order already agree: this is why they are kept apart
    unrelated = checkpoint_pairs._rows(strata.spearman, side_by_side(ranks, drawn(1)))
    low, high = unrelated.loc[1, ["low", "high"]]
    assert low <= unrelated["estimate"][0] <= high


def test_permutations_are_those_of_a_loop(ranks):
    a, b = ranks.mean((0, 1)), ranks.mean((0, 1))[::-1]
    kappa = functools.partial(strata.kappa, d=64)
    found = checkpoint_pairs._permuted(kappa, side_by_side(ranks, ranks[:, :, ::-1]))
    rng = np.random.default_rng(1)
    looped = [
        strata.agreement(a.ravel(), np.concatenate([rng.permutation(layer) for layer in b]), d=64)["kappa"]
        for _ in range(400)
    ]
    # Means of 1000 and of 400 draws differ by less than four standard errors of the smaller sample.
    assert abs(found.mean() - np.mean(looped)) <= 4 * np.std(looped) / np.sqrt(400) + 1e-12


def test_what_is_no_pair_is_refused(ranks, places, reading):
    with pytest.raises(ValueError, match="both are called 'tiny-base'"):
        checkpoint_pairs.compare(places[0], places[0], reading, at=AT)
    with pytest.raises(ValueError, match=r"4 heads, D = 64 and 3 layers \(0, 1, 2\) of 5 heads"):
        side_by_side(ranks[..., :4], ranks)
    with pytest.raises(ValueError, match="pruned away"):
        side_by_side(ranks, np.where(np.arange(5) == 2, np.nan, ranks))
    one, other = (observations.cube(planted(ranks).assign(document=document)) for document in (0, 1))
    with pytest.raises(ValueError, match="different documents"):
        checkpoint_pairs._side_by_side(one, other)


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("Qwen3-80B-A3B-Instruct", "Qwen3-80B-A3B-Thinking"), "Qwen3-80B-A3B-Instruct / Thinking"),
        (("hybrid", "hybrid-seed1"), "hybrid / seed1"),
        (("hybrid-seed1", "hybrid"), "hybrid-seed1 / hybrid"),
        (("base", "tuned"), "base / tuned"),
    ],
)
def test_a_pair_is_called_by_what_tells_it_apart(names, label):
    assert checkpoint_pairs._label(*names) == label
