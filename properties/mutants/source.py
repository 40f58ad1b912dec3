"""
Mutate the source of `lenet`, one change at a time: a test of the mutated module must kill each mutation.

The mutations are those of Cosmic Ray (https://cosmic-ray.readthedocs.io): all operators that need no arguments, except
that each arithmetic or comparison operator is replaced only by its nearest relatives. Each mutation is made in a copy
of the source and judged by its module's tests, in a process that is forked from one that has already imported torch.
A survivor needs a new test or an explanation in `source_explained.toml`.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from tqdm import tqdm

from lenet.files import write_atomically
from lenet.fingerprint import stamp

ROOT = Path(__file__).parents[2]
COPIED = ("lenet", "properties", "conftest.py", "pyproject.toml")
IMPORTED = ("lenet", "properties", "conftest")
LATE = ("sklearn.datasets", "torch._dynamo")
"""Modules that lenet and torch import only when a function is called."""

EXPLAINED = Path(__file__).with_name("source_explained.toml")

RELATIVES = {
    "ReplaceBinaryOperator": "Add_Sub Add_Mul Sub_Add Mul_Div Mul_Add Div_Mul Div_FloorDiv FloorDiv_Div Mod_FloorDiv "
    "Pow_Mul BitOr_BitAnd BitAnd_BitOr",
    "ReplaceComparisonOperator": "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot "
    "IsNot_Is",
    "ReplaceUnaryOperator": "Delete_USub Delete_Not Delete_Invert",
}
"""The replacements to make, of Cosmic Ray's operators that replace a symbol: inverse, negation, boundary."""

LAWS = {
    "exact_sgd": "test_comparison laws/test_update laws/test_optimizer",
    "net": "laws/test_network laws/test_forward laws/test_errors",
    "training": "laws/test_update laws/test_errors",
    "checkpoint": "",
    "training_comparison": "",
    "train": "",
    "oracle": "test_comparison laws/test_forward laws/test_gradients laws/test_accumulation laws/test_exactness "
    "laws/test_learning",
    "subject": "",
    "digits": "",
    "files": "",
    "fingerprint": "",
    "table": "",
    "timer": "",
}
"""The modules that are mutated, and the test files of `properties` that run after the module's own tests."""

leave = os._exit  # that of Python; while pytest runs laws, judged code gets another one

OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--device=cpu", "--dtype=float32", "--hypothesis-profile=mutants"]


class Outcome(StrEnum):
    """The result of a mutation."""

    EQUIVALENT = "equivalent"  # it does not compile, or changes only type hints
    EXPLAINED = "explained"
    KILLED = "killed"
    TIMED_OUT = "timed out"
    SURVIVED = "survived"


COUNTED = (Outcome.KILLED, Outcome.TIMED_OUT, Outcome.EXPLAINED, Outcome.SURVIVED)
TIMEOUT = 300
"""Time limit in seconds for a module's tests without a mutation; with one, 10 s plus five times their time."""


@dataclass(frozen=True)
class Mutation:
    """A place to mutate: the `occurrence`th in a module of `lenet` to which an operator of Cosmic Ray applies."""

    module: str
    operator: str
    occurrence: int


@dataclass(frozen=True)
class Judgement:
    """A mutation, the lines that it changes, and its outcome."""

    mutation: Mutation
    line: int
    before: str
    after: str
    outcome: Outcome
    by: str  # the first test that failed
    seconds: float


def tests(module: str) -> list[str]:
    """Return the test files that must kill the mutations of a module, in the order in which they run."""
    return [f"lenet/test_{module}.py", *(f"properties/{laws}.py" for laws in LAWS[module].split())]


def operators() -> list[str]:
    """Return the names of the Cosmic Ray operators that are used here."""
    return [name for name in operator_names() if not get_operator(name).arguments() and _near(name.rpartition("/")[2])]


def _near(operator: str) -> bool:
    family, _, change = operator.partition("_")
    return family not in RELATIVES or change in RELATIVES[family].split()


def mutations(module: str) -> Iterator[Mutation]:
    """Yield every place of a module to which an operator applies."""
    nodes = list(ast_nodes(get_ast(_source(module))))
    for name in operators():
        operator = get_operator(name)()
        places = sum(1 for node in nodes for _ in operator.mutation_positions(node))
        yield from (Mutation(module, name, occurrence) for occurrence in range(places))


def _source(module: str) -> str:
    return (ROOT / "lenet" / f"{module}.py").read_text()


def mutated(mutation: Mutation) -> str:
    """Return the mutated source of the module, or the original if Cosmic Ray fails, as on `except package.Error`."""
    source = _source(mutation.module)
    try:
        return str(mutate_code(source, get_operator(mutation.operator)(), mutation.occurrence))
    except AttributeError:
        return source


def changes_program(before: str, after: str) -> bool:
    """Whether the second source compiles and differs from the first not only in type hints, which are not evaluated."""
    try:
        return _meaning(after) != _meaning(before)
    except SyntaxError:
        return False


@lru_cache(maxsize=16)
def _meaning(source: str) -> str:
    tree: Any = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def changed_lines(before: str, after: str) -> tuple[int, str, str]:
    """Return the number of the first line that differs, and the old and new lines, joined without indentation."""
    old, new = before.splitlines(), after.splitlines()
    changes = [c[1:] for c in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if c[0] != "equal"]
    (first, _, start, _), (_, last, _, end) = (changes[0], changes[-1]) if changes else ((0,) * 4,) * 2
    return first + 1, _one_line(old[first:last]), _one_line(new[start:end])


def _one_line(lines: Iterable[str]) -> str:
    return re.sub(r"\s+", " ", " ".join(lines)).strip()


@cache
def explained() -> dict[tuple[str, str, str], str]:
    """Return why a change of a line cannot matter, by module, the line before and the line after."""
    table = tomllib.loads(EXPLAINED.read_text())
    return {
        (entry["module"], entry["before"], after): entry["why"]
        for entry in table.get("explained", [])
        for after in entry["after"]
    }


class _FirstFailure:
    """A pytest plugin that writes the names of tests that fail to a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.pipe, report.nodeid.encode()[:200] + b"\n")

    pytest_collectreport = pytest_runtest_logreport


class Worker:
    """A copy of the source in which mutations are made and judged one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)
        self._import_what_tests_need()

    def _import_what_tests_need(self) -> None:
        """Import what the tests need, except the modules under test, so that no fork imports it again."""
        sys.dont_write_bytecode = False  # so that each module is compiled only once
        own = _forget()
        self._leave(["--collect-only", *sorted({test for module in LAWS for test in tests(module)})])
        for package in LATE:
            importlib.import_module(package)
        _forget()
        sys.modules |= own

    def _leave(self, arguments: list[str], plugins: Iterable[object] = ()) -> int:
        """Run pytest in the copy without output; this process keeps the copy as its working directory."""
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(silence, stream)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        return int(pytest.main([*OPTIONS, f"--basetemp={self.folder / 'tmp'}", *arguments], plugins=[*plugins]))

    def judge(self, module: str, source: str, timeout: float) -> tuple[Outcome, str]:
        """Run the module's tests on this source; return the outcome and the name of the first test that failed."""
        path = self.folder / "lenet" / f"{module}.py"
        original = path.read_text()
        path.write_text(source)
        try:
            return self._fork(tests(module), timeout)
        finally:
            path.write_text(original)

    def _fork(self, tests: list[str], timeout: float) -> tuple[Outcome, str]:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setsid()
                signal.alarm(round(timeout))  # unhandled, it ends the process
                sys.dont_write_bytecode = True
                os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
                _forget()
                status = self._leave(tests, [_FirstFailure(writer)])
            finally:
                leave(status)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # processes that it left running
        with os.fdopen(reader) as pipe:
            first = pipe.readline().strip()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            return Outcome.TIMED_OUT, ""
        return Outcome.KILLED if status else Outcome.SURVIVED, first


def _forget() -> dict[str, ModuleType]:
    """Remove this project's modules from `sys.modules` and return them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in IMPORTED}


_worker: Worker


def _start_worker(folder: str) -> None:
    """Create the worker of this process, with its copy of the source in a new folder under `folder`."""
    global _worker
    _worker = Worker(Path(tempfile.mkdtemp(dir=folder)))


def _judge(mutation: Mutation, timeout: float) -> Judgement:
    began = time.perf_counter()
    before, after = _source(mutation.module), mutated(mutation)
    line, *change = changed_lines(before, after)
    by = ""
    if not changes_program(before, after):
        outcome = Outcome.EQUIVALENT
    elif (mutation.module, *change) in explained():
        outcome = Outcome.EXPLAINED
    else:
        outcome, by = _worker.judge(mutation.module, after, timeout)
    return Judgement(mutation, line, *change, outcome, by, round(time.perf_counter() - began, 2))


def _judge_unmutated(module: str) -> tuple[Outcome, str, float]:
    began = time.perf_counter()
    return *_worker.judge(module, _source(module), TIMEOUT), time.perf_counter() - began


def run(modules: list[str], workers: int) -> list[Judgement]:
    """Judge all mutations of these modules; raises RuntimeError if a module's tests fail without a mutation."""
    os.environ.pop("LENET_SUBJECT", None)
    os.environ["OMP_NUM_THREADS"] = "1"  # forking is safe only in a process with one thread
    chosen = [mutation for module in modules for mutation in mutations(module)]
    processes = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, processes, initializer=_start_worker, initargs=(folder,)) as pool,
    ):
        seconds = {}
        for module, (outcome, by, took) in zip(modules, pool.map(_judge_unmutated, modules), strict=True):
            if outcome is not Outcome.SURVIVED:
                raise RuntimeError(f"{module}: the tests fail without a mutation: {outcome}, {by}")
            seconds[module] = took
        judged = pool.map(_judge, chosen, [10 + 5 * seconds[mutation.module] for mutation in chosen])
        return list(tqdm(judged, total=len(chosen), unit="mutation", disable=None))


def counts(judged: list[Judgement]) -> dict[str, dict[str, int]]:
    """Count the outcomes of each module's mutations, without equivalent ones."""
    outcomes: dict[str, dict[str, int]] = {}
    for judgement in judged:
        if judgement.outcome is not Outcome.EQUIVALENT:
            own = outcomes.setdefault(judgement.mutation.module, dict.fromkeys(COUNTED, 0))
            own[judgement.outcome] += 1
    return outcomes


def summary(judged: list[Judgement]) -> list[str]:
    """Return the counts as the lines of a table."""
    lines = [f"{'module':>12} {'made':>5}" + "".join(f" {outcome:>10}" for outcome in COUNTED)]
    for module, own in counts(judged).items():
        lines.append(f"{module:>12} {sum(own.values()):5}" + "".join(f" {count:10}" for count in own.values()))
    return lines


def problems(judged: list[Judgement]) -> list[str]:
    """Return one line for each survivor and for each explanation of a mutation that is not made."""
    found = [
        f"lenet/{j.mutation.module}.py:{j.line} survives {j.mutation.operator}: {j.before}  ->  {j.after}"
        for j in judged
        if j.outcome is Outcome.SURVIVED
    ]
    modules = {j.mutation.module for j in judged}
    made = {(j.mutation.module, j.before, j.after) for j in judged}
    unused = [key for key in explained() if key[0] in modules and key not in made]
    return found + [f"explained but not made: {module}: {before}  ->  {after}" for module, before, after in unused]


def main(arguments: list[str]) -> int:
    """Judge the mutations; return exit code 0, 1 for a survivor without explanation, or 2 if tests fail unmutated."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties source-mutants",
        description=__doc__.split("\n\n")[0],
        epilog="example: lenet-properties source-mutants net update",
    )
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"a module to mutate: {', '.join(LAWS)} (default: all)"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="number of parallel processes (default: one for each core)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the counts and kills as JSON")
    options = parser.parse_args(arguments)
    if unknown := set(options.modules) - set(LAWS):
        parser.error(f"{min(unknown)} is not one of the modules {', '.join(LAWS)}")
    try:
        judged = run(options.modules or list(LAWS), options.workers)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    found = problems(judged)
    if options.output:
        command = shlex.join(["lenet-properties", "source-mutants", *arguments])
        kills = Counter(j.by or "while importing" for j in judged if j.outcome is Outcome.KILLED)
        content = stamp(command) | {"modules": counts(judged), "kills": dict(kills.most_common()), "problems": found}
        with write_atomically(options.output) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    print("\n".join(summary(judged) + [f"PROBLEM: {line}" for line in found]))
    return 1 if found else 0
