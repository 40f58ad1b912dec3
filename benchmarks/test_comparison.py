"""Comparisons of made-up workers, whose times are known: who is found slower, who is not, and what breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from benchmarks import comparison
from benchmarks.comparison import (
    BLOCKS,
    SCATTER,
    Benchmark,
    ComparisonError,
    Pair,
    Result,
    Side,
    judge,
    sampling_time,
)
from benchmarks.decision import Rates, Slowdown
from benchmarks.worker import Arm, WorkerError
from lenet.fingerprint import fingerprint

DELTA = 0.015
SECONDS = 60.0
MACHINE = {"host": "here", "processor": "a fast one"}


@dataclass
class World:
    """What there is to know of made-up workers, by the names of their engines (and the operation that is slower)."""

    slower: dict[str, float] = field(default_factory=dict)
    slower_at_first: dict[str, float] = field(default_factory=dict)  # in the first nine pairs
    scatter: float = 0.003  # of processes, relative
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    machines: dict[str, dict[str, str]] = field(default_factory=dict)
    without_training: tuple[str, ...] = ()
    dies_at: int | None = None  # which block of all
    started: int = 0
    running: int = 0
    blocks: int = 0
    prepared: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """Of processes that were timed; the first was counted."""
        return self.started // 2 - 1


class MadeUp:
    """A worker that takes a second, or as much longer as its engine says, and varies from process to process."""

    world: ClassVar[World]
    random: ClassVar[np.random.Generator]
    calls = 1
    stack: ClassVar[dict[str, str]] = fingerprint()

    def __init__(self, arm: Arm, python: str, environment: Any, folder: Any) -> None:
        self.arm = arm

    def start(self) -> None:
        self.world.started += 1
        self.world.running += 1
        self.own = self.random.normal(0, self.world.scatter)

    def ready(self) -> None:
        self.machine = self.world.machines.get(self.arm.engine, MACHINE)
        self.operations = ["forward", "training step"][: 1 if self.arm.engine in self.world.without_training else 2]

    def stop(self) -> None:
        self.world.running -= 1

    def request(self, request: dict[str, Any]) -> None:
        operation, batch = request["prepare"]
        self.world.prepared.append(f"{operation} {batch}")
        self.operation = operation

    def prepared(self) -> None:
        pass

    def run_on(self, cores: Any) -> None:
        pass

    def count(self) -> dict[str, int]:
        return self.world.counters.get(self.arm.engine, {"FLOPs": 7, "peak memory": 100})

    def measure(self) -> float:
        return self.block(1)

    def block(self, calls: int) -> float:
        self.world.blocks += 1
        if self.world.blocks == self.world.dies_at:
            raise WorkerError(f"{self.arm}: its worker was ended by SIGKILL; its last words: none")
        slower = self.world.slower_at_first if self.world.pairs <= 9 else self.world.slower
        slower = slower or self.world.slower
        by = slower.get(self.arm.engine, slower.get(f"{self.arm.engine} {self.operation}", 0.0))
        return (1 + by) * float(np.exp(self.own))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Made-up workers, none of which is left, and a clock that each pair of them moves on by a second."""
    MadeUp.world, MadeUp.random = World(), np.random.default_rng(0)
    blocks_are_done = count(step=10**9)
    clock = SimpleNamespace(monotonic=lambda: MadeUp.world.started / 2, perf_counter=lambda: next(blocks_are_done))
    monkeypatch.setattr(comparison, "Worker", MadeUp)
    monkeypatch.setattr(comparison, "time", clock)
    yield MadeUp.world
    assert MadeUp.world.running == 0


def compared(*names: str, seconds: float = SECONDS) -> Result:
    base, head = (Side(side, Arm(engine=f"{side}'s")) for side in ("base", "head"))
    return judge(base, head, names or ("forward-1",), DELTA, seconds, seed=0)


def test_equals_pass_at_the_first_look(world: World) -> None:
    result = compared("forward-1", "forward-256", "training-step-64")

    assert [benchmark.verdict for benchmark in result.benchmarks] == ["passed"] * 3
    assert result.verdict == "passed"
    assert world.pairs == 9
    assert all(len(pair.cores) == 1 and pair.blocks == BLOCKS for b in result.benchmarks for pair in b.pairs)


def test_the_slower_fails_after_it_has_been_measured_anew(world: World) -> None:
    world.slower = {"head's": 0.05}

    result = compared()

    (benchmark,) = result.benchmarks
    assert result.verdict == benchmark.verdict == "failed"
    assert world.pairs == 18
    assert [pair.round for pair in benchmark.pairs] == [1] * 9 + [2] * 9
    assert benchmark.suspicion
    assert benchmark.found
    assert DELTA < benchmark.suspicion.lower < 0.05 < benchmark.found.upper


def test_what_is_slower_only_once_passes(world: World) -> None:
    world.slower_at_first, world.slower = {"head's": 0.05}, {"base's": 0.001}

    (benchmark,) = compared().benchmarks

    assert benchmark.verdict == "passed"
    assert benchmark.suspicion
    assert world.pairs == 18


def test_looks_spend_as_much_of_the_rates_as_they_have_had_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def noted(ratios: Any, share: float, rates: Rates) -> Slowdown:
        shares.append(share)
        return Slowdown(0.0, -0.5, 0.5, len(ratios)) if len(shares) != 2 else Slowdown(0.1, 0.05, 0.15, len(ratios))

    monkeypatch.setattr(comparison, "slowdown", noted)
    benchmark = Benchmark("forward-1", Rates.of(1))
    times = {9: 0.25, 13: 0.5, 22: 0.625, 26: 0.75, 32: 0.875}  # when a look is due
    for number in range(1, 41):
        benchmark.pairs.append(Pair(benchmark.round, (0,), 1.0, 1.0, 0.0, 16))
        benchmark.take_look(DELTA, times.get(number, 0.0))
    benchmark.take_look(DELTA, 1.3)
    benchmark.take_look(DELTA, 1.4)  # with nothing left to spend

    assert benchmark.round == 2
    assert shares == [0.25, 0.25, 0.25, 0.25, 0.25, 0.25]


def test_a_faster_head_passes_and_so_does_a_slower_base(world: World) -> None:
    world.slower = {"base's": 0.2}

    (benchmark,) = compared().benchmarks

    assert benchmark.verdict == "passed"
    assert benchmark.found
    assert benchmark.found.upper < -DELTA


@pytest.mark.parametrize(("slower", "scatter"), [(0.0, 0.2), (DELTA, 0.003)])
def test_what_cannot_be_told_is_inconclusive_once_the_time_is_spent(
    world: World, slower: float, scatter: float
) -> None:
    world.slower, world.scatter = {"head's": slower}, scatter

    result = compared(seconds=20)

    assert result.verdict == "inconclusive"
    assert 18 <= world.pairs <= 20
    assert result.benchmarks[0].found


def test_only_what_is_undecided_is_measured_further(world: World) -> None:
    world.slower = {"head's training step": 0.05}

    result = compared("forward-1", "training-step-1")

    assert [(b.verdict, len(b.pairs)) for b in result.benchmarks] == [("passed", 9), ("failed", 18)]
    assert world.prepared.count("forward 1") == 2 * (1 + 9)
    assert world.prepared.count("training step 1") == 2 * (1 + 18)


def test_without_time_for_a_pair_nothing_is_known(world: World) -> None:
    result = compared(seconds=0.5)

    assert result.verdict == "inconclusive"
    assert len(result.benchmarks[0].pairs) <= 1


@pytest.mark.parametrize("counter", ["FLOPs", "peak memory"])
def test_a_counter_that_rises_fails_before_any_clock_is_started(world: World, counter: str) -> None:
    before = {"FLOPs": 7, "peak memory": 100}
    world.counters["head's"] = before | {counter: before[counter] + 1}

    result = compared()

    assert result.verdict == "failed"
    assert result.benchmarks[0].risen == {counter: (before[counter], before[counter] + 1)}
    assert world.blocks == 0


def test_a_counter_that_falls_or_that_only_one_has_is_no_fault(world: World) -> None:
    world.counters = {"base's": {"FLOPs": 9, "launches": 1}, "head's": {"FLOPs": 8, "operators": 10**6}}

    assert compared().verdict == "passed"


def test_the_worst_verdict_is_that_of_all(world: World) -> None:
    result = compared("forward-1", "forward-4", "forward-16")

    for verdicts, worst in (
        (("passed", "passed", "passed"), "passed"),
        (("passed", "inconclusive", "passed"), "inconclusive"),
        (("inconclusive", "passed", "failed"), "failed"),
    ):
        for benchmark, verdict in zip(result.benchmarks, verdicts, strict=True):
            benchmark.verdict = verdict
        assert result.verdict == worst


def test_arms_on_different_machines_are_not_compared(world: World) -> None:
    world.machines["head's"] = MACHINE | {"host": "there"}

    with pytest.raises(ComparisonError, match="different machines: base's host is here, head's there"):
        compared()


def test_a_benchmark_that_one_side_lacks_is_said(world: World) -> None:
    world.without_training = ("head's",)

    with pytest.raises(ComparisonError, match="training-step-64: head has no training step, only forward"):
        compared("forward-1", "training-step-64")


@pytest.mark.parametrize("block", [1, 40])
def test_a_worker_that_dies_ends_the_comparison(world: World, block: int) -> None:
    world.dies_at = block

    with pytest.raises(WorkerError, match="ended by SIGKILL"):
        compared()


def test_the_order_is_random_and_the_same_seeds_order_is_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    plain = MadeUp.block

    def noted(self: MadeUp, calls: int) -> float:
        order.append(self.arm.engine)
        return plain(self, calls)

    monkeypatch.setattr(MadeUp, "block", noted)
    compared()
    first, order[:] = order.copy(), []
    compared()

    assert first == order
    turns = [tuple(first[place : place + 2]) for place in range(4, 4 + 2 * BLOCKS, 2)]  # after those that warm up
    assert set(turns) == {("base's", "head's"), ("head's", "base's")}


@pytest.mark.parametrize(("start", "benchmarks"), [(2.0, 3), (5.0, 1)])
def test_a_pair_is_sampled_for_as_long_as_is_worth_it(start: float, benchmarks: int) -> None:
    def variance(time: float) -> float:
        return (SCATTER**2 / time + 1) * (start + benchmarks * time)

    best = sampling_time(start, benchmarks, 1000.0)

    assert variance(best) < min(variance(0.9 * best), variance(1.1 * best))


def test_a_pair_is_sampled_for_less_where_too_few_would_fit() -> None:
    assert sampling_time(4.0, 3, 20 * 7.0) == 1.0
    assert sampling_time(8.0, 3, 20 * 7.0) == 0.0
