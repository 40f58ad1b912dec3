"""Mutations of the source: which are made, which are left out, and how survivors are reported and explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="installed by `tox run -e source-mutants` alone")

from properties.mutants import source
from properties.mutants.source import Judgement, Mutation, Outcome

SUBTRACTED = Mutation("exact_sgd", "core/ReplaceBinaryOperator_Sub_Add", 0)


def test_every_module_of_lenet_is_mutated_and_its_test_files_exist() -> None:
    modules = {path.stem for path in Path(source.ROOT, "lenet").glob("*.py") if not path.stem.startswith(("test", "_"))}

    assert modules == source.LAWS.keys()
    assert all(Path(source.ROOT, test).is_file() for module in modules for test in source.tests(module))


def test_symbols_are_replaced_only_by_their_nearest_relatives() -> None:
    names = {name.rpartition("/")[2] for name in source.operators()}

    assert {"NumberReplacer", "RemoveDecorator", "ReplaceBinaryOperator_Add_Sub"} <= names
    assert "ReplaceBinaryOperator_Add_BitXor" not in names
    related = [f"{family}_{change}" for family, changes in source.RELATIVES.items() for change in changes.split()]
    assert set(related) <= names


def test_mutation_is_one_change_of_the_source() -> None:
    line, before, after = source.changed_lines(source._source("exact_sgd"), source.mutated(SUBTRACTED))

    assert SUBTRACTED in source.mutations("exact_sgd")
    assert before == re.sub(r"\s+", " ", source._source("exact_sgd").splitlines()[line - 1]).strip()
    expression = "return np.abs(difference + (remainder - self.low))"
    assert (before, after) == (expression, expression.replace("-", "+"))


@pytest.mark.parametrize(
    ("after", "changed"),
    [
        ("def f(x: int | None) -> int:\n    y: int = 1\n    return x - y\n", True),
        ("def f(x: int & None) -> int:\n    y: int = 1\n    return x + y\n", False),
        ("def f(x: int | None) -> str:\n    y: str = 1\n    return x + y\n", False),
        ("def f(x: int | None) -> int:\n    y: int = 1\n    return x + y + \n", False),
    ],
)
def test_changed_type_hints_and_syntax_errors_do_not_change_the_program(after: str, changed: bool) -> None:
    before = "def f(x: int | None) -> int:\n    y: int = 1\n    return x + y\n"

    assert source.changes_program(before, after) == changed


def test_changed_lines_have_no_indentation_or_line_breaks() -> None:
    assert source.changed_lines("a\n  b(\n    1,\n  )\nc", "a\n  b(\n    2,\n  )\nc") == (3, "1,", "2,")
    assert source.changed_lines("a\n  @b\nc", "a\nc") == (2, "@b", "")


def test_every_explanation_is_a_sentence_about_a_line_of_the_source() -> None:
    for (module, before, after), why in source.explained().items():
        assert before in source._one_line(source._source(module).splitlines())
        assert before != after
        assert why.endswith(".")


def test_survivor_and_unused_explanation_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        source, "explained", lambda: {("exact_sgd", "x + 1", "x - 1"): "None.", ("net", "y", "z"): "None."}
    )
    judged = [
        Judgement(SUBTRACTED, 7, "a - b", "a + b", Outcome.SURVIVED, "", 1.0),
        Judgement(SUBTRACTED, 9, "c - d", "c + d", Outcome.KILLED, "test", 1.0),
        Judgement(SUBTRACTED, 9, "d: A | B", "d: A & B", Outcome.EQUIVALENT, "", 1.0),
    ]

    assert source.problems(judged) == [
        "lenet/exact_sgd.py:7 survives core/ReplaceBinaryOperator_Sub_Add: a - b  ->  a + b",
        "explained but not made: exact_sgd: x + 1  ->  x - 1",
    ]
    assert source.summary(judged)[1].split() == ["exact_sgd", "2", "1", "0", "0", "1"]
