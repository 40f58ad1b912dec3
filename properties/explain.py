"""`lenet-properties explain`: what a law demands and rejects, the mutants that it rejects, and its known issues."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from itertools import groupby

from properties.diagnosis import mutant_table
from properties.known_issues import KNOWN_ISSUES
from properties.law_index import find, laws, short
from properties.laws import __name__ as laws_package

WIDTH = 100
NOT_FOUND = 2
"""The exit code if no law has the name."""


def main(arguments: list[str]) -> int:
    """Print what is known of the laws that match, or the titles of all; return 0, or 2 if no law matches."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties explain",
        description="What a law demands and rejects, the mutants that it rejects, and its known issues.",
        epilog="example: lenet-properties explain logits_agree_with_the_oracle",
    )
    parser.add_argument("law", nargs="?", help="a name or pattern; without one, the titles of all laws are printed")
    pattern = parser.parse_args(arguments).law
    if pattern is None:
        print("\n".join(titles()))
        return 0
    try:
        print("\n\n".join(explanation(law) for law in find(pattern)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_FOUND
    return 0


def titles() -> list[str]:
    """Return a line for each law, by chapter: its name and its title."""
    lines: list[str] = []
    for chapter, own in groupby(laws(), _chapter):
        lines += [""] * bool(lines) + [chapter, *(f"  {short(law)}: {_statement(law)[0]}" for law in own)]
    return lines


def explanation(law: str) -> str:
    """Return what is known of a law."""
    title, *rest = _statement(law)
    function = _function(law)
    marks = {mark.name for mark in getattr(_test(law), "pytestmark", [])}
    source, line = inspect.getsourcefile(function), inspect.getsourcelines(inspect.unwrap(function))[1]
    judged = "subjects and engines" if "engine" in marks else "subjects"
    lines = [f"{short(law)} ({_chapter(law)}; judges {judged})", "", title, *rest, "", *_rejected(law), *_issues(law)]
    lines += [f"source: {source}, line {line}", f"judge by it alone: lenet-properties judge --law {short(law)}"]
    return "\n".join(lines)


def _chapter(law: str) -> str:
    return short(laws()[law].path.stem).replace("_", " ")


def _test(law: str) -> Callable[..., None]:
    module = importlib.import_module(f"{laws_package}.{laws()[law].path.stem}")
    test: Callable[..., None] = getattr(module, law)
    return test


def _function(law: str) -> Callable[..., None]:
    """Return the law as it is written, which Hypothesis wraps."""
    function: Callable[..., None] = getattr(getattr(_test(law), "hypothesis", None), "inner_test", _test(law))
    return function


def _statement(law: str) -> list[str]:
    return inspect.cleandoc(_function(law).__doc__ or "").splitlines()


def _rejected(law: str) -> list[str]:
    """Return lines about the mutants that the law must reject, and the names of the others that violate it."""
    mutants = mutant_table()["mutants"]
    own = {spec: mutant for spec, mutant in mutants.items() if mutant["law"] == law}
    others = [_name(spec) for spec, mutant in mutants.items() if law in mutant["broken"] and spec not in own]
    lines = ["mutants, of which this law must reject each:"]
    for spec, mutant in own.items():
        unseen = [f" No law sees it in {dtype}: {reason}." for dtype, reason in mutant.get("unseen", {}).items()]
        lines += _item(f"{_name(spec)}: {mutant['statement']}{''.join(unseen)}")
    if others:
        text = f"also violated by {len(others)} of the other {len(mutants) - len(own)}: {', '.join(others)}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    return [*lines, ""]


def _name(spec: str) -> str:
    return spec.partition(":")[2]


def _item(text: str) -> list[str]:
    return textwrap.wrap(f"- {text}", WIDTH, initial_indent="  ", subsequent_indent="    ")


def _issues(law: str) -> list[str]:
    """Return lines about the known issues that make the law fail."""
    issues = [issue for issue in KNOWN_ISSUES if any(f.law == law for f in issue.expected_failures)]
    lines = ["known issues, whose symptoms are forgiven:"] if issues else ["no known issue"]
    for issue in issues:
        lines += _item(f"{issue.title} ({issue.reference}; {issue.stacks})")
    return [*lines, ""]
