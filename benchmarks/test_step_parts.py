"""Parts of a training step are those of the step itself and add up to it, for any subject."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lenet
from benchmarks import step_parts
from benchmarks.step_parts import BACKWARD, PARTS, DividedStep
from properties.testing import run

CPU = torch.device("cpu")
IMAGES, TARGETS = torch.zeros(2, 1, 32, 32), torch.zeros(2, 10)


class Clock:
    """A clock that advances one second a reading, and as much as a test adds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(step_parts, "perf_counter", clock)
    return clock


def by_grad(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """A step that neither sets gradients nor calls `backward`."""
    loss = F.mse_loss(net(images), targets)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.sub_(lr * gradient)
    return loss.detach()


def by_micro_batches(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """A step with two forward and two backward passes."""
    net.zero_grad()
    for image, target in zip(images.split(1), targets.split(1), strict=True):
        F.mse_loss(net(image), target).div(2).backward()
    lenet.sgd_update(net.parameters(), lr)
    return torch.zeros(())


def divided(step: Callable[..., Tensor], calls: int = 1) -> DividedStep:
    net = lenet.Net()
    observed = DividedStep(lambda: step(net, IMAGES, TARGETS, 0.5), net, CPU)
    with observed.observed():
        for _ in range(calls):
            observed()
    return observed


@pytest.mark.parametrize("step", [lenet.train_step, by_grad])
def test_each_part_lasts_from_its_boundary_to_the_next(clock: Clock, step: Callable[..., Tensor]) -> None:
    assert divided(step).parts(1, 5.0) == dict.fromkeys(PARTS, 1.0)


def test_parts_that_begin_several_times_are_added(clock: Clock) -> None:
    parts = divided(by_micro_batches).parts(1, 9.0)

    assert parts == {"zero gradients": 1.0, "forward": 2.0, "loss": 2.0, "backward": 2.0, "update": 2.0}


@pytest.mark.parametrize("part", PARTS)
def test_time_spent_in_a_part_is_its_own(clock: Clock, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    class Net(lenet.Net):
        def zero_grad(self, set_to_none: bool = True) -> None:
            clock.seconds += 5.0 * (part == "zero gradients")
            super().zero_grad(set_to_none)

        def forward(self, images: Tensor) -> Tensor:
            clock.seconds += 5.0 * (part == "forward")
            return super().forward(images)

    def slow_loss(logits: Tensor, targets: Tensor) -> Tensor:
        clock.seconds += 5.0 * (part == "loss")
        loss = (logits - targets).square().mean()
        loss.register_hook(advance_in_backward)
        return loss

    def advance_in_backward(gradient: Tensor) -> Tensor:
        clock.seconds += 5.0 * (part == "backward")
        return gradient

    def update(parameters: object, lr: float) -> None:
        clock.seconds += 5.0 * (part == "update")

    monkeypatch.setattr(F, "mse_loss", slow_loss)
    net = Net()
    step = DividedStep(lambda: lenet.train_step(net, IMAGES, TARGETS, 0.5, update), net, CPU)
    with step.observed():
        step()

    assert step.parts(1, 10.0) == dict.fromkeys(PARTS, 1.0) | {part: 6.0}


def test_calls_outside_the_quartiles_are_left_out(clock: Clock) -> None:
    net, calls = lenet.Net(), iter(range(8))

    def step() -> Tensor:
        loss = lenet.train_step(net, IMAGES, TARGETS, 0.5)
        clock.seconds += 1000.0 * (next(calls) in (3, 5))  # the slowest quarter
        return loss

    observed = DividedStep(step, net, CPU)
    with observed.observed():
        for _ in range(8):
            observed()

    assert observed.parts(8, 5.0) == dict.fromkeys(PARTS, 1.0)


def test_step_whose_network_is_not_called_has_no_parts() -> None:
    def without_call(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
        return lenet.train_step(lenet.Net(), images, targets, lr)

    assert divided(without_call).parts(1, 1.0) == {}


def test_nothing_is_observed_afterwards() -> None:
    functions = [getattr(torch.autograd, name) for name in BACKWARD]
    observed = divided(lenet.train_step)

    assert [getattr(torch.autograd, name) for name in BACKWARD] == functions
    assert not observed.net._forward_hooks
    assert not observed.net._forward_pre_hooks


def test_stamps_on_a_gpu_are_cuda_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """`elapsed_time` is in milliseconds."""
    recorded: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.when = len(recorded)
            recorded.append(self.when)

        def elapsed_time(self, end: Event) -> float:
            return 1000.0 * (end.when - self.when)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    net = lenet.Net()
    step = DividedStep(lambda: lenet.train_step(net, IMAGES, TARGETS, 0.5), net, torch.device("cuda"))
    with step.observed():
        step()

    assert step.parts(1, 10.0) == dict.fromkeys(PARTS, 2.0)
    assert len(recorded) == 1 + len(PARTS)


@pytest.mark.slow
def test_parts_add_up_to_the_step_in_every_cell_of_a_run(tmp_path: Path) -> None:
    cells = "bench_training_step and 1-threads and (-1] or -4] or -16])"

    result = run("benchmarks", "-k", cells, "--dtype", "float32,float64", "--record", str(tmp_path))

    assert result.returncode == 0, result.stdout
    record = json.loads((tmp_path / "benchmarks.json").read_text())
    steps = [entry for entry in record["benchmarks"] if entry["extra_info"]["operation"] == "training step"]
    assert len(steps) == 6
    for entry in steps:
        parts, median = entry["extra_info"]["parts"], entry["stats"]["median"]
        assert parts.keys() == PARTS.keys()
        assert min(parts.values()) > 0
        assert abs(math.fsum(parts.values()) - median) <= len(PARTS) * math.ulp(median)  # a rounding for each part
    assert "Parts of a training step in ms" in result.stdout


@pytest.mark.slow
def test_compiled_step_is_timed_as_a_whole(tmp_path: Path) -> None:
    options = ["--subject", "lenet.engines.compiled_step", "--dtype", "float32", "--record", str(tmp_path)]

    result = run("benchmarks", "-k", "bench_training_step and 1-threads and -4]", *options)

    assert result.returncode == 0, result.stdout
    (entry,) = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]
    assert "parts" not in entry["extra_info"]
