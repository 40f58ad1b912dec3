"""
Exact counters of a call: the same in every run of the same code on the same stack, however busy the machine is.

FLOPs come from `torch.utils.flop_counter`, everything else from the events of `torch.profiler`. A counter that differs
between two counts of one call in one process is not exact, and is left out.

https://docs.pytorch.org/docs/stable/profiler.html
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import allocations

UNITS = {
    "FLOPs": "floating-point operations; a multiply-add counts as two",
    "operators": "calls of PyTorch operators, including those made by other operators",
    "launches": "kernel launches on the GPU",
    "allocations": "memory allocations on the device",
    "peak memory": "bytes, above those in use before the call",
    "graph breaks": "in the engine's compilation",
    "recompiles": "after the first call",
}
"""The counters of one call, and what each counts."""

MARK = "counted"
LAUNCHES = ("cudaLaunch", "cuLaunch")


def count(call: Callable[[], Any], device: torch.device, graphs: int) -> dict[str, int]:
    """
    Return the counters of a call that agree in two counts.

    Graph breaks and recompiles are those of the process so far; `graphs` is the number of compiled graphs after the
    first call.
    """
    first, second = (_counted(call, device) for _ in range(2))
    both = {name: number for name, number in first.items() if number is not None and number == second[name]}
    return both | {"graph breaks": sum(_dynamo("graph_break").values()), "recompiles": compiled_graphs() - graphs}


def compiled_graphs() -> int:
    """Return the number of graphs that this process has compiled."""
    return int(_dynamo("stats").get("unique_graphs", 0))


def _dynamo(name: str) -> dict[str, int]:
    """Return Dynamo's counter of this name, without importing Dynamo if nothing has used it."""
    utilities: Any = sys.modules.get("torch._dynamo.utils")
    return dict(utilities.counters[name]) if utilities else {}


def _counted(call: Callable[[], Any], device: torch.device) -> dict[str, int | None]:
    """Return the counters of one call; no FLOPs if it runs a compiled graph, which FlopCounterMode does not support."""
    events, compiled = _events(call, device)
    return {"FLOPs": None if compiled else _flops(call)} | events


def _flops(call: Callable[[], Any]) -> int | None:
    """Return the FLOPs of a call, or None if it runs no PyTorch operator that has any, as in other libraries."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) or None


def _events(call: Callable[[], Any], device: torch.device) -> tuple[dict[str, int], bool]:
    """
    Return the counters from the profiler's events of a call, and whether it runs a compiled graph.

    The second of two calls is counted, since the first may release memory that was allocated before the profiler ran.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, profile_memory=True) as profiler:
        call()
        with record_function(MARK):
            call()
    events = profiler.profiler.kineto_results.events()
    (marked,) = (event for event in events if event.name() == MARK and event.device_type().name == "CPU")
    within = [event for event in events if marked.start_ns() <= event.start_ns() <= marked.end_ns()]
    memory = allocations(within, device)
    counted = {
        "operators": sum(event.name().startswith("aten::") for event in within),
        "allocations": sum(size > 0 for size in memory),
        "peak memory": max(accumulate(memory, initial=0)),
    }
    if device.type == "cuda":
        counted["launches"] = sum(event.name().startswith(LAUNCHES) for event in within)
    return counted, any(event.name().startswith("Torch-Compiled Region") for event in within)
