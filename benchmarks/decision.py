"""
When is a slowdown shown? The rule by which the gate decides, from one number for each pair of processes.

That number is the logarithm of head's time relative to base's. Which process of a pair is head's is drawn by lot, so
where head is slower by a factor, the numbers lie symmetrically around its logarithm. That is all that Wilcoxon's
signed-rank test assumes, at every number of pairs: exactly, without normal distributions, and no pair that was
disturbed weighs more than its rank.

Sampling goes on until the rule has decided or the time is spent, so the test is made at several looks. A look spends
as much of an error rate as the time since the last look is of all that the round has (Lan & DeMets 1983, "Discrete
sequential boundaries for clinical trials"): whenever one stops, the rate is kept, by Bonferroni's inequality, where the
time of a look does not depend on which of a pair's processes was head's. Of one benchmark it does not. Of several it
does a little: pairs are shorter once another benchmark is decided.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from lenet.oracle import Array

FALSE_ALARMS = 0.001
"""How often a gate that compares equals may fail, over all of its benchmarks. The rate where head is delta slower."""

MISSES = 0.05
"""How often a benchmark that is delta slower may pass."""

FIRST_LOOK = 9
"""Pairs. The least p-value of nine is 1/512: small enough for a ninth of the rate that three benchmarks have."""


def looks() -> Iterator[int]:
    """After how many pairs a look is taken: each time half as many again, since a look at nearly the same is wasted."""
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
        Those of two rounds, of so many benchmarks.

        What fails has been found slower twice, each time in processes of their own: the rates multiply. One benchmark
        of many is enough for a false alarm, so they share that rate. A miss has two chances, the first round and, after
        a suspicion, the second; that all benchmarks are within delta is wrong no more often than that the slowest is
        (Berger 1982, the intersection-union test), so they do not share that one.
        """
        return cls(slower=sqrt(FALSE_ALARMS / benchmarks), within=MISSES / 2)


@dataclass(frozen=True)
class Slowdown:
    """How much longer head takes, 0.01 being one per cent, with bounds that hold at a look's share of the rates."""

    estimate: float
    lower: float
    upper: float
    pairs: int

    @property
    def visible(self) -> float:
        """How much more than delta a slowdown must be for its lower bound to be above delta, with this scatter."""
        return self.estimate - self.lower


def slowdown(ratios: Sequence[float], share: float, rates: Rates) -> Slowdown:
    """
    Hodges and Lehmann's estimate, and bounds by inverting the test at this share of the rates, from log(head / base).

    With too few pairs for the rate, the bounds are infinite.
    """
    lower = _lower(np.array(ratios), share * rates.slower)
    upper = -_lower(-np.array(ratios), share * rates.within)
    middle = float(np.median(_walsh(np.array(ratios))))
    middle, lower, upper = np.expm1([middle, lower, upper]).tolist()
    return Slowdown(middle, lower, upper, pairs=len(ratios))


def _walsh(numbers: Array) -> Array:
    """The averages of all pairs of numbers, each with itself included, in order."""
    rows, columns = np.triu_indices(len(numbers))
    return np.sort((numbers[rows] + numbers[columns]) / 2)


def _lower(numbers: Array, rate: float) -> float:
    """The largest value that the centre of the numbers is shown to be above, at this error rate."""
    averages = _walsh(numbers)
    between = (averages[1:] + averages[:-1]) / 2  # where nothing is tied: the test's result is the same up to the next

    def p_value(place: int) -> float:
        return float(stats.wilcoxon(numbers - between[place], alternative="greater", method="exact").pvalue)

    if 0.5 ** len(numbers) > rate:  # the least p-value that there is
        return -np.inf
    return float(averages[bisect_right(range(len(between)), rate, key=p_value)])


def decide(found: Slowdown, delta: float) -> str:
    """`slower` or `within` delta, or `undecided`."""
    if found.lower > delta:
        return "slower"
    return "within" if found.upper < delta else "undecided"


def log_ratio(head: Sequence[float], base: Sequence[float]) -> float:
    """
    log(head / base) of one pair of processes, from the seconds of blocks that were timed side by side.

    The mean of the middle half: blocks between which the machine's speed changed lie outside.
    """
    return float(stats.trim_mean(np.log(head) - np.log(base), 0.25))
