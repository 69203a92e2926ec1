import copy
import re

import numpy as np
import pytest
import saved
import torch
import transformers

from srdyn import export, models, prune
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
    assert re.search(r"weights: [\d,]+ bytes, [\d,]+ after", printed)
    assert models.load(out, device="cpu").grid.H == 4
    prune.main(words(place, out, share=0.25, keys="repeated", tp=2))  # what it wrote it replaces
    assert transformers.AutoConfig.from_pretrained(out).linear_num_key_heads == 6
    assert (out / folders.LIST).is_file()


def test_weights_elsewhere_are_brought_here_to_be_cut(place, tmp_path):
    prune.main(words(place, tmp_path / "smaller", offload="disk", share=0.5))
    assert models.load(tmp_path / "smaller", device="cpu").grid.H == 4


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
    monkeypatch.setattr(prune, "_step", broken := Stopping(prune._step, after=3))
    with pytest.raises(KeyboardInterrupt):
        prune.heal(halves, text, steps=6, batch=2, rate=3e-3, folder=tmp_path)
    broken.after = 100
    again = models.from_hf(copy.deepcopy(model.hf), model.tokenizer, name="again")
    assert prune.heal(again, text, steps=6, batch=2, rate=3e-3, folder=tmp_path) == expected
    assert broken.calls == 3 + 1 + 4  # two of the first three were kept
    for name, weight in whole.hf.state_dict().items():
        assert torch.equal(weight, again.hf.state_dict()[name])
    with pytest.raises(ValueError, match="belongs to another healing"):
        prune.heal(again, text, steps=7, batch=2, folder=tmp_path)


class Stopping:
    """A step that is interrupted after so many."""

    def __init__(self, step, *, after):
        self.step, self.after, self.calls = step, after, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls > self.after:
            raise KeyboardInterrupt
        return self.step(*arguments)


def test_the_cost_is_paired():
    first = np.arange(20.0)
    found = prune.cost({"whole": first, "pruned": first + 0.5}).set_index("model")
    assert found.loc["pruned", ["more", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
    assert found.loc["whole", "more"] == 0
    assert found.loc["whole", "bits a token"] == 9.5
    with pytest.raises(ValueError, match="at least two windows of text"):
        prune.cost({"whole": first[:1], "pruned": first[:1] + 0.5})


def test_the_loss_is_bits_a_token(tmp_path):
    model = models.load(saved.tiny(tmp_path / "m"), device="cpu")
    tokens = prune.read(model, ["prose"], part="evaluation", n=2, length=32)
    logits = model.logits(tokens)[:, :-1].double().log_softmax(-1)
    expected = -logits.gather(-1, tokens[:, 1:, None])[..., 0].mean(1) / np.log(2)
    assert prune.loss(model, tokens) == pytest.approx(expected.numpy(), rel=1e-5)
