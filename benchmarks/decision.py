"""
The gate's decision rule: is head slower than base, given one log ratio per pair of processes?

Each observation is log(time of head / time of base) of one pair of processes. Wilcoxon's signed-rank test assumes that
the observations are symmetric about their center. Its null distribution is exact for every number of pairs, needs no
normal distribution, and limits the influence of a disturbed pair to its rank.

Symmetry is an assumption, except for equal sides: which process of a pair is head's is randomized, so the observations
are then symmetric about 0, whatever the noise. If head is slower by a constant factor, they are symmetric about its
logarithm. What breaks it is a head whose slowdown differs from process to process: one that is slow in a part of them,
as with two memory layouts, or whose times scatter more to one side. The test then decides about the pseudomedian (the
center of the Walsh averages), and its error rates at delta are approximate. A slowdown of a few calls in each process
is in no block's quartiles; `--tail` tests it.

The design is group-sequential: pairs are added until the rule decides or the time limit is reached, and the test is
made at several interim looks. Error rates are spent by an alpha-spending function (Lan & DeMets 1983, "Discrete
sequential boundaries for clinical trials"): a look spends the same share of the rate as the time since the last look
is of the round's time. By Bonferroni's inequality the total rate is kept at any stopping time, as long as the time of a
look does not depend on which process of a pair was head's. With one benchmark it does not. With several it does a
little: pairs are shorter once another benchmark is decided.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from lenet.oracle import Array

FALSE_ALARM_RATE = 0.001
"""The largest probability that a gate fails, over all its benchmarks, although head is at most delta slower."""

MISS_RATE = 0.05
"""The largest probability that a benchmark passes when head is delta slower."""

FIRST_LOOK = 9
"""
Pairs before the first look. The smallest p-value of nine pairs is 1/512.

That is small enough for a ninth of the rate that each of three benchmarks has.
"""


def looks() -> Iterator[int]:
    """Yield the numbers of pairs at which to look; each is 1.5 times the last, since a look soon after is wasted."""
    pairs = FIRST_LOOK
    while True:
        yield pairs
        pairs += pairs // 2


@dataclass(frozen=True)
class Rates:
    """The error rates of one round of measurements of one benchmark."""

    slower: float
    within: float

    @classmethod
    def of(cls, benchmarks: int) -> Rates:
        """
        Return the rates of each of two rounds, for a gate of this many benchmarks.

        A benchmark fails only if it is found slower in two rounds with different processes, so the rates multiply. One
        benchmark is enough for a false alarm, so all benchmarks share that rate. A benchmark can be missed in either
        round, so each has half of the rate of misses. The benchmarks do not share it: concluding that all are within
        delta is wrong no more often than concluding it of the slowest (Berger 1982, the intersection-union test).
        """
        return cls(slower=sqrt(FALSE_ALARM_RATE / benchmarks), within=MISS_RATE / 2)


@dataclass(frozen=True)
class Slowdown:
    """The relative slowdown of head (0.01 is 1 %) with two one-sided bounds, each at its share of the error rates."""

    estimate: float
    lower: float
    upper: float
    pairs: int
    margin: float
    """How far the estimate of one look is above the lower bound of the same look, as a factor minus 1."""

    def detectable(self, delta: float) -> float:
        """Return the smallest slowdown that would have been detected: then the lower bound would have been delta."""
        return (1 + delta) * (1 + self.margin) - 1

    def narrowed(self, earlier: Slowdown) -> Slowdown:
        """
        Return this latest look's slowdown with the bounds of all looks of a round, which hold simultaneously.

        The estimate is the nearest one to the latest that lies within the bounds. The margin is the smallest of a look,
        since any look could have detected a slowdown.
        """
        lower, upper = max(earlier.lower, self.lower), min(earlier.upper, self.upper)
        estimate = min(max(self.estimate, lower), upper)
        return Slowdown(estimate, lower, upper, self.pairs, min(earlier.margin, self.margin))


def slowdown(ratios: Sequence[float], share: float, rates: Rates) -> Slowdown:
    """
    Estimate the slowdown from the log ratios of pairs, with bounds at this share of the rates.

    The estimate is Hodges and Lehmann's, the median of the Walsh averages. The bounds invert the signed-rank test; they
    are infinite if there are too few pairs for the rate.
    """
    lower = _lower_bound(np.array(ratios), share * rates.slower)
    upper = -_lower_bound(-np.array(ratios), share * rates.within)
    estimate = float(np.median(_walsh_averages(np.array(ratios))))
    estimate, lower, upper, margin = np.expm1([estimate, lower, upper, estimate - lower]).tolist()
    return Slowdown(estimate, lower, upper, len(ratios), margin)


def _walsh_averages(values: Array) -> Array:
    """Return the averages of all pairs of values, including each value with itself, in ascending order."""
    rows, columns = np.triu_indices(len(values))
    return np.sort((values[rows] + values[columns]) / 2)


def _lower_bound(values: Array, rate: float) -> float:
    """Return the largest value that the center of symmetry of the values is shown to exceed, at this error rate."""
    averages = _walsh_averages(values)
    midpoints = (averages[1:] + averages[:-1]) / 2  # free of ties; the test's result changes only at the averages

    def p_value(index: int) -> float:
        return float(stats.wilcoxon(values - midpoints[index], alternative="greater", method="exact").pvalue)

    if 0.5 ** len(values) > rate:  # the smallest possible p-value
        return -np.inf
    return float(averages[bisect_right(range(len(midpoints)), rate, key=p_value)])


def decide(found: Slowdown, delta: float) -> str:
    """Return `slower` if the slowdown is shown to exceed delta, `within` if it is shown not to, else `undecided`."""
    if found.lower > delta:
        return "slower"
    return "within" if found.upper < delta else "undecided"


def log_ratio(head: Sequence[float], base: Sequence[float]) -> float:
    """
    Return log(head / base) of one pair of processes, from the seconds of interleaved blocks.

    The result is the interquartile mean over blocks, which excludes blocks between which the machine's speed changed.
    """
    return float(stats.trim_mean(np.log(head) - np.log(base), 0.25))
