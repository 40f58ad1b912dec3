"""Laws that do not run, listed in a file with their reasons (`--skip-laws FILE`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from properties import law_index
from properties.entries import LEFT_OUT


def load(path: Path) -> dict[str, str]:
    """Return the laws that the file lists, each with its reason; a usage error names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "not UTF-8"
        raise pytest.UsageError(f"--skip-laws {path}: {problem}") from None
    reasons: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        pattern, _, reason = (part.strip() for part in line.partition("#"))
        if not pattern:
            continue
        laws = law_index.matching(pattern)
        if not laws:
            raise pytest.UsageError(f"--skip-laws {path}: line {number}: {pattern!r} matches no law")
        reasons = dict.fromkeys(laws, " ".join(reason.split()) or f"listed in {path}") | reasons
    return reasons


def mark(item: pytest.Item, reasons: dict[str, str]) -> None:
    """Skip the item if it is one of these laws, on a stack that would be judged."""
    if not isinstance(item, pytest.Function) or item.originalname not in reasons:
        return
    if item.callspec.params.get("stack") is not None:
        item.add_marker(pytest.mark.skip(reason=f"{LEFT_OUT}{reasons[item.originalname]}"), append=False)
