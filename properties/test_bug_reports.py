"""The stand-alone scripts of known issues: one for each, short, on their own, with the exit code that they promise."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lenet import subject
from lenet.oracle import PRECISIONS
from properties import bug_reports, known_issues_page
from properties.bug_reports import SEVERITIES, Finding, findings, outcome, report, run
from properties.known_issues import KNOWN_ISSUES, KnownIssue, torch_version
from properties.stack import Stack
from properties.versions import judged_versions, read

LONGEST = 30
"""Lines of code: what a maintainer reads at a glance."""

PEERS = ("jax", "onnxruntime", "openvino")


def occurs_here(known: KnownIssue) -> bool:
    """Whether a stack on this machine's CPU has the issue."""
    stacks = [Stack(subject.load("lenet"), torch.device("cpu"), getattr(torch, dtype)) for dtype in PRECISIONS]
    fixed = known.fixed_in is not None and torch_version() >= known.fixed_in
    installed = all(find_spec(peer) for peer in PEERS if known.engines and known.engines[0].startswith(peer))
    return not fixed and installed and any(map(known.affects.matches, stacks))


def test_every_issue_has_a_script_with_its_title_and_reference() -> None:
    references = {known.title: known.reference for known in KNOWN_ISSUES}

    assert {title: finding.sections["Reference"] for title, finding in findings().items()} == references
    assert len(findings()) == len(list(bug_reports.FOLDER.iterdir()))


@pytest.mark.parametrize("title", findings(), ids=lambda title: findings()[title].name)
def test_script_is_short_and_stands_alone(title: str) -> None:
    finding = findings()[title]
    nodes = list(ast.walk(ast.parse(finding.code)))
    imported = {a.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}

    assert finding.severity in SEVERITIES
    assert all(finding.sections.values()), "a section is empty"
    assert not imported & {"lenet", "properties", "benchmarks", "reports"}
    assert len([line for line in finding.code.splitlines() if line.strip()]) < LONGEST


@pytest.mark.slow
@pytest.mark.parametrize("known", KNOWN_ISSUES, ids=lambda known: findings()[known.title].name)
def test_script_tells_whether_the_bug_is_here(known: KnownIssue) -> None:
    """A bug that depends on the machine, or that only other machines have, may be absent."""
    result = run(findings()[known.title])

    expected = {"occurs"} if occurs_here(known) else {"gone", "not shown here"}
    assert result.stdout.strip() or "ModuleNotFoundError" in result.stderr, result
    assert outcome(result) in expected | ({"gone"} if known.intermittent else set()), result


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", "gone"),
        ("sys.exit(1)", "occurs"),
        ("sys.exit(77)", "not shown here"),
        ("import missing_engine", "not shown here"),
        ("torch.missing()", "error: NameError: name 'torch' is not defined"),
        ("sys.exit(2)", "error: exit code 2"),
    ],
)
def test_error_of_a_script_is_not_taken_for_its_bug(tmp_path: Path, code: str, expected: str) -> None:
    path = tmp_path / "a_bug.py"
    path.write_text(f"import sys\n{code}\n")

    assert outcome(run(Finding(path, "A bug", {}, code))) == expected


@pytest.mark.parametrize("version", judged_versions())
def test_issue_is_expected_in_the_releases_that_have_it(version: str) -> None:
    """A script occurs in a release that was judged exactly if the registry expects its issue there, or cannot say."""
    release = tuple(map(int, version.split(".")[:2]))
    outcomes = read(version)["scripts"]
    for known in KNOWN_ISSUES:
        expected = known.since <= release and (known.fixed_in is None or release < known.fixed_in)
        found = outcomes.get(findings()[known.title].name, "not shown here")
        assert known.intermittent or found in {"not shown here", "occurs" if expected else "gone"}, known.title


def test_script_that_does_not_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a_bug.py"
    path.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(bug_reports, "TIMEOUT", 0.2)

    assert outcome(run(Finding(path, "A bug", {}, ""))) == "error: no result within 0.2 s"


def test_report_has_the_script_its_output_and_the_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docstring = "A bug\n\n" + "".join(f"{name}: {name} of\nthe bug.\n\n" for name in bug_reports.SECTIONS)
    (tmp_path / "a_bug.py").write_text(f'"""\n{docstring}"""\n\nimport sys\n\nprint("1 is 2")\nsys.exit(1)\n')
    monkeypatch.setattr(bug_reports, "FOLDER", tmp_path)
    findings.cache_clear()

    text = report(findings()["A bug"])
    findings.cache_clear()

    assert '```python\nimport sys\n\nprint("1 is 2")\nsys.exit(1)\n```' in text
    assert "(exit code 1):\n\n```\n1 is 2\n```" in text
    assert "Observed of the bug." in text
    assert "**Cause:** Cause of the bug." in text
    assert f"PyTorch version: {torch.__version__}" in text


def test_docstring_of_another_form_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_bug.py").write_text('"""A bug\n\nSeverity: surprising\n"""\n')
    monkeypatch.setattr(bug_reports, "FOLDER", tmp_path)
    findings.cache_clear()

    with pytest.raises(ValueError, match=r"a_bug.py: the docstring has the sections \['Severity'\], expected \['Seve"):
        findings()
    findings.cache_clear()


def test_unknown_report_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        known_issues_page.main(["--report", "nonsense"])

    assert "--report nonsense: not one of " in capsys.readouterr().err
