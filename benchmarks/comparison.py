"""
Two sides, compared by benchmarks: pair after pair of fresh processes, until it is decided which is slower, if any.

Each side is a process of its own. The two processes of a pair are timed in blocks of at least 5 ms, in random order, of
which only one runs at any moment; both run on the same cores, since one core's speed is another's by up to a third
where something else has its other half. Pairs are added until `benchmarks/decision.py` has decided each benchmark or
the time is spent. What is slower by more than delta is measured once more, in other processes, before it fails. Exact
counters are compared before any clock is started: what has risen fails at once.
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
from benchmarks.worker import Arm, Worker

OPERATIONS = {"forward": "forward", "training-step": "training step"}
"""The names of benchmarks begin with these, of what the worker calls so."""

SCATTER = 1.0
"""
How a pair's ratio scatters: from block to block, after a second of them, as much as from process to process.

By 1.1, 1.1 and 0.7 %, and by 0.8, 1.0 and 1.0 %, as measured thrice on 2 cores of an AMD EPYC, over 30, 25 and 22 pairs
of `forward-1`, `forward-256` and `training-step-64`.
"""

PAIRS = 20
"""Of which two rounds of a look each can be made: with too few no slowdown is shown, however large it is."""

BLOCKS = 16
"""Of each arm at least: the middle half is of eight."""


class ComparisonError(RuntimeError):
    """What cannot be compared; the message is one line that says what was asked for and what was found."""


def cell(name: str) -> tuple[str, int]:
    """What a benchmark of this name is of: the operation, as the worker calls it, and the batch."""
    operation, _, batch = name.rpartition("-")
    return OPERATIONS[operation], int(batch)


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: an arm, in an interpreter and a folder."""

    name: str
    arm: Arm
    python: str = sys.executable
    folder: Path | None = None
    revision: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        where = f" at {self.revision}" if self.revision else ""
        return f"{self.arm}{where}" + (f" in {self.python}" if self.python != sys.executable else "")


@dataclass(frozen=True)
class Pair:
    """What two processes, side by side, took for a benchmark."""

    round: int
    cores: tuple[int, ...]
    base: float  # seconds of a call: the median over blocks
    head: float
    ratio: float  # log(head / base) of blocks side by side
    blocks: int


@dataclass
class Benchmark:
    """An operation on a batch, and what is known of it so far."""

    name: str
    rates: Rates
    counters: dict[str, dict[str, int]] = field(default_factory=dict)  # by side
    pairs: list[Pair] = field(default_factory=list)
    verdict: str = ""  # passed, failed, inconclusive; until then empty
    suspicion: Slowdown | None = None  # what the first round found, where it found head slower
    found: Slowdown | None = None  # what the last look found

    def __post_init__(self) -> None:
        self._begin(1, 0.0)

    def _begin(self, number: int, time: float) -> None:
        self.round, self.begun, self.spent, self.looks = number, time, 0.0, looks()
        self.due = next(self.looks)

    @property
    def risen(self) -> dict[str, tuple[int, int]]:
        """The exact counters that are higher in head, with both numbers."""
        base, head = self.counters.get("base", {}), self.counters.get("head", {})
        return {name: (base[name], head[name]) for name in base if name in head and head[name] > base[name]}

    @property
    def ratios(self) -> list[float]:
        """Of the pairs of this round."""
        return [pair.ratio for pair in self.pairs if pair.round == self.round]

    def take_look(self, delta: float, time: float) -> None:
        """Decide, where a look is due, or all the time is spent: `time` is the share of it, 1 or more at the end."""
        if not self.ratios or self.spent == 1 or (time < 1 and len(self.ratios) < self.due):
            return
        before, earlier, self.due = self.spent, self.found, next(self.looks)
        self.spent = (min(time, 1.0) - self.begun) / (1 - self.begun)
        self.found = slowdown(self.ratios, self.spent - before, self.rates)
        if before and earlier:  # of the same round: the bounds of all its looks hold together
            low, high = max(earlier.lower, self.found.lower), min(earlier.upper, self.found.upper)
            self.found = replace(self.found, lower=low, upper=high)
        decision = decide(self.found, delta)
        if decision == "within":
            self.verdict = "passed"
        elif decision == "slower" and self.round == 2:
            self.verdict = "failed"
        elif decision == "slower":
            self.suspicion = self.found
            self._begin(2, time)


@dataclass
class Result:
    """What a gate found."""

    delta: float
    benchmarks: list[Benchmark]
    seconds: float = 0.0
    stacks: dict[str, dict[str, str]] = field(default_factory=dict)  # by side

    @property
    def verdict(self) -> str:
        """That of the worst benchmark."""
        return max((benchmark.verdict for benchmark in self.benchmarks), key=["passed", "inconclusive", "failed"].index)


def judge(base: Side, head: Side, names: Sequence[str], delta: float, budget: float, seed: int) -> Result:
    """
    Compare two sides by the benchmarks of these names, in `budget` seconds of sampling.

    Raises ComparisonError or WorkerError where they cannot be compared; no process is left, whatever happens.
    """
    random, start = np.random.default_rng(seed), time.monotonic()
    rates = Rates.of(len(names))
    result = Result(delta, [Benchmark(name, rates) for name in names])
    with tempfile.TemporaryDirectory(prefix="comparison-", ignore_cleanup_errors=True) as folder:
        sides = [_caching_in(folder, side) for side in (base, head)]
        with started(sides, random) as workers:
            result.stacks = {name: worker.stack for name, worker in workers.items()}
            compare_counters(workers, result.benchmarks)
        sample(sides, result, budget, random)
    for benchmark in result.benchmarks:
        benchmark.verdict = benchmark.verdict or "inconclusive"
    result.seconds = time.monotonic() - start
    return result


def _caching_in(folder: str, side: Side) -> Side:
    """The side, of which what one process compiles is found by the next."""
    return replace(side, environment={"TORCHINDUCTOR_CACHE_DIR": f"{folder}/{side.name}"})


@contextmanager
def started(sides: Sequence[Side], random: np.random.Generator) -> Iterator[dict[str, Worker]]:
    """A fresh process for each side, started in random order; raises ComparisonError where machines differ."""
    with ExitStack() as stack:
        workers = {}
        for side in (sides[place] for place in random.permutation(len(sides))):
            workers[side.name] = Worker(side.arm, side.python, side.environment, side.folder)
            workers[side.name].start()
            stack.callback(workers[side.name].stop)
        for side in sides:
            worker = workers[side.name]
            worker.ready()
            if side.revision and side.folder and worker.root != side.folder.resolve():  # what is installed came instead
                raise ComparisonError(f"{side.name}: {side.revision}: no benchmarks/worker.py in this commit")
        for part in sorted(workers["base"].machine.keys() | workers["head"].machine.keys()):
            here, there = (workers[name].machine.get(part, "none") for name in ("base", "head"))
            if here != there:
                raise ComparisonError(f"the arms are on different machines: base's {part} is {here}, head's {there}")
        yield workers


def prepare(workers: Mapping[str, Worker], benchmark: Benchmark) -> None:
    """
    Have both build, call and verify a benchmark at the same time.

    Raises ComparisonError where one does not know it, WorkerError where its answer is wrong.
    """
    operation, batch = cell(benchmark.name)
    for name, worker in workers.items():
        if operation not in worker.operations:
            raise ComparisonError(f"{benchmark.name}: {name} has no {operation}, only {', '.join(worker.operations)}")
    for worker in workers.values():
        worker.run_on(cores())
        worker.request({"prepare": [operation, batch]})
    for worker in workers.values():
        worker.prepared()


def compare_counters(workers: Mapping[str, Worker], benchmarks: Sequence[Benchmark]) -> None:
    """Count what both sides' calls do; a benchmark of which a count has risen fails."""
    for benchmark in tqdm(benchmarks, "exact counters", leave=False, disable=None):
        prepare(workers, benchmark)
        benchmark.counters = {name: worker.count() for name, worker in workers.items()}
        if benchmark.risen:
            benchmark.verdict = "failed"


def sample(sides: Sequence[Side], result: Result, budget: float, random: np.random.Generator) -> None:
    """Time pair after pair of fresh processes, until all is decided or another pair would take too long."""
    start, longest = time.monotonic(), 0.0
    with tqdm(total=round(budget), unit="s", leave=False, disable=None) as bar:
        while undecided := [benchmark for benchmark in result.benchmarks if not benchmark.verdict]:
            begun = time.monotonic()
            if begun - start + longest > budget:
                break
            bar.set_description_str(", ".join(f"{b.name}: pair {len(b.pairs) + 1}" for b in undecided))
            with started(sides, random) as workers:
                duration = sampling_time(time.monotonic() - begun, len(undecided), budget)
                for benchmark in random.permutation(np.array(undecided, dtype=object)).tolist():
                    prepare(workers, benchmark)
                    benchmark.pairs.append(side_by_side(workers, benchmark.round, duration, random))
                    benchmark.take_look(result.delta, (time.monotonic() - start) / budget)
            longest = max(longest, time.monotonic() - begun)
            bar.update(round(min(budget, time.monotonic() - start)) - bar.n)
    for benchmark in undecided:
        benchmark.take_look(result.delta, 1.0)


def sampling_time(start: float, benchmarks: int, budget: float) -> float:
    """
    Seconds for each of so many benchmarks of a pair that took `start` seconds to begin.

    With these, the mean over all pairs that fit into a given time varies least: a longer time would make each pair
    better and take from their number. (The minimum of (SCATTER^2 / t + 1) * (start + benchmarks * t).) Less where PAIRS
    would not fit into the budget.
    """
    return min(SCATTER * sqrt(start / benchmarks), max(0.0, (budget / PAIRS - start) / benchmarks))


def side_by_side(workers: Mapping[str, Worker], number: int, duration: float, random: np.random.Generator) -> Pair:
    """
    Blocks of both by turns, on the same cores, each turn in random order, for `duration` seconds.

    At least BLOCKS, however long they take.
    """
    threads = workers["base"].arm.threads
    own = random.choice(cores(), min(threads, len(cores())), replace=False).tolist()
    for worker in workers.values():
        worker.run_on(own)
        worker.measure()  # the first time with what a second call makes once and for all
        worker.measure()
    calls = max(worker.calls for worker in workers.values())
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    end = time.perf_counter() + duration
    while len(seconds["base"]) < BLOCKS or time.perf_counter() < end:
        for name in random.permutation(list(workers)).tolist():
            seconds[name].append(workers[name].block(calls) / calls)
    base, head = (float(np.median(seconds[name])) for name in ("base", "head"))
    ratio = log_ratio(seconds["head"], seconds["base"])
    return Pair(number, tuple(own), base, head, ratio, len(seconds["base"]))


def cores() -> list[int]:
    """Those that this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
