"""Comparisons of fake workers with known times find the slower side, no other, and report errors."""

from __future__ import annotations

from math import log
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import comparison
from benchmarks.accepted import Acceptance
from benchmarks.comparison import (
    FIRST_CALL,
    GROSS_BLOCKS,
    MIN_BLOCKS,
    NOISE_RATIO,
    SAMPLED_CALLS,
    START_PATIENCE,
    Benchmark,
    ComparisonError,
    Pair,
    Result,
    Settings,
    Side,
    calls_of_blocks,
    compare,
    sampling_time,
)
from benchmarks.decision import Rates, Slowdown
from benchmarks.fakes import MACHINE, FakeWorker, FakeWorkers
from benchmarks.gate_report import benchmark_reason
from benchmarks.worker_client import Arm, Limit, WorkerError

DELTA = 0.015
SECONDS = 60.0


def compared(*names: str, seconds: float = SECONDS, **settings: Any) -> Result:
    base, head = (Side(side, Arm(subject=f"{side}'s")) for side in ("base", "head"))
    return compare(base, head, names or ("forward-1",), Settings(DELTA, seconds, **settings))


def test_equal_sides_pass_at_the_first_look(fake_workers: FakeWorkers) -> None:
    result = compared("forward-1", "forward-256", "training-step-64")

    assert [benchmark.verdict for benchmark in result.benchmarks] == ["passed"] * 3
    assert result.verdict == "passed"
    assert fake_workers.pairs == 9
    assert all(len(pair.cores) == 1 and pair.blocks == MIN_BLOCKS for b in result.benchmarks for pair in b.pairs)


def test_slower_head_fails_after_a_second_round(fake_workers: FakeWorkers) -> None:
    fake_workers.slower = {"head's": 0.05}

    result = compared()

    (benchmark,) = result.benchmarks
    assert result.verdict == benchmark.verdict == "failed"
    assert fake_workers.pairs == 18
    assert [pair.round for pair in benchmark.pairs] == [1] * 9 + [2] * 9
    assert benchmark.first_round
    assert benchmark.slowdown
    assert DELTA < benchmark.first_round.lower < 0.05 < benchmark.slowdown.upper


def test_head_slower_in_the_first_round_only_passes(fake_workers: FakeWorkers) -> None:
    fake_workers.slower_at_first, fake_workers.slower = {"head's": 0.05}, {"base's": 0.001}

    (benchmark,) = compared().benchmarks

    assert benchmark.verdict == "passed"
    assert benchmark.first_round
    assert fake_workers.pairs == 18


def test_looks_spend_the_rates_in_proportion_to_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def record_share(ratios: Any, share: float, rates: Rates) -> Slowdown:
        shares.append(share)
        found = len(shares) == 2
        return Slowdown(0.1 * found, 0.05 if found else -0.5, 0.5, len(ratios), 0.05)

    monkeypatch.setattr(comparison, "slowdown", record_share)
    benchmark = Benchmark("forward-1", Rates.of(1), DELTA)
    times = {9: 0.25, 13: 0.5, 22: 0.625, 26: 0.75, 32: 0.875}  # share of the time, by pairs, at each look
    for number in range(1, 41):
        benchmark.pairs.append(Pair(benchmark.round, (0,), 1.0, 1.0, 0.0, 16))
        benchmark.take_look(times.get(number, 0.0))
    benchmark.take_look(1.3)
    benchmark.take_look(1.4)  # with nothing left to spend

    assert benchmark.round == 2
    assert shares == [0.25, 0.25, 0.25, 0.25, 0.25, 0.25]


def test_gross_slowdown_fails_after_two_pairs(fake_workers: FakeWorkers) -> None:
    fake_workers.slower = {"head's": 1.5}

    (benchmark,) = compared(seconds=3).benchmarks

    assert benchmark.verdict == "failed"
    assert benchmark_reason(benchmark).startswith("head takes at least 2.5")
    assert benchmark_reason(benchmark).endswith(" times as long in each of 2 pairs")
    assert [pair.blocks for pair in benchmark.pairs] == [GROSS_BLOCKS] * 2
    assert fake_workers.pairs == 1  # the processes that counted are the other pair


def test_gross_slowdown_of_one_pair_is_undecided() -> None:
    benchmark = Benchmark("forward-1", Rates.of(1), DELTA)
    benchmark.pairs = [Pair(1, (0,), 1.0, 3.0, log(3), 4)]

    benchmark.take_look(1.0)

    assert not benchmark.verdict
    expected = "undecided: head takes at least 3 times as long, but 1 pair is too few (raise --budget)"
    assert benchmark_reason(benchmark) == expected


def test_one_disturbed_pair_does_not_fail() -> None:
    benchmark = Benchmark("forward-1", Rates.of(1), DELTA)
    benchmark.pairs = [Pair(1, (0,), 1.0, 3.0, ratio, 4) for ratio in (log(3), 0.0, 0.001, -0.001)]

    benchmark.take_look(0.5)

    assert not benchmark.verdict


def test_much_faster_head_is_not_gross(fake_workers: FakeWorkers) -> None:
    fake_workers.slower = {"base's": 4.0}

    assert compared().verdict == "passed"
    assert fake_workers.pairs == 9


@pytest.mark.parametrize(
    ("base", "head", "expected"), [(4, 4, (4, 4)), (4, 8, (8, 8)), (8, 4, (8, 8)), (64, 1, (64, 1)), (2, 8, (2, 8))]
)
def test_sides_of_different_speed_have_their_own_number_of_calls(
    base: int, head: int, expected: tuple[int, int]
) -> None:
    workers: Any = {"base": SimpleNamespace(calls=base), "head": SimpleNamespace(calls=head)}

    assert tuple(calls_of_blocks(workers).values()) == expected


def test_time_limit_includes_counting(fake_workers: FakeWorkers) -> None:
    """The fake clock advances by one second per pair of processes, the first of which counts."""
    fake_workers.noise = 0.2

    compared(seconds=8)

    assert fake_workers.pairs == 7


def test_one_block_is_enough_after_the_time_limit(fake_workers: FakeWorkers) -> None:
    (benchmark,) = compared(seconds=0.5).benchmarks

    assert [pair.blocks for pair in benchmark.pairs] == [1]


def test_processes_are_given_up_at_the_time_limit(fake_workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[Limit] = []
    original = comparison.started_workers

    def recorded(sides: Any, random: Any, limit: Limit) -> Any:
        limits.append(limit)
        return original(sides, random, limit)

    monkeypatch.setattr(comparison, "started_workers", recorded)
    compared(seconds=30)

    assert {limit.deadline for limit in limits} == {30}
    assert [limit.patience for limit in limits[:3]] == [
        START_PATIENCE,
        START_PATIENCE,
        1.0,
    ]  # the longest pair took 1 s


def test_faster_head_passes(fake_workers: FakeWorkers) -> None:
    fake_workers.slower = {"base's": 0.2}

    (benchmark,) = compared().benchmarks

    assert benchmark.verdict == "passed"
    assert benchmark.slowdown
    assert benchmark.slowdown.upper < -DELTA


@pytest.mark.parametrize(("slower", "noise"), [(0.0, 0.2), (DELTA, 0.003)])
def test_undecided_benchmark_is_inconclusive_when_the_time_limit_is_reached(
    fake_workers: FakeWorkers, slower: float, noise: float
) -> None:
    fake_workers.slower, fake_workers.noise = {"head's": slower}, noise

    result = compared(seconds=20)

    assert result.verdict == "inconclusive"
    assert 18 <= fake_workers.pairs <= 20
    assert result.benchmarks[0].slowdown


def test_only_undecided_benchmarks_are_measured_further(fake_workers: FakeWorkers) -> None:
    fake_workers.slower = {"head's training step": 0.05}

    result = compared("forward-1", "training-step-1")

    assert [(b.verdict, len(b.pairs)) for b in result.benchmarks] == [("passed", 9), ("failed", 18)]
    assert fake_workers.prepared.count("forward 1") == 2 * (1 + 9)
    assert fake_workers.prepared.count("training step 1") == 2 * (1 + 18)


def test_time_limit_too_short_for_a_pair_is_inconclusive(fake_workers: FakeWorkers) -> None:
    result = compared(seconds=0.5)

    assert result.verdict == "inconclusive"
    assert len(result.benchmarks[0].pairs) <= 1


@pytest.mark.parametrize("counter", ["FLOPs", "peak memory"])
def test_risen_counter_fails_and_is_timed(fake_workers: FakeWorkers, counter: str) -> None:
    before = {"FLOPs": 7, "peak memory": 100}
    fake_workers.counters["head's"] = before | {counter: before[counter] + 1}

    result = compared()

    (benchmark,) = result.benchmarks
    assert result.verdict == benchmark.verdict == "failed"
    assert benchmark.by_time == "passed"
    assert benchmark.risen == {counter: (before[counter], before[counter] + 1)}
    expected = f"{counter} rose from {before[counter]} to {before[counter] + 1}; by time passed: at most +"
    assert benchmark_reason(benchmark).startswith(expected)


@pytest.mark.parametrize(("at_most", "verdict"), [(8, "passed"), (7, "failed")])
def test_rise_is_accepted_up_to_its_limit(fake_workers: FakeWorkers, at_most: int, verdict: str) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 8, "peak memory": 100}

    result = compared(accepted={"forward-1": {"FLOPs": Acceptance(at_most, "a wider layer")}})

    assert result.verdict == verdict
    assert ("(accepted: a wider layer)" in benchmark_reason(result.benchmarks[0])) == (verdict == "passed")


def test_accepted_rise_of_one_counter_or_benchmark_excuses_no_other(fake_workers: FakeWorkers) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 8, "peak memory": 101}

    result = compared("forward-1", "forward-4", accepted={"forward-1": {"FLOPs": Acceptance(8, "known")}})

    assert [set(benchmark.excused) for benchmark in result.benchmarks] == [{"FLOPs"}, set()]
    assert [benchmark.verdict for benchmark in result.benchmarks] == ["failed", "failed"]


@pytest.mark.parametrize(("memory", "verdict"), [(105, "passed"), (106, "failed")])
def test_peak_memory_may_rise_by_the_tolerated_share(fake_workers: FakeWorkers, memory: int, verdict: str) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 7, "peak memory": memory}

    result = compared(memory=0.05)

    assert result.verdict == verdict
    assert ("(5.0% more is tolerated)" in benchmark_reason(result.benchmarks[0])) == (verdict == "passed")


def test_time_decides_although_a_rise_is_accepted(fake_workers: FakeWorkers) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 8, "peak memory": 100}
    fake_workers.slower = {"head's": 0.05}

    (benchmark,) = compared(accepted={"forward-1": {"FLOPs": Acceptance(8, "known")}}).benchmarks

    assert benchmark.verdict == "failed"


def test_counters_of_different_versions_of_torch_are_shown_and_do_not_fail(fake_workers: FakeWorkers) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 8, "peak memory": 100}
    fake_workers.stacks = {"base's": {"torch": "2.12.0"}, "head's": {"torch": "2.13.0"}}

    result = compared()

    assert result.verdict == "passed"
    difference = "base's torch is 2.12.0, head's 2.13.0"
    assert result.notes == [f"counters are shown, but do not fail: {difference}"]
    assert benchmark_reason(result.benchmarks[0]).startswith("FLOPs rose from 7 to 8 (not compared); by time passed: ")


def test_counters_of_different_engines_do_not_fail(fake_workers: FakeWorkers) -> None:
    fake_workers.counters["head's"] = {"FLOPs": 8, "peak memory": 100}
    base, head = (Side(side, Arm(f"{side}'s", engine)) for side, engine in (("base", "eager"), ("head", "compiled")))

    assert compare(base, head, ["forward-1"], Settings(DELTA, SECONDS)).verdict == "passed"


def test_slow_calls_fail_where_tails_are_tested_and_nowhere_else(fake_workers: FakeWorkers) -> None:
    """One of ten calls takes twice as long: the median does not change, the 99th percentile does."""
    fake_workers.slow_calls = {"head's": 1.0}

    assert compared().verdict == "passed"
    blocks, tail = compared(tail=0.1).benchmarks

    assert (blocks.name, blocks.verdict) == ("forward-1", "passed")
    assert (tail.name, tail.verdict, tail.delta) == ("forward-1 p99", "failed", 0.1)
    assert tail.slowdown
    assert 0.9 < tail.slowdown.estimate < 1.1
    assert not tail.counters


def test_tails_of_equal_sides_pass(fake_workers: FakeWorkers) -> None:
    fake_workers.slow_calls = {"base's": 1.0, "head's": 1.0}

    result = compared("forward-1", "training-step-64", tail=0.1)

    assert [benchmark.verdict for benchmark in result.benchmarks] == ["passed"] * 4
    assert {benchmark.rates for benchmark in result.benchmarks} == {Rates.of(4)}


def test_operation_is_prepared_once_for_its_blocks_and_its_tail(fake_workers: FakeWorkers) -> None:
    compared(tail=0.1)

    assert fake_workers.prepared == ["forward 1"] * 2 * (1 + fake_workers.pairs)


def test_pairs_keep_their_single_calls(fake_workers: FakeWorkers) -> None:
    (benchmark,) = compared().benchmarks

    assert all(len(pair.calls[side]) == SAMPLED_CALLS for pair in benchmark.pairs for side in ("base", "head"))


def test_slower_first_call_fails_and_is_prepared_before_anything_else(fake_workers: FakeWorkers) -> None:
    fake_workers.slower = {"head's forward": 0.05}

    result = compared(FIRST_CALL, "training-step-64")

    assert [benchmark.verdict for benchmark in result.benchmarks] == ["failed", "passed"]
    assert all(pair.blocks == 1 for pair in result.benchmarks[0].pairs)
    in_pairs = fake_workers.prepared[4:]  # after the counters
    assert in_pairs[:4] == ["forward 1"] * 2 + ["training step 64"] * 2


def test_first_call_has_no_compilation_cache(fake_workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    environments = []
    original = FakeWorker.__init__

    def recorded(self: FakeWorker, arm: Arm, python: str, environment: Any, *others: Any) -> None:
        environments.append(environment)
        original(self, arm, python, environment, *others)

    monkeypatch.setattr(FakeWorker, "__init__", recorded)
    compared(FIRST_CALL)
    cold = environments.copy()
    environments.clear()
    compared()

    assert all("TORCHINDUCTOR_CACHE_DIR" not in each for each in cold)
    assert all(each["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] == "1" for each in cold)
    assert len({each["TORCHINDUCTOR_CACHE_DIR"] for each in environments}) == 2


def test_fallen_counter_or_counter_of_one_side_passes(fake_workers: FakeWorkers) -> None:
    fake_workers.counters = {"base's": {"FLOPs": 9, "launches": 1}, "head's": {"FLOPs": 8, "operators": 10**6}}

    assert compared().verdict == "passed"


def test_overall_verdict_is_the_worst_one(fake_workers: FakeWorkers) -> None:
    result = compared("forward-1", "forward-4", "forward-16")

    for verdicts, worst in (
        (("passed", "passed", "passed"), "passed"),
        (("passed", "inconclusive", "passed"), "inconclusive"),
        (("inconclusive", "passed", "failed"), "failed"),
    ):
        for benchmark, verdict in zip(result.benchmarks, verdicts, strict=True):
            benchmark.by_time = verdict
        assert result.verdict == worst


def test_sides_on_different_machines_raise(fake_workers: FakeWorkers) -> None:
    fake_workers.machines["head's"] = MACHINE | {"host": "there"}

    with pytest.raises(ComparisonError, match="different machines: base's host is here, head's there"):
        compared()


def test_operation_missing_on_one_side_raises(fake_workers: FakeWorkers) -> None:
    fake_workers.without_training = ("head's",)

    with pytest.raises(ComparisonError, match="training-step-64: head has no training step, only forward"):
        compared("forward-1", "training-step-64")


@pytest.mark.parametrize("block", [1, 40])
def test_dying_worker_raises(fake_workers: FakeWorkers, block: int) -> None:
    fake_workers.dies_at = block

    with pytest.raises(WorkerError, match=r"^(base|head): (base|head)'s by .*: the worker was terminated by SIGKILL"):
        compared()


def test_order_is_random_and_determined_by_the_seed(fake_workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    original = FakeWorker.block

    def record_order(self: FakeWorker, calls: int) -> float:
        order.append(self.arm.subject)
        return original(self, calls)

    monkeypatch.setattr(FakeWorker, "block", record_order)
    compared()
    first, order[:] = order.copy(), []
    compared()

    assert first == order
    blocks = [tuple(first[place : place + 2]) for place in range(4, 4 + 2 * MIN_BLOCKS, 2)]  # after the warm-up
    assert set(blocks) == {("base's", "head's"), ("head's", "base's")}


@pytest.mark.parametrize(("start", "benchmarks"), [(2.0, 3), (5.0, 1)])
def test_sampling_time_minimizes_the_variance(start: float, benchmarks: int) -> None:
    def variance(time: float) -> float:
        return (NOISE_RATIO**2 / time + 1) * (start + benchmarks * time)

    best = sampling_time(start, benchmarks, 1000.0)

    assert variance(best) < min(variance(0.9 * best), variance(1.1 * best))


def test_sampling_time_leaves_room_for_enough_pairs() -> None:
    assert sampling_time(4.0, 3, 20 * 7.0) == 1.0
    assert sampling_time(8.0, 3, 20 * 7.0) == 0.0
