"""The files of `--repro` fail while the fault is there, pass once it is gone, and need PyTorch and NumPy alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lenet import digits, oracle
from lenet.oracle import PRECISIONS, Budgeted
from properties import fresh, stand_ins
from properties.bundle import STAND_INS, Bundle, BundleError
from properties.case import Case, large
from properties.reproduce import base17, file_name, literal, outcome, steps_of
from properties.testing import ROOT, run

TUTORIAL = """
import torch
import torch.nn as nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images):
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        maps = F.max_pool2d(self.conv2(maps), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.flatten(maps, 1))))))

@torch.no_grad()
def sgd_update(parameters, lr):
    for parameter in parameters:
        if parameter.grad is not None and parameter.numel() > 16:
            parameter.sub_(lr * parameter.grad)
"""

WRONG = {
    "test_forward.py": "logits_agree_with_the_oracle",
    "test_exactness.py": "integer_logits_and_gradients_are_exact",
    "test_update.py": "manual_update_matches_the_formula",
    "test_training.py": "training_in_any_order_gives_the_expected_state",
    "test_network.py": "pooled_feature_maps_equal_next_layer_inputs",
}
"""Laws of different kinds: within budget, exact by the oracle, within roundings, a state machine, exact by itself."""

ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys({blocked})
sys.argv[1:] = {arguments}
runpy.run_path({path!r}, run_name="__main__")
"""
BLOCKED = ("lenet", "properties", "hypothesis", "pytest", "sklearn", "scipy", "tqdm", "jinja2")


def run_alone(path: Path, *arguments: str, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a file in the folder, where this project and what it needs beyond PyTorch and NumPy cannot be imported."""
    code = ALONE.format(blocked=BLOCKED, arguments=list(arguments), path=str(path))
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a faulty network, by law."""
    folder = tmp_path_factory.mktemp("repro")
    (folder / "mine.py").write_text(TUTORIAL)
    chosen = [f"{ROOT}/properties/laws/{file}::test_{law}" for file, law in WRONG.items()]
    options = ["-p", "properties.plugin", "--subject=mine.py", "--dtype=float32", "--device=cpu", "--repro=files"]

    result = run(*chosen, *options, "--hypothesis-profile=kills", path=ROOT, folder=folder)

    listed = result.stdout.partition("stand-alone counterexamples")[2].partition("\n---")[0].splitlines()[1:]
    names = [f"files/{law}-mine.py-cpu-float32.py" for law in WRONG.values()]
    assert listed == [f"{name} fails, and the reference network passes" for name in sorted(names)], result.stdout
    return {law: folder / name for law, name in zip(WRONG.values(), names, strict=True)}


@pytest.mark.slow
def test_files_fail_with_the_fault_and_pass_with_the_reference_without_this_project(files: dict[str, Path]) -> None:
    paths = list(map(str, files.values()))
    calls = [[path, *option] for option in ([], ["--reference"]) for path in paths]
    folder = files["logits_agree_with_the_oracle"].parents[1]

    ran = run_alone(Path(fresh.__file__), "100", folder=folder, text=json.dumps(calls))

    assert json.loads(ran.stdout) == [1] * len(paths) + [0] * len(paths)


def test_file_passes_once_the_fault_is_fixed_and_cannot_run_without_the_subject(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = files["logits_agree_with_the_oracle"]
    correct = TUTORIAL.replace("(self.conv2(maps), 2)", "(F.relu(self.conv2(maps)), 2)")
    (tmp_path / "fixed.py").write_text(correct)

    fixed, missing = run_alone(path, "fixed.py", folder=tmp_path), run_alone(path, folder=tmp_path)

    assert fixed.returncode == 0, fixed.stderr
    assert "NO FAULT: the law holds on this example" in fixed.stdout
    assert missing.returncode == 2
    assert "CANNOT RUN: FileNotFoundError" in missing.stdout


def test_file_says_at_its_top_what_is_wrong_and_where_it_was_found(files: dict[str, Path]) -> None:
    text = files["logits_agree_with_the_oracle"].read_text()
    title = ast.get_docstring(ast.parse(text))

    assert title is not None
    assert title.startswith("Every logit is within the rounding budget of its exact value.\n")
    assert "test_logits_agree_with_the_oracle is violated by mine.py on cpu in float32:" in title
    assert f"Found with torch {torch.__version__}" in title
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.slow
def test_crash_reproduces_as_a_crash(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(
        f"{TUTORIAL}\nclass Crash(Net):\n    def forward(self, images):\n        raise KeyError('no')\n"
    )

    options = ["-p", "properties.plugin", "--dtype=float32", "--device=cpu", "--hypothesis-profile=kills"]
    law = f"{ROOT}/properties/laws/test_network.py::test_one_image_does_not_raise"
    result = run(law, *options, "--subject=crash.py:Crash", "--repro=.", "-n1", path=ROOT, folder=tmp_path)

    assert (
        "one_image_does_not_raise-crash.py_Crash-cpu-float32.py fails, and the reference network passes\n"
        in result.stdout
    )
    assert (
        "one image: KeyError: 'no'" in (tmp_path / "one_image_does_not_raise-crash.py_Crash-cpu-float32.py").read_text()
    )


def test_unwritable_folder_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = run("properties/laws/test_network.py", "-k", "repr", "--repro", f"{tmp_path}/file")

    assert result.returncode == 4
    assert f"--repro {tmp_path}/file: not a folder that can be written to" in result.stderr


@pytest.mark.parametrize("chapter", sorted((ROOT / "properties/laws").glob("test_*.py")), ids=lambda path: path.stem)
def test_every_law_can_be_copied(chapter: Path) -> None:
    names = [node.name for node in ast.parse(chapter.read_text()).body if isinstance(node, ast.FunctionDef)]

    for law in (name for name in names if name.startswith("test_")):
        bundle = Bundle(recipes=frozenset({("_weight", "default"), ("_images", "digits")}))
        root = "TrainingMachine" if chapter.stem == "test_training" else law
        bundle.add([(f"properties.laws.{chapter.stem}", root), (STAND_INS, "main")])
        nodes = list(ast.walk(ast.parse(bundle.text([root]))))
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        modules |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        packages = {module.partition(".")[0] for module in modules}
        assert packages <= {*sys.stdlib_module_names, "torch", "numpy"}, law


def test_part_of_another_package_cannot_be_copied() -> None:
    with pytest.raises(BundleError, match=r"uses the module hypothesis|has no stand-in"):
        Bundle().add([("properties.strategies", "vectors")])


def test_digits_of_a_file_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "DIGITS", dict(enumerate(map(base17, digits._table()))))

    got, want = stand_ins.digits.load(), digits.load()

    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("name", PRECISIONS)
def test_precision_of_a_file_is_that_of_the_oracle(name: str) -> None:
    got, want = stand_ins.precision_of(getattr(torch, name)), PRECISIONS[name]

    for part in ("unit", "coarsest_unit", "underflow", "largest"):
        assert getattr(got, part) == getattr(want, part)
    assert stand_ins.large(got, 4) == large(want, 4)


def test_oracle_of_a_file_has_what_laws_read(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(batch=2)
    exact = oracle.solve(
        case.parameters(PRECISIONS["float32"]),
        case.pixels(PRECISIONS["float32"]),
        case.target_values(),
        PRECISIONS["float32"],
        with_input_gradient=True,
    )

    answer = stand_ins.unknown_answer(2)

    assert answer.logits.value.shape == exact.logits.value.shape
    assert answer.loss.budget.shape == exact.loss.budget.shape
    assert exact.input_gradient is not None
    assert answer.input_gradient.value.shape == exact.input_gradient.value.shape
    assert {name: g.value.shape for name, g in answer.gradients.items()} == oracle.SHAPES
    assert stand_ins.SHAPES == oracle.SHAPES


def test_unknown_numbers_are_compared_where_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_ins, "EXPECTED", [((1,), 2.0, 0.5)])
    monkeypatch.setattr(stand_ins, "COMPARED", ("x", 2))
    monkeypatch.setattr(stand_ins, "counts", {})
    unknown = stand_ins.unknown(2)

    stand_ins.assert_within_budget(torch.tensor([7.0, 9.0]), unknown, "x")  # the first comparison is not checked
    with pytest.raises(AssertionError, match="x: 1 of 1 compared elements are wrong"):
        stand_ins.assert_within_budget(torch.tensor([7.0, 3.0]), unknown, "x")
    monkeypatch.setattr(stand_ins, "counts", {"x": 1})
    stand_ins.assert_within_budget(torch.tensor([7.0, 2.5]), unknown, "x")
    monkeypatch.setattr(stand_ins, "counts", {"x": 1})
    known = Budgeted(np.array([1.0, 2.0]), np.full(2, np.nan))  # computed in the file, with a budget of the oracle
    stand_ins.assert_within_budget(torch.tensor([7.0, 2.5]), known, "x")


@pytest.mark.parametrize(
    "value",
    [
        1,
        -0.0,
        float("inf"),
        "it's",
        True,
        None,
        (1,),
        [],
        {"a": (2.5, "b")},
        {3},
        torch.float16,
        torch.no_grad,
        Case(seed=4),
    ],
    ids=str,
)
def test_arguments_are_written_as_python(value: object) -> None:
    assert eval(literal(value), {"torch": torch, "Case": Case}) == value


def test_argument_that_python_cannot_write_is_an_error() -> None:
    with pytest.raises(BundleError, match="the argument <object"):
        literal(object())


def test_steps_of_a_state_machine_are_read_from_its_notes() -> None:
    error = AssertionError()
    steps = "state.create_net(case=Case(), frozen=None)\nstate.teardown()"
    error.add_note(f"Failing test case:\nstate = TrainingMachine(\n    stack=x)\n{steps}")

    assert steps_of(error) == [
        "state = TrainingMachine(stack)",
        "state.create_net(case=Case(), frozen=None)",
        "state.networks_have_the_expected_state()",
    ]
    with pytest.raises(BundleError, match="has not printed the steps"):
        steps_of(AssertionError())


def test_files_of_different_stacks_have_different_names() -> None:
    entry = {"law": "test_a", "stack": "/x/mine.py:Net by vmap on cpu in float32"}

    assert file_name(entry, []) == "a-mine.py_Net_by_vmap-cpu-float32.py"
    assert file_name(entry, [file_name(entry, [])]) == "a-mine.py_Net_by_vmap-cpu-float32-2.py"
    assert (
        file_name({"law": "test_a", "stack": "lenet on cuda:1 in bfloat16, judged as tf32"}, [])
        == "a-cuda_1-bfloat16.py"
    )


def test_file_that_is_not_as_it_must_be_is_reported() -> None:
    assert outcome(1, 0) == " fails, and the reference network passes"
    assert outcome(1, None) == " fails"
    assert outcome(0, 0) == ": does not reproduce in a new process (exit code 0)"
    assert outcome(1, 1) == ": the reference network does not pass (exit code 1)"


def test_scripts_are_ended_at_their_time_limit(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text("while True: pass")
    (tmp_path / "three.py").write_text("import sys\nsys.exit(3 if len(sys.argv) > 1 else None)")
    calls = [[str(tmp_path / "hangs.py")], [str(tmp_path / "three.py"), "--reference"], [str(tmp_path / "three.py")]]

    command = [sys.executable, str(ROOT / "properties/fresh.py"), "1"]
    ran = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, check=True)

    assert json.loads(ran.stdout) == [-9, 3, 0]
