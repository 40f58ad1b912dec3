"""
What Linux offers beyond POSIX, and what happens on a system without it: nothing else here reads /proc or calls Linux.

Without these facilities, everything runs; two functions at the end say what is then not done. macOS has no /proc, no
`prctl` and no affinity of threads to cores. No run on macOS is published: the tests remove the facilities from a Linux
system. What every POSIX system has (`fcntl`, signals, sessions) is used where it is needed. The standard library
is all that this module imports.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
"""The folder in which Linux describes processes and the machine. https://docs.kernel.org/filesystems/proc.html"""

CPUS = Path("/sys/devices/system/cpu")
"""The folder in which Linux describes the caches and the frequency of each processor."""

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux mounts control groups. https://docs.kernel.org/admin-guide/cgroup-v2.html"""

UNLIMITED = 2**60
"""Bytes of memory that no machine has. Version 1 of control groups writes a larger number if there is no limit."""

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <linux/prctl.h>


def prctl(option: int, value: int) -> bool:
    """Set an attribute of this process; False if the system has no `prctl`."""
    call = getattr(ctypes.CDLL(None), "prctl", None)
    return call is not None and call(option, value) == 0


def parents_of_processes() -> dict[int, int]:
    """Return the id of each running process with the id of its parent: from /proc, else from `ps`."""
    found = dict(_parents_in_proc())
    if not found:
        with suppress(OSError):  # there is no `ps` either
            with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat="], stdout=subprocess.PIPE, text=True) as listing:
                rows = [line.split() for line in listing.communicate()[0].splitlines()]
            found = {int(process): int(parent) for process, parent, state, *_ in rows if not state.startswith("Z")}
            found.pop(listing.pid, None)
    return found


def _parents_in_proc() -> Iterator[tuple[int, int]]:
    for process in _in_proc():
        with suppress(OSError):  # it has just ended
            state, parent = (PROC / f"{process}" / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                yield process, int(parent)


def _in_proc() -> list[int]:
    """Return the ids of all processes in /proc; none if the system has no /proc."""
    return [int(name) for name in _names(PROC) if name.isdecimal()]


def _names(folder: Path) -> list[str]:
    """Return the names in a folder; none if it does not exist (any more)."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def command_line(process: int) -> bytes:
    """Return the command line of a process, from /proc, else from `ps`; raises OSError if there is no such process."""
    if _in_proc():
        return (PROC / f"{process}" / "cmdline").read_bytes()
    return subprocess.run(["ps", "-p", f"{process}", "-o", "command="], capture_output=True, check=False).stdout


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the id and the environment of each process of this user; none if the system has no /proc."""
    for process in _in_proc():
        with suppress(OSError):  # it has just ended, or is another user's
            yield process, (PROC / f"{process}" / "environ").read_bytes().split(b"\0")


def available_cores() -> list[int]:
    """Return the cores that this process is allowed to use, or [0] if the system does not report them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def usable_cores() -> int:
    """Return how many cores this process can keep busy: as many as it may run on, and as its control groups allow."""
    allowed = len(available_cores()) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return allowed if limit is None else max(1, min(allowed, math.ceil(limit)))


def affinity() -> str:
    """Return the cores that this process may run on, such as `0-3,8`; empty if the system does not report them."""
    lines = _read(PROC / "self" / "status").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("Cpus_allowed_list:")), "")


def cpu_limit() -> float | None:
    """Return the processor time per second that the control groups of this process allow; None if any."""
    quotas = [text.split() for text in _in_cgroups("", "cpu.max")]  # version 2: `max 100000` or `150000 100000`
    version_1 = (_in_cgroups("cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    quotas += map(list, zip(*version_1, strict=True))
    return min((int(quota) / int(period) for quota, period in quotas if quota not in ("max", "-1")), default=None)


def memory_limit() -> int | None:
    """Return the bytes of memory that the control groups of this process allow; None if any."""
    limits = [*_in_cgroups("", "memory.max"), *_in_cgroups("memory", "memory.limit_in_bytes")]
    return min((int(limit) for limit in limits if limit != "max" and int(limit) < UNLIMITED), default=None)


def _in_cgroups(controller: str, name: str) -> list[str]:
    """
    Return what the files of this name contain, in this process's control group and in those that contain it.

    The controller is that of version 1; version 2 has one group for all controllers, named by an empty text.
    """
    found = []
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            parts = Path(path).parts[1:]
            roots = [CGROUPS / controllers] if controllers else [CGROUPS, CGROUPS / "unified"]
            folders = [root.joinpath(*parts[:depth]) for root in roots for depth in range(len(parts) + 1)]
            found += [text for folder in folders if (text := _read(folder / name).strip())]
    return found


def governors() -> str:
    """Return the names of the frequency governors of all processors; empty if the system does not report them."""
    names = {_read(CPUS / cpu / "cpufreq" / "scaling_governor").strip() for cpu in _names(CPUS)}
    return ", ".join(sorted(names - {""}))


def _read(file: Path) -> str:
    """Return the text of a file of the system; empty if it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def pin(process: int, cores: Iterable[int]) -> None:
    """Restrict all threads of a process to these cores, if the system can do that."""
    if _can_pin():
        for thread in _names(PROC / f"{process}" / "task"):  # none if the process has exited
            with suppress(ProcessLookupError):  # the thread has just ended
                os.sched_setaffinity(int(thread), cores)


def _can_pin() -> bool:
    return hasattr(os, "sched_setaffinity") and bool(_in_proc())


def run_queue_wait() -> Callable[[], float]:
    """
    Return a clock of the seconds that this thread was runnable while the system ran other threads.

    The clock stays at 0 if the system does not report it. https://docs.kernel.org/scheduler/sched-stats.html
    """
    try:
        file = os.open(PROC / "thread-self" / "schedstat", os.O_RDONLY)
    except OSError:
        return lambda: 0.0
    return lambda: int(os.pread(file, 100, 0).split()[1]) / 1e9


def foreign_wait(elapsed: float, waited: float, others: float, cores: int) -> float:
    """
    Return the seconds, of the `waited` ones of a thread, in which other programs ran on its core.

    Within `elapsed` seconds, the process's other threads took `others` seconds of processor time. The process may use
    `cores` cores, so what did not fit on the others ran on this one, and the thread waited for its own process.
    """
    displaced = max(0.0, others - (cores - 1) * elapsed)
    return max(0.0, waited - displaced)


def reset_peak_memory() -> int | None:
    """Reset the peak that `peak_memory` reads, and return the resident bytes; None if the system cannot do that."""
    try:
        (PROC / "self" / "clear_refs").write_text("5")
        return _resident("VmRSS")
    except OSError:
        return None


def peak_memory() -> int:
    """Return the peak of the resident bytes of this process since the last reset."""
    return _resident("VmHWM")


def _resident(field: str) -> int:
    lines = (PROC / "self" / "status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def processor() -> str:
    """Return the processor's model name from /proc/cpuinfo, or what the platform reports if that has none."""
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def boot_id() -> str:
    """Return what identifies this start of the machine; empty if the system does not report it."""
    try:
        return (PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError:
        return ""


def timing_limitations() -> list[str]:
    """Return what is not done on this system when code is timed, a line each."""
    lines = []
    if not _can_pin():
        lines.append("processes are not pinned to cores, so times vary more than in the published trials")
    if "schedstat" not in _names(PROC / "thread-self"):
        lines.append("times include waiting for a core: this system does not report it")
    return lines


def process_limitations() -> list[str]:
    """Return what is not done on this system with the processes that judged code starts, a line each."""
    if hasattr(ctypes.CDLL(None), "prctl") and _in_proc():
        return []
    return ["background processes that judged code starts may outlive the run: this system does not report them"]
