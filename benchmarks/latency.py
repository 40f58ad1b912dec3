"""
How long one query takes: percentiles, each with an exact confidence interval.

The benchmark follows the SingleStream scenario of MLPerf Inference: a query is one image, the next is sent when the
last is answered, and the tail is the 90th percentile. It is no MLPerf result: that takes a run of 600 s by LoadGen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from scipy.stats import binom

QUERIES = 24_576
"""
MLPerf's suggestion for the 90th percentile at 99 % confidence and a margin of 0.5 %: 23,886, rounded to 3 * 2^13.

MLPerf Inference Rules, section "Scenarios",
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc;
version 0.5 asked for 1,024 at least. The same margin for the 99th percentile would be a tenth of it, and take 270,336.
"""

CONFIDENCE = 0.99
"""Of every interval: that of the same table."""

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Percentile:
    """A percentile of what was measured, in seconds, and where that of all such queries lies with CONFIDENCE."""

    value: float
    low: float
    high: float


def percentile(latencies: Sequence[float], percent: int) -> Percentile:
    """
    The smallest latency, in seconds, that `percent` % of them do not exceed, and its interval.

    The interval lies between two order statistics: of n independent queries, the number below the true percentile is
    binomial, whatever the distribution (David & Nagaraja 2003, Order Statistics, section 7.1). Raises ValueError
    where the queries are too few to bound it on both sides.
    """
    ordered = sorted(latencies)
    low, high = ranks(len(ordered), percent)
    nearest = math.ceil(Fraction(percent, 100) * len(ordered))  # in floating point 0.9 * 10 might be above 9
    return Percentile(ordered[nearest - 1], ordered[low - 1], ordered[high - 1])


def ranks(count: int, percent: int) -> tuple[int, int]:
    """The ranks, from 1 to `count`, of the two order statistics that bound a percentile with CONFIDENCE."""
    below = binom(count, percent / 100)
    low, high = int(below.ppf((1 - CONFIDENCE) / 2)), int(below.ppf((1 + CONFIDENCE) / 2)) + 1
    if low < 1 or high > count:
        raise ValueError(f"{count} queries do not bound the {percent}th percentile with {CONFIDENCE:.0%} confidence")
    return low, high
