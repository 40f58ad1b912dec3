"""
What pytest does otherwise while it judges the catalogue: which law judges whom, and what many subjects can share.

Given by `-p properties.mutants.plugin`; `properties.mutants.__main__` says how.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import json
import os
import pkgutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FunctionType, NoneType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tqdm import tqdm

from lenet import oracle
from lenet.subject import CONTRACT, Subject
from properties.mutants import all_mutants, all_twins

ANSWERS = 400
"""How many of the oracle's answers each process keeps, some 1 MB each: more than a law's examples take."""

TERMINAL = os.dup(2)
"""Where errors are written to, taken here before pytest begins to capture it."""

CELLS = pytest.StashKey[dict[str, list[str]]]()
UNCHOSEN = pytest.param(None, id="none")
REACHED = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cells", type=Path, help="a JSON file: by law, the subjects that it is to judge")
    parser.addoption("--first-form", action="store_true", help="judge a law that has several forms in the first alone")
    parser.addoption("--reached", action="store_true", help="note which parts of a subject each law reaches")


def pytest_configure(config: pytest.Config) -> None:
    cells = config.getoption("cells")
    config.stash[CELLS] = json.loads(cells.read_text()) if cells else {}
    if hasattr(config, "workerinput"):
        for name in ("solve", "accumulated"):
            setattr(oracle, name, remembering(getattr(oracle, name)))
    else:
        config.pluginmanager.register(Progress())


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Only the chosen subjects: of hundreds and all laws there would be a hundred thousand items to leave out."""
    if cells := metafunc.config.stash[CELLS]:
        parametrize, specs = metafunc.parametrize, cells.get(metafunc.function.__name__, ())

        def choose(names: Any, values: Any, **options: Any) -> None:
            if names == "stack":
                values = [value for value in values if value.values[0].subject.spec in specs] or [UNCHOSEN]
            parametrize(names, values, **options)

        metafunc.parametrize = choose


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out who is not judged, and all but the first form where that is wanted."""
    items[:] = [item for item in items if item.callspec.params["stack"] is not None]
    if config.getoption("first_form"):
        items[:] = {(item.originalname, item.callspec.params["stack"]): item for item in reversed(items)}.values()
        items.reverse()
    gc.freeze()  # thousands of items, which no collection need look at


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A fault of one subject's must not be found in the next: what a process has but once is put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    dtype, grad, benchmark = torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cudnn.benchmark
    torch.manual_seed(0)
    np.random.seed(0)
    result = yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_flush_denormal(False)
    torch.clear_autocast_cache()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Iterator[None]:
    """Watch which of the parts that some variant changes the law reaches."""
    if not item.config.getoption("reached"):
        return (yield)
    item.stash[REACHED] = reached = set()
    stack = item.funcargs["stack"]
    item.funcargs["stack"] = dataclasses.replace(stack, subject=Watched(stack.subject, reached))
    with ExitStack() as watched:
        for part in sorted({variant.part for variant in all_mutants() + all_twins()} - {*CONTRACT}):
            watched.enter_context(mock.patch(part, watching(part, reached)))
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Enter in a law's record what it has reached; leave out of the report what nobody reads of thousands."""
    report = yield
    for entry in (value for name, value in report.user_properties if name == "law"):
        entry |= {"reached": sorted(item.stash.get(REACHED, ())), "wording": "", "counterexample": "", "command": ""}
        report.sections, report.longrepr = [], report.longrepr if report.skipped else None
    return report


class Watched:
    """A subject that notes which of its parts are taken."""

    def __init__(self, subject: Subject, reached: set[str]) -> None:
        self._subject, self._reached = subject, reached

    def __getattr__(self, name: str) -> Any:
        if name in CONTRACT:
            self._reached.add(name)
        return getattr(self._subject, name)


def watching(part: str, reached: set[str]) -> Any:
    """PyTorch's own part of this name, which notes that it is called."""
    own = pkgutil.resolve_name(part)
    call = own.__init__ if isinstance(own, type) else own

    @functools.wraps(call)
    def noting(*args: Any, **options: Any) -> Any:
        reached.add(part)
        return call(*args, **options)

    return type(own.__name__, (own,), {"__init__": noting}) if isinstance(own, type) else noting


def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which answers at once what it was asked before; its arguments are told apart by their bytes."""
    answers: OrderedDict[bytes, Any] = OrderedDict()

    @functools.wraps(function)
    def answer(*args: Any, **options: Any) -> Any:
        key = _digest((args, options))
        if key not in answers:
            answers[key] = function(*args, **options)
        answers.move_to_end(key)
        if len(answers) > ANSWERS:
            answers.popitem(last=False)
        return answers[key]

    return answer


def _digest(arguments: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)

    def take(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value))
        elif isinstance(value, dict):
            take(list(value.items()))
        elif isinstance(value, (list, tuple)):
            digest.update(f"{type(value)}{len(value)}".encode())
            for part in value:
                take(part)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            digest.update(type(value).__qualname__.encode())
            take(vars(value))
        elif isinstance(value, FunctionType):
            digest.update(value.__qualname__.encode())
            take([cell.cell_contents for cell in value.__closure__ or ()])
        elif isinstance(value, (str, int, float, NoneType)):
            digest.update(f"{type(value)}{value!r}".encode())
        else:
            raise TypeError(f"no digest of {value!r}: the oracle is asked in arrays and plain numbers")

    take(arguments)
    return digest.digest()


class Progress:
    """A bar of the cells that parallel workers have judged."""

    def __init__(self) -> None:
        self.terminal = os.fdopen(TERMINAL, "w")
        self.bar = tqdm(desc="judging", unit="cell", mininterval=1, file=self.terminal, disable=None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.bar.total = len(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            self.bar.update()

    def pytest_sessionfinish(self) -> None:
        self.bar.close()
        self.terminal.close()
