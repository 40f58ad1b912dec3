"""
Code that is judged must neither skip a law, nor end a run, nor hang: whatever it raises violates the law.

Only laws skip (`pytest.skip`) and discard examples (`assume`), and only the user ends a run. `escapes_are_errors`
therefore turns the exceptions by which pytest and Hypothesis do so into an EscapeError, unless a law has raised them.
"""

from __future__ import annotations

import faulthandler
import math
import os
import posix
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import NoReturn
from unittest import SkipTest

import _pytest
import hypothesis
import pytest
from hypothesis.errors import HypothesisException

from lenet.subject import one_line

LAWS = Path(__file__).parent / "laws"
LIBRARIES = tuple(f"{Path(str(library.__file__)).parent}{os.sep}" for library in (_pytest, hypothesis))
"""Pytest's and Hypothesis's own code, which raises what its caller has asked for."""

CONTROL = (SkipTest, pytest.exit.Exception, pytest.xfail.Exception, HypothesisException)
"""Exceptions, by other names than Python's for an error, that skip a law, discard an example or end a run."""


EXAMPLE_TIMEOUT = 300.0
"""
The default of `--example-timeout`, in seconds: about nine times as long as the slowest law of any published run took,
33.5 s with all of its examples and what was compiled for them (`second_backward_adds_exactly` by `compiled` on an
NVIDIA H200). On a machine with four times as many processes as cores, laws took three to five times as long.
"""

SOON = 1e-3
"""The seconds after which an alarm is raised whose time has passed; 0 would turn it off."""

GRACE = 0.1
"""
The share of a time limit, at least a second, that code has after it to return to Python. A law then fails with Python's
traceback and not with its process; a call that is slow and does not hang takes little longer than its limit.
"""


class EscapeError(RuntimeError):
    """Judged code has raised an exception that would have skipped the law, discarded the example or ended the run."""


class LawTimeout(BaseException):
    """A law has reached its time limit. Hypothesis does not catch it: it would run the example again, without limit."""


def belongs_to_judge(source: Path) -> bool:
    """Whether code in this file belongs to a law or its assertions, and not to the subject."""
    return source.parent in (LAWS.parent, LAWS)


def _raised_by_judge(error: BaseException) -> bool:
    """Whether the judge's code raised the error, itself or by calling pytest or Hypothesis."""
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    own = [file for file in files if file != __file__ and not file.startswith(LIBRARIES)]
    return bool(own) and belongs_to_judge(Path(own[-1]))


def _is_plain(error: BaseException) -> bool:
    """Whether pytest and Hypothesis treat the error as a failure of the law."""
    return isinstance(error, (Exception, pytest.fail.Exception)) and not isinstance(error, CONTROL)


@contextmanager
def escapes_are_errors() -> Iterator[None]:
    """Raise EscapeError for an exception in this block that is no failure, unless the judge or the user raised it."""
    __tracebackhide__ = True
    try:
        yield
    except (KeyboardInterrupt, LawTimeout):
        raise
    except BaseException as error:
        if _is_plain(error) or _raised_by_judge(error):
            raise
        message = f"only a law may skip, discard an example or end the run; this code raised {one_line(error)}"
        raise EscapeError(message) from error


class _Limits:
    """The time limits of a block: of all of it, and of each of the examples that it consists of."""

    def __init__(self, block: float | None, example: float | None) -> None:
        self.block, self.example = block, example
        self.deadline = math.inf if block is None else time.monotonic() + block
        self.seconds = 0.0  # the limit that will be reached first
        self.suspended = False

    def restart(self) -> None:
        """Begin an example: set the alarm, and the watchdog for code that does not return to Python after it."""
        if self.suspended:
            return
        left, self.seconds = self.deadline - time.monotonic(), self.block or 0.0
        if self.example is not None and self.example < left:
            left = self.seconds = self.example
        left = max(left, SOON)
        if _in_main_thread():
            signal.setitimer(signal.ITIMER_REAL, left, self.seconds)
        if _traceback is not None:
            faulthandler.dump_traceback_later(left + grace(self.seconds), exit=True, file=_traceback)

    def stop(self) -> None:
        """Turn off the alarm and the watchdog."""
        if _in_main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0)
        if _traceback is not None:
            faulthandler.cancel_dump_traceback_later()

    def expire(self, number: int, frame: FrameType | None) -> NoReturn:
        """Handle the alarm."""
        raise LawTimeout(f"Timeout: not finished within {self.seconds:g} s")


_limits: _Limits | None = None
_traceback: int | None = None


def end_hanging_process(descriptor: int | None) -> None:
    """Have time limits end this process if it hangs in code that does not return to Python, with a traceback first."""
    global _traceback
    _traceback = descriptor


@contextmanager
def time_limit(seconds: float | None, example: float | None = None) -> Iterator[None]:
    """
    Raise LawTimeout in this block after so many seconds, and again after as many more; None is no limit.

    Likewise if an example, which begins with the block or with `begin_example`, takes longer than its own limit.
    """
    global _limits
    if seconds is None and example is None:
        yield
        return
    before = _limits
    _limits = limits = _Limits(seconds, example)
    handler = signal.signal(signal.SIGALRM, limits.expire) if _in_main_thread() else None
    limits.restart()
    try:
        yield
    finally:
        limits.stop()
        _limits = before
        if _in_main_thread():
            signal.signal(signal.SIGALRM, handler)


def begin_example() -> None:
    """Begin to count the time of an example."""
    if _limits is not None:
        _limits.restart()


def suspend_time_limits() -> None:
    """Remove the limits of the current block, for as long as it takes: somebody debugs it."""
    if _limits is not None:
        _limits.suspended = True
        _limits.stop()


def _in_main_thread() -> bool:
    """Whether this is the main thread, the only one that signals interrupt."""
    return threading.current_thread() is threading.main_thread()


def grace(seconds: float) -> float:
    """Return for how long code may still not return to Python after its time limit, before its process is ended."""
    return max(1.0, GRACE * seconds)


def forbid_early_exit() -> None:
    """
    Let `os._exit` raise SystemExit in this process, so that judged code cannot end the run with any exit code it likes.

    Its child processes can, and another thread can end the run as failed: pytest-timeout and pytest-xdist do so. It
    stays so after the run, as for a function that judged code has registered with `atexit`.
    """
    judge, leave = os.getpid(), os._exit

    def refuse(status: int) -> NoReturn:
        if os.getpid() != judge or (status and threading.current_thread() is not threading.main_thread()):
            leave(status)
        sys.exit(f"os._exit({status})")

    os._exit = posix._exit = refuse
