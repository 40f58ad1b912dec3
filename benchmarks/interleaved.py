"""
Times of an operation and of the machine's limits, in blocks that are interleaved in random order.

The speed of a machine changes from second to second. A time is therefore compared with limits from the same seconds:
the FLOP/s of a matrix product, and the bytes/s of a copy. Blocks are timed once their medians show no trend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import count
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from scipy.stats import kendalltau

from benchmarks.tasks import Copy, MatrixProduct
from benchmarks.worker_client import MIN_BLOCK_SECONDS
from lenet.timer import timer

BLOCKS = 6
"""Blocks of an operation, and of each limit: the fewest in which `has_trend` can see one that is not monotonous."""

BLOCK_SECONDS = 0.05
"""Seconds of a block of an operation, at least; a block has at least one call. A copy before it empties the caches."""

WARMUP_SECONDS = 10.0
"""Seconds after which an operation is timed although its blocks still have a trend; then that is recorded."""

TREND = 0.05
"""The p-value below which blocks have a trend."""

PRODUCT_SIZE = 1024
SEED = 0

Call: TypeAlias = Callable[[], Any]


def has_trend(times: Sequence[float]) -> bool:
    """
    Whether the times rise or fall, by the Mann-Kendall test: Kendall's rank correlation of the times and their order.

    Mann 1945, "Nonparametric tests against trend", Econometrica 13(3).
    """
    return bool(kendalltau(range(len(times)), times).pvalue < TREND)


def warm_up(call: Call) -> tuple[int, bool]:
    """
    Call until the medians of the last BLOCKS blocks have no trend, or for WARMUP_SECONDS.

    Return the number of calls that take BLOCK_SECONDS, at least 1, and whether the blocks became stationary.
    """
    medians: list[float] = []
    end = perf_counter() + WARMUP_SECONDS
    while True:
        seconds: list[float] = []
        while sum(seconds) < BLOCK_SECONDS:
            seconds.append(_seconds(call))
        medians.append(median(seconds))
        stationary = len(medians) >= BLOCKS and not has_trend(medians[-BLOCKS:])
        if stationary or perf_counter() > end:
            return max(1, round(BLOCK_SECONDS / medians[-1])), stationary


def _seconds(call: Call, calls: int = 1) -> float:
    """Return the seconds of a call, from this many, one after another."""
    start = timer()
    for _ in range(calls):
        call()
    return (timer() - start) / calls


class Limit:
    """A limit of the machine: the time of its operation in each block of at least MIN_BLOCK_SECONDS."""

    def __init__(self, call: Call) -> None:
        self.call, self.calls, self.seconds = call, 1, list[float]()

    def time_block(self) -> None:
        """Time one more block; the number of calls is doubled until they take long enough."""
        while (seconds := _seconds(self.call, self.calls)) * self.calls < MIN_BLOCK_SECONDS:
            self.calls *= 2
        self.seconds.append(seconds)


@cache
def _copy(device: torch.device) -> Copy:
    copy = Copy(device)
    copy.verify(copy.call())
    return copy


def time_interleaved(
    benchmark: BenchmarkFixture, call: Call, device: torch.device, dtype: torch.dtype, calls: int | None = None
) -> None:
    """
    Time an operation by the benchmark fixture, in BLOCKS blocks, and between them the limits of the machine.

    `calls` is the number of calls over all blocks, a multiple of BLOCKS, if it is given. Adds to `extra_info`: `limits`
    in FLOP/s and bytes/s, each of the median block, and `stationary`: whether the warm-up ended because there was no
    trend any more. Nothing is timed, and the operation is called once, if the fixture is disabled.
    """
    if not benchmark.enabled:
        benchmark.pedantic(call)
        return
    product, copy = MatrixProduct(device, dtype, PRODUCT_SIZE), _copy(device)
    product.verify(product.call())
    limits = {"matrix product": Limit(product.call), "copy": Limit(copy.call)}
    calls_per_block, stationary = warm_up(call)
    calls_per_block = calls // BLOCKS if calls else calls_per_block
    before_blocks, done = limits_between_blocks(list(limits), np.random.default_rng(SEED)), count()

    def before_call() -> None:
        if next(done) % calls_per_block == 0:
            time_limits()

    def time_limits() -> None:
        for name in next(before_blocks):
            limits[name].time_block()

    benchmark.pedantic(call, setup=before_call, rounds=BLOCKS * calls_per_block)
    time_limits()
    benchmark.extra_info["stationary"] = stationary
    benchmark.extra_info["limits"] = {
        "flops_per_second": product.flops / median(limits["matrix product"].seconds),
        "bytes_per_second": copy.moved / median(limits["copy"].seconds),
    }


def limits_between_blocks(names: list[str], random: np.random.Generator) -> Iterator[list[str]]:
    """
    Yield what to time before each of BLOCKS blocks of the operation, and at last what to time after them.

    In each of BLOCKS rounds, the operation and the limits have one block each, in random order.
    """
    waiting: list[str] = []
    for _ in range(BLOCKS):
        for name in random.permutation(["", *names]).tolist():
            if name:
                waiting.append(name)
            else:
                yield waiting
                waiting = []
    yield waiting
