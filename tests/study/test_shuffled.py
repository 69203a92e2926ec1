"""Writes in another order."""

import numpy as np
import torch

from srdyn import models, spectra, states
from srdyn.architectures import recipe
from srdyn.study.analysis import shuffled
from srdyn.study.survey import survey

READING = survey.Reading(domains=("code",), tasks=(), attacks=(), positions=(48,), length=48, n=2)


def test_own_ranks_are_the_model_s_and_shuffling_moves_writes_alone(place):
    found = shuffled.ranks(place, READING, at=48)
    model = models.load(place)
    tokens = READING.samples("code", model.tokenizer).tokens
    expected = spectra.effective_rank(states.trace(model, tokens, [48])[:, :, 0]).double().mean(1)
    np.testing.assert_allclose(found["rank"], expected.flatten(), atol=0.5)
    k = torch.nn.functional.normalize(torch.randn(1, 48, 1, 8), dim=-1)
    read = states.inputs(model, tokens, 0)
    parts = {name: getattr(read, name) for name in ("q", "v", "g", "beta")}
    same = recipe.Inputs(**parts, k=k[:, :1].expand(2, 48, read.k.shape[2], 8))  # one key throughout: no order to lose
    assert shuffled._ranks(same, torch.arange(47, -1, -1), 1e-4).tolist() == [1.0] * read.v.shape[2]
