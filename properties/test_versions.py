"""Judging releases of PyTorch: what is kept, continued, removed and refused; the installation itself is not tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from properties import versions
from properties.versions import judged_versions, main, read, run_laws


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, mock.Mock]]:
    """Two parts that find something, in releases that this Python stands for; files go to `tmp_path`."""
    monkeypatch.setattr(versions, "RELEASES", tmp_path / "releases")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "describe", lambda python: {"torch": "of this release"})

    def install(version: str, folder: Path) -> Path:
        folder.mkdir()
        if version == "2.0.0":
            raise RuntimeError("torch 2.0.0 could not be installed")
        return Path(sys.executable)

    monkeypatch.setattr(versions, "install", install)
    found = {name: mock.Mock(return_value={name: "found"}) for name in ("scripts", "laws")}
    with mock.patch.dict(versions.PARTS, found, clear=True):
        yield found


def test_release_is_kept_and_its_environment_removed(parts: dict[str, mock.Mock], tmp_path: Path) -> None:
    assert main(["2.9.1", "2.10.0"]) == 0

    expected = {"stack": {"torch": "of this release"}, "scripts": {"scripts": "found"}, "laws": {"laws": "found"}}
    assert read("2.9.1") == read("2.10.0") == expected
    assert judged_versions() == ["2.9.1", "2.10.0"]
    assert list((tmp_path / "lenet-results/versions").iterdir()) == []


def test_what_is_done_is_not_done_again(parts: dict[str, mock.Mock], capsys: pytest.CaptureFixture[str]) -> None:
    parts["laws"].side_effect = RuntimeError("the laws did not run to their end")

    assert main(["2.9.1"]) == 2
    assert capsys.readouterr().err == "torch 2.9.1: the laws did not run to their end\n"
    assert read("2.9.1").keys() == {"stack", "scripts"}

    parts["laws"].side_effect = None
    assert main(["2.9.1"]) == main(["2.9.1"]) == 0
    assert read("2.9.1").keys() == {"stack", "scripts", "laws"}
    assert parts["scripts"].call_count == 1
    assert "done already" in capsys.readouterr().out


def test_release_that_cannot_be_installed_does_not_stop_the_others(parts: dict[str, mock.Mock], tmp_path: Path) -> None:
    assert main(["2.0.0", "2.9.1", "--part", "scripts", "--keep"]) == 2

    assert judged_versions() == ["2.9.1"]
    assert (tmp_path / "lenet-results/versions/2.9.1/environment").is_dir()


def test_full_disk_is_one_line_before_anything_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.shutil, "disk_usage", lambda folder: mock.Mock(free=3e9))

    with pytest.raises(RuntimeError, match=r"has 3.0 GB free, an installation needs 12 GB"):
        versions.install("2.9.1", tmp_path / "environment")
    assert list(tmp_path.iterdir()) == []


def test_unknown_release_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["newest"])

    assert "newest: not a release such as 2.9.1" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_laws_are_grouped_by_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool) -> None:
    laws = [
        {"law": "test_sums", "stack": "in float64", "outcome": "passed", "known_issues": []},
        {"law": "test_sums", "stack": "in float32", "outcome": "failed", "known_issues": []},
        {"law": "test_sums", "stack": "in float16", "outcome": "passed", "known_issues": [{"title": "a bug"}]},
        {"law": "test_sums", "stack": "in float32", "outcome": "failed", "known_issues": []},
    ]

    def run(command: list[str], **options: Any) -> None:
        record = Path(command[command.index("--record") + 1])
        record.mkdir()
        (record / "laws.json").write_text(json.dumps({"finished": finished, "errors": [], "laws": laws}))

    monkeypatch.setattr(versions.subprocess, "run", run)

    if finished:
        outcomes = {"passed": ["in float64"], "failed": ["in float32"], "known issue": ["in float16"]}
        assert run_laws(Path("python"), tmp_path / "laws") == {"sums": outcomes}
    else:
        with pytest.raises(RuntimeError, match="the laws did not run to their end: python -m lenet_properties judge"):
            run_laws(Path("python"), tmp_path / "laws")
