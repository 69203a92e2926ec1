import numpy as np
import pandas as pd
import pytest

from srdyn.bench import timing


class Clock:
    """Time passes only while a case runs: case x takes `durations[x]`, in a slow round ten times as long."""

    def __init__(self, **durations):
        self.now, self.durations, self.order = 0.0, durations, []

    def cases(self):
        return {name: lambda name=name: self.run(name) for name in self.durations}

    def run(self, name):
        self.order.append(name)
        self.now += self.durations[name]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(a=1.0, b=2.0)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_cases_are_interleaved_in_turning_order_after_a_warm_up(clock):
    times = timing.interleaved(clock.cases(), rounds=3)
    assert "".join(clock.order) == "ab" + "ab" + "ba" + "ab"
    assert times.to_dict("list") == {"a": [1] * 3, "b": [2] * 3}


def test_short_cases_are_repeated_within_a_reading(clock):
    clock.durations = {"a": timing.SHORTEST / 7.5, "b": 1.0}
    times = timing.interleaved(clock.cases(), rounds=1)
    assert "".join(clock.order) == "ab" + 8 * "a" + "b"
    assert times.loc[0].to_dict() == pytest.approx(clock.durations)


def test_without_warm_up_the_first_call_counts(clock):
    assert len(timing.interleaved(clock.cases(), rounds=2, warm_up=False)) == 2
    assert "".join(clock.order) == "abba"


def test_medians_spreads_and_ratios():
    frame = pd.DataFrame({"slow": [4.0, 4, 8, 40, 4], "fast": [2.0, 2, 4, 20, 2]})
    table = timing.medians(frame, base="slow", faster=True).set_index("case")
    assert list(table.index) == ["slow", "fast"]
    assert table.loc["fast", ["n", "median", "spread", "unit"]].tolist() == [5, 2, 2, "s"]
    # a busy round slows both: the ratio and its interval do not see it
    assert table.loc["fast", ["ratio", "low", "high"]].tolist() == [2, 2, 2]
    assert table.loc["slow", ["ratio", "low", "high"]].tolist() == [1, 1, 1]
    table = timing.medians(frame, base="slow").set_index("case")
    assert table.loc["fast", ["base", "ratio", "low", "high"]].tolist() == ["slow", 0.5, 0.5, 0.5]


def test_ratios_of_one_round_have_no_interval():
    frame = pd.DataFrame({"a": [3.0], "b": [2.0]})
    assert timing.quotient(frame, "a", "b") == pytest.approx((1.5, np.nan, np.nan), nan_ok=True)


def test_an_interval_covers_what_varies():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(3, 0.3, 40), "b": rng.normal(1, 0.1, 40)})
    found = timing.quotient(frame, "a", "b")
    assert found.low < 3 < found.high
    assert 0.01 < found.high - found.low < 1


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_is_that_of_a_power_law(power):
    frame = pd.DataFrame({f"{size}": [2 * size**power, 3 * size**power] for size in (3, 10, 50)})
    assert timing.exponent(frame) == pytest.approx((power, power, power))


def test_the_machine_says_its_name():
    machine = timing.machine()
    assert machine["processor"]
    assert machine["cores"] >= 1
    assert {"threads", "gpu", "torch", "python"} <= machine.keys()


def test_peak_memory_is_that_of_the_case():
    found = timing.peak_bytes(filled, 200)
    assert 195e6 < found < 240e6  # 200 MB, and what Python allocates beside it


def filled(megabytes):
    np.ones(250 * 125_000).sum()  # given back before the case begins, hides nothing of it
    return lambda: np.ones(megabytes * 125_000).sum()
