"""The record of a run of the laws: what each says, what it judged, and the counterexample of one that does not hold."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import currently_in_test_context, target
from hypothesis.errors import Flaky, StopTest, UnsatisfiedAssumption

from lenet.files import set_aside, write_atomically
from lenet.fingerprint import stamp
from lenet.oracle import THRESHOLD
from properties.case import Case
from properties.comparison import ledger
from properties.diagnosis import Diagnosis, diagnose
from properties.executed import NOT_ABOUT_RUNNING
from properties.known_issues import KnownIssue, Sighting, expected
from properties.stack import Stack, name_of

PROPERTY = "law"


def pytest_configure(config: pytest.Config) -> None:
    # Laws that compare two backward passes bit for bit need the same sums both times.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(config), "law-record")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "stack" in item.fixturenames:
            if handle := getattr(item.obj, "hypothesis", None):
                handle.inner_test = _counted(handle.inner_test)
            else:
                item.obj = _counted(item.obj)


def _counted(law: Callable[..., None]) -> Callable[..., None]:
    """The law, with each example that it judges entered in the ledger, and forgiven where a known issue covers it."""
    if hasattr(law, "counted"):  # parametrized laws share one function
        return law

    @functools.wraps(law)
    def counted(*args: Any, **drawn: Any) -> None:
        __tracebackhide__ = True
        ledger.begin({name: value for name, value in drawn.items() if not isinstance(value, Stack)})
        if not currently_in_test_context() and any(known.covers(drawn) for known in ledger.expected):
            return  # nothing is drawn: this was its counterexample
        try:
            law(*args, **drawn)
        except (UnsatisfiedAssumption, StopTest, pytest.skip.Exception):
            raise
        except (Exception, pytest.fail.Exception) as error:
            if not any(isinstance(error, known.raises) and known.covers(drawn) for known in ledger.expected):
                ledger.failed = ledger.failed or ledger.examples
                raise
            ledger.forgive()
        ledger.open += ledger.unjudged
        if currently_in_test_context() and ledger.nearest:
            target(ledger.nearest, label="error / what is allowed")

    counted.counted = True
    return counted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Before a law is judged, see that it shows the issues that are known of it on this stack."""
    if isinstance(item, pytest.Function) and item.get_closest_marker("law"):
        arguments = {name: item.funcargs[name] for name in item.callspec.params}
        issues = expected(item.originalname, arguments["stack"], arguments)
        shown = [(issue, sighting) for issue, sighting in issues if _shows(item, arguments, issue, sighting)]
        ledger.known = [
            {"title": issue.title, "reference": issue.reference, "fixed": ".".join(map(str, issue.fixed or ()))}
            for issue, _ in shown
        ]
        ledger.expected = [sighting for _, sighting in shown]


def _shows(item: pytest.Function, arguments: dict[str, Any], issue: KnownIssue, sighting: Sighting) -> bool:
    """Whether the law fails on the counterexample; that the reference does not any more is an AssertionError."""
    __tracebackhide__ = True
    law = getattr(item.obj, "hypothesis", None)
    try:
        (law.inner_test if law else item.obj)(**arguments | sighting.counterexample)
    except sighting.raises:
        ledger.forgive()
        return True
    if arguments["stack"].dtype in issue.unsteady:
        return True
    if issue.must_show(arguments["stack"]):
        raise AssertionError(
            f"a known issue is gone: {issue.title} ({issue.reference}). This law holds on "
            f"{dict(sighting.counterexample)}. End the issue's versions in properties/known_issues.py"
        )
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if isinstance(item, pytest.Function) and item.get_closest_marker("law"):
        if report.when == "setup":
            ledger.clear()
            ledger.graphs = _graphs()
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            entry = _entry(item, report) | _failure(item, call)
            report.user_properties.append((PROPERTY, entry))
            if report.outcome == "failed":
                report.sections.append(("the law", _explanation(entry)))
    return report


def _entry(item: pytest.Function, report: pytest.TestReport) -> dict[str, Any]:
    failed = report.outcome == "failed"
    stack = item.callspec.params["stack"]
    return {
        "id": item.nodeid,
        "group": item.path.stem.removeprefix("test_"),
        "law": item.originalname,
        "wording": inspect.cleandoc(item.obj.__doc__ or ""),
        "subject": "" if stack is None else stack.who,
        "engine": stack.engine.name if stack and stack.engine else "",
        "stack": "" if stack is None else str(stack),
        "outcome": report.outcome,
        "examples": 0 if report.outcome == "skipped" else max(1, ledger.examples),
        "open": ledger.open,
        "worst": ledger.worst,
        "known": ledger.known,
        "graphs": _graphs() - ledger.graphs,
        "seconds": report.duration,
        "notes": ledger.notes,
        "counterexample": ", ".join(f"{name}={value!r}" for name, value in ledger.drawn.items()) if failed else "",
        "message": _message(report) if failed else "",
        "reason": report.longrepr[2] if report.outcome == "skipped" else "",
        "command": _command(item) if failed else "",
    }


def _graphs() -> int:
    """How many graphs Dynamo has compiled in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


def _failure(item: pytest.Function, call: pytest.CallInfo[None]) -> dict[str, Any]:
    """How a law fails, and at which of its examples: by its own assertion, or by what happened to it."""
    if call.excinfo is None or call.excinfo.errisinstance(pytest.skip.Exception):
        return {"how": "", "failed": 0}
    error, place = call.excinfo.value, Path(call.excinfo.traceback[-1].path)
    if isinstance(error, Flaky):
        how = "flaky"
    elif isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout"):
        how = "timeout"
    elif isinstance(error, pytest.fail.Exception) or (isinstance(error, AssertionError) and _is_the_judges(place)):
        how = "assertion"
    else:
        how = "crash"
    return {"how": how, "failed": ledger.failed}


def _is_the_judges(place: Path) -> bool:
    """Whether code there belongs to a law or to what it asserts with, and not to what is judged."""
    return place.parent in (Path(__file__).parent, Path(__file__).parent / "laws") or place.parent.name == "_pytest"


def _message(report: pytest.TestReport) -> str:
    """What was found, without what Hypothesis adds: the counterexample stands by itself."""
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash else str(report.longrepr)
    return re.split(r"\n(?:Failing test case|Falsifying example)", message)[0]


def _command(item: pytest.Function) -> str:
    """What judges this law on this counterexample again: a profile that drew it, and the case where that is all."""
    stack = item.callspec.params["stack"]
    words = ["pytest", item.nodeid, "--device", str(stack.device), "--dtype", name_of(stack.dtype)]
    words += ["--engine", stack.engine.name] if stack.engine else []
    words += ["--claim", stack.claim] if stack.claim else []
    words.append(f"--hypothesis-profile={_profile(item.config)}")
    if stack.subject.spec != "lenet":
        words += ["--subject", stack.subject.spec]
    cases = [value for value in ledger.drawn.values() if isinstance(value, Case)]
    if len(cases) == 1:
        words += ["--case", repr(cases[0])]
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """The word as a shell takes it; a case, which has single quotes within, in double ones."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _profile(config: pytest.Config) -> str:
    return config.getoption("--hypothesis-profile", None) or "quick"


def _explanation(entry: dict[str, Any]) -> str:
    lines = [entry["wording"].split("\n\n")[0], f"stack:  {entry['stack']}"]
    if entry["counterexample"]:
        lines.append(f"judged: {entry['counterexample']}")
    return "\n".join([*lines, f"again:  {entry['command']}"])


class Record:
    """Collects the laws' entries, also from parallel workers; sums them up, and writes them for the report."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.entries: list[dict[str, Any]] = []
        self.broken: list[str] = []  # what failed without a verdict: a worker that died, a law that cannot be read
        folder = config.getoption("record")
        self.path: Path | None = folder and folder / ("engines.json" if config.getoption("engine") else "laws.json")
        if self.path:
            set_aside(self.path)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        entries = [dict(value) for name, value in report.user_properties if name == PROPERTY]
        self.entries += entries
        if report.failed and not entries:
            self.broken.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.path and self.entries:
            content = stamp(shlex.join(["pytest", *self.config.invocation_params.args])) | {
                "finished": exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED),
                "broken": self.broken,
                "profile": _profile(self.config),
                "threshold": THRESHOLD,
                "laws": [entry | {"worst": _finite(entry["worst"])} for entry in self.entries],
            }
            if self.config.getoption("engine"):
                content["matrix"] = matrix(self.entries)
            with write_atomically(self.path) as file:
                file.write(json.dumps(content, indent=1, allow_nan=False).encode())
        if self.entries and not self.judged and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @property
    def judged(self) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["outcome"] != "skipped"]

    @property
    def known(self) -> dict[str, set[str]]:
        """The known issues that were shown, and by which stacks."""
        shown: dict[str, set[str]] = {}
        for entry in self.entries:
            for issue in entry["known"]:
                shown.setdefault(f"{issue['title']} ({issue['reference']})", set()).add(entry["stack"])
        return shown

    @property
    def diagnoses(self) -> dict[str, Diagnosis]:
        """Of each rejected subject: in float32, as the mutants were judged, where it breaks anything there."""
        own: dict[str, list[dict[str, Any]]] = {}
        for entry in self.judged:
            own.setdefault(entry["subject"], []).append(entry)
        found = {}
        for spec, entries in own.items():
            float32 = [entry for entry in entries if entry["stack"].endswith(" in float32")]
            for judged in (float32, entries):
                if spec not in found and any(entry["outcome"] == "failed" for entry in judged):
                    found[spec] = diagnose(judged)
        return found

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.entries:
            return
        terminalreporter.write_sep("-", "verdict")
        for stack in dict.fromkeys(entry["stack"] for entry in self.judged):
            own = [entry for entry in self.judged if entry["stack"] == stack]
            violated = {entry["law"] for entry in own if entry["outcome"] == "failed"}
            terminalreporter.write_line(_verdict(stack, own, violated), red=bool(violated), green=not violated)
            for note in (note for entry in own for note in entry["notes"]):
                terminalreporter.write_line(f"  {note}")
        for reason in dict.fromkeys(entry["reason"] for entry in self.entries if entry["reason"]):
            laws = {entry["law"] for entry in self.entries if entry["reason"] == reason}
            terminalreporter.write_line(f"not judged: {len(laws)} laws, {reason.removeprefix('Skipped: ')}")
        for known, stacks in self.known.items():
            terminalreporter.write_line(f"known issue: {known}; shown by {', '.join(sorted(stacks))}", yellow=True)
        if not self.judged:
            terminalreporter.write_line("ERROR: nothing was judged", red=True)
        if diagnoses := self.diagnoses:
            terminalreporter.write_sep("-", "diagnosis")
            for spec, diagnosis in diagnoses.items():
                terminalreporter.write_line("\n".join(diagnosis.lines(spec)))


def _finite(worst: float) -> float | None:
    """JSON has no infinity."""
    return worst if math.isfinite(worst) else None


def matrix(entries: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """By stack and law: the worst of failed, known issue, passed and not applicable, over the law's forms."""
    outcomes = ("failed", "known issue", "passed", "not applicable")
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        if entry["engine"] and not entry["reason"].endswith(NOT_ABOUT_RUNNING):
            outcome = "known issue" if entry["outcome"] == "passed" and entry["known"] else entry["outcome"]
            outcome = "not applicable" if outcome == "skipped" else outcome
            own = found.setdefault(entry["stack"], {})
            own[entry["law"]] = min(own.get(entry["law"], outcome), outcome, key=outcomes.index)
    return found


def _verdict(stack: str, entries: list[dict[str, Any]], violated: set[str]) -> str:
    laws = {entry["law"] for entry in entries}
    worst = max(entries, key=lambda entry: float(entry["worst"]))
    examples = sum(entry["examples"] for entry in entries)
    verdict = f"{len(violated)} of {len(laws)} laws violated" if violated else f"all {len(laws)} laws hold"
    known = {entry["law"] for entry in entries if entry["known"]}
    verdict += f", {len(known)} but for known issues," if known else ""
    unjudged = sum(entry["open"] for entry in entries)
    verdict += f" in {examples:,} examples"
    graphs = sum(entry["graphs"] for entry in entries)
    verdict += f" by {graphs} compiled graphs" if graphs else ""
    verdict += f", {unjudged / examples:.2%} of which could not be judged in full" if unjudged else ""
    return f"{stack}: {verdict}; worst error / budget {worst['worst']:.2g} of {THRESHOLD:g} ({worst['law']})"
