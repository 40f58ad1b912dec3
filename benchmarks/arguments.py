"""Types of command-line options that several commands share."""

from __future__ import annotations


def positive_int(text: str) -> int:
    """Return the integer that the text denotes; raises ValueError unless it is at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
