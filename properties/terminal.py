"""
The summary at the end of a run: the verdict of each stack, violated laws, skipped laws, known issues, and a diagnosis.

If many laws are violated, the most specific ones are shown, those that fewest mutants violate; the names of the others
follow. The record of the run has the reports of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from lenet.oracle import THRESHOLD
from lenet.table import plural
from properties.diagnosis import Diagnosis, diagnose, most_specific_first
from properties.entries import dtype_of, is_violated, outcome, reason_left_out, reason_not_judged, seen_deviations
from properties.record import PROPERTY, RECORD, Entry

SHOWN = 10
"""The number of violated laws that are shown: with a verdict and a diagnosis, they fit a screen of 24 lines."""


def pytest_configure(config: pytest.Config) -> None:
    """Have the reports of violated laws folded."""
    config.pluginmanager.register(Folding(), "lenet-folding")


class Folding:
    """Lets pytest print the reports of a subject's most specific violated laws only, unless it is run with -v."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter, config: pytest.Config
    ) -> Iterator[None]:
        """Hide the other reports while pytest prints its sections FAILURES and short test summary."""
        failed = terminalreporter.stats.get("failed", [])
        if not failed or config.get_verbosity() > 0:
            return (yield)
        terminalreporter.stats["failed"] = shown = unfolded(failed)
        yield
        terminalreporter.stats["failed"] = failed
        if hidden := len(failed) - len(shown):
            terminalreporter.write_line(f"{plural(hidden, 'more failure')}, printed with -v")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Let a file that another plugin cannot write at the end of the run fail the run, but not hide its verdict."""
    try:
        return (yield)
    except (OSError, Warning) as error:
        if RECORD not in session.config.stash:
            raise
        session.config.stash[RECORD].not_written.append(" ".join(f"{type(error).__name__}: {error}".split()))
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def unfolded(reports: list[pytest.TestReport]) -> list[pytest.TestReport]:
    """
    Return the reports to print: of tests that are no laws, and at most SHOWN of laws that each subject violates.

    Of a subject for which no law could be judged, the first.
    """
    shown, by_subject = [], dict[str, list[tuple[Entry, pytest.TestReport]]]()
    not_judged = dict[str, pytest.TestReport]()
    for report in reports:
        entry: Entry | None = dict(report.user_properties).get(PROPERTY)  # type: ignore[assignment]
        if entry is None:
            shown.append(report)
        elif is_violated(entry):
            by_subject.setdefault(entry["subject"], []).append((entry, report))
        else:
            not_judged.setdefault(entry["subject"], report)
    shown += [report for subject, report in not_judged.items() if subject not in by_subject]
    for own in by_subject.values():
        shown += _most_specific(own)
    return shown


def _most_specific(reports: list[tuple[Entry, pytest.TestReport]]) -> list[pytest.TestReport]:
    """Return at most SHOWN reports, the most specific laws first: one for each law, then a second one, and so on."""
    rank = {law: number for number, law in enumerate(most_specific_first(entry["law"] for entry, _ in reports))}
    earlier: Counter[str] = Counter()
    keyed = []
    for entry, report in reports:
        keyed.append((earlier[entry["law"]], rank[entry["law"]], report))
        earlier[entry["law"]] += 1
    chosen = sorted(keyed, key=lambda item: item[:2])[:SHOWN]
    return [report for _, _, report in sorted(chosen, key=lambda item: item[1])]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int | pytest.ExitCode, config: pytest.Config
) -> None:
    """Summarize the entries of the run, if laws were run."""
    entries, judged = config.stash[RECORD].entries, config.stash[RECORD].judged
    errors = [f"not written: {line}" for line in config.stash[RECORD].not_written]
    if exitstatus == pytest.ExitCode.OK and (count := config.stash[RECORD].not_reached):
        errors.append(f"{plural(count, 'law')} not run: the run ended early")
    errors += config.stash[RECORD].gone
    for error in errors:
        terminalreporter.write_line(f"ERROR: {error}", red=True)
    for line in config.stash[RECORD].gone_unnoticed:
        terminalreporter.write_line(f"WARNING: {line}", yellow=True)
    if not entries:
        return
    terminalreporter.write_sep("-", "verdict")
    for stack, own in _by(judged, "stack").items():
        failed = any(entry["outcome"] == "failed" for entry in own)
        terminalreporter.write_line(f"{stack}: {_verdict(own)}", red=failed, green=not failed)
        for line in _remarks(own):
            terminalreporter.write_line(f"  {line}")
    for reason in dict.fromkeys(entry["reason"] for entry in entries if entry["reason"]):
        terminalreporter.write_line(_skipped(reason, [entry for entry in entries if entry["reason"] == reason]))
    for issue, stacks in _known(entries).items():
        affected = ", ".join(sorted(stacks))
        terminalreporter.write_line(f"{issue}; its symptoms are forgiven on: {affected}", yellow=True)
    if not judged:
        terminalreporter.write_line("ERROR: nothing was judged", red=True)
    for subject, diagnosis in _diagnoses(entries).items():
        terminalreporter.write_sep("-", f"diagnosis of {subject}")
        terminalreporter.write_line("\n".join(_violated(_by(judged, "subject")[subject])))
        terminalreporter.write_line("\n".join(diagnosis.lines(subject)))


def _verdict(entries: list[Entry]) -> str:
    """Return one line about one stack's entries: laws checked, violated and with known issues, and the worst error."""
    outcomes = Counter(map(outcome, _by(entries, "law").values()))
    crashed = {entry["law"] for entry in entries if entry["failure_kind"] == "crash" and is_violated(entry)}
    known = {entry["law"] for entry in entries if entry["known_issues"]}
    counts = f"{plural(outcomes['holds'] + outcomes['violated'], 'law')} checked, {outcomes['violated']} violated"
    counts += f" ({len(crashed)} crashed)" if crashed else ""
    counts += f", {len(known)} with known issues" if known else ""
    deviating = {entry["law"] for entry in entries if seen_deviations(entry)}
    counts += f", {len(deviating)} with known deviations" if deviating else ""
    counts += f", {outcomes['forgiven']} not judged here: known issue" if outcomes["forgiven"] else ""
    counts += f", {outcomes['deviates']} not judged here: known deviation" if outcomes["deviates"] else ""
    worst = max(entries, key=lambda entry: float(entry["worst_ratio"]))
    if not worst["worst_ratio"]:  # no error, or none was measured in budgets
        return f"{counts}; {_examples(entries)}"
    error = f"worst error {worst['worst_ratio']:.2g} budgets (allowed: {THRESHOLD:g}) in {worst['law']}"
    return f"{counts}; {_examples(entries)}; {error}"


def _examples(entries: list[Entry]) -> str:
    """Return the numbers of examples, also of those forgiven or judged only in part, and of compiled graphs."""
    judged = [entry for entry in entries if not reason_not_judged(entry)]
    names = ("examples", "forgiven", "deviating", "partly_judged", "compiled_graphs")
    examples, forgiven, deviating, partly_judged, graphs = (sum(entry[name] for entry in judged) for name in names)
    parts = [f"{forgiven:,} forgiven"] if forgiven else []
    parts += [f"{deviating:,} with a known deviation"] if deviating else []
    parts += [f"{partly_judged / examples:.2%} judged only in part"] if partly_judged else []
    drawn = plural(examples, "example") + (f" ({', '.join(parts)})" if parts else "")
    return drawn + (f" in {plural(graphs, 'compiled graph')}" if graphs else "")


def _remarks(entries: list[Entry]) -> list[str]:
    """Return lines about one stack: which laws were not judged, what was not drawn, and what laws report."""
    failed = [entry | {"reason": reason_not_judged(entry)} for entry in entries if reason_not_judged(entry)]
    lines = [f"{_number_of_laws(laws)} not judged: {reason}" for reason, laws in _by(failed, "reason").items()]
    avoided = [entry | {"not_drawn": line} for entry in entries for line in entry["not_drawn"]]
    lines += [f"not drawn in {_number_of_laws(laws)}: {line}" for line, laws in _by(avoided, "not_drawn").items()]
    return lines + [note for entry in entries for note in entry["notes"]]


def _skipped(reason: str, entries: list[Entry]) -> str:
    """Return one line about the entries that were skipped for one reason."""
    if own := reason_left_out(entries[0]):
        names = sorted({entry["law"] for entry in entries})
        return f"not judged, left out by --skip-laws: {', '.join(names)}: {own}"
    reason, laws = reason.removeprefix("Skipped: "), _number_of_laws(entries)
    if entries[0]["stack"]:
        return f"skipped: {laws}: {reason}"
    return f"skipped on {reason.removesuffix(' is not available')} (not available): {laws}"


def _violated(entries: list[Entry]) -> list[str]:
    """Return lines with the names and titles of the laws that a subject violates, the most specific ones first."""
    titles = {entry["law"]: entry["statement"].partition("\n")[0] for entry in entries if is_violated(entry)}
    laws = most_specific_first(titles)
    lines = [f"{plural(len(laws), 'law')} violated, those that fewest mutants violate first:"]
    lines += [f"  {law}: {titles[law]}" for law in laws[:SHOWN]]
    return lines + ([f"  and {len(laws) - SHOWN} more: {', '.join(laws[SHOWN:])}"] if laws[SHOWN:] else [])


def _by(entries: list[Entry], field: str) -> dict[str, list[Entry]]:
    """Return the entries grouped by a field."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry[field], []).append(entry)
    return groups


def _number_of_laws(entries: list[Entry]) -> str:
    return plural(len({entry["law"] for entry in entries}), "law")


def _known(entries: list[Entry]) -> dict[str, set[str]]:
    """Return the known issues that were expected and the known deviations that were seen, each with its stacks."""
    found: dict[str, set[str]] = {}
    for entry in entries:
        for issue in entry["known_issues"]:
            found.setdefault(f"known issue: {issue['title']} ({issue['reference']})", set()).add(entry["stack"])
        for deviation in seen_deviations(entry):
            link = f" ({deviation['link']})" if deviation["link"] else ""
            found.setdefault(f"known deviation: {deviation['reason']}{link}", set()).add(entry["stack"])
    return dict(sorted(found.items(), key=lambda one: one[0].startswith("known deviation")))


def _diagnoses(entries: list[Entry]) -> dict[str, Diagnosis]:
    """
    Return the diagnosis of each subject that violated a law.

    From its entries in one dtype: float32, in which most mutants were judged by all laws, if it violated a law there.
    """
    found = {}
    for subject, own in _by(entries, "subject").items():
        violated = sorted(
            {dtype_of(entry) for entry in own if is_violated(entry)}, key=lambda dtype: dtype != "float32"
        )
        for dtype in violated[:1]:
            found[subject] = diagnose([entry for entry in own if dtype_of(entry) == dtype])
    return found
