"""Known issues: expected on what they cover, missed where they are gone, and cited."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

from lenet import subject
from properties import known_issues
from properties.known_issues import KNOWN_ISSUES, UNREPORTED, expected
from properties.stack import Stack
from properties.test_options import run

LAW = "test_optimizer_update_matches_the_formula"
WHERE = f"properties/laws/test_update.py::{LAW}[lenet-cpu-float32-foreach]"
PLUGIN = """
from properties import known_issues
from properties.known_issues import KnownIssue, anywhere, sighting
from properties.strategies import Vectors

def covers(form, drawn, **others):
    return form == "foreach" and drawn.sizes[0] == 1

def pytest_configure():
    seen = sighting("optimizer_update_matches_the_formula", covers, form="foreach", drawn=Vectors(), lr=0.5)
    known_issues.KNOWN_ISSUES = (KnownIssue("steps are lost", "pytorch/pytorch#1", anywhere, (seen,), since=(2, 5)),)
"""
BROKEN = """
from torch import optim

whole = optim.SGD.step

def step(self):
    if self.param_groups[0]["params"][0].numel() not in {lost}:
        whole(self)

optim.SGD.step = step
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    return tmp_path


def cpu(dtype: torch.dtype) -> Stack:
    return Stack(subject.load("lenet"), torch.device("cpu"), dtype)


def test_an_issue_that_is_gone_fails_the_run_and_says_so(plugin: Path) -> None:
    result = run(WHERE, "-p", "plugin", path=plugin)

    assert result.returncode == 1
    assert "a known issue is gone: steps are lost (pytorch/pytorch#1). This law holds on" in result.stdout


def test_an_issue_that_is_shown_is_listed_and_the_law_holds(plugin: Path) -> None:
    (plugin / "broken.py").write_text(BROKEN.format(lost=[1]))

    result = run(WHERE, "-p", "plugin", "-p", "broken", path=plugin)

    assert result.returncode == 0
    assert "all 1 laws hold, 1 but for known issues" in result.stdout
    assert "known issue: steps are lost (pytorch/pytorch#1); shown by lenet on cpu in float32" in result.stdout


def test_what_an_issue_does_not_cover_is_a_violation_all_the_same(plugin: Path) -> None:
    (plugin / "broken.py").write_text(BROKEN.format(lost="range(99)"))

    result = run(WHERE, "-p", "plugin", "-p", "broken", path=plugin)

    assert result.returncode == 1
    assert "its roundings allow" in result.stdout


def test_versions_and_stacks_that_do_not_show_an_issue_do_not_expect_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"stack": cpu(torch.bfloat16), "form": "fused"}

    assert len(expected(LAW, cpu(torch.bfloat16), arguments)) == 1
    assert expected(LAW, cpu(torch.float32), arguments) == []
    assert expected(LAW, cpu(torch.bfloat16), arguments | {"form": "foreach"}) == []
    for version, count in (("2.14.9", 1), ("2.15.0", 0), ("2.4.1", 0)):
        monkeypatch.setattr(torch, "__version__", version)
        assert len(expected(LAW, cpu(torch.bfloat16), arguments)) == count


def test_every_issue_names_its_reference_or_that_there_is_none() -> None:
    for issue in KNOWN_ISSUES:
        assert issue.reference == UNREPORTED or re.fullmatch(r"[\w-]+/[\w-]+#\d+", issue.reference)
        assert issue.sightings


def test_every_sighting_is_of_a_law_with_these_arguments() -> None:
    sources = "\n".join(path.read_text() for path in Path(known_issues.__file__).parent.glob("laws/test_*.py"))
    for sighting in (s for issue in KNOWN_ISSUES for s in issue.sightings):
        (signature,) = re.findall(rf"^def {sighting.law}\(\s*([^)]*)\)", sources, re.MULTILINE)
        names = set(re.findall(r"(\w+):", signature)) - {"stack"}
        assert names == sighting.counterexample.keys(), sighting.law


def test_covers_is_asked_by_name() -> None:
    for sighting in (s for issue in KNOWN_ISSUES for s in issue.sightings):
        assert sighting.covers({"stack": cpu(torch.float32), **sighting.counterexample})
    assert "arguments" in inspect.signature(KNOWN_ISSUES[0].sightings[0].covers).parameters
