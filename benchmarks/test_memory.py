"""Memory is counted to the byte and is repeatable."""

from __future__ import annotations

import pytest
import torch

from benchmarks.memory import bytes_in_use, min_forward_memory, min_training_memory, peak
from benchmarks.roofline import ACTIVATIONS, LOGITS
from lenet.net import Net
from lenet.training import train_step

CPU = torch.device("cpu")


def test_peak_includes_memory_that_is_released_later() -> None:
    def call() -> torch.Tensor:
        large = torch.empty(1000, dtype=torch.float64)
        del large
        return torch.empty(10, dtype=torch.float64)

    assert list(bytes_in_use(call)) == [0, 8000, 0, 80]
    assert peak(call, CPU) == 8000


def test_call_without_allocations_has_peak_zero() -> None:
    assert peak(lambda: None, CPU) == 0


@pytest.mark.parametrize("batch", [1, 64])
def test_memory_saved_for_the_backward_pass_follows_from_the_shapes(batch: int) -> None:
    net, images = Net(), torch.zeros(batch, 1, 32, 32)
    net(images)

    kept = list(bytes_in_use(lambda: net(images)))[-1]

    indices = ACTIVATIONS["s2"] + ACTIVATIONS["s4"]  # 64-bit indices of the maxima, saved by pooling
    assert kept == batch * (4 * (sum(ACTIVATIONS.values()) + LOGITS) + 8 * indices)


@pytest.mark.parametrize("batch", [1, 64])
def test_peaks_are_repeatable_and_at_least_what_a_layer_needs(batch: int) -> None:
    net, images, targets = Net(), torch.zeros(batch, 1, 32, 32), torch.zeros(batch, 10)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        logits: torch.Tensor = net(images)
        return logits

    def step() -> int | None:
        net.zero_grad()
        return peak(lambda: train_step(net, images, targets, 0.0), CPU)

    forwards = [peak(forward, CPU) for _ in range(3)]
    steps = [step() for _ in range(3)]

    assert len(set(forwards)) == len(set(steps)) == 1
    assert forwards[0] >= min_forward_memory(batch, 4) == 2 * batch * 4 * 4704
    assert steps[0] >= min_training_memory(batch, 4) == 4 * (3 * batch * 4704 + 61_550)
