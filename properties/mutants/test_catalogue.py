"""The catalogue of mutants and twins: whole, loadable, and in plain words."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from lenet import subject
from lenet.oracle import PRECISIONS
from lenet.subject import CONTRACT
from properties import mutants as catalogue
from properties.mutants import KINDS, Category, Variant, all_mutants, all_twins

EVERYTHING = all_mutants() + all_twins()
VARIANTS = pytest.mark.parametrize("variant", EVERYTHING, ids=lambda variant: f"{variant.kind}:{variant.name}")
LAWS = {
    function.name
    for path in sorted(Path(catalogue.__file__).parents[1].glob("laws/test_*.py"))
    for function in ast.parse(path.read_text()).body
    if isinstance(function, ast.FunctionDef)
    and function.name.startswith("test_")
    and "stack" in [argument.arg for argument in function.args.args]
}
"""Every test that judges a stack."""


@VARIANTS
def test_a_variant_is_a_subject(variant: Variant) -> None:
    found = subject.load(variant.spec)

    other = [part for part in CONTRACT if getattr(found, part) is not getattr(subject.load("lenet"), part)]
    assert set(other) | found.replaces.keys() == variant.parts


@VARIANTS
def test_a_variant_is_told_in_one_or_two_sentences(variant: Variant) -> None:
    words = " ".join(variant.wording.split())

    assert 1 <= len(re.findall(r"[.!?](?= |$)", words)) <= 2
    assert re.search(r"[.!?]$", words)
    assert "ejected" not in words, "the law that rejects it is named beside it"


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda mutant: f"{mutant.kind}:{mutant.name}")
def test_a_mutant_names_a_law_a_category_and_a_dtype(mutant: Variant) -> None:
    assert mutant.law in LAWS
    assert mutant.category in set(Category)
    assert mutant.dtype in PRECISIONS


@pytest.mark.parametrize("twin", all_twins(), ids=lambda twin: twin.name)
def test_a_twin_names_no_law(twin: Variant) -> None:
    assert (twin.law, twin.category) == ("", "")


def test_no_two_of_a_kind_have_the_same_name() -> None:
    assert [spec for spec, count in Counter(variant.spec for variant in EVERYTHING).items() if count > 1] == []


@VARIANTS
def test_a_name_is_written_as_that_of_a_class_or_function(variant: Variant) -> None:
    assert re.fullmatch(r"[A-Z][a-zA-Z0-9]*|[a-z][a-z0-9_]*", variant.name)


def test_every_kind_has_mutants_and_every_module_is_a_kind() -> None:
    modules = Path(catalogue.__file__).parent.glob("*.py")

    assert {mutant.kind for mutant in all_mutants()} == set(KINDS)
    assert {path.stem for path in modules if "\n@mutant(" in path.read_text()} == set(KINDS)


def test_the_catalogue_is_large_enough_to_judge_a_judge() -> None:
    assert len(all_mutants()) >= 120
    assert len(all_twins()) >= 20
