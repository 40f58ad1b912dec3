"""
Benchmarks of training and of single queries, by batch size, device, dtype and number of threads.

Each benchmark verifies its answer before anything is timed, under the same settings: cuDNN chooses its kernels as it
does by default, while the laws restrict it to deterministic ones. Times are wall-clock times with a timer that
synchronizes with the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn, optim

from benchmarks.counters import compiled_graphs
from benchmarks.interleaved import time_interleaved
from benchmarks.latency import CONFIDENCE, PERCENTILES, QUERIES, percentile
from benchmarks.memory import min_forward_memory, min_training_memory, peak
from benchmarks.roofline import forward_bytes, training_bytes
from benchmarks.step_parts import DividedStep
from benchmarks.workload import LR, TIMED_BATCHES, Workload
from lenet.exact_sgd import SGD
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS
from lenet.timer import timer
from lenet.training import SGD_FORMS
from properties.comparison import assert_rounded
from properties.stack import Stack, dtype_name, float64

pytestmark = pytest.mark.benchmark(timer=timer, max_time=0.25, min_rounds=5, warmup=False, disable_gc=True)
batches = pytest.mark.parametrize("batch", TIMED_BATCHES)


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
    if stack.device.type == "cuda":
        benchmark.extra_info["cudnn_deterministic"] = torch.backends.cudnn.deterministic


def note_memory(benchmark: BenchmarkFixture, stack: Stack, call: Callable[[], Any], at_least: int) -> None:
    """Record the peak memory of one more call, in bytes; use it after timing, so that the profiler affects no time."""
    if benchmark.enabled:
        benchmark.extra_info.update(memory=peak(call, stack.device), memory_at_least=at_least)


@batches
def bench_forward(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """The forward pass, without a graph; of a single image QUERIES times, with latency percentiles."""
    work = Workload(stack, batch)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        logits: torch.Tensor = work.net(work.images)
        return logits

    work.verify_logits(forward())
    figures = {"flops": batch * FORWARD_FLOPS, "bytes": forward_bytes(batch, stack.dtype.itemsize)}
    note(benchmark, stack, threads, "forward", batch=batch, images=batch, **figures)
    time_interleaved(benchmark, forward, stack.device, stack.dtype, QUERIES if batch == 1 else None)
    if batch == 1 and benchmark.enabled:
        latencies = benchmark.stats.stats.data
        found = {f"p{percent}": asdict(percentile(latencies, percent)) for percent in PERCENTILES}
        benchmark.extra_info.update(queries=len(latencies), confidence=CONFIDENCE, latency=found)
        benchmark.extra_info["quantiles"] = np.quantile(latencies, np.linspace(0, 1, 101)).tolist()
    note_memory(benchmark, stack, forward, min_forward_memory(batch, stack.dtype.itemsize))


@batches
def bench_training_step(benchmark: BenchmarkFixture, stack: Stack, threads: int, batch: int) -> None:
    """The subject's training step and its parts: gradients to None, forward, loss, backward, update."""
    work = Workload(stack, batch)

    work.verify_step(work.parameters(), work.step(lr=0.5), lr=0.5)
    figures = {"flops": batch * TRAINING_FLOPS, "bytes": training_bytes(batch, stack.dtype.itemsize)}
    note(benchmark, stack, threads, "training step", batch=batch, images=batch, **figures)
    step = DividedStep(work.step, work.net, stack.device)
    # What is compiled is timed as a whole: to observe it would change its graph.
    with nullcontext() if compiled_graphs() else step.observed():
        time_interleaved(benchmark, step, stack.device, stack.dtype)
    if benchmark.enabled and (parts := step.parts(benchmark.stats.stats.rounds, benchmark.stats.stats.median)):
        benchmark.extra_info["parts"] = parts
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
