"""
How times have changed: `python -m benchmarks.trends FILE...` reads what `pytest benchmarks --benchmark-json` wrote.

A series is a benchmark on one stack: machine, versions and all. Runs of different stacks are never set against each
other, and what a series shows is no verdict: the machine of a shared runner changes more from one day to the next than
most commits change anything. For a verdict there is `python -m benchmarks.gate`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lenet.fingerprint import FORMAT, headline
from lenet.table import table

VERSIONS = ("hypothesis", "pytest", "scikit-learn")
"""What a stack's times do not depend on."""


class TrendError(ValueError):
    """A file that is no run of the benchmarks; the message is one line that names it."""


def read(path: Path) -> dict[str, Any]:
    """A run as benchmarks.json has it; raises TrendError where it is none."""
    try:
        run = json.loads(path.read_text())
        timed = {entry["name"]: float(entry["stats"]["median"]) for entry in run["benchmarks"]}
        stack, date, written = dict(run["stack"]), str(run["date"]), run["format"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TrendError(f"{path}: not a run of these benchmarks ({type(error).__name__}: {error})") from error
    if written != FORMAT:
        raise TrendError(f"{path}: format {written!r}, this version reads format {FORMAT}")
    return {"date": date, "stack": {k: v for k, v in stack.items() if k not in VERSIONS}, "seconds": timed}


def series(runs: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each stack, by its fingerprint in words, the oldest first."""
    stacks: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: str(run["date"])):
        stacks.setdefault(json.dumps(run["stack"], sort_keys=True), []).append(run)
    return stacks


def lines(runs: Iterable[dict[str, Any]]) -> list[str]:
    """A table for each stack: the first median of each benchmark, and every later one relative to it."""
    shown = []
    for own in series(runs).values():
        names = list(dict.fromkeys(name for run in own for name in run["seconds"]))
        rows = [["median of a call", *(run["date"] for run in own)]]
        rows += [[name, *_row([run["seconds"].get(name) for run in own])] for name in names]
        shown += [headline(own[0]["stack"]), table(rows), ""]
    return shown


def _row(seconds: list[float | None]) -> list[str]:
    """In milliseconds where it was first measured, and from then on as a factor."""
    first = next(one for one in seconds if one is not None)
    begun = seconds.index(first)
    later = [f"{one / first:.3f}" if one is not None else "-" for one in seconds[begun + 1 :]]
    return ["-"] * begun + [f"{1e3 * first:.3f} ms", *later]


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 where a file cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trends", description="Medians over time, by stack.")
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="written by `pytest benchmarks --record DIR`"
    )
    try:
        runs = [read(path) for path in parser.parse_args(arguments).files]
    except TrendError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
