"""How much memory a call takes, counted by PyTorch's allocator, which makes it exact: no sampling, no other process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.roofline import MAPS, PARAMETERS

CONV1 = 6 * (5 * 5 + 1)
"""Parameters of the first layer."""


def peak(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call has in use at most, above those before it; None on a device that does not count them."""
    if device.type == "cpu":
        return max(0, *balance(call))
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def balance(call: Callable[[], Any]) -> Iterable[int]:
    """
    Bytes in use above those before a call on the CPU: 0, then after each allocation and each release.

    What the call returns still counts at the end. What does not: a library's own scratch space, such as oneDNN's, and
    the release of what was in use before, whose size the profiler does not know.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    del result
    return accumulate(changes(profiler.profiler.kineto_results.events(), torch.device("cpu")), initial=0)


def changes(events: Iterable[Any], device: torch.device) -> list[int]:
    """Bytes that a profiler saw allocated on a device (or released, below 0), in order of time."""
    seen = [event for event in events if event.name() == "[memory]" and event.device_type().name == device.type.upper()]
    return [event.nbytes() for event in sorted(seen, key=lambda event: event.start_ns())]


def forward_at_least(batch: int, itemsize: int) -> int:
    """Bytes of the largest two tensors that a forward pass, layer by layer, needs at once: conv1's and its ReLU."""
    return 2 * batch * MAPS["c1"] * itemsize


def training_at_least(batch: int, itemsize: int) -> int:
    """
    The same for a training step of a network without gradients.

    When conv1's ReLU goes backward there are its output, the gradient of it, that of its input to be, and the
    gradients of all parameters but conv1's.
    """
    return itemsize * (3 * batch * MAPS["c1"] + PARAMETERS - CONV1)
