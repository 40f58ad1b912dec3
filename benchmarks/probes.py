"""What a worker reads from the operating system and the device: memory, waiting time, and which machine this is."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def run_queue_wait() -> Callable[[], float]:
    """
    Return a clock of the seconds that this thread was runnable while the system ran other threads.

    The clock stays at 0 if the system does not report it. https://docs.kernel.org/scheduler/sched-stats.html
    """
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return lambda: 0.0
    return lambda: int(os.pread(file, 100, 0).split()[1]) / 1e9


def reset_peak_memory(device: torch.device) -> int | None:
    """Reset the counter that `peak_memory` reads, and return the bytes in use; None if the system cannot do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """Return the peak of the bytes in use since the last reset: PyTorch's allocator's on a GPU, else resident ones."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    """Return the resident bytes of this process: `VmRSS` for now, `VmHWM` for the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def machine_identity(stack: Mapping[str, str]) -> dict[str, str]:
    """Return what two processes on one machine have in common, and what differs between two machines."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    host = {"host": platform.node()} | ({"boot": boot.read_text().strip()} if boot.exists() else {})
    return host | {part: value for part, value in stack.items() if part in ("processor", "cores", "GPU")}
