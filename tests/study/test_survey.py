import json
import shutil

import families
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import saved
import torch

from srdyn import architectures, contexts, models, spectra, states
from srdyn.architectures import gated_deltanet
from srdyn.kernels import recurrence
from srdyn.loading import devices, files, reference, report
from srdyn.study.analysis import bounds, observations, rank_statistics, summaries
from srdyn.study.claims import claims
from srdyn.study.run import opened, store
from srdyn.study.survey import null_tables, survey
from srdyn.text import tasks
from srdyn.training import rules

pytestmark = pytest.mark.usefixtures("few_resamples")
POSITIONS = (1, 7, 16, 32, 64)


@pytest.fixture(scope="module")
def reading():
    return survey.Reading(("code", "prose"), ("recall4",), ("rare character",), POSITIONS, n=3)


@pytest.fixture(scope="module")
def heads(place, reading, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(store.KEPT, str(tmp_path_factory.mktemp("kept")))
        return survey.heads([place], reading)


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv(store.KEPT, str(tmp_path / "kept"))


def test_every_source_reads_every_context(heads, reading):
    assert set(heads["source"]) == {null_tables.MODEL, *null_tables.NULLS}
    assert set(heads["context"]) == set(reading.names())
    assert (heads.groupby(["source", "context"])["sample"].nunique() == 3).all()


def test_samples_come_from_as_many_documents_as_there_are(heads, place, reading):
    model = models.load(place)
    own = heads[heads["source"] == "model"].groupby(["context", "sample"])["document"].unique().map(list)
    for context in ("code", "prose"):
        texts = contexts.held_out_documents(context, part="trace")
        tokens = reading.samples(context, model.tokenizer).tokens
        for row, [document] in zip(tokens, own[context], strict=True):
            assert model.tokenizer.decode(row) in texts[document]
    assert own.map(tuple).groupby("context").nunique().eq(3).all()


def test_windows_of_one_document_stand_for_themselves(tmp_path, place, caplog):
    (tmp_path / "own.txt").write_text("All of this is one document. " * 200)
    name, tokenizer = str(tmp_path / "own.txt"), models.load(place).tokenizer
    found = survey.Reading((name,), (), (), POSITIONS, n=3).samples("own", tokenizer)
    assert found.document.tolist() == [0, 1, 2]
    assert "own.txt has one document" in caplog.text


def test_ranks_are_those_of_a_direct_trace(heads, place, reading):
    model = models.load(place)
    sigma = states.trace(model, reading.samples("code", model.tokenizer).tokens, POSITIONS)
    own = heads[(heads["source"] == "model") & (heads["context"] == "code")]
    cube = observations.cube(own)
    expected = spectra.effective_rank(sigma).permute(1, 0, 3, 2).numpy()
    np.testing.assert_array_equal(cube.values[:, 0], expected)
    for eps in null_tables.SWEEP:
        of_it = observations.cube(own, f"rank {eps:.0e}")
        found = of_it.values[:, 0], of_it.uncertain[:, 0]
        expected = spectra.effective_rank(sigma, eps), spectra.uncertain(sigma, eps).sum(-1)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b.permute(1, 0, 3, 2).numpy())
    assert of_it.uncertain.any()
    decay = states.gates(model, reading.samples("code", model.tokenizer).tokens)[0].double().mean(2)
    found = observations.cube(own, "log_decay").values[:, 0, :, :, 0]
    np.testing.assert_allclose(found, decay.permute(1, 0, 2).numpy(), rtol=1e-6)


def test_the_untrained_null_is_the_start_and_not_the_model(place):
    model = models.load(place)
    start = null_tables.untrained(model).hf.state_dict()
    fresh = reference.initialise("hybrid", seed=0, layers=4, hidden=32, head=8).state_dict()
    assert all(torch.equal(start[name], fresh[name]) for name in fresh)


def test_the_untrained_null_has_as_many_heads_as_the_model(tmp_path):
    sizes = {"layers": 4, "hidden": 32, "head": 8, "heads": 6, "softmax_head": 16}
    hf = reference.initialise("hybrid", seed=2, **sizes)
    hf.config.srdyn_seed, hf.config.srdyn_kind = 2, "hybrid"
    fresh = {name: x.clone() for name, x in hf.state_dict().items()}
    for parameter in hf.parameters():
        parameter.data += 1
    hf.save_pretrained(tmp_path / "wide")
    start = null_tables.untrained(models.load(tmp_path / "wide", device="cpu")).hf.state_dict()
    assert all(torch.equal(start[name], fresh[name]) for name in fresh)


@pytest.mark.filterwarnings("ignore:According to Bo")  # RWKV, the first time that one is built
@pytest.mark.parametrize("kind", rules.CLASSES)
def test_the_untrained_null_of_another_rule_is_its_start(kind, tmp_path):
    if rules.CLASSES[kind][0] != "transformers":
        pytest.importorskip("fla")
    hf = rules.initialise(kind, seed=3, num_hidden_layers=2)
    hf.config.srdyn_seed, hf.config.srdyn_kind = 3, kind
    fresh = {name: x.clone() for name, x in hf.state_dict().items()}
    for parameter in hf.parameters():
        parameter.data += 1
    hf.save_pretrained(tmp_path / kind)
    model = models.load(tmp_path / kind, device="cpu")
    before = torch.get_rng_state()
    start = null_tables.untrained(model).hf.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert start.keys() == fresh.keys()
    assert all(torch.equal(start[name], fresh[name]) for name in fresh)


def test_the_common_decay_is_one_value_in_every_context(heads):
    common, own = (heads[heads["source"] == source] for source in ("common decay", "model"))
    for gate in ("log_decay", "write_strength"):
        median = own.groupby(["layer", "head"])[gate].mean().median()
        np.testing.assert_allclose(common[gate], median, rtol=1e-9)
    assert common["nuclear_norm"].is_unique  # every head has its own keys and values


def test_a_second_call_reads_what_was_kept(place, reading, monkeypatch):
    first = survey.heads([place], reading, sources=["mechanism"])
    monkeypatch.setattr(states, "trace", None)
    monkeypatch.setattr(states, "gates", None)
    pd.testing.assert_frame_equal(first, survey.heads([place], reading, sources=["mechanism"]))


def test_weights_of_the_hub_are_told_by_their_commit(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0a1b"
    saved.tiny(snapshot)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(snapshot / "config.json"))
    assert opened.identity("some/model") == "some/model@0a1b"


def test_workers_make_the_table_that_one_process_makes(heads, place, reading, tmp_path, own_workers, monkeypatch):
    monkeypatch.setattr(survey, "_WORTH_WORKERS", 1)
    model = models.load(place)
    made_by = {"weights": opened.identity(place), "code": survey.CODE}
    tables = null_tables.Tables(model, reading, store.RunStore(tmp_path, made_by=made_by))
    opening = str(place), reading, tmp_path, json.dumps(made_by)
    for together in (("model", "untrained", "mechanism"), ("common decay",)):
        survey._make(tables, together, opening)
    items = heads[["context", "source"]].drop_duplicates().itertuples(index=False)
    tables._samples = None  # whatever is made here now
    found = [tables.table(source, context) for context, source in items]
    pd.testing.assert_frame_equal(pd.concat(found, ignore_index=True), heads, check_exact=True)


def test_a_worker_refuses_weights_that_changed_meanwhile(place, reading, tmp_path):
    with pytest.raises(RuntimeError, match="changed while it was read"):
        survey._opened_again(place, reading, tmp_path, json.dumps({"weights": "others"}))


def test_own_text_is_read_wherever_other_processes_are(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("All of this is one document. " * 200)
    told = []
    monkeypatch.setattr(survey, "_make", lambda tables, sources, opening: told.append(opening))
    reading = survey.Reading(("prose", "./own.txt"), (), (), POSITIONS, n=1)
    found = survey.heads([place], reading, sources=[])
    assert told[0][0] == place.absolute()
    assert told[0][1].domains == ("prose", str(tmp_path / "own.txt"))
    assert found["context"].unique().tolist() == list(told[0][1].texts) == list(reading.texts)


def test_a_model_of_unknown_start_has_no_untrained_null(place, reading, monkeypatch, caplog):
    monkeypatch.setattr(null_tables, "_is_reference", lambda model: False)
    found = survey.heads([place], reading, sources=["untrained", "mechanism"])
    assert set(found["source"]) == {"model", "mechanism"}
    assert "tiny is shown without its untrained null: what it was started from is not known" in caplog.text
    with pytest.raises(ValueError, match="untrained"):
        null_tables.untrained(models.load(place))


@pytest.mark.parametrize(
    ("lacks", "left", "sentence"),
    [
        ("gated_delta", ["model"], "tiny is shown without its mechanism, common decay nulls: its states do not follow"),
        ("has_decay", ["model", "mechanism"], "tiny is shown without its common decay null: its heads do not forget"),
    ],
)
def test_a_family_of_another_rule_has_no_nulls_of_this_one(lacks, left, sentence, place, reading, monkeypatch, caplog):
    monkeypatch.setattr(gated_deltanet.Qwen3Next, lacks, False)
    found = survey.heads([place], reading, sources=["mechanism", "common decay"])
    assert list(found["source"].unique()) == left
    assert sentence in caplog.text
    forgets = lacks != "has_decay"
    assert found["log_decay"].notna().all() == forgets
    text = found[found["context"].isin(reading.texts)]
    assert summaries.final_ranks(text, 64)["half_life"].notna().all() == forgets
    shares = summaries.shares(text, 64)
    assert shares["split"].str.startswith("half-life").any() == forgets
    assert summaries.trajectories(text, ["model", "mechanism"])["source"].unique().tolist() == left
    measured = observations.measure(text, "smaller group", rank_statistics.smaller_group, at=64)
    assert measured["source"].tolist() == left


FAMILIES = pytest.mark.parametrize("family", families.FAMILIES, ids=[family.id for family in families.FAMILIES])


@pytest.mark.filterwarnings("ignore:The correction_factor is set to 1")  # Comba, whenever one is built
@pytest.mark.filterwarnings("ignore:According to Bo")  # RWKV, the first time that one is built
@FAMILIES
def test_a_family_says_whether_its_heads_forget(family):
    model = families.model(family)
    tokens = torch.randint(0, 64, (1, 9), generator=torch.Generator().manual_seed(0))
    assert null_tables.forgets(model) == bool((states.gates(model, tokens)[0] < 0).any())
    writes_once = all(site.recipe.rule is recurrence.gated_delta_rule for site in architectures.sites(model.hf))
    assert null_tables.follows_gated_delta(model) == writes_once


@pytest.mark.filterwarnings("ignore:The correction_factor is set to 1")  # Comba, whenever one is built
@pytest.mark.filterwarnings("ignore:According to Bo")  # RWKV, the first time that one is built
@FAMILIES
def test_a_block_that_repeats_bounds_the_rank_in_the_first_layer_of_every_family(family):
    model = families.model(family)
    first = architectures.sites(model.hf)[0]
    width = first.recipe.convolution_width(first.mixer)
    if width is None or first.index > 0:
        pytest.skip("no bound is drawn")
    tokens = torch.tensor([5, 9]).repeat(40)[None]
    sigma = states.trace(model, tokens, [80])[0]
    # The bound is on the exact rank: what float32 leaves beyond it is below 1e-5 of the largest.
    assert (spectra.effective_rank(sigma, 1e-5) <= bounds.periodic_rank_bound(2, conv_width=width)).all()


@pytest.mark.parametrize("lacks", ["gated_delta", "strengths", "keys"])
def test_eq_13_is_silent_where_it_does_not_apply(lacks, place, reading, monkeypatch, caplog):
    bounded = summaries.consecutive_cosines(str(place), reading, [9], n=1)
    if lacks == "gated_delta":
        monkeypatch.setattr(gated_deltanet.Qwen3Next, lacks, False)
    else:
        known = summaries._known
        changed = {"strengths": lambda x: {"beta": x.beta + 1}, "keys": lambda x: {"k": 2 * x.k}}[lacks]
        longer = lambda x: type(x)(**vars(x) | changed(x))  # noqa: E731
        monkeypatch.setattr(summaries, "_known", lambda inputs: known(longer(inputs)))
    steps = summaries.consecutive_cosines(str(place), reading, [9], n=1)
    assert "tiny: no bound of Eq. 13 in 3 of 3 layers" in caplog.text
    assert steps["bound"].isna().all()
    pd.testing.assert_frame_equal(steps.drop(columns="bound"), bounded.drop(columns="bound"))
    [row] = summaries.within_cosine_bound(steps).to_dict("records")
    assert np.isnan(row["estimate"])
    assert row["why"] == summaries.UNBOUNDED
    half = pd.concat([steps.assign(layer=9), bounded])
    assert summaries.within_cosine_bound(half)["n"].item() == 2


def test_a_tokenizer_without_words_leaves_the_tasks_out(place, reading, monkeypatch, caplog):
    monkeypatch.setattr(tasks, "_is_word", lambda token: False)
    found = survey.heads([place], reading, sources=[])
    assert list(found["context"].unique()) == ["code", "prose", "rare character"]
    assert "tiny reads no tasks (recall4): the tasks need" in caplog.text


def test_a_model_without_a_tokenizer_is_told_to_bring_one(place, reading, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(place, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match=r"bare has no tokenizer beside its weights.*put its tokenizer files"):
        survey.heads([bare], reading)


def test_a_model_larger_than_memory_is_surveyed_from_disk(heads, place, reading, monkeypatch, caplog):
    weights, _ = report.weight_bytes(models.load(place).hf)
    monkeypatch.setattr(devices, "rooms", lambda *_: {"cpu": weights})
    found = survey.heads([place], reading, sources=[])
    assert "weights read from disk layer by layer" in caplog.text
    own = heads[heads["source"] == null_tables.MODEL].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, own)


def test_unknown_contexts_and_sources_are_named(place, reading):
    model = models.load(place)
    with pytest.raises(ValueError, match="poetry"):
        reading.samples("poetry", model.tokenizer)
    with pytest.raises(ValueError, match="astrology"):
        survey.heads([place], reading, sources=["astrology"])


def test_summaries_have_a_row_for_every_head(heads, place):
    text = heads[heads["context"].isin(["code", "prose"])]
    final = summaries.final_ranks(text, 64)
    assert len(final) == 4 * 3 * 8
    assert (final["low"] <= final["rank"] + 1e-9).all()
    assert (final["rank"] <= final["high"] + 1e-9).all()
    own = text[(text["source"] == "model") & (text["position"] == 64)].groupby(["layer", "head"])["rank"].mean()
    shown = final[final["source"] == "model"].set_index(["layer", "head"])["rank"]
    pd.testing.assert_series_equal(own, shown.loc[own.index], check_names=False)
    paths = summaries.trajectories(text, ["model", "mechanism"])
    assert len(paths) == 2 * 2 * 8 * len(POSITIONS)
    small = {}
    for fork, [layer] in paths.groupby("fork")["layer"].unique().items():
        small[fork] = min((own[layer] <= 0.25 * 8).sum(), (own[layer] >= 0.9 * 8).sum())
    assert small["most"] >= small["least"]
    shares = summaries.shares(text[text["source"].isin(["model", "mechanism"])], 64)
    np.testing.assert_allclose(shares[["low", "middle", "high"]].sum(axis=1), 1, atol=0.51)
    assert len(shares) == 2 * (1 + len(null_tables.SWEEP) + 1)


def test_attacks_are_bounded_in_the_first_layer(heads, place):
    table = summaries.under_attack(heads, ["rare character"], ["code", "prose"], 64)
    table = summaries.first_layer_bound(table, [str(place)])
    assert len(table) == 3 * 8
    first = table[table["layer"] == 0]
    assert (first["rank"] <= first["bound"]).all()
    assert table[table["layer"] > 0]["bound"].isna().all()


def test_consecutive_norms_obey_the_bound(place, reading):
    steps = summaries.consecutive_cosines(str(place), reading, [2, 9, 33], n=2)
    assert set(steps["context"]) == set(reading.domains)
    assert len(steps) == 2 * 2 * 3 * 3
    assert (steps["cosine"] >= steps["bound"]).all()
    share = summaries.within_cosine_bound(steps)
    assert (share["estimate"].item(), share["n"].item()) == (1.0, 4)
    steps = steps.assign(bound=[-0.5, 0.5, 0.25] * 12, cosine=[1.0, 0.75, 0.75] * 12)
    assert summaries.within_cosine_bound(steps)["why"].item() == "bound above 0 in 67% of steps, median slack 0.38"


def test_consecutive_norms_are_those_of_a_direct_trace(place, reading):
    model = models.load(place)
    steps = summaries.consecutive_cosines(str(place), reading, [9], n=1)
    tokens = reading.samples("prose", model.tokenizer).tokens[:1]
    before, now = states.trace(model, tokens, [8, 9])[1, 0].sum(-1).numpy()
    expected = before @ now / np.linalg.norm(before) / np.linalg.norm(now)
    layer = model.layers[1].index
    found = steps[(steps["context"] == "prose") & (steps["layer"] == layer)]["cosine"]
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_two_seeds_of_one_kind_give_one_verdict(place, reading, tmp_path, monkeypatch):
    second = shutil.copytree(place, tmp_path / "tiny-seed1")
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"srdyn_seed": 1}))
    found = survey.heads([place, second], reading, sources=["mechanism"])
    assert set(found[found["source"] == "mechanism"]["model"]) == {"tiny", "tiny-seed1"}
    bounded = rank_statistics.bounded(found)
    rows = [
        observations.measure(bounded, name, rank_statistics.share_within, value="within", before_d=early)
        for name, early in {"within bound": False, "within bound before d": True}.items()
    ]
    rows = pd.concat(rows, ignore_index=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/paper").symlink_to(files.data_dir() / "paper")
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    saved = claims.record("Thm 3.1", rows, run="01_stratification")
    assert sorted(saved[saved["source"] == null_tables.MODEL]["seed"].unique()) == [0, 1]
    [judged] = claims.judge(saved).to_dict("records")
    assert (judged["kind"], judged["verdict"]) == ("hybrid", "reproduced (null passes too: mechanism)")


def test_groups_of_unequal_size_are_refused(heads):
    uneven = heads[(heads["source"] == "model")].iloc[1:]
    with pytest.raises(ValueError, match="rows"):
        summaries.over_samples(uneven, ["layer", "head", "position"])


def test_a_mean_of_ranks_is_at_most_as_far_off_as_its_row_says(heads):
    """Whichever of the doubtful ranks another machine counts one off, and in whichever direction."""
    own = heads[heads["source"] == "model"]
    rng = np.random.default_rng(3)
    doubtful = own.assign(uncertain=rng.random(len(own)) < 0.1)
    by = ["layer", "head", "position"]
    table = summaries.over_samples(doubtful, by)
    assert 0 < (table["uncertain"] > 0).sum() < len(table)
    assert "uncertain" not in summaries.over_samples(own.drop(columns="uncertain"), by)
    for _ in range(20):
        moved = doubtful["rank"] + doubtful["uncertain"] * rng.integers(-1, 2, len(own))
        again = summaries.over_samples(doubtful.assign(rank=moved), by)
        for name in ("rank", "low", "high"):
            assert ((again[name] - table[name]).abs() <= table["uncertain"] + 1e-9).all()


def test_a_path_is_looked_for_here_in_the_repository_and_at_home(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert opened.found("mine") == tmp_path / "mine"
    assert opened.found("~/mine") == tmp_path / "mine"
    assert opened.found("data/models/hybrid") == files.root() / "data/models/hybrid"
    assert opened.found("owner/name") == "owner/name"
    with pytest.raises(FileNotFoundError, match="neither seen from"):
        opened.found("../nowhere")
