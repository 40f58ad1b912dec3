"""Known issues are expected where they apply, reported when they no longer occur, and documented."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from lenet import subject
from properties import known_issues
from properties.known_issues import KNOWN_ISSUES, UNREPORTED, expected_issues
from properties.known_issues_page import page
from properties.stack import Stack
from properties.testing import run

LAW = "test_optimizer_update_matches_the_formula"
WHERE = f"properties/laws/test_update.py::{LAW}[lenet-cpu-float32-foreach]"
PLUGIN = """
from properties import known_issues
from properties.known_issues import ANY_STACK, KnownIssue, expected_failure
from properties.strategies import Vectors
from properties.symptoms import Wrong, unchanged

def applies_to(form, vectors, **others):
    return form == "foreach" and vectors.sizes[0] == 1

def pytest_configure():
    law, counterexample = "optimizer_update_matches_the_formula", {"form": "foreach", "vectors": Vectors(), "lr": 0.5}
    failures = (expected_failure(law, applies_to, Wrong(r"parameter \\d+", unchanged), **counterexample),)
    known_issues.KNOWN_ISSUES = (KnownIssue("steps are lost", "pytorch/pytorch#1", ANY_STACK, failures, since=(2, 5)),)
"""
FAULTY_SGD = """
from torch import optim

correct_step = optim.SGD.step

def step(self):
    if self.param_groups[0]["params"][0].numel() not in {lost}:
        correct_step(self)

optim.SGD.step = step
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return tmp_path


def cpu(dtype: torch.dtype) -> Stack:
    return Stack(subject.load("lenet"), torch.device("cpu"), dtype)


@pytest.mark.slow
def test_run_fails_if_an_issue_no_longer_occurs(plugin: Path) -> None:
    result = run(WHERE, "-p", "plugin", path=plugin)

    assert result.returncode == 1
    assert (
        "This is not a fault of your stack: a known issue no longer occurs: steps are lost (pytorch/pytorch#1). "
        "The law holds on its counterexample"
    ) in result.stdout
    major, minor = torch.__version__.split(".")[:2]
    assert f"If PyTorch {major}.{minor} fixes it, set fixed_in=({major}, {minor})" in result.stdout


@pytest.mark.slow
def test_occurring_issue_is_listed_and_its_law_is_not_violated(plugin: Path) -> None:
    (plugin / "faulty_sgd.py").write_text(FAULTY_SGD.format(lost=[1]))

    result = run(WHERE, "-p", "plugin", "-p", "faulty_sgd", path=plugin)

    assert result.returncode == 0
    assert "1 law checked, 0 violated, 1 with known issues" in result.stdout
    assert (
        "known issue: steps are lost (pytorch/pytorch#1); its symptoms are forgiven on: lenet on cpu in float32"
    ) in result.stdout


@pytest.mark.slow
def test_failure_on_other_examples_is_a_violation(plugin: Path) -> None:
    (plugin / "faulty_sgd.py").write_text(FAULTY_SGD.format(lost="range(99)"))

    result = run(WHERE, "-p", "plugin", "-p", "faulty_sgd", path=plugin)

    assert result.returncode == 1
    assert "rounding explains at most" in result.stdout


def test_issue_is_expected_only_on_affected_stacks_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"stack": cpu(torch.bfloat16), "form": "fused"}

    assert len(expected_issues(LAW, cpu(torch.bfloat16), arguments)) == 1
    assert expected_issues(LAW, cpu(torch.float32), arguments) == []
    assert expected_issues(LAW, cpu(torch.bfloat16), arguments | {"form": "foreach"}) == []
    for version, count in (("2.14.9", 1), ("2.15.0", 0), ("2.4.1", 0)):
        monkeypatch.setattr(torch, "__version__", version)
        assert len(expected_issues(LAW, cpu(torch.bfloat16), arguments)) == count


def test_every_issue_has_a_reference_or_says_that_none_was_found() -> None:
    for issue in KNOWN_ISSUES:
        assert issue.reference == UNREPORTED or re.fullmatch(r"[\w-]+/[\w-]+#\d+", issue.reference)
        assert issue.expected_failures


def test_every_counterexample_has_the_arguments_of_its_law() -> None:
    sources = "\n".join(path.read_text() for path in Path(known_issues.__file__).parent.glob("laws/test_*.py"))
    for failure in (failure for issue in KNOWN_ISSUES for failure in issue.expected_failures):
        (signature,) = re.findall(rf"^def {failure.law}\(\s*([^)]*)\)", sources, re.MULTILINE)
        names = set(re.findall(r"(\w+):", signature)) - {"stack"}
        assert names == failure.counterexample.keys(), failure.law


def test_every_issue_applies_to_its_counterexamples() -> None:
    for failure in (failure for issue in KNOWN_ISSUES for failure in issue.expected_failures):
        assert failure.applies_to({"stack": cpu(torch.float32), **failure.counterexample})
    assert "arguments" in inspect.signature(KNOWN_ISSUES[0].expected_failures[0].applies_to).parameters


def test_readme_states_the_number_of_issues() -> None:
    readme = Path(known_issues.__file__).with_name("README.md").read_text()

    assert re.findall(r"\ball (\d+)\b", readme) == [str(len(KNOWN_ISSUES))]


def test_page_matches_the_registry() -> None:
    written = Path(known_issues.__file__).with_name("KNOWN_ISSUES.md").read_text()

    assert written == page(), "run `lenet-properties known-issues --output properties/KNOWN_ISSUES.md`"
