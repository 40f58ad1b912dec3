"""A run of the laws as its user sees it: header, verdict, failures, record, and one-line errors for wrong options."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from properties.plugin import DEFAULT_DTYPES
from properties.terminal import SHOWN
from properties.testing import FAULTY, ROOT, run, run_module

LAW = "properties/laws/test_network.py::test_repr_matches_the_tutorial"

CI = ("--dtype", "float32", "--hypothesis-profile=ci")


def wide(net: object) -> object:
    """An engine that claims a precision that no dtype has."""
    return net


wide.claims = {"float128": "float128"}  # type: ignore[attr-defined]


def written(folder: Path, line: str) -> str:
    """Write a subject, the reference network whose forward pass begins with this line; return its option."""
    source = "import torch\nimport lenet\n\nclass Net(lenet.Net):\n    def forward(self, images):\n"
    (folder / "mine.py").write_text(f"{source}        {line}\n        return super().forward(images)\n")
    return f"{folder}/mine.py"


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
        (["--case", ""], "--case: '' is not of the form Case("),
        (["--case", "(" * 10_000], "...' is not of the form Case("),
        (["--engine", ""], "--engine : not one of eager, "),
        (["--engine", "eager,"], "--engine : not one of eager, "),
        (["-n", "2", "--subject", "\udcff.py"], "-n: '\\udcff.py' is not UTF-8, as parallel workers need it"),
        (["--record", ""], "--record: the name of a folder is needed"),
        (["--hypothesis-profile=typo"], "--hypothesis-profile typo: not one of quick, ci, thorough, "),
        (["--engine", "properties.test_options:wide"], "claims is {'float128': 'float128'}, expected a mapping from "),
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


@pytest.mark.slow
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
    again = run_module("lenet_properties", *shlex.split(entry["command"])[1:])
    assert again.returncode == 1
    assert f"counterexample: case={case}" in again.stdout


@pytest.mark.slow
def test_update_that_skips_full_blocks_is_rejected(faulty: Path) -> None:
    result = run("properties/laws/test_update.py", "-k", "manual_update", "--subject", f"{faulty}:Skips16")

    assert result.returncode == 1
    assert "rounding explains at most" in result.stdout
    assert "(draws vectors, lr again, possibly other values)" in result.stdout


def test_law_that_crashed_is_counted_apart(tmp_path: Path) -> None:
    subject = written(tmp_path, "assert len(images) < 3, 'too many'")

    result = run("properties/laws/test_forward.py", "-k", "mse_loss_agrees", "--subject", subject, *CI)

    assert result.returncode == 1
    assert "on cpu in float32: 1 law checked, 1 violated (1 crashed); " in result.stdout


def test_network_that_runs_no_image_fails_one_law_and_leaves_the_others_not_judged(faulty: Path) -> None:
    laws = ("properties/laws/test_network.py", "-k", "one_image or n_images or uniform")

    result = run(*laws, "--subject", f"{faulty}:Crashes", *CI)

    assert result.returncode == 1
    assert "Crashes on cpu in float32: 2 laws checked, 1 violated; 2 examples\n" in result.stdout
    assert "  1 law not judged: the network raises for one image: KeyError: 'images'\n" in result.stdout
    assert "raise KeyError" in result.stdout  # the network's line, of the law that it violates
    assert "1 more failure, printed with -v" in result.stdout


def test_law_that_is_not_judged_fails_the_run(faulty: Path) -> None:
    result = run("properties/laws/test_network.py", "-k", "n_images", "--subject", f"{faulty}:Crashes", *CI)

    assert result.returncode == 1
    assert "Crashes on cpu in float32: 0 laws checked, 0 violated; 0 examples\n" in result.stdout
    assert "diagnosis" not in result.stdout


def test_empty_batch_that_raises_is_one_violation(tmp_path: Path) -> None:
    subject = written(tmp_path, "assert len(images), 'no images'")
    laws = ("properties/laws/test_network.py", "-k", "batch_does or image_does or n_images or intermediate")

    result = run(*laws, "--subject", subject, "--record", str(tmp_path), *CI)

    assert "4 laws checked, 1 violated; " in result.stdout
    line = "the network raises for an empty batch: AssertionError: no images"
    assert f"  not drawn in 2 laws: {line}" in result.stdout
    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    assert {entry["law"]: entry["not_drawn"] for entry in entries if entry["stack"]} == {
        "test_one_image_does_not_raise": [],
        "test_empty_batch_does_not_raise": [],
        "test_batch_of_n_images_gives_n_rows_of_logits": [line],
        "test_intermediate_shapes_match_the_tutorial": [line],
    }


def test_empty_batch_with_a_wrong_result_is_judged(tmp_path: Path) -> None:
    subject = written(tmp_path, "if not len(images): return images.new_zeros(1, 10)")

    result = run("properties/laws/test_network.py", "-k", "batch_does or n_images", "--subject", subject, *CI)

    assert "2 laws checked, 1 violated; " in result.stdout
    assert "the logits have shape (1, 10), expected (0, 10)" in result.stdout


@pytest.mark.slow
def test_reports_of_many_violations_are_folded_except_with_v_and_all_are_recorded(tmp_path: Path) -> None:
    subject = written(tmp_path, "return images.new_zeros(len(images), 11)")
    laws = (
        "properties/laws/test_network.py",
        "properties/laws/test_forward.py",
        "-k",
        "n_images or logits or mse_loss",
    )
    command = (*laws, "--hypothesis-profile=mutants", "--subject", subject)

    folded = run(*command, "--record", str(tmp_path))
    unfolded = run(*command, "-v")

    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    failed = [entry for entry in entries if entry["outcome"] == "failed"]
    assert len(failed) == 4 * len(DEFAULT_DTYPES) > SHOWN
    assert all("11" in entry["message"] for entry in failed)
    assert folded.stdout.count("reproduce with:") == folded.stdout.count("\nFAILED ") == SHOWN
    assert f"{len(failed) - SHOWN} more failures, printed with -v" in folded.stdout
    assert f"{len(failed)} failed, " in folded.stdout
    assert unfolded.stdout.count("reproduce with:") == len(failed)


def test_run_that_stopped_at_the_first_failure_says_what_its_diagnosis_rests_on(tmp_path: Path) -> None:
    subject = written(tmp_path, "return images.new_zeros(len(images), 11)")

    result = run("properties/laws/test_network.py", "-k", "n_images or logits", "-x", "--subject", subject, *CI)

    assert "1 law checked, 1 violated; " in result.stdout
    assert re.search(
        r"\n  the diagnosis rests on \d of \d+ laws; it is reliable only if all were judged\n", result.stdout
    )
    assert "stopping after 1 failures" in result.stdout


RECORDING = """
import json, os, pytest
from properties.ledger import Ledger

drawn = {}
begin = Ledger.begin_example

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    examples = drawn.setdefault(f"{item.originalname} {sorted(set(item.callspec.params) - {'stack'})}", [])
    Ledger.begin_example = lambda self, example: (examples.append(example), begin(self, example))
    return (yield)

def pytest_sessionfinish():
    with open(os.environ["DRAWN"], "w") as file:
        json.dump({law: list(map(str, examples)) for law, examples in drawn.items()}, file)
"""


@pytest.mark.slow
def test_every_subject_and_engine_is_judged_by_the_same_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recording_plugin.py").write_text(RECORDING)
    (tmp_path / "other.py").write_text('import lenet\n\nclass Net(lenet.Net):\n    """Another name."""\n')
    chosen = ("properties/laws/test_network.py", "-k", "n_images or intermediate or shape_dtype")
    found = {}
    for options in (["--subject", "lenet"], ["--subject", f"{tmp_path}/other.py"], ["--engine", "eager"]):
        monkeypatch.setenv("DRAWN", str(tmp_path / "drawn.json"))
        result = run(*chosen, "-p", "recording_plugin", *options, *CI, path=tmp_path)
        assert result.returncode == 0, result.stdout
        found[options[1]] = json.loads((tmp_path / "drawn.json").read_text())

    lenet, other, eager = found.values()
    assert other == lenet
    assert len(eager) >= 2
    assert all(len(examples) >= 20 for examples in eager.values())
    assert eager == {law: lenet[law] for law in eager}


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


@pytest.mark.slow
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


def test_laws_that_are_left_out_do_not_run_and_are_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "skip.txt").write_text("# ours\n\nrepr_*  # no  repr yet\ntest_logits_have_shape_dtype_and_device\n")
    laws = ("properties/laws/test_network.py", "-k", "repr or shape_dtype or one_image", "--record", str(tmp_path))

    result = run(*laws, "--skip-laws", f"{tmp_path}/skip.txt", *CI)

    assert result.returncode == 0, result.stdout
    assert "1 law checked, 0 violated; " in result.stdout
    line = "\nnot judged, left out by --skip-laws: "
    assert f"{line}test_repr_matches_the_tutorial: no repr yet\n" in result.stdout
    assert f"{line}test_logits_have_shape_dtype_and_device: listed in {tmp_path}/skip.txt\n" in result.stdout
    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    outcomes = {entry["law"]: entry["outcome"] for entry in entries if entry["stack"]}
    assert outcomes["test_repr_matches_the_tutorial"] == "skipped"
    assert outcomes["test_one_image_does_not_raise"] == "passed"


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--skip-laws", "# all\nrepr_*\nrep\n", "line 3: 'rep' matches no law"),
        ("--skip-laws", None, "No such file or directory"),
        ("--known", None, "No such file or directory"),
        ("--known", "law = 1", "unknown key 'law'; the keys are deviation"),
        ("--write-known", "", "exists already; name another file, or remove it"),
    ],
)
def test_wrong_file_of_a_user_is_a_one_line_error(
    tmp_path: Path, option: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)

    result = run(LAW, option, f"{tmp_path}/file")

    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.strip() == f"ERROR: {option} {tmp_path}/file: {message}"


def test_every_law_takes_a_stack() -> None:
    for path in sorted((ROOT / "properties/laws").glob("test_*.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
                assert "stack" in [argument.arg for argument in function.args.args], function.name
