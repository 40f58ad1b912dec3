"""
Percentiles of the latency of single queries, each with an exact confidence interval.

The benchmark follows the SingleStream scenario of MLPerf Inference: a query is one image, the next query is sent when
the last one is answered, and the tail latency is the 90th percentile. It is not an MLPerf result, which requires a run
of 600 s by LoadGen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from scipy.stats import binom

QUERIES = 24_576
"""
MLPerf's recommendation for the 90th percentile at 99 % confidence and a margin of 0.5 %: 23,886, rounded to 3 * 2^13.

MLPerf Inference Rules, section "Scenarios",
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc;
version 0.5 required at least 1,024. For the 99th percentile the margin would be a tenth, and 270,336 queries needed.
"""

CONFIDENCE = 0.99
"""The confidence level of every interval; that of the same table."""

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Percentile:
    """A percentile of the measured latencies in seconds, with the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def percentile(latencies: Sequence[float], percent: int) -> Percentile:
    """
    Return the smallest latency, in seconds, that `percent` % of the latencies do not exceed, with its interval.

    The bounds are two order statistics. Of n independent queries, the number below the true percentile is binomial for
    every distribution (David & Nagaraja 2003, Order Statistics, section 7.1). Raises ValueError if there are too few
    queries to bound the percentile on both sides.
    """
    ordered = sorted(latencies)
    low, high = ranks(len(ordered), percent)
    nearest = math.ceil(Fraction(percent, 100) * len(ordered))  # exact; in floating point 0.9 * 10 can exceed 9
    return Percentile(ordered[nearest - 1], ordered[low - 1], ordered[high - 1])


def ranks(count: int, percent: int) -> tuple[int, int]:
    """Return the ranks, from 1 to `count`, of the two order statistics that bound a percentile at CONFIDENCE."""
    below = binom(count, percent / 100)
    low, high = int(below.ppf((1 - CONFIDENCE) / 2)), int(below.ppf((1 + CONFIDENCE) / 2)) + 1
    if low < 1 or high > count:
        raise ValueError(f"{count} queries do not bound the {percent}th percentile at {CONFIDENCE:.0%} confidence")
    return low, high
