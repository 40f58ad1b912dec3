"""
Stand-alone counterexamples: for each violated law and stack, `--repro DIR` writes a Python file that shows the fault.

The file needs PyTorch, NumPy and the subject, but neither this project nor pytest or Hypothesis: it is what one
attaches to a bug report. It contains the law, what the law uses (`properties.bundle`) and the example; of the oracle's
results, only those of the worst wrong elements. It exits with 1 while the fault is there, with 0 once it is gone, and
with 2 if it cannot run. At the end of the run each file is run in a new process, and once more with the reference
network in the subject's place.
"""

from __future__ import annotations

import ast
import base64
import importlib
import json
import re
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis.errors import Flaky

from lenet import digits, engines
from lenet.files import write_atomically
from lenet.fingerprint import fingerprint, headline
from lenet.oracle import THRESHOLD, Precision
from lenet.subject import one_line
from properties import fresh
from properties.bundle import STAND_INS, Bundle, BundleError, module_of
from properties.case import Case
from properties.comparison import MismatchError
from properties.entries import is_violated
from properties.judged_code import EscapeError
from properties.ledger import Ledger, current_ledger
from properties.record import PROPERTY, SECONDS, Entry
from properties.stack import Stack

SHOWN = 8
"""The number of wrong elements that a file checks: as many as one reads at a glance."""

TIMEOUT = 300
"""Time limit in seconds for one file; the slowest law of an engine that compiles takes a third of this."""

LINE = 118
"""The width of texts in a file: its lines have at most 120 characters, as in this project."""

KNOWN_ISSUE_FIXED = "This is not a fault of your stack"
"""What a failure begins with that has no example: a known issue no longer occurs."""


class Reproduction:
    """The plugin of `--repro`: attaches a file's text to the report of each violated law, and writes the files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[tuple[str, str], list[Any]] = {}  # by law and stack: id of the test and what to write
        self.lines: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        """Attach the text of the file, or the reason why there is none, to the report of a violated law."""
        report = yield
        entry: Any = dict(report.user_properties).get(PROPERTY)
        if isinstance(item, pytest.Function) and entry and is_violated(entry) and call.excinfo:
            try:
                report.repro = {"text": source(item, entry, call.excinfo.value), "problem": ""}
            except BundleError as error:
                report.repro = {"text": "", "problem": str(error)}
            except Exception as error:  # a fault of this module must not end the run
                report.repro = {"text": "", "problem": f"internal error: {one_line(error)}"}
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect what reports of this process or of parallel workers carry; of several parameters, the first."""
        if hasattr(report, "repro"):
            entry: Any = dict(report.user_properties)[PROPERTY]
            own = self.found.setdefault((entry["law"], entry["stack"]), [report.nodeid, entry, report.repro])
            if report.nodeid < own[0]:
                own[:] = [report.nodeid, entry, report.repro]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the files and, unless the user has ended the run, run each in a new process."""
        if hasattr(session.config, "workerinput") or not self.found:
            return
        files = [(path, entry["subject"] != "lenet") for path, entry in self._write()]
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            self.lines += [f"{path}: not run" for path, _ in files]
            return
        processes = session.config.getoption("numprocesses", None) or 1
        with ThreadPoolExecutor(processes) as pool:
            for lines in pool.map(run, [files[start::processes] for start in range(processes)]):
                self.lines += lines

    def _write(self) -> Iterator[tuple[Path, Entry]]:
        """Write the files; yield the path of each, with the entry of its law."""
        names: set[str] = set()
        for _, entry, repro in self.found.values():
            name = file_name(entry, names)
            names.add(name)
            path, problem = self.folder / name, repro["problem"]
            try:
                if not problem:
                    with write_atomically(path) as file:
                        file.write(repro["text"].encode(errors="backslashreplace"))
            except OSError as error:
                problem = error.strerror or str(error)
            if problem:
                self.lines.append(f"{path}: not written: {problem}")
            else:
                yield path, entry

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """List the files, and what is wrong with one."""
        if self.lines:
            terminalreporter.write_sep("-", "stand-alone counterexamples")
            for line in sorted(self.lines):
                terminalreporter.write_line(line, yellow=":" in line)


def run(files: list[tuple[Path, bool]]) -> list[str]:
    """
    Run files, each in a new process, and those with a reference once more with it; return a line for each file.

    The line says what is wrong if the file does not fail, or does not pass with the reference network.
    """
    calls = [[str(path)] for path, _ in files]
    calls += [[str(path), "--reference"] for path, has_reference in files if has_reference]
    command = [sys.executable, fresh.__file__, str(TIMEOUT)]
    ran = subprocess.run(command, input=json.dumps(calls), stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        return [f"{path}: not run: {fresh.__name__} ended with exit code {ran.returncode}" for path, _ in files]
    codes = dict(zip(map(tuple, calls), json.loads(ran.stdout), strict=True))
    return [f"{path}{outcome(codes[str(path),], codes.get((str(path), '--reference')))}" for path, _ in files]


def outcome(code: int, reference_code: int | None) -> str:
    """Return what a file does, by its exit code and that of the reference network, and whether that is wrong."""
    if code != 1:
        return f": does not reproduce in a new process (exit code {code})"
    if reference_code:
        return f": the reference network does not pass (exit code {reference_code})"
    return " fails, and the reference network passes" if reference_code == 0 else " fails"


def file_name(entry: Entry, taken: Iterable[str]) -> str:
    """Return a name that says which law is violated on which stack, and that is not taken."""
    label, _, rest = entry["stack"].rpartition(" on ")
    device, _, dtype = rest.partition(" in ")
    words = [entry["law"].removeprefix("test_"), Path(label).name, device, dtype.partition(",")[0]]
    slug = "-".join(re.sub(r"[^\w.]+", "_", word) for word in words if word != "lenet")
    number = next(n for n in range(1, len(list(taken)) + 2) if f"{slug}{f'-{n}' if n > 1 else ''}.py" not in taken)
    return f"{slug}{f'-{number}' if number > 1 else ''}.py"


def source(item: pytest.Function, entry: Entry, error: BaseException) -> str:
    """Return the text of the file that shows the violation; raises BundleError if there cannot be one."""
    if str(error).startswith(KNOWN_ISSUE_FIXED):
        raise BundleError("a known issue no longer occurs")
    if isinstance(error, Flaky):
        raise BundleError("the law's result differs between two runs of one example")
    cause = (error.__cause__ or error) if isinstance(error, EscapeError) else error
    stack: Any = item.callspec.params["stack"]
    law, ledger = Law.of(item), current_ledger()
    example = law.example(ledger.drawn, cause, item.stash.get(SECONDS, None))
    cases = ledger.cases | set(cases_in(list(ledger.drawn.values())))
    cases = cases or {Case()}
    bundle = Bundle(recipes=recipes_of(cases))
    bundle.given = {name: (STAND_INS, text) for name, text in constants(stack, ledger, cause, cases, law).items()}
    bundle.given["example"] = (law.module, example)
    if stack.engine:
        bundle.given["built_engine"] = built_engine(stack.engine.name)
    eager_reference = stack.subject.spec == "lenet" and stack.engine is None
    if stack.subject.spec == "lenet":
        bundle.given["choose_subject"] = (STAND_INS, "def choose_subject():\n    return Reference()\n")
    bundle.last_lines = {law.name: line_of(law, cause)}
    bundle.features = features(stack, cases)
    bundle.add([(STAND_INS, "example")])
    if bundle.attributes & {"sgd_update", "train_step"}:
        bundle.features |= {"training"}
    if "stored_precision" not in bundle.attributes and not any(
        recipe in ("tiny", "huge") for _, recipe in bundle.recipes
    ):
        bundle.given["STORED"] = (STAND_INS, "STORED = None\n")
    bundle.add([(STAND_INS, "main")])
    if "unknown" not in bundle.texts and not (isinstance(error, MismatchError) and np.isnan(error.expected).any()):
        bundle.given["EXPECTED"] = (STAND_INS, "EXPECTED = []  # what is compared is computed here\n")
        bundle.add([(STAND_INS, "main")])
    settings = ("SUBJECT", "DEVICE", "DTYPE", "THREADS", "EXPECTED", "COMPARED")
    first = ("Net", "sgd_update", "train_step", *settings, law.name, "example")
    end = 'if __name__ == "__main__":\n    sys.exit(main())\n'
    return f"{title(entry, stack, eager_reference)}\n{bundle.text(first)}\n{end}"


@dataclass(frozen=True)
class Law:
    """The function of a law."""

    module: str
    name: str
    file: str

    @classmethod
    def of(cls, item: pytest.Function) -> Law:
        """Return the law of an item."""
        return cls(item.function.__module__, item.originalname, str(item.path))

    @property
    def is_machine(self) -> bool:
        """Whether the law runs a state machine."""
        return "TrainingMachine" in module_of(self.module).statements

    def example(self, drawn: dict[str, Any], error: BaseException, limit: float | None) -> str:
        """Return a function that calls the law with the example's arguments."""
        if self.is_machine:
            calls = steps_of(error)
        else:
            arguments = [f"{name}={literal(value)}" for name, value in drawn.items()]
            call = f"{self.name}({', '.join(['stack', *arguments])})"
            if len(call) > LINE - 4:
                lines = "".join(f"    {argument},\n" for argument in ("stack", *arguments))
                call = f"{self.name}(\n{lines})"
            calls = [call]
        if limit and isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout"):
            calls = [f"with time_limit({limit:g}):", *(textwrap.indent(call, "    ") for call in calls)]
        body = textwrap.indent("\n".join(calls), "    ")
        return f'def example(stack):\n    """Run the law on the example."""\n{body}\n'


def steps_of(error: BaseException) -> list[str]:
    """Return the calls of the state machine, as Hypothesis prints them, each followed by the machine's invariant."""
    text = "\n".join(getattr(error, "__notes__", ()))
    found = re.search(r"^( *)state = TrainingMachine\(.*?^ *state.teardown\(\)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise BundleError("Hypothesis has not printed the steps of the state machine")
    body = ast.parse(
        textwrap.dedent(re.sub(r"TrainingMachine\(.*\)", "TrainingMachine(stack)", found[0], count=1))
    ).body
    calls = ["state = TrainingMachine(stack)"]
    for step in body[1:-1]:
        call = step.value if isinstance(step, (ast.Expr, ast.Assign)) else step
        calls += [ast.unparse(call), "state.networks_have_the_expected_state()"]
    return calls


def recipes_of(cases: Iterable[Case]) -> frozenset[tuple[str, str]]:
    """Return the recipes of the cases, each with the function of `properties.case` that builds it."""
    weights = {("_weight", case.weights) for case in cases}
    return frozenset(weights | {("_images", case.images) for case in cases})


def cases_in(values: Any) -> Iterable[Case]:
    """Yield the cases among values and in lists of them."""
    for value in values:
        if isinstance(value, Case):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from cases_in(value)


def literal(value: Any) -> str:
    """Return an expression that gives the value of an argument; raises BundleError if there is none."""
    if is_dataclass(value) and not isinstance(value, type):
        inner = ", ".join(f"{f.name}={literal(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, (list, tuple, set, frozenset)):
        inner = ", ".join(map(literal, value))
        if isinstance(value, tuple):
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        return f"[{inner}]" if isinstance(value, list) else f"{type(value).__name__}([{inner}])"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (np.floating, np.integer)):
        return literal(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (bool, int, float, torch.dtype)) or value is None:
        return repr(value)
    name = getattr(value, "__name__", "")
    if getattr(torch, name, None) is value:
        return f"torch.{name}"
    raise BundleError(f"the argument {value!r} cannot be written as Python")


def constants(stack: Stack, ledger: Ledger, error: BaseException, cases: set[Case], law: Law) -> dict[str, str]:
    """Return the statements that define the constants of `properties.stand_ins`, by name."""
    kind = "AssertionError" if isinstance(error, (AssertionError, pytest.fail.Exception)) else type(error).__name__
    if str(error).startswith("Timeout"):
        kind = "TimeoutError"
    found: dict[str, Any] = {
        "SUBJECT": stack.subject.spec,
        "DEVICE": str(stack.device),
        "DTYPE": stack.dtype,
        "THREADS": torch.get_num_threads(),
        "RAISES": kind,
        "COMPARED": (error.tensor, ledger.compared[error.tensor]) if isinstance(error, MismatchError) else ("", 0),
        "THRESHOLD": THRESHOLD,
        "SPARSE_WEIGHTS": ledger.choices.get("weights", ""),
        "STEP": ledger.choices.get("step", 0.0),
    }
    statements = {name: f"{name} = {literal(value)}\n" for name, value in found.items()}
    statements["EXPECTED"] = expected(error)
    statements["COMPARED"] = f"{statements['COMPARED'].rstrip()}  # the tensor, and which comparison of it failed\n"
    statements["PRECISION"] = f"PRECISION = {precision(stack.precision)}\n"
    statements["STORED"] = f"STORED = {precision(stack.stored_precision)}\n"
    if law.name == "test_training_on_digits_matches_the_oracle":
        statements |= training_on_digits(stack, law)
    else:
        rows = "".join(f'    {row}: "{text}",\n' for row, text in digit_rows(cases).items())
        statements["DIGITS"] = f"DIGITS = {{\n{rows}}}\n" if rows else "DIGITS = {}\n"
    return statements


def precision(found: Precision) -> str:
    """Return an expression for what laws read of a precision."""
    names = ("unit", "coarsest_unit", "operand_unit", "underflow", "largest")
    values: dict[str, Any] = {name: getattr(found, name) for name in names}
    values["sum_precision"] = found.sum_precision is not None
    return f"SimpleNamespace({', '.join(f'{name}={literal(value)}' for name, value in values.items())})"


def expected(error: BaseException) -> str:
    """Return the statement with the worst wrong elements: index, expected value, largest error allowed."""
    if not isinstance(error, MismatchError):
        return "EXPECTED = []\n"
    with np.errstate(all="ignore"):
        excess = np.nan_to_num(np.abs(error.actual - error.expected) / error.allowed, nan=np.inf)
    worst = np.argsort(-np.where(error.wrong, excess, -1.0), axis=None, kind="stable")[:SHOWN]
    lines = ["EXPECTED = [", "    # index, exact value, largest error allowed"]
    for place in worst:
        at = tuple(map(int, np.unravel_index(place, error.wrong.shape)))
        if error.wrong[at]:
            lines.append(f"    {literal((at, float(error.expected[at]), float(error.allowed[at])))},")
    return "\n".join([*lines, "]\n"])


def digit_rows(cases: Iterable[Case]) -> dict[int, str]:
    """Return the digits that the cases use: by row of scikit-learn's file, gray levels and label in base 17."""
    order = np.random.RandomState(0).permutation(1797)[digits.TEST_DIGITS :]
    used = [case._random(1).randint(0, len(order), case.batch) for case in cases if case.images == "digits"]
    table = digits._table() if used else np.zeros((0, 65))
    return {int(row): base17(table[row]) for row in sorted({order[i] for indices in used for i in indices})}


def base17(row: Any) -> str:
    """Return the numbers from 0 to 16 of a row as one character each."""
    return "".join("0123456789abcdefg"[int(level)] for level in row)


def training_on_digits(stack: Stack, law: Law) -> dict[str, str]:
    """Return the constants with all digits, and with the oracle's predictions that do not depend on rounding."""
    exact, losses = importlib.import_module(law.module).oracle_run(stack.dtype)
    largest = np.sort(exact.value, axis=1)[:, -2:]
    comparable = largest[:, 1] - largest[:, 0] > 2 * THRESHOLD * exact.budget[:, 0]
    predicted = np.where(comparable, exact.value.argmax(axis=1).astype(str), ".")
    packed = base64.b85encode(zlib.compress("".join(map(base17, digits._table())).encode(), 9)).decode()
    chunks = "".join(f'    "{line}"\n' for line in textwrap.wrap(packed, LINE - 6))
    unpacked = "zlib.decompress(base64.b85decode(PACKED)).decode()"
    return {
        "PREDICTED": f'PREDICTED = "{"".join(predicted)}"\n',
        "LOSSES": f"LOSSES = {losses}\n",
        "PACKED": f"PACKED = (\n{chunks})\n",
        "DIGITS": f"DIGITS = dict(enumerate(textwrap.wrap({unpacked}, 65)))\n",
    }


def features(stack: Stack, cases: Iterable[Case]) -> frozenset[str]:
    """Return which lines of the stand-ins are needed; see `Bundle.features`."""
    spec, subject = stack.subject.spec.partition(":"), stack.subject
    layouts = {case.layout for case in cases}
    needed = {
        "engine": stack.engine is not None,
        "cuda": stack.device.type == "cuda",
        "expanded": "expanded" in layouts,
        "layout": bool(layouts - {"contiguous", "expanded"}),
        "file": spec[0].endswith(".py"),
        "module": not spec[0].endswith(".py"),
        "name": bool(spec[2]),
        "class": isinstance(subject.Net, type) and subject.Net.__name__ == spec[2].rpartition(".")[2],
        "function": spec[2].rpartition(".")[2] in ("sgd_update", "train_step"),
        "parts": not isinstance(subject.Net, type) or subject.Net.__name__ != spec[2].rpartition(".")[2],
        "replaces": bool(subject.replaces),
    }
    return frozenset(name for name, value in needed.items() if value)


def built_engine(name: str) -> tuple[str, str]:
    """Return a function that builds an engine, and the module of which it could be a part."""
    for file, names in engines.ENGINES_BY_MODULE.items():
        if name in names:
            module = module_of(f"lenet.engines.{file}")
            own = importlib.import_module(module.name).ENGINES
            statement: Any = module.statements["ENGINES"]
            begin, end = module.span(statement.value.elts[[engine.name for engine in own].index(name)])
            return module.name, f"def built_engine():\n    return {module.source[begin:end].decode()}\n"
    return STAND_INS, f"def built_engine():\n    return engine_of({name!r})\n"


def line_of(law: Law, error: BaseException) -> int:
    """Return the line of the law at which it failed, or one after its end if the error does not show it."""
    lines = [
        line
        for frame, line in walk_tb(error.__traceback__)
        if frame.f_code.co_name == law.name and frame.f_code.co_filename == law.file
    ]
    return lines[-1] if lines else sys.maxsize


def title(entry: Entry, stack: Stack, eager_reference: bool) -> str:
    """Return the docstring: the law, the stack, the failure, the versions, and how to run the file."""
    own = "" if stack.subject.spec == "lenet" else f" [{stack.subject.spec}]"
    usage = f"Run: python FILE{own}{'' if eager_reference else ' [--reference]'}."
    codes = "Exit code 1: the fault is there; 0: it is gone; 2: the file cannot run. It needs PyTorch and NumPy."
    if not eager_reference:
        codes += " --reference runs the plain network of PyTorch's tutorial instead of the one that is judged."
    paragraphs = [
        entry["statement"].split("\n\n")[0],
        f"{entry['law']} is violated by {entry['stack']}:",
        *entry["message"].splitlines()[:SHOWN],
        f"Found with {headline(fingerprint())}, NumPy {np.__version__}.",
        f"{usage} {codes}",
    ]
    wrapped = ["\n".join(textwrap.wrap(" ".join(paragraph.split()), LINE)) for paragraph in paragraphs]
    text = "\n\n".join([wrapped[0], "\n".join(wrapped[1:-2]), "\n".join(wrapped[-2:])])
    text = text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\").replace('"""', "'''")
    return f'"""\n{text}\n"""\n'
