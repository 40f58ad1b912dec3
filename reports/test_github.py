"""What GitHub shows: annotations at the subject's line, in which no text becomes a command, and the job's summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.commands import report as make_report
from reports.conftest import LAWS, STAMP, Files, entry, write
from reports.github import MAX_SUMMARY, SHOWN, main, place, workflow_command

MODEL = """import lenet


def helper(): ...


class Net(lenet.Net):
    def forward(self, images): ...
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a subject, in a job of GitHub Actions."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    monkeypatch.setenv("GITHUB_WORKSPACE", str(folder))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    return folder


def laws(*entries: dict, **fields: object) -> Files:
    """The files of a run that only judged."""
    return {"laws.json": STAMP | LAWS | {"laws": list(entries)} | fields}


def violation(subject: str = "model.py:Net", **fields: str) -> dict:
    """An entry of a violated law."""
    return entry("test_sums", "failed", subject=subject, **{"message": "AssertionError: 1 is not 2"} | fields)


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that are printed for a run."""
    assert main([str(folder)]) == 0
    return capsys.readouterr().out.splitlines()


def test_violated_law_is_an_error_at_the_line_of_the_subject(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, laws(violation(command="pytest law", counterexample="case=Case(batch=3)"), entry("test_order")))

    assert shown(tmp_path, capsys) == [
        "::error title=Violated%3A sums holds,file=model.py,line=7::AssertionError: 1 is not 2%0Acase=Case(batch=3)"
        "%0Astack: lenet on cpu in float32%0Apytest law"
    ]


def test_run_that_passed_has_no_annotation(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, laws(entry("test_sums")))

    assert shown(tmp_path, capsys) == []


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("model.py", {"file": "model.py", "line": "7"}),  # its Net
        ("model.py:helper", {"file": "model.py", "line": "4"}),
        ("model.py:gone", {"file": "model.py", "line": "1"}),
        ("model", {"file": "model.py", "line": "7"}),
        ("package.part", {"file": "package/part.py", "line": "1"}),
        ("package", {"file": "package/__init__.py", "line": "1"}),
        ("broken.py:Net", {"file": "broken.py", "line": "1"}),
        ("../outside.py", {}),
        ("link.py", {}),
        ("lenet", {}),
        ("", {}),
    ],
)
def test_subject_is_found_in_the_checkout_alone(workspace: Path, subject: str, expected: dict[str, str]) -> None:
    (workspace / "package").mkdir()
    for name in ("package/__init__.py", "package/part.py", "../outside.py"):
        (workspace / name).touch()
    (workspace / "broken.py").write_text("class Net(")
    (workspace / "link.py").symlink_to(workspace.parent / "outside.py")

    assert place({"subject": subject, "engine": ""}, workspace) == expected
    assert place({"subject": f"{subject} by eager", "engine": "eager"}, workspace) == expected


def test_no_text_of_a_run_becomes_another_command() -> None:
    """Escaped as in github.com/actions/toolkit, packages/core/src/command.ts."""
    line = workflow_command("error", "100%\r\n::warning::a,b:c", title="a,b:c%\n::debug::")

    assert line == "::error title=a%2Cb%3Ac%25%0A%3A%3Adebug%3A%3A::100%25%0D%0A::warning::a,b:c"


def test_hostile_message_stays_on_its_line(workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, laws(violation(message="x\n::add-mask::y\r::error::z", subject="a\n::error::b.py")))

    lines = shown(tmp_path, capsys)

    assert len(lines) == 1
    assert lines[0].startswith("::error title=")
    assert len("".join(lines).splitlines()) == 1


def test_run_that_stopped_or_has_errors_is_annotated(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, laws(entry("test_sums"), finished=False, errors=["test_x.py::test_y"]))

    assert shown(tmp_path, capsys) == [
        "::error::test_x.py::test_y failed without a verdict",
        "::error::the run was stopped before its last law",
    ]


def test_annotations_are_at_most_as_many_as_github_shows(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, laws(*(entry(f"test_{number}", "failed", message="wrong") for number in range(SHOWN + 3))))

    lines = shown(tmp_path, capsys)

    assert len(lines) == SHOWN
    assert lines[-1] == "::error::4 more errors are in the log of the laws and in the report"


def test_summary_of_the_report_is_appended(workspace: Path, tmp_path: Path, files: Files) -> None:
    (tmp_path / "summary").write_text("earlier\n")
    write(tmp_path, files)
    assert make_report([str(tmp_path)]) == 0

    assert main([str(tmp_path)]) == 0

    assert (tmp_path / "summary").read_text() == f"earlier\n{(tmp_path / 'summary.md').read_text()}\n"


@pytest.mark.parametrize("name", ["laws.json", "engines.json"])
def test_run_without_a_report_has_a_summary_of_its_laws(workspace: Path, tmp_path: Path, name: str) -> None:
    content = laws(violation(message="a | <b>"), entry("test_order"))["laws.json"]
    write(tmp_path, {name: content | {"matrix": {}}})

    assert main([str(tmp_path)]) == 0

    text = (tmp_path / "summary").read_text()
    assert text.startswith("# 1 law holds, 0 known issues, 1 violation\n")
    assert text.endswith("| `sums holds` | `lenet on cpu in float32` | `a \\| <b>` |\n\n")


def test_long_summary_is_cut_at_a_line(workspace: Path, tmp_path: Path) -> None:
    write(tmp_path, laws(entry("test_sums")))
    (tmp_path / "summary.md").write_text("0123456789\n" * (MAX_SUMMARY // 10))

    assert main([str(tmp_path)]) == 0

    content = (tmp_path / "summary").read_bytes()
    assert MAX_SUMMARY - 20 < len(content) <= MAX_SUMMARY
    assert content.endswith(b"0123456789\n\n")


@pytest.mark.parametrize("content", ["", "{", None])
def test_run_that_cannot_be_read_is_an_error_of_one_line(
    workspace: Path, tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "laws.json").write_text(content)

    assert main([str(tmp_path)]) == 2

    output = capsys.readouterr()
    assert "laws.json is" in output.err
    assert output.err.count("\n") == 1
    assert output.out == workflow_command("error", output.err.removeprefix("error: ").strip()) + "\n"
