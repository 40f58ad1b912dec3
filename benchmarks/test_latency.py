"""Percentiles and their intervals, against sums of binomial probabilities in whole numbers."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from benchmarks.latency import PERCENTILES, QUERIES, percentile, ranks


def coverage(count: int, percent: int, low: int, high: int) -> Fraction:
    """The probability that at least `low` and less than `high` of `count` queries lie below the percentile, exactly."""
    terms = (comb(count, k) * percent**k * (100 - percent) ** (count - k) for k in range(low, high))
    return Fraction(sum(terms), 100**count)


@pytest.mark.parametrize("percent", PERCENTILES)
@pytest.mark.parametrize("count", [1024, 2000])
def test_the_interval_covers_with_99_percent_and_no_narrower_one_on_either_side_does(count: int, percent: int) -> None:
    low, high = ranks(count, percent)
    tail = Fraction(1, 200)

    assert coverage(count, percent, low, high) >= Fraction(99, 100)
    assert coverage(count, percent, 0, low) <= tail < coverage(count, percent, 0, low + 1)
    assert coverage(count, percent, high, count + 1) <= tail < coverage(count, percent, high - 1, count + 1)


def test_so_many_queries_give_the_90th_percentile_the_margin_that_mlperf_asks_for() -> None:
    low, high = ranks(QUERIES, 90)

    assert Fraction(895, 1000) < Fraction(low, QUERIES) < Fraction(high, QUERIES) < Fraction(905, 1000)


def test_a_percentile_is_one_of_the_latencies() -> None:
    found = percentile([float(n) for n in reversed(range(1, 1001))], 90)

    assert found.value == 900.0
    assert (found.low, found.high) == ranks(1000, 90)
    assert percentile([float(n) for n in range(1, 1002)], 90).value == 901.0  # 900.9 of 1,001 are too few


@pytest.mark.parametrize(
    ("count", "enough"),
    [(527, False), (528, True)],  # 0.99^n falls below 0.5 %
)
def test_too_few_queries_bound_nothing(count: int, enough: bool) -> None:
    if enough:
        assert percentile([1.0] * count, 99).high == 1.0
    else:
        with pytest.raises(ValueError, match=f"{count} queries do not bound the 99th percentile"):
            percentile([1.0] * count, 99)
