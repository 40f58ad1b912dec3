"""
Comparison of two sides, base and head: pairs of fresh processes are timed until each benchmark is decided.

Each side of a pair is one process. The two are timed in interleaved blocks of at least 5 ms, in random order, and only
one of them computes at any moment. Both run on the same cores, since one core is up to a third slower than another
while something else uses its other hardware thread. Pairs are added until `benchmarks/decision.py` has decided each
benchmark or the time limit is reached. A benchmark that is slower by more than delta is measured in a second round,
with other processes, before it fails. Exact counters are compared first: a benchmark with a counter that rose fails,
unless the rise is accepted (`benchmarks/accepted.py`). It is timed nevertheless, which shows what the rise costs.

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

from benchmarks.accepted import Acceptance
from benchmarks.decision import Rates, Slowdown, decide, log_ratio, looks, slowdown
from benchmarks.guard import folder as run_folder
from benchmarks.worker_client import Arm, Limit, Startup, Worker
from benchmarks.workload import TIMED_BATCHES
from lenet.engines import PEERS
from lenet.system import available_cores

FIRST_CALL = "first-call"
"""The benchmark of a cold start: an engine builds and compiles, and calls for the first time, in a fresh process."""

BENCHMARKS = {
    f"{prefix}-{batch}": (operation, batch)
    for prefix, operation in (("forward", "forward"), ("backward", "backward"), ("training-step", "training step"))
    for batch in TIMED_BATCHES
} | {"update": ("update", 1), "optimizer-step": ("optimizer step", 1), FIRST_CALL: ("forward", 1)}
"""The names of the benchmarks, each with the worker's name of the operation, and the batch size."""

COUNTER_PARTS = ("torch", "GPU", "CUDA", "cuDNN", *PEERS.values())
"""The parts of a stack on which exact counters depend, besides the engine and what is timed."""

TAIL = " p99"
"""The end of the name of a benchmark whose observations are the 99th percentiles of single calls."""

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

SAMPLED_CALLS = 12
"""
Single calls of each process of a pair, from which the 99th percentile over all pairs is reported.

The nine pairs of a first look have 108 of them, enough for one to be above the percentile.
"""

TAIL_CALLS = 100
"""Single calls of each process of a pair if the gate tests their 99th percentile: the fewest that have one above it."""

CHUNKS = 4
"""Interleaved parts in which the single calls of a pair are made."""

START_PATIENCE = 20.0
"""
Seconds that a process may take to start, or to prepare an operation, even if the time limit of the gate is less.

It took 2.6 s to start on 2 busy cores of an Intel Xeon.
"""


class ComparisonError(RuntimeError):
    """Two sides cannot be compared. The message is one line that says what was requested and what was found."""


@dataclass(frozen=True)
class Settings:
    """What a comparison tolerates, and how long it may take."""

    delta: float
    """The tolerated slowdown, as a share."""
    budget: float
    """Seconds for everything; may be exceeded by one pair of processes."""
    seed: int = 0
    tail: float | None = None
    """The tolerated slowdown of the 99th percentile of single calls; None if it is reported, but not tested."""
    memory: float = 0.0
    """The share by which peak memory may rise."""
    accepted: Mapping[str, Mapping[str, Acceptance]] = field(default_factory=dict)
    """By benchmark and counter, which rises are accepted."""


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
    calls: Mapping[str, Sequence[float]] = field(default_factory=dict)  # seconds of single calls, by side


@dataclass
class Benchmark:
    """One of BENCHMARKS, or the tail of one, and what is known about it so far."""

    name: str
    rates: Rates
    delta: float
    counters: dict[str, dict[str, int]] = field(default_factory=dict)  # by side
    excused: dict[str, str] = field(default_factory=dict)  # counters that rose and do not fail, each with the reason
    pairs: list[Pair] = field(default_factory=list)
    by_time: str = ""  # passed, failed or inconclusive; empty while undecided
    first_round: Slowdown | None = None  # the result of the first round, if it found head slower
    slowdown: Slowdown | None = None  # the result of the last look

    def __post_init__(self) -> None:
        self._start_round(1, 0.0)

    @property
    def operation(self) -> str:
        """The name in BENCHMARKS of what is timed."""
        return self.name.removesuffix(TAIL)

    @property
    def is_tail(self) -> bool:
        """Whether the observations are percentiles of single calls instead of times of blocks."""
        return self.name != self.operation

    @property
    def verdict(self) -> str:
        """Failed if a counter rose that must not; else the verdict by time, empty while undecided."""
        return "failed" if self.risen.keys() - self.excused.keys() else self.by_time

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

    def take_look(self, time: float) -> None:
        """
        Apply the decision rule if a look is due or the time limit is reached.

        `time` is the share of the time limit that has passed, 1 or more at the end. A gross slowdown is not tested.
        """
        if self.gross and len(self.pairs) >= GROSS_PAIRS:
            self.slowdown, self.by_time = slowdown(self.ratios, 1.0, self.rates), "failed"
            return
        if not self.ratios or self.spent == 1 or (time < 1 and len(self.ratios) < self.next_look):
            return
        before, earlier, self.next_look = self.spent, self.slowdown, next(self.looks)
        self.spent = (min(time, 1.0) - self.round_start) / (1 - self.round_start)
        self.slowdown = slowdown(self.ratios, self.spent - before, self.rates)
        if before and earlier:  # of the same round: the bounds of all its looks hold simultaneously
            self.slowdown = self.slowdown.narrowed(earlier)
        decision = decide(self.slowdown, self.delta)
        if decision == "within":
            self.by_time = "passed"
        elif decision == "slower" and self.round == 2:
            self.by_time = "failed"
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
    notes: list[str] = field(default_factory=list)  # what was not compared

    @property
    def verdict(self) -> str:
        """The worst verdict of all benchmarks."""
        return max((benchmark.verdict for benchmark in self.benchmarks), key=["passed", "inconclusive", "failed"].index)


def compare(base: Side, head: Side, names: Sequence[str], settings: Settings) -> Result:
    """
    Compare two sides in the benchmarks of these names, within the time limit: one pair is always timed.

    Raises ComparisonError or WorkerError if they cannot be compared. All processes are stopped in any case.
    """
    random, start = np.random.default_rng(settings.seed), time.monotonic()
    result = Result(settings.delta, _benchmarks(names, settings))
    with tempfile.TemporaryDirectory(prefix="comparison-", dir=run_folder(), ignore_cleanup_errors=True) as folder:
        sides = [replace(side, environment=_cache(f"{folder}/{side.name}", names)) for side in (base, head)]
        end = start + settings.budget
        with started_workers(sides, random, Limit(end, START_PATIENCE)) as workers:
            result.stacks = {name: worker.stack for name, worker in workers.items()}
            compare_counters(workers, result, settings, end, random)
        sample_pairs(sides, result, start, settings.budget, random)
    for benchmark in result.benchmarks:
        benchmark.by_time = benchmark.by_time or "inconclusive"
    result.seconds = time.monotonic() - start
    return result


def _benchmarks(names: Sequence[str], settings: Settings) -> list[Benchmark]:
    """Return the benchmarks of these names, and if `--tail` asks for them those of their tails."""
    deltas = dict.fromkeys(names, settings.delta)
    if settings.tail is not None:
        deltas |= {name + TAIL: settings.tail for name in names if name != FIRST_CALL}
    return [Benchmark(name, Rates.of(len(deltas)), delta) for name, delta in deltas.items()]


def _cache(folder: str, names: Sequence[str]) -> dict[str, str]:
    """
    Return the environment in which all processes of a side share a compilation cache, which is in this folder.

    They have none if a first call is timed, since that is to include compilation.
    """
    if FIRST_CALL in names:
        return {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    return {"TORCHINDUCTOR_CACHE_DIR": folder}


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


def prepare(workers: Mapping[str, Worker], name: str) -> dict[str, Startup]:
    """
    Have both workers build, call and verify a benchmark at the same time, and return what that took, by side.

    Raises as `_request` does, and WorkerError if a worker gives a wrong answer.
    """
    _check_operation(workers, name)
    for worker in workers.values():
        worker.pin(available_cores())
        worker.request({"prepare": BENCHMARKS[name]})
    return {side: worker.wait_until_prepared() for side, worker in workers.items()}


def _check_operation(workers: Mapping[str, Worker], name: str) -> None:
    """Raise ComparisonError if a worker does not have the operation of a benchmark."""
    operation, _ = BENCHMARKS[name]
    for side, worker in workers.items():
        if operation not in worker.operations:
            raise ComparisonError(f"{name}: {side} has no {operation}, only {', '.join(worker.operations)}")


def compare_counters(
    workers: Mapping[str, Worker], result: Result, settings: Settings, limit: float, random: np.random.Generator
) -> None:
    """
    Get the exact counters of both sides. Between stacks whose counters differ without a fault, none can fail.

    If the slowdown may be gross, as the first calls show, it is timed: if it is gross, these processes are a pair.
    """
    difference = _difference(workers)
    result.notes = [f"counters are shown, but do not fail: {difference}"] if difference else []
    for benchmark in tqdm(
        [benchmark for benchmark in result.benchmarks if not benchmark.is_tail],
        "exact counters",
        leave=False,
        disable=None,
    ):
        first = {side: startup.first_call for side, startup in prepare(workers, benchmark.name).items()}
        benchmark.counters = {side: worker.count() for side, worker in workers.items()}
        benchmark.excused = {
            counter: reason
            for counter, (base, head) in benchmark.risen.items()
            if (reason := "not compared" if difference else excuse(benchmark.name, counter, base, head, settings))
        }
        suspect = benchmark.name != FIRST_CALL and first["head"] >= 2 * first["base"]
        if suspect and (pair := time_pair(workers, 1, 0.0, limit, random)).ratio >= GROSS:
            benchmark.pairs.append(pair)


def _difference(workers: Mapping[str, Worker]) -> str:
    """Return in words why the counters of the two sides differ without a fault; empty if they should not."""
    base, head = (
        {"engine": worker.arm.engine} | {part: worker.stack.get(part, "none") for part in COUNTER_PARTS}
        for worker in (workers["base"], workers["head"])
    )
    return "; ".join(f"base's {part} is {base[part]}, head's {head[part]}" for part in base if base[part] != head[part])


def excuse(benchmark: str, counter: str, base: int, head: int, settings: Settings) -> str:
    """Return why a counter may rise from `base` to `head`; empty if it may not."""
    if counter == "peak memory" and head <= base * (1 + settings.memory):
        return f"{settings.memory:.1%} more is tolerated"
    acceptance = settings.accepted.get(benchmark, {}).get(counter)
    return f"accepted: {acceptance.reason}" if acceptance and head <= acceptance.at_most else ""


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
        while undecided := [benchmark for benchmark in result.benchmarks if not benchmark.by_time]:
            pair_start = time.monotonic()
            if longest and pair_start + longest > end:
                break
            bar.set_description_str(", ".join(f"{b.name}: pair {len(b.pairs) + 1}" for b in undecided))
            with started_workers(sides, random, Limit(end, longest or START_PATIENCE)) as workers:
                duration = sampling_time(time.monotonic() - pair_start, len(undecided), end - sampling_start)
                for name in _in_random_order(undecided, random):
                    own = [benchmark for benchmark in undecided if benchmark.operation == name]
                    add_pairs(workers, name, own, duration, end, random)
                    for benchmark in own:
                        benchmark.take_look(share())
            longest = max(longest, time.monotonic() - pair_start)
            bar.update(round(min(budget, time.monotonic() - start)) - bar.n)
    for benchmark in undecided:
        benchmark.take_look(1.0)


def sampling_time(start: float, benchmarks: int, budget: float) -> float:
    """
    Return the seconds to sample each of this many benchmarks in a pair that took `start` seconds to start.

    This minimizes the variance of the mean over all pairs that fit into a given time: sampling longer makes each pair
    more precise, but leaves time for fewer pairs. (It is the minimum over t of
    (NOISE_RATIO^2 / t + 1) * (start + benchmarks * t).) The result is smaller if otherwise MIN_PAIRS would not fit into
    `budget` seconds.
    """
    return min(NOISE_RATIO * sqrt(start / benchmarks), max(0.0, (budget / MIN_PAIRS - start) / benchmarks))


def _in_random_order(benchmarks: Sequence[Benchmark], random: np.random.Generator) -> list[str]:
    """Return what is to be timed in random order, but FIRST_CALL first: nothing may have been called before it."""
    names: list[str] = random.permutation(sorted({benchmark.operation for benchmark in benchmarks})).tolist()
    return sorted(names, key=lambda name: name != FIRST_CALL)


def add_pairs(
    workers: Mapping[str, Worker],
    name: str,
    benchmarks: Sequence[Benchmark],
    duration: float,
    limit: float,
    random: np.random.Generator,
) -> None:
    """Prepare what is named, and add a pair to each of its benchmarks; see `time_pair`."""
    if name != FIRST_CALL:
        prepare(workers, name)
    for benchmark in benchmarks:
        if name == FIRST_CALL:
            pair = first_call_pair(workers, benchmark.round, random)
        elif benchmark.is_tail:
            pair = tail_pair(workers, benchmark.round, random)
        else:
            pair = time_pair(workers, benchmark.round, duration, limit, random)
        benchmark.pairs.append(pair)


def time_pair(
    workers: Mapping[str, Worker], number: int, duration: float, limit: float, random: np.random.Generator
) -> Pair:
    """
    Time interleaved blocks of both workers on the same cores, for `duration` seconds and at least MIN_BLOCKS blocks.

    If head takes twice as long as base in the warm-up, GROSS_BLOCKS blocks are enough, and after the time limit (by
    `time.monotonic`) one is; then no single calls are timed. The order of the two is randomized for each block;
    `number` is the round.
    """
    cores, warm = _warmed_up(workers, random)
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
    single = {} if gross or time.monotonic() >= limit else single_calls(workers, SAMPLED_CALLS, random)
    return Pair(number, cores, base, head, ratio, len(seconds["base"]), single)


def _warmed_up(workers: Mapping[str, Worker], random: np.random.Generator) -> tuple[tuple[int, ...], dict[str, float]]:
    """Move both workers to the same cores and warm them up; return the cores and the seconds of a call, by side."""
    cores = _pin(workers, random)
    warm = {}
    for name, worker in workers.items():
        worker.measure()  # the second call can still initialize something
        warm[name] = worker.measure()
    return cores, warm


def _pin(workers: Mapping[str, Worker], random: np.random.Generator) -> tuple[int, ...]:
    """Move both workers to the same random cores, as many as they have threads, and return these."""
    threads = workers["base"].arm.threads
    cores = random.choice(available_cores(), min(threads, len(available_cores())), replace=False).tolist()
    for worker in workers.values():
        worker.pin(cores)
    return tuple(cores)


def single_calls(workers: Mapping[str, Worker], calls: int, random: np.random.Generator) -> dict[str, list[float]]:
    """Return the seconds of this many single calls of each worker, by side; CHUNKS parts of them are interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(CHUNKS):
        for name in random.permutation(list(workers)).tolist():
            seconds[name] += workers[name].sample(calls=calls // CHUNKS)
    return seconds


def tail_pair(workers: Mapping[str, Worker], number: int, random: np.random.Generator) -> Pair:
    """Return a pair whose times are the 99th percentiles of TAIL_CALLS single calls of each worker."""
    cores, _ = _warmed_up(workers, random)
    seconds = single_calls(workers, TAIL_CALLS, random)
    base, head = (p99(seconds[name]) for name in ("base", "head"))
    return Pair(number, cores, base, head, log(head / base), len(seconds["base"]), seconds)


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile of the times of single calls."""
    return float(np.quantile(seconds, 0.99))


def first_call_pair(workers: Mapping[str, Worker], number: int, random: np.random.Generator) -> Pair:
    """Return a pair whose times are those to build FIRST_CALL and call it once, one worker after the other."""
    _check_operation(workers, FIRST_CALL)
    cores = _pin(workers, random)
    seconds = {}
    for name in random.permutation(list(workers)).tolist():
        workers[name].request({"prepare": BENCHMARKS[FIRST_CALL]})
        startup = workers[name].wait_until_prepared()
        seconds[name] = startup.build + startup.first_call
    base, head = seconds["base"], seconds["head"]
    return Pair(number, cores, base, head, log(head / base), 1)


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
