"""
How a law is run: its examples are counted, and failures that a known issue explains are discarded.

Before a law judges a stack, each of its known issues must occur: the law must fail on the issue's counterexample. Only
then are its failures on the other examples to which the issue applies accepted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import Phase, currently_in_test_context, settings, target
from hypothesis.errors import StopTest, UnsatisfiedAssumption

from properties.known_issues import ExpectedFailure, KnownIssue, expected_issues, torch_version
from properties.ledger import Ledger, current_ledger, recording
from properties.stack import Stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the examples of all laws counted."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("law"):
            if handle := getattr(item.obj, "hypothesis", None):
                handle.inner_test = _counted(handle.inner_test)
            else:
                item.obj = _counted(item.obj)


def _counted(law: Callable[..., None]) -> Callable[..., None]:
    """Return the law, which records each example in the current ledger and discards its expected failures."""
    if hasattr(law, "counted"):  # the items of a parametrized law share one function
        return law

    @functools.wraps(law)
    def counted(*args: Any, **drawn: Any) -> None:
        __tracebackhide__ = True
        ledger = current_ledger()
        ledger.begin_example({name: value for name, value in drawn.items() if not isinstance(value, Stack)})
        expected = [failure for _, failure in ledger.known_issues if failure.applies_to(drawn)]
        if expected and not currently_in_test_context():
            return  # a law that draws nothing: its only example is the counterexample, which has been run already
        try:
            law(*args, **drawn)
        except (UnsatisfiedAssumption, StopTest, pytest.skip.Exception):
            raise
        except (Exception, pytest.fail.Exception) as error:
            if not any(isinstance(error, failure.raises) for failure in expected):
                ledger.first_failure = ledger.first_failure or ledger.examples
                raise
            ledger.discard_expected_failure()
        ledger.partly_judged += ledger.has_unjudged
        if ledger.error_share and currently_in_test_context() and Phase.target in settings().phases:
            target(ledger.error_share, label="error / allowed error")

    counted.counted = True  # type: ignore[attr-defined]
    return counted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Give each law a ledger of its own, from its setup to its report."""
    if not item.get_closest_marker("law"):
        return (yield)
    with recording(Ledger()):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Check, before a law judges a stack, that the known issues of that stack occur."""
    if isinstance(item, pytest.Function) and item.get_closest_marker("law"):
        arguments: dict[str, Any] = {name: item.funcargs[name] for name in item.callspec.params}
        issues = expected_issues(item.originalname, arguments["stack"], arguments)
        occurring = [(issue, failure) for issue, failure in issues if _occurs(item, arguments, issue, failure)]
        current_ledger().known_issues = occurring


def _occurs(item: pytest.Function, arguments: dict[str, Any], issue: KnownIssue, failure: ExpectedFailure) -> bool:
    """Whether the law fails on the issue's counterexample; raises AssertionError if it must, but does not."""
    __tracebackhide__ = True
    law = getattr(item.obj, "hypothesis", None)
    try:
        (law.inner_test if law else item.obj)(**{**arguments, **failure.counterexample})
    except failure.raises:
        current_ledger().discard_expected_failure()
        return True
    if arguments["stack"].dtype in issue.intermittent:
        return True
    if issue.must_occur(arguments["stack"]):
        major, minor = torch_version()
        raise AssertionError(
            f"This is not a fault of your stack: a known issue no longer occurs: {issue.title} ({issue.reference}). "
            f"The law holds on its counterexample {dict(failure.counterexample)}. If PyTorch {major}.{minor} fixes it, "
            f"set fixed_in=({major}, {minor}) in properties/known_issues.py; if only this processor lacks it, narrow "
            "`affects`."
        )
    return False
