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
from properties import judge
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


@pytest.mark.slow
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
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before | {"lenet-results"}
    assert (tmp_path / "lenet-results" / ".gitignore").read_text() == "*\n"
    (entry,) = laws(tmp_path / "lenet-results" / "latest")
    assert entry["command"].startswith("lenet-properties judge faulty.py:ReluMissing --law ")


@pytest.mark.slow
def test_command_of_a_failure_reproduces_it(run: Run, tmp_path: Path) -> None:
    law = ["--device", "cpu", "--dtype", "float32", "--law", "cross_entropy_agrees*", "--workers", "1"]
    run("judge", "faulty.py:ReluMissing", *law, "--record", "results")
    entry = laws(tmp_path / "results")[0]
    _, *words = shlex.split(entry["command"])

    again = run(*words, "--record", "again")

    assert again.returncode == 1, again.stdout + again.stderr
    (repeated,) = laws(tmp_path / "again")
    assert (repeated["counterexample"], repeated["message"]) == (entry["counterexample"], entry["message"])


@pytest.mark.slow
def test_gate_compares_two_commits_of_a_foreign_project(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from lenet import Net\n")
    git(tmp_path, ["init", "-q", "-b", "main"], ["add", "mine.py"], ["commit", "-q", "-m", "base"])
    slower = "import time\nimport lenet\n\n\nclass Net(lenet.Net):\n    def forward(self, images):\n        "
    slower += "end = time.perf_counter() + 0.01\n        while time.perf_counter() < end:\n            pass\n        "
    (tmp_path / "mine.py").write_text(f"{slower}return super().forward(images)\n")

    gate = run("gate", "--subject", "mine.py:Net", "--select", "forward-1", "--budget", "60s")

    assert gate.returncode == 1, gate.stdout + gate.stderr
    assert "FAILED: slower" in gate.stdout


@pytest.mark.slow
def test_gate_without_a_subject_says_what_a_foreign_project_lacks(run: Run, tmp_path: Path) -> None:
    git(tmp_path, ["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "base"])

    gate = run("gate", "--base", "HEAD")

    assert gate.returncode == 2
    assert gate.stderr.endswith("is not lenet-properties; name what to time: --subject path/to/file.py:Net\n")


@pytest.mark.slow
def test_known_deviation_is_drafted_forgiven_and_has_a_stand_alone_counterexample(run: Run, tmp_path: Path) -> None:
    law = ["--device", "cpu", "--dtype", "float32", "--law", "logits_agree*", "--workers", "1"]

    judged = run("judge", "faulty.py:ReluMissing", *law, "--write-known", "known.toml", "--repro", "files")
    forgiven = run("judge", "faulty.py:ReluMissing", *law, "--known", "known.toml")

    assert (judged.returncode, forgiven.returncode) == (1, 0), judged.stdout + forgiven.stdout
    assert "known.toml: a draft of 1 known deviation\n" in judged.stdout
    assert "cpu-float32.py fails, and the reference network passes\n" in judged.stdout
    assert len(list((tmp_path / "files").iterdir())) == 1


OPTIONS = [
    "--engine=eager",
    "--claim=tf32",
    "--device=cpu",
    "--dtype=float32",
    "--case=Case()",
    "--known=known.toml",
    "--write-known=new.toml",
    "--skip-laws=laws.txt",
    "--repro=files",
    "--timeout=3",
    "--example-timeout=2",
    "--record=results",
]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `judge` gives to pytest, which does not run."""
    given: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(pytest, "main", lambda arguments, plugins: given.extend(arguments) or pytest.ExitCode.OK)
    return given


@pytest.mark.parametrize("option", OPTIONS)
def test_option_of_judge_reaches_pytest(option: str, words: list[str]) -> None:
    assert judge.main(["mine.py", option, "--", "-x"]) == 0

    assert option in words
    assert words[-1] == "-x"
    assert "--subject=mine.py" in words


def test_every_option_of_judge_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        judge.main(["--help"])

    own = {"--help", "--law", "--profile", "--seed", "--workers"}
    assert set(re.findall(r"--[a-z-]+", capsys.readouterr().out.partition("examples:")[0])) == own | {
        option.partition("=")[0] for option in OPTIONS
    }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--law=none", "--law none: no law has this name"),
        ("--workers=0", "--workers: '0' is not a whole number of at least 1"),
        ("--timeout=-1", "--timeout: '-1' is not a number of seconds"),
        ("faulty.py", "faulty.py is named twice"),
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
    ],
)
def test_wrong_option_of_judge_exits_with_two(
    option: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = judge.main(["faulty.py", option])
    except SystemExit as exit_:
        code = exit_.code

    assert (code, words) == (2, [])
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_wrong_option_of_the_plugin_is_a_line_and_exits_with_two(run: Run) -> None:
    judged = run("judge", "faulty.py:ReluMissing", "--known=absent.toml")

    assert judged.returncode == 2, judged.stdout + judged.stderr
    assert judged.stderr.startswith("ERROR: --known absent.toml: ")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
