"""
How commands end: what they do not foresee is one line on stderr and exit code 2.

Other exit codes keep their meaning: the gate's 1 means slower and nothing else. This module imports the standard
library alone, so that it works if an import of the command fails.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

ERROR, STOPPED = 2, 130
"""The exit codes of an error, and of Ctrl-C."""


def one_line(text: str) -> str:
    """Return the text on one line, with every character that a terminal or an encoding does not show escaped."""
    shown = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def unforeseen(error: BaseException) -> str:
    """Return an unforeseen error in one line: its type, its message, and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else (None, None)
    if isinstance(error, SyntaxError):
        file, line = error.filename, error.lineno
    place = f" ({Path(file).name}, line {line})" if file else ""
    return one_line(f"{traceback.format_exception_only(error)[-1]}{place}")


def end_in_one_line(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    """Report an exception in one line and exit with code 2, or 130 after Ctrl-C: a `sys.excepthook`."""
    try:
        _flush()
    except (OSError, ValueError):
        _discard_output()
    stopped = isinstance(error, KeyboardInterrupt)
    with suppress(OSError, ValueError):  # stderr may be closed
        print("stopped" if stopped else f"error: {unforeseen(error)}", file=sys.stderr)
    raise SystemExit(STOPPED if stopped else ERROR)


def run(main: Callable[[], int]) -> None:
    """Exit with the code that `main` returns, or with 2 if its output cannot be written to the end."""
    code = main()
    _flush()
    sys.exit(code)


def _flush() -> None:
    if sys.stdout is not None:  # it is None if the command was started with a closed one
        sys.stdout.flush()


def _discard_output() -> None:
    """Let stdout write to nowhere: the interpreter flushes it once more at its end."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
