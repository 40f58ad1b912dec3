"""The gate's decision rule has exact bounds and keeps its error rates, assuming only symmetry."""

from __future__ import annotations

from itertools import islice, product

import numpy as np
import pytest
from scipy import stats

from benchmarks.decision import FALSE_ALARM_RATE, MISS_RATE, Rates, Slowdown, decide, log_ratio, looks, slowdown
from lenet.oracle import Array

RATES = Rates(slower=0.02, within=0.05)


def ratios(count: int, slowdown: float = 0.0, noise: float = 0.01, seed: int = 0) -> Array:
    """Return log(head / base) of pairs in which head is slower by this share."""
    return np.log1p(slowdown) + noise * np.random.default_rng(seed).standard_t(3, count)


@pytest.mark.parametrize("rate", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_where_wilcoxons_test_changes_its_result(rate: float, seed: int) -> None:
    numbers = ratios(9, seed=seed)

    found = slowdown(numbers.tolist(), 0.5, Rates(2 * rate, 2 * rate))

    for bound, alternative, beyond in ((found.lower, "greater", -1), (found.upper, "less", 1)):
        rejected, kept = (numbers - np.log1p(bound) - beyond * shift for shift in (1e-9, -1e-9))
        assert stats.wilcoxon(rejected, alternative=alternative, method="exact").pvalue <= rate
        assert stats.wilcoxon(kept, alternative=alternative, method="exact").pvalue > rate


def test_null_distribution_is_that_of_all_signs() -> None:
    """Of all sign patterns of seven values, the share with a positive lower bound is at most the rate."""
    magnitudes = ratios(7)
    signs = list(product((-1, 1), repeat=len(magnitudes)))

    above = sum(slowdown((np.array(each) * magnitudes).tolist(), 0.5, RATES).lower > 0 for each in signs)

    assert 0 < above <= len(signs) * RATES.slower / 2


def test_too_few_pairs_give_infinite_bounds() -> None:
    found = slowdown([0.5] * 3, 0.5, RATES)

    assert (found.lower, found.upper) == (-1.0, np.inf)
    assert decide(found, 0.015) == "undecided"


def test_margin_is_the_distance_of_estimate_and_bound_of_one_look() -> None:
    found = slowdown(ratios(20).tolist(), 0.5, RATES)

    assert abs((1 + found.lower) * (1 + found.margin) / (1 + found.estimate) - 1) < 1e-12


def test_spending_less_of_a_rate_widens_the_bounds() -> None:
    found = [slowdown(ratios(20).tolist(), share, RATES) for share in (1.0, 0.5, 0.1, 0.0)]

    assert [each.lower for each in found] == sorted({each.lower for each in found}, reverse=True)
    assert [each.upper for each in found] == sorted({each.upper for each in found})
    assert (found[-1].lower, found[-1].upper) == (-1.0, np.inf)


def test_intervals_between_looks_increase() -> None:
    assert list(islice(looks(), 5)) == [9, 13, 19, 28, 42]


def test_no_slowdown_below_delta_is_called_detectable() -> None:
    """Also if an earlier look has a lower bound above the estimate of the last look."""
    earlier, latest = Slowdown(0.02, 0.01, 0.03, 9, 0.0099), Slowdown(-0.01, -0.04, 0.04, 13, 0.031)

    found = latest.narrowed(earlier)

    assert found.estimate - found.lower == 0.0  # as its nearest value within the bounds
    assert found.detectable(0.012) > 0.012
    assert found == Slowdown(0.01, 0.01, 0.03, 13, 0.0099)


def test_detectable_slowdown_is_found_if_it_is_added() -> None:
    numbers = ratios(20)
    found = slowdown(numbers.tolist(), 0.5, RATES)
    added = np.log1p(found.detectable(0.012)) - np.log1p(found.estimate)  # so that the estimate is the detectable one

    assert abs(slowdown((numbers + added).tolist(), 0.5, RATES).lower - 0.012) < 1e-9


def test_rates_of_two_rounds_keep_the_rates_of_the_gate() -> None:
    for benchmarks in (1, 3, 40):
        rates = Rates.of(benchmarks)

        assert benchmarks * rates.slower**2 <= FALSE_ALARM_RATE * (1 + 2**-50)
        assert 2 * rates.within == MISS_RATE


@pytest.mark.parametrize(
    ("slower", "decision"), [(0.0, "within"), (-0.2, "within"), (0.05, "slower"), (0.3, "slower"), (0.015, "undecided")]
)
def test_clear_slowdowns_are_decided(slower: float, decision: str) -> None:
    assert decide(slowdown(ratios(20, slower, 0.005).tolist(), 0.5, RATES), 0.015) == decision


def test_disturbed_pair_does_not_change_the_decision() -> None:
    numbers = ratios(20, noise=0.003).tolist()

    assert decide(slowdown([*numbers[:-1], 3.0], 0.5, RATES), 0.015) == "within"


def test_estimate_is_the_median_of_walsh_averages() -> None:
    """The Hodges-Lehmann estimate: the Walsh averages of 0, 0 and 8 are 0, 0, 0, 4, 4 and 8."""
    assert slowdown([0.0, 0.0, 8.0], 0.5, RATES).estimate == np.expm1(2.0)


def test_log_ratio_ignores_blocks_between_which_the_speed_changed() -> None:
    base = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 1.0]
    head = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0]

    assert log_ratio(head, base) == np.log(2.0)
