"""The diagnosis of a rejected subject: from the laws that it violates to the most likely place of its fault."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from properties import diagnosis
from properties.diagnosis import (
    correct_diagnoses,
    diagnose,
    likely_place,
    most_specific_first,
    mutant_table,
    nearest,
    violations,
)

TABLE: dict[str, Any] = {
    "kinds": {"activation": "The activations.", "gradients": "The backward pass.", "update": "The update."},
    "mutants": {
        f"properties.mutants.{kind}:{name}": {
            "kind": kind,
            "dtype": "float32",
            "broken": dict.fromkeys(laws),
            "other_dtypes": {"bfloat16": dict.fromkeys(["backward"] if name == "Doubled" else [])},
        }
        for kind, name, laws in [
            ("activation", "ReluMissing", ["logits", "loss", "backward"]),
            ("activation", "Tanh", ["logits", "loss", "backward", "kink"]),
            ("gradients", "Doubled", ["backward", "accumulation"]),
            ("gradients", "Zeroed", ["backward"]),
            ("update", "Sign", ["step"]),
        ]
    },
    "laws": dict.fromkeys(["logits", "loss", "backward", "kink", "step", "accumulation"]),
}
CHAPTERS = {"logits": "forward", "loss": "forward", "backward": "gradients", "kink": "gradients", "step": "update"}


def entries(*violated: str, chapters: dict[str, str] = CHAPTERS) -> list[dict[str, Any]]:
    """The record of a run in which these laws were violated."""
    outcomes = {law: "failed" if law in violated else "passed" for law in chapters}
    return [
        {"law": law, "chapter": chapters[law], "outcome": outcome, "message": ""} for law, outcome in outcomes.items()
    ]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the table of all mutants by one of five."""
    monkeypatch.setattr(diagnosis, "mutant_table", lambda: TABLE)


@pytest.mark.usefixtures("small")
def test_likely_place_is_that_of_the_most_similar_mutant() -> None:
    assert diagnose(entries("logits", "loss", "backward", "kink")).place == "The activations."
    assert diagnose(entries("backward")).place == "The backward pass."
    assert diagnose(entries("step", "backward")).place == "The update."  # which fewer mutants violate


@pytest.mark.usefixtures("small")
def test_mutant_with_the_same_violations_is_the_nearest() -> None:
    assert diagnose(entries("logits", "loss", "backward")).nearest[0] == ("activation:ReluMissing", 1.0)


@pytest.mark.usefixtures("small")
def test_laws_that_were_not_run_do_not_affect_similarity() -> None:
    few = {law: chapter for law, chapter in CHAPTERS.items() if law != "logits"}

    near = diagnose(entries("loss", "backward", chapters=few)).nearest

    assert near[0] == ("activation:ReluMissing", 1.0)


@pytest.mark.usefixtures("small")
def test_violations_unlike_those_of_any_mutant_have_no_place() -> None:
    found = diagnose(entries("unknown", chapters=CHAPTERS | {"unknown": "side_effects"}))

    assert (found.place, found.nearest) == ("", [])
    assert found.lines("mine.py")[0] == "mine.py violates laws in side_effects (1 of 1)"


@pytest.mark.usefixtures("small")
def test_diagnosis_lists_chapters_with_and_without_violations() -> None:
    lines = diagnose(entries("backward", "kink")).lines("mine.py:Net")

    assert lines[0] == "mine.py:Net violates laws in gradients (2 of 2)"
    assert lines[1] == "  violates no law in forward, update"
    assert lines[2].startswith("  most likely place of the fault: ")
    assert lines[3].startswith("  most similar mutants (similarity; 100% = the same violated laws): ")


@pytest.mark.usefixtures("small")
def test_diagnosis_of_some_laws_says_on_how_many_it_rests() -> None:
    skipped = {"law": "accumulation", "chapter": "accumulation", "outcome": "skipped", "message": ""}
    stopped = entries("kink", "step")
    stopped[-2]["message"] = "RuntimeError: not judged: the GPU no longer works"

    assert "rests on" not in diagnose([*entries("backward"), skipped]).lines("mine")[-1]
    assert diagnose(entries("backward")[:3]).lines("mine")[-1] == (
        "  the diagnosis rests on 3 of 6 laws; it is reliable only if all were judged"
    )
    found = diagnose(stopped)
    assert found.violated == {"forward": (0, 2), "gradients": (0, 1), "update": (1, 1)}
    assert found.run == 4


@pytest.mark.usefixtures("small")
def test_laws_that_fewest_mutants_violate_are_the_most_specific() -> None:
    assert most_specific_first(["backward", "loss", "step", "logits", "new", "loss"]) == [
        *("new", "step", "logits", "loss", "backward")
    ]


def test_similarity_is_one_for_equal_violations_and_decreases_with_differences() -> None:
    near = dict(nearest({"logits", "loss", "backward"}, violations(TABLE)))

    assert near["properties.mutants.activation:ReluMissing"] == 1.0
    assert 0 < near["properties.mutants.gradients:Zeroed"] < near["properties.mutants.activation:Tanh"] < 1
    assert "properties.mutants.update:Sign" not in near


def test_most_frequent_place_wins_among_equally_similar_mutants() -> None:
    near = [(f"properties.mutants.{name}", 0.5) for name in ("update:Sign", "gradients:Doubled", "gradients:Zeroed")]

    assert likely_place(near, TABLE) == "The backward pass."


def test_mutants_are_diagnosed_from_the_others() -> None:
    assert correct_diagnoses(TABLE) == (4, 5)  # no other mutant violates a law that Sign violates


def test_diagnosis_beats_naming_the_most_frequent_kind() -> None:
    table = mutant_table()

    violated = {law for row in table["mutants"].values() for law in row["broken"]}
    assert violated <= table["laws"].keys()
    assert {row["kind"] for row in table["mutants"].values()} == table["kinds"].keys()
    most_frequent = Counter(row["kind"] for row in table["mutants"].values()).most_common(1)[0][1]
    assert correct_diagnoses(table)[0] > most_frequent
