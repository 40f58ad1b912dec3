"""The conditions of a trial of the gate, and the table of its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.gate import DEFAULT

SLOWDOWNS = "benchmarks.slowdowns"


@dataclass(frozen=True)
class Condition:
    """What the gate compares, and how often relative to the other conditions."""

    name: str
    base: str
    head: str
    weight: int
    benchmarks: tuple[str, ...] = DEFAULT


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("A/A", "lenet", "lenet", 10),
        Condition("+2%", f"{SLOWDOWNS}:Slower0", f"{SLOWDOWNS}:Slower2", 1),
        Condition("+3%", f"{SLOWDOWNS}:Slower0", f"{SLOWDOWNS}:Slower3", 4),
        Condition("+5%", f"{SLOWDOWNS}:Slower0", f"{SLOWDOWNS}:Slower5", 4),
        Condition("+10%", f"{SLOWDOWNS}:Slower0", f"{SLOWDOWNS}:Slower10", 2),
        Condition("needless copy", "lenet", f"{SLOWDOWNS}:ExtraCopy", 2),
        Condition("for-loop SGD", f"{SLOWDOWNS}:ForeachSGD", f"{SLOWDOWNS}:ForLoopSGD", 1, ("training-step-64",)),
    )
}

LOADS = {0: "none", 1: "a training run"}
"""The load during a trial, by the number of background processes."""

RULES: dict[str, Callable[[float, float], bool]] = {
    "pytest-benchmark, median:5%": lambda ratio, p: ratio > 1.05,
    "Mann-Whitney, p < 0.002": lambda ratio, p: ratio > 1 and p < 0.002,
    "Mann-Whitney and 5 % slower": lambda ratio, p: ratio > 1.05 and p < 0.002,
}
"""
Rules like those of other tools, given the ratio of medians (head / base) and the p-value of the Mann-Whitney test.

The samples are taken one side after the other. The first rule is `--benchmark-compare-fail=median:5%` of
pytest-benchmark. The other two are not asv's rule: asv calls a benchmark slower if the Mann-Whitney test has p < 0.002
and the ratio exceeds `--factor`, by default 1.1.
https://github.com/airspeed-velocity/asv/blob/main/asv/_stats.py
"""


def proportion(count: int, total: int) -> str:
    """Return a count and its share of the total, with the exact 95 % interval of Clopper and Pearson."""
    if not total:
        return "-"
    low, high = stats.binomtest(count, total).proportion_ci(method="exact")
    return f"{count} of {total}: {count / total:.1%} ({low:.1%} to {high:.1%})"


def rows(verdicts: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return the table's rows, header first: the verdicts by condition and load, and what RULES found."""
    shown = [["head", "load", "failed", "passed", "inconclusive", "pairs", *RULES]]
    for name, processes in product(CONDITIONS, LOADS):
        if own := [v for v in verdicts if (v["condition"], v["background_processes"]) == (name, processes)]:
            failed, passed, inconclusive = (
                sum(v["verdict"] == kind for v in own) for kind in ("failed", "passed", "inconclusive")
            )
            pairs = f"{np.median([len(v['ratios']) for v in own]):g}"
            others = (
                proportion(sum(rule(v["sequential"]["ratio"], v["sequential"]["p"]) for v in own), len(own))
                for rule in RULES.values()
            )
            counts = [proportion(failed, len(own)), str(passed), str(inconclusive), pairs]
            shown.append([name, LOADS[processes], *counts, *others])
    return shown
