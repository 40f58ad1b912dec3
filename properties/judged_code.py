"""
Code that is judged must neither skip a law, nor end a run, nor hang: whatever it raises violates the law.

Only laws skip (`pytest.skip`) and discard examples (`assume`), and only the user ends a run. `escapes_are_errors`
therefore turns the exceptions by which pytest and Hypothesis do so into an EscapeError, unless a law has raised them.
"""

from __future__ import annotations

import os
import posix
import signal
import sys
import threading
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


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise LawTimeout in this block after so many seconds, and again after as many more; None is no limit."""
    if seconds is None:
        yield
        return

    def expire(number: int, frame: FrameType | None) -> NoReturn:
        raise LawTimeout(f"Timeout: not finished within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
