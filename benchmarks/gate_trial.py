"""
A trial of the gate: how often it raises a false alarm, and how often it detects a real slowdown.

`lenet-properties gate-trial --minutes 60 --record DIR` has the gate compare the reference with itself and with the
variants of `benchmarks/slowdowns.py`, in alternation, and appends each verdict to `gate_trial.json`; the next run
resumes there. `--background 1` runs the trial under load: a background process trains at the same time. With each
verdict the trial also takes samples as other tools do, one side after the other, each in one process, and records what
their rules decide.
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
from benchmarks.comparison import Benchmark, ComparisonError, Pair, Side, compare, operation_and_batch
from benchmarks.decision import Rates
from benchmarks.gate import BUDGET, DEFAULT, DELTA
from benchmarks.gate_report import as_dict
from benchmarks.trial_table import CONDITIONS, LOADS, Condition, proportion, rows
from benchmarks.worker_client import Arm, Worker, WorkerError
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


def trial(condition: Condition, seed: int) -> list[dict[str, Any]]:
    """Return the gate's verdict and the samples for other rules, per benchmark of a condition; raises as `compare`."""
    base, head = (
        Side(name, Arm(subject=subject)) for name, subject in (("base", condition.base), ("head", condition.head))
    )
    budget = BUDGET * len(condition.benchmarks)
    result = as_dict(compare(base, head, condition.benchmarks, DELTA, budget, seed))
    samples = [sampled(side, condition.benchmarks) for side in (base, head)]
    return [
        {
            "condition": condition.name,
            "benchmark": benchmark["name"],
            "seed": seed,
            "verdict": benchmark["verdict"],
            "slowdown": benchmark["slowdown"],
            "first_round": benchmark["first_round"],
            "ratios": [[pair["round"], pair["ratio"]] for pair in benchmark["pairs"]],
            "seconds": result["seconds"] / len(condition.benchmarks),
            "sequential": sequential(*(sample[benchmark["name"]] for sample in samples)),
        }
        for benchmark in result["benchmarks"]
    ]


def sampled(side: Side, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the seconds of single calls of each benchmark, in one fresh process that is not pinned to cores."""
    with Worker(side.arm) as worker:
        times = {}
        for name in names:
            worker.prepare(*operation_and_batch(name))
            worker.measure()
            times[name] = worker.sample(SAMPLE_SECONDS)
        return times


def sequential(base: list[float], head: list[float]) -> dict[str, float]:
    """Return the ratio of medians and the Mann-Whitney p-value of samples taken one side after the other."""
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
        gate = Benchmark(benchmark, rates)
        drawn = random.choice(pool, pairs) * random.choice((-1, 1), pairs)
        for ratio in drawn.tolist():
            gate.pairs.append(Pair(gate.round, (), 0.0, 0.0, ratio, 0))
            gate.take_look(DELTA, len(gate.pairs) / pairs)
            if gate.verdict:
                break
        failed += gate.verdict == "failed"
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


def next_condition(verdicts: Sequence[dict[str, Any]], processes: int) -> str:
    """Return the condition with the fewest trials for its weight, under this number of background processes."""
    done = dict.fromkeys(CONDITIONS, 0.0)
    for verdict in verdicts:
        if verdict["background_processes"] == processes:
            done[verdict["condition"]] += 1 / len(CONDITIONS[verdict["condition"]].benchmarks)
    return min(done, key=lambda name: (done[name] + 1) / CONDITIONS[name].weight)


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
        worker.prepare(*operation_and_batch("training-step-64"))
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
    Run trials for the given minutes; after each, append its verdicts to `verdicts` and write the file.

    Raises as `compare` does. All processes are stopped in any case.
    """
    start, seconds = time.monotonic(), 60 * options.minutes
    seed = max((verdict["seed"] for verdict in verdicts), default=0)
    with (
        background(options.background) as check,
        tqdm(total=round(seconds), unit="s", leave=False, disable=None) as bar,
    ):
        while time.monotonic() < start + seconds:
            name, seed = next_condition(verdicts, options.background), seed + 1
            bar.set_description_str(f"{len(verdicts)} verdicts, now {name}")
            found = trial(CONDITIONS[name], seed)
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
    parser.add_argument("--record", type=Path, default=RESULTS / "latest", metavar="DIR", help="default %(default)s")
    options = parser.parse_args(arguments)
    if problem := file_problem(options.record / FILE):
        parser.error(f"--record {options.record}: {FILE} {problem}")
    return options


def _minutes(text: str) -> float:
    """Return a number of minutes, of which 0 starts no trial."""
    return 0.0 if text == "0" else duration(f"{text}m") / 60
