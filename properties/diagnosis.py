"""
Where the fault of a rejected subject is likeliest: where that of the mutants is which break nearly the same laws.

`tox run -e mutants` writes the table of what each mutant breaks; two patterns of broken laws are as near as their
weighted Jaccard similarity: the weight of the laws that both break, as a share of the weight of those that either does.
A law weighs the more the fewer mutants break it: -log of their share (Spärck Jones 1972, "A statistical interpretation
of term specificity and its application in retrieval").
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "mutants" / "table.json"
SHOWN = 3
"""How many of the nearest mutants are named."""


@dataclass(frozen=True)
class Diagnosis:
    """What a subject breaks, and what that is like."""

    broken: dict[str, tuple[int, int]]  # by what the laws are about: how many are broken, of how many
    place: str  # where to look, in words; empty where nothing broken is broken by any mutant
    nearest: list[tuple[str, float]]  # mutants, and how near they are, from 0 to 1

    def lines(self, spec: str) -> list[str]:
        """The diagnosis as its reader sees it."""
        some = [f"{group} ({count} of {of})" for group, (count, of) in self.broken.items() if count]
        none = [group for group, (count, _) in self.broken.items() if not count]
        lines = [f"{spec} breaks laws about {', '.join(some)}"]
        lines += [f"  it keeps all about {', '.join(none)}"] if none else []
        if self.place:
            lines.append(f"  likeliest place of the fault: {self.place}")
            alike = ", ".join(f"{name} ({share:.0%})" for name, share in self.nearest)
            lines.append(f"  mutants that break the most alike: {alike}")
        return lines


@cache
def known() -> dict[str, Any]:
    """The table of what each mutant breaks, as the last whole run over them wrote it."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def diagnose(entries: Iterable[Mapping[str, Any]]) -> Diagnosis:
    """The diagnosis of a subject from its entries in a run's record."""
    judged = [entry for entry in entries if entry["outcome"] != "skipped"]
    groups = {entry["law"]: entry["group"] for entry in judged}
    broken = {entry["law"] for entry in judged if entry["outcome"] == "failed"}
    of, counts = Counter(groups.values()), Counter(groups[law] for law in broken)
    near = nearest(broken, {spec: patterns & groups.keys() for spec, patterns in patterns_of(known()).items()})
    return Diagnosis(
        {group: (counts[group], of[group]) for group in of},
        likeliest(near, known()),
        [(spec.removeprefix("properties.mutants."), share) for spec, share in near[:SHOWN]],
    )


def patterns_of(table: Mapping[str, Any]) -> dict[str, set[str]]:
    """By mutant, the laws that it breaks."""
    return {spec: set(row["broken"]) for spec, row in table["mutants"].items()}


def nearest(broken: Collection[str], patterns: Mapping[str, Collection[str]]) -> list[tuple[str, float]]:
    """The mutants that break some of the same laws, with how near each is, from 0 to 1, the nearest first."""
    breaking = Counter(law for pattern in patterns.values() for law in pattern)

    def weight(laws: Collection[str]) -> float:
        return sum(-math.log((breaking[law] + 1) / (len(patterns) + 2)) for law in sorted(laws))

    shares = {
        spec: weight(set(broken) & set(pattern)) / weight(set(broken) | set(pattern))
        for spec, pattern in patterns.items()
        if set(broken) & set(pattern)
    }
    return sorted(shares.items(), key=lambda item: -item[1])


def likeliest(near: list[tuple[str, float]], table: Mapping[str, Any]) -> str:
    """Where the faults of the nearest mutants are; of several as near as the nearest, where most of them are."""
    kinds = Counter(table["mutants"][spec]["kind"] for spec, share in near if share == near[0][1])
    return str(table["kinds"][kinds.most_common(1)[0][0]]) if kinds else ""


def told_right(table: Mapping[str, Any]) -> int:
    """Of how many mutants, each taken out of the table in turn, the likeliest place by the others is its own."""
    patterns = patterns_of(table)
    right = 0
    for spec, pattern in patterns.items():
        others = {other: laws for other, laws in patterns.items() if other != spec}
        right += likeliest(nearest(pattern, others), table) == table["kinds"][table["mutants"][spec]["kind"]]
    return right
