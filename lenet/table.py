"""Plain text for a terminal: tables, and counts with their nouns."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of equal length: the first column is aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: `1 law`, `2 laws`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
