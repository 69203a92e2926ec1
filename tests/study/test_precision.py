"""Ranks in several precisions against numpy's, and the fork that they show against the rules of C1."""

import numpy as np
import pytest
import torch
from scipy import linalg

from srdyn import spectra
from srdyn.study.analysis import precision
from srdyn.study.claims import registration
from srdyn.study.run import store
from srdyn.study.survey import survey

pytestmark = pytest.mark.usefixtures("few_resamples")
EPS = 1e-4


def ranks_of(state):
    """The ranks of states [B, H, K, V] in each precision."""
    narrow = state if state.shape[-1] <= state.shape[-2] else state.mT
    return precision._ranks_by_precision(narrow, torch.zeros_like(narrow.mT @ narrow), eps=EPS)


def made_state(sigma, generator):
    """A float32 state of 24 × 16 with these singular values."""
    u, v = (torch.linalg.qr(torch.randn(n, 16, dtype=torch.float64, generator=generator))[0] for n in (24, 16))
    return ((u * sigma) @ v.mT).float()


def gram_rank_by_scipy(state):
    """That of a float32 Gram matrix, by another of LAPACK's ways."""
    eigenvalues = linalg.eigh(state.mT.numpy() @ state.numpy(), eigvals_only=True, driver="ev")
    return (eigenvalues > EPS**2 * eigenvalues.max()).sum()


@pytest.mark.parametrize("wide", [False, True])
def test_rounding_and_a_float32_gram_matrix_lift_a_low_rank(wide):
    generator = torch.Generator().manual_seed(0)
    sigma = torch.cat([torch.logspace(0, -2, 5), torch.full((11,), 1e-6)]).double()
    state = made_state(sigma, generator)
    state = state.mT if wide else state
    exact, half, brain, gram = ranks_of(state[None, None])[0, 0]
    assert exact == 5
    assert brain > 12
    assert gram > 5
    assert half <= brain
    for dtype, found in ((torch.float16, half), (torch.bfloat16, brain)):
        assert found == np.linalg.matrix_rank(state.to(dtype).double().numpy(), rtol=EPS)
    small = (state.T if state.shape[0] > 16 else state).numpy()
    eigenvalues = np.linalg.eigvalsh(small @ small.T)
    assert abs(gram - (eigenvalues > EPS**2 * eigenvalues.max()).sum()) <= 4  # both read noise
    squared = state.double().mT @ state.double()
    assert (torch.linalg.eigvalsh(squared).clamp(min=0).sqrt() > EPS).sum() == 5


def test_a_state_of_well_separated_values_is_read_alike_in_every_precision():
    state = made_state(torch.linspace(1, 0.5, 16).double(), torch.Generator().manual_seed(1))
    assert ranks_of(state[None, None]).flatten().tolist() == [16] * 4


@pytest.fixture(scope="module")
def reading():
    return survey.Reading(("code", "prose"), (), (), (16, 64), n=3)


@pytest.fixture(scope="module")
def rounded(place, reading):
    return precision.read(place, reading)


def test_in_float64_the_ranks_are_those_of_the_survey(rounded, place, reading, tmp_path, monkeypatch):
    monkeypatch.setenv(store.KEPT, str(tmp_path))
    heads = survey.heads([place], reading, sources=[]).query("position == 64")
    keys = ["model", "kind", "seed", "source", "context", "sample", "document", "layer", "head", "position", "D"]
    both = heads.merge(rounded.query("precision == 'float64'"), on=keys, suffixes=("", "_again"))
    assert len(both) == len(heads) == 2 * 3 * 3 * 8
    np.testing.assert_array_equal(both["rank"], both["rank_again"])
    assert rounded.groupby("precision")["rank"].mean()["bfloat16"] > both["rank"].mean()


def test_rounded_heads_say_which_strata_move(rounded):
    table = precision.heads(rounded)
    assert len(table) == 4 * 3 * 8
    means = rounded.groupby(["precision", "layer", "head"])["rank"].mean()
    for row in table.itertuples():
        exact = means["float64", row.layer, row.head]
        np.testing.assert_allclose([row.rank, row.exact], [means[row.precision, row.layer, row.head], exact])
        strata = [np.digitize(x / 8, [0.25 + 1e-12, 0.9]) for x in (row.rank, exact)]
        assert row.moved == (strata[0] != strata[1])
    assert not table.query("precision == 'float64'")["moved"].any()


def test_the_fork_is_judged_by_the_rules_of_c1(rounded):
    lifted = rounded.assign(rank=rounded["rank"].where(rounded["precision"] == "float64", 8.0))
    half = (lifted["head"] < 4) & (lifted["precision"] == "float64")
    lifted["rank"] = lifted["rank"].where(~half, 1.0).where(half | (lifted["precision"] != "float64"), 8.0)
    table = precision.fork(lifted).set_index(["precision", "measure"])
    assert {name for _, name in table.index} == {measure.name for measure in registration.load().claim("C1").measures}
    assert table.loc[("float64", "smaller group"), ["estimate", "outcome"]].tolist() == [0.5, "pass"]
    assert table.loc[("bfloat16", "smaller group"), ["estimate", "outcome", "moved"]].tolist() == [0, "fail", True]
    assert table.loc[("bfloat16", "middle"), ["outcome", "moved"]].tolist() == ["pass", False]


def test_the_ranks_of_a_rounded_state_say_how_far_they_move_with_the_error_of_float32():
    """A machine whose states are as far off, in other directions, finds means within the band."""
    draw = torch.Generator().manual_seed(2)
    sigma = torch.logspace(0, -5, 16).double()
    state = torch.stack([made_state(sigma, draw) for _ in range(64)])[:, None]
    noise = torch.randn(state.shape, generator=draw)
    other = state + 0.5e-6 * noise / torch.linalg.matrix_norm(noise, 2)[..., None, None]
    ranks, band = precision._ranks_and_bands(state, eps=EPS).unbind(-2)
    again = ranks_of(other)
    again[..., 3] = torch.tensor([[gram_rank_by_scipy(each)] for (each,) in other])
    moved = abs((again - ranks).mean(0)).flatten()
    assert (moved <= band.mean(0).flatten()).all()
    assert moved[2:].min() > 0
    assert band.mean() < 2
    exact = band[..., 0].flatten()
    assert exact.tolist() == spectra.uncertain(spectra.singular_values(state), EPS).sum(-1).flatten().tolist()
