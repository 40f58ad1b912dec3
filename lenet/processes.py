"""Processes end with the run that started them: child processes, and whatever these start in sessions of their own."""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def end_with_parent() -> None:
    """Have this process terminated when its parent ends, however that ends; for `preexec_fn` of `subprocess`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Have this process adopt the descendants whose parents end, so that `descendants` finds them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> set[int]:
    """Return the ids of the running processes that this process has started, directly or not."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(folder.name))
    found, parents = set[int](), [os.getpid()]
    while parents:
        own = children.get(parents.pop(), [])
        found.update(own)
        parents += own
    return found


def end_descendants(spared: set[int]) -> None:
    """Kill the descendants other than those spared and Python's resource tracker, which ends with this process."""
    for process in descendants() - spared:
        with suppress(OSError):
            if b"resource_tracker" not in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
