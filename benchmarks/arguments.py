"""Types of command-line options that several commands share."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from pathlib import Path

from lenet.files import writable

UNITS = {"": 1.0, "s": 1.0, "m": 60.0}
"""The seconds of each unit of a duration."""

LONGEST = 30 * 24 * 3600.0
"""The longest duration in seconds, a month: above it, a typing error is likelier than a wish."""


def positive_int(text: str) -> int:
    """Return the integer that the text denotes; raises ArgumentTypeError unless it is at least 1."""
    return _int(text, 1)


def whole_number(text: str) -> int:
    """Return the integer that the text denotes; raises ArgumentTypeError unless it is at least 0."""
    return _int(text, 0)


def _int(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return number


def duration(text: str) -> float:
    """Parse a positive duration such as `120s`, `2m` or `120`, in seconds; raises ArgumentTypeError."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+|[0-9]+\.)(s|m|)", text, re.ASCII)
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST:
        raise ArgumentTypeError(
            f"{text!r} is not a positive duration: write seconds or minutes, as 120s or 2m, up to {LONGEST / 60:.0f}m"
        )
    return seconds


def file_problem(path: Path) -> str:
    """Return why a file cannot be written, or replaced, at this path; an empty string if it can."""
    if path.is_dir():
        return "is a folder; name a file"
    if path.exists() and not path.is_file():
        return "is not a regular file"
    return "" if writable(path.parent) else "not in a writable folder"
