"""
What GitHub shows of a run: `lenet-properties annotate` annotates the subject and writes the job's summary.

It prints a workflow command for each violated law, which GitHub shows beside the subject's line. To the file that
GITHUB_STEP_SUMMARY names it appends the run's `summary.md`, or, of a run without that, what its laws say.
https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lenet.files import file_problem
from lenet.subject import CONTRACT
from reports.commands import LATEST
from reports.laws import NOT_JUDGED, Entry, LawResults
from reports.loading import LAWS, MAX_MESSAGE, ReportError, law_results, one_line, read
from reports.page import markdown_cell
from reports.verdict import laws_part

SHOWN = 10
"""The errors of a step that GitHub shows as annotations, at most."""

MAX_SUMMARY = 2**20
"""The bytes of a step's summary, at most; GitHub shows nothing of a longer one."""


def main(arguments: list[str]) -> int:
    """Return 0 if the run's laws were read, whatever they say, else 2."""
    description = "Annotate violated laws on GitHub, and write the job's summary."
    epilog = "example: lenet-properties annotate lenet-results/latest"
    parser = argparse.ArgumentParser(prog="lenet-properties annotate", description=description, epilog=epilog)
    parser.add_argument("folder", nargs="?", type=Path, default=LATEST, help="default: %(default)s")
    folder: Path = parser.parse_args(arguments).folder
    try:
        results = _results(folder)
        for line in error_lines(results, Path(os.environ.get("GITHUB_WORKSPACE", "."))):
            print(line)
        if path := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(path).open("ab") as file:
                file.write(_summary(folder, results))
    except (ReportError, OSError) as error:
        problem = one_line(file_problem(error) if isinstance(error, OSError) else str(error))
        print(workflow_command("error", problem))
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def _results(folder: Path) -> list[LawResults]:
    """What the files of laws say; raises ReportError if there is none, or if one cannot be read."""
    names = [name for name in LAWS if (folder / name).exists()] or LAWS[:1]
    return [law_results(read(folder / name)) for name in names]


def error_lines(results: Sequence[LawResults], root: Path) -> list[str]:
    """A workflow command for each violation, and for all else that fails a run; the last one counts those left out."""
    lines = [line for each in results for line in _annotations(each, root)]
    if len(lines) <= SHOWN:
        return lines
    left_out = f"{len(lines) - SHOWN + 1} more errors are in the log of the laws and in the report"
    return [*lines[: SHOWN - 1], workflow_command("error", left_out)]


def _annotations(results: LawResults, root: Path) -> Iterator[str]:
    for law in results.violated:
        for entry in law.violations:
            parts = (entry["message"], entry["counterexample"], f"stack: {entry['stack']}", entry["command"])
            text = "\n".join(part for part in parts if part)[:MAX_MESSAGE]
            yield workflow_command("error", text, title=f"Violated: {law.title}", **place(entry, root))
    for law in results.with_outcome(NOT_JUDGED):
        yield workflow_command("error", "\n".join(law.not_judged)[:MAX_MESSAGE], title=f"Not judged: {law.title}")
    for error in results.errors:
        yield workflow_command("error", f"{error} failed without a verdict"[:MAX_MESSAGE])
    if not results.finished:
        yield workflow_command("error", "the run was stopped before its last law")


def workflow_command(name: str, text: str, **properties: str) -> str:
    """A line that GitHub takes for a command, in which the text cannot begin another one."""
    given = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
    return f"::{name}{' ' * bool(given)}{given}::{_escaped(text)}"


def _escaped(text: str, characters: str = "") -> str:
    for character in f"%\r\n{characters}":  # the percent sign first
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def place(entry: Entry, root: Path) -> dict[str, str]:
    """The file and the line, in the folder `root`, of an entry's subject; empty if it is not there."""
    spec = entry["subject"].removesuffix(f" by {entry.get('engine')}")
    where, _, name = spec.partition(":")
    module = where.replace(".", "/")
    for path in [where] if where.endswith(".py") else [f"{module}.py", f"{module}/__init__.py"]:
        found = (root / path).resolve()
        if found.is_relative_to(root.resolve()) and found.is_file():
            return {"file": found.relative_to(root.resolve()).as_posix(), "line": str(_line(found, name))}
    return {}


def _line(path: Path, name: str) -> int:
    """The line in which a name, or else one of a subject's parts, is defined; 1 if none is."""
    try:
        module = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return 1
    definitions: dict[str, int] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            definitions.setdefault(node.name, node.lineno)
    names = [name.rpartition(".")[2]] if name else CONTRACT
    return next((definitions[each] for each in names if each in definitions), 1)


def _summary(folder: Path, results: Sequence[LawResults]) -> bytes:
    """The run's summary, or what its laws say; not longer than what GitHub shows."""
    path = folder / "summary.md"
    text = path.read_text(errors="replace") if path.is_file() else "\n".join(map(_laws_in_markdown, results))
    lines, size = [], 0
    for line in text.encode().splitlines(keepends=True):
        size += len(line)
        if size >= MAX_SUMMARY:
            break
        lines.append(line)
    return b"".join(lines) + b"\n"


def _laws_in_markdown(results: LawResults) -> str:
    lines = [
        f"# {laws_part('laws', results).text}",
        "",
        *(f"- judged: {markdown_cell(each)}" for each in results.stacks),
    ]
    lines += ["", "| violated law | stack | message |", "| --- | --- | --- |"] if results.violated else []
    for law in results.violated:
        for entry in law.violations:
            cells = (law.title, entry["stack"], entry["message"])
            lines.append(f"| {' | '.join(map(markdown_cell, cells))} |")
    return "\n".join([*lines, ""])
