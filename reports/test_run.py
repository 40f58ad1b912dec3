"""The data of a run: chapters, and what a law and a run derive from their entries."""

from __future__ import annotations

from pathlib import Path

import properties.laws
from reports.conftest import entry
from reports.laws import CHAPTERS, Issue, Law


def test_every_chapter_of_laws_has_a_heading() -> None:
    files = Path(properties.laws.__path__[0]).glob("test_*.py")

    assert {file.stem.removeprefix("test_") for file in files} == CHAPTERS.keys()


def test_title_is_first_paragraph_of_statement_on_one_line() -> None:
    law = Law("test_sums", "forward", "Sums are\nexact.\n\nRejects: a narrow\naccumulator.", [])

    assert law.title == "Sums are exact"
    assert law.details == "Rejects: a narrow\naccumulator."


def test_known_issue_of_two_entries_is_listed_once() -> None:
    issue = {"title": "Steps are lost", "reference": "pytorch/pytorch#1", "fixed_in": "2.14"}
    law = Law("test_sums", "forward", "Sums hold.", [entry("test_sums", known_issues=[issue])] * 2)

    assert law.known_issues == [Issue("Steps are lost", "pytorch/pytorch#1", "2.14")]
