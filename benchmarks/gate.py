"""
Is head slower than base? `python -m benchmarks.gate` says so with known error rates, or says that it cannot tell.

Head is what is here; base is the commit that it branched from, or `--base REV`, checked out beside it. Or the two are
told apart by engine, subject or interpreter. How they are compared says `benchmarks/comparison.py`, how it is decided
`benchmarks/decision.py`.

Exit codes: 0 passed, 1 failed, 3 inconclusive, 2 broken: what was to be compared could not be.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

from benchmarks.comparison import OPERATIONS, Benchmark, ComparisonError, Result, Side, judge
from benchmarks.worker import Arm, WorkerError
from lenet.files import set_aside, writable, write_atomically
from lenet.fingerprint import headline, stamp
from lenet.oracle import PRECISIONS
from lenet.table import table

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
NAMES = tuple(f"{operation}-{batch}" for operation in OPERATIONS for batch in BATCHES)
DEFAULT = ("forward-1", "forward-256", "training-step-64")
"""Latency, throughput, and training."""

DELTA = 0.015
"""Half of 3 %, the least slowdown that is to be found: as far from it as from none."""

BUDGET = 60.0
"""Seconds for a benchmark."""

EXIT = {"passed": 0, "failed": 1, "broken": 2, "inconclusive": 3}
OUTPUTS = ("json", "junit", "markdown")


def branched_from() -> str:
    """
    The commit that this branch began at: the last that it has in common with the main one.

    On the main branch itself, what is not committed yet is compared with HEAD, and HEAD with what was before it. The
    main branch is what GITHUB_BASE_REF or origin/HEAD names, else main or master. Raises ComparisonError where there
    is none.
    """
    told = [f"origin/{name}"] if (name := os.environ.get("GITHUB_BASE_REF")) else []
    for main in (*told, "origin/HEAD", "origin/main", "main", "origin/master", "master"):
        if commit := _git("merge-base", "HEAD", main, check=False):
            break
    else:
        raise ComparisonError("no main branch is known here to have branched from; name a commit with --base REV")
    if commit != _git("rev-parse", "HEAD"):
        return commit
    return "HEAD" if _git("status", "--porcelain", "--untracked-files=no") else "HEAD~1"


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with the files of a commit; raises ComparisonError where there is no such commit."""
    archive = subprocess.run(["git", "archive", "--format=tar", revision], capture_output=True, check=False)
    if archive.returncode:
        raise ComparisonError(f"--base {revision}: {_last_line(archive.stderr.decode(errors='replace'))}")
    with tempfile.TemporaryDirectory(prefix="base-", ignore_cleanup_errors=True) as folder:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def _git(*arguments: str, check: bool = True) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if check and run.returncode:
        raise ComparisonError(f"git {' '.join(arguments)}: {_last_line(run.stderr)}")
    return run.stdout.strip() if not run.returncode else ""


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


def named(revision: str) -> str:
    """The commit as people read it: `abc1234 Its first line`."""
    return _git("log", "-1", "--format=%h %s", revision)


@contextmanager
def sides(options: argparse.Namespace) -> Iterator[tuple[Side, Side]]:
    """Base and head, as the options tell them apart; where they do not, base is the commit that head branched from."""
    arms = {
        side: Arm(
            subject=getattr(options, f"{side}_subject"),
            engine=getattr(options, f"{side}_engine"),
            device=options.device,
            dtype=options.dtype,
            threads=options.threads,
        )
        for side in ("base", "head")
    }
    apart = arms["base"] != arms["head"] or options.base_python != options.head_python
    with tempfile.TemporaryDirectory(prefix="installed-") as nothing:  # where only what is installed is found
        folders = {
            side: Path(nothing) if getattr(options, f"{side}_python") != sys.executable else None for side in arms
        }
        head = Side("head", arms["head"], options.head_python, folders["head"])
        if apart and not options.base:
            yield Side("base", arms["base"], options.base_python, folders["base"]), head
            return
        revision = options.base or branched_from()
        with checkout(revision) as folder:
            yield Side("base", arms["base"], options.base_python, folder, named(revision)), head


def words(benchmark: Benchmark, delta: float) -> str:
    """Why its verdict is what it is, in a line."""
    found, suspicion = benchmark.found, benchmark.suspicion
    if benchmark.risen:
        return "; ".join(f"{name} rose from {a:,} to {b:,}" for name, (a, b) in benchmark.risen.items())
    if found is None:
        return "no pair of processes was timed" if suspicion is None else "slower once, then not measured anew in time"
    if benchmark.verdict == "passed":
        once = "slower at first, but not in other processes; " if suspicion else ""
        faster = "; faster by more than delta: is that explained?" if found.upper < -delta else ""
        return f"{once}at most {found.upper:+.2%}{faster}"
    if benchmark.verdict == "failed":
        assert suspicion
        return f"at least {suspicion.lower:+.2%}, and in other processes at least {found.lower:+.2%}"
    once = "slower once, not yet twice; " if suspicion else ""
    if found.lower == -1:
        return f"{once}{found.pairs} pairs are too few to tell"
    return f"{once}a slowdown of {delta + found.visible:.2%} would have been seen"


def rows(result: Result) -> list[list[str]]:
    """A table of the benchmarks, its head first."""
    shown = [["benchmark", "verdict", "head / base", "bounds", "pairs", "base", "head", "why"]]
    for benchmark in result.benchmarks:
        found, pairs = benchmark.found, [pair for pair in benchmark.pairs if pair.round == benchmark.round]
        times = [f"{1e3 * middle(pair.base for pair in pairs):.3f} ms" if pairs else "-"]
        times += [f"{1e3 * middle(pair.head for pair in pairs):.3f} ms" if pairs else "-"]
        ratio = [_factor(found.estimate), f"{_factor(found.lower)} to {_factor(found.upper)}"] if found else ["-", "-"]
        why = words(benchmark, result.delta)
        shown.append([benchmark.name, benchmark.verdict, *ratio, f"{len(benchmark.pairs)}", *times, why])
    return shown


def _factor(share: float) -> str:
    return f"{1 + share:.4f}"


def middle(numbers: Any) -> float:
    """The median."""
    ordered = sorted(numbers)
    return float(ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2


def sentence(result: Result) -> str:
    """The verdict in words."""
    by_verdict = {
        verdict: [b.name for b in result.benchmarks if b.verdict == verdict] for verdict in ("failed", "inconclusive")
    }
    return {
        "passed": f"no benchmark is slower by {result.delta:.1%} or more",
        "failed": f"slower, or with more to do: {', '.join(by_verdict['failed'])}",
        "inconclusive": f"too few pairs of processes to tell: {', '.join(by_verdict['inconclusive'])}",
    }[result.verdict]


def as_json(result: Result) -> dict[str, Any]:
    """What the report is made from."""
    return {
        "verdict": result.verdict,
        "delta": result.delta,
        "seconds": result.seconds,
        "stacks": result.stacks,
        "benchmarks": [
            {
                "name": benchmark.name,
                "verdict": benchmark.verdict,
                "why": words(benchmark, result.delta),
                "found": _slowdown(benchmark.found),
                "suspicion": _slowdown(benchmark.suspicion),
                "counters": benchmark.counters,
                "risen": benchmark.risen,
                "rates": asdict(benchmark.rates),
                "pairs": [asdict(pair) for pair in benchmark.pairs],
            }
            for benchmark in result.benchmarks
        ],
    }


def _slowdown(found: Any) -> dict[str, float | None] | None:
    """Bounds that are infinite, as JSON has no number for them, are null."""
    return found and {name: None if abs(value) == float("inf") else value for name, value in asdict(found).items()}


def junit(verdict: str, reason: str, result: Result | None) -> str:
    """A test for each benchmark: what is slower failed, what cannot be told was skipped, what broke is an error."""
    tests = Xml.Element("testsuite", name="gate")
    for benchmark in result.benchmarks if result else []:
        test = Xml.SubElement(tests, "testcase", classname="benchmarks.gate", name=benchmark.name)
        kind = {"failed": "failure", "inconclusive": "skipped"}.get(benchmark.verdict)
        assert result
        if kind:
            Xml.SubElement(test, kind, message=words(benchmark, result.delta))
    if verdict == "broken":
        test = Xml.SubElement(tests, "testcase", classname="benchmarks.gate", name="gate")
        Xml.SubElement(test, "error", message=reason)
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        tests.set(attribute, str(len(tests.findall(f"testcase/{kind}"))))
    tests.set("tests", str(len(tests)))
    Xml.indent(tests)
    return Xml.tostring(tests, encoding="unicode", xml_declaration=True) + "\n"


def markdown(verdict: str, reason: str, result: Result | None, compared: list[str]) -> str:
    """A summary for a pull request."""
    lines = [f"## Gate: {verdict}", "", _cell(reason), "", *(f"- {_cell(line)}" for line in compared)]
    if result:
        head, *body = rows(result)
        lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in body]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Any text on one line, with no markup of its own."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#" else c for c in " ".join(text.split()))


def main(arguments: list[str] | None = None) -> int:
    """0 where head passed, 1 where it is slower, 3 where that cannot be told, 2 where it broke, 130 after Ctrl-C."""
    options = _options(arguments)
    for kind in OUTPUTS:
        if path := getattr(options, kind):
            set_aside(path)
    result, compared = None, []
    try:
        with sides(options) as (base, head):
            compared = [f"base: {base}", f"head: {head}"]
            print("\n".join(compared), flush=True)
            budget = options.budget or BUDGET * len(options.select)
            result = judge(base, head, options.select, options.delta, budget, options.seed)
        verdict, reason = result.verdict, sentence(result)
        for line in dict.fromkeys(headline(stack) for stack in result.stacks.values()):
            print(f"stack: {line}")
        print(table(rows(result)))
    except (ComparisonError, WorkerError) as error:
        verdict, reason = "broken", str(error)
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(f"{verdict.upper()}: {reason}")
    command = shlex.join(["python", "-m", "benchmarks.gate", *(sys.argv[1:] if arguments is None else arguments)])
    texts: dict[str, Callable[[], str]] = {
        "json": lambda: json.dumps(
            stamp(command)
            | {"compared": compared, "reason": reason, "seed": options.seed}
            | (as_json(result) if result else {"verdict": verdict}),
            indent=1,
        ),
        "junit": lambda: junit(verdict, reason, result),
        "markdown": lambda: markdown(verdict, reason, result, compared),
    }
    for kind, text in texts.items():
        if path := getattr(options, kind):
            with write_atomically(path) as file:
                file.write(text().encode())
    return EXIT[verdict]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gate",
        description="Is head slower than base? Exit codes: 0 no, 1 yes, 3 cannot tell, 2 could not be compared.",
    )
    parser.add_argument("--base", metavar="REV", help="commit to compare with; default: the one this branched from")
    for side in ("base", "head"):
        parser.add_argument(f"--{side}-subject", default="lenet", metavar="SPEC", help="default %(default)s")
        parser.add_argument(f"--{side}-engine", default="eager", metavar="NAME", help="default %(default)s")
        parser.add_argument(
            f"--{side}-python",
            default=sys.executable,
            metavar="FILE",
            help="has this project installed; default: this",
        )
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="default %(default)s")
    parser.add_argument("--threads", type=_positive, default=1, help="default %(default)s")
    parser.add_argument(
        "--select", type=_selected, default=DEFAULT, metavar="NAMES", help=f"patterns; default {','.join(DEFAULT)}"
    )
    parser.add_argument(
        "--delta", type=_share, default=DELTA, help=f"the slowdown that matters; default {DELTA:.1%}".replace("%", "%%")
    )
    parser.add_argument("--budget", type=_seconds, metavar="TIME", help="such as 120s or 5m; default 60s a benchmark")
    parser.add_argument("--seed", type=int, default=0, help="of the random order; default %(default)s")
    for kind in OUTPUTS:
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write the result as {kind} there")
    options = parser.parse_args(arguments)
    for kind in OUTPUTS:
        path = getattr(options, kind)
        if path and not writable(path.parent):
            parser.error(f"--{kind} {path}: not a folder that can be written to")
    return options


def _selected(text: str) -> tuple[str, ...]:
    """The benchmarks that patterns, separated by commas, match."""
    chosen: list[str] = []
    for pattern in text.split(","):
        matched = [name for name in NAMES if fnmatchcase(name, pattern)]
        if not matched:
            raise argparse.ArgumentTypeError(f"no benchmark is named {pattern}; there are {', '.join(NAMES)}")
        chosen += matched
    return tuple(dict.fromkeys(chosen))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _share(text: str) -> float:
    """`5%` or `0.05`."""
    share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is no share between 0 and 100%")
    return share


def _seconds(text: str) -> float:
    """`120s`, `2m` or `120`."""
    seconds = float(text.rstrip("sm")) * (60 if text.endswith("m") else 1)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is no time")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
