"""
How a law is run: its examples are counted, and what a known issue explains in them is forgiven.

Before a law judges a stack, each of its known issues must occur: the law must fail on the issue's counterexample. Only
then are its symptoms forgiven in the other examples to which the issue applies. Everything else in them is judged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import SkipTest

import pytest
import torch
from hypothesis import Phase, currently_in_test_context, settings, target
from hypothesis.errors import StopTest, UnsatisfiedAssumption

from properties import journal
from properties.deviations import DEVIATIONS
from properties.global_settings import restored_settings
from properties.judged_code import begin_example, escapes_are_errors
from properties.known_issues import ExpectedFailure, KnownIssue, expected_issues
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
    """Return the law, which records each example in the current ledger and forgives what known issues explain."""
    if hasattr(law, "counted"):  # the items of a parametrized law share one function
        return law

    @functools.wraps(law)
    def counted(*args: Any, **drawn: Any) -> None:
        __tracebackhide__ = True
        assert_device_works(drawn.get("stack"))
        ledger = current_ledger()
        ledger.begin_example({name: value for name, value in drawn.items() if not isinstance(value, Stack)})
        begin_example()
        if journal.is_kept():
            journal.write("example", *ledger.progress())
        if any(issue.stops_device for issue, failure in ledger.known_issues if failure in ledger.expected):
            ledger.forgiven += 1
            return
        try:
            # Only the laws about global state fail if the subject changes it.
            with escapes_are_errors(), restored_settings():
                law(*args, **drawn)
                synchronize(drawn.get("stack"))
        except (UnsatisfiedAssumption, StopTest, SkipTest):
            raise
        except (Exception, pytest.fail.Exception) as error:
            note_stopped_device(drawn.get("stack"), error)
            explaining = ledger.explaining(error, drawn)
            if not explaining:
                ledger.first_failure = ledger.first_failure or ledger.examples
                raise
            ledger.forgive(explaining)
            ledger.discard_errors()
        ledger.partly_judged += ledger.has_unjudged
        if ledger.error_share and currently_in_test_context() and Phase.target in settings().phases:
            target(ledger.error_share, label="error / allowed error")

    counted.counted = True  # type: ignore[attr-defined]
    return counted


_stopped: list[BaseException] = []
"""The error after which the GPU of this process no longer works, if there was one: then every call on it fails."""


def synchronize(stack: Stack | None) -> None:
    """Wait for the GPU, so that an error in a kernel is raised in the example that it belongs to."""
    if stack is not None and stack.device.type == "cuda":
        torch.cuda.synchronize(stack.device)


def note_stopped_device(stack: Stack | None, error: BaseException) -> None:
    """Remember the error if the GPU does not work any more after it in this process."""
    if stack is not None and stack.device.type != "cpu" and not works(stack.device):
        _stopped.append(error)


def works(device: torch.device) -> bool:
    """Whether the device still computes."""
    try:
        torch.ones(1, device=device).cpu()
    except RuntimeError:
        return False
    return True


def assert_device_works(stack: Stack | None) -> None:
    """
    Raise an error if the stack is on a GPU that has stopped working: nothing more can be judged on it.

    In the law that stopped it, this is the error that it raised, so that shrinking cannot replace it by another one.
    """
    __tracebackhide__ = True
    if not _stopped or stack is None or stack.device.type == "cpu":
        return
    if current_ledger().first_failure:
        raise _stopped[0]
    reason = str(_stopped[0]).splitlines()[0]
    raise RuntimeError(f"not judged: since an earlier law, the GPU no longer works in this process: {reason}")


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
        expect_known_issues(item)


def expect_known_issues(item: pytest.Function) -> None:
    """Check that the known issues of the law's stack occur, and let the ledger expect them."""
    arguments: dict[str, Any] = {name: item.funcargs[name] for name in item.callspec.params}
    ledger, own = current_ledger(), item.config.stash[DEVIATIONS]
    ledger.known_issues = ledger.possible = expected_issues(item.originalname, arguments["stack"], arguments, own)
    occurring = [pair for pair in ledger.known_issues if _occurs(item, arguments, *pair)]
    ledger.start_judging(occurring)


def counted_law(item: pytest.Function) -> Callable[..., None]:
    """Return the function that runs one example of the law."""
    law: Any = item.obj
    return law.hypothesis.inner_test if hasattr(law, "hypothesis") else law  # type: ignore[no-any-return]


def _occurs(item: pytest.Function, arguments: dict[str, Any], issue: KnownIssue, failure: ExpectedFailure) -> bool:
    """
    Whether the law shows the issue on its counterexample.

    Raises AssertionError if it must, but does not, and any error that no known issue explains.
    """
    __tracebackhide__ = True
    if issue.stops_device or failure.at_random:
        return True  # its counterexample would end every judgement on this device, or it has none
    counted_law(item)(**{**arguments, **failure.counterexample})
    if failure in current_ledger().seen:
        return True
    if arguments["stack"].dtype in issue.intermittent:
        return True
    if issue.must_occur(arguments["stack"]):
        raise AssertionError(issue.advice(failure))
    return False
