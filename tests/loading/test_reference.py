import pytest
import torch
import torch.nn.functional as F

from srdyn.loading import reference

SMALL = {"layers": 4, "hidden": 32, "head": 8, "vocab_size": 96}


def weights(kind, *, seed=0, **options):
    return dict(reference.initialise(kind, seed=seed, **(SMALL | options)).named_parameters())


def test_the_kinds_differ_in_their_attention_alone():
    hybrid, pure, uniform = (reference.config(kind).to_dict() for kind in reference.KINDS)
    assert hybrid["layer_types"] == (["linear_attention"] * 3 + ["full_attention"]) * 2
    assert pure["layer_types"] == uniform["layer_types"] == ["linear_attention"] * 8
    assert {key for key in hybrid if hybrid[key] != pure[key]} == {"layer_types"}
    assert pure == uniform
    assert (hybrid["linear_key_head_dim"], hybrid["linear_num_value_heads"]) == (64, 8)


def test_parameters_depend_on_seed_and_name_alone():
    torch.manual_seed(1)
    first = weights("hybrid")
    torch.manual_seed(2)
    again, other = weights("hybrid"), weights("hybrid", seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].ndim != 1 or name.endswith(("A_log", "dt_bias"))]
    assert all(not torch.equal(first[name], other[name]) for name in drawn)
    assert len(drawn) > 20


def test_the_pair_starts_from_the_same_values_where_names_and_shapes_agree():
    hybrid, pure = weights("hybrid"), weights("pure")
    shared = [name for name in hybrid if name in pure and hybrid[name].shape == pure[name].shape]
    assert all(torch.equal(hybrid[name], pure[name]) for name in shared)
    assert all(name in shared for name in hybrid if ".self_attn." not in name)
    assert {name for name in pure if ".layers.3.linear_attn." in name}.isdisjoint(shared)


def test_uniform_is_pure_with_heads_that_start_alike():
    pure, uniform = weights("pure"), weights("uniform")
    decays = [name for name in pure if name.endswith(("A_log", "dt_bias"))]
    assert len(decays) == 2 * SMALL["layers"]
    assert all(torch.equal(pure[name], uniform[name]) for name in pure if name not in decays)
    for name in decays:
        assert uniform[name].unique().numel() == 1
        assert pure[name].unique().numel() == 8
    assert torch.allclose(F.softplus(uniform[decays[0].replace("A_log", "dt_bias")]), torch.tensor(1e-2))


def test_decays_start_as_in_mamba_2():
    start = weights("pure", layers=8)
    A = torch.cat([value.exp() for name, value in start.items() if name.endswith("A_log")])
    dt = torch.cat([F.softplus(value) for name, value in start.items() if name.endswith("dt_bias")])
    assert A.min() >= 1
    assert 14 < A.max() <= 16
    assert 1e-3 * 0.999 <= dt.min() < 2e-3  # float32 softplus of its own inverse
    assert 5e-2 < dt.max() <= 1e-1 * 1.001
    assert 3e-3 < dt.log().mean().exp() < 3e-2  # log-uniform: around 1e-2


def test_projections_back_into_the_stream_start_smaller():
    start = weights("hybrid", hidden=128)
    spread = lambda part: torch.cat([v.flatten() for n, v in start.items() if n.endswith(part)]).std().item()  # noqa: E731
    assert spread("down_proj.weight") == pytest.approx(0.02 / 8**0.5, rel=0.05)
    assert spread("up_proj.weight") == pytest.approx(0.02, rel=0.05)
    assert spread("in_proj_ba.weight") == pytest.approx(0.02 / 4, rel=0.1)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="'mamba' is no reference model; the kinds are hybrid, pure, uniform"):
        reference.config("mamba")
