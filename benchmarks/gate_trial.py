"""
A trial of the gate: how often it raises a false alarm, and how often it detects a real slowdown.

`lenet-properties gate-trial --minutes 60 --record DIR` has the gate compare the reference with itself and with the
variants of `benchmarks/slowdowns.py`, as people compare commits: base is checked out to another folder, where nothing
is compiled to bytecode yet, and head is the working tree. `benchmarks/trial_table.py` has the plan. Each verdict is
appended to `gate_trial.json` with its pairs, and the next run resumes there.
`--background 1` runs the trial under load: a background process trains at the same time. With each verdict the trial
also takes samples as other tools do, and records what their rules decide.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from benchmarks.arguments import duration, file_problem
from benchmarks.command import ERROR, STOPPED, one_line
from benchmarks.comparison import BENCHMARKS, Benchmark, ComparisonError, Pair, Settings, Side, compare
from benchmarks.decision import Rates
from benchmarks.gate import BUDGET, DEFAULT, DELTA, checkout, has_changes, interpreter, top_level
from benchmarks.gate_report import as_dict
from benchmarks.trial_table import CONDITIONS, LOADS, Condition, next_gate, proportion, rows
from benchmarks.worker_client import ROOT, Arm, Worker, WorkerError
from lenet.files import RESULTS, write_atomically
from lenet.fingerprint import FORMAT, fingerprint, headline, stamp
from lenet.table import table

FILE = "gate_trial.json"

VERDICTS = ("passed", "failed", "inconclusive")

START_AGAIN = "move or delete the file to start a new trial"

REPLAYS = 3700
"""With this many replays and no failure, the exact 95 % interval ends below 1 in 1,000."""

SAMPLE_SECONDS = 1.0
"""Seconds of single calls for the rules of other tools: the default of pytest-benchmark's `--benchmark-max-time`."""


def trial(condition: Condition, benchmarks: tuple[str, ...], seed: int, base_python: str) -> list[dict[str, Any]]:
    """
    Return the gate's verdict and the samples for other rules, per benchmark; raises as `compare`.

    Base runs in a checkout of HEAD, and in the interpreter `base_python` if the condition says so.
    """
    python = base_python if condition.other_environment else sys.executable
    settings = Settings(DELTA, BUDGET * len(benchmarks), seed)
    with checkout("HEAD") as folder:
        base = Side("base", Arm(subject=condition.base, threads=condition.threads), python, folder)
        head = Side("head", Arm(subject=condition.head, threads=condition.threads))
        result = as_dict(compare(base, head, benchmarks, settings))
        samples = [sampled(side, benchmarks) for side in (base, head)]
    return [
        {
            "condition": condition.name,
            "benchmark": benchmark["name"],
            "seed": seed,
            "verdict": benchmark["verdict"],
            "by_time": benchmark["by_time"],
            "risen": benchmark["risen"],
            "slowdown": benchmark["slowdown"],
            "first_round": benchmark["first_round"],
            "ratios": [[pair["round"], pair["ratio"]] for pair in benchmark["pairs"]],
            "pairs": benchmark["pairs"],
            "seconds": result["seconds"] / len(benchmarks),
            "sequential": sample_statistics(*(sample[benchmark["name"]] for sample in samples)),
            "interleaved": sample_statistics(
                *([pair[side] for pair in benchmark["pairs"]] for side in ("base", "head"))
            ),
        }
        for benchmark in result["benchmarks"]
    ]


def check_checkout() -> None:
    """Raise ComparisonError unless HEAD is this project's code as it runs, so that A/A compares equal code."""
    if top_level().resolve() != ROOT:
        raise ComparisonError(f"{Path.cwd()}: run the trial in a clone of this project that is installed as editable")
    if has_changes():
        raise ComparisonError("files differ from their commit: commit them first, since base is checked out from HEAD")


def sampled(side: Side, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the seconds of single calls of each benchmark, in one fresh process that is not pinned to cores."""
    with Worker(side.arm, side.python, folder=side.folder) as worker:
        times = {}
        for name in names:
            worker.prepare(*BENCHMARKS[name])
            worker.measure()
            times[name] = worker.sample(SAMPLE_SECONDS)
        return times


def sample_statistics(base: list[float], head: list[float]) -> dict[str, float]:
    """Return the ratio of medians (head / base) and the p-value of the Mann-Whitney test."""
    ratio = float(np.median(head) / np.median(base))
    return {"ratio": ratio, "p": float(stats.mannwhitneyu(base, head).pvalue)}


def replayed(verdicts: Sequence[dict[str, Any]], benchmark: str, seed: int = 0) -> str:
    """
    Return how many of REPLAYS replays fail: each resamples the measured pairs of one benchmark on equal sides.

    The error rates are those of a gate on DEFAULT. Each pair is used with a random sign, since either of its processes
    might have been head's. Replays show what the decision rule does with such pairs, more often than there is time to
    measure. They do not show whether other pairs would be like these.
    """
    pool = np.array([ratio for v in verdicts if v["benchmark"] == benchmark for _, ratio in v["ratios"]])
    pairs = max(len(v["ratios"]) for v in verdicts if v["benchmark"] == benchmark)
    random, failed, rates = np.random.default_rng(seed), 0, Rates.of(len(DEFAULT))
    for _ in range(REPLAYS):
        gate = Benchmark(benchmark, rates, DELTA)
        drawn = random.choice(pool, pairs) * random.choice((-1, 1), pairs)
        for ratio in drawn.tolist():
            gate.pairs.append(Pair(gate.round, (), 0.0, 0.0, ratio, 0))
            gate.take_look(len(gate.pairs) / pairs)
            if gate.by_time:
                break
        failed += gate.by_time == "failed"
    return proportion(failed, REPLAYS)


def summary(verdicts: Sequence[dict[str, Any]]) -> str:
    """Return the table of verdicts, and the results of the replays."""
    equal = [v for v in verdicts if v["condition"] == "A/A"]
    lines = [
        f"replayed from the pairs of A/A, {name} fails in {replayed(equal, name)}"
        for name in tqdm(dict.fromkeys(v["benchmark"] for v in equal), "replays", leave=False, disable=None)
    ]
    return "\n".join([table(rows(verdicts)), "", *lines])


def read(path: Path) -> list[dict[str, Any]]:
    """Return the verdicts of earlier runs; raises ValueError if the file is corrupt or of another stack or gate."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        written, stack = content["format"], dict(content["stack"])
        settings = (content["delta"], content["budget"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a file of this command ({error}); {START_AGAIN}") from error
    if written != FORMAT:
        raise ValueError(f"{path}: format {written!r:.20}, this version continues format {FORMAT}; {START_AGAIN}")
    for part, value in fingerprint().items():
        if stack.get(part) != value:
            raise ValueError(
                f"{path}: its {part} is {stack.get(part)}, here it is {value}: "
                f"cannot be continued on another stack; {START_AGAIN}"
            )
    if settings != (DELTA, BUDGET):
        raise ValueError(f"{path}: its delta and time limit are {settings}, now {DELTA, BUDGET}; {START_AGAIN}")
    try:
        verdicts = [_checked(verdict) for verdict in content["verdicts"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: one of its verdicts is none of this command ({error!r}); {START_AGAIN}") from error
    return verdicts


def _checked(verdict: dict[str, Any]) -> dict[str, Any]:
    """Return a verdict from a file; raises ValueError, LookupError or TypeError unless `trial` can have made it."""
    condition, sequential = CONDITIONS[verdict["condition"]], verdict["sequential"]
    figures = [sequential["ratio"], sequential["p"], *(ratio for _, ratio in verdict["ratios"])]
    integers = [verdict["seed"], verdict["background_processes"], *(number for number, _ in verdict["ratios"])]
    if verdict["benchmark"] not in condition.benchmarks or verdict["verdict"] not in VERDICTS:
        raise ValueError("benchmark or verdict is unknown")
    if not all(type(n) in (int, float) and abs(n) < sys.float_info.max for n in figures):
        raise ValueError("a figure is not a finite number")
    if not all(type(n) is int and n >= 0 for n in integers):
        raise ValueError("a seed, a round or a number of processes is not a whole number")
    return verdict


@contextmanager
def background(processes: int) -> Iterator[Callable[[], None]]:
    """Train in a background process (if 1, not 0); the yielded function raises WorkerError if it no longer runs."""
    if not processes:
        yield lambda: None
        return
    done = Event()

    def train(worker: Worker) -> None:
        while not done.is_set():
            worker.sample(SAMPLE_SECONDS)

    with Worker(Arm()) as worker, ThreadPoolExecutor(1) as pool:
        worker.prepare(*BENCHMARKS["training-step-64"])
        training = pool.submit(train, worker)

        def check() -> None:
            if training.done():
                training.result()  # raises the worker's error

        try:
            yield check
        finally:
            done.set()


def run(verdicts: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """
    Run trials until the plan is done or the given minutes are over; after each, append its verdicts and write the file.

    Raises as `compare` does. All processes are stopped in any case.
    """
    start, seconds = time.monotonic(), 60 * options.minutes
    seed = max((verdict["seed"] for verdict in verdicts), default=0)
    with (
        background(options.background) as check,
        tqdm(total=round(seconds), unit="s", leave=False, disable=None) as bar,
    ):
        while time.monotonic() < start + seconds:
            gate = next_gate(verdicts, options.background, options.base_python is not None)
            if gate is None:
                break
            condition, benchmarks = gate
            seed += 1
            bar.set_description_str(f"{len(verdicts)} verdicts, now {condition.name}")
            found = trial(condition, benchmarks, seed, options.base_python)
            check()
            verdicts += [verdict | {"background_processes": options.background} for verdict in found]
            write(options.record / FILE, verdicts)
            bar.update(round(min(seconds, time.monotonic() - start)) - bar.n)


def write(path: Path, verdicts: Sequence[dict[str, Any]]) -> None:
    """Write all verdicts so far, replacing the file."""
    content = stamp("lenet-properties gate-trial") | {"delta": DELTA, "budget": BUDGET, "verdicts": verdicts}
    with write_atomically(path) as file:
        file.write(json.dumps(content).encode())


def main(arguments: list[str]) -> int:
    """Return 0 if all trials gave verdicts, 2 after an error, 130 after Ctrl-C; finished verdicts are always kept."""
    options = _options(arguments)
    try:
        verdicts = read(options.record / FILE)
        print(f"{headline(fingerprint())}: {len(verdicts)} verdicts so far", flush=True)
        check_checkout()
        run(verdicts, options)
    except (ComparisonError, WorkerError, ValueError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    print(summary(verdicts))
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lenet-properties gate-trial",
        description="Measure the false alarms and the power of the gate.",
        epilog="example: lenet-properties gate-trial --minutes 30",
    )
    parser.add_argument(
        "--minutes", type=_minutes, default=60.0, help="start trials for this long; default %(default)s"
    )
    parser.add_argument(
        "--background", type=int, choices=LOADS, default=0, help="background processes that train meanwhile; default 0"
    )
    parser.add_argument(
        "--base-python",
        type=interpreter,
        metavar="FILE",
        help="an interpreter of another environment with the same versions: compare equal code across them, too",
    )
    parser.add_argument("--record", type=Path, default=RESULTS / "latest", metavar="DIR", help="default %(default)s")
    options = parser.parse_args(arguments)
    if problem := file_problem(options.record / FILE):
        parser.error(f"--record {options.record}: {FILE} {problem}")
    return options


def _minutes(text: str) -> float:
    """Return a number of minutes, of which 0 starts no trial."""
    return 0.0 if text == "0" else duration(f"{text}m") / 60
