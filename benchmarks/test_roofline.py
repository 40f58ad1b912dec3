"""The roofline's counts of work, its attainable rates and the size of the copy agree with independent values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import roofline
from benchmarks.fakes import benchmark_entry
from benchmarks.roofline import (
    ACTIVATIONS,
    BACKWARD_PARAMETERS,
    GIB,
    PARAMETERS,
    add_positions,
    copied_bytes,
    data_sheet,
    forward_bytes,
    last_level_cache,
    position,
    training_bytes,
)
from lenet.net import Net


def test_activations_are_those_of_the_network() -> None:
    net, seen = Net(), []
    for module in net.children():
        module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0][0].numel(), output[0].numel())))

    net(torch.zeros(1, 1, 32, 32))

    conv1, conv2, fc1, fc2, fc3 = seen
    assert conv1 == (roofline.PIXELS, ACTIVATIONS["c1"])
    assert conv2 == (ACTIVATIONS["s2"], ACTIVATIONS["c3"])
    assert fc1 == (ACTIVATIONS["s4"], ACTIVATIONS["f5"])
    assert fc2 == (ACTIVATIONS["f5"], ACTIVATIONS["f6"])
    assert fc3 == (ACTIVATIONS["f6"], roofline.LOGITS)


def test_parameter_counts_are_those_of_the_network() -> None:
    net = Net()
    back = [parameter for name, parameter in net.named_parameters() if name.endswith("weight")][1:]

    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS
    assert sum(parameter.numel() for parameter in back) == BACKWARD_PARAMETERS


def test_bytes_are_those_of_the_parameters_and_of_each_image() -> None:
    image, trained = 17_202, 42_518  # elements: 1,024 + 2 * 8,084 + 10, and 2 * 1,024 + 5 * 8,084 + 5 * 10

    assert forward_bytes(3, 4) == 4 * (PARAMETERS + 3 * image)
    assert forward_bytes(3, 8) == 2 * forward_bytes(3, 4)
    assert training_bytes(3, 4) == 4 * (5 * PARAMETERS + BACKWARD_PARAMETERS + 3 * trained)


@pytest.mark.parametrize(
    ("flops", "bound", "attainable", "share"),
    [(64, "compute", 100.0, 0.32), (16, "memory", 80.0, 0.1), (20, "compute", 100.0, 0.1)],
    ids=["right of the ridge", "left of the ridge", "on the ridge"],
)
def test_attainable_rate_is_the_smaller_of_the_two_limits(
    flops: int, bound: str, attainable: float, share: float
) -> None:
    found = position(flops, moved=4, seconds=2.0, compute=100.0, memory=20.0)

    assert found.intensity == flops / 4
    assert (found.bound, found.attainable, found.share) == (bound, attainable, share)


def test_position_uses_the_limits_measured_between_its_own_blocks() -> None:
    limits = {"flops_per_second": 200.0, "bytes_per_second": 800.0}
    own = benchmark_entry("forward", 1.0, flops=50, bytes=10, limits=limits)
    others = [benchmark_entry("forward", 1.0, flops=50, bytes=10), benchmark_entry("update", 1.0, flops=50)]

    add_positions([own, *others])

    assert own["extra_info"]["roofline"] == {"intensity": 5, "attainable": 200, "share": 0.25, "bound": "compute"}
    assert not any("roofline" in entry["extra_info"] for entry in others)


def test_copy_is_four_times_the_size_of_the_caches() -> None:
    assert copied_bytes(32 * 2**20) == 128 * 2**20
    assert copied_bytes(GIB) == GIB
    assert copied_bytes(None) == GIB


def test_each_last_level_cache_counts_once(tmp_path: Path) -> None:
    for processor, shared in [(0, "0-1"), (1, "0-1"), (2, "2-3"), (10, "2-3")]:
        for index, (level, cache, size) in enumerate([("1", str(processor), "32K"), ("3", shared, "1024K")]):
            folder = tmp_path / f"cpu{processor}/cache/index{index}"
            folder.mkdir(parents=True)
            for name, text in {"level": level, "shared_cpu_list": cache, "size": size}.items():
                (folder / name).write_text(f"{text}\n")

    assert last_level_cache(torch.device("cpu"), tmp_path) == 2 * 2**20
    (tmp_path / "cpu0/cache/index1/size").write_text("unknown\n")
    (tmp_path / "cpu1/cache/index1/size").unlink()
    assert last_level_cache(torch.device("cpu"), tmp_path) == 2**20


def test_cache_size_is_none_if_the_system_does_not_report_it(tmp_path: Path) -> None:
    assert last_level_cache(torch.device("cpu"), tmp_path) is None


def test_data_sheet_is_cited_and_never_guessed() -> None:
    stack = {"processor": "AMD EPYC", "GPU": "NVIDIA H200"}

    assert data_sheet(stack, "cpu", "float32") == "no data sheet figure known for AMD EPYC"
    cited = "(NVIDIA H200 data sheet (SXM), https://www.nvidia.com/en-us/data-center/h200/)"
    assert data_sheet(stack, "cuda", "float32") == f"peak of NVIDIA H200: 67 TFLOP/s, 4.8 TB/s {cited}"
    assert data_sheet(stack | {"GPU": "NVIDIA H200 NVL"}, "cuda", "float32").startswith("no data sheet")
    assert all("https://" in sheet.source for sheet in roofline.DATA_SHEETS.values())
