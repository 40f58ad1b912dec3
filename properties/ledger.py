"""
The ledger of the law being run: how many examples it has judged, and how large their errors were.

The assertions in `properties.comparison` and a few laws write to `current_ledger()`; `properties.record` reads it when
the law has finished. Outside a law nothing is recorded: each call then returns a new ledger that nothing reads.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lenet.oracle import Array, Budgeted

if TYPE_CHECKING:
    from properties.case import Case
    from properties.comparison import Mask, MismatchError
    from properties.known_issues import ExpectedFailure, KnownIssue


def compiled_graphs() -> int:
    """Return the number of graphs that Dynamo has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


@dataclass
class Ledger:
    """What one law has judged on one stack."""

    examples: int = 0
    first_failure: int = 0  # number, from 1, of the first example that violated the law; 0 if none did
    partly_judged: int = 0  # examples with at least one element that could not be judged
    forgiven: int = 0  # examples in which a known issue was seen; whatever it does not explain in them was judged
    deviating: int = 0  # likewise, examples in which a known deviation of the user was seen, and no known issue
    worst_ratio: float = 0.0  # largest error / budget over all examples; 0 if none was measured
    notes: list[str] = field(default_factory=list)  # results that the law reports besides its verdict
    known_issues: list[tuple[KnownIssue, ExpectedFailure]] = field(
        default_factory=list
    )  # that occur, each with its expected failure
    possible: list[tuple[KnownIssue, ExpectedFailure]] = field(default_factory=list)  # of which these occur
    shown: list[ExpectedFailure] = field(default_factory=list)  # what has explained anything in any example
    graphs_before: int = field(default_factory=compiled_graphs)
    observe: Callable[[str, Array, Budgeted], None] | None = None  # called at each comparison within budget

    # The latest example:
    drawn: dict[str, Any] = field(default_factory=dict)  # its arguments, without the stack
    expected: list[ExpectedFailure] = field(default_factory=list)  # what known issues may explain in it
    seen: list[ExpectedFailure] = field(default_factory=list)  # which of them explained something in it
    error_share: float = 0.0  # its largest error, as a fraction of the allowed error
    has_unjudged: bool = False  # whether some element could not be judged
    worst_ratio_before: float = 0.0
    cases: set[Case] = field(default_factory=set)  # from which networks and images were built
    compared: Counter[str] = field(default_factory=Counter)  # how often each tensor was compared, by its name
    choices: dict[str, Any] = field(default_factory=dict)  # what the law chose by the oracle's results, by name

    def start_judging(self, occurring: list[tuple[KnownIssue, ExpectedFailure]]) -> None:
        """Forget the examples in which known issues were looked for; these are the ones that occur."""
        self.known_issues = occurring
        self.examples = self.first_failure = self.partly_judged = self.forgiven = self.deviating = 0
        self.worst_ratio, self.drawn = 0.0, {}

    def begin_example(self, drawn: dict[str, Any]) -> None:
        """Count an example with these arguments."""
        self.examples += 1
        self.drawn, self.error_share, self.has_unjudged, self.worst_ratio_before = drawn, 0.0, False, self.worst_ratio
        self.expected = [failure for _, failure in self.known_issues if failure.applies_to(drawn)]
        self.seen = []
        self.cases, self.compared, self.choices = set(), Counter(), {}

    def progress(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what has been judged so far, and the reprs of the latest example's arguments, for the journal."""
        counts = {
            "examples": self.examples,
            "partly_judged": self.partly_judged,
            "forgiven": self.forgiven,
            "deviating": self.deviating,
            "worst_ratio": self.worst_ratio,
        }
        return counts, {name: repr(value) for name, value in self.drawn.items()}

    def explained(self, mismatch: MismatchError) -> Mask:
        """Return which of the wrong elements known issues explain, and note which issues those are."""
        explained = np.zeros_like(mismatch.wrong)
        for failure in self.expected:
            elements = mismatch.wrong & failure.explained(mismatch, self.drawn)
            if elements.any():
                self.forgive([failure])
            explained |= elements
        return explained

    def explaining(self, error: BaseException, arguments: Mapping[str, Any]) -> list[ExpectedFailure]:
        """Return which known issues explain an error that has ended the latest example."""
        return [failure for failure in self.expected if failure.explains(error, arguments)]

    def forgive(self, failures: list[ExpectedFailure]) -> None:
        """Note that these have explained something in the latest example."""
        self._count_forgiven(-1)
        self.seen += failures
        self.shown += failures
        self._count_forgiven(1)

    def _count_forgiven(self, change: int) -> None:
        """Change the number of examples of the kind that the latest one is now."""
        if any(not failure.own for failure in self.seen):
            self.forgiven += change
        elif self.seen:
            self.deviating += change

    def discard_errors(self) -> None:
        """Drop the errors of the latest example: it ended with an error that a known issue explains."""
        self.worst_ratio, self.error_share = self.worst_ratio_before, 0.0

    def add_error_shares(self, shares: Array) -> None:
        """Record errors of the latest example, as fractions of the allowed errors."""
        self.error_share = max(self.error_share, float(shares.max(initial=0.0)))


_current: ContextVar[Ledger | None] = ContextVar("current_ledger", default=None)


def current_ledger() -> Ledger:
    """Return the ledger of the law being run; outside a law, a new one that nothing reads."""
    return _current.get() or Ledger()


@contextmanager
def recording(ledger: Ledger) -> Iterator[Ledger]:
    """Make `ledger` the current ledger within the block."""
    token = _current.set(ledger)
    try:
        yield ledger
    finally:
        _current.reset(token)
