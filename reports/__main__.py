"""
`python -m reports`: the page and the summary of a run, and its verdict as the exit code.

`python -m reports publish` keeps a run, `index` makes the page of all that are kept, `diff A B` says what changed from
one to another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from jinja2 import UndefinedError

from lenet.files import set_aside, write_atomically
from reports import exports, history
from reports.page import index, render
from reports.run import ReportError, load

LATEST = Path("reports/latest")
RUNS = Path("reports/runs")
WRITTEN = (*history.PAGES, *exports.NAMES)


def make(arguments: list[str]) -> int:
    """The page, the summary, and the files for CI of a run; 0 where it passed, 1 where it did not."""
    parser = argparse.ArgumentParser(prog="python -m reports", description="Make the page and the summary of a run.")
    folder = _folder(parser, arguments)
    for name in WRITTEN:
        set_aside(folder / name)
    run = load(folder)
    for name, text in (render(run) | exports.texts(run)).items():
        _write(folder / name, text)
    print(f"{'PASSED' if run.passed else 'FAILED'}: {run.verdict}")
    print(f"{run.evidence} {run.speed}")
    print(f"judged: {'; '.join(run.stacks)}")
    print(f"the page: {(folder / 'index.html').resolve()}")
    return 0 if run.passed else 1


def publish(arguments: list[str]) -> int:
    """Keep a run, and make the page of all that are kept anew."""
    parser = argparse.ArgumentParser(prog="python -m reports publish", description="Keep a run in reports/runs.")
    print(f"published: {history.publish(_folder(parser, arguments), RUNS)}")
    return make_index([])


def make_index(arguments: list[str]) -> int:
    """The page of all runs that are kept."""
    argparse.ArgumentParser(prog="python -m reports index").parse_args(arguments)
    page = RUNS.parent / "index.html"
    _write(page, index(history.published(RUNS)))
    print(f"the page of all runs: {page.resolve()}")
    return 0


def diff(arguments: list[str]) -> int:
    """What changed between two runs."""
    parser = argparse.ArgumentParser(prog="python -m reports diff", description="What changed from run A to run B.")
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="a run's folder")
    options = parser.parse_args(arguments)
    print("\n".join(history.differences(load(options.A), load(options.B))))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"publish": publish, "index": make_index, "diff": diff}


def main(arguments: list[str] | None = None) -> int:
    """What the command gives, or 2 where a run's files are not whole."""
    given = sys.argv[1:] if arguments is None else arguments
    command, rest = (COMMANDS[given[0]], given[1:]) if given and given[0] in COMMANDS else (make, given)
    try:
        return command(rest)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        print(f"error: a run's file lacks what the report needs: {type(error).__name__} {error}", file=sys.stderr)
    return 2


def _folder(parser: argparse.ArgumentParser, arguments: list[str]) -> Path:
    parser.add_argument("folder", nargs="?", type=Path, default=LATEST, help="of the run's JSON files (%(default)s)")
    folder: Path = parser.parse_args(arguments).folder
    return folder


def _write(path: Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    sys.exit(main())
