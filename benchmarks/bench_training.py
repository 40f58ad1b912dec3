"""
Benchmarks of training and of single queries, by batch size, device, dtype and number of threads.

Each benchmark verifies its answer before anything is timed. Times are wall-clock times with a timer that synchronizes
with the device.
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
from benchmarks.memory import min_forward_memory, min_training_memory, peak
from benchmarks.roofline import copied_bytes, forward_bytes, last_level_cache, training_bytes
from benchmarks.workload import LR, TIMED_BATCHES, Workload
from lenet.exact_sgd import SGD
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS
from lenet.timer import timer
from lenet.training import SGD_FORMS
from properties.comparison import assert_rounded
from properties.stack import Stack, dtype_name, float64

pytestmark = pytest.mark.benchmark(timer=timer, max_time=0.25, min_rounds=5, warmup=False)
batches = pytest.mark.parametrize("batch", TIMED_BATCHES)
# The parts of a step omit the largest batch size, which would add 44 s on two cores; the complete step includes it.
batches_of_parts = pytest.mark.parametrize("batch", TIMED_BATCHES[:-1])


def note(benchmark: BenchmarkFixture, stack: Stack, threads: int, operation: str, **figures: Any) -> None:
    """Record what is timed. `images`, `flops` and `bytes` are per call; a multiply-add counts as two FLOPs."""
    benchmark.group = operation
    benchmark.extra_info.update(
        operation=operation,
        subject=stack.subject.spec,
        device=str(stack.device),
        dtype=dtype_name(stack.dtype),
        threads=threads if stack.device.type == "cpu" else 0,
        **figures,
    )


def note_memory(benchmark: BenchmarkFixture, stack: Stack, call: Callable[[], Any], at_least: int) -> None:
    """Record the peak memory of one more call, in bytes; use it after timing, so that the profiler affects no time."""
    if benchmark.enabled:
        benchmark.extra_info.update(memory=peak(call, stack.device), memory_at_least=at_least)


@batches
def bench_forward(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """The forward pass, without a graph."""
    work = Workload(stack, batch)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        logits: torch.Tensor = work.net(work.images)
        return logits

    work.verify_logits(forward())
    figures = {"flops": batch * FORWARD_FLOPS, "bytes": forward_bytes(batch, stack.dtype.itemsize)}
    note(benchmark, stack, threads, "forward", batch=batch, images=batch, **figures)
    benchmark(forward)
    note_memory(benchmark, stack, forward, min_forward_memory(batch, stack.dtype.itemsize))


def bench_latency(benchmark: BenchmarkFixture, stack: Stack, threads: int) -> None:
    """Forward passes of a single image, one after another, each timed separately; records latency percentiles."""
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
    """The forward pass with its graph, and the mean squared error."""
    work = Workload(stack, batch)

    work.verify_loss(work.loss())
    note(benchmark, stack, threads, "loss", batch=batch, images=batch, flops=batch * FORWARD_FLOPS)
    benchmark(work.loss)


@batches_of_parts
def bench_backward(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """The backward pass through a retained graph, accumulating gradients."""
    work = Workload(stack, batch)
    loss = work.loss()

    loss.backward(retain_graph=True)
    work.verify_gradients()
    flops = batch * (TRAINING_FLOPS - FORWARD_FLOPS)
    note(benchmark, stack, threads, "backward", batch=batch, images=batch, flops=flops)
    benchmark(loss.backward, retain_graph=True)


@batches
def bench_training_step(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """The subject's training step: gradients to None, forward, loss, backward, update."""
    work = Workload(stack, batch)

    work.verify_step(work.parameters(), work.step(lr=0.5), lr=0.5)
    figures = {"flops": batch * TRAINING_FLOPS, "bytes": training_bytes(batch, stack.dtype.itemsize)}
    note(benchmark, stack, threads, "training step", batch=batch, images=batch, **figures)
    benchmark(work.step)
    work.net.zero_grad()  # so that the gradients of the step count
    note_memory(benchmark, stack, work.step, min_training_memory(batch, stack.dtype.itemsize))


@pytest.mark.parametrize("form", ["manual", *SGD_FORMS])
def bench_update(benchmark: BenchmarkFixture, stack: Stack, threads: int, form: str) -> None:
    """Only the update of the 61,706 parameters: the subject's, or that of `optim.SGD` in one of its forms."""
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
    """Return the subject's update (`manual`), or that of `optim.SGD` in one of its forms."""
    if form == "manual":
        return lambda: stack.subject.sgd_update(parameters, LR)
    return optim.SGD(parameters, lr=LR, **SGD_FORMS[form]).step


@pytest.mark.parametrize("size", [1024])
def bench_matrix_product(benchmark: BenchmarkFixture, stack: Stack, threads: int, size: int) -> None:
    """The product of two square matrices: the compute rate of the machine, which other benchmarks are compared with."""
    ones = torch.ones(size, size, device=stack.device, dtype=stack.dtype)

    assert bool((ones @ ones == size).all())  # exact in every order of summation
    numbers = torch.randn(size, size, device=stack.device, dtype=stack.dtype)
    note(benchmark, stack, threads, "matrix product", size=size, flops=2 * size**3)
    benchmark(torch.matmul, numbers, numbers)


def bench_copy(benchmark: BenchmarkFixture, stack: Stack, threads: int) -> None:
    """A copy of an array too large for any cache: the memory rate of the machine, each byte read and written once."""
    size = copied_bytes(last_level_cache(stack.device))
    page = torch.arange(1024, device=stack.device, dtype=stack.dtype)  # distinct values; `size` is a multiple of it
    numbers = page.repeat(size // page.nbytes)
    copy = torch.empty_like(numbers)

    assert torch.equal(copy.copy_(numbers), numbers)
    note(benchmark, stack, threads, "copy", size=size, flops=0, bytes=2 * size)
    benchmark(copy.copy_, numbers)
