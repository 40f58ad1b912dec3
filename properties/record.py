"""
The record of a run: an entry for each law and stack, written to `laws.json`, or to `engines.json` with `--engine`.

A failed law's entry has its counterexample, its message, and a command that runs the law again, with the
counterexample's case if it has one; the failure's report shows them too.
"""

from __future__ import annotations

import fcntl
import inspect
import json
import math
import os
import re
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.errors import Flaky

from lenet.files import set_aside, write_atomically
from lenet.fingerprint import stamp
from lenet.oracle import THRESHOLD
from properties.case import Case
from properties.deviations import DEVIATIONS
from properties.entries import seen_deviations
from properties.executed import NOT_FOR_ENGINES
from properties.judged_code import EXAMPLE_TIMEOUT, LAWS, belongs_to_judge
from properties.ledger import compiled_graphs, current_ledger
from properties.preconditions import Restrictions, describe
from properties.stack import dtype_name

PROPERTY = "law"
"""The name under which a report's user_properties hold a law's entry."""

SECONDS = pytest.StashKey[float]()
"""The time limit of an item, by pytest-timeout."""

RESTRICTIONS = pytest.StashKey[Restrictions]()
"""What the network of an item's stack cannot do."""

COMMAND = pytest.StashKey[str]()
"""The command that started the run, if that was not pytest's own."""

Entry = dict[str, Any]


def pytest_configure(config: pytest.Config) -> None:
    """Collect the entries where the run is controlled, not in its parallel workers."""
    if not hasattr(config, "workerinput"):
        config.stash[RECORD] = Record(config)
        config.pluginmanager.register(config.stash[RECORD], "law-record")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach a law's entry to its report."""
    report = yield
    has_verdict = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    if has_verdict and isinstance(item, pytest.Function) and item.get_closest_marker("law"):
        entry = _entry(item, report) | _failure(call)
        report.user_properties.append((PROPERTY, entry))
        if report.outcome == "failed":
            report.sections.append(("law", _explanation(entry, _drawn_again(item))))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape what cannot be encoded in what a parallel worker reports, such as a subject's message `\\ud800`."""
    return _encodable((yield))


def _encodable(data: Any) -> Any:
    """Return the data, of JSON's types, with every lone surrogate in its texts escaped."""
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {key: _encodable(value) for key, value in data.items()}
    return type(data)(map(_encodable, data)) if isinstance(data, (list, tuple)) else data


def _entry(item: pytest.Function, report: pytest.TestReport) -> Entry:
    failed, skipped = report.outcome == "failed", report.outcome == "skipped"
    stack: Any = item.callspec.params["stack"]
    ledger, restrictions = current_ledger(), item.stash.get(RESTRICTIONS, Restrictions())
    return {
        "id": item.nodeid,
        "chapter": item.path.stem.removeprefix("test_"),
        "law": item.originalname,
        "statement": inspect.cleandoc(item.obj.__doc__ or ""),
        "subject": "" if stack is None else stack.label,
        "engine": stack.engine.name if stack and stack.engine else "",
        "stack": "" if stack is None else str(stack),
        "outcome": report.outcome,
        "examples": 0 if skipped else max(1, ledger.examples),
        "partly_judged": ledger.partly_judged,
        "forgiven": ledger.forgiven,
        "deviating": ledger.deviating,
        "not_drawn": [describe(name, restrictions.unmet[name]) for name in sorted(restrictions.needed)],
        "worst_ratio": ledger.worst_ratio,
        "known_issues": [
            {"title": issue.title, "reference": issue.reference, "fixed_in": ".".join(map(str, issue.fixed_in or ()))}
            for issue, failure in ledger.known_issues
            if not failure.own
        ],
        "known_deviations": [
            {
                "reason": issue.title,
                "link": issue.reference,
                "place": getattr(issue, "place", ""),
                "seen": any(failure is other for other in ledger.shown),
            }
            for issue, failure in ledger.possible
            if failure.own
        ],
        "compiled_graphs": compiled_graphs() - ledger.graphs_before,
        "seconds": report.duration,
        "notes": ledger.notes,
        "counterexample": _counterexample(current_drawn()) if failed else "",
        "message": _message(report) if failed else "",
        "reason": _first_line(report.longrepr[2]) if skipped and isinstance(report.longrepr, tuple) else "",
        "command": _command(item) if failed else "",
    }


def crash_header(item: pytest.Function) -> Entry:
    """Return what a crash in a law cannot report any more: its entry, as far as it is known when the law begins."""
    report = pytest.TestReport(item.nodeid, item.location, {}, "failed", "", "call")
    entry = _entry(item, report) | {"failure_kind": "crash", "first_failure": 0, "examples": 0}
    return {
        "entry": entry,
        "location": item.location,
        "parameters": list(item.callspec.params),
        "derandomize": settings().derandomize,
    }


def complete_crash(header: Entry, counts: Entry, drawn: dict[str, str], message: str) -> tuple[Entry, str]:
    """Return the entry of a law whose process died in an example with these arguments' reprs, and the explanation."""
    entry = header["entry"] | counts | {"first_failure": counts.get("examples", 0), "message": message}
    entry["counterexample"] = _counterexample(drawn)
    case = _only_case_of(drawn)
    entry["command"] += f" --case {_quoted(drawn[case])}" if case else ""
    others = [name for name in drawn if name not in header["parameters"] and name != case]
    return entry, _explanation(entry, others if case or not header["derandomize"] else [])


def _failure(call: pytest.CallInfo[None]) -> Entry:
    """Return the kind of failure (assertion, crash, timeout, flaky, or empty), and the number of the first example."""
    if call.excinfo is None or call.excinfo.errisinstance(pytest.skip.Exception):
        return {"failure_kind": "", "first_failure": 0}
    error, place = call.excinfo.value, Path(call.excinfo.traceback[-1].path)
    if isinstance(error, Flaky):
        kind = "flaky"
    elif isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout"):
        kind = "timeout"
    elif isinstance(error, pytest.fail.Exception) or (isinstance(error, AssertionError) and _is_own_assertion(place)):
        kind = "assertion"
    else:
        kind = "crash"
    return {"failure_kind": kind, "first_failure": current_ledger().first_failure}


def _is_own_assertion(source: Path) -> bool:
    """Whether an AssertionError that was raised in this file is one of a law, and not of the subject."""
    return belongs_to_judge(source) or source.parent.name == "_pytest"


def _message(report: pytest.TestReport) -> str:
    """Return the error message without the counterexample that Hypothesis adds, which is a field of its own."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash else str(report.longrepr)
    return re.split(r"\n(?:Failing (?:test case|explicit example)|Falsifying (?:explicit )?example)", message)[0]


def _first_line(text: str) -> str:
    """Return the reason of a skip without the example that Hypothesis adds."""
    return text.strip().partition("\n")[0]


def _command(item: pytest.Function) -> str:
    """
    Return a shell command that runs this law again: on the same stack, with the same profile and, if it drew one, case.

    A law that drew other values too draws them again (see `_drawn_again`).
    """
    stack: Any = item.callspec.params["stack"]
    parameters = item.name.partition("[")[1:] if len(item.callspec.params) > 1 else ()
    words = ["lenet-properties", "judge", *([stack.subject.spec] if stack.subject.spec != "lenet" else [])]
    words += ["--law", item.originalname.removeprefix("test_") + "".join(parameters)]
    words += ["--device", str(stack.device), "--dtype", dtype_name(stack.dtype)]
    words += ["--engine", stack.engine.name] if stack.engine else []
    words += ["--claim", stack.claim] if stack.claim else []
    words += ["--profile", _profile(item.config)]
    words += ["--timeout", f"{limit:g}"] if (limit := item.stash.get(SECONDS, None)) else []
    example_limit = item.config.getoption("example_timeout")
    words += ["--example-timeout", f"{example_limit:g}"] if example_limit != EXAMPLE_TIMEOUT else []
    drawn = current_drawn()
    if name := _only_case_of(drawn):
        words += ["--case", drawn[name]]
    return " ".join(map(_quoted, words))


def current_drawn() -> dict[str, str]:
    """Return the reprs of the arguments of the latest example, by name."""
    return {name: repr(value) for name, value in current_ledger().drawn.items()}


def _counterexample(drawn: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in drawn.items())


def _only_case_of(drawn: dict[str, str]) -> str:
    """Return the name of the only `Case` among an example's arguments; empty if it has none or several."""
    names = [name for name, value in drawn.items() if value.startswith(f"{Case.__name__}(")]
    return names[0] if len(names) == 1 else ""


def _drawn_again(item: pytest.Function) -> list[str]:
    """Return the names of the example's arguments for which the command may draw other values."""
    case = _only_case_of(current_drawn())
    if settings().derandomize and not case:
        return []  # the same examples in every run
    return [name for name in current_ledger().drawn if name not in item.callspec.params and name != case]


def _quoted(word: str) -> str:
    """Return the word quoted for a shell; a case, which contains single quotes, in double quotes."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _profile(config: pytest.Config) -> str:
    return config.getoption("--hypothesis-profile", None) or "quick"


def _explanation(entry: Entry, drawn_again: list[str]) -> str:
    """Return the lines that a failure's report ends with: the law, the stack, the counterexample, the command."""
    lines = [entry["statement"].split("\n\n")[0], f"stack:          {entry['stack']}"]
    if entry["counterexample"]:
        lines.append(f"counterexample: {entry['counterexample']}")
    lines.append(f"reproduce with: {entry['command']}")
    if drawn_again:
        lines.append(f"                (draws {', '.join(drawn_again)} again, possibly other values)")
    return "\n".join(lines)


def command_line(config: pytest.Config) -> str:
    """Return the command that started the run."""
    return config.stash.get(COMMAND, shlex.join(["pytest", *config.invocation_params.args]))


class Record:
    """Collects the entries of a run, also from parallel workers, and writes them to a file."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.entries: list[Entry] = []
        self.errors: list[str] = []  # what failed without a verdict, such as a file of laws with an error
        folder = config.getoption("record")
        self.path: Path | None = folder and folder / ("engines.json" if config.getoption("engine") else "laws.json")
        self.selected = 0  # the number of laws to run
        self.not_written: list[str] = []  # a line about each file that could not be written
        self.gone: list[str] = []  # a line about each known deviation that no longer occurs, if it has to
        self.gone_unnoticed: list[str] = []  # likewise, if it does not have to
        if self.path and _laws_are_selected(config):
            self.lock = _locked(self.path.parent)
            set_aside(self.path)

    @property
    def judged(self) -> list[Entry]:
        """The entries of laws that were not skipped."""
        return [entry for entry in self.entries if entry["outcome"] != "skipped"]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect a law's entry, or note an error without a verdict."""
        entries = [dict(value) for name, value in report.user_properties if name == PROPERTY]  # type: ignore[call-overload]
        self.entries += entries
        if report.failed and not entries:
            self.errors.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note an error of collection."""
        if report.failed:
            self.errors.append(report.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the laws of this process."""
        self.selected = sum(item.get_closest_marker("law") is not None for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Count the laws of the parallel workers, which each collect all of them."""
        laws = Path("properties", "laws").as_posix()
        self.selected = sum(laws in name.partition("::")[0] for name in ids)

    @property
    def not_reached(self) -> int:
        """The number of laws that were not run although the run was to run them."""
        options = self.config.option
        return 0 if options.collectonly or options.setuponly else max(0, self.selected - len(self.entries))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the record; a run in which every law was skipped, or which ended before its last law, fails."""
        self._find_gone()
        passed = session.exitstatus == pytest.ExitCode.OK
        if passed and (self.gone or self.not_reached or (self.entries and not self.judged)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        try:
            self._write(exitstatus)
        except OSError as error:
            self.not_written.append(f"--record {self.path}: {error.strerror or error}")
            if passed:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _find_gone(self) -> None:
        """
        Find the known deviations that no law showed, of those whose laws were judged on all examples and did not fail.

        (A law that was to show one on its counterexample has failed.) With `--case`, laws are not judged on all.
        """
        if self.not_reached or self.config.getoption("case") is not None:
            return
        listed: dict[str, list[Entry]] = {}
        for entry, place in ((e, found["place"]) for e in self.judged for found in e["known_deviations"]):
            listed.setdefault(place, []).append(entry)
        for deviation in self.config.stash.get(DEVIATIONS, []):
            own = listed.get(deviation.place, [])
            seen = any(found["place"] == deviation.place for entry in own for found in seen_deviations(entry))
            if own and not seen and all(entry["outcome"] == "passed" for entry in own):
                (self.gone if deviation.strict else self.gone_unnoticed).append(deviation.gone())
        self.errors += self.gone

    def _write(self, exitstatus: int) -> None:
        if self.path and self.entries:
            content = stamp(command_line(self.config)) | {
                "finished": exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not self.not_reached,
                "errors": self.errors,
                "profile": _profile(self.config),
                "threshold": THRESHOLD,
                "laws": [entry | {"worst_ratio": _finite(entry["worst_ratio"])} for entry in self.entries],
            }
            if self.config.getoption("engine"):
                content["matrix"] = engine_matrix(self.entries)
            with write_atomically(self.path) as file:
                file.write(json.dumps(content, indent=1, allow_nan=False).encode())


RECORD = pytest.StashKey[Record]()


def _locked(folder: Path) -> int:
    """Return a descriptor of the folder, locked until this process ends; a usage error if another run has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise pytest.UsageError(
            f"--record {folder}: another run is recording into this folder; wait for its end, or name another folder"
        ) from None
    except OSError:
        pass  # a file system that has no locks
    return descriptor


def _laws_are_selected(config: pytest.Config) -> bool:
    """Whether a path among the command line's arguments contains laws, or is one of their files."""
    names = [arg.partition("::")[0].partition("[")[0] for arg in config.args]
    paths = [Path(config.invocation_params.dir, name).resolve() for name in names]
    if config.getoption("pyargs"):
        paths += [LAWS.parents[1] / name.replace(".", "/") for name in names]
    return any(path == LAWS or path in LAWS.parents or LAWS in path.parents for path in paths)


def _finite(ratio: float) -> float | None:
    """Return None for infinity, which JSON does not have."""
    return ratio if math.isfinite(ratio) else None


def engine_matrix(entries: list[Entry]) -> dict[str, dict[str, str]]:
    """
    Return, for each stack and law, one of failed, known deviation, known issue, passed and not applicable.

    The worst outcome counts, in this order, if a law has several parameters. Laws that do not apply to engines are left
    out.
    """
    outcomes = ("failed", "known deviation", "known issue", "passed", "not applicable")
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        if entry["engine"] and not entry["reason"].endswith(NOT_FOR_ENGINES):
            outcome = _known(entry) if entry["outcome"] == "passed" else entry["outcome"]
            outcome = "not applicable" if outcome == "skipped" else outcome
            own = found.setdefault(entry["stack"], {})
            own[entry["law"]] = min(own.get(entry["law"], outcome), outcome, key=outcomes.index)
    return found


def _known(entry: Entry) -> str:
    """Return what a law that passed showed: a known deviation, a known issue, or neither."""
    if seen_deviations(entry):
        return "known deviation"
    return "known issue" if entry["known_issues"] else "passed"
