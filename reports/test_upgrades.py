"""Upgrades of older formats: a published run of format 2 loads, validates and renders like one of today."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from lenet.fingerprint import FORMAT
from properties.diagnosis import mutant_table
from properties.known_issues import KNOWN_ISSUES
from reports.commands import diff, report
from reports.conftest import page, parsed
from reports.history import PAGES
from reports.laws import CHAPTERS
from reports.loading import load, read
from reports.upgrades import OLDEST, UPGRADES, upgrade

PUBLISHED = Path(__file__).parent / "runs" / "2026-11-23_amd-epyc_torch-2.13.0"
RENAMED = json.loads(resources.files("reports").joinpath("renamed.json").read_text())


def test_every_older_format_has_a_step() -> None:
    assert list(UPGRADES) == list(range(OLDEST, FORMAT))


def test_renamed_laws_chapters_and_known_issues_exist() -> None:
    assert set(RENAMED["laws"].values()) <= mutant_table()["laws"].keys()
    assert set(RENAMED["chapters"].values()) <= CHAPTERS.keys()
    assert set(RENAMED["known_issues"].values()) <= {issue.title for issue in KNOWN_ISSUES}


def test_published_run_has_laws_of_today() -> None:
    """By their names and chapters of today; some laws were added later."""
    run = load(PUBLISHED)

    assert {law.name: law.chapter for law in run.laws.laws}.items() <= mutant_table()["laws"].items()
    assert run.engines is not None
    assert {law.name for law in run.engines.laws} <= mutant_table()["laws"].keys()


@pytest.mark.slow
def test_published_run_renders(tmp_path: Path) -> None:
    """Its engine `autocast` violates a law, and two operations of the engine `compiled` gave a wrong result."""
    for file in PUBLISHED.glob("*.json"):
        shutil.copy(file, tmp_path)

    assert report([str(tmp_path)]) == 1
    assert all((tmp_path / name).is_file() for name in PAGES)
    assert parsed(tmp_path).external == []
    assert "mathdefault" not in page(tmp_path)  # Matplotlib's formulas, which would be shown as they are


@pytest.mark.slow
def test_published_run_does_not_differ_from_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert diff([str(PUBLISHED), str(PUBLISHED)]) == 0

    assert capsys.readouterr().out.splitlines()[0] == "no differences"


@pytest.mark.parametrize("content", [{}, {"laws": 1}, {"laws": [1, {"law": [], "known": 3}]}, {"matrix": ["a"]}])
def test_upgrade_leaves_malformed_content_to_the_schema(content: dict[str, Any]) -> None:
    assert upgrade("engines.json", content | {"format": 2})["format"] == FORMAT


def test_upgraded_files_have_the_current_format() -> None:
    assert {read(path)["format"] for path in PUBLISHED.glob("*.json")} == {FORMAT}
