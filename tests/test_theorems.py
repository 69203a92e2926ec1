"""What the theorems promise, in the shipped models."""

import pytest
import small
import torch

from srdyn import contexts, models, spectra, states
from srdyn.loading import files
from srdyn.study.analysis import bounds

EVERY = [1, 2, 3, 5, 9, 17, 31, 63, 64, 65, 100, 160]


@pytest.fixture(scope="module", params=["hybrid", "pure"])
def model(request):
    return models.load(files.data_dir() / "models" / request.param)


def test_no_rank_exceeds_the_tokens_read(model):
    tokens = contexts.domain("prose", model.tokenizer, n=2, length=160, generator=torch.Generator().manual_seed(0))
    rank = spectra.effective_rank(states.trace(model, tokens, EVERY))
    bound = spectra.rank_bound(EVERY, model.grid.D)
    assert (rank <= bound[None, None, :, None]).all()
    assert (rank == bound[None, None, :, None]).any()


@pytest.mark.parametrize("period", [1, 2, 5])
def test_a_repeated_block_bounds_the_first_layer(model, period):
    drawn = torch.randperm(len(model.tokenizer), generator=torch.Generator().manual_seed(period))[:period]
    tokens = contexts.repeated(drawn, model.tokenizer, length=160)
    rank = spectra.effective_rank(states.trace(model, tokens, EVERY))
    limit = bounds.periodic_rank_bound(period, model.hf.config.linear_conv_kernel_dim)
    assert rank[0].max() <= limit


def test_states_of_a_shipped_model_are_those_of_a_float64_loop(model):
    tokens = contexts.domain("code", model.tokenizer, n=1, length=70, generator=torch.Generator().manual_seed(0))
    positions = [1, 13, 64, 69]
    traced = states.trace(model, tokens, positions, measure=lambda state: state.flatten(2))
    for place in range(model.grid.L):
        expected = small.by_loop(states.inputs(model, tokens, place), positions).flatten(3)
        assert ((traced[place] - expected).abs().amax(-1) <= 1e-5 * expected.abs().amax(-1)).all()
