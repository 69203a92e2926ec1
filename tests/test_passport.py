import copy
import json
import re

import families
import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch

from srdyn import export, models, passport, prune, pruning, spectra, states
from srdyn.loading import engines, files

SCHEMA = json.loads((files.root() / "srdyn" / "passport.schema.json").read_text())


@pytest.fixture(scope="module")
def model(place):
    return models.load(place, device="cpu")


@pytest.fixture(scope="module")
def tokens(model):
    return prune.read(model, ["prose"], part="trace", n=2, length=64)


@pytest.fixture(scope="module")
def found(model, tokens):
    text = prune.read(model, ["prose"], part="evaluation", n=2, length=32)
    return passport.measure(model, tokens, removal=text, weights="0" * 64)


def test_it_has_its_form_and_the_numbers_of_the_instrument(model, tokens, found):
    jsonschema.validate(found, SCHEMA)
    sigma = states.trace(model, tokens, found["measured"]["positions"])
    rank, norm = spectra.effective_rank(sigma).mean(1), spectra.nuclear_norm(sigma).mean(1)
    g, beta = states.gates(model, tokens)
    assert found["measured"]["positions"] == [1, 2, 4, 8, 16, 32, 64]
    assert len(found["heads"]) == 24
    for head in found["heads"]:
        layer = found["model"]["layers"].index(head["layer"])
        assert head["rank"] == pytest.approx(rank[layer, :, head["head"]].tolist(), rel=1e-3)
        assert head["norm"] == pytest.approx(float(norm[layer, -1, head["head"]]), rel=1e-3)
        assert head["half_life"] == pytest.approx(float(-np.log(2) / g[layer, ..., head["head"]].mean()), rel=1e-3)
        assert head["write"] == pytest.approx(float(beta[layer, ..., head["head"]].mean()), rel=1e-3)
        for c, decibels in enumerate(head["spectra"]):
            expected = (sigma[layer, :, c, head["head"]] / sigma[layer, :, c, head["head"], :1]).mean(0)
            assert decibels == pytest.approx((20 * expected.log10()).clamp(min=passport.QUIET).tolist(), abs=0.51)
        assert 0 < head["int8"] < head["fp8"] < 0.1  # 7 bits against 4 of a significand
        assert all(low <= high for low, high in zip(head["null"]["low"], head["null"]["high"], strict=True))
        assert head["removal"]["low"] <= head["removal"]["bits"] <= head["removal"]["high"]
    assert found["model"]["bytes"][0]["state"] == models.state_bytes(model)


def test_a_removal_is_what_the_ablation_costs(model, found):
    text = prune.read(model, ["prose"], part="evaluation", n=2, length=32)
    [head] = [head for head in found["heads"] if (head["layer"], head["head"]) == (1, 3)]
    keep = torch.ones(model.grid[:2], dtype=torch.bool)
    keep[1, 3] = False
    expected = prune.loss(pruning.prune_heads(model, keep), text) - prune.loss(model, text)
    assert head["removal"]["bits"] == pytest.approx(expected.mean(), abs=2e-4)


def test_of_itself_nothing_differs_of_another_each_number_is_named(found):
    assert passport.diff(found, found).empty
    other = copy.deepcopy(found)
    other["heads"][5]["norm"] += 1
    other["heads"][5]["rank"][-1] += 2
    frame = passport.diff(found, other)
    assert frame["measure"].tolist() == ["norm", "rank"]
    assert (frame["b"] - frame["a"]).tolist() == pytest.approx([1, 2])
    other["heads"][7]["removal"] = other["heads"][7]["removal"] | {"bits": 9.0}
    assert passport.diff(found, other)["measure"].tolist() == ["norm", "rank", "removal"]
    with pytest.raises(ValueError, match=r"measured with eps 0\.0001 and 0\.001"):
        passport.diff(found, found | {"measured": found["measured"] | {"eps": 1e-3}})
    del other["heads"][0]
    with pytest.raises(ValueError, match="do not have the same layers and heads"):
        passport.diff(found, other)
    with pytest.raises(ValueError, match="measure one again"):
        passport.diff(found, found | {"schema": "srdyn.passport/0"})


@pytest.mark.parametrize("name", ["kimi_linear", "mamba2"])
def test_other_rules_of_update_have_no_null(name):
    tokens = torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(0))
    found = passport.measure(families.model(families.named(name)), tokens)
    jsonschema.validate(json.loads(json.dumps(found)), SCHEMA)
    assert {head["null"] for head in found["heads"]} == {None}


def test_a_pruned_model_has_the_heads_it_kept(model, tokens):
    keep = torch.zeros(model.grid[:2], dtype=torch.bool)
    keep[0, [1, 4]] = keep[2, 7] = True
    heads = passport.measure(pruning.prune_heads(model, keep), tokens)["heads"]
    places = [layer.index for layer in model.layers]
    assert [(head["layer"], head["head"]) for head in heads] == [(places[0], 1), (places[0], 4), (places[2], 7)]


def test_capacity_in_one_line(found):
    cost = pd.DataFrame({"model": ["whole", "cut"], "more": [0, 0.1], "low": [0, 0.05], "high": [0, 0.15]})
    line = passport.capacity(found, 6, tokens=64, gib=1, cost=cost)
    assert line.startswith("keep 6 of 8 heads: state -25%, prefix checkpoint -")
    assert line.endswith("64 tokens in 1 GiB, loss +0.100 bits a token [0.050, 0.150]")
    sizes = found["model"]["sizes"]
    whole = sizes["layers"] * (4 * 8 * 8 * 8 + (2 * 4 * 8 + 8 * 8) * 4 * 4)
    kept = found["model"]["kv_bytes_per_token"] * 64
    more = 2**30 // (whole * 3 // 4 + kept) - 2**30 // (whole + kept)
    assert f" {more} more sequences" in line
    assert passport.capacity(found, 6).endswith("loss not measured")


def test_capacity_counts_the_keys_that_an_export_has(model, found):
    for keep in (6, 5):  # whole keys, a key for each head
        score = torch.rand(model.grid[:2], generator=torch.Generator().manual_seed(0))
        chosen = export.choices(model) if keep == 6 else {}
        cut = pruning.prune_heads(model, pruning.select(score, 1 - keep / 8, uniform=True, **chosen))
        saved = export.realised(cut).set_index("engine").loc["transformers"]
        whole = engines.Sizes(**found["model"]["sizes"])
        sizes = whole._replace(heads=keep, keys=export.keys_left(whole, keep))
        assert engines.state_bytes(sizes)["transformers"] == saved["after"]
    with pytest.raises(ValueError, match="has 8 heads: keep 1 to all of them, not 9"):
        passport.capacity(found, 9)


def test_the_command_writes_both(place, found, tmp_path, capsys):
    options = ["--text=prose", "--length=64", f"--out={tmp_path}", "--device=cpu"]
    passport.main([str(place), *options])
    written = passport.read(tmp_path / f"{place.name}.json")
    jsonschema.validate(written, SCHEMA)
    assert len(written["model"]["weights"]) == 64
    assert str(tmp_path / f"{place.name}.html") in capsys.readouterr().out
    assert "half_life" in passport.diff(found, written)["measure"].tolist()
    with pytest.raises(SystemExit):
        passport.main([str(place), *options, "--removal=-1"])
    assert "--removal is a number of windows" in capsys.readouterr().err


def test_a_digit_that_was_changed_is_named_and_the_model_measured_again(found, tmp_path):
    kept = passport.save(found, tmp_path).with_suffix(".json")
    whole = kept.read_text()
    jsonschema.validate(json.loads(whole), SCHEMA)
    kept.write_text(whole.replace(f'"norm":{found["heads"][3]["norm"]}', '"norm":9.125', 1))
    with pytest.raises(ValueError, match=rf"{kept} is no passport .* or is broken: measure that model again"):
        passport.read(kept)
    passport.save(found, tmp_path)
    assert kept.read_text() == whole


def test_the_page_is_the_passport_and_needs_nothing_else(found, tmp_path):
    found = found | {"model": found["model"] | {"name": "tiny"}}
    named = found | {"model": found["model"] | {"name": "</script><b>"}}
    page = passport.save(found, tmp_path)
    assert passport.read(page.with_suffix(".json")) == found
    for text in (page.read_text(), passport.page(named)):
        assert text.count("</script>") == 2
        outside = text.replace("http://www.w3.org/2000/svg", "")
        assert [word for word in ("http:", "https:", "src=", "@import", "url(") if word in outside] == []
    given = re.search(r'id="given">(.*?)</script>', passport.page(found, named, selected=[(0, 1)]))[1]
    assert json.loads(given) == {"passports": [found, named], "selected": [[0, 1]]}
