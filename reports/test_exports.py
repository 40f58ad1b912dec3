"""The files for CI: JUnit XML, and JSON for github-action-benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as Xml

from reports.commands import report
from reports.conftest import EVIL, Files, entry, write


def test_junit_and_benchmark_files_are_written(tmp_path: Path, files: Files) -> None:
    files["laws.json"]["laws"] += [
        entry("test_more", "failed", message=f"{EVIL}\x00", counterexample="case=1"),
        entry("test_left_out", "skipped", reason="Skipped: cuda is not available"),
    ]
    files["benchmarks.json"]["errors"] = ["bench_x"]
    write(tmp_path, files)
    report([str(tmp_path)])

    tests = Xml.parse(tmp_path / "junit.xml").getroot()
    assert [tests.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["7", "3", "0", "1"]
    (failure,) = tests.findall("testcase[@name='more holds']/failure")
    assert failure.get("message") == f"{EVIL}?"
    assert "case=1" in (failure.text or "")
    entries = json.loads((tmp_path / "benchmark-action.json").read_text())
    assert {"name", "unit", "value", "range", "extra"} == entries[0].keys()
    assert (entries[1]["value"], entries[1]["unit"]) == (25_600.0, "images/s")
