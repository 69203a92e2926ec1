"""The machinery finds a head that was planted: one layer whose head (0, 2) alone copies a repeated text."""

import pytest
import torch

from srdyn import ablation, models, pruning
from srdyn.loading import reference
from srdyn.study.trials import single_heads
from srdyn.study.trials.battery import Probe

VOCABULARY, PLANTED, H = 16, 2, 8


def planted():
    """An induction head by hand: keys are the previous token, values the present one, queries the present one.

    Embeddings are one-hot, so that projections, convolution (its last tap reads the present token, the one before it
    the previous) and read-out are zeros and ones; the other heads keep their random start, too weak to matter.
    """
    hf = reference.initialise("pure", seed=0, vocab_size=VOCABULARY, layers=1, hidden=32, head=VOCABULARY)
    mixer, r, d = hf.model.layers[0].linear_attn, 2, VOCABULARY
    key_head, slot = divmod(PLANTED, r)
    q = key_head * (2 * d + 2 * r * d)
    v, z = q + 2 * d + slot * d, q + 2 * d + r * d + slot * d
    one_hot = torch.eye(VOCABULARY, 32)
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(one_hot)
        hf.lm_head.weight.copy_(one_hot)
        hf.model.layers[0].mlp.down_proj.weight.zero_()
        for start in (q, q + d, v):
            mixer.in_proj_qkvz.weight[start : start + d] = one_hot
        mixer.in_proj_qkvz.weight[z : z + d] = 1.0
        ba = key_head * 2 * r
        mixer.in_proj_ba.weight[ba + slot] = 2.0
        mixer.in_proj_ba.weight[ba + r + slot] = 0.0
        mixer.dt_bias[PLANTED] = -12.0
        channels = {"q": key_head * d, "k": 4 * d + key_head * d, "v": 8 * d + PLANTED * d}
        for name, start in channels.items():
            mixer.conv1d.weight[start : start + d] = 0.0
            mixer.conv1d.weight[start : start + d, 0, -2 if name == "k" else -1] = 1.0
        mixer.out_proj.weight[:, PLANTED * d : (PLANTED + 1) * d] = 10 * one_hot.T
    return models.from_hf(hf.eval(), name="planted", seed=0)


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def copies():
    """Rows of a text of different tokens, read twice; the second copy's tokens but its first are the answers."""
    generator = torch.Generator().manual_seed(3)
    text = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(30)])
    items = torch.zeros(30, 2 * VOCABULARY, dtype=torch.long)
    items[:, VOCABULARY + 1 :] = torch.arange(1, VOCABULARY)
    return Probe("copy", "task", torch.cat([text, text], 1), items=items)


def accuracy(model, probe):
    with torch.inference_mode():
        right = model.hf(probe.tokens).logits.argmax(-1)[:, :-1] == probe.tokens[:, 1:]
    return right[probe.items[:, 1:] > 0].double().mean().item()


def only(*heads):
    mask = torch.zeros(1, H, dtype=torch.bool)
    mask[0, list(heads)] = True
    return mask


def test_the_planted_head_copies_and_no_other_head_is_needed(model, copies):
    assert accuracy(model, copies) > 0.99
    with ablation.ablate_heads(model, ~only(PLANTED)):
        assert accuracy(model, copies) > 0.99
    with ablation.ablate_heads(model, only(PLANTED)):
        assert accuracy(model, copies) < 0.2


def test_single_head_ablation_finds_it(model, copies):
    damages = single_heads.damage(model, {"copy": copies})
    worst = damages.loc[damages["damage"].idxmax()]
    assert worst["head"] == PLANTED
    assert worst["damage"] > 20 * damages.loc[damages["head"] != PLANTED, "damage"].abs().max()
    assert single_heads.oracle(damages, model).argmin() == PLANTED


def test_cutting_its_state_to_half_the_tokens_loses_half_of_them(model, copies):
    """What a high rank is for: sixteen pairs need sixteen dimensions."""
    with ablation.truncate_states(model, VOCABULARY, only(PLANTED), [VOCABULARY]):
        assert accuracy(model, copies) > 0.99
    with ablation.truncate_states(model, VOCABULARY // 2, only(PLANTED), [VOCABULARY]):
        assert accuracy(model, copies) < 0.8
    with ablation.truncate_states(model, 0, only(PLANTED), [VOCABULARY]):
        assert accuracy(model, copies) < 0.2


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_planted_head_goes_where_scores_say_so_and_at_random_where_they_say_nothing(model, copies, share):
    def lost(score, draw=0):
        keep = pruning.select(score, share, per_layer=True, generator=torch.Generator().manual_seed(draw))
        with ablation.ablate_heads(model, ~keep):
            return accuracy(model, copies) < 0.2

    planted = only(PLANTED).double()
    assert lost(planted)
    assert not lost(-planted)
    # Four standard errors of a share over 100 draws are 0.2 at most.
    assert sum(lost(0 * planted, draw) for draw in range(100)) / 100 == pytest.approx(share, abs=0.2)
