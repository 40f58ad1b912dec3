"""`lenet-properties judge`: run pytest on the laws, in a configuration that no file or plugin of the user changes."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from lenet.files import RESULTS, make_folder
from lenet.oracle import CLAIMS
from properties import law_index
from properties.judged_code import EXAMPLE_TIMEOUT, LAWS
from properties.record import COMMAND

PLUGINS = ("hypothesispytest", "xdist", "timeout")
"""The pytest plugins that are loaded, by the names of their entry points; others of the environment are not."""

PASSED_ON = (
    *("engine", "claim", "device", "dtype", "case", "known", "write-known", "skip-laws", "repro"),
    *("timeout", "example-timeout"),
)
"""The options that the pytest plugin has under the same name."""

USAGE_ERROR, STOPPED = 2, 130
EXIT_CODES = {pytest.ExitCode.OK: 0, pytest.ExitCode.TESTS_FAILED: 1, pytest.ExitCode.INTERRUPTED: STOPPED}
"""The exit codes for those of pytest; all others mean that nothing was judged because of an error."""

SETTINGS = (
    "-p no:cacheprovider -p properties.plugin --tb=short -rN --no-header -W ignore::pytest.PytestAssertRewriteWarning"
)
"""No cache folder, the judge, short tracebacks, no list of tests after the verdict, and a header of our own."""

MAX_WORKERS = 8
"""
The default number of worker processes, at most: with 8, the laws take half a minute.

On 2 cores of an AMD EPYC, all laws of the reference take 239 s of computing (the run of 2026-11-28, profile `ci`).
"""

EXAMPLES = """\
examples:
  lenet-properties judge mine.py:Net --device cpu --dtype float32,float64
  lenet-properties judge --engine compiled,my_module:build
  lenet-properties judge mine.py --law 'logits*' -- --maxfail=1 -v

exit codes: 0 all laws hold, 1 a law is violated or nothing was judged, 2 an error, 130 stopped by Ctrl-C
"""


def main(arguments: list[str]) -> int:
    """Judge the stacks that the options name; see `run_pytest` for the result."""
    own, rest = partition(arguments)
    options = _parser().parse_args(own)
    try:
        laws = selected(options.law) if options.law else [str(LAWS)]
    except ValueError as error:
        print(f"error: --law {error}", file=sys.stderr)
        return USAGE_ERROR
    if twice := [spec for number, spec in enumerate(options.subjects) if spec in options.subjects[:number]]:
        print(f"error: {twice[0]} is named twice", file=sys.stderr)
        return USAGE_ERROR
    record = options.record or (None if options.law or options.case else RESULTS / "latest")
    words = [*laws, f"--hypothesis-profile={options.profile}", "-n", str(options.workers)]
    words += ["-m", "engine", "--dist", "loadgroup"] if options.engine else []
    words += [f"--record={record}"] if record else []
    words += [f"--subject={spec}" for spec in options.subjects]
    words += [f"--hypothesis-seed={options.seed}"] if options.seed is not None else []
    words += [
        f"--{name}={value}" for name in PASSED_ON if (value := getattr(options, name.replace("-", "_"))) is not None
    ]
    code = run_pytest([*words, *rest], ["judge", *arguments])
    if record and (record / ("engines.json" if options.engine else "laws.json")).exists():
        print(f"recorded in {record}; next: lenet-properties report {record}")
    elif not record and code in EXIT_CODES.values():
        print("not recorded, since only some laws were judged; --record DIR records them")
    return code


def partition(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after `--`."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:place]), list(arguments[place + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lenet-properties judge",
        usage="%(prog)s [SUBJECT ...] [OPTIONS] [-- PYTEST OPTIONS]",
        description="Run the laws. A SUBJECT is a module or file.py, with :Name if needed; the default is lenet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("subjects", nargs="*", help=argparse.SUPPRESS)
    add("--engine", metavar="NAMES", help="judge engines by the laws about running a network; yours: module:function")
    add("--claim", choices=CLAIMS, help="judge the engines at this precision instead of the one that each claims")
    add("--device", metavar="DEVICES", help="comma-separated, such as cpu,cuda; default: those available")
    add("--dtype", metavar="DTYPES", help="comma-separated; default: float32,float64,bfloat16,float16")
    add("--law", action="append", metavar="NAME", help="only these laws: a name or pattern; may be repeated")
    add("--case", metavar="CASE", help="draw this case only, as a failure prints it")
    profiles = "quick (3 random examples of each law), ci (20, the same in every run) or thorough (250, random)"
    add("--profile", default="ci", metavar="NAME", help=f"{profiles}; default: %(default)s")
    add("--seed", type=int, metavar="N", help="seed of random examples (profiles quick and thorough)")
    add("--timeout", type=_seconds, metavar="SECONDS", help="a law that takes longer fails; default: no limit")
    example_limit = f"an example that takes longer fails its law; 0: no limit; default: {EXAMPLE_TIMEOUT:g}"
    add("--example-timeout", type=_seconds, metavar="SECONDS", help=example_limit)
    known = "forgive the known deviations in this TOML file; the run fails once one no longer occurs"
    add("--known", type=Path, metavar="FILE", help=known)
    add("--write-known", type=Path, metavar="FILE", help="write a draft of such a file if laws fail")
    left_out = "leave out the laws in this file, one name or pattern a line; text after # is the reason"
    add("--skip-laws", type=Path, metavar="FILE", help=left_out)
    add("--repro", type=Path, metavar="DIR", help="write a stand-alone counterexample for each violated law")
    add(
        "--workers",
        type=_positive,
        default=min(os.cpu_count() or 1, MAX_WORKERS),
        metavar="N",
        help="processes that run laws; default here: %(default)s",
    )
    add(
        "--record",
        type=Path,
        metavar="DIR",
        help=f"write the results to DIR; default: {RESULTS / 'latest'}, if all laws run",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> str:
    """Return the text, a number of seconds, as the pytest plugins parse it."""
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return text


def selected(patterns: Sequence[str]) -> list[str]:
    """Return pytest's ids of the laws that these names match; one may be followed by its parameters in brackets."""
    chosen = []
    for pattern in patterns:
        name, bracket, parameters = pattern.partition("[")
        exact = bracket and law_index.matching(name)  # else the bracket belongs to a pattern
        for law in law_index.find(name if exact else pattern):
            chosen.append(f"{law_index.laws()[law].path}::{law}{bracket + parameters if exact else ''}")
    return list(dict.fromkeys(chosen))


def run_pytest(
    words: Sequence[str], command: Sequence[str], plugins: Sequence[str] = PLUGINS, own_plugins: Sequence[object] = ()
) -> int:
    """
    Run pytest with these plugins; return 0 if all passed, 1 if not, 2 after an error, 130 after Ctrl-C.

    Of the user's environment, neither configuration files, conftest.py files and plugins, nor PYTEST_ADDOPTS apply.
    Hypothesis's files are written to the folder of results. `command` are the words that the record names.
    `own_plugins` are objects that are registered as plugins in this process alone.
    """
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with suppress(OSError):  # in a folder that cannot be written to, failures are not remembered
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(make_folder(RESULTS.absolute() / "hypothesis"))
    own = ["-c", os.devnull, f"--rootdir={LAWS.parents[1]}", *SETTINGS.split()]
    own += [word for plugin in plugins for word in ("-p", plugin)]
    code = pytest.main([*own, *words], plugins=[_Command(shlex.join(["lenet-properties", *command])), *own_plugins])
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        print("error: nothing matches the options", file=sys.stderr)
    return EXIT_CODES.get(pytest.ExitCode(code), USAGE_ERROR)


class _Command:
    """Tells the record which command the user has typed."""

    def __init__(self, command: str) -> None:
        self.command = command

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[COMMAND] = self.command

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Print what is judged, without pytest's own header."""
        from properties.plugin import pytest_report_header

        if terminal := session.config.pluginmanager.get_plugin("terminalreporter"):
            for line in pytest_report_header(session.config):
                terminal.write_line(line)
