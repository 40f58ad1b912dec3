"""Known deviations of a user: the file, what it forgives, the error once one no longer occurs, and the draft."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenet import subject
from lenet.oracle import Budgeted
from properties import arguments, deviations, drafts
from properties.case import Case
from properties.comparison import MismatchError, assert_within_budget
from properties.deviations import DeviationError
from properties.known_issues import expected_failure
from properties.ledger import Ledger, recording
from properties.stack import Stack
from properties.strategies import Placed, Vectors
from properties.symptoms import Named, Wrong, finite
from properties.testing import run

NETWORK = "properties/laws/test_network.py"
ROWS = (NETWORK, "-k", "n_images or shape_dtype", "--dtype", "float32", "--device", "cpu", "--hypothesis-profile=kills")
RAISES = """
import lenet

class Net(lenet.Net):
    def forward(self, images):
        if len(images) > 2:
            raise RuntimeError(f"not implemented for {len(images)} images")
        return super().forward(images)
"""
DEVIATION = """
[[deviation]]
law = "batch_of_n_images_gives_n_rows_of_logits"
reason = "large batches come with the next release"
link = "https://example.org/1"
[[deviation.symptoms]]
error = "RuntimeError"
message = 'not implemented for \\d+ images'
"""


def cpu(dtype: torch.dtype) -> Stack:
    return Stack(subject.load("lenet"), torch.device("cpu"), dtype)


def loaded(folder: Path, text: str) -> list[deviations.Deviation]:
    (folder / "known.toml").write_text(text)
    return deviations.load(folder / "known.toml")


@pytest.fixture
def raises(tmp_path: Path) -> str:
    """The option that judges a network that raises for more than two images."""
    (tmp_path / "mine.py").write_text(RAISES)
    return f"--subject={tmp_path}/mine.py"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[dev", "[dev", ": not TOML: "),
        ("[[deviation]]", "[[deviations]]", ": unknown key 'deviations'; the keys are deviation"),
        ("law =", "laws =", ": deviation 1: unknown key 'laws'; the keys are law, reason, link, "),
        (
            '"batch_of',
            '"batches_of',
            ": deviation 1: law = 'batches_of_n_images_gives_n_rows_of_logits': no law",
        ),
        ("reason", "reasons", ": deviation 1: unknown key 'reasons'"),
        ('"large batches come with the next release"', '" "', ": deviation 1: reason is empty"),
        ("link", "strict = 1\nlink", ": deviation 1: strict = 1: not true or false"),
        (
            "link",
            "counterexample = 'batch='\nlink",
            "counterexample: not of the form that a failure prints",
        ),
        ("link", "counterexample = 'batch=3'\nlink", "has the arguments batch; the law has the arguments batch, seed"),
        ("link", "counterexample = 'batch=open(), seed=1'\nlink", "'open()' is not a value that can be read"),
        (
            "link",
            "stacks = { dtype = 'float8' }\nlink",
            "stacks: dtype = 'float8': not one of float64, ",
        ),
        ("link", "stacks = { torch = 'new' }\nlink", ": deviation 1: stacks: torch = 'new': not a version specifier"),
        (
            "link",
            "stacks = { cpu = 1 }\nlink",
            "stacks: unknown key 'cpu'; the keys are subject, engine, ",
        ),
        (
            "link",
            "stacks = { device = [] }\nlink",
            "stacks: device = []: not a string or a list of strings",
        ),
        ("\\d+", "(", ": deviation 1: symptom 1: message = 'not implemented for ( images': not a regular expression: "),
        ("error =", "errors =", ": deviation 1: symptom 1: has neither tensors nor error"),
        ("error =", "elements = 'nan'\nerror =", ": deviation 1: symptom 1: unknown key 'elements'"),
        ("error = ", "tensors = '(' #", ": deviation 1: symptom 1: unknown key 'message'"),
    ],
)
def test_wrong_file_is_a_one_line_error_that_names_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert len(loaded(tmp_path, DEVIATION)) == 1
    assert old in DEVIATION

    with pytest.raises(DeviationError) as raised:
        loaded(tmp_path, DEVIATION.replace(old, new))

    assert str(raised.value).startswith(f"{tmp_path}/known.toml: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("symptom", "message"),
    [
        ("tensors = '('", "tensors = '(': not a regular expression"),
        ("tensors = 'x'\nelements = 'unchanged'", "elements = 'unchanged': not one of nan, infinite, zero, "),
        ("tensors = 'x'\nat_most = 8", "at_most = 8: not a number of budgets above 8"),
        ("tensors = 'x'\nat_most = true", "at_most = True: not a number of budgets above 8"),
    ],
)
def test_wrong_symptom_of_tensors_is_a_one_line_error(tmp_path: Path, symptom: str, message: str) -> None:
    with pytest.raises(DeviationError) as raised:
        loaded(tmp_path, f"{DEVIATION}[[deviation.symptoms]]\n{symptom}\n")

    assert f"known.toml: deviation 1: symptom 2: {message}" in str(raised.value)


@pytest.mark.parametrize(
    ("stacks", "matching"),
    [
        ("{}", ["float32", "float16"]),
        ("{ dtype = 'float16' }", ["float16"]),
        ("{ dtype = ['float16', 'float32'], device = 'cpu', subject = 'lenet' }", ["float32", "float16"]),
        ("{ engine = '' }", ["float32", "float16"]),
        ("{ engine = 'mine:build' }", []),
        ("{ device = 'cuda' }", []),
        ("{ torch = '>=2.5' }", ["float32", "float16"]),
        ("{ torch = ['<2.5', '<2.4'] }", []),
    ],
)
def test_deviation_is_expected_only_on_the_stacks_that_it_names(
    tmp_path: Path, stacks: str, matching: list[str]
) -> None:
    (deviation,) = loaded(tmp_path, DEVIATION.replace("link", f"stacks = {stacks}\nlink"))

    found = [name for name in ("float32", "float16") if deviation.affects.matches(cpu(getattr(torch, name)))]

    assert found == matching


@pytest.mark.parametrize(
    "drawn",
    [
        {"form": "fused", "case": Case(batch=3, layout="strided"), "lr": -0.5, "skipped": {0}, "steps": [True, False]},
        {"vectors": Vectors(sizes=(1, 2)), "placed": Placed(), "nonfinite": float("-inf"), "dtype": torch.float16},
        {"empty": set(), "interval": None},
        {},
    ],
)
def test_arguments_that_a_failure_prints_can_be_read(drawn: dict[str, Any]) -> None:
    text = ", ".join(f"{name}={value!r}" for name, value in drawn.items())

    assert arguments.parse(text) == drawn


@pytest.mark.parametrize(
    "text", ["case=Case(batch=-1)", "case=Case(size=1)", "v=Vectors(size=1)", "1", "**x", "x=y", "("]
)
def test_arguments_that_no_law_draws_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        arguments.parse(text)


def test_error_is_known_by_its_name_its_base_or_its_full_name_and_its_message() -> None:
    error = type("OwnError", (RuntimeError,), {"__module__": "mine"})("no kernel")

    assert all(Named(name, "kernel").explains(error, {}) for name in ("OwnError", "mine.OwnError", "RuntimeError"))
    assert not Named("ValueError", "kernel").explains(error, {})
    assert not Named("RuntimeError", "image").explains(error, {})


def test_error_above_the_limit_of_a_symptom_is_reported() -> None:
    failure = expected_failure("some_law", lambda **arguments: True, Wrong("x", finite, at_most=20))
    exact = Budgeted(np.array([1.0, 1.0]), np.array([0.125, 0.125]))

    with recording(Ledger(expected=[failure])):
        assert_within_budget(torch.tensor([3.5, 1.0]), exact, "x")
        with pytest.raises(MismatchError, match=r"^x\[1\] .* error is 21\.0 budgets .* 1 of 2 elements is wrong$"):
            assert_within_budget(torch.tensor([3.5, 3.625]), exact, "x")


def test_examples_with_issues_and_with_deviations_are_counted_apart() -> None:
    issue = expected_failure("some_law", lambda **arguments: True, Wrong("x"))
    own = deviations.ExpectedFailure("test_some_law", {}, lambda drawn: True, (Wrong("y"),), own=True)
    ledger = Ledger()

    for failures in ([own], [own, issue], [issue], []):
        ledger.begin_example({})
        for failure in failures:
            ledger.forgive([failure])

    assert (ledger.examples, ledger.forgiven, ledger.deviating) == (4, 2, 1)


@pytest.mark.slow
def test_known_deviation_is_forgiven_listed_and_recorded(tmp_path: Path, raises: str) -> None:
    (tmp_path / "known.toml").write_text(DEVIATION)

    result = run(*ROWS, raises, "--known", f"{tmp_path}/known.toml", "--record", str(tmp_path), "-n", "1")

    assert result.returncode == 0, result.stdout
    assert "2 laws checked, 0 violated, 1 with known deviations; " in result.stdout
    assert (
        "known deviation: large batches come with the next release (https://example.org/1); "
        f"its symptoms are forgiven on: {tmp_path}/mine.py on cpu in float32\n"
    ) in result.stdout
    entries = {entry["law"]: entry for entry in json.loads((tmp_path / "laws.json").read_text())["laws"]}
    entry = entries["test_batch_of_n_images_gives_n_rows_of_logits"]
    assert 0 < entry["deviating"] < entry["examples"]
    assert entry["forgiven"] == 0
    assert entry["known_issues"] == []
    assert [(one["link"], one["seen"]) for one in entry["known_deviations"]] == [("https://example.org/1", True)]


def test_other_failures_of_the_law_are_violations(tmp_path: Path, raises: str) -> None:
    (tmp_path / "known.toml").write_text(DEVIATION.replace("\\d+", "17"))

    result = run(*ROWS, raises, "--known", f"{tmp_path}/known.toml")

    assert result.returncode == 1
    assert "2 laws checked, 1 violated" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_deviation_that_no_longer_occurs_fails_the_run_unless_it_is_not_strict(tmp_path: Path, strict: bool) -> None:
    (tmp_path / "known.toml").write_text(DEVIATION.replace("link", f"strict = {str(strict).lower()}\nlink"))

    result = run(*ROWS, "--known", f"{tmp_path}/known.toml", "--record", str(tmp_path), "-n", "1")

    assert result.returncode == int(strict)
    line = f"a known deviation no longer occurs, remove it: {tmp_path}/known.toml: deviation 1: test_batch_of_n_images"
    assert f"{'ERROR' if strict else 'WARNING'}: {line}" in result.stdout
    assert len(json.loads((tmp_path / "laws.json").read_text())["errors"]) == strict


def test_counterexample_must_show_the_deviation(tmp_path: Path, raises: str) -> None:
    known = DEVIATION.replace("link", "counterexample = 'batch=2, seed=0'\nlink")
    (tmp_path / "known.toml").write_text(known)

    result = run(*ROWS, raises, "--known", f"{tmp_path}/known.toml")

    assert result.returncode == 1
    assert "a known deviation no longer occurs, remove it: " in result.stdout
    assert "the law holds on its counterexample {'batch': 2, 'seed': 0}" in result.stdout


def test_deviation_of_other_stacks_is_named_and_not_used(tmp_path: Path) -> None:
    (tmp_path / "known.toml").write_text(DEVIATION.replace("link", "stacks = { dtype = 'float16' }\nlink"))

    result = run(*ROWS, "--known", f"{tmp_path}/known.toml")

    assert result.returncode == 0, result.stdout
    assert "known.toml: deviation 1: no stack that is judged is one of its `stacks`\n" in result.stdout
    assert "known deviation" not in result.stdout


@pytest.mark.slow
def test_run_with_its_own_draft_passes_and_a_draft_overwrites_nothing(tmp_path: Path, raises: str) -> None:
    draft = tmp_path / "draft.toml"
    laws = ("properties/laws/test_forward.py", NETWORK, "-k", "n_images or logits_agree", "--dtype", "float32")
    command = (*laws, "--device=cpu", "--hypothesis-profile=mutants", raises, f"--subject={tmp_path}/nan.py")
    (tmp_path / "nan.py").write_text(RAISES.replace("raise ", "return super().forward(images) * float('nan') #"))

    first = run(*command, "--write-known", str(draft), "-n", "1")
    second = run(*command, "--known", str(draft))
    third = run(*command, "--write-known", str(draft))

    assert first.returncode == 1
    assert f"{draft}: a draft of " in first.stdout
    text = draft.read_text()
    assert 'reason = "TODO: RuntimeError: not implemented for ' in text
    assert r"message = 'not implemented for \d+ images'" in text
    assert 'tensors = "logits"\nelements = "nan"\n' in text
    assert "counterexample = \"case=Case(weights='default', " in text
    assert second.returncode == 0, second.stdout
    assert third.returncode == 4
    assert third.stderr.strip() == f"ERROR: --write-known {draft}: exists already; name another file, or remove it"


def test_draft_has_the_most_specific_elements_and_the_power_of_two_above_the_worst_error() -> None:
    exact = Budgeted(np.array([1.0, -1.0]), np.array([0.125, 0.125]))

    with recording(drafts.Noting()) as noting:
        assert_within_budget(torch.tensor([float("nan"), -1.0]), exact, "parameter 3 after step 1")
        assert_within_budget(torch.tensor([0.0, 0.0]), exact, "nothing wrong: 8 budgets are allowed")
        assert_within_budget(torch.tensor([9.0, -1.0]), exact, "fc1.weight")
        assert_within_budget(torch.tensor([1.0, 9.0]), exact, "fc1.bias")

    assert noting.symptoms() == [  # type: ignore[attr-defined]
        {"tensors": r"parameter \d+ after step \d+", "elements": "nan"},
        {"tensors": r"fc1\.weight|fc1\.bias", "elements": "finite", "at_most": 128},
    ]


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("got 17 of (3, 4) at 0x7ff [x]", "got 2 of (30, 1) at 0x1 [x]"),
        ("a.b: it's 100 %", "a.b: it's 5 %"),
        ("", ""),
    ],
)
def test_pattern_of_a_message_matches_it_with_other_numbers(line: str, other: str) -> None:
    pattern = drafts._pattern(line, drafts.NUMBER.pattern)

    assert re.fullmatch(pattern, line)
    assert re.fullmatch(pattern, other)
    assert not re.fullmatch(pattern, f"{line}!")


@pytest.mark.parametrize("text", ["plain", r"a\d+'s", r"\.", 'quoted "text"', "two\nlines\x7f", "ü\u2028"])
def test_every_text_survives_the_draft(text: str) -> None:
    assert tomllib.loads(f"x = {drafts._toml([text])}") == {"x": [text]}
