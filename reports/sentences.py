"""The sentences that sum up a run: its verdict, its evidence, its speed, and what the gate measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from reports.run import Law, Run

COMMIT = re.compile(r" at ([0-9a-f]{7,40}) (.+)$", re.DOTALL)
"""The end of a line of `compared` in gate.json: the hash and the subject of the base commit."""


def verdict(run: Run) -> str:
    """One sentence with the stack, the number of laws that hold, known issues and violations; no names from a user."""
    apart = sum(bool(law.known_issues) for law in run.holding)
    counts = [_hold(len(run.holding)) + (f" ({apart} of them except on examples of known issues)" if apart else "")]
    counts += [_plural(len(run.known_issues), "known issue"), _plural(len(run.violated), "violation")]
    counts += [_plural(len(run.errors), "error")] if run.errors else []
    counts += [] if run.finished else ["stopped before the end"]
    step = next((b for b in run.gate_benchmarks if b["name"].startswith("training-step")), None)
    speed = f"; training step {_slowdown(run, step)}" if step else ""
    devices = " and ".join(name for name in ("CPU", "CUDA") if any(f" on {name.lower()}" in s for s in run.stacks))
    machine = f"{run.stack['processor']}, {run.stack['cores']} cores" + (
        f", {run.stack['GPU']}" if "CUDA" in devices and "GPU" in run.stack else ""
    )
    return f"PyTorch {run.torch_version} ({devices}) on {machine}: {', '.join(counts)}{speed}."


def evidence(run: Run) -> str:
    """One sentence with the number of judged examples and the worst error in budgets."""
    examples, worst = sum(law.examples for law in run.laws), max(law.worst_ratio for law in run.laws)
    error = f"the worst error is {worst:.2g} of the {run.threshold:g} allowed budgets"
    return f"{examples:,} examples were judged; {error}."


def speed(run: Run) -> str:
    """One sentence with the highest throughput of a training step."""
    best = run.fastest("training step")
    if not best:
        return "No training step was timed."
    return f"A training step reaches {best.throughput:,.0f} images/s ({best.setting}, batch size {best.batch})."


def slowdowns(run: Run) -> str:
    """One sentence with the slowdown of each benchmark of the gate; empty if the gate timed none."""
    lines = [f"{benchmark['name']} {_slowdown(run, benchmark)}" for benchmark in run.gate_benchmarks]
    return f"{'; '.join(lines)}." if lines else ""


def compared(run: Run) -> str:
    """What the gate compared; the subject of a commit is in quotes."""
    return "; ".join(COMMIT.sub(r' at \1 "\2"', line) for line in run.gate["compared"]) if run.gate else ""


def outcomes(laws: Sequence[Law]) -> str:
    """The number of laws by outcome, such as `8 laws hold, 1 law is violated`."""
    counts = Counter(law.outcome for law in laws)
    parts = [_hold(counts.pop("holds"))] if counts["holds"] else []
    parts += [f"{_plural(count, 'law')} {'is' if count == 1 else 'are'} {outcome}" for outcome, count in counts.items()]
    return ", ".join(parts)


def _hold(count: int) -> str:
    return _plural(count, "law") + (" holds" if count == 1 else " hold")


def _slowdown(run: Run, benchmark: dict[str, Any]) -> str:
    estimate, lower, upper = (_factor(benchmark["slowdown"][name]) for name in ("estimate", "lower", "upper"))
    base = "on the base commit" if run.gate and any(map(COMMIT.search, run.gate["compared"])) else "base"
    return f"takes {estimate} times as long as {base} (interval {lower} to {upper})"


def _factor(slowdown: float | None) -> str:
    """The slowdown as a ratio of times; JSON has null for an infinite bound."""
    return "unbounded" if slowdown is None else f"{1 + slowdown:.3f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
