"""Blocks are interleaved in random order, and begin once the times have no trend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import groupby
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import interleaved
from benchmarks.interleaved import BLOCKS, Limit, has_trend, limits_between_blocks, time_interleaved, warm_up
from benchmarks.tasks import Copy

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("times", "trend"),
    [
        ([6, 5, 4, 3, 2, 1], True),
        ([1, 2, 3, 4, 6, 5], True),
        ([5, 6, 4, 3, 1, 2], False),
        ([3, 1, 2, 3, 1, 2], False),
        ([1, 1, 1, 1, 1, 1], False),
    ],
)
def test_trend_is_seen_although_two_neighbors_are_in_the_other_order(times: list[float], trend: bool) -> None:
    assert len(times) == BLOCKS
    assert has_trend(times) == trend


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which changes only when a call adds to it."""
    now = [0.0]
    for name in ("timer", "perf_counter"):
        monkeypatch.setattr(interleaved, name, lambda: now[0])
    return now


def test_warm_up_ends_when_the_times_have_no_trend(clock: list[float]) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock[0] += 0.01 + 0.1 / 2**calls

    assert warm_up(call) == (5, True)  # 50 ms of calls of 10 ms
    assert calls > 5 * BLOCKS


def test_warm_up_of_a_call_that_gets_ever_slower_ends_and_says_so(clock: list[float]) -> None:
    def call() -> None:
        clock[0] += 0.06 + 0.01 * clock[0]

    assert warm_up(call) == (1, False)
    assert clock[0] > interleaved.WARMUP_SECONDS


def test_each_round_has_one_block_of_everything_in_random_order() -> None:
    orders = Counter()
    for seed in range(100):
        *before, after = limits_between_blocks(["a", "b"], np.random.default_rng(seed))
        assert len(before) == BLOCKS
        assert Counter(name for part in [*before, after] for name in part) == {"a": BLOCKS, "b": BLOCKS}
        orders[tuple(before[0])] += 1

    assert orders.keys() == {(), ("a",), ("b",), ("a", "b"), ("b", "a")}


def test_block_of_a_limit_is_long_enough_and_gives_the_time_of_a_call(clock: list[float]) -> None:
    def call() -> None:
        clock[0] += 0.001

    limit = Limit(call)
    limit.time_block()
    limit.time_block()

    assert limit.calls == 8  # 8 ms, the first power of two above 5 ms
    assert [round(seconds, 9) for seconds in limit.seconds] == [0.001, 0.001]


def test_limits_are_timed_between_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def pedantic(call: Callable[[], None], setup: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            setup()
            call()

    def time_block(limit: Limit) -> None:
        order.append("limit")
        limit.seconds.append(0.5)

    fixture = SimpleNamespace(enabled=True, extra_info={}, pedantic=pedantic)
    monkeypatch.setattr(interleaved, "warm_up", lambda call: (3, True))
    monkeypatch.setattr(Limit, "time_block", time_block)

    time_interleaved(cast(BenchmarkFixture, fixture), lambda: order.append("call"), CPU, torch.float32)

    assert Counter(order) == {"call": 3 * BLOCKS, "limit": 2 * BLOCKS}
    blocks = [len(list(calls)) for name, calls in groupby(order) if name == "call"]
    assert all(calls % 3 == 0 for calls in blocks)
    assert len(blocks) > 1
    assert fixture.extra_info["limits"]["flops_per_second"] == 2 * 1024**3 / 0.5
    assert fixture.extra_info["stationary"] is True


def test_operation_is_called_once_if_nothing_is_timed() -> None:
    calls: list[object] = []

    time_interleaved(
        cast(BenchmarkFixture, SimpleNamespace(enabled=False, pedantic=calls.append)), int, CPU, torch.float32
    )

    assert calls == [int]


def test_wrong_copy_is_an_error() -> None:
    copy = Copy(CPU)
    answer = copy.call()

    copy.verify(answer)
    answer[-1] += 1
    with pytest.raises(AssertionError, match=r"a copy of [\d,]+ bytes is wrong"):
        copy.verify(answer)
