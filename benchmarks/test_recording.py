"""`pytest benchmarks --record DIR` writes the times, or says why it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fakes import ROOT


@pytest.mark.parametrize("option", ["-n2", "--benchmark-disable"])
def test_record_without_times_is_a_usage_error(tmp_path: Path, option: str) -> None:
    (tmp_path / "benchmarks.json").write_text("kept")
    command = [sys.executable, "-m", "pytest", "benchmarks", "-m", "benchmark", "--record", str(tmp_path), option]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--record: benchmarks are not timed with {option[:2] if option == '-n2' else option}; omit it" in run.stderr
    assert (tmp_path / "benchmarks.json").read_text() == "kept"
