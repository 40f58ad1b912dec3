"""
Comparison of two sides, base and head: pairs of fresh processes are timed until each benchmark is decided.

Each side of a pair is one process. The two are timed in interleaved blocks of at least 5 ms, in random order, and only
one of them computes at any moment. Both run on the same cores, since one core is up to a third slower than another
while something else uses its other hardware thread. Pairs are added until `benchmarks/decision.py` has decided each
benchmark or the time limit is reached. A benchmark that is slower by more than delta is measured in a second round,
with other processes, before it fails. Exact counters are compared before anything is timed: a benchmark with a counter
that rose fails at once.

A head that takes at least twice as long needs no test: it fails after GROSS_PAIRS pairs, the first of which may be the
processes that counted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import log, sqrt
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.decision import Rates, Slowdown, decide, log_ratio, looks, slowdown
from benchmarks.guard import folder as run_folder
from benchmarks.worker_client import Arm, Limit, Startup, Worker
from lenet.system import available_cores

OPERATIONS = {"forward": "forward", "training-step": "training step"}
"""The prefixes of benchmark names, and the worker's names of these operations."""

NOISE_RATIO = 1.0
"""
The standard deviation of a pair's log ratio from block to block, after one second, over that from process to process.

Measured on 2 cores of an AMD EPYC in 30, 25 and 22 pairs of `forward-1`, `forward-256` and `training-step-64`: 1.1, 1.1
and 0.7 % from block to block, and 0.8, 1.0 and 1.0 % from process to process.
"""

MIN_PAIRS = 20
"""Pairs that should fit into the time limit: enough for a look in each round. Fewer cannot show any slowdown."""

MIN_BLOCKS = 16
"""Blocks of each process of a pair, at least; the interquartile mean is then over eight."""


GROSS = log(2)
"""
The log ratio of a gross slowdown: head takes twice as long.

In the published trial, none of 1,165 pairs of equal sides had a log ratio above 0.078 or below -0.078.
"""

GROSS_PAIRS = 2
"""
Pairs of processes that must all show a gross slowdown, so that a benchmark fails without further pairs.

If none of 1,165 pairs of equal sides showed one, its probability is at most 0.26 % (at a level of 95 %, by the rule of
three). In two pairs it is at most 7 in a million, far below `decision.FALSE_ALARM_RATE`.
"""

GROSS_BLOCKS = 4
"""Blocks of each process of a pair whose slowdown is gross: the interquartile mean leaves out one disturbed block."""

START_PATIENCE = 20.0
"""
Seconds that a process may take to start, or to prepare an operation, even if the time limit of the gate is less.

It took 2.6 s to start on 2 busy cores of an Intel Xeon.
"""


class ComparisonError(RuntimeError):
    """Two sides cannot be compared. The message is one line that says what was requested and what was found."""


def operation_and_batch(name: str) -> tuple[str, int]:
    """Return the worker's name of a benchmark's operation, and the batch size, such as ("training step", 64)."""
    operation, _, batch = name.rpartition("-")
    return OPERATIONS[operation], int(batch)


@dataclass(frozen=True)
class Side:
    """One side of a comparison, base or head: what its workers run, with which interpreter and from which folder."""

    name: str
    arm: Arm
    python: str = sys.executable
    folder: Path | None = None
    revision: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        revision = f" at {self.revision}" if self.revision else ""
        return f"{self.arm}{revision}" + (f" in {self.python}" if self.python != sys.executable else "")


@dataclass(frozen=True)
class Pair:
    """The times of one benchmark in a pair of processes."""

    round: int
    cores: tuple[int, ...]
    base: float  # seconds of a call: the median over blocks
    head: float
    ratio: float  # log(head / base) of interleaved blocks
    blocks: int


@dataclass
class Benchmark:
    """An operation with a batch size, and what is known about it so far."""

    name: str
    rates: Rates
    counters: dict[str, dict[str, int]] = field(default_factory=dict)  # by side
    pairs: list[Pair] = field(default_factory=list)
    verdict: str = ""  # passed, failed or inconclusive; empty while undecided
    first_round: Slowdown | None = None  # the result of the first round, if it found head slower
    slowdown: Slowdown | None = None  # the result of the last look

    def __post_init__(self) -> None:
        self._start_round(1, 0.0)

    def _start_round(self, number: int, time: float) -> None:
        self.round, self.round_start, self.spent, self.looks = number, time, 0.0, looks()
        self.next_look = next(self.looks)

    @property
    def risen(self) -> dict[str, tuple[int, int]]:
        """The exact counters that are higher in head, with the values of base and head."""
        base, head = self.counters.get("base", {}), self.counters.get("head", {})
        return {name: (base[name], head[name]) for name in base if name in head and head[name] > base[name]}

    @property
    def ratios(self) -> list[float]:
        """The log ratios of the pairs of this round."""
        return [pair.ratio for pair in self.pairs if pair.round == self.round]

    @property
    def gross(self) -> bool:
        """Whether every pair so far shows a gross slowdown."""
        return bool(self.pairs) and all(pair.ratio >= GROSS for pair in self.pairs)

    def take_look(self, delta: float, time: float) -> None:
        """
        Apply the decision rule if a look is due or the time limit is reached.

        `time` is the share of the time limit that has passed, 1 or more at the end. A gross slowdown is not tested.
        """
        if self.gross and len(self.pairs) >= GROSS_PAIRS:
            self.slowdown, self.verdict = slowdown(self.ratios, 1.0, self.rates), "failed"
            return
        if not self.ratios or self.spent == 1 or (time < 1 and len(self.ratios) < self.next_look):
            return
        before, earlier, self.next_look = self.spent, self.slowdown, next(self.looks)
        self.spent = (min(time, 1.0) - self.round_start) / (1 - self.round_start)
        self.slowdown = slowdown(self.ratios, self.spent - before, self.rates)
        if before and earlier:  # of the same round: the bounds of all its looks hold simultaneously
            low, high = max(earlier.lower, self.slowdown.lower), min(earlier.upper, self.slowdown.upper)
            self.slowdown = replace(self.slowdown, lower=low, upper=high)
        decision = decide(self.slowdown, delta)
        if decision == "within":
            self.verdict = "passed"
        elif decision == "slower" and self.round == 2:
            self.verdict = "failed"
        elif decision == "slower":
            self.first_round = self.slowdown
            self._start_round(2, time)


@dataclass
class Result:
    """The result of a comparison."""

    delta: float
    benchmarks: list[Benchmark]
    seconds: float = 0.0
    stacks: dict[str, dict[str, str]] = field(default_factory=dict)  # by side

    @property
    def verdict(self) -> str:
        """The worst verdict of all benchmarks."""
        return max((benchmark.verdict for benchmark in self.benchmarks), key=["passed", "inconclusive", "failed"].index)


def compare(base: Side, head: Side, names: Sequence[str], delta: float, budget: float, seed: int) -> Result:
    """
    Compare two sides in the benchmarks of these names, in `budget` seconds, or a little more: one pair is always timed.

    Raises ComparisonError or WorkerError if they cannot be compared. All processes are stopped in any case.
    """
    random, start = np.random.default_rng(seed), time.monotonic()
    rates = Rates.of(len(names))
    result = Result(delta, [Benchmark(name, rates) for name in names])
    with tempfile.TemporaryDirectory(prefix="comparison-", dir=run_folder(), ignore_cleanup_errors=True) as folder:
        sides = [_with_cache(side, folder) for side in (base, head)]
        with started_workers(sides, random, Limit(start + budget, START_PATIENCE)) as workers:
            result.stacks = {name: worker.stack for name, worker in workers.items()}
            compare_counters(workers, result.benchmarks, start + budget, random)
        sample_pairs(sides, result, start, budget, random)
    for benchmark in result.benchmarks:
        benchmark.verdict = benchmark.verdict or "inconclusive"
    result.seconds = time.monotonic() - start
    return result


def _with_cache(side: Side, folder: str) -> Side:
    """Return the side with a compilation cache that all of its processes share."""
    return replace(side, environment={"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{side.name}"})


@contextmanager
def started_workers(sides: Sequence[Side], random: np.random.Generator, limit: Limit) -> Iterator[dict[str, Worker]]:
    """
    Start a fresh process for each side, in random order, and yield them by the names of the sides.

    Raises ComparisonError if the processes run on different machines.
    """
    with ExitStack() as stack:
        workers = {}
        for side in (sides[index] for index in random.permutation(len(sides))):
            workers[side.name] = Worker(side.arm, side.python, side.environment, side.folder, side.name, limit)
            workers[side.name].start()
            stack.callback(workers[side.name].stop)
        for side in sides:
            workers[side.name].wait_until_ready()
        for part in sorted(workers["base"].machine.keys() | workers["head"].machine.keys()):
            base, head = (workers[name].machine.get(part, "none") for name in ("base", "head"))
            if base != head:
                raise ComparisonError(f"the sides are on different machines: base's {part} is {base}, head's {head}")
        yield workers


def prepare(workers: Mapping[str, Worker], benchmark: Benchmark) -> dict[str, Startup]:
    """
    Have both workers build, call and verify a benchmark at the same time, and return what that took, by side.

    Raises ComparisonError if a worker does not have the operation, WorkerError if it gives a wrong answer.
    """
    operation, batch = operation_and_batch(benchmark.name)
    for name, worker in workers.items():
        if operation not in worker.operations:
            raise ComparisonError(f"{benchmark.name}: {name} has no {operation}, only {', '.join(worker.operations)}")
    for worker in workers.values():
        worker.pin(available_cores())
        worker.request({"prepare": [operation, batch]})
    return {name: worker.wait_until_prepared() for name, worker in workers.items()}


def compare_counters(
    workers: Mapping[str, Worker], benchmarks: Sequence[Benchmark], limit: float, random: np.random.Generator
) -> None:
    """
    Get the exact counters of both sides; a benchmark with a counter that rose fails.

    If the slowdown may be gross, as the first calls show, it is timed: if it is gross, these processes are a pair.
    """
    for benchmark in tqdm(benchmarks, "exact counters", leave=False, disable=None):
        first = {name: startup.first_call for name, startup in prepare(workers, benchmark).items()}
        benchmark.counters = {name: worker.count() for name, worker in workers.items()}
        if benchmark.risen:
            benchmark.verdict = "failed"
        elif first["head"] >= 2 * first["base"] and (pair := time_pair(workers, 1, 0.0, limit, random)).ratio >= GROSS:
            benchmark.pairs.append(pair)


def sample_pairs(
    sides: Sequence[Side], result: Result, start: float, budget: float, random: np.random.Generator
) -> None:
    """
    Time pairs of fresh processes until all benchmarks are decided or another pair would end after the time limit.

    The limit is `budget` seconds after `start`, when the processes that counted were started. One pair is always timed.
    A process is given up if one answer takes it longer than any complete pair took, and the limit is reached.
    """
    end, sampling_start, longest = start + budget, time.monotonic(), 0.0

    def share() -> float:
        """Return the share of the time for pairs that has passed."""
        now = time.monotonic()
        return (now - sampling_start) / (end - sampling_start) if now < end else 1.0

    with tqdm(total=round(budget), unit="s", leave=False, disable=None) as bar:
        while undecided := [benchmark for benchmark in result.benchmarks if not benchmark.verdict]:
            pair_start = time.monotonic()
            if longest and pair_start + longest > end:
                break
            bar.set_description_str(", ".join(f"{b.name}: pair {len(b.pairs) + 1}" for b in undecided))
            with started_workers(sides, random, Limit(end, longest or START_PATIENCE)) as workers:
                duration = sampling_time(time.monotonic() - pair_start, len(undecided), end - sampling_start)
                for benchmark in random.permutation(np.array(undecided, dtype=object)).tolist():
                    prepare(workers, benchmark)
                    benchmark.pairs.append(time_pair(workers, benchmark.round, duration, end, random))
                    benchmark.take_look(result.delta, share())
            longest = max(longest, time.monotonic() - pair_start)
            bar.update(round(min(budget, time.monotonic() - start)) - bar.n)
    for benchmark in undecided:
        benchmark.take_look(result.delta, 1.0)


def sampling_time(start: float, benchmarks: int, budget: float) -> float:
    """
    Return the seconds to sample each of this many benchmarks in a pair that took `start` seconds to start.

    This minimizes the variance of the mean over all pairs that fit into a given time: sampling longer makes each pair
    more precise, but leaves time for fewer pairs. (It is the minimum over t of
    (NOISE_RATIO^2 / t + 1) * (start + benchmarks * t).) The result is smaller if otherwise MIN_PAIRS would not fit into
    `budget` seconds.
    """
    return min(NOISE_RATIO * sqrt(start / benchmarks), max(0.0, (budget / MIN_PAIRS - start) / benchmarks))


def time_pair(
    workers: Mapping[str, Worker], number: int, duration: float, limit: float, random: np.random.Generator
) -> Pair:
    """
    Time interleaved blocks of both workers on the same cores, for `duration` seconds and at least MIN_BLOCKS blocks.

    If head takes twice as long as base in the warm-up, GROSS_BLOCKS blocks are enough, and after the time limit (by
    `time.monotonic`) one is. The order of the two is randomized for each block; `number` is the round.
    """
    threads = workers["base"].arm.threads
    cores = random.choice(available_cores(), min(threads, len(available_cores())), replace=False).tolist()
    warm = {}
    for name, worker in workers.items():
        worker.pin(cores)
        worker.measure()  # warm-up: the second call can still initialize something
        warm[name] = worker.measure()
    calls, gross = calls_of_blocks(workers), warm["head"] >= 2 * warm["base"]
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    end = time.perf_counter() + duration
    while not seconds["base"] or (
        time.monotonic() < limit
        and (len(seconds["base"]) < (GROSS_BLOCKS if gross else MIN_BLOCKS) or time.perf_counter() < end)
    ):
        for name in random.permutation(list(workers)).tolist():
            seconds[name].append(workers[name].block(calls[name]) / calls[name])
    base, head = (float(np.median(seconds[name])) for name in ("base", "head"))
    ratio = log_ratio(seconds["head"], seconds["base"])
    return Pair(number, tuple(cores), base, head, ratio, len(seconds["base"]))


def calls_of_blocks(workers: Mapping[str, Worker]) -> dict[str, int]:
    """
    Return the number of calls in a block of each worker.

    Sides of similar speed have the larger number, so that what a block costs besides its calls weighs the same for
    both. If they differ by more than a factor of two, each has its own number: otherwise a block of the slower side
    would take many times as long as it must.
    """
    calls = {name: worker.calls for name, worker in workers.items()}
    similar = max(calls.values()) <= 2 * min(calls.values())
    return dict.fromkeys(calls, max(calls.values())) if similar else calls
