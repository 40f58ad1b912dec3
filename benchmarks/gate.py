"""
Is head slower than base? `python -m benchmarks.gate` says so with known error rates, or says that it cannot tell.

Head is what is here; base is the commit that it branched from, or `--base REV`, checked out beside it. Or the two are
told apart by engine, subject or interpreter. How they are compared says `benchmarks/comparison.py`, how it is decided
`benchmarks/decision.py`.

Exit codes: 0 passed, 1 failed, 3 inconclusive, 2 broken: what was to be compared could not be.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path

from benchmarks.comparison import OPERATIONS, ComparisonError, Side, judge
from benchmarks.engine_times import positive
from benchmarks.gate_report import FORMATS, Outcome, terminal
from benchmarks.worker import Arm, WorkerError
from benchmarks.workload import BATCHES
from lenet.files import set_aside, writable, write_atomically
from lenet.oracle import PRECISIONS

NAMES = tuple(f"{operation}-{batch}" for operation in OPERATIONS for batch in BATCHES)
DEFAULT = ("forward-1", "forward-256", "training-step-64")
"""Latency, throughput, and training."""

DELTA = 0.012
"""
Where 3 %, the least slowdown that is to be found, takes as many pairs to be shown as no slowdown takes to pass.

With z(p) what a normal number exceeds with probability p, for `decision.Rates` of three benchmarks at one of three
looks, two rounds in the time of one, and each round successful in 90 % of cases:
delta / (z(0.025 / 3) + z(0.1)) = (3 % - delta) / (sqrt(2) * (z(0.018 / 3) + z(0.1))).
"""

BUDGET = 60.0
"""Seconds for a benchmark."""

EXIT = {"passed": 0, "failed": 1, "broken": 2, "inconclusive": 3}


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
            subject=_anywhere(getattr(options, f"{side}_subject")),
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


def main(arguments: list[str] | None = None) -> int:
    """0 where head passed, 1 where it is slower, 3 where that cannot be told, 2 where it broke, 130 after Ctrl-C."""
    options = _options(arguments)
    for kind in FORMATS:
        if path := getattr(options, kind):
            set_aside(path)
    given = sys.argv[1:] if arguments is None else arguments
    outcome = Outcome(shlex.join(["python", "-m", "benchmarks.gate", *given]), options.delta)
    try:
        with sides(options) as (base, head):
            outcome.compared = [f"base: {base}", f"head: {head}"]
            print("\n".join(outcome.compared), flush=True)
            budget = options.budget or BUDGET * len(options.select)
            outcome.result = judge(base, head, options.select, options.delta, budget, options.seed)
    except (ComparisonError, WorkerError) as error:
        outcome.broken = str(error)
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(terminal(outcome))
    for kind, text in FORMATS.items():
        if path := getattr(options, kind):
            with write_atomically(path) as file:
                file.write(text(outcome).encode())
    return EXIT[outcome.verdict]


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
            type=_interpreter,
            default=sys.executable,
            metavar="FILE",
            help="has this project installed; default: this",
        )
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="default %(default)s")
    parser.add_argument("--threads", type=positive, default=1, help="default %(default)s")
    parser.add_argument(
        "--select", type=_selected, default=DEFAULT, metavar="NAMES", help=f"patterns; default {','.join(DEFAULT)}"
    )
    parser.add_argument(
        "--delta", type=_share, default=DELTA, help=f"the slowdown that matters; default {DELTA:.1%}".replace("%", "%%")
    )
    parser.add_argument("--budget", type=_seconds, metavar="TIME", help="such as 120s or 5m; default 60s a benchmark")
    parser.add_argument("--seed", type=int, default=0, help="of the random order; default %(default)s")
    for kind in FORMATS:
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write the result as {kind} there")
    options = parser.parse_args(arguments)
    for kind in FORMATS:
        path = getattr(options, kind)
        if path and not writable(path.parent):
            parser.error(f"--{kind} {path}: not a folder that can be written to")
    return options


def _anywhere(spec: str) -> str:
    """The subject's spec; a file is that of the working tree, wherever a worker runs."""
    place, separator, name = spec.partition(":")
    return f"{Path(place).absolute()}{separator}{name}" if place.endswith(".py") else spec


def _interpreter(text: str) -> str:
    """The program of this name, by its whole path."""
    found = shutil.which(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no program that can be run")
    return str(Path(found).absolute())


def _selected(text: str) -> tuple[str, ...]:
    """The benchmarks that patterns, separated by commas, match."""
    chosen: list[str] = []
    for pattern in text.split(","):
        matched = [name for name in NAMES if fnmatchcase(name, pattern)]
        if not matched:
            raise argparse.ArgumentTypeError(f"no benchmark is named {pattern}; there are {', '.join(NAMES)}")
        chosen += matched
    return tuple(dict.fromkeys(chosen))


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
