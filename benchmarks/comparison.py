"""
Comparison of two sides, base and head: pairs of fresh processes are timed until each benchmark is decided.

Each side of a pair is one process. The two are timed in interleaved blocks of at least 5 ms, in random order, and only
one of them computes at any moment. Both run on the same cores, since one core is up to a third slower than another
while something else uses its other hardware thread. Pairs are added until `benchmarks/decision.py` has decided each
benchmark or the time limit is reached. A benchmark that is slower by more than delta is measured in a second round,
with other processes, before it fails. Exact counters are compared before anything is timed: a benchmark with a counter
that rose fails at once.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.decision import Rates, Slowdown, decide, log_ratio, looks, slowdown
from benchmarks.worker_client import Arm, Worker

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

    def take_look(self, delta: float, time: float) -> None:
        """
        Apply the decision rule if a look is due or the time limit is reached.

        `time` is the share of the time limit that has passed, 1 or more at the end.
        """
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
    Compare two sides in the benchmarks of these names, with `budget` seconds for timing all of them.

    Raises ComparisonError or WorkerError if they cannot be compared. All processes are stopped in any case.
    """
    random, start = np.random.default_rng(seed), time.monotonic()
    rates = Rates.of(len(names))
    result = Result(delta, [Benchmark(name, rates) for name in names])
    with tempfile.TemporaryDirectory(prefix="comparison-", ignore_cleanup_errors=True) as folder:
        sides = [_with_cache(side, folder) for side in (base, head)]
        with started_workers(sides, random) as workers:
            result.stacks = {name: worker.stack for name, worker in workers.items()}
            compare_counters(workers, result.benchmarks)
        sample_pairs(sides, result, budget, random)
    for benchmark in result.benchmarks:
        benchmark.verdict = benchmark.verdict or "inconclusive"
    result.seconds = time.monotonic() - start
    return result


def _with_cache(side: Side, folder: str) -> Side:
    """Return the side with a compilation cache that all of its processes share."""
    return replace(side, environment={"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{side.name}"})


@contextmanager
def started_workers(sides: Sequence[Side], random: np.random.Generator) -> Iterator[dict[str, Worker]]:
    """
    Start a fresh process for each side, in random order, and yield them by the names of the sides.

    Raises ComparisonError if the processes run on different machines, or a revision has no worker.
    """
    with ExitStack() as stack:
        workers = {}
        for side in (sides[index] for index in random.permutation(len(sides))):
            workers[side.name] = Worker(side.arm, side.python, side.environment, side.folder, side.name)
            workers[side.name].start()
            stack.callback(workers[side.name].stop)
        for side in sides:
            worker = workers[side.name]
            worker.wait_until_ready()
            if side.revision and side.folder and worker.root != side.folder.resolve():  # the installed one was imported
                raise ComparisonError(
                    f"{side.name}: {side.revision}: no benchmarks/worker.py in this commit: "
                    "this commit cannot be compared; choose a newer --base"
                )
        for part in sorted(workers["base"].machine.keys() | workers["head"].machine.keys()):
            base, head = (workers[name].machine.get(part, "none") for name in ("base", "head"))
            if base != head:
                raise ComparisonError(f"the sides are on different machines: base's {part} is {base}, head's {head}")
        yield workers


def prepare(workers: Mapping[str, Worker], benchmark: Benchmark) -> None:
    """
    Have both workers build, call and verify a benchmark at the same time.

    Raises ComparisonError if a worker does not have the operation, WorkerError if it gives a wrong answer.
    """
    operation, batch = operation_and_batch(benchmark.name)
    for name, worker in workers.items():
        if operation not in worker.operations:
            raise ComparisonError(f"{benchmark.name}: {name} has no {operation}, only {', '.join(worker.operations)}")
    for worker in workers.values():
        worker.pin(available_cores())
        worker.request({"prepare": [operation, batch]})
    for worker in workers.values():
        worker.wait_until_prepared()


def compare_counters(workers: Mapping[str, Worker], benchmarks: Sequence[Benchmark]) -> None:
    """Get the exact counters of both sides; a benchmark with a counter that rose fails."""
    for benchmark in tqdm(benchmarks, "exact counters", leave=False, disable=None):
        prepare(workers, benchmark)
        benchmark.counters = {name: worker.count() for name, worker in workers.items()}
        if benchmark.risen:
            benchmark.verdict = "failed"


def sample_pairs(sides: Sequence[Side], result: Result, budget: float, random: np.random.Generator) -> None:
    """Time pairs of fresh processes until all benchmarks are decided or another pair would exceed `budget` seconds."""
    start, longest = time.monotonic(), 0.0
    with tqdm(total=round(budget), unit="s", leave=False, disable=None) as bar:
        while undecided := [benchmark for benchmark in result.benchmarks if not benchmark.verdict]:
            pair_start = time.monotonic()
            if pair_start - start + longest > budget:
                break
            bar.set_description_str(", ".join(f"{b.name}: pair {len(b.pairs) + 1}" for b in undecided))
            with started_workers(sides, random) as workers:
                duration = sampling_time(time.monotonic() - pair_start, len(undecided), budget)
                for benchmark in random.permutation(np.array(undecided, dtype=object)).tolist():
                    prepare(workers, benchmark)
                    benchmark.pairs.append(time_pair(workers, benchmark.round, duration, random))
                    benchmark.take_look(result.delta, (time.monotonic() - start) / budget)
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


def time_pair(workers: Mapping[str, Worker], number: int, duration: float, random: np.random.Generator) -> Pair:
    """
    Time interleaved blocks of both workers on the same cores, for `duration` seconds and at least MIN_BLOCKS blocks.

    The order of the two is randomized for each block; `number` is the round.
    """
    threads = workers["base"].arm.threads
    cores = random.choice(available_cores(), min(threads, len(available_cores())), replace=False).tolist()
    for worker in workers.values():
        worker.pin(cores)
        worker.measure()  # warm-up: the second call can still initialize something
        worker.measure()
    calls = max(worker.calls for worker in workers.values())
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    end = time.perf_counter() + duration
    while len(seconds["base"]) < MIN_BLOCKS or time.perf_counter() < end:
        for name in random.permutation(list(workers)).tolist():
            seconds[name].append(workers[name].block(calls) / calls)
    base, head = (float(np.median(seconds[name])) for name in ("base", "head"))
    ratio = log_ratio(seconds["head"], seconds["base"])
    return Pair(number, tuple(cores), base, head, ratio, len(seconds["base"]))


def available_cores() -> list[int]:
    """Return the cores that this process is allowed to use, or [0] if the system does not report them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
