"""
Laws that crash or hang: the process ends, the law fails with its example, and the run continues.

This needs parallel workers (`pytest -n`): pytest-xdist replaces a worker that has ended. Each worker keeps a journal
(`properties.journal`). When one ends, the controlling process reads there which law it was running, on which example,
and where, and completes the report that pytest-xdist makes. Without workers, a crash ends the run.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadGroupScheduling

from properties import journal
from properties.journal import Line
from properties.judged_code import LAWS, end_hanging_process, suspend_time_limits
from properties.record import PROPERTY, SECONDS, complete_crash, crash_header

FOLDER = "lenet_journal"
"""The name under which a worker is given the folder of the journals."""

RERUN = "rerun"
"""The outcome of a report of a law that is run again because its process ended before it was judged."""

PATIENCE = 10.0
"""The seconds that the system has to end a process that has closed its connection: dumping its core takes some."""

STDERR = 2

INNERMOST = 12
"""The number of frames of a traceback that are shown at most: PyTorch's modules put two or three below each call."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep a journal in a worker, or read those of the workers."""
    folder = getattr(config, "workerinput", {}).get(FOLDER)
    if folder:
        own = journal.keep(Path(folder), config.workerinput["workerid"])  # type: ignore[attr-defined]
        end_hanging_process(own.traceback)
        config.pluginmanager.register(Worker(own), "lenet-worker")
        return
    if config.getoption("tx", None):  # as `-n` sets it
        if config.option.maxworkerrestart is None:  # pytest-xdist: four for each worker
            config.option.maxworkerrestart = sys.maxsize  # each law ends at most one, and see pytest_testnodedown
        config.pluginmanager.register(Controller(config), "lenet-crashes")
        return
    descriptor = os.dup(STDERR)  # before pytest captures it, as it does while tests run
    end_hanging_process(descriptor)
    config.add_cleanup(partial(_forget, descriptor))


def _forget(descriptor: int) -> None:
    end_hanging_process(None)
    os.close(descriptor)


class Worker:
    """Keeps the journal of this process."""

    def __init__(self, own: journal.Journal) -> None:
        self.journal = own

    def pytest_sessionstart(self) -> None:
        """Catch crashes, after pytest has set up its own `faulthandler` in `pytest_configure`."""
        self.journal.write_tracebacks()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Note that a law begins; skip one that has ended another process, if pytest-xdist sends it here again."""
        if not isinstance(item, pytest.Function) or not item.get_closest_marker("law") or not _has_stack(item):
            return None
        earlier = journal.read(journal.law_path(self.journal.folder, item.nodeid))
        if earlier and _attempt(earlier) is None:
            return True
        self.journal.begin_law(item.nodeid, crash_header(item) | {"begin": time.time(), "limits": _limits(item)})
        return None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Any:
        """Note that a law ends."""
        try:
            return (yield)
        finally:
            journal.write("end")


def _has_stack(item: pytest.Function) -> bool:
    return hasattr(item, "callspec") and item.callspec.params.get("stack") is not None


def _limits(item: pytest.Function) -> list[float]:
    """Return the time limits that apply to the law."""
    return [limit for limit in (item.stash.get(SECONDS, None), item.config.getoption("example_timeout")) if limit]


def _attempt(lines: list[Line]) -> tuple[str, str] | None:
    """Return the stack and the name of the attempt (`properties.preconditions`) in which the journal ends, if any."""
    kind, *values = lines[-1]
    return (values[0], values[1]) if kind == "try" else None


class GroupScheduling(LoadGroupScheduling):  # type: ignore[misc]
    """
    The scheduling of `--dist loadgroup`, with at least two laws for a worker that replaces another one.

    A worker begins a law when it knows the next one. Given one law while others wait, it would wait forever.
    """

    def schedule(self) -> None:
        """Distribute the laws; this is called again whenever a worker has been replaced."""
        super().schedule()
        for node in self.nodes:
            while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                self._assign_work_unit(node)


class Controller:
    """Completes the reports of laws whose worker has ended."""

    def __init__(self, config: pytest.Config) -> None:
        folder = tempfile.TemporaryDirectory(prefix="lenet-journal-", ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.workers = 0  # that have been started and have not collected the laws
        self.not_begun: Counter[str] = Counter()  # how often a law had not begun when its worker ended

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> GroupScheduling | None:
        """Replace the scheduling of groups."""
        return GroupScheduling(config, log) if config.getoption("dist") == "loadgroup" else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give the folder to a worker on this machine."""
        if node.gateway.spec.popen:
            node.workerinput[FOLDER] = str(self.folder)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        """Note that a worker has started to the end."""
        node.has_collected = True
        self.workers = 0

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """End the run if worker after worker ends before it has collected the laws: their replacements would, too."""
        if error and not hasattr(node, "has_collected"):
            self.workers += 1
            if self.workers > 2 * node.workerinput["workercount"]:
                pytest.exit(f"{self.workers} workers ended before their first law", pytest.ExitCode.INTERNAL_ERROR)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any, sched: Any) -> None:
        """Complete the report of a law, or have the law run again if it was not the law that ended the worker."""
        lines = journal.read(journal.law_path(self.folder, crashitem))
        attempt = _attempt(lines) if lines else None
        if attempt:
            message = self._message(lines, "")
            journal.add_death(self.folder, *attempt, message)
        elif lines:
            self._complete(report, lines)
            return
        elif LAWS.name not in crashitem or self.not_begun[crashitem]:
            return  # as pytest-xdist reports it: as an error without a verdict
        self.not_begun[crashitem] += not attempt
        report.outcome = RERUN
        with suppress(NotImplementedError):  # by `--dist loadgroup` and its like, which run it again anyway
            sched.mark_test_pending(crashitem)

    def _complete(self, report: Any, lines: list[Line]) -> None:
        header, last = lines[0][1], lines[-1]
        examples = [line for line in lines if line[0] == "example"]
        counts, drawn = examples[-1][1:] if examples else ({}, {})
        where = "in this example" if last[0] == "example" else "after its last example"
        message = self._message(lines, where if examples else "before its first example")
        entry, explanation = complete_crash(header, counts, drawn, message)
        entry["seconds"] = max(0.0, time.time() - header["begin"])
        if message.startswith("Timeout"):
            entry["failure_kind"] = "timeout"
        report.when, report.location, report.longrepr = "call", tuple(header["location"]), message
        report.duration = entry["seconds"]
        report.user_properties.append((PROPERTY, entry))
        report.sections.append(("law", explanation))

    def _message(self, lines: list[Line], where: str) -> str:
        """Return how the process ended, in one line, and the innermost frames of Python if they are known."""
        header = lines[0][1]
        path = journal.traceback_path(self.folder, header["worker"])
        text = path.read_text(errors="replace") if path.exists() else ""
        last = re.split(r"^(?=Timeout \(|Fatal Python error: )", text, flags=re.MULTILINE)[-1]
        if last.startswith("Timeout"):
            seconds = min(header["limits"], default=0)
            how = f"Timeout: not finished within {seconds:g} s; the process did not return to Python and was ended"
        else:
            how = f"the process {_end(header['process'])}"
        return "\n".join([f"{how} {where}".rstrip(), *_frames(last, header["thread"])])


def _end(process: int) -> str:
    """Return how a child process ended. It is not waited for: its owner does that."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        except ChildProcessError:
            break
        if ended and ended.si_code == os.CLD_EXITED:
            return f"exited with code {ended.si_status}"
        if ended:
            name = signal.Signals(ended.si_status).name
            return f"died by {name}" + (", perhaps for lack of memory," if name == "SIGKILL" else "")
        time.sleep(0.01)
    return "ended"


def _frames(text: str, thread: int) -> list[str]:
    """Return the frames of the main thread in what `faulthandler` has written, innermost first, down to the law's."""
    sections = re.split(r"^(?:Current thread|Thread) (0x[0-9a-f]+).*$", text, flags=re.MULTILINE)
    own = [body for number, body in zip(sections[1::2], sections[2::2], strict=True) if int(number, 16) == thread]
    frames = re.findall(r'^ +File "(.*)", line (\d+|\?\?\?) in (.*)$', own[-1] if own else "", re.MULTILINE)
    laws = [number for number, (file, _, _) in enumerate(frames) if Path(file).parent == LAWS]
    shown = frames[: min([INNERMOST, *[number + 1 for number in laws]])]
    return [f"  {file}:{line}: in {name}" for file, line, name in shown]


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: Any) -> tuple[str, str, str] | None:
    """Print nothing for a law that is run again."""
    return ("", "", "") if report.outcome == RERUN else None


def pytest_enter_pdb() -> None:
    """Let whoever debugs an example take the time that it takes."""
    suspend_time_limits()
