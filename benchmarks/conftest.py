"""Pytest hooks of the benchmarks (threads, benchmarks.json, progress bar, final tables) and fixtures of their tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import comparison
from benchmarks.fakes import FAKE_ENGINES, FakeWorker, FakeWorkers
from benchmarks.progress import progress
from benchmarks.roofline import Entry, add_positions
from benchmarks.summary import summary
from lenet.files import set_aside
from lenet.fingerprint import fingerprint, stamp
from lenet.system import usable_cores
from properties.record import command_line
from properties.stack import Stack

FAILURES = pytest.StashKey["Failures"]()
ENTRIES = pytest.StashKey[list[Entry]]()
NOT_WRITTEN = pytest.StashKey[str]()
CORES = usable_cores()
THREADS = sorted({2**power for power in range(CORES.bit_length())} | {CORES})
"""The powers of two up to the number of usable cores, and that number. (2 ** bit_length exceeds it.)"""


@pytest.fixture(params=THREADS, ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest, stack: Stack) -> Iterator[int]:
    """Set the number of CPU threads. On other devices, and if nothing is timed, only the largest number runs."""
    if request.config.getoption("benchmark_disable") and request.param != THREADS[-1]:
        pytest.skip("--benchmark-disable: one number of threads is enough")
    if stack.device.type != "cpu" and request.param != THREADS[-1]:
        pytest.skip(f"the number of CPU threads does not matter on {stack.device}")
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def fake_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorkers]:
    """Replace workers by fakes, and the clock by one that advances a second per pair; afterwards none may run."""
    FakeWorker.workers, FakeWorker.random = FakeWorkers(), np.random.default_rng(0)
    time_is_over = count(step=10**9)
    clock = SimpleNamespace(monotonic=lambda: FakeWorker.workers.started / 2, perf_counter=lambda: next(time_is_over))
    monkeypatch.setattr(comparison, "Worker", FakeWorker)
    monkeypatch.setattr(comparison, "time", clock)
    yield FakeWorker.workers
    assert FakeWorker.workers.running == 0


@pytest.fixture
def fake_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PYTHONPATH with the module of FAKE_ENGINES, named `fakes`."""
    (tmp_path / "fakes.py").write_text(FAKE_ENGINES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


class Failures:
    """Collects the benchmarks that failed, so that the report mentions them."""

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
        _check_that_times_are_recorded(config)
        set_aside(folder / "benchmarks.json")
        _temporary(folder).unlink(missing_ok=True)
        config.option.benchmark_json = str(_temporary(folder))


def _check_that_times_are_recorded(config: pytest.Config) -> None:
    """Raise UsageError if --record is combined with an option under which pytest-benchmark times nothing."""
    for option, given in (
        ("--benchmark-disable", config.getoption("benchmark_disable")),
        ("-n", config.getoption("numprocesses", None)),
    ):
        if given:
            raise pytest.UsageError(
                f"--record: benchmarks are not timed with {option}; omit it, or name the laws alone: properties/laws"
            )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Keep the timed benchmark, in the form of benchmarks.json, for the final tables."""
    yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if benchmark is not None and benchmark.stats and benchmark.extra_info:
        stats = {"median": benchmark.stats.stats.median}
        item.config.stash[ENTRIES].append({"extra_info": benchmark.extra_info, "stats": stats})


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    add_positions(config.stash[ENTRIES])
    for line in summary(config.stash[ENTRIES], fingerprint()):
        terminalreporter.write_line(line)
    if error := config.stash.get(NOT_WRITTEN, ""):
        terminalreporter.write_line(f"error: {error}", red=True)


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json |= stamp(command_line(config))
    add_positions(output_json["benchmarks"])
    for entry in output_json["benchmarks"]:
        if "latency" in entry["extra_info"]:
            entry["stats"].pop("data", None)  # half a megabyte, summarized by the percentiles
    output_json["errors"] = config.stash[FAILURES].ids


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Iterator[None]:
    """
    Rename the file that pytest-benchmark wrote to its final name, or delete it if the run did not complete.

    If it cannot be written, the tables are printed nevertheless, followed by an error.
    """
    folder = session.config.getoption("record")
    complete = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    try:
        yield
        if folder and complete and _temporary(folder).exists():
            _temporary(folder).replace(folder / "benchmarks.json")
    except OSError as error:
        if not folder:
            raise
        session.config.stash[NOT_WRITTEN] = f"--record {folder}: benchmarks.json cannot be written: {error.strerror}"
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    finally:
        if folder:
            _temporary(folder).unlink(missing_ok=True)


def _temporary(folder: Path) -> Path:
    """Return the temporary path that pytest-benchmark writes to."""
    return folder / ".benchmarks.part.json"
