"""The READMEs: glossary, counts, quoted output and links agree with the repository and its published run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from properties.diagnosis import mutant_table
from reports import sentences
from reports.glossary import GLOSSARY
from reports.loading import load
from reports.verdict import status

ROOT = Path(__file__).parents[1]
PACKAGES = ("lenet", "properties", "benchmarks", "reports")
READMES = [ROOT / "README.md", *sorted(path for package in PACKAGES for path in (ROOT / package).rglob("README.md"))]
COUNTS = {name: len(mutant_table()[name]) for name in ("laws", "mutants", "twins")}


@pytest.mark.parametrize("term", GLOSSARY)
def test_readme_has_the_glossary(term: str) -> None:
    assert f"- **{term}**: {GLOSSARY[term]}\n" in (ROOT / "README.md").read_text()


def test_readme_quotes_the_published_run() -> None:
    """
    It is the newest one of the pinned torch on a CPU, as `tox run -e report` prints it.

    That command runs neither engines nor the gate.
    """
    runs = [load(path.parent) for path in ROOT.glob("reports/runs/*/laws.json")]
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    comparable = [run for run in runs if run.torch_version == pinned[1] and "GPU" not in run.stack]
    run = replace(max(comparable, key=lambda run: run.date), engines=None, engine_times=None, gate=None)
    verdict = f"{status(run)}: {sentences.verdict(run)}"
    figures = f"{sentences.evidence(run)} {sentences.speed(run)}"

    lines = (ROOT / "README.md").read_text().splitlines()

    assert {line for line in lines if line.startswith("PASSED: PyTorch")} == {verdict}
    assert {line for line in lines if "examples were judged" in line} <= {figures}


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_counts_agree_with_the_table_of_mutants(path: Path) -> None:
    """Counts of a part are not checked: below ten, or as in "24 laws that apply" and "140 laws hold"."""
    pattern = rf"(\d[\d,]+) ({'|'.join(COUNTS)})\b(?! (?:that|fail|hold|judged))"
    found = re.findall(pattern, path.read_text())

    assert [(count, name) for count, name in found if int(count.replace(",", "")) != COUNTS[name]] == []


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())

    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_readme_shows_the_figure_of_the_published_run() -> None:
    assert re.search(r"\]\(reports/runs/[^)]*/picture\.svg\)", (ROOT / "README.md").read_text())
