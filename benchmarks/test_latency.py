"""Percentiles and their intervals agree with exact sums of binomial probabilities."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from benchmarks.latency import PERCENTILES, QUERIES, percentile, ranks


def coverage(count: int, percent: int, low: int, high: int) -> Fraction:
    """Return the exact probability that from `low` to `high` - 1 of `count` queries are below the percentile."""
    terms = (comb(count, k) * percent**k * (100 - percent) ** (count - k) for k in range(low, high))
    return Fraction(sum(terms), 100**count)


@pytest.mark.parametrize("percent", PERCENTILES)
@pytest.mark.parametrize("count", [1024, 2000])
def test_interval_has_99_percent_coverage_and_no_narrower_one_does(count: int, percent: int) -> None:
    low, high = ranks(count, percent)
    tail = Fraction(1, 200)

    assert coverage(count, percent, low, high) >= Fraction(99, 100)
    assert coverage(count, percent, 0, low) <= tail < coverage(count, percent, 0, low + 1)
    assert coverage(count, percent, high, count + 1) <= tail < coverage(count, percent, high - 1, count + 1)


def test_number_of_queries_gives_the_margin_that_mlperf_requires() -> None:
    low, high = ranks(QUERIES, 90)

    assert Fraction(895, 1000) < Fraction(low, QUERIES) < Fraction(high, QUERIES) < Fraction(905, 1000)


def test_percentile_is_one_of_the_latencies() -> None:
    found = percentile([float(n) for n in reversed(range(1, 1001))], 90)

    assert found.value == 900.0
    assert (found.low, found.high) == ranks(1000, 90)
    assert percentile([float(n) for n in range(1, 1002)], 90).value == 901.0  # the rank 900.9 is rounded up


@pytest.mark.parametrize(
    ("count", "enough"),
    [(527, False), (528, True)],  # from 528 on, 0.99^n is below 0.5 %
)
def test_too_few_queries_raise(count: int, enough: bool) -> None:
    if enough:
        assert percentile([1.0] * count, 99).high == 1.0
    else:
        with pytest.raises(ValueError, match=f"{count} queries do not bound the 99th percentile"):
            percentile([1.0] * count, 99)
