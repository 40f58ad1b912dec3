"""
`python -m reports`: write the page and the summary of a run; the exit code is the verdict.

`python -m reports publish` keeps a run, `index` writes the pages of all published runs again, and `diff A B` prints the
differences between two runs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from lenet.files import file_problem, set_aside, write_atomically
from reports import exports, history, sentences
from reports.loading import ReportError, load, one_line
from reports.page import render, render_index
from reports.verdict import not_run, passed, status

LATEST = Path("reports/latest")


def make(arguments: list[str]) -> int:
    """Write the page, the summary and the files for CI of a run; return 0 if the run passed, 1 if it failed."""
    parser = argparse.ArgumentParser(
        prog="python -m reports",
        description="Write the page and the summary of a run.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = _folder(parser, arguments)
    if folder != LATEST and not folder.is_dir():
        raise ReportError(f"no folder {folder}; commands are publish, index and diff")
    with contextlib.suppress(OSError):  # a folder that cannot be written to still has a verdict
        for name in (*history.PAGES, *exports.NAMES):
            set_aside(folder / name)
    run = load(folder)
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


def publish(arguments: list[str]) -> int:
    """Copy a run to `reports/runs`, and write the page of all published runs."""
    parser = argparse.ArgumentParser(prog="python -m reports publish", description="Keep a run in reports/runs.")
    print(f"published: {history.publish(_folder(parser, arguments), history.RUNS)}")
    return _list_runs()


def make_index(arguments: list[str]) -> int:
    """Write the pages of all published runs again, so that they show today's verdict, and the page that lists them."""
    description = "Write the pages of all published runs again, and the page that lists them."
    argparse.ArgumentParser(prog="python -m reports index", description=description).parse_args(arguments)
    for name, run in history.published(history.RUNS):
        for page, text in render(run).items():
            _write(history.RUNS / name / page, text)
    return _list_runs()


def _list_runs() -> int:
    page = history.RUNS.parent / "index.html"
    _write(page, render_index(history.published(history.RUNS)))
    print(f"page of all runs: {page.resolve()}")
    return 0


def diff(arguments: list[str]) -> int:
    """Print the differences between two runs."""
    parser = argparse.ArgumentParser(prog="python -m reports diff", description="Print what changed from A to B.")
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="the folder of a run")
    options = parser.parse_args(arguments)
    print("\n".join(history.differences(load(options.A), load(options.B))))
    return 0


HELP = """\
other commands:
  publish [FOLDER]  copy a run to reports/runs, and write the page of all published runs
  index             write the pages of all published runs again, and reports/index.html, which lists them
  diff A B          print the differences between the runs in the folders A and B

exit codes:
  0  the run passed; publish, index and diff: done
  1  the run failed
  2  a file is missing or invalid, or cannot be written
"""

COMMANDS: dict[str, Callable[[list[str]], int]] = {"publish": publish, "index": make_index, "diff": diff}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code, or 2 after any error."""
    given = sys.argv[1:] if arguments is None else arguments
    command, rest = (COMMANDS[given[0]], given[1:]) if given and given[0] in COMMANDS else (make, given)
    try:
        code = command(rest)
        sys.stdout.flush()  # a full disk or a closed pipe shows here
        return code
    except ReportError as error:
        problem = str(error)
    except OSError as error:
        problem = file_problem(error)
    except Exception as error:  # 1 means that the run failed, and nothing else
        folders = rest or [str(history.RUNS if command is make_index else LATEST)]
        problem = f"a file in {' or '.join(folders)} lacks data for the report: {type(error).__name__} {error}"
    print(f"error: {one_line(problem)}", file=sys.stderr)
    return 2


def _folder(parser: argparse.ArgumentParser, arguments: list[str]) -> Path:
    help_text = "the folder of the run's JSON files (default: %(default)s)"
    parser.add_argument("folder", nargs="?", type=Path, default=LATEST, help=help_text)
    folder: Path = parser.parse_args(arguments).folder
    return folder


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text.encode())
