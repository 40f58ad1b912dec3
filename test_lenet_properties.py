"""The command `lenet-properties`, installed from a wheel and run in a folder of somebody else's project."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lenet_properties
from properties.testing import FAULTY

ROOT = Path(__file__).parent
Run = Callable[..., subprocess.CompletedProcess[str]]

HOSTILE = {
    "conftest.py": 'def pytest_addoption(parser):\n    parser.addoption("--device")\n',
    "pytest.ini": "[pytest]\naddopts = --no-such-option\n",
    "benchmarks/__init__.py": "raise RuntimeError('of another project')\n",
    "reports/notes.py": "",
    "tests/__init__.py": "",
    "tests/test_theirs.py": "def test_theirs():\n    raise AssertionError('not to be run')\n",
    "faulty.py": FAULTY,
}
"""A project with the names of this one's packages, and with options and settings of pytest that do not fit."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a new environment that has the wheel, and everything else from this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "-w", str(folder)], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "venv" / "bin" / "lenet-properties"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Runs the command in a folder of a foreign project."""
    for name, text in HOSTILE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}

    def run_there(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        words = [str(installed), *arguments]
        return subprocess.run(words, cwd=tmp_path, env=environment | more, capture_output=True, text=True, check=False)

    return run_there


def git(folder: Path, *commands: list[str]) -> None:
    """Run git commands in a folder."""
    for command in commands:
        author = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        subprocess.run(["git", *author, *command], cwd=folder, check=True)


def laws(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "laws.json").read_text())["laws"]
    return found


def test_network_is_judged_and_reported_in_a_foreign_project(run: Run, tmp_path: Path) -> None:
    law = ["--device", "cpu", "--dtype", "float32", "--law", "logits_agree*", "--workers", "1"]
    before = {path.name for path in tmp_path.iterdir()}

    judged = run("judge", "faulty.py:ReluMissing", *law, "--record", "lenet-results/latest")
    reported = run("report")

    assert judged.returncode == 1, judged.stdout + judged.stderr
    assert "1 law checked, 1 violated" in judged.stdout
    assert reported.returncode == 1
    assert reported.stdout.startswith("FAILED (laws): ")
    assert (tmp_path / "lenet-results" / "latest" / "index.html").is_file()
    assert {path.name for path in tmp_path.iterdir()} == before | {"lenet-results"}
    assert (tmp_path / "lenet-results" / ".gitignore").read_text() == "*\n"
    (entry,) = laws(tmp_path / "lenet-results" / "latest")
    assert entry["command"].startswith("lenet-properties judge faulty.py:ReluMissing --law ")


def test_command_of_a_failure_reproduces_it(run: Run, tmp_path: Path) -> None:
    law = ["--device", "cpu", "--dtype", "float32", "--law", "cross_entropy_agrees*", "--workers", "1"]
    run("judge", "faulty.py:ReluMissing", *law, "--record", "results")
    entry = laws(tmp_path / "results")[0]
    _, *words = shlex.split(entry["command"])

    again = run(*words, "--record", "again")

    assert again.returncode == 1, again.stdout + again.stderr
    (repeated,) = laws(tmp_path / "again")
    assert (repeated["counterexample"], repeated["message"]) == (entry["counterexample"], entry["message"])


def test_engine_of_a_foreign_project_is_judged(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def build(net):\n    return lambda images: net(images)\n")
    law = ["--dtype", "float32", "--device", "cpu", "--law", "logits_agree*"]

    judged = run("judge", "--engine", "mine:build", *law, "--record", "results")

    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "lenet by mine:build on cpu in float32: 1 law checked, 0 violated" in judged.stdout
    assert run("report", "results").stdout.startswith("PASSED: ")


def test_steps_are_timed_in_a_foreign_project(run: Run, tmp_path: Path) -> None:
    timed = run("time", "--device", "cpu", "--dtype", "float32", "--steps", "update and manual", "--record", "results")

    assert timed.returncode == 0, timed.stdout + timed.stderr
    content = json.loads((tmp_path / "results" / "benchmarks.json").read_text())
    assert {entry["extra_info"]["operation"] for entry in content["benchmarks"]} == {"update, manual"}
    assert content["command"].startswith("lenet-properties time --device cpu")


def test_gate_compares_two_commits_of_a_foreign_project(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from lenet import Net\n")
    git(tmp_path, ["init", "-q", "-b", "main"], ["add", "mine.py"], ["commit", "-q", "-m", "base"])
    slower = "import time\nimport lenet\n\n\nclass Net(lenet.Net):\n    def forward(self, images):\n        "
    slower += "end = time.perf_counter() + 0.01\n        while time.perf_counter() < end:\n            pass\n        "
    (tmp_path / "mine.py").write_text(f"{slower}return super().forward(images)\n")

    gate = run("gate", "--subject", "mine.py:Net", "--select", "forward-1", "--budget", "60s")

    assert gate.returncode == 1, gate.stdout + gate.stderr
    assert "FAILED: slower" in gate.stdout


def test_gate_without_a_subject_says_what_a_foreign_project_lacks(run: Run, tmp_path: Path) -> None:
    git(tmp_path, ["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "base"])

    gate = run("gate", "--base", "HEAD")

    assert gate.returncode == 2
    assert gate.stderr.endswith("is not lenet-properties; name what to time: --subject path/to/file.py:Net\n")


def test_network_is_trained_in_a_foreign_project(run: Run, tmp_path: Path) -> None:
    trained = run("train", "--epochs", "1", "--batch", "256")

    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "lenet-results" / "training.pt").is_file()


def test_known_deviation_is_drafted_forgiven_and_has_a_stand_alone_counterexample(run: Run, tmp_path: Path) -> None:
    law = ["--device", "cpu", "--dtype", "float32", "--law", "logits_agree*", "--workers", "1"]

    judged = run("judge", "faulty.py:ReluMissing", *law, "--write-known", "known.toml", "--repro", "files")
    forgiven = run("judge", "faulty.py:ReluMissing", *law, "--known", "known.toml")

    assert (judged.returncode, forgiven.returncode) == (1, 0), judged.stdout + forgiven.stdout
    assert "known.toml: a draft of 1 known deviation\n" in judged.stdout
    assert "cpu-float32.py fails, and the reference network passes\n" in judged.stdout
    assert len(list((tmp_path / "files").iterdir())) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--known=absent.toml", "--known absent.toml: "),
        ("--skip-laws=absent.txt", "absent.txt"),
        ("--write-known=faulty.py", "--write-known faulty.py: exists already"),
        ("--repro=faulty.py", "--repro faulty.py: "),
        ("--case=Case(batch=x)", "--case: "),
        ("--claim=tf32", "--claim: applies to engines"),
        ("--engine=none", "--engine none: not one of"),
        ("--device=none", "--device none: not available"),
        ("--dtype=none", "--dtype none: not one of"),
        ("--profile=none", "--hypothesis-profile none: not one of"),
        ("--example-timeout=9999999", "--example-timeout 9999999: "),
        ("--law=none", "--law none: no law has this name"),
        ("--workers=0", "--workers: '0' is not a whole number of at least 1"),
        ("--timeout=-1", "--timeout: '-1' is not a number of seconds"),
        ("faulty.py:ReluMissing", "faulty.py:ReluMissing is named twice"),
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
    ],
)
def test_wrong_option_of_judge_is_a_line_and_exits_with_two(option: str, message: str, run: Run) -> None:
    judged = run("judge", "faulty.py:ReluMissing", option)

    assert judged.returncode == 2, judged.stdout + judged.stderr
    assert message in judged.stderr
    assert "Traceback" not in judged.stderr


def test_network_that_crashes_for_one_image_is_reported_and_not_forgiven(run: Run, tmp_path: Path) -> None:
    crash = "import ctypes\nimport lenet\n\n\nclass Net(lenet.Net):\n    def forward(self, images):\n        "
    (tmp_path / "crashing.py").write_text(f"{crash}return ctypes.string_at(0)\n")
    law = ["--device", "cpu", "--dtype", "float32", "--law", "logits_agree*", "--workers", "1"]

    judged = run("judge", "crashing.py:Net", *law, "--write-known", "known.toml")

    assert judged.returncode == 1
    assert "E   RuntimeError: not judged: the network ends the process for one image" in judged.stdout
    assert "a draft of 0 known deviations, without 1 failure that cannot be forgiven" in judged.stdout


README = (ROOT / "README.md").read_text()
EXAMPLES = dict.fromkeys(
    re.findall(r"(?:`|^\$ )lenet-properties ((?:\w+)(?: [^`#\n]+)?)(?:`|#|$)", README, re.MULTILINE)
)
LIMITS = {
    "judge": ["--law", "logits_agree*", "--dtype", "float32", "--device", "cpu", "--workers", "1"],
    "time": ["--steps", "update and manual", "--dtype", "float32"],
    "train": ["--epochs", "1", "--batch", "256"],
    "gate": ["--select", "forward-1", "--budget", "10s"],
}
"""What is added to an example of the README, so that it takes seconds."""

KNOWN = """[[deviation]]
law = "gradients_agree_with_the_oracle"
reason = "an example"
symptoms = [{ tensors = "fc1.weight" }]
"""


def test_readme_has_examples() -> None:
    assert {example.split()[0] for example in EXAMPLES} >= {"judge", "time", "gate", "report", "explain", "doctor"}


@pytest.mark.parametrize("example", [example for example in EXAMPLES if not example.startswith("fastest")])
def test_example_of_the_readme_runs(example: str, run: Run, tmp_path: Path) -> None:
    """`fastest`, which compiles for minutes, has tests of its own."""
    (block,) = re.findall(r"```python\n# faulty\.py\n(.*?)```", README, re.DOTALL)
    (tmp_path / "faulty.py").write_text(block)
    (tmp_path / "mine.py").write_text("import lenet\n\n\nclass Net(lenet.Net):\n    pass\n")
    (tmp_path / "my_module.py").write_text("def build(net):\n    return lambda images: net(images)\n")
    (tmp_path / "known.toml").write_text(KNOWN)
    git(tmp_path, ["init", "-q", "-b", "main"], ["add", "mine.py"], ["commit", "-q", "-m", "base"])
    command, *words = shlex.split(example)
    words += LIMITS.get(command, [])
    if command == "report":
        run("judge", *LIMITS["judge"], "--record", "lenet-results/latest")

    done = run(command, *words)

    assert done.returncode == {"judge faulty.py:ReluMissing": 1, "gate --subject": 3}.get(
        " ".join(example.split()[:2]), 0
    ), done.stdout + done.stderr


def test_law_is_explained(run: Run) -> None:
    explained = run("explain", "logits_agree_with_the_oracle")

    assert explained.returncode == 0
    assert "Every logit is within the rounding budget of its exact value." in explained.stdout
    assert "  - Fc1LastUnitIsZero: " in explained.stdout


def test_doctor_finds_what_is_usable(run: Run) -> None:
    found = run("doctor")

    assert found.returncode == 0, found.stdout
    assert "ready: lenet-properties judge" in found.stdout


def test_package_that_hides_one_of_ours_is_one_line(run: Run, tmp_path: Path) -> None:
    hidden = run("doctor", PYTHONPATH=str(tmp_path))

    assert hidden.returncode == 2
    assert hidden.stderr.startswith("error: the package benchmarks of lenet-properties, ")
    assert f"`import benchmarks` finds {tmp_path / 'benchmarks'}; " in hidden.stderr
    assert hidden.stderr.count("\n") == 1


def test_unknown_command_is_one_line_that_lists_the_commands(run: Run) -> None:
    unknown = run("jugde")

    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: no command 'jugde'; there are judge, time, ")
    assert unknown.stderr.count("\n") == 1


def test_pytest_judges_with_the_plugin_in_a_foreign_project(installed: Path, tmp_path: Path) -> None:
    """The line of the README, in a project without options of the same names."""
    python = installed.with_name("python")
    law = ["--pyargs", "properties.laws.test_forward", "-k", "logits_agree", "--dtype", "float32", "--device", "cpu"]

    judged = subprocess.run(
        [python, "-m", "pytest", "-p", "properties.plugin", *law],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "1 law checked, 0 violated" in judged.stdout


COMMANDS = {name for group in lenet_properties.COMMANDS.values() for name in group}


@pytest.mark.parametrize("command", sorted(COMMANDS - {"source-mutants"}))  # which needs Cosmic Ray
def test_help_of_a_command_fits_a_screen(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 50 lines with 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")

    with pytest.raises(SystemExit, match="0"):
        lenet_properties.main([command, "--help"])

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 50
    assert command == "index" or any(line.startswith("example") for line in lines)
