"""The laws by the names of their functions, read from their files without importing them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from properties.judged_code import LAWS


@dataclass(frozen=True)
class LawSource:
    """Where a law is, and what it draws."""

    path: Path
    arguments: frozenset[str]  # the names of its arguments other than the stack


@cache
def laws() -> dict[str, LawSource]:
    """Return all laws by the names of their functions, such as `test_logits_agree_with_the_oracle`."""
    return {
        node.name: LawSource(path, frozenset(a.arg for a in node.args.args + node.args.kwonlyargs) - {"stack"})
        for path in sorted(LAWS.glob("test_*.py"))
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def short(law: str) -> str:
    """Return the name of a law as users write it, without its prefix `test_`."""
    return law.removeprefix("test_")


def matching(pattern: str) -> list[str]:
    """Return the laws that a name or a pattern (`*`, `?`), with or without the prefix `test_`, matches."""
    return [law for law in laws() if fnmatchcase(law, pattern) or fnmatchcase(short(law), pattern)]


def find(pattern: str) -> list[str]:
    """Return the laws that a name or pattern matches; raises ValueError, with similar names, if none is."""
    if found := matching(pattern):
        return found
    names, wanted = list(map(short, laws())), short(pattern)
    close = get_close_matches(wanted, names, n=3) or [name for name in names if wanted and wanted in name][:3]
    similar = f"similar: {', '.join(close)}" if close else "it needs * around a part of a name"
    raise ValueError(f"{pattern}: no law has this name; {similar}; `lenet-properties explain` lists all laws")
