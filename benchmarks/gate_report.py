"""The gate's outcome: in a terminal, as JSON for the report, as JUnit XML for CI, as Markdown for a pull request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any
from xml.etree import ElementTree as Xml

from benchmarks.comparison import Benchmark, Result
from benchmarks.decision import Slowdown
from lenet.fingerprint import headline, stamp
from lenet.table import table


@dataclass
class Outcome:
    """What a run of the gate came to: a result, or why there is none."""

    command: str
    delta: float
    compared: list[str] = field(default_factory=list)
    result: Result | None = None
    broken: str = ""

    @property
    def verdict(self) -> str:
        """passed, failed, inconclusive or broken."""
        return self.result.verdict if self.result else "broken"

    @property
    def reason(self) -> str:
        """The verdict in words."""
        return sentence(self.result) if self.result else self.broken


def words(benchmark: Benchmark, delta: float) -> str:
    """Why its verdict is what it is, in a line."""
    found, suspicion = benchmark.found, benchmark.suspicion
    if benchmark.risen:
        return "; ".join(f"{name} rose from {a:,} to {b:,}" for name, (a, b) in benchmark.risen.items())
    if found is None:
        return "no pair of processes was timed"
    if benchmark.verdict == "passed":
        once = "slower at first, but not in other processes; " if suspicion else ""
        faster = "; faster by more than delta: is that explained?" if found.upper < -delta else ""
        return f"{once}at most {found.upper:+.2%}{faster}"
    if benchmark.verdict == "failed":
        assert suspicion
        return f"at least {suspicion.lower:+.2%}, and in other processes at least {found.lower:+.2%}"
    once = "slower once, not yet twice; " if suspicion else ""
    if found.lower == -1:
        return f"{once}{found.pairs} pairs are too few to tell"
    return f"{once}a slowdown of {delta + found.visible:.2%} would have been seen"


def rows(result: Result) -> list[list[str]]:
    """A table of the benchmarks, its head first."""
    shown = [["benchmark", "verdict", "head / base", "bounds", "pairs", "base", "head", "why"]]
    for benchmark in result.benchmarks:
        found, pairs = benchmark.found, [pair for pair in benchmark.pairs if pair.round == benchmark.round]
        times = [_milliseconds(pair.base for pair in pairs), _milliseconds(pair.head for pair in pairs)]
        ratio = [_factor(found.estimate), f"{_factor(found.lower)} to {_factor(found.upper)}"] if found else ["-", "-"]
        why = words(benchmark, result.delta)
        shown.append([benchmark.name, benchmark.verdict, *ratio, f"{len(benchmark.pairs)}", *times, why])
    return shown


def _milliseconds(seconds: Iterable[float]) -> str:
    known = list(seconds)
    return f"{1e3 * median(known):.3f} ms" if known else "-"


def _factor(share: float) -> str:
    return f"{1 + share:.4f}"


def sentence(result: Result) -> str:
    """The verdict in words."""
    by_verdict = {
        verdict: [b.name for b in result.benchmarks if b.verdict == verdict] for verdict in ("failed", "inconclusive")
    }
    return {
        "passed": f"no benchmark is slower by {result.delta:.1%} or more",
        "failed": f"slower, or with more to do: {', '.join(by_verdict['failed'])}",
        "inconclusive": f"too few pairs of processes to tell: {', '.join(by_verdict['inconclusive'])}",
    }[result.verdict]


def terminal(outcome: Outcome) -> str:
    """What a terminal shows once all is done."""
    lines = [f"{outcome.verdict.upper()}: {outcome.reason}"]
    if outcome.result:
        stacks = dict.fromkeys(headline(stack) for stack in outcome.result.stacks.values())
        lines = [*(f"stack: {stack}" for stack in stacks), table(rows(outcome.result)), *lines]
    return "\n".join(lines)


def as_dict(result: Result) -> dict[str, Any]:
    """All that was measured, and what came of it."""
    return {
        "seconds": result.seconds,
        "stacks": result.stacks,
        "benchmarks": [
            {
                "name": benchmark.name,
                "verdict": benchmark.verdict,
                "why": words(benchmark, result.delta),
                "found": _slowdown(benchmark.found),
                "suspicion": _slowdown(benchmark.suspicion),
                "counters": benchmark.counters,
                "risen": benchmark.risen,
                "rates": asdict(benchmark.rates),
                "pairs": [asdict(pair) for pair in benchmark.pairs],
            }
            for benchmark in result.benchmarks
        ],
    }


def _slowdown(found: Slowdown | None) -> dict[str, float | None] | None:
    """Bounds without end (the lower one is -1) are null, as JSON has no number for them."""
    if found is None:
        return None
    return {name: None if value in (-1.0, float("inf")) else value for name, value in asdict(found).items()}


def as_json(outcome: Outcome) -> str:
    """What the report is made from."""
    said = {name: getattr(outcome, name) for name in ("verdict", "reason", "compared", "delta")}
    found = as_dict(outcome.result) if outcome.result else {"benchmarks": []}
    return json.dumps(stamp(outcome.command) | said | found, indent=1)


def junit(outcome: Outcome) -> str:
    """A test for each benchmark: what is slower failed, what cannot be told was skipped, what broke is an error."""
    tests = Xml.Element("testsuite", name="gate")

    def add(name: str, kind: str | None, message: str) -> None:
        test = Xml.SubElement(tests, "testcase", classname="benchmarks.gate", name=name)
        if kind:
            Xml.SubElement(test, kind, message=xml_text(message))

    if outcome.result:
        for benchmark in outcome.result.benchmarks:
            kind = {"failed": "failure", "inconclusive": "skipped"}.get(benchmark.verdict)
            add(benchmark.name, kind, words(benchmark, outcome.result.delta))
    else:
        add("gate", "error", outcome.reason)
    return xml(tests)


def xml(tests: Xml.Element) -> str:
    """A test suite as JUnit XML, with its counts."""
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        tests.set(attribute, str(len(tests.findall(f"testcase[{kind}]"))))
    tests.set("tests", str(len(tests)))
    Xml.indent(tests)
    return Xml.tostring(tests, encoding="unicode", xml_declaration=True) + "\n"


def xml_text(text: str) -> str:
    """The text with a question mark for each character that XML 1.0 has no place for."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def markdown(outcome: Outcome) -> str:
    """A summary for a pull request."""
    lines = [f"## Gate: {outcome.verdict}", "", _cell(outcome.reason), ""]
    lines += [f"- {_cell(line)}" for line in outcome.compared]
    if outcome.result:
        head, *body = rows(outcome.result)
        lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in body]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Any text on one line, with no markup of its own."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#" else c for c in " ".join(text.split()))


FORMATS: dict[str, Callable[[Outcome], str]] = {"json": as_json, "junit": junit, "markdown": markdown}
"""The files that can be written, by the names of their options."""
