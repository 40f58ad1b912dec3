"""
How medians changed over time, from run to run: `lenet-properties trends FILE...`.

The files are those that `lenet-properties time --record DIR` writes.

A series is a benchmark on one stack: the same machine and versions. Runs of different stacks are never compared. A
series gives no verdict, since a shared runner varies more from one day to the next than most commits change anything;
`lenet-properties gate` gives one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.command import ERROR, one_line
from lenet.fingerprint import FORMAT, headline
from lenet.table import table

OLDEST_FORMAT = 2
"""The fields read here are the same in all formats since this one."""

COMMAND = "lenet-properties time --record DIR"
"""The command that writes the files read here."""

IRRELEVANT = ("hypothesis", "pytest", "scikit-learn")
"""The parts of a stack that do not affect times."""


class TrendError(ValueError):
    """A file is not a run of the benchmarks. The message is one line that names the file."""


def read(path: Path) -> dict[str, Any]:
    """Return the `date`, the `stack` and the median `seconds` by benchmark of a benchmarks.json; raises TrendError."""
    if not path.exists():
        raise TrendError(f"{path}: no such file")
    try:
        if not path.is_file():
            raise ValueError("not a regular file")
        content = json.loads(path.read_text())
        seconds = {one_line(str(entry["name"])): _median(entry["stats"]["median"]) for entry in content["benchmarks"]}
        stack = {name: one_line(str(value)) for name, value in content["stack"].items() if name not in IRRELEVANT}
        headline(stack)
        date, written = one_line(str(content["date"])), content["format"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TrendError(f"{path}: not a benchmarks.json, as `{COMMAND}` writes it") from error
    if type(written) is not int or not OLDEST_FORMAT <= written <= FORMAT:
        raise TrendError(f"{path}: format {written!r:.20}; this version reads formats {OLDEST_FORMAT} to {FORMAT}")
    return {"date": date, "stack": stack, "seconds": seconds}


def _median(value: object) -> float:
    """Return a median of times; raises ValueError unless it is finite and positive."""
    if type(value) not in (int, float) or not 0 < value < sys.float_info.max:  # type: ignore[operator]
        raise ValueError(f"{value!r:.100} is not a time")
    return float(value)  # type: ignore[arg-type]


def by_stack(runs: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the runs of each stack, oldest first."""
    stacks: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: str(run["date"])):
        stacks.setdefault(json.dumps(run["stack"], sort_keys=True), []).append(run)
    return list(stacks.values())


def lines(runs: Iterable[dict[str, Any]]) -> list[str]:
    """Return a table for each stack: the first median of each benchmark, and all later medians relative to it."""
    shown = []
    for series in by_stack(runs):
        names = list(dict.fromkeys(name for run in series for name in run["seconds"]))
        rows = [["median, then relative to the first run", *(run["date"] for run in series)]]
        rows += [[name, *_row([run["seconds"].get(name) for run in series])] for name in names]
        shown += [headline(series[0]["stack"]), table(rows), ""]
    return shown


def _row(seconds: list[float | None]) -> list[str]:
    """Return the first median in milliseconds, the later ones as factors, and `-` if there is none."""
    first = next(median for median in seconds if median is not None)
    start = seconds.index(first)
    later = [f"{median / first:.3f}" if median is not None else "-" for median in seconds[start + 1 :]]
    return ["-"] * start + [f"{1e3 * first:.3f} ms", *later]


def main(arguments: list[str]) -> int:
    """Print the tables; return 0, or 2 if a file cannot be read."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties trends",
        description="Medians over time, by stack.",
        epilog="example: lenet-properties trends monday/benchmarks.json tuesday/benchmarks.json",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=f"written by `{COMMAND}`")
    try:
        runs = [read(path) for path in parser.parse_args(arguments).files]
    except TrendError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return ERROR
    print("\n".join(lines(runs)))
    return 0
