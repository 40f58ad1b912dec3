"""The commands: their help, and errors of one line for a wrong name or a missing package."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from reports.__main__ import COMMANDS, main
from reports.conftest import Files, write


def test_help_lists_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])

    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert "exit codes:" in text


def test_misspelled_command_is_an_error_that_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publihs"]) == 2
    assert capsys.readouterr().err == "error: no folder publihs; commands are publish, index and diff\n"


def test_error_for_missing_data_names_the_folder(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reports.__main__.render", lambda run: {}["x"])
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: a file in {tmp_path} lacks data for the report: KeyError 'x'\n"


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
