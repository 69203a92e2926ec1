import copy
import re

import numpy as np
import pytest
import saved
import torch
import transformers

from srdyn import export, models, prune, pruning, scores
from srdyn.loading import folders


def words(place, out, **options):
    options = {"text": "prose", "n": 2, "length": 64, "device": "cpu"} | options
    return [str(place), "--out", str(out), *(f"--{name}={value}" for name, value in options.items())]


def test_one_command_from_a_model_to_an_ordinary_smaller_one(place, tmp_path, capsys):
    out = tmp_path / "smaller"
    prune.main(words(place, out, heal=2, share=0.5))
    smaller = transformers.AutoConfig.from_pretrained(out)
    assert (smaller.linear_num_value_heads, smaller.linear_num_key_heads) == (4, 2)
    card, printed = (out / "README.md").read_text(), capsys.readouterr().out
    for name in ("whole", "pruned", "healed"):
        assert re.search(rf"\| {name} \| \d", card)
    assert "vLLM" in printed
    assert "windows" in printed
    assert re.search(r"lacks +weights_before +weights_after\n", printed)
    assert models.load(out, device="cpu").grid.H == 4
    prune.main(words(place, out, share=0.25, keys="repeated", tp=2))  # what it wrote it replaces
    assert transformers.AutoConfig.from_pretrained(out).linear_num_key_heads == 6
    assert (out / folders.LIST).is_file()


def counted(monkeypatch, module, name, *, broken_after=None):
    """A list of how the function of a module is called from now on; the call after so many is interrupted."""
    calls, original = [], getattr(module, name)

    def counting(*given, **how):
        calls.append(given)
        return interrupted() if len(calls) - 1 == broken_after else original(*given, **how)

    monkeypatch.setattr(module, name, counting)
    return calls


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupted_command_goes_on_with_what_it_had(place, tmp_path, monkeypatch, caplog, capsys):
    out, whole, kept = f"{tmp_path / 'smaller'}/", tmp_path / "whole", tmp_path / "smaller.unfinished"
    options = {"share": 0.5, "heal": 3}
    prune.main(words(place, whole, **options))
    profiles, losses = counted(monkeypatch, scores, "profile"), counted(monkeypatch, prune, "loss")
    with monkeypatch.context() as broken:
        broken.setattr(export, "save", interrupted)
        with pytest.raises(SystemExit, match="130"):
            prune.main(words(place, out, **options))
    assert "the same command is given again" in capsys.readouterr().err
    assert [path.name.split()[0] for path in sorted(kept.iterdir())] == ["healing", "profile", "pruned", "whole"]
    assert (len(profiles), len(losses)) == (1, 3)
    (kept / "pruned").write_bytes(b"broken")
    prune.main(words(place, out, **options))
    assert (len(profiles), len(losses)) == (1, 3 + 2)  # the broken one and the healed
    assert f"{kept / 'pruned'} is broken and made again" in caplog.text
    assert not kept.exists()
    files = [sorted(x.name for x in folder.iterdir()) for folder in (whole, tmp_path / "smaller")]
    assert files[0] == files[1]
    for name in files[0]:
        assert (whole / name).read_bytes() == (tmp_path / "smaller" / name).read_bytes()


def test_what_was_kept_of_another_model_text_or_cut_is_not_taken(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(export, "save", interrupted)
    profiles, losses = counted(monkeypatch, scores, "profile"), counted(monkeypatch, prune, "loss")
    other = saved.tiny(tmp_path / "other", seed=1)
    calls = [({}, 1, 2), ({"share": 0.5}, 1, 3), ({"share": 0.5, "length": 32}, 2, 5)]
    for options, profiled, lost in calls:
        with pytest.raises(SystemExit, match="130"):
            prune.main(words(place, tmp_path / "smaller", **options))
        assert (len(profiles), len(losses)) == (profiled, lost)
    with pytest.raises(SystemExit, match="130"):
        prune.main(words(other, tmp_path / "smaller", share=0.5, length=32))
    assert (len(profiles), len(losses)) == (3, 7)
    assert caplog.text.count("is of another model, text or cut") == 1 + 3 + 3


def test_healing_other_heads_is_another_healing(place, tmp_path):
    model = models.load(place, device="cpu")
    text = prune.read(model, ["prose"], part="trace", n=2, length=32)
    first, second = (torch.arange(8).expand(3, 8) < 4, torch.arange(8).expand(3, 8) >= 4)
    prune.heal(pruning.prune_heads(model, first), text, steps=1, folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another healing"):
        prune.heal(pruning.prune_heads(model, second), text, steps=1, folder=tmp_path)


def test_weights_elsewhere_are_cut_on_their_way_and_brought_here_to_be_healed(place, tmp_path, monkeypatch):
    loaded, original = [], models.load
    monkeypatch.setattr(models, "load", lambda *given, **how: loaded.append(how["device"]) or original(*given, **how))
    prune.main(words(place, tmp_path / "smaller", offload="disk", share=0.5))
    assert len(loaded) == 1
    assert len(list((tmp_path / "smaller").glob("model-*-of-00006.safetensors"))) == 6
    assert models.load(tmp_path / "smaller", device="cpu").grid.H == 4
    prune.main(words(place, tmp_path / "smaller", offload="disk", share=0.5, heal=1))
    assert [path.name for path in (tmp_path / "smaller").glob("*.safetensors")] == ["model.safetensors"]


def test_what_cannot_be_exported_is_told_before_anything_is_written(tmp_path, place, monkeypatch, capsys):
    monkeypatch.setattr(export, "COUNTS", {})
    with pytest.raises(SystemExit, match="2"):
        prune.main(words(place, tmp_path / "smaller"))
    assert "cannot be written as an ordinary checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "smaller").exists()


def test_healing_lowers_the_loss_and_goes_on_where_it_stopped(place, tmp_path, monkeypatch):
    model = models.load(place, device="cpu")
    text = prune.read(model, ["prose"], part="trace", n=4, length=64)
    whole, halves = (models.from_hf(copy.deepcopy(model.hf), model.tokenizer, name=x) for x in ("whole", "halves"))
    expected = prune.heal(whole, text, steps=6, batch=2, rate=3e-3)
    assert expected[-1] < expected[0]
    monkeypatch.setattr(prune, "SAVE_EVERY", 2)
    steps = counted(monkeypatch, prune, "_step", broken_after=3)
    with pytest.raises(KeyboardInterrupt):
        prune.heal(halves, text, steps=6, batch=2, rate=3e-3, folder=tmp_path)
    again = models.from_hf(copy.deepcopy(model.hf), model.tokenizer, name="again")
    assert prune.heal(again, text, steps=6, batch=2, rate=3e-3, folder=tmp_path) == expected
    assert len(steps) == 3 + 1 + 4  # two of the first three were kept
    for name, weight in whole.hf.state_dict().items():
        assert torch.equal(weight, again.hf.state_dict()[name])
    with pytest.raises(ValueError, match="belongs to another healing"):
        prune.heal(again, text, steps=7, batch=2, folder=tmp_path)


def test_the_cost_is_paired():
    first = np.arange(20.0)
    found = prune.cost({"whole": first, "pruned": first + 0.5}).set_index("model")
    assert found.loc["pruned", ["more", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
    assert found.loc["whole", "more"] == 0
    assert found.loc["whole", "bits a token"] == 9.5
    alone = prune.cost({"whole": first[:1], "pruned": first[:1] + 0.5}).iloc[1]
    assert alone["more"] == 0.5
    assert alone[["low", "high"]].isna().all()


def test_the_loss_is_bits_a_token(tmp_path):
    model = models.load(saved.tiny(tmp_path / "m"), device="cpu")
    tokens = prune.read(model, ["prose"], part="evaluation", n=2, length=32)
    logits = model.logits(tokens)[:, :-1].double().log_softmax(-1)
    expected = -logits.gather(-1, tokens[:, 1:, None])[..., 0].mean(1) / np.log(2)
    assert prune.loss(model, tokens) == pytest.approx(expected.numpy(), rel=1e-5)
