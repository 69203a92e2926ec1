"""Models of other update rules: started alike from a seed, trained by the same trainer."""

import dataclasses

import families
import numpy as np
import pytest
import torch

from srdyn import ablation, models, pruning, states
from srdyn.text import tasks
from srdyn.training import mixture, recipes, rules, train

pytestmark = pytest.mark.filterwarnings("ignore:According to Bo:UserWarning")  # of fla's RWKV-7
LOOPS = {"mamba2": families.dual, "gla": families.written, "rwkv7": families.transitions}
LOOPS |= dict.fromkeys(("deltanet", "kda"), families.delta)
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


def test_its_spectra_are_those_of_a_float64_loop_and_masked_heads_are_removed_ones(kind):
    hf, generator = rules.initialise(kind, seed=0, **TWO_LAYERS).eval(), torch.Generator().manual_seed(0)
    for parameter in hf.parameters():  # what starts at zero would hide a head, or its gates
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    model = models.from_hf(hf, name=kind)
    tokens = torch.randint(0, 1000, (2, 70), generator=generator)  # more than one chunk of 64
    for layer, found in enumerate(states.trace(model, tokens, [70])[:, :, 0]):
        read = states.inputs(model, tokens, layer)
        sigma = np.linalg.svd(LOOPS[kind](*(x.double().numpy() for x in read)), compute_uv=False)
        assert (abs(found.numpy() - sigma) <= 1e-5 * sigma[..., :1]).all()  # the states are float32
    heads = torch.zeros(model.grid[:2], dtype=torch.bool)
    heads[:, ::2] = True  # half of every group of mamba2
    with ablation.ablate_heads(model, heads):
        masked = model.logits(tokens)
    torch.testing.assert_close(pruning.prune_heads(model, ~heads).logits(tokens), masked, rtol=0, atol=1e-4)
    assert (masked - model.logits(tokens)).abs().max() > 1e-2


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
