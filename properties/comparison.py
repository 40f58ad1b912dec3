"""
The only three ways to compare numbers here: exact, within the roundings of one expression, within budget.

Each raises AssertionError with a message that stands alone: which element of which tensor, what it is, what it should
be, by how much it misses, and the case. What was judged is counted in `ledger`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from lenet.oracle import THRESHOLD, Array, Bounded
from lenet.update import Rounded
from properties.stack import float64, gradients


@dataclass
class Ledger:
    """What the law under way has judged so far."""

    examples: int = 0
    failed: int = 0  # the example that was the first to violate it
    open: int = 0  # examples in which some number could not be judged
    worst: float = 0.0  # error / budget
    worst_before: float = 0.0  # the latest example
    drawn: dict[str, Any] = field(default_factory=dict)  # what the latest example was drawn as
    notes: list[str] = field(default_factory=list)  # figures that the law wants stated
    known: list[dict[str, str]] = field(default_factory=list)  # issues that this law shows on this stack
    expected: list[Any] = field(default_factory=list)  # the examples on which it may
    nearest: float = 0.0  # the latest example's largest error, as a share of what is allowed
    unjudged: bool = False  # whether the latest example had a number that could not be judged
    graphs: int = 0  # that had been compiled before it

    def clear(self) -> None:
        """Begin a new law."""
        vars(self).update(vars(Ledger()))

    def begin(self, drawn: dict[str, Any]) -> None:
        """Begin a new example."""
        self.examples += 1
        self.drawn, self.nearest, self.unjudged, self.worst_before = drawn, 0.0, False, self.worst

    def forgive(self) -> None:
        """Let the latest example's error not count: a known issue is its cause."""
        self.worst, self.nearest = self.worst_before, 0.0

    def judged(self, share: Array) -> None:
        """Take note of errors as shares of what is allowed."""
        self.nearest = max(self.nearest, float(share.max(initial=0.0)))


ledger = Ledger()


def assert_exact(got: Tensor, want: Tensor, what: str) -> None:
    """Every element is bit for bit the wanted number (any NaN for a NaN; 0 and -0 are the same)."""
    __tracebackhide__ = True
    _assert_shape(got.shape, want.shape, what)
    assert got.dtype == want.dtype, f"{what} is {got.dtype}, not {want.dtype}"
    numbers, wanted = float64(got), float64(want)
    wrong = ~((numbers == wanted) | (np.isnan(numbers) & np.isnan(wanted)))
    if wrong.any():
        at = np.unravel_index(wrong.argmax(), wrong.shape)
        raise AssertionError(
            f"{_element(what, at)} is {float(numbers[at])!r}, exactly {float(wanted[at])!r} is right; {_count(wrong)}"
        )


def assert_rounded(got: Tensor, exact: Rounded, what: str) -> None:
    """Every element is the exact number, within the roundings that its formula takes."""
    __tracebackhide__ = True
    numbers = float64(got)
    _assert_shape(numbers.shape, exact.high.shape, what)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        missed = exact.missed(numbers)
        known = np.isfinite(exact.error)  # what comes of infinite operands is judged where they come from
        ledger.judged(np.nan_to_num(np.where(known, missed / exact.error, 0.0), nan=0.0))
    ledger.unjudged |= not known.all()
    wrong = known & ~(missed <= exact.error)
    if wrong.any():
        excess = np.nan_to_num(missed - exact.error, nan=np.inf)
        at = np.unravel_index(np.where(wrong, excess, -1.0).argmax(), wrong.shape)
        raise AssertionError(
            f"{_element(what, at)} is {float(numbers[at])!r}, {float(exact.high[at])!r} is right: "
            f"off by {missed[at]:.3g}, its roundings allow {exact.error[at]:.3g}; {_count(wrong)}"
        )


def assert_within_budget(got: Tensor, exact: Bounded, what: str) -> None:
    """Every element is within THRESHOLD budgets of the oracle's."""
    __tracebackhide__ = True
    numbers = float64(got)
    _assert_shape(numbers.shape, exact.value.shape, what)
    ratio = exact.ratio(numbers)
    ledger.worst = max(ledger.worst, float(ratio.max(initial=0.0)))
    ledger.judged(ratio / THRESHOLD)
    ledger.unjudged |= bool(np.isinf(exact.budget).any())
    wrong = ratio > THRESHOLD
    if wrong.any():
        at = np.unravel_index(ratio.argmax(), ratio.shape)
        raise AssertionError(
            f"{_element(what, at)} is {float(numbers[at])!r}, the oracle's is {float(exact.value[at])!r}: "
            f"{ratio[at]:.1f} budgets of {exact.budget[at]:.3g} off, {THRESHOLD:g} are allowed; {_count(wrong)}"
        )


def assert_gradients(net: nn.Module, exact: Mapping[str, Bounded]) -> None:
    """Every parameter has a gradient, and it is within budget."""
    got = gradients(net)
    missing = sorted(exact.keys() ^ got.keys())
    assert not missing, f"{missing[0]} has no gradient, or is none of the ten parameters"
    for name, bounded in exact.items():
        assert_within_budget(got[name], bounded, f"{name}.grad")


def _assert_shape(got: tuple[int, ...], want: tuple[int, ...], what: str) -> None:
    assert tuple(got) == tuple(want), f"{what} has shape {tuple(got)}, {tuple(want)} is right"


def _element(what: str, at: tuple[Any, ...]) -> str:
    return f"{what}[{', '.join(map(str, at))}]" if at else what


def _count(wrong: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    return f"{int(wrong.sum()):,} of {wrong.size:,} elements are wrong"
