"""Threads, the record of a run for the report, the time left, and the tables at the end."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.progress import progress
from benchmarks.roofline import Entry, locate
from benchmarks.summary import summary
from lenet.files import set_aside
from lenet.fingerprint import fingerprint, stamp
from properties.stack import Stack

FAILURES = pytest.StashKey["Failures"]()
ENTRIES = pytest.StashKey[list[Entry]]()
CORES = os.cpu_count() or 1
THREADS = sorted({2**power for power in range(CORES.bit_length())} | {CORES})
"""1, 2, 4, ... and all of them: 2 to the power of `bit_length` is the first beyond."""


@pytest.fixture(params=THREADS, ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest, stack: Stack) -> Iterator[int]:
    """The number of threads that PyTorch computes with on the CPU; elsewhere, or untimed, only the last is run."""
    if request.config.getoption("benchmark_disable") and request.param != THREADS[-1]:
        pytest.skip("untimed, one number of threads will do")
    if stack.device.type != "cpu" and request.param != THREADS[-1]:
        pytest.skip(f"threads make no difference on {stack.device}")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class Failures:
    """Notes which benchmarks failed, so that the report does not pass over them."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and "bench_" in report.nodeid:
            self.ids.append(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAILURES], config.stash[ENTRIES] = Failures(), []
    config.pluginmanager.register(config.stash[FAILURES], "benchmark-failures")
    if shown := progress():
        config.pluginmanager.register(shown, "benchmark-progress")
    if folder := config.getoption("record"):
        set_aside(folder / "benchmarks.json")
        _part(folder).unlink(missing_ok=True)
        config.option.benchmark_json = str(_part(folder))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Keep what was timed, as the record has it, for the tables."""
    yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if benchmark is not None and benchmark.stats and benchmark.extra_info:
        stats = {"median": benchmark.stats.stats.median}
        item.config.stash[ENTRIES].append({"extra_info": benchmark.extra_info, "stats": stats})


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    locate(config.stash[ENTRIES])
    for line in summary(config.stash[ENTRIES], fingerprint()):
        terminalreporter.write_line(line)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json |= stamp(shlex.join(["pytest", *config.invocation_params.args]))
    locate(output_json["benchmarks"])
    for entry in output_json["benchmarks"]:
        if "latency" in entry["extra_info"]:
            entry["stats"].pop("data", None)  # half a megabyte, which its percentiles stand for
    output_json["failed"] = config.stash[FAILURES].ids


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """Once pytest-benchmark has written, keep what it wrote, unless the run was stopped before its end."""
    yield
    folder = session.config.getoption("record")
    if folder and _part(folder).exists():
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            _part(folder).replace(folder / "benchmarks.json")
        else:
            _part(folder).unlink()


def _part(folder: Path) -> Path:
    """Where pytest-benchmark writes, until it is done."""
    return folder / ".benchmarks.part.json"
