"""Whatever a command does not foresee ends in one line on stderr and exit code 2."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.command import end_in_one_line, one_line, unforeseen
from benchmarks.fakes import ROOT

PUBLISHED = ROOT / "reports/runs/2026-11-23_amd-epyc_torch-2.13.0/benchmarks.json"


def ended(raised: BaseException) -> object:
    """Return the exit code after an exception that nothing catches."""
    with pytest.raises(type(raised)) as caught:
        raise raised
    with pytest.raises(SystemExit) as exit_:
        end_in_one_line(caught.type, caught.value, None)
    return exit_.value.code


def test_unforeseen_error_is_one_line_and_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ZeroDivisionError("division\nby \ud800 \x1b[31m")) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"error: ZeroDivisionError: division by \ud800 \x1b[31m (test_command.py, line ")


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt()) == 130

    assert capsys.readouterr().err == "stopped\n"


def test_syntax_error_is_located_in_its_file() -> None:
    with pytest.raises(SyntaxError) as caught:
        compile("\ndef (", "folder/broken.py", "exec")

    assert unforeseen(caught.value).endswith(" (broken.py, line 2)")


def test_one_line_keeps_letters_of_every_language() -> None:
    assert one_line(" größer \n als\t0 ") == "größer als 0"


@pytest.mark.parametrize("redirected", ["> /dev/full", "| true"])
def test_output_that_cannot_be_written_exits_with_two(redirected: str) -> None:
    """A full disk, and a pipe whose reader has exited before anything is written."""
    command = f"{sys.executable} -m lenet_properties trends {PUBLISHED}"
    script = f"set -o pipefail; {command} {redirected}"

    run = subprocess.run(["bash", "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)

    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith(("error: OSError: [Errno 28]", "error: BrokenPipeError: "))


def test_closed_output_is_no_error() -> None:
    script = f"{sys.executable} -m lenet_properties trends {PUBLISHED} >&-"

    run = subprocess.run(["bash", "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)

    assert (run.returncode, run.stderr) == (0, "")
