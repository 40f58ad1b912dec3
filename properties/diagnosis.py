"""
The most likely place of the fault of a rejected subject, found by comparing it with mutants, whose faults are known.

The place is that of the mutants whose violated laws are most similar to the subject's. `tox run -e mutants` writes the
table of the laws that each mutant violates. The similarity of two sets of violated laws is their weighted Jaccard
index: the weight of the laws in both sets divided by the weight of the laws in either. A law has weight -log(p), where
p is the fraction of mutants that violate it (Spärck Jones 1972, "A statistical interpretation of term specificity and
its application in retrieval"): a law that few mutants violate counts more. If only some laws were run, the mutants are
compared by these alone, and the diagnosis says how many they are. Like is compared with like: the laws that a subject
violates in one dtype with those that each mutant violates in it.
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

from properties.entries import is_violated, reason_not_judged

TABLE = Path(__file__).parent / "mutants" / "table.json"
SHOWN = 3
"""The number of mutants that a diagnosis names."""


@dataclass(frozen=True)
class Diagnosis:
    """Which laws a subject violates, and the most likely place of its fault."""

    violated: dict[str, tuple[int, int]]  # by chapter: the number of violated laws, and of laws that were run
    place: str  # a description; empty if no mutant violates any of the violated laws
    nearest: list[tuple[str, float]]  # the most similar mutants, each with its similarity from 0 to 1
    ties: int  # the number of mutants that are as similar as the first
    run: int  # the number of laws of the table that were run
    of: int  # the number of laws in the table

    def lines(self, subject: str) -> list[str]:
        """Return the diagnosis as it is printed."""
        some = [f"{chapter} ({count} of {of})" for chapter, (count, of) in self.violated.items() if count]
        none = [chapter for chapter, (count, _) in self.violated.items() if not count]
        lines = [f"{subject} violates laws in {', '.join(some)}"]
        lines += [f"  violates no law in {', '.join(none)}"] if none else []
        if self.run < self.of and self.ties > SHOWN:
            lines.append(f"  no place of the fault: {self.ties} mutants are equally similar")
        elif self.place:
            lines.append(f"  most likely place of the fault: {self.place}")
            similar = ", ".join(f"{name} ({similarity:.0%})" for name, similarity in self.nearest)
            lines.append(f"  most similar mutants (similarity; 100% = the same violated laws): {similar}")
        if self.run < self.of:
            lines.append(
                f"  the diagnosis rests on {self.run} of {self.of} laws; it is reliable only if all were judged"
            )
        return lines


@cache
def mutant_table() -> dict[str, Any]:
    """Return the table of the laws that each mutant violates, as `tox run -e mutants` wrote it."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def diagnose(entries: Iterable[Mapping[str, Any]]) -> Diagnosis:
    """
    Return the diagnosis of a subject from its entries in one dtype in a run's record.

    It is compared with what each mutant violates in the dtype in which all laws judged it. A law that does not apply
    counts as run.
    """
    run = [entry for entry in entries if not reason_not_judged(entry)]
    chapters = {entry["law"]: entry["chapter"] for entry in run if entry["outcome"] != "skipped"}
    violated = {entry["law"] for entry in run if is_violated(entry)}
    of, counts = Counter(chapters.values()), Counter(chapters[law] for law in violated)
    table = mutant_table()
    near = nearest(violated, {mutant: laws & chapters.keys() for mutant, laws in violations(table).items()})
    return Diagnosis(
        {chapter: (counts[chapter], of[chapter]) for chapter in of},
        likely_place(near, table),
        [(mutant.removeprefix("properties.mutants."), similarity) for mutant, similarity in near[:SHOWN]],
        sum(similarity == near[0][1] for _, similarity in near),
        len({entry["law"] for entry in run} & table["laws"].keys()),
        len(table["laws"]),
    )


def most_specific_first(laws: Iterable[str]) -> list[str]:
    """Return the laws, those that fewest mutants violate first."""
    counts = Counter(law for broken in violations(mutant_table()).values() for law in broken)
    return sorted(set(laws), key=lambda law: (counts[law], law))


def violations(table: Mapping[str, Any], dtype: str = "") -> dict[str, set[str]]:
    """Return the laws that each mutant violates in a dtype, by default its own; without mutants that violate none."""
    by_mutant = {
        mutant: set(row["broken"] if not dtype or dtype == row["dtype"] else row.get("other_dtypes", {}).get(dtype, ()))
        for mutant, row in table["mutants"].items()
    }
    return {mutant: laws for mutant, laws in by_mutant.items() if laws}


def nearest(violated: Collection[str], by_mutant: Mapping[str, Collection[str]]) -> list[tuple[str, float]]:
    """Return the mutants that violate some of these laws, with their similarity from 0 to 1, most similar first."""
    counts = Counter(law for laws in by_mutant.values() for law in laws)

    def weight(laws: Collection[str]) -> float:
        return sum(-math.log((counts[law] + 1) / (len(by_mutant) + 2)) for law in sorted(laws))

    similarity = {
        mutant: weight(set(violated) & set(laws)) / weight(set(violated) | set(laws))
        for mutant, laws in by_mutant.items()
        if set(violated) & set(laws)
    }
    return sorted(similarity.items(), key=lambda item: -item[1])


def likely_place(near: list[tuple[str, float]], table: Mapping[str, Any]) -> str:
    """Return the place of the most similar mutant's fault; of several equally similar ones, the most frequent place."""
    kinds = Counter(table["mutants"][mutant]["kind"] for mutant, similarity in near if similarity == near[0][1])
    return str(table["kinds"][kinds.most_common(1)[0][0]]) if kinds else ""


def correct_diagnoses(table: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of mutants whose fault's place is correct if diagnosed from all other mutants, and of all."""
    by_mutant = violations(table)
    correct = 0
    for mutant, laws in by_mutant.items():
        others = {other: theirs for other, theirs in by_mutant.items() if other != mutant}
        place = likely_place(nearest(laws, others), table)
        correct += place == table["kinds"][table["mutants"][mutant]["kind"]]
    return correct, len(by_mutant)
