"""Trends compare only runs of the same stack, in the order of their dates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.fakes import ROOT, mutated_json
from benchmarks.trends import main
from lenet.fingerprint import FORMAT, fingerprint


def run(folder: Path, date: str, seconds: dict[str, float], **stack: str) -> str:
    """Write a benchmarks.json and return its path."""
    entries = [{"name": name, "stats": {"median": median}} for name, median in seconds.items()]
    content: dict[str, Any] = {"format": FORMAT, "date": date, "stack": fingerprint() | stack, "benchmarks": entries}
    path = folder / f"{date}{len(stack)}.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_later_medians_are_relative_to_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = run(tmp_path, "2026-02", {"a": 0.003, "b": 0.5})
    old = run(tmp_path, "2026-01", {"a": 0.002})

    assert main([new, old]) == 0

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["median,", "then", "relative", "to", "the", "first", "run", "2026-01", "2026-02"] in rows
    assert ["a", "2.000", "ms", "1.500"] in rows
    assert ["b", "-", "500.000", "ms"] in rows


def test_different_stacks_are_never_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [run(tmp_path, "2026-01", {"a": 1.0}), run(tmp_path, "2026-02", {"a": 2.0}, processor="another")]
    files.append(run(tmp_path, "2026-03", {"a": 3.0}, hypothesis="7", pytest="10"))

    assert main(files) == 0

    output = capsys.readouterr().out
    assert output.count("median, then relative to the first run") == 2
    assert "3.000" in output
    assert "2.000\n" not in output


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"benchmarks": 3}'])
def test_foreign_file_is_a_one_line_error(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(content)

    assert main([str(tmp_path / "run.json")]) == 2
    assert main([str(tmp_path / "none.json")]) == 2
    foreign, missing = capsys.readouterr().err.splitlines()
    assert foreign.endswith("run.json: not a benchmarks.json, as `lenet-properties time --record DIR` writes it")
    assert missing.endswith("none.json: no such file")


@pytest.mark.parametrize("median", ["0", "-1.5", "NaN", "Infinity", '"1"', "true", "null", "1" + "0" * 400])
def test_median_that_is_no_time_is_an_error(tmp_path: Path, median: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(run(tmp_path, "2026-01", {"a": 1.5}))
    path.write_text(path.read_text().replace('"median": 1.5', f'"median": {median}'))

    assert main([str(path), str(path)]) == 2

    assert capsys.readouterr().err.count("not a benchmarks.json") == 1


VALID = {
    "format": FORMAT,
    "date": "2026-01",
    "stack": {"torch": "2", "python": "3", "processor": "a", "cores": "2"},
    "benchmarks": [{"name": "a", "stats": {"median": 0.5}}, {"name": "b", "stats": {"median": 0.25}}],
}


@given(content=mutated_json(VALID))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_shown_or_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "valid.json").write_text(json.dumps(VALID))
    (tmp_path / "mutated.json").write_bytes(content)

    code = main([str(tmp_path / "valid.json"), str(tmp_path / "mutated.json")])

    output = capsys.readouterr()
    assert (code, len(output.err.splitlines())) in ((0, 0), (2, 1))
    assert all(line.isprintable() for line in output.out.splitlines())


def test_published_run_of_format_2_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    published = ROOT / "reports/runs/2026-11-23_amd-epyc_torch-2.13.0/benchmarks.json"

    assert json.loads(published.read_text())["format"] == 2
    assert main([str(published)]) == 0
    assert "torch 2.13.0" in capsys.readouterr().out


def test_unknown_format_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path, "2026-01", {"a": 1.0})
    Path(path).write_text(Path(path).read_text().replace(f'"format": {FORMAT}', '"format": 99'))

    assert main([path]) == 2
    assert "format 99" in capsys.readouterr().err
