"""Runs that are kept: whole, apart by machine, and compared only where they can be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from reports import __main__ as command
from reports.__main__ import main
from reports.run import load
from reports.test_page import EVIL, STACK, Files, Page, entry, files, timing, write

__all__ = ["files"]

Kept = Callable[[Files], Path]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs are kept."""
    monkeypatch.setattr(command, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def keep(tmp_path: Path, runs: Path) -> Kept:
    """Makes the page of a run, and keeps it."""

    def kept(own: Files) -> Path:
        folder = tmp_path / "latest"
        folder.mkdir(exist_ok=True)
        write(folder, own)
        assert main([str(folder)]) in (0, 1)
        assert main(["publish", str(folder)]) == 0
        return max(runs.glob("*_torch-*"), key=lambda place: place.stat().st_mtime_ns)

    return kept


def on(files: Files, date: str, **stack: str) -> Files:
    """The same run on another day and stack."""
    return {name: content | {"date": date, "stack": STACK | stack} for name, content in files.items()}


def test_a_run_is_kept_by_date_machine_and_version(keep: Kept, files: Files) -> None:
    place = keep(on(files, "2026-11-22T12:00:00+00:00", torch="2.13.0+cpu", processor="AMD EPYC (TM)"))

    assert place.name == "2026-11-22_amd-epyc-tm_torch-2.13.0"
    assert {file.name for file in place.iterdir()} == {*files, "index.html", "summary.md", "picture.svg"}
    assert load(place).passed


def test_what_was_kept_of_the_run_before_stays(keep: Kept, files: Files, runs: Path) -> None:
    place = keep(files)
    engines = json.dumps(files["laws.json"] | {"matrix": {}})
    (place / "engines.json").write_text(engines)

    assert keep(files) == place
    assert (place / "engines.json").read_text() == engines
    assert not list(runs.glob(".publishing-*"))


def test_another_run_of_that_day_is_not_overwritten(
    keep: Kept, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = keep(files)
    before = (place / "laws.json").read_text()
    files["laws.json"]["laws"].append(entry("test_more"))
    write(tmp_path / "latest", files)

    assert main(["publish", str(tmp_path / "latest")]) == 2
    assert f"remove {place} to publish this one instead" in capsys.readouterr().err
    assert (place / "laws.json").read_text() == before


def test_a_run_without_a_page_is_not_kept(
    files: Files, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, files)

    assert main(["publish", str(tmp_path)]) == 2
    assert "index.html is missing: it is written by `python -m reports" in capsys.readouterr().err
    assert not runs.exists()


def test_the_page_of_all_runs_keeps_machines_apart(keep: Kept, files: Files, runs: Path) -> None:
    keep(on(files, "2026-11-20T12:00:00+00:00"))
    keep(on(files, "2026-11-21T12:00:00+00:00"))
    keep(on(files, "2026-11-22T12:00:00+00:00", processor=f"Other {EVIL}"))

    page = (runs.parent / "index.html").read_text()
    shown = Page()
    shown.feed(page)
    assert not shown.outside
    assert page.count("<figure") == page.count("<table") == 2
    assert page.count("runs/2026-11-2") == 3
    assert page.index("runs/2026-11-20") < page.index("runs/2026-11-21")
    assert EVIL in shown.text


def test_without_a_run_the_page_says_how_to_keep_one(runs: Path) -> None:
    runs.mkdir()

    assert main(["index"]) == 0
    assert "python -m reports publish" in (runs.parent / "index.html").read_text()


def test_a_torn_run_is_no_page(keep: Kept, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (keep(files) / "laws.json").write_text("{")

    assert main(["index"]) == 2
    assert "laws.json is torn" in capsys.readouterr().err


def compared(tmp_path: Path, old: Files, new: Files, capsys: pytest.CaptureFixture[str]) -> list[str]:
    for name, content in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, content)
    assert main(["diff", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    return capsys.readouterr().out.splitlines()


def test_what_changed_is_said_in_lines(tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    issue = {"title": "Steps are lost", "reference": "pytorch/pytorch#1"}
    new: dict[str, Any] = json.loads(json.dumps(on(files, "2026-12-01T00:00:00+00:00", torch="2.14.0")))
    new["laws.json"]["laws"] = [entry("test_sums", "failed"), entry("test_more", known=[issue])]
    new["benchmarks.json"]["benchmarks"][1] = timing("forward", 256, 0.02)

    lines = compared(tmp_path, files, new, capsys)

    assert lines == [
        "torch: 2.13.0 -> 2.14.0",
        "sums: holds -> violated",
        "order: holds -> no such law",
        "more: no such law -> holds",
        "known issue new: Steps are lost (pytorch/pytorch#1)",
        "forward of 256 (lenet, cpu, float32, 2 threads): 2.00 times as long",
        "3 of 4 times differ by no more than they vary; the gate gives verdicts",
    ]


def test_times_of_two_machines_are_not_compared(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = compared(tmp_path, files, on(files, "2026-12-01T00:00:00+00:00", processor="Other"), capsys)

    assert lines[-1] == "times are not compared: the runs are of different machines"
    assert not any("times as long" in line for line in lines)


def test_a_run_is_written_for_other_tools_too(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"] += [
        entry("test_more", "failed", message=f"{EVIL}\x00", counterexample="case=1"),
        entry("test_left_out", "skipped", reason="Skipped: cuda is not there"),
    ]
    files["benchmarks.json"]["failed"] = ["bench_x"]
    write(tmp_path, files)
    main([str(tmp_path)])

    tests = Xml.parse(tmp_path / "junit.xml").getroot()
    assert [tests.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["5", "1", "1", "1"]
    (failure,) = tests.findall("testcase[@name='more']/failure")
    assert failure.get("message") == f"{EVIL}?"
    assert "case=1" in (failure.text or "")
    entries = json.loads((tmp_path / "benchmark-action.json").read_text())
    assert {"name", "unit", "value", "range", "extra"} == entries[0].keys()
    assert (entries[1]["value"], entries[1]["unit"]) == (25_600.0, "images/s")


def test_the_page_of_all_runs_says_what_changed(keep: Kept, files: Files, tmp_path: Path) -> None:
    keep(on(files, "2026-11-22T12:00:00+00:00"))
    later = keep(on(files, "2026-11-23T12:00:00+00:00", torch="2.14.0"))

    text = (tmp_path / "index.html").read_text()

    assert f"What changed with {later.name}" in text
    assert "torch: 2.13.0 -&gt; 2.14.0" in text


def test_the_readme_shows_and_links_what_is_there() -> None:
    project = Path(__file__).parents[1]
    places = re.findall(r"\]\(([^)#]+)\)", (project / "README.md").read_text())
    own = [place for place in places if "://" not in place]

    assert [place for place in own if not (project / place).exists()] == []
    assert any(place.endswith("picture.svg") for place in own)
