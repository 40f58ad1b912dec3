"""A run of the laws as its user sees it: header, verdict, failures, record, and one-line errors for wrong options."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest

from properties.testing import FAULTY, ROOT, run

LAW = "properties/laws/test_network.py::test_repr_matches_the_tutorial"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subject") / "faulty.py"
    path.write_text(FAULTY)
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subject", "no.such"], "--subject no.such: no module named 'no.such'"),
        (["--subject", "none.py"], "--subject none.py: no such file: none.py"),
        (["--subject", "lenet:Nothing"], "--subject lenet:Nothing: lenet has no Nothing"),
        (["--subject", "{faulty}:Misshaped"], "fc3.weight is [11, 84], not [10, 84] as in lenet.Net"),
        (["--device", "cuda:99"], "--device cuda:99: not available ("),
        (["--device", "toaster"], "--device toaster: not available ("),
        (["--dtype", "float23"], "--dtype float23: not one of float64, float32"),
        (["--dtype", "int64"], "--dtype int64: not one of float64, float32"),
        (["--case", "Case(batch=-1)"], "--case: batch=-1: not an integer"),
    ],
)
def test_wrong_option_is_a_one_line_error(faulty: Path, options: list[str], message: str) -> None:
    result = run(LAW, *[option.format(faulty=faulty) for option in options])

    lines = [line for line in result.stderr.splitlines() if line]
    assert result.returncode == 4
    assert len(lines) == 1
    assert lines[0].startswith("ERROR: ")
    assert message in lines[0]


def test_run_prints_and_records_what_it_judged(tmp_path: Path) -> None:
    result = run(LAW, "--dtype", "float32", "--record", str(tmp_path))

    assert result.returncode == 0
    assert "\nversions: torch " in result.stdout
    assert "judging: lenet on cpu" in result.stdout
    assert "lenet on cpu in float32: 1 law checked, 0 violated; 1 example\n" in result.stdout
    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    assert entries[0]["law"] == "test_repr_matches_the_tutorial"
    assert entries[0]["outcome"] == "passed"


def test_run_in_which_nothing_was_judged_fails(faulty: Path) -> None:
    result = run(LAW, "--subject", f"{faulty}:ReluMissing")

    assert result.returncode == 1
    assert "nothing was judged" in result.stdout


def test_violation_is_reported_with_a_command_that_reproduces_it(faulty: Path, tmp_path: Path) -> None:
    laws, options = "properties/laws/test_forward.py", ["--subject", f"{faulty}:ReluMissing", "--dtype", "float32"]

    result = run(laws, "-k", "logits", "--record", str(tmp_path), *options)

    assert result.returncode == 1
    assert "Every logit is within the rounding budget of its exact value." in result.stdout
    assert f"stack:          {faulty}:ReluMissing on cpu in float32" in result.stdout
    assert "1 law checked, 1 violated" in result.stdout
    assert "budgets (allowed: 8) in test_logits_agree_with_the_oracle" in result.stdout
    assert "again, possibly other values" not in result.stdout
    assert "Highest target score" not in result.stdout
    entry = json.loads((tmp_path / "laws.json").read_text())["laws"][0]
    assert "logits[" in entry["message"]
    assert entry["counterexample"].startswith("case=Case(")

    case = entry["counterexample"].removeprefix("case=")
    again = run(*shlex.split(entry["command"])[1:])
    assert again.returncode == 1
    assert f"counterexample: case={case}" in again.stdout


def test_update_that_skips_full_blocks_is_rejected(faulty: Path) -> None:
    result = run("properties/laws/test_update.py", "-k", "manual_update", "--subject", f"{faulty}:Skips16")

    assert result.returncode == 1
    assert "rounding explains at most" in result.stdout
    assert "(draws vectors, lr again, possibly other values)" in result.stdout


def test_law_that_crashed_is_counted_apart(faulty: Path) -> None:
    result = run("properties/laws/test_forward.py", "-k", "mse_loss", "--subject", f"{faulty}:Crashes")

    assert result.returncode == 1
    assert "on cpu in float32: 1 law checked, 1 violated (1 crashed); " in result.stdout


def test_case_that_a_law_does_not_judge_is_a_visible_skip() -> None:
    law = LAW.replace("repr_matches_the_tutorial", "logits_have_shape_dtype_and_device")

    result = run(law, "--case", "Case(batch=3)")

    assert result.returncode == 1
    assert "this law does not judge the case given by --case" in result.stdout
    assert "nothing was judged" in result.stdout


def test_unwritable_record_is_an_error_at_the_start(faulty: Path) -> None:
    result = run(LAW, "--record", str(faulty))

    assert result.returncode == 4
    assert "not a folder that can be written to" in result.stderr


def test_warning_of_a_subject_is_not_a_violation(tmp_path: Path) -> None:
    source = FAULTY + "\nimport warnings\n\nclass Warns(Net):\n"
    source += "    def forward(self, images):\n        warnings.warn('old')\n        return super().forward(images)\n"
    (tmp_path / "warns.py").write_text(source)

    result = run("properties/laws/test_forward.py", "-k", "logits", "--subject", f"{tmp_path}/warns.py:Warns")

    assert result.returncode == 0


def test_earlier_record_is_kept_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "laws.json").write_text("earlier")

    run(LAW, "--record", str(tmp_path))

    assert (tmp_path / "laws.previous.json").read_text() == "earlier"
    assert json.loads((tmp_path / "laws.json").read_text())["format"] == 3


def test_run_without_laws_leaves_an_earlier_record_alone(tmp_path: Path) -> None:
    (tmp_path / "laws.json").write_text("earlier")

    result = run("properties/test_case.py", "-k", "equal_cases", "--record", str(tmp_path))

    assert result.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["laws.json"]


def test_laws_run_by_the_name_of_their_package(tmp_path: Path) -> None:
    (tmp_path / "laws.json").write_text("earlier")
    law = LAW.replace(".py::", "::").replace("/", ".")

    result = run("-p", "properties.plugin", "--pyargs", law, "--record", str(tmp_path))

    assert result.returncode == 0
    assert (tmp_path / "laws.previous.json").read_text() == "earlier"


def test_every_law_takes_a_stack() -> None:
    for path in sorted((ROOT / "properties/laws").glob("test_*.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                assert "stack" in [argument.arg for argument in function.args.args], function.name
