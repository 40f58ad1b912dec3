"""
The only three ways to compare numbers: exactly, within the roundings of one expression, and within the oracle's budget.

Each assertion raises a MismatchError, whose message names the tensor and its worst element, the actual and the expected
value, the error, and the number of wrong elements; `python -O` does not remove it. Errors are recorded in
`properties.ledger.current_ledger`. Elements that a known issue explains are not wrong: the ledger knows the symptoms
that the latest example may show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lenet.exact_sgd import ExactWithBound
from lenet.oracle import THRESHOLD, Array, Budgeted
from properties.ledger import current_ledger
from properties.stack import float64, gradients

Mask: TypeAlias = NDArray[np.bool_]


TYPICAL_ERROR = 0.25
"""The largest root mean square error allowed, in budgets: the power of two above the worst that was measured."""

MEAN_ERROR = 8.0
"""
The largest mean error allowed, in standard errors of the mean over 24 networks.

If the means were normally distributed, correct results would exceed it with a probability of 4e-8 (Student's t
distribution with 23 degrees of freedom).
"""


class MismatchError(AssertionError):
    """Some elements of a tensor are wrong."""

    def __init__(self, tensor: str, actual: Array, expected: Array, wrong: Mask, allowed: Array | float = 0.0) -> None:
        super().__init__()
        self.tensor = tensor  # its name, which may be followed by a description
        self.actual, self.expected = actual, expected  # all elements, in float64
        self.wrong = wrong  # which of them are wrong
        self.ratio: Array | None = None  # their errors in budgets, if they are compared within budget
        self.allowed = np.broadcast_to(allowed, wrong.shape)  # the largest error allowed

    def with_message(self, at: tuple[Any, ...], text: str) -> MismatchError:
        """Return the mismatch with a message about its worst element, `at`, and the number of wrong elements."""
        self.args = (f"{_element(self.tensor, at)} is {float(self.actual[at])!r}, {text}; {_count(self.wrong)}",)
        return self


def assert_exact(got: Tensor, want: Tensor, what: str) -> None:
    """Assert the same shape, dtype and equal values: NaN equals NaN, 0 equals -0."""
    __tracebackhide__ = True
    _assert_equal(got, want, what, signed_zeros=False)


def assert_same_bits(got: Tensor, want: Tensor, what: str) -> None:
    """Assert the same shape, dtype and values, also the same sign of zero; NaN equals NaN, whatever its payload."""
    __tracebackhide__ = True
    _assert_equal(got, want, what, signed_zeros=True)


def _assert_equal(got: Tensor, want: Tensor, what: str, signed_zeros: bool) -> None:
    __tracebackhide__ = True
    _assert_shape(got.shape, want.shape, what)
    if got.dtype != want.dtype:
        raise AssertionError(f"{what} has dtype {got.dtype}, expected {want.dtype}")
    actual, expected = float64(got), float64(want)
    different = ~((actual == expected) | (np.isnan(actual) & np.isnan(expected)))
    if signed_zeros:
        different |= (actual == 0) & (expected == 0) & (np.signbit(actual) != np.signbit(expected))
    mismatch = _unexplained(what, actual, expected, different)
    if mismatch.wrong.any():
        at = np.unravel_index(mismatch.wrong.argmax(), different.shape)
        raise mismatch.with_message(at, f"expected exactly {float(expected[at])!r}")


def assert_rounded(got: Tensor, exact: ExactWithBound, what: str) -> None:
    """
    Assert that each element equals the exact value of a formula up to the rounding of each operation in it.

    An element whose error bound is not finite (an operand overflowed) is not judged.
    """
    __tracebackhide__ = True
    actual, ledger = float64(got), current_ledger()
    _assert_shape(actual.shape, exact.high.shape, what)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = exact.error_of(actual)
        bounded = np.isfinite(exact.error_bound)
        shares = np.nan_to_num(np.where(bounded, error / exact.error_bound, 0.0), nan=0.0)
    different = bounded & ~(error <= exact.error_bound)
    mismatch = _unexplained(what, actual, exact.high, different, exact.error_bound)
    ledger.add_error_shares(np.where(different & ~mismatch.wrong, 0.0, shares))
    ledger.has_unjudged |= not bounded.all()
    if mismatch.wrong.any():
        excess = np.nan_to_num(error - exact.error_bound, nan=np.inf)
        at = np.unravel_index(np.where(mismatch.wrong, excess, -1.0).argmax(), different.shape)
        raise mismatch.with_message(
            at,
            f"expected {float(exact.high[at])!r}: the error is {error[at]:.3g}, rounding explains at most "
            f"{exact.error_bound[at]:.3g}",
        )


def assert_within_budget(got: Tensor, exact: Budgeted, what: str) -> None:
    """Assert that each element is within THRESHOLD budgets of the oracle's value; an infinite budget accepts all."""
    __tracebackhide__ = True
    actual, ledger = float64(got), current_ledger()
    _assert_shape(actual.shape, exact.value.shape, what)
    if ledger.observe:
        ledger.observe(what, actual, exact)
    ratio = exact.ratio(actual)
    different = ratio > THRESHOLD
    mismatch = _unexplained(what, actual, exact.value, different, THRESHOLD * exact.budget, ratio)
    ratio = np.where(different & ~mismatch.wrong, 0.0, ratio)
    ledger.worst_ratio = max(ledger.worst_ratio, float(ratio.max(initial=0.0)))
    ledger.add_error_shares(ratio / THRESHOLD)
    ledger.has_unjudged |= bool(np.isinf(exact.budget).any())
    if mismatch.wrong.any():
        at = np.unravel_index(ratio.argmax(), ratio.shape)
        raise mismatch.with_message(
            at,
            f"the oracle computes {float(exact.value[at])!r}: the error is {ratio[at]:.1f} budgets of "
            f"{exact.budget[at]:.3g}, at most {THRESHOLD:g} are allowed",
        )


def assert_typical_errors(errors: Mapping[str, Array]) -> None:
    """Assert that the root mean square of errors in budgets, (cases,elements) by tensor, is at most TYPICAL_ERROR."""
    __tracebackhide__ = True
    typical = {name: float(np.sqrt(np.mean(values**2))) for name, values in errors.items()}
    worst = max(typical, key=lambda name: np.nan_to_num(typical[name], nan=np.inf))
    current_ledger().notes.append(f"largest typical error: {typical[worst]:.3f} budgets ({worst})")
    if not typical[worst] <= TYPICAL_ERROR:
        raise AssertionError(
            f"the root mean square error of {worst} is {typical[worst]:.3g} budgets in {len(errors[worst])} networks, "
            f"at most {TYPICAL_ERROR:g} is allowed"
        )


def assert_mean_errors_are_zero(errors: Mapping[str, Array]) -> None:
    """
    Assert that the mean of errors, (cases,elements) by tensor, is at most MEAN_ERROR of its standard errors from 0.

    Each case counts as one observation, the mean of its elements. An error that is infinite fails.
    """
    __tracebackhide__ = True
    means = {name: values.mean(axis=1) for name, values in errors.items()}
    with np.errstate(invalid="ignore"):
        standard_errors = {name: float(mean.std(ddof=1) / np.sqrt(len(mean))) for name, mean in means.items()}
    multiples = {name: float(mean.mean()) / (standard_errors[name] or 1.0) for name, mean in means.items()}
    worst = max(multiples, key=lambda name: np.nan_to_num(abs(multiples[name]), nan=np.inf))
    current_ledger().notes.append(f"largest mean error: {abs(multiples[worst]):.1f} standard errors ({worst})")
    if not abs(multiples[worst]) <= MEAN_ERROR:
        toward = "away from" if multiples[worst] > 0 else "toward"
        raise AssertionError(
            f"the mean error of {worst} is {abs(means[worst].mean()):.3g} budgets {toward} zero in "
            f"{len(means[worst])} networks, {abs(multiples[worst]):.1f} standard errors; "
            f"at most {MEAN_ERROR:g} are allowed"
        )


def _unexplained(
    what: str,
    actual: Array,
    expected: Array,
    different: Mask,
    allowed: Array | float = 0.0,
    ratio: Array | None = None,
) -> MismatchError:
    """Return the mismatch of the elements that are different and that no known issue explains."""
    mismatch, ledger = MismatchError(what, actual, expected, different, allowed), current_ledger()
    mismatch.ratio = ratio
    ledger.compared[what] += 1
    if different.any():
        mismatch.wrong = different & ~ledger.explained(mismatch)
    return mismatch


def assert_gradients(net: nn.Module, exact: Mapping[str, Budgeted]) -> None:
    """Assert that exactly the parameters in `exact` have a gradient, each within THRESHOLD budgets."""
    got = gradients(net)
    missing, unexpected = exact.keys() - got.keys(), got.keys() - exact.keys()
    if missing:
        raise AssertionError(f"{min(missing)} has no gradient")
    if unexpected:
        raise AssertionError(f"{min(unexpected)} has a gradient, but is none of the network's ten parameters")
    for name, bounded in exact.items():
        assert_within_budget(got[name], bounded, f"{name}.grad")


def _assert_shape(got: tuple[int, ...], want: tuple[int, ...], what: str) -> None:
    if tuple(got) != tuple(want):
        raise AssertionError(f"{what} has shape {tuple(got)}, expected {tuple(want)}")


def _element(what: str, at: tuple[Any, ...]) -> str:
    """Return the name of an element; a first word with a dot is the tensor's name, followed by a description."""
    if not at:
        return what
    index, (name, space, description) = f"[{', '.join(map(str, at))}]", what.partition(" ")
    return f"{name}{index}{space}{description}" if "." in name else f"{what}{index}"


def _count(wrong: Mask) -> str:
    count = int(wrong.sum())
    noun, verb = "element" if wrong.size == 1 else "elements", "is" if count == 1 else "are"
    return f"{count:,} of {wrong.size:,} {noun} {verb} wrong"
