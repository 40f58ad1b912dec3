"""The fingerprint names the versions and the hardware of the machine, and the stamp adds date and command."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from lenet import fingerprint as module
from lenet import system
from lenet.fingerprint import PACKAGES, fingerprint, headline, project, stamp


def test_fingerprint_names_versions_and_hardware() -> None:
    stack = fingerprint()

    assert stack["torch"] == torch.__version__
    assert {name: stack[name] for name in PACKAGES} == {name: version(name) for name in PACKAGES}
    assert ("GPU" in stack) == torch.cuda.is_available()
    assert all(isinstance(words, str) and words for words in stack.values())


@pytest.mark.skipif(torch.backends.mkl.is_available() is False, reason="this build of PyTorch has no MKL")
def test_fingerprint_names_the_libraries_that_compute() -> None:
    stack = fingerprint()

    assert re.fullmatch(r"MKL 20\d\d\.\d+", stack["BLAS"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", stack["oneDNN"])
    assert re.search(r"\d", stack["BLAS of numpy"])


def test_fingerprint_has_the_limits_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "affinity", lambda: "0-3")
    monkeypatch.setattr(system, "cpu_limit", lambda: 1.5)
    monkeypatch.setattr(system, "memory_limit", lambda: 2**30)
    monkeypatch.setattr(system, "governors", lambda: "")

    stack = fingerprint()

    assert (stack["affinity"], stack["CPU limit"], stack["memory limit"]) == ("0-3", "1.5 cores", "1024 MiB")
    assert "governor" not in stack
    assert stack["kernel"] == platform.release()


def git(folder: Path, *command: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *identity, *command], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with one commit and a tag, which the project takes for its own clone."""
    (tmp_path / "file").write_text("one")
    for command in (["init"], ["add", "."], ["commit", "-m", "first"], ["tag", "-a", "v9", "-m", "nine"]):
        git(tmp_path, *command)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    project.cache_clear()
    yield tmp_path
    project.cache_clear()


def test_project_has_its_commit_and_whether_the_tree_was_dirty(clone: Path) -> None:
    head = git(clone, "rev-parse", "HEAD").strip()
    (clone / "untracked").touch()
    clean = project()
    project.cache_clear()
    (clone / "file").write_text("two")

    assert (clean["commit"], clean["dirty"]) == (head, False)
    assert (project()["commit"], project()["dirty"]) == (head, True)


def test_repository_that_the_project_is_installed_in_is_not_its_own(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / "site-packages").mkdir()
    monkeypatch.setattr(module, "ROOT", clone / "site-packages")

    assert project().keys() == {"version"}


def test_commit_is_unknown_without_git(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert project().keys() == {"version"}


def test_missing_package_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(package: str) -> str:
        if package == PACKAGES[0]:
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(module, "version", installed)

    known = (*PACKAGES, "onnxruntime", "openvino", "jax")
    assert [name for name in fingerprint() if name in known] == list(known[1:])


def test_gpu_is_named_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")

    stack = fingerprint()

    assert stack["GPU"] == "H200"
    assert {"CUDA", "cuDNN"} <= stack.keys()


@pytest.mark.parametrize(
    ("cpuinfo", "platforms", "name"),
    [
        ("vendor_id\t: A\nmodel name\t: Model: 5\nmodel name\t: Other\n", "arm", "Model: 5"),
        ("vendor_id\t: A\n", "arm", "arm"),
        (None, "arm", "arm"),
        (None, "", "x86_64"),
    ],
)
def test_processor_is_its_model_name_or_what_the_platform_reports(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, platforms: str, name: str
) -> None:
    def read(path: Path) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "processor", lambda: platforms)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")

    assert system.processor() == name


def test_processor_whose_name_is_no_text_is_what_the_platform_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: b"model name\t: \xff".decode())
    monkeypatch.setattr(platform, "processor", lambda: "arm")

    assert system.processor() == "arm"


def test_stamp_has_date_and_command() -> None:
    record = stamp("python -m lenet")

    assert record["format"] == module.FORMAT
    assert record["command"] == "python -m lenet"
    assert record["stack"] == fingerprint()
    assert record["project"] == project()
    assert datetime.now(UTC) - datetime.fromisoformat(record["date"]) < timedelta(minutes=1)


def test_headline_is_one_line() -> None:
    stack = {"torch": "2.0", "python": "3.11", "processor": "Model", "cores": "2"}

    assert headline(stack) == "torch 2.0, Python 3.11, Model, 2 cores"
    assert headline(stack | {"GPU": "H200"}) == "torch 2.0, Python 3.11, Model, 2 cores, H200"


def test_command_has_relative_paths_below_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    command = stamp(f"python x.py --in {tmp_path}/a/b --out={tmp_path}/c --to /data{tmp_path}/d /elsewhere")["command"]

    assert command == f"python x.py --in a/b --out=c --to /data{tmp_path}/d /elsewhere"
