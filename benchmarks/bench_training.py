"""
The steps of training, timed by batch size, device, dtype and number of threads.

Each benchmark checks its answer before the clock starts. Times are wall-clock with a timer that waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn, optim
from torch.utils.benchmark import timer

from benchmarks.workload import LR, Workload
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS
from lenet.training import SGD_FORMS
from lenet.update import SGD
from properties.closeness import assert_rounded
from properties.stack import Stack, float64, name_of

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)

pytestmark = pytest.mark.benchmark(timer=timer, max_time=0.25, min_rounds=5, warmup=False)
batches = pytest.mark.parametrize("batch", BATCHES)


def note(benchmark: BenchmarkFixture, stack: Stack, threads: int, operation: str, **figures: Any) -> None:
    """What a time belongs to: `images` and `flops` are per call, a product counts two for each multiply-add."""
    benchmark.group = operation
    benchmark.extra_info.update(
        operation=operation,
        subject=stack.subject.spec,
        device=str(stack.device),
        dtype=name_of(stack.dtype),
        threads=threads if stack.device.type == "cpu" else 0,
        **figures,
    )


@batches
def bench_forward(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """Forward pass without gradients."""
    work = Workload(stack, batch)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        logits: torch.Tensor = work.net(work.images)
        return logits

    work.verify_logits(forward())
    note(benchmark, stack, threads, "forward", batch=batch, images=batch, flops=batch * FORWARD_FLOPS)
    benchmark(forward)


@batches
def bench_loss(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """Forward pass with its graph, and the mean squared error."""
    work = Workload(stack, batch)

    work.verify_loss(work.loss())
    note(benchmark, stack, threads, "loss", batch=batch, images=batch, flops=batch * FORWARD_FLOPS)
    benchmark(work.loss)


@batches
def bench_backward(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """Backward pass through one graph, retained, adding to the gradients."""
    work = Workload(stack, batch)
    loss = work.loss()

    loss.backward(retain_graph=True)
    work.verify_gradients()
    flops = batch * (TRAINING_FLOPS - FORWARD_FLOPS)
    note(benchmark, stack, threads, "backward", batch=batch, images=batch, flops=flops)
    benchmark(loss.backward, retain_graph=True)


@batches
def bench_training_step(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """The subject's whole training step: gradients to None, forward, loss, backward, update by hand."""
    work = Workload(stack, batch)

    work.verify_step(work.parameters(), work.step(lr=0.5), lr=0.5)
    note(benchmark, stack, threads, "training step", batch=batch, images=batch, flops=batch * TRAINING_FLOPS)
    benchmark(work.step)


@pytest.mark.parametrize("form", ["manual", *SGD_FORMS])
def bench_update(benchmark: BenchmarkFixture, stack: Stack, threads: int, form: str) -> None:
    """The update of the Net's 61,706 parameters alone."""
    net = Workload(stack, 1).net
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = [float64(parameter).copy() for parameter in net.parameters()]
    update = updater(stack, list(net.parameters()), form)

    update()
    for old, (name, new) in zip(before, net.named_parameters(), strict=True):
        exact, _ = SGD(LR).step(old, np.ones_like(old), None, stack.precision)
        assert_rounded(new, exact, name)
    note(benchmark, stack, threads, f"update, {form}", flops=2 * sum(p.numel() for p in net.parameters()))
    benchmark(update)


def updater(stack: Stack, parameters: list[nn.Parameter], form: str) -> Callable[[], Any]:
    """The subject's own update, or that of `optim.SGD` in one of its forms."""
    if form == "manual":
        return lambda: stack.subject.sgd_update(parameters, LR)
    return optim.SGD(parameters, lr=LR, **SGD_FORMS[form]).step


@pytest.mark.parametrize("size", [1024])
def bench_matrix_product(benchmark: BenchmarkFixture, stack: Stack, threads: int, size: int) -> None:
    """The rate that the machine reaches in the product of two square matrices: what the others are a share of."""
    ones = torch.ones(size, size, device=stack.device, dtype=stack.dtype)

    assert bool((ones @ ones == size).all())  # exact in every order of summation
    numbers = torch.randn(size, size, device=stack.device, dtype=stack.dtype)
    note(benchmark, stack, threads, "matrix product", size=size, flops=2 * size**3)
    benchmark(torch.matmul, numbers, numbers)
