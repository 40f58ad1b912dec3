"""Loading a run: a missing, corrupt or inconsistent file is an error of one line, and leaves no page."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.__main__ import main
from reports.conftest import STACK, Files, entry, page, write


def without(*keys: str) -> Callable[[Any], Any]:
    """A function that returns its argument without the field that the keys lead to."""

    def cut(content: Any) -> Any:
        content = copy.deepcopy(content)
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return content

    return cut


BAD: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "empty": ("laws.json", lambda _: "", "laws.json is empty"),
    "truncated": ("laws.json", lambda content: json.dumps(content)[:100], "laws.json is corrupt"),
    "binary": ("training.json", lambda _: "\x00\x01", "training.json is corrupt"),
    "foreign": ("benchmarks.json", lambda _: {"hello": 1}, "not a file of this project"),
    "list": ("benchmarks.json", lambda _: [], "not a file of this project"),
    "newer": (
        "laws.json",
        lambda content: content | {"format": 4},
        "format 4 is unknown; this version reads formats 2 to 3",
    ),
    "no laws": (
        "laws.json",
        lambda content: content | {"laws": []},
        "no law was checked; write it again with `pytest properties/laws",
    ),
    "all skipped": (
        "laws.json",
        lambda content: content | {"laws": [entry("test_sums", "skipped")]},
        "no law was checked; write it again with `pytest properties/laws",
    ),
    "no times": (
        "benchmarks.json",
        lambda content: content | {"benchmarks": []},
        "nothing was timed; write it again with `pytest benchmarks",
    ),
    "no epochs": (
        "training.json",
        lambda content: content | {"history": []},
        "no epoch was trained; write it again with `python -m lenet.train",
    ),
    "missing field": (
        "laws.json",
        without("threshold"),
        "laws.json: $: 'threshold' is a required property; write it again with `pytest",
    ),
    "missing map": (
        "training.json",
        without("feature_maps", "after"),
        "training.json: $.feature_maps: 'after' is a required",
    ),
    "other subject": (
        "laws.json",
        lambda content: content | {"laws": [entry("test_sums", subject="mine.py")]},
        "benchmarks.json is of lenet, laws.json of mine.py; write it again with `pytest benchmarks",
    ),
    "other stack": (
        "training.json",
        lambda content: content | {"stack": STACK | {"torch": "2.5.1"}},
        "torch is 2.5.1, but 2.13.0 in laws.json; run both on one stack",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_file_is_an_error_and_leaves_no_page(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    name, damage, message = BAD[fault]
    write(tmp_path, files)
    main([str(tmp_path)])
    earlier = page(tmp_path)
    write(tmp_path, {name: damage(files[name])})
    capsys.readouterr()

    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index.html").exists()
    assert (tmp_path / "index.previous.html").read_text() == earlier


@pytest.mark.parametrize("name", ["laws.json", "benchmarks.json", "training.json"])
def test_missing_file_is_named_with_the_command_that_writes_it(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    del files[name]
    write(tmp_path, files)

    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{name} is missing; `" in error
    assert error.endswith("` writes it\n")


@pytest.mark.parametrize("name", ["gate.json", "gate_trial.json"])
def test_corrupt_optional_file_is_an_error(tmp_path: Path, gated: Files, name: str) -> None:
    write(tmp_path, gated | {name: "{"})

    assert main([str(tmp_path)]) == 2
