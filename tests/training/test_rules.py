"""Models of other update rules: started alike from a seed, trained by the same trainer."""

import dataclasses

import numpy as np
import pytest
import torch

from srdyn.text import tasks
from srdyn.training import mixture, recipes, rules, train

pytestmark = pytest.mark.filterwarnings("ignore:According to Bo:UserWarning")  # of fla's RWKV-7
TWO_LAYERS = {"num_hidden_layers": 2}


@pytest.fixture(params=sorted(rules.CLASSES))
def kind(request):
    if rules.CLASSES[request.param][0] != "transformers":
        pytest.importorskip("fla")
    return request.param


def test_a_seed_decides_the_start_and_leaves_other_random_numbers(kind):
    before = torch.get_rng_state()
    ours, same, other = (rules.initialise(kind, seed=seed, **TWO_LAYERS).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(x, same[name]) for name, x in ours.items())
    assert any(not torch.equal(x, other[name]) for name, x in ours.items())


def test_it_is_trained_and_its_spectra_are_followed(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "text", lambda tier: tasks.Text({"a": np.arange(1, 5000) % 1000}))
    monkeypatch.setattr(train, "_SPECTRA_WINDOWS", 1)
    monkeypatch.setattr(train, "SPECTRA_POSITIONS", (8, 16))
    small = dataclasses.replace(mixture.SMALL, tokens_per_batch=128, lengths=((0.0, (64,)),))
    monkeypatch.setitem(recipes.TIERS, "small", recipes.TIERS["small"]._replace(curriculum=small))
    settings = recipes.Settings(kind, tokens=2 * 128, checkpoints=(), options=TWO_LAYERS, warmup_steps=1)
    run = train.Run(settings, tmp_path, device="cpu")
    before = {name: x.clone() for name, x in run.model.hf.state_dict().items()}
    run.train()
    moved = [not torch.equal(x, before[name]) for name, x in run.model.hf.state_dict().items()]
    assert np.mean(moved) > 0.7
    frame = run.spectra()
    assert set(frame["head"]) == set(range(4 if kind == "rwkv7" else 8))
    assert frame["rank"].between(0, 16).all()
    assert (tmp_path / "final" / "model.safetensors").exists()
