"""The page of known issues, `properties/KNOWN_ISSUES.md`, and a bug report of one."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from lenet.files import write_atomically
from properties.bug_reports import SEVERITIES, findings, report
from properties.known_issues import KNOWN_ISSUES, KnownIssue
from properties.law_index import short
from properties.versions import judged_versions, read

INTRODUCTION = """\
# Known issues

A known issue is a bug of PyTorch or of an engine that the laws have found. The laws listed with it are expected to fail
on the stacks that it affects, in a certain way: each issue states its symptoms, which are either certain wrong elements
of certain tensors (such as full SIMD blocks that keep their old values), or an error with a certain message. Only these
are forgiven, on the examples that the issue applies to. All else is judged there as everywhere: after forgiven elements
the law goes on; a forgiven error ends the example. A law that is forgiven on every example is not counted among those
that hold.

An expected failure must occur. Each issue has a counterexample for every law that it makes fail. Before such a law
judges an affected stack, it runs the counterexample. If the law holds on it, the issue no longer occurs. For the
reference network (run eagerly, or by an engine that has the issue) the run then fails: set `fixed_in` in
`known_issues.py`, or narrow `affects`. For other subjects and engines the issue is then just not expected. (Exempt are
dtypes in which an issue depends on the machine or on earlier calls, a law that draws the issue at random, and issues
after which a GPU stops working: examples of the last are not run, and count as forgiven.) Every run ends with a list of
the known issues that it expected, with their stacks.

Each issue has a script of its own in `findings/`, which needs PyTorch alone (or the engine). It exits with 1 while the
bug is there, with 0 once it is gone, and with 77 on a machine that cannot show it. `lenet-properties known-issues
--report NAME` prints a bug report with the script and its output here. The severities: silent wrong numbers; an
exception or crash; surprising, which is what no documentation mentions, though it may be meant.

This page is generated from `properties/known_issues.py` and `findings/` by
`lenet-properties known-issues --output properties/KNOWN_ISSUES.md`. Versions are those of PyTorch; most versions
before 2.13 have not been tested. "No report found" means that we know of no public report.
"""


RELEASES_INTRODUCTION = """
## Releases

Which release of PyTorch has which bug, as its script found on the CPU of one machine (`lenet-properties versions`, kept
in `releases/`). **yes**, or no; "-" where that machine cannot show it, "?" where the script does not run. Scripts
that cannot be shown there in any release are left out.

"""
MARKS = {"occurs": "**yes**", "gone": "no", "not shown here": "-"}


def page() -> str:
    """Return the page of known issues as Markdown."""
    pytorch = [issue for issue in KNOWN_ISSUES if not issue.engines]
    engines = [issue for issue in KNOWN_ISSUES if issue.engines]
    columns = ("issue", "script", "severity", "reference", "stacks", "laws forgiven", "from version", "fixed in")
    header = f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    sections = [("PyTorch", pytorch), ("Engines", engines)]
    rows = [(name, sorted(issues, key=_severity)) for name, issues in sections]
    tables = [f"\n## {name}\n\n{header}" + "".join(map(_row, issues)) for name, issues in rows]
    return INTRODUCTION + "".join(tables) + _releases()


def _releases() -> str:
    """Return the table of what each script found in each release that was judged; empty if none was."""
    kept = {version: read(version) for version in judged_versions()}
    found = {version: content["scripts"] for version, content in kept.items() if "scripts" in content}
    if not found:
        return ""
    rows = [f"| script | {' | '.join(found)} |\n|{' --- |' * (len(found) + 1)}\n"]
    for finding in sorted(findings().values(), key=lambda finding: finding.name):
        marks = [MARKS.get(outcomes.get(finding.name, ""), "?") for outcomes in found.values()]
        if set(marks) != {"-"}:
            rows.append(f"| {finding.name} | {' | '.join(marks)} |\n")
    return RELEASES_INTRODUCTION + "".join(rows)


def _severity(issue: KnownIssue) -> int:
    return SEVERITIES.index(findings()[issue.title].severity)


def _row(issue: KnownIssue) -> str:
    finding = findings()[issue.title]
    laws = dict.fromkeys(short(failure.law) for failure in issue.expected_failures)
    cells = [issue.title, f"[{finding.name}](findings/{finding.path.name})", finding.severity]
    cells += [_link(issue.reference), issue.stacks, ", ".join(f"`{law}`" for law in laws)]
    cells += [_version(issue.since), _version(issue.fixed_in) if issue.fixed_in else "no release known"]
    return f"| {' | '.join(cells)} |\n"


def _link(reference: str) -> str:
    found = re.fullmatch(r"(.+)#(\d+)", reference)
    return f"[{reference}](https://github.com/{found[1]}/issues/{found[2]})" if found else reference


def _version(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def main(arguments: list[str]) -> int:
    """Print the page of known issues, or a bug report of one, or write it to a file; return 0."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties known-issues",
        description="The page of known issues, or a bug report of one.",
        epilog="example: lenet-properties known-issues --output properties/KNOWN_ISSUES.md",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it to this file instead of printing it")
    names = {finding.name: finding for finding in findings().values()}
    parser.add_argument(
        "--report", metavar="NAME", help="print a bug report of this script of findings/, after running it"
    )
    options = parser.parse_args(arguments)
    if options.report and options.report not in names:
        parser.error(f"--report {options.report}: not one of {', '.join(names)}")
    text = report(names[options.report]) if options.report else page()
    if options.output:
        with write_atomically(options.output) as file:
            file.write(text.encode())
    else:
        print(text, end="")
    return 0
