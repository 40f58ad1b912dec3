"""
What a call does, counted: the same in every run of the same code on the same stack, however busy the machine is.

FLOPs as `torch.utils.flop_counter` counts them, everything else from the events of `torch.profiler`. What differs
between two counts of one call in one process is no exact figure, and is left out.

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

from benchmarks.memory import changes

UNITS = {
    "FLOPs": "a multiply-add being two",
    "operators": "calls of PyTorch's operators, those within others included",
    "launches": "of kernels on the GPU",
    "allocations": "of memory on the device",
    "peak memory": "bytes, above what was in use before the call",
    "graph breaks": "of the engine's compilation",
    "recompiles": "after the first call",
}
"""The counters, and what each counts, a call."""

COUNTED = "counted"
LAUNCHES = ("cudaLaunch", "cuLaunch")


def count(call: Callable[[], Any], device: torch.device, graphs: int) -> dict[str, int]:
    """
    The counters of a call that are the same twice; `graphs` have been compiled when the first call was over.

    Graph breaks and recompiles are those of the process so far.
    """
    first, second = (_counted(call, device) for _ in range(2))
    both = {name: number for name, number in first.items() if number is not None and number == second[name]}
    return both | {"graph breaks": sum(_dynamo("graph_break").values()), "recompiles": compiled_graphs() - graphs}


def compiled_graphs() -> int:
    """How many graphs this process has compiled."""
    return int(_dynamo("stats").get("unique_graphs", 0))


def _dynamo(name: str) -> dict[str, int]:
    """Dynamo's counter of this name, without importing what nobody has."""
    utilities: Any = sys.modules.get("torch._dynamo.utils")
    return dict(utilities.counters[name]) if utilities else {}


def _counted(call: Callable[[], Any], device: torch.device) -> dict[str, int | None]:
    """Of a call: its events, and its FLOPs, where it runs no compiled graph: those refuse to be watched."""
    events, compiled = _events(call, device)
    return {"FLOPs": None if compiled else _flops(call)} | events


def _flops(call: Callable[[], Any]) -> int | None:
    """None where no operator is seen, as of other libraries."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) or None


def _events(call: Callable[[], Any], device: torch.device) -> tuple[dict[str, int], bool]:
    """
    Of the second of two calls, since what the first frees may have been allocated before anybody looked.

    And whether it runs a graph that was compiled.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, profile_memory=True) as profiler:
        call()
        with record_function(COUNTED):
            call()
    events = profiler.profiler.kineto_results.events()
    (whole,) = (event for event in events if event.name() == COUNTED and event.device_type().name == "CPU")
    within = [event for event in events if whole.start_ns() <= event.start_ns() <= whole.end_ns()]
    memory = changes(within, device)
    counted = {
        "operators": sum(event.name().startswith("aten::") for event in within),
        "allocations": sum(size > 0 for size in memory),
        "peak memory": max(accumulate(memory, initial=0)),
    }
    if device.type == "cuda":
        counted["launches"] = sum(event.name().startswith(LAUNCHES) for event in within)
    return counted, any(event.name().startswith("Torch-Compiled Region") for event in within)
