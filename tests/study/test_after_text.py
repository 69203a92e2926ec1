"""Ranks before and after a repetition that follows text."""

import numpy as np
import torch

from srdyn import models, spectra, states
from srdyn.study.analysis import after_text
from srdyn.study.survey import survey

READING = survey.Reading(
    domains=("code", "prose"), tasks=(), attacks=("rare character",), positions=(64,), length=64, n=2
)


def test_text_comes_first_and_the_block_repeats_after_it(place):
    found = after_text.ranks(place, READING, prefix=24)
    model = models.load(place)
    text = torch.cat([READING.samples(name, model.tokenizer).tokens[:1, :24] for name in READING.domains])
    tokens = torch.cat([text, READING.samples("rare character", model.tokenizer).tokens[:, :40]], 1)
    rank = spectra.effective_rank(states.trace(model, tokens, [24, 64])).double().mean(1)
    np.testing.assert_allclose(found[["before", "after"]].T, rank.permute(1, 0, 2).flatten(1), atol=0.5)
    assert (found["n"] == 2).all()
