"""The laws of a run: their results on each stack, and what `laws.json` or `engines.json` says as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from properties.entries import reason_left_out, reason_not_judged, seen_deviations

CHAPTERS = {
    "network": "network structure",
    "forward": "forward pass",
    "exactness": "exactness",
    "symmetries": "symmetries",
    "side_effects": "side effects",
    "layouts": "memory layouts",
    "gradients": "gradients",
    "transforms": "transforms",
    "accumulation": "gradient accumulation",
    "update": "parameter update",
    "optimizer": "optimizer",
    "recipes": "schedules, clipping, averages",
    "module": "modules and parameters",
    "training": "training in any order",
    "learning": "learning",
    "statistics": "typical and mean errors",
    "nonfinite": "non-finite values",
    "errors": "errors",
    "mixed_precision": "mixed precision",
    "data": "loading data",
    "hooks": "hooks",
}
"""The heading of each file `properties/laws/test_<chapter>.py`, in the order of the report."""

VIOLATED, HOLDS, NOT_CHECKED = "violated", "holds", "not checked"
NOT_JUDGED = "not judged"
"""The outcome on a stack on which the law could not be judged: the GPU had stopped, or no image can be run."""

FORGIVEN = "not judged: known issue"
"""The outcome on a stack on which every example showed a known issue."""

DEVIATES = "not judged: known deviation"
"""The outcome on a stack on which every example showed a known issue or, in some of them, known deviations alone."""

LEFT_OUT = "not judged: left out"
"""The outcome on a stack on which the user has left the law out."""

UNCHECKED = (LEFT_OUT, NOT_CHECKED)
"""The outcomes of a law that did not run."""

OUTCOMES = (VIOLATED, NOT_JUDGED, DEVIATES, FORGIVEN, HOLDS, LEFT_OUT, NOT_CHECKED)
"""The outcomes of a law on a stack; over several stacks, the first of them counts."""

Entry = dict[str, Any]
"""An entry of `laws.json` or `engines.json`: a law on one stack, in one of its parametrized forms."""


@dataclass(frozen=True)
class Issue:
    """A known issue that a stack showed."""

    title: str
    reference: str  # such as pytorch/pytorch#191763
    fixed_in: str = ""  # the first version without the issue; empty if no version fixes it

    def __str__(self) -> str:
        return f"{self.title} ({self.reference})"


@dataclass(frozen=True)
class Deviation:
    """A known deviation that a stack showed."""

    reason: str
    link: str  # or empty

    def __str__(self) -> str:
        return f"{self.reason} ({self.link})" if self.link else self.reason


@dataclass(frozen=True)
class Law:
    """A law with its results on all stacks and in all forms in which it was checked."""

    name: str  # of its test function
    chapter: str
    statement: str  # the docstring of its test function
    entries: list[Entry]

    @property
    def title(self) -> str:
        """The first paragraph of the statement, on one line and without its final period."""
        return " ".join(self.statement.split("\n\n")[0].split()).removesuffix(".") or self.name

    @property
    def details(self) -> str:
        """The statement without its first paragraph."""
        return self.statement.partition("\n\n")[2]

    @property
    def violations(self) -> list[Entry]:
        """The entries in which the law failed."""
        return [entry for entry in self.entries if _outcome([entry]) == VIOLATED]

    @property
    def stacks(self) -> list[str]:
        """The stacks of the entries, also of those that were skipped."""
        return list(dict.fromkeys(entry["stack"] for entry in self.entries))

    def outcome_on(self, stack: str) -> str:
        """The outcome on a stack, one of OUTCOMES."""
        return _outcome([entry for entry in self.entries if entry["stack"] == stack])

    @property
    def outcome(self) -> str:
        """The first of OUTCOMES that the law has on any stack."""
        return min(map(self.outcome_on, self.stacks), key=OUTCOMES.index)

    @property
    def not_judged(self) -> list[str]:
        """The stacks on which the law was not judged, each with the reason."""
        reasons = {
            entry["stack"]: f"{NOT_JUDGED}: {reason}" for entry in self.entries if (reason := reason_not_judged(entry))
        }
        outcomes = {stack: self.outcome_on(stack) for stack in self.stacks}
        reasons |= {stack: outcome for stack, outcome in outcomes.items() if outcome in (FORGIVEN, DEVIATES)}
        reasons |= {e["stack"]: f"{LEFT_OUT}: {reason_left_out(e)}" for e in self.entries if reason_left_out(e)}
        shown = (NOT_JUDGED, FORGIVEN, DEVIATES, LEFT_OUT)
        return [f"{stack}: {reasons[stack]}" for stack in self.stacks if outcomes[stack] in shown]

    @property
    def not_drawn(self) -> list[str]:
        """What was not drawn because the network raises for it, each with the stack."""
        return list(dict.fromkeys(f"{e['stack']}: {line}" for e in self.entries for line in e.get("not_drawn", [])))

    @property
    def skip_reasons(self) -> list[str]:
        """Why entries were skipped, each reason once, other than the user's own reasons."""
        reasons = {entry["reason"] for entry in self.entries if entry["reason"] and not reason_left_out(entry)}
        return sorted(reason.removeprefix("Skipped: ") for reason in reasons)

    @property
    def known_issues(self) -> list[Issue]:
        """The known issues that the law showed, each once."""
        return _issues(self.entries)

    def exceptions_on(self, stack: str) -> str:
        """What the law showed on a stack that was forgiven: a known issue, a known deviation, or nothing."""
        own = [entry for entry in self.entries if entry["stack"] == stack]
        return "a known deviation" if any(map(seen_deviations, own)) else "a known issue" if _issues(own) else ""

    @property
    def known_deviations(self) -> list[Deviation]:
        """The known deviations that the law showed, each once."""
        shown = {Deviation(one["reason"], one["link"]) for entry in self.entries for one in seen_deviations(entry)}
        return sorted(shown, key=str)

    @property
    def deviating(self) -> int:
        """The number of examples in which a known deviation was forgiven, and no known issue."""
        return sum(entry.get("deviating", 0) for entry in self.entries)

    @property
    def examples(self) -> int:
        """The number of judged examples."""
        return sum(entry["examples"] for entry in self.entries if not reason_not_judged(entry))

    @property
    def partly_judged(self) -> int:
        """The number of examples in which some numbers could not be judged."""
        return sum(entry["partly_judged"] for entry in self.entries)

    @property
    def forgiven(self) -> int | None:
        """The number of examples in which a known issue was forgiven; None if an older version recorded the law."""
        counts = [entry.get("forgiven", None if entry["known_issues"] else 0) for entry in self.entries]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def seconds(self) -> float:
        """The time that all entries took together."""
        return sum(float(entry["seconds"]) for entry in self.entries)

    @property
    def worst_ratio(self) -> float:
        """The largest error in rounding budgets; infinity where JSON has null."""
        ratios = [entry["worst_ratio"] for entry in self.entries]
        return max(math.inf if ratio is None else float(ratio) for ratio in ratios)


def _issues(entries: Iterable[Entry]) -> list[Issue]:
    issues = {
        Issue(issue["title"], issue["reference"], issue.get("fixed_in", ""))
        for entry in entries
        for issue in entry["known_issues"]
    }
    return sorted(issues, key=str)


def _outcome(entries: Sequence[Entry]) -> str:
    """The outcome of a law's entries on one stack."""
    failed = [entry for entry in entries if entry["outcome"] == "failed"]
    judged = [entry for entry in entries if entry["outcome"] == "passed"]
    if failed:
        return NOT_JUDGED if all(map(reason_not_judged, failed)) else VIOLATED
    if not judged:
        return LEFT_OUT if any(map(reason_left_out, entries)) else NOT_CHECKED
    examples, forgiven, deviating = (
        sum(entry.get(name, 0) for entry in judged) for name in ("examples", "forgiven", "deviating")
    )
    if 0 < examples <= forgiven + deviating:
        return DEVIATES if deviating else FORGIVEN
    return HOLDS


def group_laws(entries: Iterable[Entry]) -> list[Law]:
    """The entries grouped by law, in the order of the chapters; unknown chapters come last."""
    laws: dict[str, Law] = {}
    for entry in entries:
        law = laws.setdefault(entry["law"], Law(entry["law"], entry["chapter"], entry["statement"], []))
        law.entries.append(entry)
    order = list(CHAPTERS)
    return sorted(laws.values(), key=lambda law: order.index(law.chapter) if law.chapter in order else len(order))


@dataclass(frozen=True)
class LawResults:
    """What `laws.json` or `engines.json` says about all laws."""

    laws: list[Law]  # in the order of CHAPTERS
    finished: bool
    errors: list[str]  # tests that failed without a verdict

    def with_outcome(self, outcome: str) -> list[Law]:
        """The laws with one of OUTCOMES."""
        return [law for law in self.laws if law.outcome == outcome]

    @property
    def violated(self) -> list[Law]:
        """The laws that are violated on at least one stack."""
        return self.with_outcome(VIOLATED)

    @property
    def holding(self) -> list[Law]:
        """The laws that hold on every stack on which they were checked."""
        return self.with_outcome(HOLDS)

    @property
    def checked(self) -> list[Law]:
        """The laws that were not skipped on every stack."""
        return [law for law in self.laws if law.outcome not in UNCHECKED]

    @property
    def stacks(self) -> list[str]:
        """The stacks on which a law was checked, in words."""
        names = {stack for law in self.laws for stack in law.stacks if law.outcome_on(stack) not in UNCHECKED}
        return sorted(names - {""})

    @property
    def known_issues(self) -> list[Issue]:
        """The known issues that any law showed, each once."""
        return sorted({issue for law in self.laws for issue in law.known_issues}, key=str)

    @property
    def known_deviations(self) -> list[Deviation]:
        """The known deviations that any law showed, each once."""
        return sorted({deviation for law in self.laws for deviation in law.known_deviations}, key=str)

    def deviating_laws(self, deviation: Deviation) -> list[Law]:
        """The laws that showed a known deviation."""
        return [law for law in self.laws if deviation in law.known_deviations]

    def laws_with(self, issue: Issue) -> list[Law]:
        """The laws that showed a known issue."""
        return [law for law in self.laws if issue in law.known_issues]

    @property
    def common_skip_reasons(self) -> list[str]:
        """The reasons for which every law was skipped on some stacks."""
        return sorted(set.intersection(*(set(law.skip_reasons) for law in self.laws)))

    @property
    def notes(self) -> list[str]:
        """The figures that laws recorded, each with its stack."""
        return [f"{entry['stack']}: {note}" for law in self.laws for entry in law.entries for note in entry["notes"]]

    def chapters(self) -> list[tuple[str, list[Law]]]:
        """The laws of each chapter, with the chapter's heading."""
        by_chapter = groupby(self.laws, key=lambda law: law.chapter)
        return [(CHAPTERS.get(chapter, chapter), list(laws)) for chapter, laws in by_chapter]


def total_forgiven(laws: Iterable[Law]) -> int | None:
    """The number of examples of these laws in which a known issue was forgiven; None if it is not known of all."""
    counts = [law.forgiven for law in laws]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
