"""However a run ends, its processes and temporary files are gone afterwards, and no others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks import guard
from benchmarks.fakes import ROOT, process_runs

RUN = """
import signal, subprocess, sys, time
from benchmarks import guard
worker = guard.folder() / "worker-1"
worker.mkdir()
variables = {"PATH": "/usr/bin:/bin", guard.VARIABLE: str(worker)}
child = subprocess.Popen(["sleep", "1000"], start_new_session=True, env=variables, stdout=subprocess.DEVNULL)
for number in (signal.SIGINT, signal.SIGHUP):  # a shell's background jobs ignore them
    signal.signal(number, signal.SIG_DFL)
print(child.pid, flush=True)
time.sleep(1000)
"""
"""A run with a process in a session of its own, whose id it prints."""


class Run:
    """A run in a process of its own, which has written its process's id."""

    def __init__(self, temporary: Path) -> None:
        self.environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN], env=self.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout
        self.child = int(self.process.stdout.readline())

    def end(self, number: int) -> None:
        """Send a signal to the run and all processes of its group, as a terminal does, and wait for its end."""
        with suppress(ProcessLookupError):  # it has ended before
            os.killpg(self.process.pid, number)
        self.process.communicate(timeout=10)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run whose temporary files are in `tmp_path`."""
    started = Run(tmp_path)
    yield started
    started.end(signal.SIGKILL)


def becomes(condition: Callable[[], bool]) -> bool:
    """Return whether a condition becomes true within five seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def guards(temporary: Path) -> list[int]:
    """Return the ids of the guards of the runs whose temporary files are in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"benchmarks.guard" in arguments and os.fsencode(temporary) in arguments:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_killed_run_leaves_nothing_behind(run: Run, tmp_path: Path, number: int) -> None:
    assert process_runs(run.child)

    run.end(number)

    assert becomes(lambda: not process_runs(run.child))
    assert becomes(lambda: not list(tmp_path.iterdir()))


def test_next_run_removes_what_a_killed_guard_left(run: Run, tmp_path: Path) -> None:
    for process in guards(tmp_path):
        os.kill(process, signal.SIGKILL)
    run.end(signal.SIGKILL)
    assert process_runs(run.child)
    assert len(list(tmp_path.iterdir())) == 1

    Run(tmp_path).end(signal.SIGTERM)

    assert becomes(lambda: not process_runs(run.child))
    assert becomes(lambda: not list(tmp_path.iterdir()))


def test_next_run_leaves_a_living_run_alone(run: Run, tmp_path: Path) -> None:
    other = tmp_path / f"{guard.PREFIX}without-a-lock"
    other.mkdir()

    Run(tmp_path).end(signal.SIGTERM)

    assert process_runs(run.child)
    assert other.exists()


def test_only_processes_of_the_folder_are_killed(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("worker-1", "worker-11")]
    first, second = (
        subprocess.Popen(["sleep", "1000"], env={"PATH": "/usr/bin:/bin", guard.VARIABLE: str(place)})
        for place in places
    )

    guard.remove(places[0])

    assert first.wait(5) == -signal.SIGKILL
    assert second.poll() is None
    guard.remove(places[1])
    assert second.wait(5) == -signal.SIGKILL
