"""
Which exact counters of head may be higher than base's, and why: the file `benchmarks/accepted.toml` of a repository.

    [training-step-64."peak memory"]
    at_most = 1_200_000
    reason = "the padded images are kept for the backward pass"

A rise up to `at_most` is accepted, a higher one fails. Once base has the change, nothing rises, and the entry can go.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.counters import UNITS

FILE = Path("benchmarks/accepted.toml")
"""The file, from the folder of the repository that is judged."""

EXAMPLE = 'write [forward-1.operators] with at_most = 64 and reason = "..." below it'


@dataclass(frozen=True)
class Acceptance:
    """Up to which value a counter may rise, and why."""

    at_most: int
    reason: str


def read(repository: Path, benchmarks: Collection[str]) -> Mapping[str, Mapping[str, Acceptance]]:
    """Return a repository's accepted rises by benchmark and counter; raises ValueError, in one line."""
    path = repository / FILE
    if not path.exists():
        return {}
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    return {name: _entries(path, name, entries, benchmarks) for name, entries in content.items()}


def _entries(path: Path, name: str, entries: object, benchmarks: Collection[str]) -> Mapping[str, Acceptance]:
    if name not in benchmarks:
        raise ValueError(f"{path}: {name}: no such benchmark; there are {', '.join(benchmarks)}")
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: {name}: is not a table of counters; {EXAMPLE}")
    return {counter: _acceptance(path, name, counter, entry) for counter, entry in entries.items()}


def _acceptance(path: Path, name: str, counter: str, entry: object) -> Acceptance:
    if counter not in UNITS:
        raise ValueError(f"{path}: {name}: no counter is named {counter}; there are {', '.join(UNITS)}")
    if not isinstance(entry, dict) or entry.keys() != {"at_most", "reason"}:
        raise ValueError(f"{path}: {name}.{counter}: needs at_most and reason alone; {EXAMPLE}")
    at_most, reason = entry["at_most"], entry["reason"]
    if type(at_most) is not int or not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"{path}: {name}.{counter}: at_most is not a whole number, or reason no text; {EXAMPLE}")
    return Acceptance(at_most, " ".join(reason.split()))
