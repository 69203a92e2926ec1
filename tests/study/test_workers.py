"""Work dealt out to processes: results in order, errors and deaths told."""

import os

import pytest

from srdyn.study.run import workers


def square(x):
    return x * x


def fail(x):
    raise ValueError(f"{x} on purpose")


@pytest.fixture(autouse=True)
def own_workers():
    workers._pool.cache_clear()
    yield
    workers._pool().shutdown()
    workers._pool.cache_clear()


def test_results_come_in_the_order_of_the_work():
    assert list(workers.deal(square, [(x,) for x in range(7)])) == [x * x for x in range(7)]


def test_an_error_comes_out_and_the_workers_live_on():
    with pytest.raises(ValueError, match="3 on purpose"):
        list(workers.deal(fail, [(3,), (4,)]))
    assert list(workers.deal(square, [(2,)])) == [4]


def test_a_worker_that_dies_is_told_and_others_start():
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(workers.deal(os._exit, [(1,)]))
    assert list(workers.deal(square, [(2,)])) == [4]
