"""The gate's rule: exact bounds, error rates that hold at every look, and no more assumed than symmetry."""

from __future__ import annotations

from itertools import islice, product

import numpy as np
import pytest
from scipy import stats

from benchmarks.decision import FALSE_ALARMS, MISSES, Rates, decide, log_ratio, looks, slowdown
from lenet.oracle import Array

RATES = Rates(slower=0.02, within=0.05)


def ratios(count: int, by: float = 0.0, scatter: float = 0.01, seed: int = 0) -> Array:
    """log(head / base) of pairs, head being slower by so much."""
    return np.log1p(by) + scatter * np.random.default_rng(seed).standard_t(3, count)


@pytest.mark.parametrize("rate", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_where_wilcoxons_test_turns(rate: float, seed: int) -> None:
    numbers = ratios(9, seed=seed)

    found = slowdown(numbers.tolist(), 0.5, Rates(2 * rate, 2 * rate))

    for bound, alternative, beyond in ((found.lower, "greater", -1), (found.upper, "less", 1)):
        rejected, kept = (numbers - np.log1p(bound) - beyond * shift for shift in (1e-9, -1e-9))
        assert stats.wilcoxon(rejected, alternative=alternative, method="exact").pvalue <= rate
        assert stats.wilcoxon(kept, alternative=alternative, method="exact").pvalue > rate


def test_the_null_distribution_is_that_of_all_signs() -> None:
    """By brute force: of all signs that seven numbers can have, no more than the rate are above their lower bound."""
    sizes = ratios(7)
    signs = list(product((-1, 1), repeat=len(sizes)))

    above = sum(slowdown((np.array(each) * sizes).tolist(), 0.5, RATES).lower > 0 for each in signs)

    assert 0 < above <= len(signs) * RATES.slower / 2


def test_too_few_pairs_bound_nothing() -> None:
    found = slowdown([0.5] * 3, 0.5, RATES)

    assert (found.lower, found.upper) == (-1.0, np.inf)
    assert decide(found, 0.015) == "undecided"


def test_the_less_of_a_rate_is_spent_the_wider_are_the_bounds() -> None:
    found = [slowdown(ratios(20).tolist(), share, RATES) for share in (1.0, 0.5, 0.1, 0.0)]

    assert [each.lower for each in found] == sorted({each.lower for each in found}, reverse=True)
    assert [each.upper for each in found] == sorted({each.upper for each in found})
    assert (found[-1].lower, found[-1].upper) == (-1.0, np.inf)


def test_looks_are_ever_further_apart() -> None:
    assert list(islice(looks(), 5)) == [9, 13, 19, 28, 42]


def test_rates_of_two_rounds_multiply_and_are_shared() -> None:
    for benchmarks in (1, 3, 40):
        rates = Rates.of(benchmarks)

        assert benchmarks * rates.slower**2 <= FALSE_ALARMS * (1 + 2**-50)
        assert 2 * rates.within == MISSES


@pytest.mark.parametrize(
    ("by", "decision"), [(0.0, "within"), (-0.2, "within"), (0.05, "slower"), (0.3, "slower"), (0.015, "undecided")]
)
def test_what_is_clear_is_decided(by: float, decision: str) -> None:
    assert decide(slowdown(ratios(20, by, 0.005).tolist(), 0.5, RATES), 0.015) == decision


def test_one_disturbed_pair_of_many_changes_no_decision() -> None:
    numbers = ratios(20, scatter=0.003).tolist()

    assert decide(slowdown([*numbers[:-1], 3.0], 0.5, RATES), 0.015) == "within"


def test_an_estimate_is_the_median_of_averages() -> None:
    """Hodges and Lehmann's: of 0, 0 and 8 the averages are 0, 0, 0, 4, 4 and 8."""
    assert slowdown([0.0, 0.0, 8.0], 0.5, RATES).estimate == np.expm1(2.0)


def test_blocks_between_which_the_speed_changed_do_not_count() -> None:
    base = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 1.0]
    head = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0]

    assert log_ratio(head, base) == np.log(2.0)
