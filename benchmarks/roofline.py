"""
How far a time is from what the machine can do: the roofline, from rates that were measured in the same run.

Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
Communications of the ACM 52(4): attainable = min(compute rate, floating-point operations a byte * memory rate).

The bytes are those of a network that runs layer by layer and keeps nothing in a cache between two layers: each tensor
that one layer hands to the next is written once and read once, a ReLU being part of its layer. An engine that fuses
layers, or a batch that stays in the cache, may therefore reach more than 100 % of what is attainable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

Entry: TypeAlias = dict[str, Any]
"""A benchmark as benchmarks.json has it: `extra_info`, and `stats` with its `median` in seconds."""

Place: TypeAlias = tuple[str, str, str, int]
"""What may be compared: subject, device, dtype, threads."""

MAPS = {"c1": 6 * 28 * 28, "s2": 6 * 14 * 14, "c3": 16 * 10 * 10, "s4": 16 * 5 * 5, "f5": 120, "f6": 84}
"""Numbers an image that a layer of `lenet.net.Net.forward` hands to the next, by the name that they have there."""

PIXELS = 1 * 32 * 32
SCORES = 10
PARAMETERS = 61_706
PARAMETERS_BACK = 16 * 6 * 5 * 5 + 120 * 400 + 84 * 120 + 10 * 84
"""Those that the backward pass reads: all weights but conv1's, since no gradient by the image is asked for."""

GIB = 2**30


def forward_bytes(batch: int, itemsize: int) -> int:
    """Bytes that a forward pass moves: parameters and images read, maps written and read, scores written."""
    return itemsize * (PARAMETERS + batch * (PIXELS + 2 * sum(MAPS.values()) + SCORES))


def training_bytes(batch: int, itemsize: int) -> int:
    """
    Bytes that a training step moves.

    Parameters: read forward, read and written by the update, their gradients written and read (5), and most of them
    read backward. Images: read forward and by conv1's gradient (2). Maps: written, read forward, read backward, their
    gradients written and read (5). Scores: written, read with the targets, their gradients written and read (5).
    """
    maps = sum(MAPS.values())
    return itemsize * (5 * PARAMETERS + PARAMETERS_BACK + batch * (2 * PIXELS + 5 * maps + 5 * SCORES))


@dataclass(frozen=True)
class Position:
    """Where a time stands under the roof."""

    intensity: float  # floating-point operations a byte
    attainable: float  # floating-point operations a second
    share: float  # of the attainable that was reached
    bound: str  # what limits it: "compute" or "memory"


def position(flops: int, moved: int, seconds: float, compute: float, memory: float) -> Position:
    """Of `flops` operations and `moved` bytes in `seconds`, under `compute` operations and `memory` bytes a second."""
    intensity = flops / moved
    attainable = min(compute, intensity * memory)
    bound = "compute" if compute <= intensity * memory else "memory"
    return Position(intensity, attainable, flops / seconds / attainable, bound)


def place(entry: Entry) -> Place:
    """Where a benchmark ran."""
    info = entry["extra_info"]
    return info["subject"], info["device"], info["dtype"], info["threads"]


def rates(entries: Iterable[Entry], operation: str, amount: str) -> dict[Place, float]:
    """`amount` a second, by place: ("matrix product", "flops") or ("copy", "bytes")."""
    chosen = [entry for entry in entries if entry["extra_info"]["operation"] == operation]
    return {place(entry): entry["extra_info"][amount] / entry["stats"]["median"] for entry in chosen}


def locate(entries: list[Entry]) -> None:
    """Add its position to the extra_info of each entry with flops and bytes, where both rates were measured beside."""
    compute, memory = rates(entries, "matrix product", "flops"), rates(entries, "copy", "bytes")
    for entry in entries:
        info, where = entry["extra_info"], place(entry)
        if info.get("flops") and info.get("bytes") and where in compute and where in memory:
            found = position(info["flops"], info["bytes"], entry["stats"]["median"], compute[where], memory[where])
            info["roofline"] = asdict(found)


def copied_bytes(cache: int | None) -> int:
    """
    The size of an array to copy, given the bytes of all last-level caches: four times theirs, 1 GiB if unknown.

    Four times is STREAM's rule, https://www.cs.virginia.edu/stream/ref.html. No more than 1 GiB, whatever the cache:
    two arrays are to fit in memory.
    """
    return GIB if cache is None else min(4 * cache, GIB)


def last_level_cache(device: torch.device, system: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Bytes of all caches of the last level: of the GPU, else of the processors, as Linux reports them; or None."""
    if device.type == "cuda":
        return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", None)
    caches = [_cache(index) for index in system.glob("cpu[0-9]*/cache/index[0-9]*")]
    known = {cache for cache in caches if cache}
    last = max((level for level, _, _ in known), default=0)
    return sum(size for level, _, size in known if level == last) or None


def _cache(folder: Path) -> tuple[int, str, int] | None:
    """Its level, the processors that share it, which tell two caches apart, and its bytes."""
    try:
        level, shared, size = ((folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
        return int(level), shared, int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class DataSheet:
    """A device's peak figures as its maker states them, without sparsity."""

    flops: Mapping[str, float]  # floating-point operations a second, by dtype; float64 on tensor cores
    memory: float  # bytes a second
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
"""By the name that `lenet.fingerprint` reports. Makers of processors state no rate of operations on their sheets."""


def data_sheet(stack: Mapping[str, str], device: str, dtype: str) -> str:
    """The peak figures of a device, in words, with their source, or that none is known."""
    name = stack.get("GPU", "this GPU") if device.startswith("cuda") else stack["processor"]
    sheet = DATA_SHEETS.get(name)
    if sheet is None:
        return f"no data sheet figure known for {name}"
    flops = f"{sheet.flops[dtype] / 1e12:g} TFLOP/s" if dtype in sheet.flops else f"no figure in {dtype}"
    return f"peak of {name}: {flops}, {sheet.memory / 1e12:g} TB/s ({sheet.source})"
