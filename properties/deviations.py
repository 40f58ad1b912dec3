"""
Known deviations: failures that the authors of a backend, an engine or a network know, in a file (`--known FILE`).

They are treated as known issues are (`properties.known_issues`): each forgives its symptoms alone, on the stacks that
it names, and the run fails once it no longer occurs. The README has the format of the file, which is TOML.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from lenet.oracle import PRECISIONS, THRESHOLD
from properties import arguments, symptoms
from properties.known_issues import ExpectedFailure, KnownIssue, StackFilter
from properties.law_index import laws
from properties.stack import Stack, dtype_name
from properties.symptoms import Elements, Named, Symptom, Wrong

PREDICATES: dict[str, Elements] = {
    predicate.__name__: predicate
    for predicate in (
        symptoms.nan,
        symptoms.infinite,
        symptoms.zero,
        symptoms.subnormal,
        symptoms.too_small,
        symptoms.finite,
        symptoms.not_infinite,
        symptoms.every,
        symptoms.in_full_blocks,
    )
}
"""The values of `elements`: the predicates that depend on no argument of a particular law. The most specific first."""

KEYS = ("law", "reason", "link", "stacks", "counterexample", "strict", "symptoms")
STACK_KEYS = ("subject", "engine", "device", "dtype", "torch")
SYMPTOM_KEYS = (("tensors", "elements", "at_most"), ("error", "message"))


class DeviationError(ValueError):
    """The file of known deviations is wrong; the message is one line that names the file and the place."""


@dataclass(frozen=True)
class Deviation(KnownIssue):
    """A failure that the user knows. Its title is the user's reason, its reference the user's link, or empty."""

    place: str = ""  # the file, and the deviation's number in it
    strict: bool = True  # whether the run fails once it no longer occurs

    def must_occur(self, stack: Stack) -> bool:
        """Whether it must occur on every stack that it names."""
        return self.strict

    def advice(self, failure: ExpectedFailure) -> str:
        """Return the message of the error that it no longer occurs."""
        return f"{self.gone()}; the law holds on its counterexample {dict(failure.counterexample)}"

    def gone(self) -> str:
        """Return one line that says that it no longer occurs, and what to do."""
        law = self.expected_failures[0].law
        return f"a known deviation no longer occurs, remove it: {self.place}: {law}: {self.title}"


DEVIATIONS = pytest.StashKey[list[Deviation]]()
"""The known deviations of a run."""


class _At:
    """A place in the file, which an error names."""

    def __init__(self, place: str) -> None:
        self.place = place

    def fail(self, problem: str) -> NoReturn:
        raise DeviationError(" ".join(f"{self.place}: {problem}".split()))

    def table(self, value: Any, keys: Iterable[str]) -> dict[str, Any]:
        """Return the value, a table with some of these keys."""
        if not isinstance(value, dict):
            self.fail(f"{value!r} is not a table")
        for key in value:
            if key not in keys:
                self.fail(f"unknown key {key!r}; the keys are {', '.join(keys)}")
        return value

    def text(self, table: Mapping[str, Any], key: str, default: str | None = None) -> str:
        """Return the text of a key."""
        value = table.get(key, default)
        if value is None:
            self.fail(f"{key} is missing")
        if not isinstance(value, str):
            self.fail(f"{key} = {value!r}: not a string")
        return value

    def pattern(self, table: Mapping[str, Any], key: str, default: str | None = None) -> str:
        """Return the regular expression of a key."""
        pattern = self.text(table, key, default)
        try:
            re.compile(pattern)
        except re.error as error:
            self.fail(f"{key} = {pattern!r}: not a regular expression: {error}")
        return pattern

    def texts(self, table: Mapping[str, Any], key: str) -> list[str] | None:
        """Return the texts of a key, one or a list; None if the key is missing."""
        if key not in table:
            return None
        values = table[key] if isinstance(table[key], list) else [table[key]]
        if not values or not all(isinstance(value, str) for value in values):
            self.fail(f"{key} = {table[key]!r}: not a string or a list of strings")
        return values


def load(path: Path) -> list[Deviation]:
    """Return the deviations in the file; raises DeviationError."""
    at = _At(str(path))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        at.fail(str(error.strerror))
    except ValueError as error:  # also of bytes that are not UTF-8
        at.fail(f"not TOML: {error}")
    listed = at.table(content, ("deviation",)).get("deviation", [])
    if not isinstance(listed, list) or not listed:
        at.fail("has no deviation, a table [[deviation]]")
    return [_deviation(_At(f"{path}: deviation {number}"), value) for number, value in enumerate(listed, 1)]


def _deviation(at: _At, value: Any) -> Deviation:
    table = at.table(value, KEYS)
    law = law_name(at.text(table, "law"))
    if law is None:
        at.fail(f"law = {table['law']!r}: no law of this name")
    listed = table.get("symptoms")
    if not isinstance(listed, list) or not listed:
        at.fail("has no symptom, a table [[deviation.symptoms]]")
    strict = table.get("strict", True)
    if not isinstance(strict, bool):
        at.fail(f"strict = {strict!r}: not true or false")
    counterexample = _counterexample(at, table, law)
    failure = ExpectedFailure(
        law,
        counterexample or {},
        lambda drawn: True,
        tuple(_symptom(_At(f"{at.place}: symptom {number}"), symptom) for number, symptom in enumerate(listed, 1)),
        at_random=counterexample is None,
        own=True,
    )
    reason = " ".join(at.text(table, "reason").split())
    if not reason:
        at.fail("reason is empty")
    affects = _stacks(_At(f"{at.place}: stacks"), table.get("stacks", {}))
    return Deviation(reason, at.text(table, "link", ""), affects, (failure,), (0, 0), place=at.place, strict=strict)


def law_name(name: str) -> str | None:
    """Return the name of a law's function by its name with or without `test_`; None if there is no such law."""
    full = name if name.startswith("test_") else f"test_{name}"
    return full if full in laws() else None


def _counterexample(at: _At, table: Mapping[str, Any], law: str) -> dict[str, Any] | None:
    if "counterexample" not in table:
        return None
    try:
        found = arguments.parse(at.text(table, "counterexample"))
    except ValueError as error:
        at.fail(f"counterexample: {error}")
    if found.keys() != (expected := laws()[law].arguments):
        at.fail(f"counterexample: has {_names(found)}; the law has {_names(expected)}")
    return found


def _names(names: Iterable[str]) -> str:
    return f"the arguments {', '.join(sorted(names))}" if names else "no arguments"


def _symptom(at: _At, value: Any) -> Symptom:
    kind = next((keys for keys in SYMPTOM_KEYS if isinstance(value, dict) and keys[0] in value), None)
    if kind is None:
        at.fail("has neither tensors nor error")
    table = at.table(value, kind)
    if kind[0] == "error":
        return Named(at.text(table, "error"), at.pattern(table, "message", ""))
    elements, at_most = at.text(table, "elements", "every"), table.get("at_most")
    if elements not in PREDICATES:
        at.fail(f"elements = {elements!r}: not one of {', '.join(PREDICATES)}")
    if at_most is not None and not (type(at_most) in (int, float) and at_most > THRESHOLD):
        at.fail(f"at_most = {at_most!r}: not a number of budgets above {THRESHOLD:g}, which all may have")
    return Wrong(at.pattern(table, "tensors"), PREDICATES[elements], at_most)


def _stacks(at: _At, value: Any) -> StackFilter:
    table = at.table(value, STACK_KEYS)
    conditions: list[Callable[[Stack], bool]] = []
    for key in STACK_KEYS:
        if (values := at.texts(table, key)) is None:
            continue
        if key == "dtype":
            for unknown in (name for name in values if name not in PRECISIONS):
                at.fail(f"dtype = {unknown!r}: not one of {', '.join(PRECISIONS)}")
        conditions.append(_condition(at, key, values))
    return StackFilter(str(table), lambda stack: all(condition(stack) for condition in conditions))


def _condition(at: _At, key: str, values: list[str]) -> Callable[[Stack], bool]:
    match key:
        case "subject":
            return lambda stack: stack.subject.spec in values
        case "engine":  # "" for a stack without an engine
            return lambda stack: (stack.engine.name if stack.engine else "") in values
        case "device":
            return lambda stack: bool({str(stack.device), stack.device.type} & {*values})
        case "dtype":
            return lambda stack: dtype_name(stack.dtype) in values
    specifiers = [_specifier(at, value) for value in values]
    return lambda stack: any(one.contains(torch.__version__, prereleases=True) for one in specifiers)


def _specifier(at: _At, value: str) -> SpecifierSet:
    try:
        return SpecifierSet(value)
    except InvalidSpecifier:
        at.fail(f"torch = {value!r}: not a version specifier, such as '>=2.11,<2.14'")
