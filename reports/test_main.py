"""The commands: their help, and errors of one line for a wrong name or a missing package."""

from __future__ import annotations

import errno
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from reports.commands import report
from reports.conftest import Files, write

ROOT = Path(__file__).parents[1]


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        report(["--help"])

    assert "exit codes:" in capsys.readouterr().out


def test_missing_folder_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(["lattest"]) == 2
    assert capsys.readouterr().err == "error: no folder lattest; name the folder of a run\n"


def test_error_for_missing_data_names_the_folder(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reports.commands.render", lambda run: {}["x"])
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: a file in {tmp_path} lacks data for the report: KeyError 'x'\n"


def test_verdict_is_printed_even_if_no_page_can_be_written(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("reports.commands._write", full)
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 2

    shown = capsys.readouterr()
    assert shown.out.startswith("PASSED: PyTorch")
    assert shown.err == f"error: {tmp_path / 'index.html'}: No space left on device\n"


@pytest.mark.slow
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, files: Files) -> None:
    write(tmp_path, files)
    command = [sys.executable, "-m", "lenet_properties", "report", str(tmp_path)]

    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)

    assert (done.returncode, done.stderr) == (2, "error: cannot write: No space left on device\n")


@pytest.mark.slow
def test_name_that_the_terminal_cannot_show_is_escaped(tmp_path: Path, files: Files) -> None:
    for content in files.values():
        content["stack"] = content["stack"] | {"processor": "Caf\u00e9"}
    write(tmp_path, files)
    command, environment = (
        [sys.executable, "-m", "lenet_properties", "report", str(tmp_path)],
        os.environ | {"PYTHONIOENCODING": "ascii"},
    )

    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "on Caf\\xe9, 2 cores" in done.stdout


def test_unforeseen_error_is_one_line_and_not_a_verdict(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code 1 says that the run failed, and nothing else."""
    monkeypatch.setattr("reports.commands.render", lambda run: [] / 0)  # type: ignore[operator]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: a file in {tmp_path} lacks data for the report: TypeError ")


def test_browser_without_playwright_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "axe_playwright_python.sync_playwright", None)
    monkeypatch.setitem(sys.modules, "axe_playwright_python", None)
    monkeypatch.delitem(sys.modules, "reports.browser", raising=False)

    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("reports.browser", run_name="__main__")

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("is not installed; run `tox run -e browser`\n")
