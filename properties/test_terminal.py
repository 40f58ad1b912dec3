"""The summary at the end of a run: counts, what was not judged, and which of many violated laws are shown."""

from __future__ import annotations

from typing import Any

import pytest

from properties import diagnosis, terminal
from properties.entries import dtype_of
from properties.terminal import SHOWN, unfolded

MUTANTS: dict[str, Any] = {"m:One": {"broken": ["common", "rare"]}, "m:Two": {"broken": ["common"]}}


@pytest.fixture(autouse=True)
def two_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the table of all mutants by one of two: `common` is violated by both, `rare` by one, others by none."""
    monkeypatch.setattr(diagnosis, "mutant_table", lambda: {"mutants": MUTANTS})


def entry(law: str, outcome: str = "passed", subject: str = "mine", **fields: Any) -> dict[str, Any]:
    """An entry of the record, with the fields that the summary reads."""
    empty = {"failure_kind": "", "message": "", "known_issues": [], "notes": [], "not_drawn": [], "worst_ratio": 0.0}
    counts = {"examples": 10, "forgiven": 0, "deviating": 0, "partly_judged": 0, "compiled_graphs": 0}
    own = {"law": law, "outcome": outcome, "subject": subject, "statement": f"Title of {law}.\n\nMore."}
    return empty | counts | own | fields


def report(law: str, subject: str = "mine", message: str = "") -> pytest.TestReport:
    """A failed law's report; a test that is no law if `law` is empty."""
    properties: list[tuple[str, Any]] = [("law", entry(law, "failed", subject, message=message))] if law else []
    return pytest.TestReport(f"{law}[{subject}]", ("", 0, ""), {}, "failed", "long", "call", user_properties=properties)


def test_verdict_counts_known_deviations_apart_from_known_issues() -> None:
    deviation = [{"reason": "ours", "link": "", "place": "known.toml: deviation 1", "seen": True}]
    entries = [
        entry("partly", deviating=1, known_deviations=deviation),
        entry("entirely", deviating=1, forgiven=9, known_deviations=deviation),
        entry("silent", known_deviations=[deviation[0] | {"seen": False}]),
    ]

    assert terminal._verdict(entries) == (
        "2 laws checked, 0 violated, 2 with known deviations, 1 not judged here: known deviation; "
        "30 examples (9 forgiven, 2 with a known deviation)"
    )


NOT_JUDGED = "RuntimeError: not judged: the GPU no longer works\nmore"


def test_verdict_counts_forgiven_examples_and_laws_that_were_not_judged() -> None:
    issue = [{"title": "bug"}]
    entries = [
        entry("holds", partly_judged=1),
        entry("partly", forgiven=4, known_issues=issue),
        entry("entirely", forgiven=10, known_issues=issue),
        entry("stopped", "failed", failure_kind="crash", message=NOT_JUDGED),
        entry("violated", "failed", failure_kind="crash"),
        entry("violated", "failed", message=NOT_JUDGED),
    ]

    assert terminal._verdict(entries) == (
        "3 laws checked, 1 violated (1 crashed), 2 with known issues, 1 not judged here: known issue; "
        "40 examples (14 forgiven, 2.50% judged only in part)"
    )


def test_law_with_one_example_that_was_not_forgiven_was_judged() -> None:
    entries = [entry("law", forgiven=10), entry("law", forgiven=9)]

    assert terminal._verdict(entries) == "1 law checked, 0 violated; 20 examples (19 forgiven)"


def test_laws_that_were_not_judged_are_one_line_for_each_reason() -> None:
    entries = [entry(law, "failed", message=NOT_JUDGED) for law in ("a", "b", "b")]
    entries += [entry("c", not_drawn=["an empty batch raises"], notes=["a note"]), entry("d")]

    assert terminal._remarks(entries) == [
        "2 laws not judged: the GPU no longer works",
        "not drawn in 1 law: an empty batch raises",
        "a note",
    ]


def test_fault_is_diagnosed_in_float32_if_it_shows_there_and_else_in_another_dtype(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        terminal, "diagnose", lambda entries: ({dtype_of(e) for e in entries}, [e["law"] for e in entries])
    )
    stacks = [("a", "bfloat16"), ("a", "float32"), ("b", "bfloat16"), ("c", "float32, judged as tf32")]
    entries = [
        entry(law, outcome, subject, stack=f"{subject} on cpu in {dtype}")
        for subject, dtype in stacks
        for law, outcome in [("law", "failed"), ("other", "passed")]
    ]
    entries.append(entry("law", subject="b", stack="b on cpu in float32"))

    assert terminal._diagnoses(entries) == {
        "a": ({"float32"}, ["law", "other"]),
        "b": ({"bfloat16"}, ["law", "other"]),
        "c": ({"float32"}, ["law", "other"]),
    }


def test_violated_laws_are_listed_the_most_specific_first() -> None:
    failed = [entry(law, "failed") for law in ("common", "rare", "new", "new")]

    lines = terminal._violated([*failed, entry("stopped", "failed", message=NOT_JUDGED), entry("holds")])

    assert lines == [
        "3 laws violated, those that fewest mutants violate first:",
        "  new: Title of new.",
        "  rare: Title of rare.",
        "  common: Title of common.",
    ]


def test_names_of_further_violated_laws_follow_in_one_line() -> None:
    laws = ["common", *(f"law{number:02}" for number in range(SHOWN + 1))]

    lines = terminal._violated([entry(law, "failed") for law in laws])

    assert len(lines) == SHOWN + 2
    assert lines[-1] == f"  and 2 more: law{SHOWN:02}, common"


def test_reports_of_the_most_specific_laws_are_printed() -> None:
    reports = [report("common"), report("rare"), *(report(f"law{number}") for number in range(SHOWN - 1))]

    shown = [report.nodeid for report in unfolded(reports)]

    assert shown == [*(f"law{number}[mine]" for number in range(SHOWN - 1)), "rare[mine]"]


def test_each_law_has_a_printed_report_before_one_has_two() -> None:
    reports = [report("rare") for _ in range(SHOWN)] + [report("common")]

    shown = [report.nodeid for report in unfolded(reports)]

    assert shown == ["rare[mine]"] * (SHOWN - 1) + ["common[mine]"]


def test_reports_of_other_tests_and_of_each_subject_are_printed_but_not_of_laws_not_judged() -> None:
    reports = [report("law", subject) for subject in ("mine", "yours") for _ in range(SHOWN + 5)]
    reports += [report("stopped", message=NOT_JUDGED), report("")]

    shown = [report.nodeid for report in unfolded(reports)]

    assert shown == ["[mine]"] + ["law[mine]"] * SHOWN + ["law[yours]"] * SHOWN
