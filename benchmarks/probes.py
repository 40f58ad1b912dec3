"""What a worker reads from the operating system and the device: memory, and which machine this is."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from lenet import system


def reset_peak_memory(device: torch.device) -> int | None:
    """Reset the counter that `peak_memory` reads, and return the bytes in use; None if the system cannot do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return system.reset_peak_memory()


def peak_memory(device: torch.device) -> int:
    """Return the peak of the bytes in use since the last reset: PyTorch's allocator's on a GPU, else resident ones."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else system.peak_memory()


def machine_identity(stack: Mapping[str, str]) -> dict[str, str]:
    """Return what two processes on one machine have in common, and what differs between two machines."""
    host = {"host": platform.node()} | ({"boot": boot} if (boot := system.boot_id()) else {})
    return host | {part: value for part, value in stack.items() if part in ("processor", "cores", "GPU")}
