"""The summary at the end of a run: the verdict of each stack, skipped laws, known issues, and a diagnosis."""

from __future__ import annotations

import pytest

from lenet.oracle import THRESHOLD
from properties.diagnosis import Diagnosis, diagnose
from properties.record import RECORD, Entry


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Summarize the entries of the run, if laws were run."""
    entries, judged = config.stash[RECORD].entries, config.stash[RECORD].judged
    if not entries:
        return
    terminalreporter.write_sep("-", "verdict")
    for stack in dict.fromkeys(entry["stack"] for entry in judged):
        own = [entry for entry in judged if entry["stack"] == stack]
        failed = any(entry["outcome"] == "failed" for entry in own)
        terminalreporter.write_line(f"{stack}: {_verdict(own)}", red=failed, green=not failed)
        for note in (note for entry in own for note in entry["notes"]):
            terminalreporter.write_line(f"  {note}")
    for reason in dict.fromkeys(entry["reason"] for entry in entries if entry["reason"]):
        terminalreporter.write_line(_skipped(reason, [entry for entry in entries if entry["reason"] == reason]))
    for issue, stacks in _known_issues(entries).items():
        affected = ", ".join(sorted(stacks))
        terminalreporter.write_line(
            f"known issue: {issue}; failures on the examples it applies to were not counted on: {affected}", yellow=True
        )
    if not judged:
        terminalreporter.write_line("ERROR: nothing was judged", red=True)
    if diagnoses := _diagnoses(judged):
        terminalreporter.write_sep("-", "diagnosis")
        for subject, diagnosis in diagnoses.items():
            terminalreporter.write_line("\n".join(diagnosis.lines(subject)))


def _verdict(entries: list[Entry]) -> str:
    """Return one line about one stack's entries: laws checked, violated and with known issues, and the worst error."""
    laws = {entry["law"] for entry in entries}
    violated = {entry["law"] for entry in entries if entry["outcome"] == "failed"}
    crashed = {entry["law"] for entry in entries if entry["failure_kind"] == "crash"}
    known = {entry["law"] for entry in entries if entry["known_issues"]}
    examples = sum(entry["examples"] for entry in entries)
    partly_judged = sum(entry["partly_judged"] for entry in entries)
    graphs = sum(entry["compiled_graphs"] for entry in entries)
    worst = max(entries, key=lambda entry: float(entry["worst_ratio"]))
    counts = f"{_count(len(laws), 'law')} checked, {len(violated)} violated"
    counts += f" ({len(crashed)} crashed)" if crashed else ""
    counts += f", {len(known)} with known issues" if known else ""
    drawn = _count(examples, "example")
    drawn += f" ({partly_judged / examples:.2%} judged only in part)" if partly_judged else ""
    drawn += f" in {_count(graphs, 'compiled graph')}" if graphs else ""
    if not worst["worst_ratio"]:  # no error, or none was measured in budgets
        return f"{counts}; {drawn}"
    return (
        f"{counts}; {drawn}; worst error {worst['worst_ratio']:.2g} budgets (allowed: {THRESHOLD:g}) in {worst['law']}"
    )


def _skipped(reason: str, entries: list[Entry]) -> str:
    """Return one line about the entries that were skipped for one reason."""
    reason, laws = reason.removeprefix("Skipped: "), _count(len({entry["law"] for entry in entries}), "law")
    if entries[0]["stack"]:
        return f"skipped: {laws}: {reason}"
    return f"skipped on {reason.removesuffix(' is not available')} (not available): {laws}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _known_issues(entries: list[Entry]) -> dict[str, set[str]]:
    """Return the known issues that were expected, each with the stacks on which its failures were not counted."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        for issue in entry["known_issues"]:
            found.setdefault(f"{issue['title']} ({issue['reference']})", set()).add(entry["stack"])
    return found


def _diagnoses(judged: list[Entry]) -> dict[str, Diagnosis]:
    """
    Return the diagnosis of each subject that violated a law.

    From its float32 entries, the dtype in which the mutants were judged, if one of them failed; else from all entries.
    """
    by_subject: dict[str, list[Entry]] = {}
    for entry in judged:
        by_subject.setdefault(entry["subject"], []).append(entry)
    found = {}
    for subject, entries in by_subject.items():
        float32 = [entry for entry in entries if entry["stack"].endswith(" in float32")]
        for some in (float32, entries):
            if subject not in found and any(entry["outcome"] == "failed" for entry in some):
                found[subject] = diagnose(some)
    return found
