"""A run of the laws as its user sees it: the header, the verdict, the record, and every error in one line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAW = "properties/laws/test_network.py::test_repr_matches_the_tutorial"
FAULTY = """
import torch
from torch.nn.functional import relu, max_pool2d
from lenet import Net

class ReluMissing(Net):
    def forward(self, images):
        pooled = max_pool2d(relu(self.conv1(images)), 2)
        pooled = max_pool2d(self.conv2(pooled), 2)
        return self.fc3(relu(self.fc2(relu(self.fc1(torch.flatten(pooled, 1))))))

class Misshaped(Net):
    def __init__(self):
        super().__init__()
        self.fc3 = torch.nn.Linear(84, 11)

class Skips16:
    @staticmethod
    @torch.no_grad()
    def sgd_update(parameters, lr):
        for p in parameters:
            if p.grad is not None:
                rest = p.numel() // 16 * 16
                p.view(-1)[rest:].sub_(lr * p.grad.view(-1)[rest:])
"""


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`pytest` as a user runs it, in a process of its own; `path` is where it finds plugins."""
    return run_module("pytest", "-p", "no:cacheprovider", *arguments, path=path)


def run_module(module: str, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same of `python -m module`."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    alone |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subject") / "faulty.py"
    path.write_text(FAULTY)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subject", "no.such"], "--subject no.such: there is no module 'no.such'"),
        (["--subject", "none.py"], "--subject none.py: there is no file none.py"),
        (["--subject", "lenet:Nothing"], "--subject lenet:Nothing: lenet has no Nothing"),
        (["--subject", "{faulty}:Misshaped"], "fc3.weight is [11, 84] where lenet.Net has [10, 84]"),
        (["--device", "cuda:99"], "--device cuda:99: there is no such device"),
        (["--device", "toaster"], "--device toaster: there is no such device"),
        (["--dtype", "float23"], "--dtype float23: not one of float64, float32"),
        (["--dtype", "int64"], "--dtype int64: not one of float64, float32"),
        (["--case", "Case(batch=-1)"], "--case: batch=-1 of a Case is no integer"),
    ],
)
def test_a_wrong_option_is_one_clear_line(faulty: Path, options: list[str], message: str) -> None:
    result = run(LAW, *[option.format(faulty=faulty) for option in options])

    lines = [line for line in result.stderr.splitlines() if line]
    assert result.returncode == 4
    assert len(lines) == 1
    assert lines[0].startswith("ERROR: ")
    assert message in lines[0]


def test_a_run_says_what_it_judges_and_what_it_found(tmp_path: Path) -> None:
    result = run(LAW, "--dtype", "float32", "--record", str(tmp_path))

    assert result.returncode == 0
    assert "judging: lenet on cpu" in result.stdout
    assert "lenet on cpu in float32: all 1 laws hold in 1 examples" in result.stdout
    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    assert entries[0]["law"] == "test_repr_matches_the_tutorial"
    assert entries[0]["outcome"] == "passed"


def test_a_run_in_which_nothing_was_judged_fails(faulty: Path) -> None:
    result = run(LAW, "--subject", f"{faulty}:ReluMissing")

    assert result.returncode == 1
    assert "nothing was judged" in result.stdout


def test_a_violation_stands_alone_and_comes_with_the_command_that_repeats_it(faulty: Path, tmp_path: Path) -> None:
    law, options = "properties/laws/test_forward.py", ["--subject", f"{faulty}:ReluMissing", "--dtype", "float32"]

    result = run(law, "-k", "logits", "--record", str(tmp_path), *options)

    assert result.returncode == 1
    assert "Every logit lies within the rounding budget of its exact value." in result.stdout
    assert f"stack:  {faulty}:ReluMissing on cpu in float32" in result.stdout
    assert "1 of 1 laws violated" in result.stdout
    entry = json.loads((tmp_path / "laws.json").read_text())["laws"][0]
    assert "logits[" in entry["message"]
    assert entry["counterexample"].startswith("case=Case(")

    case = entry["counterexample"].removeprefix("case=")
    again = run(*shlex.split(entry["command"])[1:])
    assert again.returncode == 1
    assert f"judged: case={case}" in again.stdout


def test_an_update_that_skips_full_blocks_is_rejected(faulty: Path) -> None:
    result = run("properties/laws/test_update.py", "-k", "manual_update", "--subject", f"{faulty}:Skips16")

    assert result.returncode == 1
    assert "its roundings allow" in result.stdout


def test_a_case_that_a_law_does_not_judge_is_a_visible_skip() -> None:
    result = run(LAW.replace("repr_matches_the_tutorial", "one_image_gives_ten_logits"), "--case", "Case(batch=3)")

    assert result.returncode == 1
    assert "this law judges other cases than the one that --case gives" in result.stdout
    assert "nothing was judged" in result.stdout


def test_a_record_that_cannot_be_written_is_said_at_once(faulty: Path) -> None:
    result = run(LAW, "--record", str(faulty))

    assert result.returncode == 4
    assert "not a folder that can be written to" in result.stderr


def test_what_a_subject_warns_of_is_no_violation(tmp_path: Path) -> None:
    source = FAULTY + "\nimport warnings\n\nclass Warns(Net):\n"
    source += "    def forward(self, images):\n        warnings.warn('old')\n        return super().forward(images)\n"
    (tmp_path / "warns.py").write_text(source)

    result = run("properties/laws/test_forward.py", "-k", "logits", "--subject", f"{tmp_path}/warns.py:Warns")

    assert result.returncode == 0


def test_an_earlier_record_is_kept_beside(tmp_path: Path) -> None:
    (tmp_path / "laws.json").write_text("earlier")

    run(LAW, "--record", str(tmp_path))

    assert (tmp_path / "laws.previous.json").read_text() == "earlier"
    assert json.loads((tmp_path / "laws.json").read_text())["format"] == 2
