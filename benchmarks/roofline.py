"""
The roofline model: how close a time is to the limits of the machine, from rates measured in the same run.

Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
Communications of the ACM 52(4): attainable FLOP/s = min(compute rate, FLOPs per byte * memory rate).

The bytes are counted for a network that runs layer by layer and keeps nothing in a cache between layers: each
activation is written once and read once, and a ReLU is part of its layer. An engine that fuses layers, or a batch that
stays in the cache, can therefore exceed 100 % of the attainable rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from lenet.system import CPUS

Entry: TypeAlias = dict[str, Any]
"""A benchmark of benchmarks.json: its `extra_info`, and its `stats` with the `median` in seconds."""

Configuration: TypeAlias = tuple[str, str, str, int]
"""The subject, device, dtype and number of threads. Only times of one configuration are compared."""

ACTIVATIONS = {"c1": 6 * 28 * 28, "s2": 6 * 14 * 14, "c3": 16 * 10 * 10, "s4": 16 * 5 * 5, "f5": 120, "f6": 84}
"""Elements per image of each layer's output, by the name of the variable in `lenet.net.Net.forward`."""

PIXELS = 1 * 32 * 32
LOGITS = 10
PARAMETERS = 61_706
BACKWARD_PARAMETERS = 16 * 6 * 5 * 5 + 120 * 400 + 84 * 120 + 10 * 84
"""The parameters that the backward pass reads: all weights except conv1's, as images need no gradient."""

GIB = 2**30


def forward_bytes(batch: int, itemsize: int) -> int:
    """
    Return the bytes that a forward pass moves.

    Parameters and images are read, activations written and read, and logits written.
    """
    return itemsize * (PARAMETERS + batch * (PIXELS + 2 * sum(ACTIVATIONS.values()) + LOGITS))


def training_bytes(batch: int, itemsize: int) -> int:
    """
    Return the bytes that a training step moves.

    Parameters: read by the forward pass, read and written by the update, their gradients written and read (5 times),
    and most of them read by the backward pass. Images: read by the forward pass and by conv1's gradient (2).
    Activations: written, read by the forward pass and by the backward pass, their gradients written and read (5).
    Logits: written, read together with the targets, their gradients written and read (5).
    """
    activations = sum(ACTIVATIONS.values())
    return itemsize * (5 * PARAMETERS + BACKWARD_PARAMETERS + batch * (2 * PIXELS + 5 * activations + 5 * LOGITS))


@dataclass(frozen=True)
class Position:
    """The position of a time in the roofline model."""

    intensity: float  # FLOPs per byte
    attainable: float  # FLOP/s
    share: float  # of the attainable rate that was reached
    bound: str  # what limits it: "compute" or "memory"


def position(flops: int, moved: int, seconds: float, compute: float, memory: float) -> Position:
    """Return a call's position from its FLOPs, bytes and seconds; `compute` is in FLOP/s, `memory` in bytes/s."""
    intensity = flops / moved
    attainable = min(compute, intensity * memory)
    bound = "compute" if compute <= intensity * memory else "memory"
    return Position(intensity, attainable, flops / seconds / attainable, bound)


def configuration(entry: Entry) -> Configuration:
    """Return the configuration that a benchmark ran in."""
    info = entry["extra_info"]
    return info["subject"], info["device"], info["dtype"], info["threads"]


def add_positions(entries: list[Entry]) -> None:
    """Add its roofline position to the `extra_info` of each entry that has FLOPs, bytes and measured limits."""
    for entry in entries:
        info = entry["extra_info"]
        if info.get("flops") and info.get("bytes") and info.get("limits"):
            compute, memory = info["limits"]["flops_per_second"], info["limits"]["bytes_per_second"]
            found = position(info["flops"], info["bytes"], entry["stats"]["median"], compute, memory)
            info["roofline"] = asdict(found)


def copied_bytes(cache: int | None) -> int:
    """
    Return the bytes of the array to copy, given those of all last-level caches: four times as many, 1 GiB if unknown.

    Four times is STREAM's rule, https://www.cs.virginia.edu/stream/ref.html. The array has at most 1 GiB, so that two
    of them fit in memory.
    """
    return GIB if cache is None else min(4 * cache, GIB)


def last_level_cache(device: torch.device, system: Path = CPUS) -> int | None:
    """Return the bytes of all last-level caches, of the GPU or as Linux reports the CPU's; None if unknown."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None)
    caches = [_cache(index) for index in system.glob("cpu[0-9]*/cache/index[0-9]*")]
    known = {cache for cache in caches if cache}
    last = max((level for level, _, _ in known), default=0)
    return sum(size for level, _, size in known if level == last) or None


def _cache(folder: Path) -> tuple[int, str, int] | None:
    """Return a cache's level, the processors that share it, which identify it, and its bytes; None if unknown."""
    try:
        level, shared, size = ((folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
        return int(level), shared, int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class DataSheet:
    """The peak rates that a device's vendor states, without sparsity."""

    flops: Mapping[str, float]  # FLOP/s by dtype; float64 on tensor cores
    memory: float  # bytes/s
    source: str


HOPPER = {"float64": 67e12, "float32": 67e12, "bfloat16": 989e12, "float16": 989e12}
AMPERE = {"float64": 19.5e12, "float32": 19.5e12, "bfloat16": 312e12, "float16": 312e12}
A100 = "NVIDIA A100 Tensor Core GPU data sheet, https://www.nvidia.com/en-us/data-center/a100/"

DATA_SHEETS = {
    "NVIDIA H200": DataSheet(
        HOPPER, 4.8e12, "NVIDIA H200 data sheet (SXM), https://www.nvidia.com/en-us/data-center/h200/"
    ),
    "NVIDIA H100 80GB HBM3": DataSheet(
        HOPPER, 3.35e12, "NVIDIA H100 data sheet (SXM), https://www.nvidia.com/en-us/data-center/h100/"
    ),
    "NVIDIA A100-SXM4-80GB": DataSheet(AMPERE, 2.039e12, A100),
    "NVIDIA A100-SXM4-40GB": DataSheet(AMPERE, 1.555e12, A100),
}
"""The data sheets by the GPU's name in `lenet.fingerprint`. Data sheets of CPUs state no FLOP/s."""


def data_sheet(stack: Mapping[str, str], device: str, dtype: str) -> str:
    """Return a phrase with the peak rates of a device and their source, or that none is known."""
    name = stack.get("GPU", "this GPU") if device.startswith("cuda") else stack["processor"]
    sheet = DATA_SHEETS.get(name)
    if sheet is None:
        return f"no data sheet figure known for {name}"
    flops = f"{sheet.flops[dtype] / 1e12:g} TFLOP/s" if dtype in sheet.flops else f"no figure for {dtype}"
    return f"peak of {name}: {flops}, {sheet.memory / 1e12:g} TB/s ({sheet.source})"
