"""
The performance gate: `lenet-properties gate` decides whether head is slower than base, with designed error rates.

Head is the working tree. Base is the commit that it branched from, or `--base REV`, in a temporary checkout. In a
repository other than this project's, `--subject path/to/file.py:Net` is timed as it is in head and as it was in base.
Alternatively, head and base differ in engine, subject or interpreter. `benchmarks/comparison.py` compares them and
`benchmarks/decision.py` has the decision rule.

A benchmark passes if its slowdown is shown to be less than delta, and fails if it is shown to be more than delta.

Exit codes: 0 passed, 1 failed, 3 inconclusive (0 with `--inconclusive pass`), 2 error (head and base could not be
compared, or the result could not be written), 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path

from benchmarks import accepted
from benchmarks.arguments import duration, file_problem, positive_int, whole_number
from benchmarks.command import ERROR, STOPPED, one_line, unforeseen
from benchmarks.comparison import BENCHMARKS, ComparisonError, Settings, Side, compare
from benchmarks.gate_report import FORMATS, PURPOSES, Outcome, terminal
from benchmarks.guard import folder as run_folder
from benchmarks.worker_client import Arm, WorkerError, contains_project
from lenet.files import set_aside, write_atomically
from lenet.oracle import PRECISIONS
from lenet.system import timing_limitations

DEFAULT = ("forward-1", "forward-256", "training-step-64")
"""A benchmark of latency, one of throughput and one of training."""

DELTA = 0.012
"""
The default delta, the tolerated slowdown: with it, failing at 3 % takes as many pairs as passing at 0 %.

A slowdown of 3 % is the smallest of interest.

Let z(p) be the value that a standard normal variable exceeds with probability p. For `decision.Rates` of three
benchmarks at one of three looks, two rounds in the time of one, and each round successful with a probability of 90 %:
delta / (z(0.025 / 3) + z(0.1)) = (3 % - delta) / (sqrt(2) * (z(0.018 / 3) + z(0.1))).
"""

BUDGET = 120.0
"""
The default time limit: this many seconds times the number of benchmarks. A gate ends once all of them are decided.

Aimed at: at most 2 % of the gates on equal sides are inconclusive. Of 1,000 gates of three benchmarks, simulated with
pairs drawn from those of the published trial (equal sides, 2 s to start a pair), 229 were inconclusive with a limit of
60 s, 25 with 90 s and 1 with 120 s. Half of them took less than 55, 56 and 57 s per benchmark.
"""

NAME_A_COMMIT = "name a commit with --base REV (a shallow clone needs fetch-depth: 0)"

EXIT_CODES = {"passed": 0, "failed": 1, "error": 2, "inconclusive": 3}

INCONCLUSIVE = {"fail": "exits with 3 and is a failed test", "pass": "exits with 0 and is a skipped test"}
"""What an inconclusive gate may do."""


def default_base() -> str:
    """
    Return the commit that this branch branched from: the last one that it has in common with the main branch.

    On the main branch itself it is HEAD if there are uncommitted changes, else HEAD~1. The main branch is the one that
    GITHUB_BASE_REF or origin/HEAD names, else main or master. Raises ComparisonError if there is none.
    """
    top_level()
    target = [f"origin/{name}"] if (name := os.environ.get("GITHUB_BASE_REF")) else []
    for main in (*target, "origin/HEAD", "origin/main", "main", "origin/master", "master"):
        if commit := _git("merge-base", "HEAD", main, check=False):
            break
    else:
        raise ComparisonError(f"no commit of a main branch was found; {NAME_A_COMMIT}")
    if commit != _git("rev-parse", "HEAD"):
        return commit
    if has_changes():
        return "HEAD"
    if not _git("rev-parse", "--verify", "--quiet", "HEAD~1", check=False):
        raise ComparisonError(f"HEAD has no earlier commit; {NAME_A_COMMIT}")
    return "HEAD~1"


def has_changes() -> bool:
    """Return whether files of the working tree differ from those of its commit; raises ComparisonError outside git."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def resolve(revision: str) -> str:
    """Return the hash of the commit that a revision names, which is no option and no path; raises ComparisonError."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", revision, check=False)
    if not found or not re.fullmatch("[0-9a-f]{40,64}", found):
        raise ComparisonError(f"--base {revision}: not a commit of this repository; name a commit, such as HEAD~1")
    commit = _git("rev-parse", "--verify", "--quiet", f"{found}^{{commit}}", check=False)
    if not commit:
        kind = _git("cat-file", "-t", found)
        raise ComparisonError(f"--base {revision}: is a {kind}, not a commit; name a commit, such as HEAD~1")
    return commit


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Check out a commit to a temporary folder and yield it; raises ComparisonError if there is no such commit."""
    archive = _run_git("-C", str(top_level()), "archive", "--format=tar", resolve(revision))
    if archive.returncode:
        raise ComparisonError(f"--base {revision}: {_last_line(archive.stderr)}")
    with tempfile.TemporaryDirectory(prefix="base-", dir=run_folder(), ignore_cleanup_errors=True) as folder:
        with suppress(tarfile.ReadError), tarfile.open(fileobj=BytesIO(archive.stdout)) as files:  # of an empty commit
            files.extractall(folder, filter="data")
        yield Path(folder)


def _git(*arguments: str, check: bool = True) -> str:
    run = _run_git(*arguments)
    if check and run.returncode:
        raise ComparisonError(f"git {' '.join(arguments)}: {_last_line(run.stderr)}")
    return run.stdout.decode(errors="replace").strip() if not run.returncode else ""


def _run_git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise ComparisonError(
            f"git cannot be executed ({error}); install it, or compare engines or subjects"
        ) from error


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["no error message"])[-1]


def describe(revision: str) -> str:
    """Return the abbreviated hash and the subject line of a commit."""
    return one_line(_git("log", "-1", "--format=%h %s", resolve(revision)))


@contextmanager
def sides(options: argparse.Namespace) -> Iterator[tuple[Side, Side]]:
    """Yield base and head; if no option makes them differ, base is the commit that head branched from."""
    head, base = (
        Arm(
            subject=_absolute(options.subject or getattr(options, f"{side}_subject")),
            engine=getattr(options, f"{side}_engine"),
            device=options.device,
            dtype=options.dtype,
            threads=options.threads,
        )
        for side in ("head", "base")
    )
    # only installed packages are imported there
    with tempfile.TemporaryDirectory(prefix="installed-", dir=run_folder(), ignore_cleanup_errors=True) as empty:
        own, other = (
            Path(empty) if python != sys.executable else None for python in (options.head_python, options.base_python)
        )
        head_side = Side("head", head, options.head_python, own)
        if options.base is None and (base != head or options.base_python != options.head_python):
            yield Side("base", base, options.base_python, other), head_side
            return
        revision = default_base() if options.base is None else options.base
        with checkout(revision) as folder:
            _check_contents(folder, options.subject, revision)
            if options.subject:
                base = replace(base, subject=_in_checkout(options.subject, folder))
            yield Side("base", base, options.base_python, folder, describe(revision)), head_side


def _check_contents(folder: Path, subject: str | None, revision: str) -> None:
    """Raise ComparisonError unless the checkout of a revision contains what is to be timed."""
    if contains_project(folder) or (subject and not contains_project(top_level())):
        return
    if contains_project(top_level()):
        raise ComparisonError(
            f"--base {revision}: {describe(revision)}: no benchmarks/worker.py in this commit: "
            "this commit cannot be compared; choose a newer --base"
        )
    raise ComparisonError(
        f"{top_level()}: this repository is not lenet-properties; name what to time: --subject path/to/file.py:Net"
    )


def _in_checkout(spec: str, folder: Path) -> str:
    """Return the spec of a subject in the checkout of a revision."""
    place, separator, name = spec.partition(":")
    if not place.endswith(".py"):
        return spec  # a module, which is imported from the checkout
    path = Path(place).absolute()
    if not path.is_relative_to(top_level()):
        raise ComparisonError(f"--subject {spec}: is not in the repository {top_level()}")
    inside = folder / path.relative_to(top_level())
    if not inside.is_file():
        raise ComparisonError(f"--subject {spec}: base has no such file; use --base-subject and --head-subject")
    return f"{inside}{separator}{name}"


def top_level() -> Path:
    """Return the folder of the repository that the current folder is in; raises ComparisonError if it is in none."""
    if not (found := _git("rev-parse", "--show-toplevel", check=False)):
        raise ComparisonError(f"{Path.cwd()}: not a git repository")
    return Path(found)


def main(arguments: list[str]) -> int:
    """
    Return 0 if head passed, 1 if it is slower, 3 if that is inconclusive, 2 after an error, 130 after Ctrl-C.

    With `--inconclusive pass`, 0 is returned for 3.

    A verdict that was reached is printed, and written to every file that can be written. If one cannot, 2 is returned.
    """
    options = _options(arguments)
    for kind in FORMATS:
        if path := getattr(options, kind):
            set_aside(path)
    command = shlex.join(["lenet-properties", "gate", *arguments])
    outcome = Outcome(command, options.delta, options.inconclusive == "pass", notes=timing_limitations())
    try:
        with sides(options) as (base, head):
            outcome.compared = [f"base: {base}", f"head: {head}"]
            _show("\n".join(outcome.compared))
            outcome.result = compare(base, head, options.select, _settings(options))
    except (ComparisonError, WorkerError) as error:
        outcome.error = one_line(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED
    except Exception as error:
        outcome.error = unforeseen(error)
    problems = [outcome.error] if outcome.error else []
    try:
        if outcome.result:
            _show(terminal(outcome))
    except OSError as error:
        problems.append(f"the verdict cannot be printed: {error.strerror}")
    problems += _write(outcome, {kind: path for kind in FORMATS if (path := getattr(options, kind))})
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return ERROR if problems else 0 if outcome.tolerated else EXIT_CODES[outcome.verdict]


def _settings(options: argparse.Namespace) -> Settings:
    budget = options.budget or BUDGET * len(options.select) * (1 if options.tail is None else 2)
    return Settings(options.delta, budget, options.seed, options.tail, options.memory, _accepted())


def _accepted() -> Mapping[str, Mapping[str, accepted.Acceptance]]:
    """Return what the repository of the current folder accepts; nothing outside a repository."""
    try:
        repository = top_level()
    except ComparisonError:  # engines can be compared anywhere
        return {}
    try:
        return accepted.read(repository, BENCHMARKS)
    except ValueError as error:
        raise ComparisonError(str(error)) from error


def _show(text: str) -> None:
    """Print a text now, with what the terminal's encoding lacks escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # stdout may be closed or replaced
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def _write(outcome: Outcome, paths: Mapping[str, Path]) -> list[str]:
    """Write the outcome in each of these formats; return the problems, each in one line."""
    problems = []
    for kind, path in paths.items():
        try:
            with write_atomically(path) as file:
                file.write(FORMATS[kind](outcome).encode(errors="backslashreplace"))
        except OSError as error:
            problems.append(f"--{kind} {path}: cannot be written: {error.strerror}")
    return problems


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lenet-properties gate",
        description="Is head slower than base? "
        "Exit codes: 0 no, 1 yes (or an exact counter rose), 3 inconclusive, 2 error.",
        epilog="example: lenet-properties gate --subject kernels/mine.py:Net --base main --select forward-1",
    )
    parser.add_argument(
        "--base",
        metavar="REV",
        help="commit to compare with; default: where this branch began; on main HEAD if files changed, else HEAD~1",
    )
    parser.add_argument("--subject", metavar="SPEC", help="time this subject, each side its own version of it")
    for side in ("base", "head"):
        parser.add_argument(f"--{side}-subject", default="lenet", metavar="SPEC", help="default %(default)s")
        parser.add_argument(f"--{side}-engine", default="eager", metavar="NAME", help="default %(default)s")
        parser.add_argument(
            f"--{side}-python",
            type=interpreter,
            default=sys.executable,
            metavar="FILE",
            help="an interpreter with this project installed; default: this one",
        )
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--dtype", choices=PRECISIONS, default="float32", help="default %(default)s")
    parser.add_argument("--threads", type=positive_int, default=1, help="default %(default)s")
    parser.add_argument(
        "--select",
        type=_selected,
        default=DEFAULT,
        metavar="NAMES",
        help=f"comma-separated names or patterns; default {','.join(DEFAULT)}",
    )
    parser.add_argument(
        "--delta",
        type=_share,
        default=DELTA,
        metavar="SHARE",
        help="the tolerated slowdown: a benchmark passes if it is shown to be slower by less than this, and fails if "
        f"it is shown to be slower by more; default {DELTA:.1%}".replace("%", "%%"),
    )
    parser.add_argument(
        "--tail",
        type=_share,
        metavar="SHARE",
        help="test the 99th percentile of single calls, too: the tolerated slowdown, such as 10%%; default: only shown",
    )
    parser.add_argument(
        "--memory",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help=f"how much peak memory may rise; default 0. Other counters may not, except as {accepted.FILE} accepts",
    )
    parser.add_argument(
        "--inconclusive",
        choices=INCONCLUSIVE,
        default="fail",
        help="; ".join(f"{name}: an inconclusive gate {effect}" for name, effect in INCONCLUSIVE.items())
        + "; default %(default)s",
    )
    parser.add_argument(
        "--budget",
        type=duration,
        metavar="TIME",
        help="total time limit, such as 120s or 5m; one pair of processes is always timed; "
        f"default {BUDGET:g}s times the number of benchmarks, and of those tested with --tail",
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="seed of the random order; default %(default)s")
    for kind, purpose in PURPOSES.items():
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write the result to FILE {purpose}")
    options = parser.parse_args(arguments)
    paths = {kind: path for kind in FORMATS if (path := getattr(options, kind)) is not None}
    for kind, path in paths.items():
        if problem := file_problem(path):
            parser.error(f"--{kind} {path}: {problem}")
        if path.absolute() in (other.absolute() for name, other in paths.items() if name != kind):
            parser.error(f"--{kind} {path}: is the file of another option, too")
    return options


def _absolute(spec: str) -> str:
    """Return the subject's spec with an absolute path, so that a file is found wherever the worker runs."""
    place, separator, name = spec.partition(":")
    return f"{Path(place).absolute()}{separator}{name}" if place.endswith(".py") else spec


def interpreter(text: str) -> str:
    """Return the absolute path of a program."""
    found = shutil.which(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is not an executable program")
    return str(Path(found).absolute())


def _selected(text: str) -> tuple[str, ...]:
    """Return the names of the benchmarks that comma-separated patterns match."""
    chosen: list[str] = []
    for pattern in text.split(","):
        matched = [name for name in BENCHMARKS if fnmatchcase(name, pattern)]
        if not matched:
            raise argparse.ArgumentTypeError(f"no benchmark is named {pattern}; there are {', '.join(BENCHMARKS)}")
        chosen += matched
    return tuple(dict.fromkeys(chosen))


def _share(text: str) -> float:
    """Parse a share such as `5%` or `0.05`."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a share between 0 and 100%: write a percentage such as 2% or a fraction such as 0.02"
        )
    return share
