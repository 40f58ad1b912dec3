"""
Processes end with the run that started them: child processes, and whatever these start in sessions of their own.

Where `lenet.system` has no `prctl`, a child outlives a parent that is killed, and an orphan is not found.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from lenet import system


def end_with_parent() -> None:
    """Have this process terminated when its parent ends, however that ends; for `preexec_fn` of `subprocess`."""
    system.prctl(system.PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Have this process adopt the descendants whose parents end, so that `descendants` finds them."""
    system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> set[int]:
    """Return the ids of the running processes that this process has started, directly or not."""
    children: dict[int, list[int]] = {}
    for process, parent in system.parents_of_processes().items():
        children.setdefault(parent, []).append(process)
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
            if b"resource_tracker" not in system.command_line(process):
                os.kill(process, signal.SIGKILL)
