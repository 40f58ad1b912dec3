"""The gate's outcome for a terminal, as JSON for the report, as JUnit XML for CI and as Markdown for a pull request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import exp
from statistics import median
from typing import Any
from xml.etree import ElementTree as Xml

from benchmarks.comparison import Benchmark, Result, p99
from benchmarks.decision import Slowdown
from benchmarks.junit import to_xml, xml_text
from lenet.fingerprint import headline, stamp
from lenet.table import table


@dataclass
class Outcome:
    """The outcome of a run of the gate: a result, or the error that prevented one."""

    command: str
    delta: float
    passes_inconclusive: bool = False
    compared: list[str] = field(default_factory=list)
    result: Result | None = None
    error: str = ""
    notes: list[str] = field(default_factory=list)  # what the system cannot do

    @property
    def verdict(self) -> str:
        """One of passed, failed, inconclusive and error."""
        return self.result.verdict if self.result else "error"

    @property
    def tolerated(self) -> bool:
        """Whether the gate is inconclusive, and that is to pass."""
        return self.verdict == "inconclusive" and self.passes_inconclusive

    @property
    def reason(self) -> str:
        """The reason for the verdict, in one line."""
        return result_reason(self.result) if self.result else self.error

    @property
    def all_notes(self) -> list[str]:
        """What could not be done on this system, and what was not compared."""
        return [*self.notes, *(self.result.notes if self.result else [])]


def benchmark_reason(benchmark: Benchmark) -> str:
    """Return the reason for a benchmark's verdict, in one line: the counters that rose, and what was timed."""
    rises = [
        f"{name} rose from {base:,} to {head:,}"
        + (f" ({benchmark.excused[name]})" if name in benchmark.excused else "")
        for name, (base, head) in benchmark.risen.items()
    ]
    return "; ".join([*rises, f"by time {benchmark.by_time}: {_by_time(benchmark)}" if rises else _by_time(benchmark)])


def _by_time(benchmark: Benchmark) -> str:
    """Return the reason for a benchmark's verdict by time."""
    found, first_round, delta = benchmark.slowdown, benchmark.first_round, benchmark.delta
    if found is None:
        return "no pair of processes was timed"
    if benchmark.gross and benchmark.by_time != "passed":
        return _gross_reason(benchmark)
    if benchmark.by_time == "passed":
        prefix = "slower in the first round, but not in the second; " if first_round else ""
        suffix = "; faster by more than delta" if found.upper < -delta else ""
        return f"{prefix}at most {found.upper:+.2%}{suffix}"
    if benchmark.by_time == "failed" and first_round:
        return f"at least {first_round.lower:+.2%}, and in the second round at least {found.lower:+.2%}"
    prefix = "slower in the first round, undecided in the second: " if first_round else "undecided: "
    if found.lower == -1:
        pairs = "1 pair is" if found.pairs == 1 else f"{found.pairs} pairs are"
        return f"{prefix}{pairs} too few (raise --budget or --delta)"
    return f"{prefix}slowdowns above {found.detectable(delta):.2%} would have been detected in this time"


def _gross_reason(benchmark: Benchmark) -> str:
    """Return the reason for failing after a few pairs, or for not doing so with too few of them."""
    factor = exp(min(pair.ratio for pair in benchmark.pairs))
    times = f"head takes at least {factor:{',.0f' if factor >= 100 else '.3g'}} times as long"
    if benchmark.by_time == "failed":
        return f"{times} in each of {len(benchmark.pairs)} pairs"
    return f"undecided: {times}, but 1 pair is too few (raise --budget)"


def rows(result: Result) -> list[list[str]]:
    """Return the rows of the table of benchmarks, with its header first."""
    shown = [
        ["benchmark", "verdict", "head / base", "bounds", "pairs", "base", "head", "base p99", "head p99", "reason"]
    ]
    for benchmark in result.benchmarks:
        found, pairs = benchmark.slowdown, [pair for pair in benchmark.pairs if pair.round == benchmark.round]
        times = [_milliseconds(median, [getattr(pair, side) for pair in pairs]) for side in ("base", "head")]
        calls = {side: [s for pair in pairs for s in pair.calls.get(side, ())] for side in ("base", "head")}
        times += [_milliseconds(p99, seconds) for seconds in calls.values()]
        ratio = [_factor(found.estimate), f"{_factor(found.lower)} to {_factor(found.upper)}"] if found else ["-", "-"]
        reason = benchmark_reason(benchmark)
        shown.append([benchmark.name, benchmark.verdict, *ratio, f"{len(benchmark.pairs)}", *times, reason])
    return shown


def _milliseconds(statistic: Callable[[list[float]], float], seconds: list[float]) -> str:
    return f"{1e3 * statistic(seconds):.3f} ms" if seconds else "-"


def _factor(share: float) -> str:
    return f"{1 + share:.4f}"


def result_reason(result: Result) -> str:
    """Return the reason for the verdict on all benchmarks, in one line."""
    by_verdict = {
        verdict: [b.name for b in result.benchmarks if b.verdict == verdict] for verdict in ("failed", "inconclusive")
    }
    return {
        "passed": f"no benchmark is slower by {result.delta:.1%} or more",
        "failed": f"slower, or with a counter that rose: {', '.join(by_verdict['failed'])}",
        "inconclusive": f"too few pairs of processes to decide: {', '.join(by_verdict['inconclusive'])}",
    }[result.verdict]


def terminal(outcome: Outcome) -> str:
    """Return what a terminal shows at the end."""
    tolerated = " (passes: --inconclusive pass)" if outcome.tolerated else ""
    lines = [f"{outcome.verdict.upper()}: {outcome.reason}{tolerated}"]
    if outcome.result:
        stacks = dict.fromkeys(headline(stack) for stack in outcome.result.stacks.values())
        notes = [f"note: {note}" for note in outcome.all_notes]
        lines = [*(f"stack: {stack}" for stack in stacks), *notes, table(rows(outcome.result)), *lines]
    return "\n".join(lines)


def as_dict(result: Result) -> dict[str, Any]:
    """Return everything that was measured and decided, as gate.json has it."""
    return {
        "seconds": result.seconds,
        "stacks": result.stacks,
        "benchmarks": [
            {
                "name": benchmark.name,
                "verdict": benchmark.verdict,
                "by_time": benchmark.by_time,
                "reason": benchmark_reason(benchmark),
                "delta": benchmark.delta,
                "slowdown": _slowdown(benchmark.slowdown),
                "first_round": _slowdown(benchmark.first_round),
                "counters": benchmark.counters,
                "risen": benchmark.risen,
                "excused": benchmark.excused,
                "rates": asdict(benchmark.rates),
                "pairs": [asdict(pair) for pair in benchmark.pairs],
            }
            for benchmark in result.benchmarks
        ],
    }


def _slowdown(found: Slowdown | None) -> dict[str, float | None] | None:
    """Return a slowdown as a dict; what is unbounded (-1 below, infinity above) is None, as JSON has no infinity."""
    if found is None:
        return None
    return {name: None if value in (-1.0, float("inf")) else value for name, value in asdict(found).items()}


def as_json(outcome: Outcome) -> str:
    """Return the content of gate.json."""
    head = {name: getattr(outcome, name) for name in ("verdict", "reason", "compared", "delta", "tolerated")}
    head |= {"notes": outcome.all_notes}
    measured = as_dict(outcome.result) if outcome.result else {"benchmarks": []}
    return json.dumps(stamp(outcome.command) | head | measured, indent=1)


def junit(outcome: Outcome) -> str:
    """
    Return JUnit XML with a test per benchmark, or one error; tests fail if and only if the exit code is not 0.

    An inconclusive benchmark is a failure, or if that is to pass a skipped test.
    """
    suite = Xml.Element("testsuite", name="gate")

    def add(name: str, kind: str | None, message: str) -> None:
        test = Xml.SubElement(suite, "testcase", classname="benchmarks.gate", name=name)
        if kind:
            Xml.SubElement(test, kind, message=xml_text(message))

    if outcome.result:
        for benchmark in outcome.result.benchmarks:
            undecided = "skipped" if outcome.passes_inconclusive else "failure"
            kind = {"failed": "failure", "inconclusive": undecided}.get(benchmark.verdict)
            add(benchmark.name, kind, benchmark_reason(benchmark))
    else:
        add("gate", "error", outcome.reason)
    return to_xml(suite)


def markdown(outcome: Outcome) -> str:
    """Return a Markdown summary for a pull request."""
    lines = [f"## Gate: {outcome.verdict}", "", _escaped(outcome.reason), ""]
    lines += [f"- {_escaped(line)}" for line in outcome.compared]
    lines += [f"- note: {_escaped(note)}" for note in outcome.all_notes]
    if outcome.result:
        header, *body = rows(outcome.result)
        lines += ["", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
        lines += [f"| {' | '.join(map(_escaped, row))} |" for row in body]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Return the text on one line, with Markdown's special characters escaped."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#" else c for c in " ".join(text.split()))


FORMATS: dict[str, Callable[[Outcome], str]] = {"json": as_json, "junit": junit, "markdown": markdown}
"""The formats of the files that the gate can write, by the names of their options."""

PURPOSES = {
    "json": "as JSON, which `lenet-properties report` reads",
    "junit": "as JUnit XML, for a CI system's list of tests",
    "markdown": "as Markdown, for a comment on a pull request",
}
"""What each format is for, as the help of its option says it."""
