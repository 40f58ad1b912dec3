"""Memory is counted to the byte, and the same every time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.memory import balance, forward_at_least, peak, training_at_least
from benchmarks.roofline import MAPS, SCORES
from lenet.net import Net
from lenet.training import train_step

CPU = torch.device("cpu")


def test_the_peak_counts_what_is_released_again() -> None:
    def call() -> torch.Tensor:
        large = torch.empty(1000, dtype=torch.float64)
        del large
        return torch.empty(10, dtype=torch.float64)

    assert list(balance(call)) == [0, 8000, 0, 80]
    assert peak(call, CPU) == 8000


def test_a_call_that_takes_nothing_has_no_peak() -> None:
    assert peak(lambda: None, CPU) == 0


@pytest.mark.parametrize("batch", [1, 64])
def test_a_forward_pass_keeps_for_the_backward_pass_what_the_shapes_say(batch: int) -> None:
    net, images = Net(), torch.zeros(batch, 1, 32, 32)
    net(images)

    kept = list(balance(lambda: net(images)))[-1]

    winners = MAPS["s2"] + MAPS["s4"]  # of the pooling, as 64-bit indices
    assert kept == batch * (4 * (sum(MAPS.values()) + SCORES) + 8 * winners)


@pytest.mark.parametrize("batch", [1, 64])
def test_the_peaks_are_repeatable_and_no_less_than_what_a_layer_needs(batch: int) -> None:
    net, images, targets = Net(), torch.zeros(batch, 1, 32, 32), torch.zeros(batch, 10)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        scores: torch.Tensor = net(images)
        return scores

    def step() -> int | None:
        net.zero_grad()
        return peak(lambda: train_step(net, images, targets, 0.0), CPU)

    forwards = [peak(forward, CPU) for _ in range(3)]
    steps = [step() for _ in range(3)]

    assert len(set(forwards)) == len(set(steps)) == 1
    assert forwards[0] >= forward_at_least(batch, 4) == 2 * batch * 4 * 4704
    assert steps[0] >= training_at_least(batch, 4) == 4 * (3 * batch * 4704 + 61_550)
