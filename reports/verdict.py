"""
The verdict of a run: what each of its files says, and whether any of them is a reason to fail.

The headline, the exit code, the page, the picture, the summary and `junit.xml` all follow from `parts`, so that they
cannot contradict each other. The times themselves have no verdict, nor does `gate_trial.json`, which measures the gate.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import fisher_exact

from lenet.table import plural
from reports.laws import DEVIATES, FORGIVEN, HOLDS, LEFT_OUT, NOT_JUDGED, Law, LawResults
from reports.run import Run

COMMIT = re.compile(r" at ([0-9a-f]{7,40}) (.+)$", re.DOTALL)
"""The end of a line of `compared` in gate.json: the hash and the subject of the base commit."""

TEST_DIGITS = 360
"""The test images of scikit-learn's digits. MNIST has more, so that the test of its accuracies could be stricter."""

FALSE_ALARM = 1e-6
"""The probability with which two trainings of equal quality count as different: one run in a million."""

OPTIONAL_PARTS = {
    "laws.json": ("laws on the subject", "lenet-properties judge"),
    "benchmarks.json": ("times", "lenet-properties time"),
    "training.json": ("training", "lenet-properties train --record DIR"),
    "engines.json": ("laws on engines", "lenet-properties judge --engine NAMES"),
    "engine_times.json": ("times of engines", "lenet-properties engine-times --record DIR"),
    "gate.json": ("gate", "lenet-properties gate --json DIR/gate.json"),
    "gate_trial.json": ("error rates of the gate", "lenet-properties gate-trial"),
}
"""The files that a run may lack: what is in each, and the command that writes it."""


@dataclass(frozen=True)
class Part:
    """What one file of a run says, in the order in which the headline has it."""

    name: str
    text: str  # what the headline says; contains the failures, but no names from a user
    failures: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)  # a line for each thing that went wrong, as far as it was recorded
    inconclusive: bool = False


def parts(run: Run) -> list[Part]:
    """What each file of the run says about the stack."""
    found = [laws_part("laws", run.laws), _benchmarks(run)]
    found += [_training(run.training)] if run.training else []
    found += [laws_part("engines", run.engines)] if run.engines else []
    found += [_engine_times(run.engine_times)] if run.engine_times else []
    return found + ([_gate(run.gate)] if run.gate else [])


def passed(run: Run) -> bool:
    """Whether no part of the run failed."""
    return not failed_parts(run)


def failed_parts(run: Run) -> list[Part]:
    """The parts with a failure."""
    return [part for part in parts(run) if part.failures]


def status(run: Run) -> str:
    """`PASSED`, or `FAILED` with the names of the parts that failed."""
    names = ", ".join(part.name for part in failed_parts(run))
    return f"FAILED ({names})" if names else "PASSED"


def not_run(run: Run) -> list[str]:
    """What the run lacks, each with the command that adds it."""
    missing = [f"{what} (`{command}`)" for file, (what, command) in OPTIONAL_PARTS.items() if file not in run.files]
    compared = not run.training or run.training["comparisons"]
    return missing + ([] if compared else ["comparison of the training (`lenet-properties train --compare`)"])


def hold(count: int) -> str:
    """The count of laws that hold: `1 law holds`, `2 laws hold`."""
    return plural(count, "law") + (" holds" if count == 1 else " hold")


def outcomes(laws: Sequence[Law]) -> str:
    """The number of laws by outcome, such as `8 laws hold, 1 law is violated`."""
    counts = Counter(law.outcome for law in laws)
    found = [hold(counts.pop(HOLDS))] if counts[HOLDS] else []
    found += [f"{plural(count, 'law')} {'is' if count == 1 else 'are'} {outcome}" for outcome, count in counts.items()]
    return ", ".join(found)


def slowdown(gate: dict[str, Any], benchmark: dict[str, Any]) -> str:
    """How much longer a benchmark of the gate takes, with the interval."""
    estimate, lower, upper = (_factor(benchmark["slowdown"][name]) for name in ("estimate", "lower", "upper"))
    base = "on the base commit" if any(map(COMMIT.search, gate["compared"])) else "base"
    return f"takes {estimate} times as long as {base} (interval {lower} to {upper})"


def _factor(slowdown: float | None) -> str:
    """The slowdown as a ratio of times; JSON has null for an infinite bound."""
    return "unbounded" if slowdown is None else f"{1 + slowdown:.3f}"


def laws_part(name: str, results: LawResults) -> Part:
    """The laws fail if one is violated or not judged, if none holds, after an error, or if they did not finish."""
    apart = sum(bool(law.known_issues or law.known_deviations) for law in results.holding)
    kinds = ["issues"] * any(law.known_issues for law in results.holding)
    kinds += ["deviations"] * any(law.known_deviations for law in results.holding)
    forgiven, stopped = (len(results.with_outcome(outcome)) for outcome in (FORGIVEN, NOT_JUDGED))
    except_for = f" ({apart} of them except on examples of known {' or '.join(kinds)})" if apart else ""
    counts = [hold(len(results.holding)) + except_for]
    counts += [f"{plural(forgiven, 'law')} {FORGIVEN}"] if forgiven else []
    for outcome in (DEVIATES, LEFT_OUT):
        number = len(results.with_outcome(outcome))
        counts += [f"{plural(number, 'law')} {outcome}"] if number else []
    counts += [plural(len(results.known_issues), "known issue")]
    counts += [plural(len(results.known_deviations), "known deviation")] if results.known_deviations else []
    violations = plural(len(results.violated), "violation")
    others = [f"{plural(stopped, 'law')} {NOT_JUDGED}"] if stopped else []
    others += [plural(len(results.errors), "error")] if results.errors else []
    others += [] if results.finished else ["stopped before the end"]
    others += [] if results.holding else ["nothing was shown to hold"]
    failures = [violations, *others] if results.violated else others
    prefix = "" if name == "laws" else f"{name}: "
    reasons = {line for law in results.with_outcome(NOT_JUDGED) for line in law.not_judged}
    details = [*sorted(reasons), *results.errors]
    return Part(name, prefix + ", ".join([*counts, violations, *others]), failures, details)


def _benchmarks(run: Run) -> Part:
    """The benchmarks fail if one raised an error or gave a wrong answer; it was then not timed."""
    failed = run.failed_benchmarks
    failures = [f"{len(failed)} raised an error or gave a wrong result"] if failed else []
    return _failing("benchmarks", failures, failed)


def _training(training: dict[str, Any]) -> Part:
    """
    The training fails if a loss is not finite (null), or if it ends at another test accuracy than a comparison.

    Rounding sends equal trainings along different paths, so that they end at slightly different accuracies. They count
    as different if Fisher's exact test finds a difference that is less likely than FALSE_ALARM.
    """
    runs = {"this training": training["history"], **training["comparisons"]}
    failures = []
    for name, epochs in runs.items():
        if any(epoch["loss"] is None for epoch in epochs):
            failures.append(f"the loss of {name} is not finite")
    reached = training["history"][-1]["accuracy"]
    for name, epochs in training["comparisons"].items():
        if not failures and _differ(reached, other := epochs[-1]["accuracy"]):
            failures.append(f"the test accuracy is {reached:.1%}, but {other:.1%} with {name}")
    return _failing("training", failures, [])


def _differ(accuracy: float, other: float) -> bool:
    """Whether two test accuracies differ by more than chance explains."""
    correct = [round(share * TEST_DIGITS) for share in (accuracy, other)]
    p_value: float = fisher_exact([[count, TEST_DIGITS - count] for count in correct]).pvalue
    return p_value < FALSE_ALARM


def _engine_times(times: dict[str, Any]) -> Part:
    """The times of engines fail if an engine raised an error or gave a wrong answer; it was then not timed."""
    not_timed = times["not_timed"]
    failures = [f"{plural(len(not_timed), 'operation')} raised an error or gave a wrong result"] if not_timed else []
    details = [f"{one['engine']}, {one['operation']}, batch size {one['batch']}: {one['reason']}" for one in not_timed]
    return _failing("engine times", failures, details)


def _failing(name: str, failures: list[str], details: list[str]) -> Part:
    """A part that the headline mentions only if it failed."""
    return Part(name, f"{name}: {', '.join(failures)}" if failures else "", failures, details)


def _gate(gate: dict[str, Any]) -> Part:
    """The gate fails as it decided, if a benchmark of it failed, or if it timed none; inconclusive is not a failure."""
    slower = [benchmark for benchmark in gate["benchmarks"] if benchmark["verdict"] == "failed"]
    timed = [benchmark for benchmark in gate["benchmarks"] if benchmark["slowdown"]]
    verdict = gate["verdict"]
    if verdict in ("passed", "inconclusive") and (slower or not timed):
        verdict = "failed"
    step = next((benchmark for benchmark in timed if benchmark["name"].startswith("training-step")), None)
    text = f"gate: {verdict}" + (f", training step {slowdown(gate, step)}" if step else "")
    details = [f"{benchmark['name']}: {benchmark['reason']}" for benchmark in slower]
    if verdict in ("passed", "inconclusive"):
        return Part("gate", text, inconclusive=verdict == "inconclusive")
    return Part("gate", text, [verdict], [gate["reason"], *details])
