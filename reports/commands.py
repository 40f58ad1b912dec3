"""
`lenet-properties report`: write the page and the summary of a run; the exit code is the verdict.

`lenet-properties publish` keeps a run, `index` writes the pages of all published runs again, and `diff A B` prints the
differences between two runs. Any error is one line and exit code 2: 1 says that the run failed, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from lenet.files import RESULTS, file_problem, set_aside, write_atomically
from reports import exports, history, sentences
from reports.loading import ReportError, load, one_line
from reports.page import render, render_index
from reports.verdict import not_run, passed, status

LATEST = RESULTS / "latest"

Command: TypeAlias = Callable[[list[str]], int]


def guarded(command: Command) -> Command:
    """Return the command; it then prints an error in one line, escapes what a terminal cannot show, and returns 2."""

    @functools.wraps(command)
    def run(arguments: list[str]) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a name may not be in the encoding of the terminal
        try:
            code = command(arguments)
            sys.stdout.flush()  # a full disk or a closed pipe shows here
            return code
        except ReportError as error:
            problem = str(error)
        except OSError as error:
            problem = file_problem(error)
        except Exception as error:
            folders = arguments or [str(history.RUNS if run is make_index else LATEST)]
            problem = f"a file in {' or '.join(folders)} lacks data for the report: {type(error).__name__} {error}"
        print(f"error: {one_line(problem)}", file=sys.stderr)
        return 2

    return run


@guarded
def report(arguments: list[str]) -> int:
    """Write the page, the summary and the files for CI of a run; return 0 if the run passed, 1 if it failed."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties report",
        description="Write the page and the summary of a run.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complete = "fail if laws, times or training are missing"
    parser.add_argument("--complete", action="store_true", help=complete)
    options = _options(parser, arguments)
    folder = options.folder
    if folder != LATEST and not folder.is_dir():
        raise ReportError(f"no folder {folder}; name the folder of a run")
    with contextlib.suppress(OSError):  # a folder that cannot be written to still has a verdict
        for name in (*history.PAGES, *exports.NAMES):
            set_aside(folder / name)
    run = load(folder, options.complete)
    texts = render(run) | exports.texts(run)
    print(f"{status(run)}: {sentences.verdict(run)}")
    print(f"{sentences.evidence(run)} {sentences.speed(run)}")
    print(f"judged: {'; '.join(run.laws.stacks)}")
    for file in run.unused:
        print(f"not used: {file}")
    if missing := not_run(run):
        print(f"not run: {', '.join(missing)}")
    for name, text in texts.items():
        _write(folder / name, text)
    print(f"page: {(folder / 'index.html').resolve()}")
    return 0 if passed(run) else 1


@guarded
def publish(arguments: list[str]) -> int:
    """Copy a run to `reports/runs`, and write the page of all published runs."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties publish",
        description="Keep a run in reports/runs.",
        epilog="example: lenet-properties publish lenet-results/latest",
    )
    print(f"published: {history.publish(_options(parser, arguments).folder, history.RUNS)}")
    return _list_runs()


@guarded
def make_index(arguments: list[str]) -> int:
    """Write the pages of all published runs again, so that they show today's verdict, and the page that lists them."""
    description = "Write the pages of all published runs again, and the page that lists them."
    parser = argparse.ArgumentParser(prog="lenet-properties index", description=description)
    parser.parse_args(arguments)
    for name, run in history.published(history.RUNS):
        for page, text in render(run).items():
            _write(history.RUNS / name / page, text)
    return _list_runs()


def _list_runs() -> int:
    page = history.RUNS.parent / "index.html"
    _write(page, render_index(history.published(history.RUNS)))
    print(f"page of all runs: {page.resolve()}")
    return 0


@guarded
def diff(arguments: list[str]) -> int:
    """Print the differences between two runs."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties diff",
        description="Print what changed from run A to run B.",
        epilog="example: lenet-properties diff before/latest lenet-results/latest",
    )
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="the folder of a run")
    options = parser.parse_args(arguments)
    for folder in (options.A, options.B):
        if not folder.is_dir():
            raise ReportError(f"no folder {folder}; name the folder of a run")
    lines = history.differences(load(options.A), load(options.B)) or ["no differences"]
    print(
        "\n".join(
            [*lines, "times are not compared: `lenet-properties gate` shows whether a change made anything slower"]
        )
    )
    return 0


HELP = """\
example: lenet-properties report lenet-results/latest

exit codes: 0 the run passed, 1 it failed, 2 a file is missing or invalid, or cannot be written
"""


def _options(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    help_text = "the folder of the run's JSON files (default: %(default)s)"
    parser.add_argument("folder", nargs="?", type=Path, default=LATEST, help=help_text)
    return parser.parse_args(arguments)


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text.encode())
