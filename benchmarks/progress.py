"""A progress bar with the time left while benchmarks run, on a terminal only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import IO, Any

import pytest
from tqdm import tqdm


class Bar(tqdm):  # type: ignore[type-arg]  # not generic at run time
    """A bar without tqdm's monitor thread, which would wake up while a benchmark is timed."""

    monitor_interval = 0


class Progress:
    """
    A pytest plugin that shows a bar of finished benchmarks instead of pytest's dots.

    The time left is the mean time of a benchmark so far times the number of remaining ones. The bar is drawn only
    between benchmarks, so it does not affect their times.
    """

    def __init__(self, terminal: IO[str]) -> None:
        self.terminal = terminal
        self.bar: Bar | None = None
        self.running: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the benchmarks that will run; those of a device that is not available will not."""
        self.running = {item.nodeid for item in session.items if _runs(item)}
        if self.running and not session.config.option.collectonly:
            options: dict[str, Any] = {"unit": "benchmark", "leave": False, "file": self.terminal}
            # smoothing=0: estimate from the mean of all benchmarks; mininterval=0: draw after each of them
            self.bar = Bar(total=len(self.running), smoothing=0, mininterval=0, **options)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Suppress pytest's letter unless a benchmark failed, as the bar shows the others."""
        shown = report.failed or report.when == "teardown" or (report.when == "setup" and report.passed)
        return None if self.bar is None or shown else (report.outcome, "", "")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Iterator[None]:
        """Clear the bar before pytest reports a failure, and redraw it when a benchmark is finished."""
        if self.bar is not None and report.failed:
            self.bar.clear()
        yield
        if self.bar is not None and report.nodeid in self.running and report.when == "teardown":
            self.bar.update()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def progress() -> Progress | None:
    """Return the plugin if standard output and standard error are both terminals: a log file needs no bar."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    return Progress(os.fdopen(os.dup(2), "w"))  # a duplicate, as pytest's capture replaces the original


def _runs(item: pytest.Item) -> bool:
    """Return whether a test is a benchmark of a stack that is available."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return "benchmark" in getattr(item, "fixturenames", ()) and parameters.get("stack") is not None
