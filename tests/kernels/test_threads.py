import numpy as np
import pytest
import torch

from srdyn.kernels import fused, threads


@pytest.fixture
def three_threads(threads):
    threads(3)


@pytest.mark.parametrize(("n", "most", "parts"), [(10, None, 3), (2, None, 2), (10, 2, 2), (10, 0, 1), (0, None, 1)])
def test_the_parts_cover_all_in_order(three_threads, n, most, parts):
    found = threads.split(lambda first, stop: (first, stop), n, most=most)
    assert len(found) == parts
    assert [i for part in found for i in range(*part)] == list(range(n))


def test_errors_in_a_thread_come_out(three_threads):
    with pytest.raises(ZeroDivisionError):
        threads.split(lambda first, stop: 1 / first, 9)


def test_threads_treat_denormals_as_the_caller_does_now(three_threads):
    tiny = np.full(9, np.uint32(1), np.uint32).view(np.float32)
    kept = {False: 9, True: 0}
    for flushing in (False, True, False):
        torch.set_flush_denormal(flushing)
        try:
            found = threads.split(lambda first, stop: int((tiny[first:stop] * np.float32(1) != 0).sum()), 9)
        finally:
            torch.set_flush_denormal(False)
        assert sum(found) == kept[flushing]


def test_fused_results_do_not_depend_on_the_number_of_threads(three_threads, monkeypatch):
    monkeypatch.setattr(fused, "SHARED_FROM", 1)
    generator = torch.Generator().manual_seed(0)
    x, gate = (torch.randn(5, 7, 48, generator=generator) for _ in range(2))
    weight, taps = torch.randn(48, generator=generator), torch.randn(48, 4, generator=generator)

    def every():
        return [
            fused.causal_conv1d_fn(x.mT, taps, activation="silu"),
            fused.gated_norm(x, gate, weight, eps=1e-6),
            fused.norm(x, weight, eps=1e-6),
            fused.l2norm(x),
            fused.swiglu(gate, x),
        ]

    shared = every()
    torch.set_num_threads(1)
    for a, b in zip(shared, every(), strict=True):
        assert torch.equal(a, b)
