"""The tables at the end of a run, benchmarks.json and the progress bar."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fakes import benchmark_entry
from benchmarks.latency import QUERIES
from benchmarks.step_parts import PARTS
from benchmarks.summary import summary
from properties.testing import run

ONE_OF_EACH = "1-threads and cpu-float32 and -4] and (forward or step)"


def test_tables_without_rows_are_omitted() -> None:
    assert summary([], {"processor": "Test"}) == []


def test_throughput_has_a_column_per_configuration_and_its_best_batch() -> None:
    entries = [
        benchmark_entry("forward", 0.5, batch=1, images=1),
        benchmark_entry("forward", 2.0, batch=8, images=8),
        benchmark_entry("forward", 4.0, threads=2, batch=8, images=8),
    ]

    assert summary(entries, {"processor": "Test"}) == [
        "",
        "Throughput, forward, in images/s",
        "batch size  cpu float32 1 thread  cpu float32 2 threads",
        "1                              2",
        "8                              4                      2",
        "best                           4                      2",
    ]


def test_memory_has_a_row_per_batch_size() -> None:
    forward = benchmark_entry("forward", 1.0, batch=4, images=4, memory=3 * 2**20, memory_at_least=2**19)
    step = benchmark_entry("training step", 1.0, batch=4, images=4, memory=2**30, memory_at_least=2**20)

    shown = summary([forward, step], {"processor": "Test"})

    assert shown[-3] == "Peak memory in MiB, above that in use before the call"
    assert shown[-1].split() == ["cpu", "float32", "1", "thread", "4", "3.00", "0.50", "1,024.00", "1.00"]


def test_parts_of_a_step_are_shown_with_the_step_in_milliseconds() -> None:
    parts = dict(zip(PARTS, (0.5, 1.0, 0.25, 2.0, 0.125), strict=True))

    shown = summary([benchmark_entry("training step", 3.875, batch=4, images=4, parts=parts)], {"processor": "T"})

    assert shown[-3] == "Parts of a training step in ms"
    assert shown[-1].split()[4:] == ["4", "500", "1000", "250", "2000", "125", "3875"]


def test_times_with_a_trend_are_named() -> None:
    entries = [benchmark_entry("forward", 1.0, batch=n, images=n, stationary=n == 1) for n in (1, 4096)]

    assert summary(entries, {"processor": "T"})[-1] == (
        "note: forward, batch size 4,096, cpu float32 1 thread: its times had a trend after 10 s of warm-up"
    )


def test_latency_is_shown_with_its_interval_in_milliseconds() -> None:
    found = {"value": 0.25e-3, "low": 0.125e-3, "high": 0.5e-3}
    shown = summary(
        [benchmark_entry("latency", 1.0, queries=24_576, latency={"p50": found, "p90": found, "p99": found})],
        {"processor": "T"},
    )

    assert shown[1] == "Latency at batch size 1 in ms, with 99% intervals that assume independent queries"
    assert shown[3] == "cpu float32 1 thread   24,576" + 3 * "  0.25 (0.125 to 0.5)"


@pytest.mark.slow
def test_run_records_memory_and_roofline(tmp_path: Path) -> None:
    result = run("benchmarks", "-k", ONE_OF_EACH, "--benchmark-max-time=0.01", "--record", str(tmp_path))

    assert result.returncode == 0, result.stdout
    record = json.loads((tmp_path / "benchmarks.json").read_text())
    figures = {one["extra_info"]["operation"]: one["extra_info"] for one in record["benchmarks"]}
    assert set(figures) == {"forward", "training step"}
    for operation in ("forward", "training step"):
        assert figures[operation]["memory"] >= figures[operation]["memory_at_least"]
        assert figures[operation]["roofline"]["attainable"] > 0
    assert "Roofline, cpu float32 1 thread" in result.stdout
    assert "benchmark/s" not in result.stderr  # the bar is shown on a terminal only


@pytest.mark.slow
def test_run_times_as_many_queries_as_the_percentiles_require(tmp_path: Path) -> None:
    result = run("benchmarks", "-k", "forward and 1-threads and cpu-float32-1]", "--record", str(tmp_path))

    assert result.returncode == 0, result.stdout
    (only,) = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]
    found = only["extra_info"]["latency"]
    assert only["extra_info"]["queries"] == only["stats"]["rounds"] == QUERIES
    assert found["p50"]["low"] <= found["p50"]["value"] <= found["p50"]["high"]
    assert found["p50"]["value"] <= found["p90"]["value"] <= found["p99"]["value"]
    assert found["p50"]["low"] <= only["stats"]["median"] <= found["p50"]["high"]


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_is_shown_on_a_terminal_only(terminal: bool) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "benchmarks", "--benchmark-disable"]
    command += ["-k", "bench_update", "--dtype", "float32", "--device", "cpu"]

    written = _output_on_terminal(command) if terminal else _output_in_pipe(command)

    assert ("benchmark/s" in written or "s/benchmark" in written) == terminal
    assert "passed" in written


def _output_on_terminal(command: list[str]) -> str:
    """Return what a command writes to a pseudoterminal."""
    ours, child = pty.openpty()
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child)
    os.close(child)
    written = b""
    try:
        while part := os.read(ours, 65_536):
            written += part
    except OSError:  # the child has closed its end
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()


def _output_in_pipe(command: list[str]) -> str:
    """Return what a command writes to a pipe."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
