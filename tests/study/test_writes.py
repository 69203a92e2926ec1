"""Ranks under other writes: a repetition that follows text, the same writes in another order."""

import numpy as np
import torch

from srdyn import models, spectra, states
from srdyn.architectures import recipe
from srdyn.study.analysis import writes
from srdyn.study.survey import survey

READING = survey.Reading(domains=("code", "prose"), tasks=(), attacks=("rare character",), positions=(64,), n=2)


def test_text_comes_first_and_the_block_repeats_after_it(place):
    found = writes.after_text(place, READING, prefix=24)
    model = models.load(place)
    text = torch.cat([READING.samples(name, model.tokenizer).tokens[:1, :24] for name in READING.domains])
    tokens = torch.cat([text, READING.samples("rare character", model.tokenizer).tokens[:, :40]], 1)
    rank = spectra.effective_rank(states.trace(model, tokens, [24, 64])).double().mean(1)
    np.testing.assert_allclose(found[["before", "after"]].T, rank.permute(1, 0, 2).flatten(1), atol=0.5)
    assert (found["n"] == 2).all()


def test_own_ranks_are_the_model_s_and_shuffling_moves_writes_alone(place):
    found = writes.shuffled(place, READING, n=1, at=48)
    model = models.load(place)
    tokens = torch.cat([READING.samples(name, model.tokenizer).tokens[:1, :48] for name in READING.domains])
    expected = spectra.effective_rank(states.trace(model, tokens, [48])[:, :, 0]).double().mean(1)
    np.testing.assert_allclose(found["rank"], expected.flatten(), atol=0.5)
    k = torch.nn.functional.normalize(torch.randn(1, 48, 1, 8), dim=-1)
    read = states.inputs(model, tokens, 0)
    parts = {name: getattr(read, name) for name in ("q", "v", "g", "beta")}
    same = recipe.Inputs(**parts, k=k[:, :1].expand(2, 48, read.k.shape[2], 8))  # one key throughout: no order to lose
    assert writes._ranks(same, torch.arange(47, -1, -1), 1e-4).tolist() == [1.0] * read.v.shape[2]
