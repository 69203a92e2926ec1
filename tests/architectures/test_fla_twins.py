"""The plain torch twins against flash-linear-attention's own references, which are plain torch too."""

import functools
import importlib

import pytest
import torch
import torch.nn.functional as F

from srdyn.architectures.fla import delta, linear, ops, rwkv
from srdyn.kernels import fused, recurrence

B, T, H, K, V = 2, 9, 4, 6, 5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Numbers of the order of 1, float32, sums of nine terms in another order."""


def reference(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"fla.{module}"), name)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Queries and keys of length 1, decays below 0, write strengths between 0 and 1.
Q, KEY, A, ASKED = F.normalize(drawn(4, B, T, H, K), dim=-1)
VALUE, STATE = drawn(B, T, H, V, seed=1), drawn(B, H, K, V, seed=5)
G, PER_CHANNEL, BETA = -drawn(B, T, H, seed=2).exp(), -drawn(B, T, H, K, seed=3).exp(), drawn(B, T, H, seed=4).sigmoid()
READ, BONUS = {"q": Q, "k": KEY, "v": VALUE}, drawn(H, K, seed=9)
RKV = {"r": Q, "k": KEY, "v": VALUE, "w": PER_CHANNEL}
PLAIN = {"use_gate_in_kernel": False, "allow_neg_eigval": False, "use_qk_l2norm_in_kernel": True}
TWICE = {"k": drawn(B, 2 * T, H, K, seed=6), "v": drawn(B, 2 * T, H, V, seed=7), "beta": drawn(B, 2 * T, H).sigmoid()}
TWICE["k"] = F.normalize(TWICE["k"], dim=-1)


def by_head(path, *tensors, **options):
    """A reference that reads `[B, H, T, …]`."""

    def theirs(initial_state):
        read = (x.transpose(1, 2) for x in tensors)
        o, state = reference(f"ops.{path}")(*read, **options, initial_state=initial_state)
        return o.transpose(1, 2), state

    return theirs


def partial(path, **options):
    return functools.partial(reference(f"ops.{path}"), **options, output_final_state=True)


SHARED = READ | {"q": Q[:, :, :2], "k": KEY[:, :, :2]}
RULES = {
    "gated_deltanet": (
        delta.GatedDeltaNet, READ | PLAIN | {"g": G, "beta": BETA.logit()},
        partial("gated_delta_rule.naive.naive_recurrent_gated_delta_rule", **READ, g=G, beta=BETA),
    ),
    "delta_net": (
        delta.DeltaNet, READ | PLAIN | {"beta": BETA},
        by_head("delta_rule.naive.delta_rule_recurrence", Q, KEY, VALUE, BETA),
    ),
    "kda": (
        delta.KimiDeltaAttention, READ | PLAIN | {"g": PER_CHANNEL, "beta": BETA.logit()},
        partial("kda.naive.naive_recurrent_kda", **READ, g=PER_CHANNEL, beta=BETA),
    ),
    "kda, keys shared": (
        delta.KimiDeltaAttention, SHARED | PLAIN | {"g": PER_CHANNEL, "beta": BETA.logit()},
        partial("kda.naive.naive_recurrent_kda", **SHARED, g=PER_CHANNEL, beta=BETA),
    ),
    "gla": (
        linear.GatedLinearAttention, READ | {"g": PER_CHANNEL},
        partial("gla.naive.naive_recurrent_gla", **READ, gk=PER_CHANNEL),
    ),
    "gla, fused": (
        linear.GatedLinearAttention, READ | {"gk": PER_CHANNEL},
        partial("gla.naive.naive_recurrent_gla", **READ, gk=PER_CHANNEL),
    ),
    "simple_gla": (
        linear.SimpleGatedLinearAttention, READ | {"g": G},
        partial("simple_gla.naive.naive_recurrent_simple_gla", **READ, g=G),
    ),
    "gated_deltaproduct": (
        delta.GatedDeltaProduct, TWICE | {"q": Q, "g": G, "num_householder": 2},
        partial(
            "gated_delta_product.naive.naive_recurrent_gated_delta_product",
            **TWICE, q=Q, g=G, num_householder=2, scale=K**-0.5,
        ),
    ),
    # The token-by-token reference erases after the decay, unlike the kernels; the chunked one does as they do.
    "comba": (
        delta.Comba, READ | {"p": A, "g": G, "beta": BETA},
        partial("comba.naive.naive_chunk_comba", **READ, p=A, g=G, beta=BETA),
    ),
    "rwkv6": (
        rwkv.Rwkv6, RKV | {"u": BONUS, "scale": 1.0},
        by_head("rwkv6.recurrent_naive.naive_recurrent_rwkv6", Q, KEY, VALUE, PER_CHANNEL, u=BONUS, scale=1.0,
                output_final_state=True),
    ),
    "rwkv7": (
        rwkv.Rwkv7, RKV | {"a": A, "b": ASKED, "scale": K**-0.5},
        by_head("generalized_delta_rule.dplr.naive.dplr_recurrence", Q, KEY, VALUE, A, ASKED, PER_CHANNEL),
    ),
}  # fmt: skip
"""The recipe, what its layer calls its recurrence with, and the reference."""


@pytest.mark.parametrize("name", RULES)
def test_a_recurrence_is_that_of_the_reference(name):
    kind, called, theirs = RULES[name]
    known, first = kind(), kind().oriented(STATE)
    known.writes = 2
    expected, expected_last = theirs(initial_state=STATE.clone())
    outputs, last = known.on_cpu(**called, initial_state=first, output_final_state=True)
    torch.testing.assert_close(outputs, expected, **CLOSE)
    torch.testing.assert_close(known.oriented(last), expected_last, **CLOSE)
    assert known.on_cpu(**called)[1] is None
    with pytest.raises(ValueError, match="without padding"):
        known.on_cpu(**called, cu_seqlens=torch.tensor([0, T]))


def test_fused_forms_are_the_chunked_ones():
    rwkv7 = rwkv.Rwkv7()
    fused, _ = rwkv7.on_cpu(**RKV, scale=1.0, kk=A, a=BETA[..., None] * ASKED)
    chunked, _ = rwkv7.on_cpu(**RKV, scale=1.0, a=-A, b=A * (BETA[..., None] * ASKED))
    assert torch.equal(fused, chunked)
    product = delta.GatedDeltaProduct()
    product.writes = 2
    every, g = torch.zeros(B, T, 2, H, K), torch.zeros(B, T, 2, H)
    every[:, :, 1], g[:, :, 0] = Q, G
    fused, _ = product.on_cpu(**TWICE, q=every.flatten(1, 2), g=g.flatten(1, 2))
    chunked, _ = product.on_cpu(**TWICE, q=Q, g=G, num_householder=2)
    assert torch.equal(fused[:, 1::2], chunked)


def test_retention_is_that_of_the_reference():
    expected = reference("ops.retention.naive.naive_retention")(*(x.transpose(1, 2) for x in READ.values()))
    outputs, _ = linear.Retention().on_cpu(**READ, g_gamma=(1 - 2.0 ** (-5 - torch.arange(H))).log())
    torch.testing.assert_close(outputs, expected.transpose(1, 2), **CLOSE)


def test_gates_that_the_kernels_compute_are_those_of_the_references():
    g, A_log, dt_bias = drawn(B, T, H, K), drawn(H), drawn(H * K)
    for bound, name in ((None, "naive_kda_gate"), (-5.0, "naive_kda_lowerbound_gate")):
        options = {} if bound is None else {"lower_bound": bound}
        expected = reference(f"ops.kda.gate.{name}")(g, A_log, dt_bias, **options)
        torch.testing.assert_close(delta.log_decay(g, A_log, dt_bias, bound), expected)
    per_head = delta.log_decay(g[..., 0], A_log, dt_bias[:H])
    torch.testing.assert_close(per_head, -A_log.exp() * F.softplus(g[..., 0] + dt_bias[:H]))


@pytest.mark.parametrize("residual", [None, drawn(B, T, 12, seed=1)])
@pytest.mark.parametrize("bias", [None, drawn(12, seed=2)])
def test_norms_are_those_of_the_references(residual, bias):
    x, weight = drawn(B, T, 12), drawn(12, seed=3)
    options = {"residual": residual, "eps": 1e-3, "prenorm": True}
    for ours, name in ((ops.layer_norm, "layer_norm_ref"), (ops.rms_norm, "rms_norm_ref")):
        expected = reference(f"modules.norm.layernorm.{name}")(x, weight, bias, **options)
        torch.testing.assert_close(ours(x, weight, bias, **options), expected)
    groups = options | {"num_groups": 3}
    expected = reference("modules.norm.layernorm.group_norm_ref")(x, weight, bias, **groups)
    torch.testing.assert_close(ops.layer_norm(x, weight, bias, **groups), expected)


def test_gated_norms_gate_what_is_normed():
    x, g, weight = drawn(B, T, 12), drawn(B, T, 12, seed=1), drawn(12, seed=2)
    normed = F.rms_norm(x, (12,), weight, 1e-3)
    torch.testing.assert_close(ops.rms_norm_gated(x, g, weight, None, eps=1e-3), normed * F.silu(g))
    gated = ops.rms_norm_gated(x, g, weight, None, "sigmoid", eps=1e-3)
    torch.testing.assert_close(gated, normed * g.sigmoid())
    matrix = drawn(5, 12, seed=3)
    torch.testing.assert_close(ops.rms_norm_linear(x, weight, None, matrix, None, eps=1e-3), normed @ matrix.T)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_rotation_is_that_of_the_reference(interleaved):
    x, angles = drawn(B, T, H, 8), drawn(20, 3, seed=1)
    cos, sin = angles.cos(), angles.sin()
    turn = reference("modules.rotary.ops.rotary_embedding_ref")
    expected = turn(x, cos[4 : 4 + T], sin[4 : 4 + T], interleaved)
    torch.testing.assert_close(ops.rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=4), expected)
    apart = ops.rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=torch.tensor([4, 0]))
    torch.testing.assert_close(apart[:1], expected[:1])


def test_a_convolution_goes_on_where_it_stopped():
    x, weight, bias = drawn(B, T, 6), drawn(6, 4, seed=1), drawn(6, seed=2)
    expected = F.silu(F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=6).mT) + x
    whole, last = ops.causal_conv1d(x, weight, bias, x, output_final_state=True, activation="silu")
    torch.testing.assert_close(whole, expected)
    assert torch.equal(last, x[:, -4:].mT)
    state, parts = None, []
    for start, end in ((0, 2), (2, 3), (3, T)):
        part = x[:, start:end]
        y, state = ops.causal_conv1d(part, weight, bias, part, state, True, "silu")
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), expected)
    assert torch.equal(state, last)


@pytest.mark.parametrize("activation", ["silu", "swish"])
def test_the_compiled_convolution_and_swiglu_are_those_of_torch_with_their_gradients(activation):
    x, y, weight = (drawn(*shape, seed=n).requires_grad_() for n, shape in enumerate([(B, T, 32), (B, T, 32), (32, 4)]))
    assert fused.fit(x)
    expected = F.silu(F.silu(F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], groups=32).mT)) * y
    found = ops.swiglu(ops.causal_conv1d(x, weight, activation=activation)[0], y)
    torch.testing.assert_close(found, expected)
    cotangent = drawn(B, T, 32, seed=3)
    slopes = (torch.autograd.grad(z, (x, y, weight), cotangent) for z in (found, expected))
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_shift_goes_on_where_it_stopped():
    x = drawn(B, T, 6)
    whole, last = ops.token_shift(x, output_cache=True)
    torch.testing.assert_close(whole, F.pad(x, (0, 0, 1, -1)) - x)
    first, cache = ops.token_shift(x[:, :2], output_cache=True)
    rest, end = ops.token_shift(x[:, 2:], cache=cache, output_cache=True)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(end, last)


def test_small_functions_are_those_of_the_references():
    x, y, weight = drawn(B, T, 12), drawn(B, T, 12, seed=1), drawn(12, seed=2)
    shares = drawn(6, 12, seed=3)
    torch.testing.assert_close(ops.FUNCTIONS["fused_k_rwkv7"](x, y, weight), x * (1 + (y - 1) * weight))
    mixed = dict(query=drawn(1, 12), residuals=[x, y], rms_weight=weight, output_rms_weight=weight, rms_eps=1e-3)
    assert ops.FUNCTIONS["fused_attnres"](**mixed).shape == x.shape
    torch.testing.assert_close(ops.l2norm(x), recurrence.l2norm(x))
    torch.testing.assert_close(ops.sqrelu(x), x.relu() ** 2)
    torch.testing.assert_close(ops.elu_p1(x), torch.where(x > 0, x + 1, x.exp()))
    torch.testing.assert_close(ops.swiglu_linear(x, y, shares, None), (x * x.sigmoid() * y) @ shares.T)
