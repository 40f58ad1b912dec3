"""
The pytest plugin that judges the catalogue: it selects the subjects of each law and caches the oracle's answers.

`properties.mutants.__main__` loads it with `-p properties.mutants.plugin`.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tqdm import tqdm

from lenet.subject import CONTRACT, Subject
from properties.caching import cache_oracle
from properties.mutants import all_mutants, all_twins

TERMINAL = os.dup(2)
"""A copy of the stderr file descriptor from before pytest captures it."""

SUBJECTS_BY_LAW = pytest.StashKey[dict[str, list[str]]]()
NO_STACK = pytest.param(None, id="none")
PARTS = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--subjects-by-law", type=Path, help="a JSON file with the subjects that each law judges")
    parser.addoption("--first-parametrization", action="store_true", help="judge only the first parameters of each law")
    parser.addoption("--record-parts", action="store_true", help="record the parts of a subject that each law uses")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("subjects_by_law")
    config.stash[SUBJECTS_BY_LAW] = json.loads(path.read_text()) if path else {}
    if hasattr(config, "workerinput"):
        cache_oracle()
    else:
        config.pluginmanager.register(Progress())


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each law by its own subjects only; all of them would be a hundred thousand items to deselect."""
    if subjects_by_law := metafunc.config.stash[SUBJECTS_BY_LAW]:
        parametrize, specs = metafunc.parametrize, subjects_by_law.get(metafunc.function.__name__, ())

        def choose(names: Any, values: Any, **options: Any) -> None:
            if names == "stack":
                values = [value for value in values if value.values[0].subject.spec in specs] or [NO_STACK]
            parametrize(names, values, **options)

        metafunc.parametrize = choose


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remove the laws without a subject and, with --first-parametrization, all but the first parameters of each law."""
    items[:] = [item for item in items if item.callspec.params["stack"] is not None]
    if config.getoption("first_parametrization"):
        items[:] = {(item.originalname, item.callspec.params["stack"]): item for item in reversed(items)}.values()
        items.reverse()
    gc.freeze()  # thousands of items that garbage collection can ignore


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Set random states before each law and clear caches after it, so that no subject affects the next one."""
    torch.manual_seed(0)
    np.random.seed(0)
    result = yield
    torch.clear_autocast_cache()
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Iterator[None]:
    """Record which parts the law uses, of all parts that differ in some variant."""
    if not item.config.getoption("record_parts"):
        return (yield)
    item.stash[PARTS] = used = set()
    stack = item.funcargs["stack"]
    item.funcargs["stack"] = dataclasses.replace(stack, subject=RecordingSubject(stack.subject, used))
    with ExitStack() as patches:
        for part in sorted({variant.part for variant in all_mutants() + all_twins()} - {*CONTRACT}):
            patches.enter_context(mock.patch(part, recording(part, used)))
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the parts that a law uses to its entry; drop the texts, which nobody reads for thousands of entries."""
    report = yield
    for entry in (value for name, value in report.user_properties if name == "law"):
        entry |= {"parts": sorted(item.stash.get(PARTS, ())), "statement": "", "counterexample": "", "command": ""}
        report.sections, report.longrepr = [], report.longrepr if report.skipped else None
    return report


class RecordingSubject:
    """A subject that adds the names of its parts to `used` when they are read."""

    def __init__(self, subject: Subject, used: set[str]) -> None:
        self._subject, self._used = subject, used

    def __getattr__(self, name: str) -> Any:
        if name in CONTRACT:
            self._used.add(name)
        return getattr(self._subject, name)


def recording(part: str, used: set[str]) -> Any:
    """Return PyTorch's function or class of this name, which adds its name to `used` when it is called."""
    own = pkgutil.resolve_name(part)
    call = own.__init__ if isinstance(own, type) else own

    @functools.wraps(call)
    def record_and_call(*args: Any, **options: Any) -> Any:
        used.add(part)
        return call(*args, **options)

    return type(own.__name__, (own,), {"__init__": record_and_call}) if isinstance(own, type) else record_and_call


class Progress:
    """A progress bar of the laws and subjects that parallel workers have judged."""

    def __init__(self) -> None:
        self.terminal = os.fdopen(TERMINAL, "w")
        self.bar = tqdm(desc="judging", unit="verdict", mininterval=1, file=self.terminal, disable=None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.bar.total = len(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.skipped:
            self.bar.update()

    def pytest_sessionfinish(self) -> None:
        self.bar.close()
        self.terminal.close()
