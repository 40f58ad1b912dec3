"""
The memory that a call takes, counted by PyTorch's allocator.

The count is exact: it takes no samples, and other processes do not affect it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.roofline import ACTIVATIONS, PARAMETERS

CONV1_PARAMETERS = 6 * (5 * 5 + 1)


def peak(call: Callable[[], Any], device: torch.device) -> int | None:
    """Return the peak of the bytes in use during a call, above those before it; None if the device does not count."""
    if device.type == "cpu":
        return max(0, *bytes_in_use(call))
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def bytes_in_use(call: Callable[[], Any]) -> Iterable[int]:
    """
    Return the bytes in use above those before a call on the CPU: 0, then after each allocation and each release.

    The result of the call still counts at the end. Two things do not count: scratch space of a library such as oneDNN,
    and the release of memory that was allocated before the call, whose size the profiler does not know.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    return accumulate(allocations(profiler.profiler.kineto_results.events(), torch.device("cpu")), initial=0)


def allocations(events: Iterable[Any], device: torch.device) -> list[int]:
    """Return the sizes in bytes of a profiler's allocations on a device, in order; a release is a negative size."""
    seen = [event for event in events if event.name() == "[memory]" and event.device_type().name == device.type.upper()]
    return [event.nbytes() for event in sorted(seen, key=lambda event: event.start_ns())]


def min_forward_memory(batch: int, itemsize: int) -> int:
    """Return the bytes of the two largest tensors that a layer of a forward pass needs: conv1's output and its ReLU."""
    return 2 * batch * ACTIVATIONS["c1"] * itemsize


def min_training_memory(batch: int, itemsize: int) -> int:
    """
    Return the bytes that the layers of a training step need at once, for a network without gradients.

    During the backward pass of conv1's ReLU these are its output, the gradient of its output, the gradient of its
    input, and the gradients of all parameters except conv1's.
    """
    return itemsize * (3 * batch * ACTIVATIONS["c1"] + PARAMETERS - CONV1_PARAMETERS)
