"""What heads score: means over sequences against loops over single ones, the oracle against a planted head."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srdyn import ablation, contexts, evals, models, scores, spectra, states
from srdyn.loading import reference
from srdyn.study.trials import battery, single_heads


@pytest.fixture(scope="module")
def tokens(trained):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(len(trained.tokenizer), (3, 200), generator=generator)


@pytest.fixture(scope="module")
def found(trained, tokens):
    return scores.profile(trained, tokens)


def test_ranks_and_norms_are_means_over_sequences(trained, tokens, found):
    sigma = torch.stack([states.trace(trained, row[None], [50, 100, 150, 200])[:, 0] for row in tokens], 1)
    rank = spectra.effective_rank(sigma)
    torch.testing.assert_close(found.rank, rank[:, :, -1].mean(1))
    torch.testing.assert_close(found.rank_in_time, rank.mean((1, 2)))
    torch.testing.assert_close(found.norm, spectra.nuclear_norm(sigma)[:, :, -1].mean(1), rtol=1e-5, atol=1e-8)
    assert found.D == 16
    few = spectra.effective_rank(states.trace(trained, tokens[:, :3], [1, 2, 3]))
    torch.testing.assert_close(scores.profile(trained, tokens[:, :3]).rank_in_time, few.mean((1, 2)))


def test_means_are_those_of_all_sequences_however_they_are_read(trained, tokens, found, monkeypatch):
    monkeypatch.setattr(models, "batch_size", lambda model, T: 1)
    for name, mean in scores.profile(trained, tokens)._asdict().items():
        torch.testing.assert_close(torch.as_tensor(mean), torch.as_tensor(getattr(found, name)), rtol=1e-5, atol=1e-8)


def test_decay_is_the_mean_gate(trained, tokens, found):
    g = states.gates(trained, tokens)[0].double()
    torch.testing.assert_close(found.decay, g.mean((1, 2)), rtol=1e-6, atol=1e-9)


def test_output_is_what_the_layer_loses_without_the_head(trained, tokens, found):
    """A head's part of the layer's output, by leaving the head out, against the norm from its own columns."""
    mixer = trained.hf.model.layers[trained.layers[0].index].linear_attn
    written = []
    hook = mixer.register_forward_hook(lambda module, given, output: written.append(output))
    heads = torch.zeros(trained.grid.L, trained.grid.H, dtype=torch.bool)
    heads[0, 3] = True
    with torch.inference_mode():
        trained.hf(tokens, use_cache=False)
        with ablation.ablate_heads(trained, heads):
            trained.hf(tokens, use_cache=False)
    hook.remove()
    part = (written[0] - written[1]).double().norm(dim=-1).mean()
    torch.testing.assert_close(found.output[0, 3], part, rtol=1e-3, atol=1e-7)


def test_rules_put_first_what_they_say(found):
    score = {name: rule(found, torch.Generator().manual_seed(0)) for name, rule in scores.RULES.items()}
    assert score["rank"].argmax() == found.rank.argmax()
    assert score["norm"].argmax() == found.norm.argmax()
    assert score["fast decay"].argmax() == found.decay.argmin()
    assert score["small output"].argmax() == found.output.argmin()
    torch.testing.assert_close(score["joint, α = 0.5"], 0.5 * (score["rank"] + score["norm"]))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), power=st.integers(-9, 9), gone=st.integers(0, 5))
def test_rules_know_no_unit_and_score_every_head_that_is_held(seed, power, gone):
    values = torch.rand(len(scores.MEANS), 2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[:, 0, :gone] = torch.nan
    one = scores.Profile(*values, D=1)
    ranks = {"rank": one.rank, "rank_in_time": one.rank_in_time}
    other = scores.Profile(*(2.0**power * values), D=1)._replace(**ranks)
    for name, rule in scores.RULES.items():
        score, again = (rule(profile, torch.Generator().manual_seed(seed)) for profile in (one, other))
        assert torch.equal(score.isnan(), one.rank.isnan()), name
        assert torch.equal(score.flatten().argsort(), again.flatten().argsort()), name


def test_an_alpha_has_its_rule():
    assert [scores.joint_rule(alpha) for alpha in (0.0, 0.5, 1.0)] == ["norm", "joint, α = 0.5", "rank"]
    with pytest.raises(ValueError, match=r"no rule has α = 0\.3"):
        scores.joint_rule(0.3)


def test_the_oracle_spares_the_head_that_does_the_work(trained):
    """One head writes a thousand times more than all others: leaving it out must hurt most."""
    asked = battery.Battery(("recall4",), (), length=64, items=20, copies=0, part="calibration")
    sheet = battery.sheet(asked, trained.tokenizer)
    sheet["recall4"] = sheet["recall4"].at(torch.arange(2))
    trained, V = copy.deepcopy(trained), trained.grid.V
    trained.hf.model.layers[trained.layers[1].index].linear_attn.out_proj.weight.data[:, 2 * V : 3 * V] *= 1000
    damages = single_heads.damage(trained, sheet)
    assert len(damages) == trained.grid.L * trained.grid.H
    largest = damages.loc[damages["damage"].abs().idxmax()]
    assert (largest["axis"], largest["head"]) == (1, 2)
    score = single_heads.oracle(damages.assign(damage=damages["damage"].abs()), trained)
    assert score.argmin() == 1 * trained.grid.H + 2


def test_a_head_without_a_finite_score_is_named(trained):
    trained = copy.deepcopy(trained)
    layer = trained.hf.model.layers[trained.layers[1].index].linear_attn.out_proj
    layer.weight.data[:, 2 * trained.grid.V] = math.nan  # what reads head 2
    tokens = torch.randint(0, 64, (1, 32), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=rf"layer {trained.layers[1].index} has no finite scores for the heads \[2\]"):
        scores.profile(trained, tokens)


def test_calibration_text_is_of_every_domain_and_not_that_of_the_evaluation(trained):
    found = scores.calibration(trained, domains=("code", "prose"), n=2, length=64)
    assert found.shape == (4, 64)
    drawn = {"n": 2, "length": 64, "generator": torch.Generator().manual_seed(0), "part": "calibration"}
    assert torch.equal(found[2:], contexts.domain("prose", trained.tokenizer, **drawn))
    evaluated = evals.windows("code", trained.tokenizer, length=64).tokens
    assert not any((row[:-1] == window[1:]).all() for row in found[:2] for window in evaluated)


@pytest.fixture(scope="module")
def trained(tokenizer):
    """An untrained reference model small enough for tests, with the project's tokenizer."""
    hf = reference.initialise("pure", seed=0, layers=2, hidden=32, head=16)
    return models.from_hf(hf, tokenizer, name="tiny", seed=0)


def test_a_rule_of_ones_own_that_gives_no_number_is_named_and_chooses_nothing(found, monkeypatch):
    monkeypatch.setitem(scores.RULES, "mine", lambda profile, generator: (profile.rank - profile.rank[1, 2]).log())
    with pytest.raises(ValueError, match=r"the rule 'mine' gives no number for the heads .*\[\["):
        scores.under("mine", found, torch.Generator())
    pruned = found._replace(**{name: getattr(found, name).clone() for name in scores.MEANS})
    for name in scores.MEANS:
        getattr(pruned, name)[1, 2] = math.nan
    for rule in set(scores.RULES) - {"mine"}:
        score = scores.under(rule, pruned, torch.Generator())
        assert score.isnan().nonzero().tolist() == [[1, 2]]
