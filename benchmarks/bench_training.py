"""
The steps of training and single queries, timed by batch size, device, dtype and number of threads.

Each benchmark checks its answer before the clock starts. Times are wall-clock with a timer that waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn, optim

from benchmarks.latency import CONFIDENCE, PERCENTILES, QUERIES, percentile
from benchmarks.memory import forward_at_least, peak, training_at_least
from benchmarks.roofline import copied_bytes, forward_bytes, last_level_cache, training_bytes
from benchmarks.workload import BATCHES, LR, Workload
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS
from lenet.timer import timer
from lenet.training import SGD_FORMS
from lenet.update import SGD
from properties.comparison import assert_rounded
from properties.stack import Stack, float64, name_of

pytestmark = pytest.mark.benchmark(timer=timer, max_time=0.25, min_rounds=5, warmup=False)
batches = pytest.mark.parametrize("batch", BATCHES)
# The parts of a step stop one batch earlier: the largest would add 44 s on two cores, and the whole step has it.
batches_of_parts = pytest.mark.parametrize("batch", BATCHES[:-1])


def note(benchmark: BenchmarkFixture, stack: Stack, threads: int, operation: str, **figures: Any) -> None:
    """What a time belongs to: `images`, `flops`, `bytes` are per call; a product counts two for each multiply-add."""
    benchmark.group = operation
    benchmark.extra_info.update(
        operation=operation,
        subject=stack.subject.spec,
        device=str(stack.device),
        dtype=name_of(stack.dtype),
        threads=threads if stack.device.type == "cpu" else 0,
        **figures,
    )


def note_memory(benchmark: BenchmarkFixture, stack: Stack, call: Callable[[], Any], at_least: int) -> None:
    """Bytes that another call takes at its peak; after it has been timed, so that counting them costs it nothing."""
    if benchmark.enabled:
        benchmark.extra_info.update(memory=peak(call, stack.device), memory_at_least=at_least)


@batches
def bench_forward(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """Forward pass without gradients."""
    work = Workload(stack, batch)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        logits: torch.Tensor = work.net(work.images)
        return logits

    work.verify_logits(forward())
    figures = {"flops": batch * FORWARD_FLOPS, "bytes": forward_bytes(batch, stack.dtype.itemsize)}
    note(benchmark, stack, threads, "forward", batch=batch, images=batch, **figures)
    benchmark(forward)
    note_memory(benchmark, stack, forward, forward_at_least(batch, stack.dtype.itemsize))


def bench_latency(benchmark: BenchmarkFixture, stack: Stack, threads: int) -> None:
    """One forward pass after the other of a single image, each timed by itself: percentiles of their latency."""
    work = Workload(stack, 1)

    @torch.no_grad()
    def query() -> torch.Tensor:
        logits: torch.Tensor = work.net(work.images)
        return logits

    work.verify_logits(query())
    note(benchmark, stack, threads, "latency", batch=1, images=1, flops=FORWARD_FLOPS)
    benchmark.pedantic(query, rounds=QUERIES)
    if benchmark.enabled:
        latencies = benchmark.stats.stats.data
        found = {f"p{percent}": asdict(percentile(latencies, percent)) for percent in PERCENTILES}
        benchmark.extra_info.update(queries=len(latencies), confidence=CONFIDENCE, latency=found)
        benchmark.extra_info["quantiles"] = np.quantile(latencies, np.linspace(0, 1, 101)).tolist()


@batches_of_parts
def bench_loss(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """Forward pass with its graph, and the mean squared error."""
    work = Workload(stack, batch)

    work.verify_loss(work.loss())
    note(benchmark, stack, threads, "loss", batch=batch, images=batch, flops=batch * FORWARD_FLOPS)
    benchmark(work.loss)


@batches_of_parts
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
    figures = {"flops": batch * TRAINING_FLOPS, "bytes": training_bytes(batch, stack.dtype.itemsize)}
    note(benchmark, stack, threads, "training step", batch=batch, images=batch, **figures)
    benchmark(work.step)
    work.net.zero_grad()  # so that the step's own gradients count
    note_memory(benchmark, stack, work.step, training_at_least(batch, stack.dtype.itemsize))


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


def bench_copy(benchmark: BenchmarkFixture, stack: Stack, threads: int) -> None:
    """The rate at which the machine copies an array that no cache holds; its bytes are read once and written once."""
    size = copied_bytes(last_level_cache(stack.device))
    page = torch.arange(1024, device=stack.device, dtype=stack.dtype)  # not one number only; `size` is of whole ones
    numbers = page.repeat(size // page.nbytes)
    copy = torch.empty_like(numbers)

    assert torch.equal(copy.copy_(numbers), numbers)
    note(benchmark, stack, threads, "copy", size=size, flops=0, bytes=2 * size)
    benchmark(copy.copy_, numbers)
