"""The action and the workflows: actions are pinned, shell code has no interpolation, and the commands in it exist."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from configparser import RawConfigParser
from functools import cache
from pathlib import Path

import pytest

from properties.testing import run_module

ROOT = Path(__file__).parents[1]
FILES = [path for path in (ROOT / "action.yml", *sorted(ROOT.glob(".github/workflows/*.yml"))) if path.exists()]
if not FILES:
    pytest.skip("installed packages have no workflows", allow_module_level=True)

TEXTS = {path.name: re.sub(r"(?m)^ *#.*\n", "", path.read_text()) for path in FILES}
"""The content of each file without the lines that are comments."""

OPTION = re.compile(r"""(?<![\w-])--?[a-z][\w-]*""")


@pytest.fixture(params=TEXTS)
def text(request: pytest.FixtureRequest) -> str:
    return TEXTS[request.param]


def scripts(text: str) -> Iterator[str]:
    """The shell code of each `run:` of a workflow."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if found := re.match(r"( *)(?:- )?run: (.*)", line):
            indent = len(found[1])
            following = lines[number + 1 :]
            block = [each for each in following if not each.strip() or len(each) - len(each.lstrip()) > indent]
            end = next((n for n, each in enumerate(following) if each not in block), len(following))
            yield "\n".join(following[:end]) if found[2] == "|" else found[2]


def commands(name: str) -> list[tuple[str, list[str]]]:
    """Each call of a command in all files: its first argument, and its options up to `--`."""
    code = "\n".join(script for text in TEXTS.values() for script in scripts(text)).replace("\\\n", " ")
    found = []
    for line in code.splitlines():
        for call in re.findall(rf"(?<![\w/-]){re.escape(name)} ([a-z_][\w.-]*)([^|>&]*)", line):
            options = call[1].partition(" -- ")[0].partition(" # ")[0]
            found.append((call[0], OPTION.findall(options)))
    return found


@cache
def help_text(command: str) -> str:
    """What a command says with --help."""
    result = run_module("lenet_properties", command, "--help")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_actions_of_others_are_pinned_by_a_commit_with_its_version(text: str) -> None:
    uses = re.findall(r"uses: *(.*)", text)

    assert all(re.fullmatch(r"\./( #.*)?|[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each) for each in uses), uses


def test_one_action_has_one_version_in_all_files() -> None:
    pins = {pin for text in TEXTS.values() for pin in re.findall(r"uses: *([\w/-]+)@(.*)", text)}

    assert len({name for name, _ in pins}) == len(pins) > 0


def test_shell_code_has_no_interpolation_and_parses(text: str) -> None:
    for script in scripts(text):
        assert "${{" not in script  # values come by `env`, as data
        result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_script_that_comments_has_no_interpolation() -> None:
    script = TEXTS["gate-comment.yml"].partition("script: |")[2]

    assert "fs.readFileSync" in script
    assert "${{" not in script


def test_every_file_is_yaml(text: str) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

    content = yaml.safe_load(text)

    assert content.keys() & {"jobs", "runs"}


def test_workflows_have_no_permission_that_a_job_does_not_name() -> None:
    assert [name for name, text in TEXTS.items() if "\npermissions: {}\n" not in text] == ["action.yml"]


def test_tox_environments_exist() -> None:
    ini = RawConfigParser()
    ini.read(ROOT / "tox.ini")
    code = "\n".join(script for text in TEXTS.values() for script in scripts(text))
    named = [name for names in re.findall(r"tox run -e ([\w,-]+)", code) for name in names.split(",")]

    assert named
    assert [name for name in named if f"testenv:{name}" not in ini] == []


@pytest.mark.slow
def test_commands_of_lenet_properties_and_their_options_exist() -> None:
    called = commands("lenet-properties")

    assert {"judge", "time", "train", "report", "annotate", "gate"} <= {command for command, _ in called}
    for command, options in called:
        known = OPTION.findall(help_text(command))
        assert set(options) <= set(known), command


def test_action_installs_the_pinned_pytorch_by_default() -> None:
    pinned = re.findall(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    action, *workflows = TEXTS.values()

    assert re.findall(r"torch-version:\n +description: .*\n +default: (.*)", action) == pinned
    named = [version for each in workflows for version in re.findall(r"torch != '([\d.]+)'|default: ([\d.]+)", each)]
    assert {"".join(version) for version in named} == set(pinned)


def test_inputs_that_the_action_reads_are_those_that_it_declares() -> None:
    action = TEXTS["action.yml"]
    declared = re.findall(r"^  ([\w-]+):$", action.partition("\ninputs:")[2].partition("\nruns:")[0], re.MULTILINE)

    assert set(re.findall(r"inputs\.([\w-]+)", action)) == set(declared)
    for text in TEXTS.values():
        for _, given in re.findall(r"uses: \./.*\n( +)with:\n((?:\1 +[\w-]+:.*\n)+)", text):
            assert set(re.findall(r"^ +([\w-]+):", given, re.MULTILINE)) <= set(declared)
