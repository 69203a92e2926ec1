"""Every part of the benchmark runs at toy size, and its tables can be drawn and judged."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from srdyn import bench, models, states
from srdyn.bench import __main__ as command
from srdyn.bench import criteria, families, pruned, subjects, throughput, timing, tracing, variation
from srdyn.loading import reference
from srdyn.study.run import store

TIMED = {"n", "median", "spread", "unit"}
PLANS = {
    "spectra": {"sizes": (8, 12), "batches": (1, 9), "rounds": 3},
    "tracing": {"B": 2, "T": 24, "counts": (2, 3), "every_token": 4, "rounds": 3},
    "growth": {"lengths": (32, 64), "layers": (1, 2), "heads": (2, 4), "T": 16, "rounds": 2},
    "pruned": {"layers": 1, "removed": command._SHARE, "batches": (1,), "T": 16, "rounds": 3},
    "memory": {"lengths": (4, 8), "layers": 1, "removed": command._SHARE, "B": 1, "T": 4},
    "training": {"B": 1, "T": 32, "rounds": 2},
    "families": {"T": 4, "rounds": 2},
    "variation": {"names": ("hybrid", "pure"), "domains": ("code", "prose"), "T": 24, "positions": (1, 8, 24)},
    "watch": {"names": ("pure",), "every": (1, 3), "T": 4, "new": 5, "rounds": 2},
}


def tiny(name):
    kind = "hybrid" if name == "hybrid" else "pure"
    hf = reference.initialise(kind, seed=0, layers=4, hidden=32, head=32, heads=4).eval()
    return models.from_hf(hf, name=name)


@pytest.fixture(scope="module")
def tables():
    """All parts at toy size, on tiny models; memory is not measured in processes of its own."""

    def rise(prepare, *arguments):
        prepare(*arguments)()
        return 4096 * (len(arguments) + max(x for x in arguments if isinstance(x, int)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "shipped", tiny)
        some = [config for config in families.configs() if config.model_type in ("olmo_hybrid", "hgrn2")]
        patch.setattr(families, "configs", lambda: some)
        patch.setattr(timing, "peak_bytes", rise)
        patch.setattr(timing, "SHORTEST", 1e-4)
        patch.setattr(variation, "text", lambda model, domains, T: subjects.tokens(model, len(domains), T))
        patch.setattr(timing, "elsewhere", lambda function, *given: function(*given))
        return {part: measure(**PLANS[part]) for part, (measure, _) in command.PLANS.items()}


def test_every_part_has_a_plan():
    assert {part: set(plan) for part, (_, plan) in command.PLANS.items()} == {part: set(x) for part, x in PLANS.items()}
    assert list(command.PLANS) == list(bench.PARTS)


@pytest.mark.parametrize("part", [part for part in bench.PARTS if part not in ("memory", "variation")])
def test_rows_say_what_they_took_and_over_how_many_rounds(tables, part):
    table = tables[part]
    assert set(table) >= TIMED
    assert (table["median"] > 0).all()
    assert (table["n"] >= 2).all()
    assert set(table["unit"]) == {"s"}
    ends = table[["low", "high"]].to_numpy()
    assert (ends[:, 0] <= ends[:, 1]).all()


def test_other_ways_to_read_differ_by_roundings_alone(tables):
    """Tiny models: no compiled sweeps fit them, and the other process is this one."""
    table = tables["variation"]
    assert table.groupby(["model", "quantity"]).size().tolist() == [len(variation.WAYS)] * 2 * 5
    found = table.groupby(["quantity"])["difference"].max()
    assert found["ranks outside the band"] == 0
    assert found["singular values"] <= found["states"] < 1e-4
    assert found["log-probabilities"] < 1e-4
    stock = table[table["way"] == variation.STOCK].set_index(["model", "quantity"])["difference"]
    assert (stock.xs("states", level="quantity") > 0).all()


def test_methods_agree_on_the_spectra(tables):
    table = tables["spectra"]
    assert table.groupby(["d", "batch"]).size().tolist() == [4] * 4
    errors = table.groupby("method")["error"].max()
    assert errors["srdyn"] < 1e-13
    assert errors["numpy, one by one"] < 1e-13
    assert 1e-16 < errors["Gram and eigvalsh"] < 1e-6  # a Gram matrix loses half of the digits
    assert (table["per_second"] == table["batch"] / table["median"]).all()


def test_what_would_take_gigabytes_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(throughput, "_LARGEST", 100 * 8 * 8 * 8)
    table = throughput.table(sizes=(8,), batches=(1, 10, 1000), rounds=2).set_index(["batch", "method"])
    assert table.loc[(10, "srdyn"), ["note", "n"]].tolist() == ["", 2]
    assert (table.loc[1000, "note"] == "left out: 0.0 GiB in float64").all()
    assert table.loc[1000, "median"].isna().all()


def test_reading_prefixes_anew_finds_the_same_states():
    model = tiny("hybrid")
    ids, positions = subjects.tokens(model, 2, 12), [3, 7, 12]
    for measure in (tracing.ranks, tracing.nothing):
        once, anew = states.trace(model, ids, positions, measure=measure), tracing.anew(model, ids, positions, measure)
        # float32 products of other sizes; ranks are whole numbers
        torch.testing.assert_close(anew.double(), once, rtol=1e-4, atol=1e-6)


def test_tracing_rows_compare_like_with_like(tables):
    table = tables["tracing"]
    anew = table[table["what"] == "prefixes"].set_index(["positions", "case"])["base"]
    assert anew[2].to_dict() == {
        tracing.TRACED: tracing.TRACED, tracing.SPECTRA: tracing.SPECTRA,
        tracing.AGAIN: tracing.TRACED, tracing.PUBLISHED: tracing.SPECTRA,
    }  # fmt: skip
    assert set(table[table["what"] == "every token"]["positions"]) == {4}


def test_stock_layers_give_the_same_outputs_by_transformers_functions():
    model = tiny("pure")
    stock, ids = subjects.stock(model), subjects.tokens(model, 2, 9)
    file = sys.modules[type(model.hf).__module__]
    called = subjects.rebinding.meaning(subjects.architectures.sites(stock.hf)[0].mixer, "torch_chunk_gated_delta_rule")
    assert called is subjects.inspect.unwrap(file.torch_chunk_gated_delta_rule)
    with torch.no_grad():
        ours, theirs = (one.hf(ids, use_cache=False).logits for one in (model, stock))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * ours.abs().max().item())  # float32 in another order


def test_bytes_of_the_pruned_states_are_as_predicted(tables):
    held = tables["memory"].query("what == 'states'")
    assert (held["bytes"] == held["predicted"]).all()
    left = held.groupby("model")["bytes"].agg(lambda x: x.iloc[1] / x.iloc[0])
    assert left.to_dict() == {"hybrid": 7 / 12, "pure": 10 / 16, "Qwen3-Next layers": 20 / 32}


def test_memory_is_measured_of_what_it_says(monkeypatch):
    monkeypatch.setattr(subjects, "shipped", tiny)
    for route in ("forward", "segments"):
        assert tracing.every_token("pure", 5, route)().shape == (4, 1, 5, 4)


def test_verdicts_follow_from_intervals(tables):
    found = criteria.verdicts(tables)
    assert set(found["verdict"]) <= {"", "met", "missed", "undecided"}
    held = found[found["what"].str.contains("k of N heads")]
    assert held["verdict"].tolist() == ["met"] * 3
    assert found.set_index("what").loc["exponent of T", ["at_least", "at_most"]].tolist() == [0.9, 1.1]


@pytest.mark.parametrize(
    ("measured", "bounds", "verdict"),
    [
        ((1.0, 0.9, 1.05), (np.nan, 1.1), "met"),
        ((1.0, 0.9, 1.2), (np.nan, 1.1), "undecided"),
        ((1.3, 1.2, 1.4), (np.nan, 1.1), "missed"),
        ((1.3, np.nan, np.nan), (1.2, np.nan), "met"),
        ((1.0, 0.8, 1.2), (0.9, 1.1), "undecided"),
        ((1.0, 0.8, 1.2), (np.nan, np.nan), ""),
    ],
)
def test_a_verdict_needs_the_whole_interval(measured, bounds, verdict):
    assert criteria._verdict(*measured, *bounds) == verdict


def test_the_steps_that_are_timed_are_steps():
    model, seen = tiny("pure"), []
    mixer = subjects.architectures.sites(model.hf)[0].mixer
    hook = mixer.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    for case in (pruned.layer_step(model, 3), pruned.layer_prefill(model, 7)):
        case()
    assert seen == [(3, pruned.READ, 32), (3, 1, 32), (1, 7, 32)]
    hook.remove()
    seen.clear()
    count = lambda _, given, named: seen.append(tuple(named["input_ids"].shape))  # noqa: E731
    model.hf.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    pruned.model_step(model, 2, 5)()
    assert seen == [(2, 5), (2, 1)]


def test_what_is_watched_writes_the_same_and_is_looked_at_as_often_as_it_says(tables, monkeypatch, caplog):
    looks, watch = [], states.watch

    @contextlib.contextmanager
    def counted(model, *, every):
        with watch(model, every=every) as seen:
            yield
        looks.append((every, seen.positions))

    monkeypatch.setattr(states, "watch", counted)
    written = [tracing.writing(tiny("pure"), 4, 5, every=every)() for every in (None, 1, 3)]
    assert written[0] == written[1] == written[2]
    assert len(written[0]) == 9
    assert looks == [(1, [4, 5, 6, 7, 8]), (3, [4, 7])]
    found = tables["watch"]
    assert found["case"].tolist() == [tracing.UNWATCHED, "every 1", "every 3"]
    assert found["ratio"].iloc[0] == 1
    assert caplog.text == ""


def test_the_notebook_draws_what_the_benchmark_wrote(tables, clone):
    notebook = json.loads((Path(__file__).parents[2] / "notebooks/07_cost.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = []
    names = {"display": lambda *things: shown.extend(things)}
    exec(cells[0], names)
    with pytest.raises(FileNotFoundError, match="`make bench` measures it"):
        exec(cells[1], names)
    for part, table in tables.items():
        store.save_table(table, f"{bench.STEM}_{part}", meta={"machine": timing.machine()})
    for cell in cells:
        exec(cell, names)
    drawn = {path.name for path in (clone / "figures").glob("*.png")}
    assert drawn == {f"07_cost{part}.png" for part in ("", "_spectra", "_growth", "_pruned", "_training")}
    assert any(isinstance(thing, pd.DataFrame) for thing in shown)


def test_tables_go_to_the_run_with_the_machine_beside_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(sys, "argv", ["srdyn.bench", "spectra"])
    monkeypatch.setattr(command, "PLANS", {"spectra": (throughput.table, PLANS["spectra"])})
    before = torch.get_num_threads()
    command.main()
    torch.set_flush_denormal(False)
    assert torch.get_num_threads() == before
    side = json.loads((tmp_path / "build/interactive/tables/07_cost_spectra.json").read_text())
    assert side["machine"]["cores"] >= 1
    assert side["parameters"] == json.loads(json.dumps(PLANS["spectra"]))
    assert len(store.load_table("07_cost_spectra", run="interactive")) == side["rows"]
