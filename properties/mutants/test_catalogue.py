"""The catalogue of mutants and twins is complete and loadable, and the numbers in README.md are up to date."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from statistics import median

import pytest

from lenet import subject
from lenet.oracle import PRECISIONS
from lenet.subject import CONTRACT
from properties import mutants as catalogue
from properties.diagnosis import correct_diagnoses, mutant_table, violations
from properties.mutants import BLIND, KINDS, Category, Variant, all_mutants, all_twins

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
"""The names of all laws: the tests that judge a stack."""


@VARIANTS
def test_variant_differs_from_reference_only_in_its_parts(variant: Variant) -> None:
    reference, loaded = subject.load("lenet"), subject.load(variant.spec)

    different = {part for part in CONTRACT if getattr(loaded, part) is not getattr(reference, part)}
    assert different | loaded.replaces.keys() == variant.parts


@VARIANTS
def test_statement_is_one_or_two_sentences(variant: Variant) -> None:
    statement = " ".join(variant.statement.split())

    assert 1 <= len(re.findall(r"[.!?](?= |$)", statement)) <= 2
    assert re.search(r"[.!?]$", statement)
    assert "ejected" not in statement, "the decorator names the law that rejects it"


@pytest.mark.parametrize("mutant", all_mutants(), ids=lambda mutant: f"{mutant.kind}:{mutant.name}")
def test_mutant_names_a_law_a_category_and_a_dtype(mutant: Variant) -> None:
    assert mutant.law in LAWS
    assert mutant.category in set(Category)
    assert mutant.dtype in PRECISIONS
    assert mutant.unseen.keys() <= PRECISIONS.keys() - {mutant.dtype}
    assert all(re.fullmatch(r"\S.*[^.]", reason) for reason in mutant.unseen.values()), "a phrase, without a stop"


def test_laws_without_a_kill_in_a_dtype_have_a_reason() -> None:
    assert BLIND.keys() <= LAWS
    assert all(reasons and reasons.keys() <= PRECISIONS.keys() for reasons in BLIND.values())


@pytest.mark.parametrize("twin", all_twins(), ids=lambda twin: twin.name)
def test_twin_names_no_law(twin: Variant) -> None:
    assert (twin.law, twin.category) == ("", "")


def test_names_are_unique_within_a_kind() -> None:
    assert [spec for spec, count in Counter(variant.spec for variant in EVERYTHING).items() if count > 1] == []


@VARIANTS
def test_name_is_in_pascal_case_or_snake_case(variant: Variant) -> None:
    assert re.fullmatch(r"[A-Z][a-zA-Z0-9]*|[a-z][a-z0-9_]*", variant.name)


def test_every_kind_has_mutants_and_every_module_is_a_kind() -> None:
    modules = Path(catalogue.__file__).parent.glob("*.py")

    assert {mutant.kind for mutant in all_mutants()} == set(KINDS)
    assert {path.stem for path in modules if "\n@mutant(" in path.read_text()} == set(KINDS)


def test_catalogue_has_at_least_120_mutants_and_20_twins() -> None:
    assert len(all_mutants()) >= 120
    assert len(all_twins()) >= 20


def test_table_contains_all_mutants_twins_and_laws() -> None:
    table = mutant_table()

    assert table["mutants"].keys() == {mutant.spec for mutant in all_mutants()}
    assert table["twins"].keys() == {twin.spec for twin in all_twins()}
    assert table["laws"].keys() == LAWS


def test_readme_states_the_numbers_of_the_table() -> None:
    table, readme = mutant_table(), Path(catalogue.__file__).with_name("README.md").read_text()
    mutants, total, killed = table["mutants"].values(), Counter[str](), Counter[str]()
    for mutant in mutants:
        total[mutant["kind"]] += 1
        killed[mutant["kind"]] += mutant["broken"].get(mutant["law"], {}).get("failure_kind") == "assertion"
    examples = [mutant["broken"][mutant["law"]]["example"] for mutant in mutants]

    rows = re.findall(r"^\| \[(\w+)\]\(\1\.py\) \| .* \| (\d+) of (\d+) \|$", readme, re.MULTILINE)
    assert rows == [(kind, str(killed[kind]), str(total[kind])) for kind in KINDS]
    for dtype, laws in table["judged"].items():
        unseen = sum(dtype in mutant["unseen"] for mutant in mutants)
        assert f"| {dtype} | {len(laws)} | {len(violations(table, dtype))} | {unseen} |" in readme
    counts = {(str(len(table[group])), group) for group in ("laws", "mutants", "twins")}
    assert set(re.findall(r"(\d+) (laws|mutants|twins)", readme)) == counts
    assert "correct for {} of {} mutants".format(*correct_diagnoses(table)) in readme
    assert f"after a median of {median(examples):g} example, and after {max(examples)} in the worst case." in readme
