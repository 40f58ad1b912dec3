"""Judging the catalogue: surviving mutants, rejected twins and laws without a kill are reported as problems."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenet import oracle
from lenet.processes import descendants
from lenet.testing import holds_soon, is_running
from properties.caching import digest_of
from properties.mutants import Variant, __main__
from properties.mutants.__main__ import (
    ROOT,
    by_dtype,
    judge_by_all_laws,
    judge_by_named_laws,
    kills,
    main,
    problems,
    reasons_of_skips,
    select,
    with_reasons,
)

MUTANT = Variant("properties.mutants.update:sign", "sgd_update", "It adds.", "test_update", "a category")
TWIN = Variant("properties.mutants.twins:foreach", "sgd_update", "One call updates all parameters.")


def entry(
    subject: str, law: str, failure_kind: str = "", first_failure: int = 1, dtype: str = "float32"
) -> dict[str, Any]:
    """Return a record's entry for one law and one subject; the law passed if `failure_kind` is empty."""
    outcome = "failed" if failure_kind else "passed"
    failure = {"failure_kind": failure_kind, "first_failure": first_failure, "message": "off by one"}
    stack = f"{subject} on cpu in {dtype}"
    return {"subject": subject, "stack": stack, "law": law, "chapter": "update", "outcome": outcome} | failure


REJECTED = entry(MUTANT.spec, MUTANT.law, "assertion")


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([REJECTED], []),
        ([], ["sign survives", "test_update rejects no mutant in float32"]),
        ([entry(MUTANT.spec, MUTANT.law, "crash")], ["sign survives; test_update: crash", "rejects no mutant"]),
        ([entry(MUTANT.spec, MUTANT.law, "flaky")], ["sign survives; test_update: flaky", "rejects no mutant"]),
        ([entry(MUTANT.spec, MUTANT.law, "timeout")], ["sign survives; test_update: timeout", "rejects no mutant"]),
        (
            [entry(MUTANT.spec, "test_other", "assertion")],
            ["sign is not rejected by test_update (passed), but by test_other", "test_update rejects no mutant"],
        ),
        ([REJECTED, entry(TWIN.spec, "test_update", "assertion")], ["foreach, a twin, is rejected by test_update"]),
        (
            [REJECTED, entry(TWIN.spec, "test_update", "crash")],
            ["foreach, a twin, is rejected by test_update in float32 (crash)"],
        ),
    ],
)
def test_surviving_mutants_rejected_twins_and_idle_laws_are_problems(entries: list[Any], found: list[str]) -> None:
    lines = problems([MUTANT, TWIN], by_dtype(entries), [entry("lenet", MUTANT.law)], {"float32": {MUTANT.law}})

    assert len(lines) == len(found)
    for line, part in zip(lines, found, strict=True):
        assert part in line


@pytest.mark.parametrize(
    "name", ["properties.mutants.structure:Fc1LastUnitIsZero", "structure:Fc1LastUnitIsZero", "Fc1LastUnitIsZero"]
)
def test_mutant_is_selected_by_every_name_that_a_diagnosis_or_the_table_prints(name: str) -> None:
    assert [variant.spec for variant in select([name])] == ["properties.mutants.structure:Fc1LastUnitIsZero"]


def test_output_that_cannot_be_written_is_an_error_before_anything_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("properties.mutants.__main__.judge", lambda *arguments: pytest.fail("judged"))

    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(tmp_path)])

    assert f"error: --output {tmp_path}: not a file that can be written" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_run_of_the_laws_ends_with_the_judge_of_mutants(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "lenet_properties", "mutants", "Fc1LastUnitIsZero", "--first-kill"]
    before = descendants()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as judge:
        assert holds_soon(lambda: len(descendants() - before) >= 2)
        started = descendants() - before

        judge.send_signal(number)

    assert judge.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert holds_soon(lambda: not any(map(is_running, started)))


def test_law_that_rejects_no_mutant_is_a_problem() -> None:
    lines = problems([MUTANT, TWIN], by_dtype([REJECTED]), [], {"float32": {MUTANT.law, "test_idle"}})

    assert lines == ["test_idle rejects no mutant in float32"]


def test_mutant_that_survives_in_another_dtype_is_a_problem_unless_that_is_explained() -> None:
    explained = replace(MUTANT, unseen={"bfloat16": "8 bits cannot tell."})
    rejected_there = entry(MUTANT.spec, "test_other", "assertion", dtype="bfloat16")
    wanted = {"float32": {MUTANT.law}, "bfloat16": set[str]()}

    assert problems([MUTANT], by_dtype([REJECTED]), [], wanted) == [f"{MUTANT.spec} survives in bfloat16"]
    assert problems([MUTANT], by_dtype([REJECTED, rejected_there]), [], wanted) == []
    assert problems([explained], by_dtype([REJECTED]), [], wanted) == []
    assert problems([explained], by_dtype([REJECTED, rejected_there]), [], wanted) == [
        f"{MUTANT.spec} is rejected in bfloat16 by test_other: remove it from `unseen`"
    ]


def test_mutant_is_unseen_where_its_law_does_not_judge_unless_another_rejects_it() -> None:
    skipped = [
        entry(MUTANT.spec, MUTANT.law, dtype=dtype) | {"outcome": "skipped", "reason": "Skipped: too coarse"}
        for dtype in ("float64", "bfloat16", "float16")
    ]
    judged = [
        entry("lenet", MUTANT.law, dtype="float64"),
        entry(MUTANT.spec, "test_other", "assertion", dtype="float16"),
    ]

    reasons = reasons_of_skips([*skipped, *judged])

    assert reasons[MUTANT.law] == {"bfloat16": "too coarse", "float16": "too coarse"}
    assert with_reasons(MUTANT, by_dtype(judged), reasons[MUTANT.law]).unseen == {"bfloat16": "too coarse"}


def test_law_that_rejects_no_mutant_in_one_dtype_is_a_problem_unless_that_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = entry(MUTANT.spec, "test_other", "assertion", dtype="float64")
    broken, wanted = by_dtype([REJECTED, elsewhere]), {"float32": {MUTANT.law}, "float64": {MUTANT.law}}

    assert problems([MUTANT], broken, [], wanted) == [f"{MUTANT.law} rejects no mutant in float64"]
    monkeypatch.setitem(__main__.BLIND, MUTANT.law, {"float64": "It compares nothing there."})
    assert problems([MUTANT], broken, [], wanted) == []
    monkeypatch.setitem(__main__.BLIND, MUTANT.law, {"float32": "It compares nothing there."})
    assert f"{MUTANT.law} rejects a mutant in float32: remove it from BLIND" in problems([MUTANT], broken, [], wanted)


def test_mutants_that_the_named_law_does_not_see_are_judged_by_others_and_twins_by_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = dict[tuple[str, str], list[Any]]()

    def judge(
        specs: list[str], subjects_by_law: dict[str, list[str]], profile: str, dtype: str, *options: str
    ) -> list[Any]:
        pairs = sorted((law, spec) for law, own in subjects_by_law.items() for spec in own if spec != "lenet")
        runs.setdefault((profile, dtype), []).append(pairs)
        return [entry(spec, law, "assertion" if law != "test_blind" else "", dtype=dtype) for law, spec in pairs]

    monkeypatch.setattr(__main__, "judge", judge)
    mutant, used = replace(MUTANT, unseen={"bfloat16": "8 bits cannot tell."}), {MUTANT.part}
    laws = [MUTANT.law, "test_blind", "test_other"]

    named = judge_by_named_laws([mutant, TWIN], ["float32", "float64", "bfloat16"])
    judge_by_all_laws([mutant, TWIN], named, dict.fromkeys(laws, used) | {"test_elsewhere": {"Net"}})

    own, twin = [(MUTANT.law, mutant.spec)], [(law, TWIN.spec) for law in laws]
    others = [("test_other", mutant.spec)]
    assert [dtype for profile, dtype in runs if profile == "kills"] == ["float32", "float64"]
    assert runs["kills", "float64"] == [own]
    assert runs["mutants", "float32"] == [sorted([*twin, ("test_blind", mutant.spec), *others])]
    assert runs["mutants", "float64"] == [others]  # the named law has rejected it, test_other has rejected nothing
    assert runs["mutants", "bfloat16"] == [sorted([*twin, *own, *others])]


def test_table_has_the_laws_that_reject_each_mutant_in_every_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(specs: list[str], subjects_by_law: Any, profile: str, dtypes: str, *options: str) -> list[Any]:
        pairs = subjects_by_law or {MUTANT.law: specs, "test_other": specs}
        return [
            entry(spec, law, "assertion" if spec == MUTANT.spec else "", dtype=dtype) | {"parts": [MUTANT.part]}
            for law, own in pairs.items()
            for spec in own
            for dtype in dtypes.split(",")
        ]

    monkeypatch.setattr(__main__, "judge", judge)
    monkeypatch.setattr(__main__, "select", lambda names: [replace(MUTANT, unseen={"float16": "11 bits"}), TWIN])

    assert main(["--output", str(tmp_path / "table.json")]) == 1

    assert capsys.readouterr().out.splitlines()[-1] == (
        f"PROBLEM: {MUTANT.spec} is rejected in float16 by test_other, test_update: remove it from `unseen`"
    )
    table = json.loads((tmp_path / "table.json").read_text())
    row, both = table["mutants"][MUTANT.spec], {MUTANT.law, "test_other"}
    assert row["broken"].keys() == both
    assert {dtype: set(laws) for dtype, laws in row["other_dtypes"].items()} == dict.fromkeys(
        ("float64", "bfloat16", "float16"), both
    )
    assert row["unseen"] == {"float16": "11 bits"}
    assert table["twins"][TWIN.spec]["broken"] == {}
    assert {dtype: set(laws) for dtype, laws in table["judged"].items()} == dict.fromkeys(
        ("float32", "float64", "bfloat16", "float16"), both
    )


def test_dtypes_are_chosen_for_first_kills_only(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--dtype", "float64"], ["--first-kill", "--dtype", "float65"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)

    errors = capsys.readouterr().err
    assert "--dtype requires --first-kill: without it, all dtypes are judged" in errors
    assert "--dtype float65: not one of float32, float64, bfloat16, float16" in errors


def test_rejected_reference_is_a_problem() -> None:
    lines = problems([MUTANT], by_dtype([REJECTED]), [entry("lenet", "test_update", "assertion")], {})

    assert lines == ["the reference is rejected by test_update in float32: off by one"]


def test_earliest_assertion_of_several_parametrizations_counts() -> None:
    entries = [entry("s", "law", "crash", 1), entry("s", "law", "assertion", 5), entry("s", "law", "assertion", 3)]

    assert kills(entries) == {"s": {"law": {"failure_kind": "assertion", "example": 3}}}


def test_variants_are_selected_by_kind_and_name() -> None:
    assert {variant.kind for variant in select(["activation"])} == {"activation"}
    assert [variant.name for variant in select(["SecondReluMissing"])] == ["SecondReluMissing"]
    with pytest.raises(ValueError, match="no mutant, twin or kind is named nothing; the kinds are structure, "):
        select(["nothing"])


def test_different_oracle_arguments_have_different_digests() -> None:
    ones, scaled = np.ones(3), partial(oracle.scaled, oracle.mse)
    arguments = [ones, 2 * ones, ones.astype(np.float32), ones[None], [ones], {"a": ones}, {"b": ones}, (1, 2), (12,)]
    arguments += [oracle.mse, oracle.cross_entropy, scaled(0.5), scaled(2.0), oracle.PRECISIONS["float32"], 0.5, None]

    arguments += [oracle.Budgeted(np.arange(n), np.ones(n)) for n in (9_000, 9_001)]
    arguments += [oracle.Budgeted(np.where(np.arange(9_000) == n, 1, 0), np.ones(9_000)) for n in (4_000, 5_000)]

    assert len({digest_of(argument) for argument in arguments}) == len(arguments)
    assert digest_of([scaled(0.5), {"a": ones.copy()}]) == digest_of([scaled(0.5), {"a": ones}])


SUBJECTS = """
import torch
from lenet import Net

class RaisesRuntimeError(Net):
    def forward(self, images):
        raise RuntimeError("no such kernel")

class RaisesAssertionError(Net):
    def forward(self, images):
        assert images.ndim == 3
        return images

class WrongOnEveryThirdCall(Net):
    calls = 0
    def forward(self, images):
        WrongOnEveryThirdCall.calls += 1
        return super().forward(images) + (WrongOnEveryThirdCall.calls % 3 == 0)

class IgnoresOtherChannels(Net):
    def forward(self, images):
        return super().forward(images[:, :1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "law", "failure_kind"),
    [
        ("RaisesRuntimeError", "test_forward.py::test_logits_agree_with_the_oracle", "crash"),
        ("RaisesAssertionError", "test_forward.py::test_logits_agree_with_the_oracle", "crash"),
        ("WrongOnEveryThirdCall", "test_exactness.py::test_one_hot_weights_route_pixels_to_logits", "flaky"),
        ("IgnoresOtherChannels", "test_errors.py::test_wrong_channel_count_raises", "assertion"),
    ],
)
def test_kind_of_failure_is_recorded(tmp_path: Path, name: str, law: str, failure_kind: str) -> None:
    (tmp_path / "subjects.py").write_text(SUBJECTS)
    command = [sys.executable, "-m", "pytest", f"{ROOT}/properties/laws/{law}", "-p", "no:cacheprovider"]
    command += ["--subject", f"{tmp_path}/subjects.py:{name}", "--device=cpu", "--dtype=float32"]
    command += ["--hypothesis-profile=kills", "--record", str(tmp_path)]

    subprocess.run(command, cwd=ROOT, capture_output=True, check=False)

    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    assert failure_kind in [entry["failure_kind"] for entry in entries]
