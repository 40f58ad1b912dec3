"""A rejected subject's diagnosis: from the laws that it broke to the likeliest place of its fault."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from properties import diagnosis
from properties.diagnosis import diagnose, known, likeliest, nearest, patterns_of, told_right

TABLE: dict[str, Any] = {
    "kinds": {"activation": "The activations.", "gradients": "The backward pass.", "update": "The update."},
    "mutants": {
        f"properties.mutants.{kind}:{name}": {"kind": kind, "broken": dict.fromkeys(laws)}
        for kind, name, laws in [
            ("activation", "ReluMissing", ["logits", "loss", "backward"]),
            ("activation", "Tanh", ["logits", "loss", "backward", "kink"]),
            ("gradients", "Doubled", ["backward", "accumulation"]),
            ("gradients", "Zeroed", ["backward"]),
            ("update", "Sign", ["step"]),
        ]
    },
}
GROUPS = {"logits": "forward", "loss": "forward", "backward": "gradients", "kink": "gradients", "step": "update"}


def entries(*broken: str, groups: dict[str, str] = GROUPS) -> list[dict[str, Any]]:
    """The record of a run in which these laws were broken."""
    outcomes = {law: "failed" if law in broken else "passed" for law in groups}
    return [{"law": law, "group": groups[law], "outcome": outcome} for law, outcome in outcomes.items()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of five mutants in place of the kept one."""
    monkeypatch.setattr(diagnosis, "known", lambda: TABLE)


@pytest.mark.usefixtures("small")
def test_the_likeliest_place_is_that_of_the_nearest_mutant() -> None:
    assert diagnose(entries("logits", "loss", "backward", "kink")).place == "The activations."
    assert diagnose(entries("backward")).place == "The backward pass."
    assert diagnose(entries("step", "backward")).place == "The update."  # which fewer mutants break


@pytest.mark.usefixtures("small")
def test_what_a_run_does_not_judge_speaks_neither_for_a_mutant_nor_against() -> None:
    few = {law: group for law, group in GROUPS.items() if law != "logits"}

    near = diagnose(entries("loss", "backward", groups=few)).nearest

    assert near[0] == ("activation:ReluMissing", 1.0)


@pytest.mark.usefixtures("small")
def test_a_pattern_unlike_any_mutants_has_no_place() -> None:
    found = diagnose(entries("unheard", groups=GROUPS | {"unheard": "purity"}))

    assert (found.place, found.nearest) == ("", [])
    assert found.lines("mine.py")[0] == "mine.py breaks laws about purity (1 of 1)"


@pytest.mark.usefixtures("small")
def test_a_diagnosis_says_what_broke_and_what_held() -> None:
    lines = diagnose(entries("backward", "kink")).lines("mine.py:Net")

    assert lines[0] == "mine.py:Net breaks laws about gradients (2 of 2)"
    assert lines[1] == "  it keeps all about forward, update"
    assert lines[2].startswith("  likeliest place of the fault: ")
    assert lines[3].startswith("  mutants that break the most alike: ")


def test_nearness_is_one_for_the_same_and_falls_with_what_differs() -> None:
    near = dict(nearest({"logits", "loss", "backward"}, patterns_of(TABLE)))

    assert near["properties.mutants.activation:ReluMissing"] == 1.0
    assert 0 < near["properties.mutants.gradients:Zeroed"] < near["properties.mutants.activation:Tanh"] < 1
    assert "properties.mutants.update:Sign" not in near


def test_of_equally_near_mutants_the_most_decide() -> None:
    near = [(f"properties.mutants.{name}", 0.5) for name in ("update:Sign", "gradients:Doubled", "gradients:Zeroed")]

    assert likeliest(near, TABLE) == "The backward pass."


def test_mutants_are_told_by_the_others() -> None:
    assert told_right(TABLE) == 4  # of Sign's laws no other mutant breaks any


def test_the_kept_table_is_of_every_law_and_kind() -> None:
    table = known()

    broken = {law for row in table["mutants"].values() for law in row["broken"]}
    assert broken <= table["laws"].keys()
    assert {row["kind"] for row in table["mutants"].values()} == table["kinds"].keys()
    commonest = Counter(row["kind"] for row in table["mutants"].values()).most_common(1)[0][1]
    assert told_right(table) > commonest, "to name the commonest kind, whatever broke, would do as well"
