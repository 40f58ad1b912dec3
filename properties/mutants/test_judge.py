"""The run over the catalogue: everything for which the laws could not be believed is found."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenet import oracle
from properties.mutants import Variant
from properties.mutants.__main__ import ROOT, kills, problems, select
from properties.mutants.plugin import _digest

MUTANT = Variant("properties.mutants.update:sign", "sgd_update", "It adds.", "test_update", "a category")
TWIN = Variant("properties.mutants.twins:foreach", "sgd_update", "All at once.")


def entry(subject: str, law: str, how: str = "", failed: int = 1) -> dict[str, Any]:
    """What a run records of one law with one subject; it holds where nothing says how it failed."""
    outcome = "failed" if how else "passed"
    return {"subject": subject, "law": law, "group": "update", "outcome": outcome, "how": how, "failed": failed} | {
        "message": "off by one"
    }


REJECTED = entry(MUTANT.spec, MUTANT.law, "assertion")


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([REJECTED], []),
        ([], ["sign survives", "test_update rejects no mutant"]),
        ([entry(MUTANT.spec, MUTANT.law, "crash")], ["sign survives; test_update: crash", "rejects no mutant"]),
        ([entry(MUTANT.spec, MUTANT.law, "flaky")], ["sign survives; test_update: flaky", "rejects no mutant"]),
        ([entry(MUTANT.spec, MUTANT.law, "timeout")], ["sign survives; test_update: timeout", "rejects no mutant"]),
        (
            [entry(MUTANT.spec, "test_other", "assertion")],
            ["sign is not rejected by test_update (passed), but by test_other", "test_update rejects no mutant"],
        ),
        ([REJECTED, entry(TWIN.spec, "test_update", "assertion")], ["foreach, a twin, is rejected by test_update"]),
        ([REJECTED, entry(TWIN.spec, "test_update", "crash")], ["foreach, a twin, is rejected by test_update (crash)"]),
    ],
)
def test_all_that_speaks_against_the_laws_is_a_problem(entries: list[Any], found: list[str]) -> None:
    lines = problems([MUTANT, TWIN], kills(entries), [entry("lenet", MUTANT.law)], {MUTANT.law})

    assert len(lines) == len(found)
    for line, part in zip(lines, found, strict=True):
        assert part in line


def test_a_law_that_rejects_twins_alone_is_of_no_use() -> None:
    lines = problems([MUTANT, TWIN], kills([REJECTED]), [], {MUTANT.law, "test_idle"})

    assert lines == ["test_idle rejects no mutant"]


def test_a_rejected_reference_is_a_problem() -> None:
    lines = problems([MUTANT], kills([REJECTED]), [entry("lenet", "test_update", "assertion")], {MUTANT.law})

    assert lines == ["the reference is rejected by test_update: off by one"]


def test_of_a_laws_forms_the_first_assertion_counts() -> None:
    forms = [entry("s", "law", "crash", 1), entry("s", "law", "assertion", 5), entry("s", "law", "assertion", 3)]

    assert kills(forms) == {"s": {"law": {"how": "assertion", "example": 3}}}


def test_variants_are_chosen_by_kind_and_by_name() -> None:
    assert {variant.kind for variant in select(["activation"])} == {"activation"}
    assert [variant.name for variant in select(["SecondReluMissing"])] == ["SecondReluMissing"]
    with pytest.raises(ValueError, match="nothing: no such mutant, twin or kind; the kinds are structure, "):
        select(["nothing"])


def test_questions_to_the_oracle_are_told_apart() -> None:
    ones, scaled = np.ones(3), partial(oracle.scaled, oracle.mse)
    questions = [ones, 2 * ones, ones.astype(np.float32), ones[None], [ones], {"a": ones}, {"b": ones}, (1, 2), (12,)]
    questions += [oracle.mse, oracle.cross_entropy, scaled(0.5), scaled(2.0), oracle.PRECISIONS["float32"], 0.5, None]

    questions += [oracle.Bounded(np.arange(n), np.ones(n)) for n in (9_000, 9_001)]
    questions += [oracle.Bounded(np.where(np.arange(9_000) == n, 1, 0), np.ones(9_000)) for n in (4_000, 5_000)]

    assert len({_digest(question) for question in questions}) == len(questions)
    assert _digest([scaled(0.5), {"a": ones.copy()}]) == _digest([scaled(0.5), {"a": ones}])


SUBJECTS = """
import torch
from lenet import Net

class Crashes(Net):
    def forward(self, images):
        raise RuntimeError("no such kernel")

class Asserts(Net):
    def forward(self, images):
        assert images.ndim == 3
        return images

class Moody(Net):
    calls = 0
    def forward(self, images):
        Moody.calls += 1
        return super().forward(images) + (Moody.calls == 3)

class Silent(Net):
    def forward(self, images):
        return super().forward(images[:, :1])
"""


@pytest.mark.parametrize(
    ("name", "law", "how"),
    [
        ("Crashes", "test_forward.py::test_logits_agree_with_the_oracle", "crash"),
        ("Asserts", "test_forward.py::test_logits_agree_with_the_oracle", "crash"),
        ("Moody", "test_forward.py::test_logits_agree_with_the_oracle", "flaky"),
        ("Silent", "test_errors.py::test_wrong_channel_count_raises", "assertion"),
    ],
)
def test_how_a_law_fails_is_recorded(tmp_path: Path, name: str, law: str, how: str) -> None:
    (tmp_path / "subjects.py").write_text(SUBJECTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        f"{ROOT}/properties/laws/{law}",
        "-p",
        "no:cacheprovider",
        "--device=cpu",
    ]
    options = ["--subject", f"{tmp_path}/subjects.py:{name}", "--dtype=float32", "--hypothesis-profile=kills"]

    subprocess.run([*command, *options, "--record", str(tmp_path)], cwd=ROOT, capture_output=True, check=False)

    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    assert how in [entry["how"] for entry in entries]
