"""`pytest benchmarks --record DIR` writes the times, or says why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fakes import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(("option", "named"), [("-n2", "-n"), ("--benchmark-disable", "--benchmark-disable")])
def test_record_without_times_is_a_usage_error(tmp_path: Path, option: str, named: str) -> None:
    (tmp_path / "benchmarks.json").write_text("kept")
    command = [sys.executable, "-m", "pytest", "benchmarks", "-m", "benchmark", "--record", str(tmp_path), option]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--record: benchmarks are not timed with {named}; omit it" in run.stderr
    assert (tmp_path / "benchmarks.json").read_text() == "kept"


@pytest.mark.slow
def test_times_that_cannot_be_written_are_printed(tmp_path: Path) -> None:
    """The limit on the size of files acts as a full disk does."""
    (tmp_path / "benchmarks.previous.json").write_text("kept")
    options = f"-m benchmark -k 'bench_update and manual' --dtype float32 -p no:cacheprovider --record {tmp_path}"
    script = f"ulimit -f 1; {sys.executable} -m pytest benchmarks/bench_training.py {options}"
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}

    run = subprocess.run(["bash", "-c", script], cwd=ROOT, env=alone, capture_output=True, text=True, check=False)

    assert run.returncode == pytest.ExitCode.INTERNAL_ERROR
    assert f"error: --record {tmp_path}: benchmarks.json cannot be written: File too large" in run.stdout
    assert " passed" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["benchmarks.previous.json"]
