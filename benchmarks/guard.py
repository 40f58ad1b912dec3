"""
Nothing is left behind: a guard process removes a run's processes and temporary files, however the run ends.

A run has one temporary folder, `folder()`. Every worker has a subfolder of it as its TMPDIR and in an environment
variable, which all processes that it starts inherit, also those in a session of their own. The guard waits for the end
of a pipe that only the run holds open. When the run is gone, after SIGKILL too, the guard kills the processes whose
variable names the folder, and removes the folder. If the guard was killed as well, the next run does that: a lock in
the folder is held for as long as its run lives.

The guard imports the standard library alone. On a system without /proc, only the folders are removed.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from lenet import system

VARIABLE = "LENET_BENCHMARKS_WORKER"
"""The environment variable that names the folder of the worker to which a process belongs."""

PREFIX = "lenet-benchmarks-"
LOCK = "lock"

SWEEPS = 10
"""Repetitions of the search for processes, since one that is being killed may just have started another."""

START = "import sys; sys.path.insert(0, sys.argv[1]); from benchmarks.guard import main; main()"
"""The program of a guard; its arguments are the folder of this project's packages, and the run's folder."""

GUARD_TIMEOUT = 5.0
"""Seconds that a run waits at its end until the guard has removed everything."""


@cache
def folder() -> Path:
    """Return this run's temporary folder. The first call removes what earlier runs left, and starts the guard."""
    _remove_leftovers()
    made = Path(tempfile.mkdtemp(prefix=PREFIX))
    unlocked = made / "unlocked"
    lock = os.open(unlocked, os.O_WRONLY | os.O_CREAT)  # held until this process ends
    fcntl.flock(lock, fcntl.LOCK_EX)
    unlocked.rename(made / LOCK)
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", START, str(Path(__file__).parents[1]), str(made)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends this process's session does not end the guard
    )
    atexit.register(guard.communicate, timeout=GUARD_TIMEOUT)  # closes the pipe and waits
    return made


def remove(place: Path) -> None:
    """Kill all processes that belong to this folder, or to one in it, and remove it."""
    for _ in range(SWEEPS):
        found = list(_processes(place))
        for process in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if not found:
            break
    shutil.rmtree(place, ignore_errors=True)


def _processes(place: Path) -> Iterator[int]:
    """Yield the ids of the processes whose variable names this folder or one in it."""
    named = os.fsencode(f"{VARIABLE}={place}")
    for process, values in system.environments():
        if any(value == named or value.startswith(named + b"/") for value in values):
            yield process


def _remove_leftovers() -> None:
    """Remove the folders of runs that are gone, with their processes; other users' folders are left alone."""
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # it is another user's, is being removed, or its run lives
            if place.lstat().st_uid != os.getuid():
                continue
            lock = os.open(place / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(place)
            finally:
                os.close(lock)


def main() -> None:
    """Wait for the end of standard input, and remove everything that belongs to the run's folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove(Path(sys.argv[2]))
