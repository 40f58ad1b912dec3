"""The time left, while benchmarks run: one line on a terminal, and nothing where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import IO, Any

import pytest
from tqdm import tqdm


class Bar(tqdm):  # type: ignore[type-arg]  # at run time it takes none
    """A bar without tqdm's thread, which would wake up while something is timed."""

    monitor_interval = 0


class Progress:
    """
    A bar of the benchmarks that have run, in place of pytest's dots. The time left is the mean so far times the rest.

    It is drawn between two benchmarks only, so it takes no time of theirs.
    """

    def __init__(self, terminal: IO[str]) -> None:
        self.terminal = terminal
        self.bar: Bar | None = None
        self.judged: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count what will run: a device that is not there takes no time."""
        self.judged = {item.nodeid for item in session.items if _runs(item)}
        if self.judged and not session.config.option.collectonly:
            shown: dict[str, Any] = {"unit": "benchmark", "leave": False, "file": self.terminal}
            self.bar = Bar(total=len(self.judged), smoothing=0, mininterval=0, **shown)  # the mean; drawn every time

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No letter but for what failed, since the bar shows the rest."""
        shown = report.failed or report.when == "teardown" or (report.when == "setup" and report.passed)
        return None if self.bar is None or shown else (report.outcome, "", "")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Iterator[None]:
        """Make way for what pytest writes of a failure, and draw the bar anew once a benchmark is done."""
        if self.bar is not None and report.failed:
            self.bar.clear()
        yield
        if self.bar is not None and report.nodeid in self.judged and report.when == "teardown":
            self.bar.update()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Leave no trace."""
        if self.bar is not None:
            self.bar.close()


def progress() -> Progress | None:
    """Of a run whose output and errors both go to a terminal: a log has no use for a bar, nor for dots left out."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    return Progress(os.fdopen(os.dup(2), "w"))  # of its own: pytest puts a file in stderr's place


def _runs(item: pytest.Item) -> bool:
    """Whether it is a benchmark of a stack that is there."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return "benchmark" in getattr(item, "fixturenames", ()) and parameters.get("stack") is not None
