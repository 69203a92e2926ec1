"""The plain torch twins against flash-linear-attention's own references, which are plain torch too."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from srdyn.architectures.fla import ops, rules
from srdyn.kernels import recurrence

B, T, H, K, V = 2, 9, 4, 6, 5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Numbers of the order of 1, float32, sums of nine terms in another order."""


def reference(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"fla.{module}"), name)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def read():
    """What a recurrence reads: queries and keys of length 1, decays below 0, write strengths between 0 and 1."""
    q, k, a, b = F.normalize(drawn(4, B, T, H, K), dim=-1)
    return {
        "q": q,
        "k": k,
        "v": drawn(B, T, H, V, seed=1),
        "a": a,
        "b": b,
        "g": -drawn(B, T, H, seed=2).exp(),
        "per_channel": -drawn(B, T, H, K, seed=3).exp(),
        "beta": drawn(B, T, H, seed=4).sigmoid(),
        "state": drawn(B, H, K, V, seed=5),
    }


def by_head(*tensors):
    return (x.transpose(1, 2) for x in tensors)


def gated_delta_rule(r):
    ours = rules.gated_delta_rule, dict(q=r["q"], k=r["k"], v=r["v"], g=r["g"], beta=r["beta"])
    return *ours, reference("ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule"), ours[1]


def delta_rule(r):
    q, k, v, beta = r["q"], r["k"], r["v"], r["beta"]

    def theirs(initial_state, output_final_state):
        rule = reference("ops.delta_rule.naive.delta_rule_recurrence")
        o, state = rule(*by_head(q, k, v, beta), initial_state=initial_state)
        return o.transpose(1, 2), state

    return rules.gated_delta_rule, dict(q=q, k=k, v=v, beta=beta), theirs, {}


def kda(r):
    ours = rules.kda, dict(q=r["q"], k=r["k"], v=r["v"], g=r["per_channel"], beta=r["beta"])
    return *ours, reference("ops.kda.naive.naive_recurrent_kda"), ours[1]


def kda_with_shared_keys(r):
    ours = rules.kda, dict(q=r["q"][:, :, :2], k=r["k"][:, :, :2], v=r["v"], g=r["per_channel"], beta=r["beta"])
    return *ours, reference("ops.kda.naive.naive_recurrent_kda"), ours[1]


def gla(r):
    shared = dict(q=r["q"], k=r["k"], v=r["v"])
    theirs = reference("ops.gla.naive.naive_recurrent_gla"), shared | {"gk": r["per_channel"]}
    return rules.gated_linear_attention, shared | {"g": r["per_channel"]}, *theirs


def simple_gla(r):
    ours = rules.simple_gla, dict(q=r["q"], k=r["k"], v=r["v"], g=r["g"])
    return *ours, reference("ops.simple_gla.naive.naive_recurrent_simple_gla"), ours[1]


def gated_delta_product(r):
    twice = {"k": drawn(B, 2 * T, H, K, seed=6) / K, "v": drawn(B, 2 * T, H, V, seed=7)}
    ours = dict(q=r["q"], g=r["g"], beta=drawn(B, 2 * T, H, seed=8).sigmoid(), num_householder=2, **twice)
    theirs = reference("ops.gated_delta_product.naive.naive_recurrent_gated_delta_product")
    return rules.gated_delta_product, ours, theirs, ours | {"scale": K**-0.5}


def comba(r):
    # The token-by-token reference erases after the decay, unlike the kernels; the chunked one does as they do.
    ours = rules.comba, dict(q=r["q"], k=r["k"], v=r["v"], p=r["a"], g=r["g"], beta=r["beta"])
    return *ours, reference("ops.comba.naive.naive_chunk_comba"), ours[1]


def rwkv6(r):
    u = drawn(H, K, seed=9)

    def theirs(initial_state, output_final_state):
        rule = reference("ops.rwkv6.recurrent_naive.naive_recurrent_rwkv6")
        o, state = rule(*by_head(r["q"], r["k"], r["v"], r["per_channel"]), u, 1.0, initial_state, True)
        return o.transpose(1, 2), state

    return rules.rwkv6, dict(r=r["q"], k=r["k"], v=r["v"], w=r["per_channel"], u=u, scale=1.0), theirs, {}


def rwkv7(r):
    def theirs(initial_state, output_final_state):
        rule = reference("ops.generalized_delta_rule.dplr.naive.dplr_recurrence")
        read = by_head(r["q"], r["k"], r["v"], r["a"], r["b"], r["per_channel"])
        o, state = rule(*read, initial_state=initial_state)
        return o.transpose(1, 2), state

    ours = dict(r=r["q"], k=r["k"], v=r["v"], w=r["per_channel"], a=r["a"], b=r["b"], scale=K**-0.5)
    return rules.rwkv7, ours, theirs, {}


RULES = [gated_delta_rule, delta_rule, kda, kda_with_shared_keys, gla, simple_gla, gated_delta_product, comba, rwkv6]
RULES += [rwkv7]


@pytest.mark.parametrize("rule", RULES)
def test_a_recurrence_is_that_of_the_reference(rule, read):
    twin, arguments, theirs, options = rule(read)
    state = read["state"]
    expected = theirs(**options, initial_state=state.clone(), output_final_state=True)
    outputs, last = twin(**arguments, initial_state=state, output_final_state=True)
    torch.testing.assert_close(outputs, expected[0], **CLOSE)
    torch.testing.assert_close(last, expected[1], **CLOSE)
    flipped = twin(**arguments, initial_state=state.mT, output_final_state=True, state_v_first=True)
    assert torch.equal(flipped[0], outputs)
    assert torch.equal(flipped[1], last.mT)
    assert twin(**arguments)[1] is None


@pytest.mark.parametrize("rule", RULES)
def test_packed_sequences_are_read_apart(rule, read):
    twin, arguments, _, _ = rule(read)
    apart = twin(**arguments, initial_state=read["state"], output_final_state=True)
    timed = {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor) and x.ndim > 2}
    packed = arguments | {name: x.flatten(0, 1)[None] for name, x in timed.items()}
    ends = torch.tensor([0, T, 2 * T])
    outputs, last = twin(**packed, initial_state=read["state"], output_final_state=True, cu_seqlens=ends)
    torch.testing.assert_close(outputs[0], apart[0].flatten(0, 1), rtol=0, atol=0)
    assert torch.equal(last, apart[1])


def test_the_first_writes_of_a_fused_rwkv7_are_those_of_the_chunked_one(read):
    shared = dict(r=read["q"], k=read["k"], v=read["v"], w=read["per_channel"], scale=1.0)
    kk, a = read["a"], read["b"].sigmoid()
    fused, _ = rules.fused_rwkv7(**shared, kk=kk, a=a)
    chunked, _ = rules.rwkv7(**shared, a=-kk, b=kk * a)
    assert torch.equal(fused, chunked)


def test_retention_is_that_of_the_reference(read):
    q, k, v = read["q"], read["k"], read["v"]
    expected = reference("ops.retention.naive.naive_retention")(*by_head(q, k, v)).transpose(1, 2)
    outputs, _ = rules.simple_gla(q=q, k=k, v=v, g_gamma=rules.retention_decays(H))
    torch.testing.assert_close(outputs, expected, **CLOSE)


def test_gates_that_the_kernels_compute_are_those_of_the_references():
    g, A_log, dt_bias = drawn(B, T, H, K), drawn(H), drawn(H * K)
    for bound, name in ((None, "naive_kda_gate"), (-5.0, "naive_kda_lowerbound_gate")):
        options = {} if bound is None else {"lower_bound": bound}
        expected = reference(f"ops.kda.gate.{name}")(g, A_log, dt_bias, **options)
        torch.testing.assert_close(rules.log_decay(g, A_log, dt_bias, bound), expected)
    per_head = rules.log_decay(g[..., 0], A_log, dt_bias[:H])
    torch.testing.assert_close(per_head, -A_log.exp() * F.softplus(g[..., 0] + dt_bias[:H]))
    doubled = rules.write_strength(g[..., 0], is_logit=True, allow_neg_eigval=True)
    torch.testing.assert_close(doubled, 2 * g[..., 0].sigmoid())


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
    offsets, ends = torch.tensor([4, 0]), torch.tensor([0, T, 2 * T])
    apart = ops.rotary_embedding(x, cos, sin, interleaved, seqlen_offsets=offsets)
    torch.testing.assert_close(apart[:1], expected[:1])
    packed = ops.rotary_embedding(x.flatten(0, 1)[None], cos, sin, interleaved, seqlen_offsets=offsets, cu_seqlens=ends)
    assert torch.equal(packed[0], apart.flatten(0, 1))


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
    packed, states = ops.causal_conv1d(
        x.flatten(0, 1)[None], weight, bias, x.flatten(0, 1)[None], None, True, "silu",
        cu_seqlens=torch.tensor([0, T, 2 * T]),
    )  # fmt: skip
    torch.testing.assert_close(packed[0], expected.flatten(0, 1))
    assert torch.equal(states, last)


def test_a_shift_goes_on_where_it_stopped():
    x = drawn(B, T, 6)
    whole, last = ops.token_shift(x, output_cache=True)
    torch.testing.assert_close(whole, F.pad(x, (0, 0, 1, -1)) - x)
    first, cache = ops.token_shift(x[:, :2], output_cache=True)
    rest, end = ops.token_shift(x[:, 2:], cache=cache, output_cache=True)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(end, last)
    packed, ends = ops.token_shift(x.flatten(0, 1)[None], torch.tensor([0, T, 2 * T]), output_cache=True)
    assert torch.equal(packed[0], whole.flatten(0, 1))
    assert torch.equal(ends, last)


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
