"""Counters are exact: they agree with arithmetic, and an additional operation is counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import lenet
from benchmarks.counters import UNITS, compiled_graphs, count
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS

CPU = torch.device("cpu")
IMAGES, TARGETS = torch.zeros(3, 1, 32, 32), torch.zeros(3, 10)


def forward(net: lenet.Net) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.no_grad():
            logits: Tensor = net(IMAGES)
            return logits

    return call


def test_flops_are_those_of_the_layers() -> None:
    net = lenet.Net()

    assert count(forward(net), CPU, 0)["FLOPs"] == 3 * FORWARD_FLOPS
    assert count(lambda: lenet.train_step(net, IMAGES, TARGETS, 0.0), CPU, 0)["FLOPs"] == 3 * TRAINING_FLOPS


def test_two_counts_agree_and_all_counters_are_documented() -> None:
    first, second = (count(forward(lenet.Net()), CPU, compiled_graphs()) for _ in range(2))

    assert first == second
    assert first.keys() == UNITS.keys() - {"launches"}
    assert (first["graph breaks"], first["recompiles"]) == (0, 0)


def test_additional_copy_is_counted_to_the_byte() -> None:
    net = lenet.Net()
    kept = []

    def copied() -> None:
        with torch.no_grad():
            kept[:] = [IMAGES.clone(), net(IMAGES)]

    plain, more = count(forward(net), CPU, 0), count(copied, CPU, 0)

    assert more["operators"] > plain["operators"]
    assert more["allocations"] == plain["allocations"] + 1
    assert more["peak memory"] == plain["peak memory"] + IMAGES.nbytes
    assert more["FLOPs"] == plain["FLOPs"]


def test_counter_that_differs_between_two_counts_is_left_out() -> None:
    calls = []

    def growing() -> Tensor:
        calls.append(torch.zeros(16))
        return torch.stack([call + 1 for call in calls])

    counted = count(growing, CPU, 0)

    assert "operators" not in counted
    assert "peak memory" not in counted
    assert "recompiles" in counted


def test_recompiles_count_from_the_first_call() -> None:
    assert count(forward(lenet.Net()), CPU, compiled_graphs() - 2)["recompiles"] == 2
