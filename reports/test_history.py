"""Published runs: they stay complete and are grouped by machine; differences are those of stacks and laws."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports import history
from reports.commands import diff as print_differences
from reports.commands import make_index, report
from reports.commands import publish as publish_run
from reports.conftest import EVIL, STACK, Files, Page, entry, timing, write
from reports.loading import load
from reports.verdict import passed

Publish = Callable[[Files], Path]
TIMES = "times are not compared: `lenet-properties gate` shows whether a change made anything slower"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for published runs."""
    monkeypatch.setattr(history, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def publish(tmp_path: Path, runs: Path) -> Publish:
    """A function that writes the page of a run, publishes it, and returns its folder."""

    def published(files: Files) -> Path:
        folder = tmp_path / "latest"
        folder.mkdir(exist_ok=True)
        write(folder, files)
        assert report([str(folder)]) in (0, 1)
        assert publish_run([str(folder)]) == 0
        return max(runs.glob("*_torch-*"), key=lambda place: place.stat().st_mtime_ns)

    return published


def moved(files: Files, date: str, **stack: str) -> Files:
    """The same run at another date and on another stack."""
    return {name: content | {"date": date, "stack": STACK | stack} for name, content in files.items()}


def test_folder_is_named_by_date_machine_and_version(publish: Publish, files: Files) -> None:
    folder = publish(moved(files, "2026-11-22T12:00:00+00:00", torch="2.13.0+cpu", processor="AMD EPYC (TM)"))

    assert folder.name == "2026-11-22_amd-epyc-tm_torch-2.13.0"
    assert {file.name for file in folder.iterdir()} == {*files, *history.PAGES}
    assert passed(load(folder))


@pytest.mark.slow
def test_further_published_files_stay(publish: Publish, files: Files, runs: Path) -> None:
    folder = publish(files)
    engines = json.dumps(files["laws.json"] | {"matrix": {}})
    (folder / "engines.json").write_text(engines)

    assert publish(files) == folder
    assert (folder / "engines.json").read_text() == engines
    assert not list(runs.glob(".publishing-*"))


def test_another_run_of_the_same_day_is_not_overwritten(
    publish: Publish, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = publish(files)
    before = (folder / "laws.json").read_text()
    files["laws.json"]["laws"].append(entry("test_more"))
    write(tmp_path / "latest", files)

    assert publish_run([str(tmp_path / "latest")]) == 2
    assert f"remove {folder} to publish this one instead" in capsys.readouterr().err
    assert (folder / "laws.json").read_text() == before


def test_run_without_a_page_is_not_published(
    files: Files, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, files)

    assert publish_run([str(tmp_path)]) == 2
    assert "index.html is missing; `lenet-properties report" in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.slow
def test_page_of_published_runs_separates_machines(publish: Publish, files: Files, runs: Path) -> None:
    publish(moved(files, "2026-11-20T12:00:00+00:00"))
    publish(moved(files, "2026-11-21T12:00:00+00:00"))
    publish(moved(files, "2026-11-22T12:00:00+00:00", processor=f"Other {EVIL}"))

    page = (runs.parent / "index.html").read_text()
    shown = Page()
    shown.feed(page)
    assert not shown.external
    assert page.count("<figure") == page.count("<table") == 2
    assert page.count("runs/2026-11-2") == 3
    assert page.index("runs/2026-11-20") < page.index("runs/2026-11-21")
    assert EVIL in shown.text


def test_page_without_published_runs_names_the_command(runs: Path) -> None:
    runs.mkdir()

    assert make_index([]) == 0
    assert "lenet-properties publish" in (runs.parent / "index.html").read_text()


def test_corrupt_published_run_is_an_error(publish: Publish, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    (publish(files) / "laws.json").write_text("{")

    assert make_index([]) == 2
    assert "laws.json is corrupt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("date", "torch"),
    [
        ("/../../../../escaped", "2.13.0"),
        ("../../..", "2.13.0"),
        ("2026-11-22T12:00:00+00:00\n", "2.13.0"),
        ("2026-11-22T12:00:00+00:00", "../../../escaped"),
        ("2026-11-22T12:00:00+00:00", "2/../../../../escaped"),
        ("2026-11-22T12:00:00+00:00", "2.13.0\x00"),
    ],
)
def test_folder_of_a_run_cannot_lead_elsewhere(
    files: Files, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str], date: str, torch: str
) -> None:
    folder = tmp_path / "a" / "latest"
    folder.mkdir(parents=True)
    write(folder, moved(files, date, torch=torch))
    for name in history.PAGES:
        (folder / name).touch()
    before = set(tmp_path.rglob("*"))

    assert publish_run([str(folder)]) == 2

    assert " does not match " in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before


def test_machine_cannot_lead_elsewhere(publish: Publish, files: Files, runs: Path) -> None:
    folder = publish(moved(files, "2026-11-22T12:00:00+00:00", processor="/../../..\x00"))

    assert folder.parent == runs
    assert folder.name == "2026-11-22_unknown_torch-2.13.0"


def test_published_run_that_is_a_link_is_an_error(
    publish: Publish, files: Files, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its page would be written where it leads."""
    folder = publish(files)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere" / "index.html").stat().st_mtime_ns

    for command, arguments in ((make_index, []), (publish_run, [str(tmp_path / "latest")])):
        assert command(arguments) == 2
        assert f"a published run is a folder in {runs}\n" in capsys.readouterr().err
    assert (tmp_path / "elsewhere" / "index.html").stat().st_mtime_ns == before


def test_link_among_the_files_is_not_published(
    files: Files, tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "secret").write_text("secret")
    write(tmp_path / "latest", files)
    for name in history.PAGES:
        (tmp_path / "latest" / name).symlink_to(tmp_path / "secret")

    assert publish_run([str(tmp_path / "latest")]) == 2

    assert "index.html is a link" in capsys.readouterr().err
    assert not runs.exists()


def test_next_publication_removes_what_a_killed_one_left(publish: Publish, files: Files, runs: Path) -> None:
    (runs / ".publishing-killed").mkdir(parents=True)

    folder = publish(files)

    assert list(runs.iterdir()) == [folder]


def diff(tmp_path: Path, old: Files, new: Files, capsys: pytest.CaptureFixture[str]) -> list[str]:
    for name, content in (("old", old), ("new", new)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, content)
    assert print_differences([str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    return capsys.readouterr().out.splitlines()


def test_diff_prints_a_line_per_difference(tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    issue = {"title": "Steps are lost", "reference": "pytorch/pytorch#1"}
    new: dict[str, Any] = json.loads(json.dumps(moved(files, "2026-12-01T00:00:00+00:00", torch="2.14.0")))
    new["laws.json"]["laws"] = [entry("test_sums", "failed"), entry("test_more", known_issues=[issue])]
    new["benchmarks.json"]["benchmarks"][1] = timing("forward", 256, 0.02)

    lines = diff(tmp_path, files, new, capsys)

    assert lines == [
        "torch: 2.13.0 -> 2.14.0",
        "sums holds: holds -> violated",
        "order holds: holds -> no such law",
        "more holds: no such law -> holds",
        "new known issue: Steps are lost (pytorch/pytorch#1)",
        TIMES,
    ]


def test_diff_of_equal_runs_says_so(tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert diff(tmp_path, files, files, capsys) == ["no differences", TIMES]


@pytest.mark.slow
def test_page_of_published_runs_shows_changes(publish: Publish, files: Files, tmp_path: Path) -> None:
    publish(moved(files, "2026-11-22T12:00:00+00:00"))
    later = publish(moved(files, "2026-11-23T12:00:00+00:00", torch="2.14.0"))

    text = (tmp_path / "index.html").read_text()

    assert f"Changes in {later.name}" in text
    assert "torch: 2.13.0 -&gt; 2.14.0" in text
