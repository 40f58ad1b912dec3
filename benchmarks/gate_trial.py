"""
The gate, gated: how often it raises a false alarm, and how often it finds a slowdown that is there.

`python -m benchmarks.gate_trial --minutes 60 --record DIR` has the gate compare the reference with itself and with the
variants of `benchmarks/slowdowns.py`, in turn, and adds each verdict to `gate_trial.json`, where it goes on the next
time. `--beside 1` has another process train all the while. With each verdict it takes samples as other tools do, one
arm after the other in a process of its own, and notes what their rules say of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from benchmarks.comparison import Benchmark, ComparisonError, Pair, Side, cell, judge
from benchmarks.decision import Rates
from benchmarks.gate import BUDGET, DEFAULT, DELTA
from benchmarks.gate_report import as_dict
from benchmarks.worker import Arm, Worker, WorkerError
from lenet.files import writable, write_atomically
from lenet.fingerprint import fingerprint, headline, stamp
from lenet.table import table

FILE = "gate_trial.json"
SLOWDOWNS = "benchmarks.slowdowns"


@dataclass(frozen=True)
class Condition:
    """What is compared, and how often in relation to the others."""

    name: str
    base: str
    head: str
    weight: int
    benchmarks: tuple[str, ...] = DEFAULT


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("A/A", "lenet", "lenet", 10),
        Condition("+2%", f"{SLOWDOWNS}:By0", f"{SLOWDOWNS}:By2", 1),
        Condition("+3%", f"{SLOWDOWNS}:By0", f"{SLOWDOWNS}:By3", 4),
        Condition("+5%", f"{SLOWDOWNS}:By0", f"{SLOWDOWNS}:By5", 4),
        Condition("+10%", f"{SLOWDOWNS}:By0", f"{SLOWDOWNS}:By10", 2),
        Condition("needless copy", "lenet", f"{SLOWDOWNS}:Copied", 2),
        Condition("for-loop SGD", f"{SLOWDOWNS}:Foreach", f"{SLOWDOWNS}:ForLoop", 1, ("training-step-64",)),
    )
}

REPLAYS = 3700
"""Of which none fails where the exact 95 % interval is to end below 1 in 1,000."""

BESIDE = {0: "nothing", 1: "a training run"}
"""What ran beside a trial, by the number of such processes."""

SAMPLED = 1.0
"""Seconds of single calls, for the rules of other tools: pytest-benchmark's `--benchmark-max-time`."""

RULES: dict[str, Callable[[float, float], bool]] = {
    "pytest-benchmark, median:5%": lambda ratio, p: ratio > 1.05,
    "Mann-Whitney, p < 0.002": lambda ratio, p: ratio > 1 and p < 0.002,
    "the same and 5 % slower": lambda ratio, p: ratio > 1.05 and p < 0.002,
}
"""
Of the ratio of medians and the p-value of one-armed samples. asv calls a benchmark slower where Mann and Whitney's
test has p < 0.002 and the ratio is above `--factor`, 1.1 by default.
https://github.com/airspeed-velocity/asv/blob/main/asv/_stats.py
"""


def trial(condition: Condition, seed: int) -> list[dict[str, Any]]:
    """The verdicts on a condition, and what other rules say; raises as `judge` does."""
    base, head = (
        Side(name, Arm(subject=subject)) for name, subject in (("base", condition.base), ("head", condition.head))
    )
    budget = BUDGET * len(condition.benchmarks)
    result = as_dict(judge(base, head, condition.benchmarks, DELTA, budget, seed))
    samples = [sampled(side, condition.benchmarks) for side in (base, head)]
    return [
        {
            "condition": condition.name,
            "benchmark": found["name"],
            "seed": seed,
            "verdict": found["verdict"],
            "found": found["found"],
            "suspicion": found["suspicion"],
            "ratios": [[pair["round"], pair["ratio"]] for pair in found["pairs"]],
            "seconds": result["seconds"] / len(condition.benchmarks),
            "sequential": sequential(*(sample[found["name"]] for sample in samples)),
        }
        for found in result["benchmarks"]
    ]


def sampled(side: Side, names: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of single calls of each benchmark, in one fresh process that runs where the system puts it."""
    with Worker(side.arm) as worker:
        taken = {}
        for name in names:
            worker.prepare(*cell(name))
            worker.measure()
            taken[name] = worker.sample(SAMPLED)
        return taken


def sequential(base: list[float], head: list[float]) -> dict[str, float]:
    """What samples of one arm and then of the other come to."""
    ratio = float(np.median(head) / np.median(base))
    return {"ratio": ratio, "p": float(stats.mannwhitneyu(base, head).pvalue)}


def share(count: int, of: int) -> str:
    """A count and its share, with the exact 95 % interval of Clopper and Pearson."""
    if not of:
        return "-"
    low, high = stats.binomtest(count, of).proportion_ci(method="exact")
    return f"{count} of {of}: {count / of:.1%} ({low:.1%} to {high:.1%})"


def replayed(verdicts: Sequence[dict[str, Any]], benchmark: str, seed: int = 0) -> str:
    """
    How many of REPLAYS gates on equals would fail, of pairs drawn from all those measured of a benchmark.

    Each pair counts with either sign, since under A/A it might as well have been the other way round. Replays say what
    the rule makes of such pairs, more often than there is time to measure; not whether tomorrow's pairs are like these.
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
    return share(failed, REPLAYS)


def rows(verdicts: Sequence[dict[str, Any]]) -> list[list[str]]:
    """How many verdicts of each condition failed, passed and were inconclusive, and what other rules called slower."""
    shown = [["head is", "beside", "failed", "passed", "inconclusive", "pairs", *RULES]]
    for name, beside in product(CONDITIONS, BESIDE):
        if own := [v for v in verdicts if (v["condition"], v["beside"]) == (name, beside)]:
            failed, passed, inconclusive = (
                sum(v["verdict"] == kind for v in own) for kind in ("failed", "passed", "inconclusive")
            )
            pairs = f"{np.median([len(v['ratios']) for v in own]):g}"
            others = (
                share(sum(rule(v["sequential"]["ratio"], v["sequential"]["p"]) for v in own), len(own))
                for rule in RULES.values()
            )
            counts = [share(failed, len(own)), str(passed), str(inconclusive), pairs]
            shown.append([name, BESIDE[beside], *counts, *others])
    return shown


def summary(verdicts: Sequence[dict[str, Any]]) -> str:
    """The table of what was counted, and what replays of its pairs come to."""
    equals = [v for v in verdicts if v["condition"] == "A/A"]
    lines = [
        f"replayed from the pairs of A/A, {name} fails in {replayed(equals, name)}"
        for name in tqdm(dict.fromkeys(v["benchmark"] for v in equals), "replays", leave=False, disable=None)
    ]
    return "\n".join([table(rows(verdicts)), "", *lines])


def read(path: Path) -> list[dict[str, Any]]:
    """The verdicts of earlier runs on this stack; raises ValueError where the file is of another gate, or torn."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text())
        stack, verdicts, before = content["stack"], content["verdicts"], (content["delta"], content["budget"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: not a file of this command ({error}); move it away") from error
    for part, value in fingerprint().items():
        if stack.get(part) != value:
            raise ValueError(f"{path}: of another {part}, {stack.get(part)}; here it is {value}: move it away")
    if before != (DELTA, BUDGET):
        raise ValueError(f"{path}: of another gate, delta and budget were {before}, now {DELTA, BUDGET}: move it away")
    return list(verdicts)


def rarest(verdicts: Sequence[dict[str, Any]], beside: int) -> str:
    """The condition that has been tried the least often for its weight."""
    done = dict.fromkeys(CONDITIONS, 0.0)
    for verdict in verdicts:
        if verdict["beside"] == beside:
            done[verdict["condition"]] += 1 / len(CONDITIONS[verdict["condition"]].benchmarks)
    return min(done, key=lambda name: (done[name] + 1) / CONDITIONS[name].weight)


@contextmanager
def background(processes: int) -> Iterator[Callable[[], None]]:
    """While so many (0 or 1) processes train; what is given raises WorkerError once they no longer do."""
    if not processes:
        yield lambda: None
        return
    done = Event()

    def train(worker: Worker) -> None:
        while not done.is_set():
            worker.sample(SAMPLED)

    with Worker(Arm()) as worker, ThreadPoolExecutor(1) as pool:
        worker.prepare(*cell("training-step-64"))
        training = pool.submit(train, worker)

        def check() -> None:
            if training.done():
                training.result()  # raises what ended it

        try:
            yield check
        finally:
            done.set()


def run(verdicts: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """
    Trials, one after the other, for so many minutes; what each finds is added to the verdicts and written.

    Raises as `judge` does; no process is left.
    """
    start, seconds = time.monotonic(), 60 * options.minutes
    seed = max((verdict["seed"] for verdict in verdicts), default=0)
    with background(options.beside) as check, tqdm(total=round(seconds), unit="s", leave=False, disable=None) as bar:
        while time.monotonic() < start + seconds:
            name, seed = rarest(verdicts, options.beside), seed + 1
            bar.set_description_str(f"{len(verdicts)} verdicts, now on {name}")
            found = trial(CONDITIONS[name], seed)
            check()
            verdicts += [verdict | {"beside": options.beside} for verdict in found]
            write(options.record / FILE, verdicts)
            bar.update(round(min(seconds, time.monotonic() - start)) - bar.n)


def write(path: Path, verdicts: Sequence[dict[str, Any]]) -> None:
    """All verdicts so far, in place of those before."""
    command = "python -m benchmarks.gate_trial"
    content = stamp(command) | {"delta": DELTA, "budget": BUDGET, "verdicts": verdicts}
    with write_atomically(path) as file:
        file.write(json.dumps(content).encode())


def main(arguments: list[str] | None = None) -> int:
    """0 where all trials came to verdicts, 2 where one broke, 130 after Ctrl-C; what was found until then is kept."""
    options = _options(arguments)
    try:
        verdicts = read(options.record / FILE)
        print(f"{headline(fingerprint())}: {len(verdicts)} verdicts so far", flush=True)
        run(verdicts, options)
    except (ComparisonError, WorkerError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(summary(verdicts))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate_trial", description="How often the gate is wrong, and how often it finds out."
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long to go on; default %(default)s")
    parser.add_argument("--beside", type=int, choices=BESIDE, default=0, help="processes that train beside; default 0")
    parser.add_argument(
        "--record", type=Path, default=Path("reports/latest"), metavar="DIR", help="default %(default)s"
    )
    options = parser.parse_args(arguments)
    if not writable(options.record):
        parser.error(f"--record {options.record}: not a folder that can be written to")
    return options


if __name__ == "__main__":
    sys.exit(main())
