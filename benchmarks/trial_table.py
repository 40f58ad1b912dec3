"""The conditions of a trial of the gate, its plan, and the table of its verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.gate import DEFAULT

SLOWDOWNS = "benchmarks.slowdowns"


@dataclass(frozen=True)
class Condition:
    """What the gate compares, and how many gates are planned under each load."""

    name: str
    base: str
    head: str
    gates: int = 0
    """Gates of all benchmarks."""
    single: int = 0
    """Gates of one benchmark each, as evenly as possible of all of them."""
    benchmarks: tuple[str, ...] = DEFAULT
    threads: int = 1
    other_environment: bool = False
    """Whether base runs in another environment (`--base-python`)."""


def _slower(percent: int, gates: int, single: int = 0) -> Condition:
    return Condition(f"+{percent}%", f"{SLOWDOWNS}:Slower0", f"{SLOWDOWNS}:Slower{percent}", gates, single)


def _faulty(name: str, subject: str) -> Condition:
    return Condition(name, "lenet", f"{SLOWDOWNS}:{subject}", single=len(DEFAULT))


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("A/A", "lenet", "lenet", gates=7, single=30),
        Condition("A/A, other environment", "lenet", "lenet", single=6, other_environment=True),
        _slower(2, gates=1),
        _slower(3, gates=4),
        _slower(5, gates=3, single=15),
        _slower(10, gates=1),
        _faulty("needless copy", "ExtraCopy"),
        _faulty("extra allocation", "ExtraAllocation"),
        _faulty("extra dispatch", "ExtraDispatch"),
        _faulty("layout conversion", "LayoutConversion"),
        _faulty("cache-hostile access", "CacheHostile"),
        _faulty("synchronization", "Synchronization"),
        _faulty("Python loop", "PythonLoop"),
        Condition(
            "one thread fewer",
            "lenet",
            f"{SLOWDOWNS}:OneThread",
            single=2,
            benchmarks=("forward-256", "training-step-64"),
            threads=2,
        ),
        Condition(
            "for-loop SGD",
            f"{SLOWDOWNS}:ForeachSGD",
            f"{SLOWDOWNS}:ForLoopSGD",
            single=1,
            benchmarks=("training-step-64",),
        ),
    )
}
"""
The conditions by name.

Under both loads together, A/A has 74 gates: if none fails, the exact interval of false alarms ends at 4.9 %. +5% has
36: if all fail, the interval of detections begins at 90.3 %.
"""

LOADS = {0: "none", 1: "a training run"}
"""The load during a trial, by the number of background processes."""

RULES: dict[str, Callable[[float, float], bool]] = {
    "pytest-benchmark, median:5%": lambda ratio, p: ratio > 1.05,
    "asv, factor 1.1": lambda ratio, p: ratio > 1.1 and p < 0.002,
    "asv, factor 1.05": lambda ratio, p: ratio > 1.05 and p < 0.002,
    "CodSpeed, 10%": lambda ratio, p: ratio > 1.1,
}
"""
The rules of other tools, given the ratio of medians (head / base) and the p-value of the Mann-Whitney test.

- pytest-benchmark with `--benchmark-compare-fail=median:5%`; it has no default.
- asv calls a benchmark slower if the ratio exceeds `--factor`, by default 1.1, and the test has p < 0.002.
  https://github.com/airspeed-velocity/asv/blob/main/asv/_stats.py
- CodSpeed fails a benchmark that is slower by more than a threshold, by default 10 %, in simulated instructions or in
  time; here in time. https://codspeed.io/docs/features/customization
"""

SAMPLES = {"sequential": "one side after the other", "interleaved": "interleaved"}
"""
The samples to which RULES are applied, by the field of a verdict.

Sequential: single calls, in one process a side, one side after the other. Interleaved: the times of the pairs of
processes that the gate has timed; that is how these rules do best, as with `asv continuous --interleave-rounds`.
"""


def plan(other_environment: bool) -> Iterator[tuple[Condition, tuple[str, ...], int]]:
    """Yield each condition with the benchmarks of a gate, and how many such gates are planned under each load."""
    for condition in CONDITIONS.values():
        if condition.other_environment and not other_environment:
            continue
        if condition.gates:
            yield condition, condition.benchmarks, condition.gates
        number = len(condition.benchmarks)
        for index, benchmark in enumerate(condition.benchmarks):
            if planned := (condition.single + number - 1 - index) // number:
                yield condition, (benchmark,), planned


def next_gate(
    verdicts: Sequence[dict[str, Any]], processes: int, other_environment: bool = False
) -> tuple[Condition, tuple[str, ...]] | None:
    """Return what the next gate compares under this load, that of which the smallest share is done; None at the end."""
    done = Counter(
        (gate[0]["condition"], tuple(v["benchmark"] for v in gate)) for gate in gates_of(verdicts, processes)
    )
    shares = [
        (done[condition.name, benchmarks] / planned, number, condition, benchmarks)
        for number, (condition, benchmarks, planned) in enumerate(plan(other_environment))
    ]
    share, _, condition, benchmarks = min(shares)
    return (condition, benchmarks) if share < 1 else None


def gates_of(verdicts: Sequence[dict[str, Any]], processes: int) -> list[list[dict[str, Any]]]:
    """Return the verdicts of each gate under this load."""
    gates: dict[int, list[dict[str, Any]]] = {}
    for verdict in verdicts:
        if verdict["background_processes"] == processes:
            gates.setdefault(verdict["seed"], []).append(verdict)
    return list(gates.values())


def proportion(count: int, total: int, clusters: int | None = None) -> str:
    """
    Return a count and its share of the total, with a 95 % interval.

    The interval is that of Clopper and Pearson, exact for independent trials. If they are from fewer `clusters`, such
    as verdicts from gates, it is the one for that many trials with the same share: as if the trials of a cluster always
    agreed. (This is the interval of Korn & Graubard 1998, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", with the largest design effect that clusters can have.)
    """
    if not total:
        return "-"
    low, high = interval(count, total, total if clusters is None else clusters)
    return f"{count} of {total}: {count / total:.1%} ({low:.1%} to {high:.1%})"


def interval(count: int, total: int, clusters: int) -> tuple[float, float]:
    """Return the bounds of the interval that `proportion` describes."""
    share = count / total
    positive, negative = share * clusters, (1 - share) * clusters
    low = float(stats.beta.ppf(0.025, positive, negative + 1)) if count else 0.0
    high = float(stats.beta.ppf(0.975, positive + 1, negative)) if count < total else 1.0
    return low, high


def rows(verdicts: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the table's rows, header first: gates and verdicts by condition and load, and what RULES found."""
    kinds = [kind for kind in SAMPLES if any(kind in verdict for verdict in verdicts)]
    head = ["head", "load", "gates failed", "benchmarks failed", "passed", "inconclusive", "slower by time", "pairs"]
    shown = [head + [f"{rule} ({SAMPLES[kind]})" for kind in kinds for rule in RULES]]
    for name, processes in product(CONDITIONS, LOADS):
        if own := [v for v in verdicts if (v["condition"], v["background_processes"]) == (name, processes)]:
            shown.append([name, LOADS[processes], *_counts(own, processes), *_by_rules(own, kinds)])
    return shown


def _counts(verdicts: Sequence[dict[str, Any]], processes: int) -> list[str]:
    """Return the cells of what the gate decided, and the median number of pairs."""
    gates = gates_of(verdicts, processes)
    failed_gates = sum(any(verdict["verdict"] == "failed" for verdict in gate) for gate in gates)
    failed, passed, inconclusive = (
        sum(verdict["verdict"] == kind for verdict in verdicts) for kind in ("failed", "passed", "inconclusive")
    )
    timed = [verdict["by_time"] for verdict in verdicts if "by_time" in verdict]
    return [
        proportion(failed_gates, len(gates)),
        proportion(failed, len(verdicts), len(gates)),
        str(passed),
        str(inconclusive),
        f"{timed.count('failed')} of {len(timed)}" if timed else "-",
        f"{np.median([len(verdict['ratios']) for verdict in verdicts]):g}",
    ]


def _by_rules(verdicts: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    """Return how many verdicts each rule calls slower, for each kind of samples."""
    cells = []
    for kind in kinds:
        samples = [sample for verdict in verdicts if (sample := verdict.get(kind))]
        for rule in RULES.values():
            slower = sum(rule(sample["ratio"], sample["p"]) for sample in samples)
            cells.append(f"{slower} of {len(samples)}" if samples else "-")
    return cells
