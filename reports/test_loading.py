"""Loading a run: a missing, corrupt or inconsistent file is an error of one line, and leaves no page."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.commands import report
from reports.conftest import STACK, Files, entry, parsed, timing, write
from reports.loading import load


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
    "format that is not a number": (
        "laws.json",
        lambda content: content | {"format": "three"},
        "format three is unknown; this version reads formats 2 to 3",
    ),
    "NaN": (
        "training.json",
        lambda content: content | {"history": [{"loss": math.nan, "accuracy": 0.9}]},
        "training.json is corrupt: the number NaN is not finite; write it again with `lenet-properties train",
    ),
    "infinity": (
        "laws.json",
        lambda content: content | {"threshold": math.inf},
        "laws.json is corrupt: the number Infinity is not finite",
    ),
    "number beyond float64": (
        "benchmarks.json",
        lambda content: json.dumps(content).replace("0.001", "1e999", 1),
        "benchmarks.json is corrupt: the number 1e999 is not finite",
    ),
    "integer beyond 64 bits": (
        "benchmarks.json",
        lambda content: json.dumps(content).replace("1000000", "9" * 5000, 1),
        f"benchmarks.json is corrupt: the integer {'9' * 40} has more than 64 bits",
    ),
    "deep": ("laws.json", lambda _: "[" * 10**5, "laws.json is corrupt: too deeply nested"),
    "deep where a text is expected": (
        "laws.json",
        lambda content: json.dumps(content).replace('"ci"', "[" * 5000 + "]" * 5000),
        "laws.json is corrupt: too deeply nested",
    ),
    "no torch": (
        "laws.json",
        without("stack", "torch"),
        "laws.json: $.stack: 'torch' is a required property; write it again with `lenet-properties",
    ),
    "torch that is a path": (
        "laws.json",
        lambda content: content | {"stack": STACK | {"torch": "2.13.0/../../../x"}},
        "laws.json: $.stack.torch: '2.13.0/../../../x' does not match",
    ),
    "date that is a path": (
        "laws.json",
        lambda content: content | {"date": "/tmp/2026"},
        "laws.json: $.date: '/tmp/2026' does not match",
    ),
    "no such day": (
        "laws.json",
        lambda content: content | {"date": "2026-02-30T12:00:00+00:00"},
        "laws.json: $.date: day is out of range for month; write it again with",
    ),
    "median of 0": (
        "benchmarks.json",
        lambda content: content | {"benchmarks": [timing("forward", 1, 0.0)]},
        "0.0 is less than the minimum of 1e-12; write it again with `lenet-properties time",
    ),
    "of an earlier run": (
        "training.json",
        lambda content: content | {"date": "2024-11-22T12:00:00+00:00"},
        "training.json: written at 2024-11-22T12:00:00+00:00, but laws.json at 2026-11-22T12:00:00+00:00: more than a "
        "day apart is another run; write it again with `lenet-properties train",
    ),
    "times in another dtype": (
        "benchmarks.json",
        lambda content: content | {"benchmarks": [timing("forward", 1, 0.1, dtype="float64")]},
        "benchmarks.json is of lenet on cpu in float64, laws.json of lenet on cpu in float32; write it again with "
        "`lenet-properties time --record DIR`, with the same --device and --dtype",
    ),
    "rows of different lengths": (
        "training.json",
        lambda content: content | {"digit": {"label": 2, "pixels": [[0.0, 1.0], [0.0]]}},
        "training.json: an image has rows of different lengths; write it again with `lenet-properties train",
    ),
    "no laws": (
        "laws.json",
        lambda content: content | {"laws": []},
        "no law was checked; write it again with `lenet-properties judge",
    ),
    "all skipped": (
        "laws.json",
        lambda content: content | {"laws": [entry("test_sums", "skipped")]},
        "no law was checked; write it again with `lenet-properties judge",
    ),
    "no times": (
        "benchmarks.json",
        lambda content: content | {"benchmarks": []},
        "nothing was timed; write it again with `lenet-properties time",
    ),
    "no epochs": (
        "training.json",
        lambda content: content | {"history": []},
        "no epoch was trained; write it again with `lenet-properties train",
    ),
    "missing field": (
        "laws.json",
        without("threshold"),
        "laws.json: $: 'threshold' is a required property; write it again with `lenet-properties",
    ),
    "missing map": (
        "training.json",
        without("feature_maps", "after"),
        "training.json: $.feature_maps: 'after' is a required",
    ),
    "other subject": (
        "laws.json",
        lambda content: content | {"laws": [entry("test_sums", subject="mine.py")]},
        "benchmarks.json is of lenet, laws.json of mine.py; write it again with `lenet-properties time",
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
    write(tmp_path, files | {name: damage(files[name])})
    (tmp_path / "index.html").write_text("earlier")

    assert report([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "index.html").exists()
    assert (tmp_path / "index.previous.html").read_text() == "earlier"


@pytest.mark.parametrize("name", ["laws.json", "benchmarks.json", "training.json"])
def test_missing_file_is_named_with_the_command_that_writes_it(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    del files[name]
    write(tmp_path, files)

    assert report([str(tmp_path), "--complete"]) == 2
    error = capsys.readouterr().err
    assert f"{name} is missing; `" in error
    assert error.endswith("` writes it\n")


def test_run_without_times_and_training_is_reported(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"laws.json": files["laws.json"]})

    assert report([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("PASSED: ")
    assert "No training step was timed." in shown
    assert "not run: times (`lenet-properties time`), training (`lenet-properties train --record DIR`), " in shown
    assert "Not timed: run <code>lenet-properties time</code>." in (tmp_path / "index.html").read_text()
    learn = (tmp_path / "learn.html").read_text()
    assert "Not trained: run <code>lenet-properties train --record DIR</code>." in learn


def test_run_of_engines_alone_is_reported(tmp_path: Path, complete: Files, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"engines.json": complete["engines.json"]})

    assert report([str(tmp_path)]) == 0
    assert "not run: laws on the subject (`lenet-properties judge`), " in capsys.readouterr().out


def test_run_without_laws_is_an_error(tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    del files["laws.json"]
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 2
    assert "laws.json is missing; `lenet-properties judge --record DIR` writes it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gate.json", "gate_trial.json"])
def test_corrupt_optional_file_is_an_error(tmp_path: Path, gated: Files, name: str) -> None:
    write(tmp_path, gated | {name: "{"})

    assert report([str(tmp_path)]) == 2


FOREIGN: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "failed gate of two years ago": (
        "gate.json",
        lambda content: content | {"verdict": "failed", "date": "2024-11-22T12:00:00+00:00"},
        "gate.json: written at 2024-11-22T12:00:00+00:00, but laws.json at 2026-11-22T12:00:00+00:00: more than a day "
        "apart is another run; write it again with `lenet-properties gate",
    ),
    "engines on another machine": (
        "engines.json",
        lambda content: content | {"stack": STACK | {"processor": "Other"}},
        "engines.json: processor is Other, but Test in laws.json; run both on one stack",
    ),
    "engines of another subject": (
        "engines.json",
        lambda content: content | {"laws": [entry("test_sums", subject="lenet2 by eager")]},
        "engines.json: of lenet2 by eager, but laws.json of lenet; write it again with `lenet-properties judge",
    ),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_optional_file_of_another_run_is_named_and_not_used(
    tmp_path: Path, complete: Files, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    name, change, message = FOREIGN[fault]
    write(tmp_path, complete | {name: change(complete[name])})

    assert report([str(tmp_path)]) == 0

    assert f"\nnot used: {message}" in capsys.readouterr().out
    assert f"Not used: {message}".replace("`", "") in parsed(tmp_path).text
    assert f"- not used: `{message}".split("; ")[0] in (tmp_path / "summary.md").read_text()
    assert name not in load(tmp_path).files


def test_control_characters_and_half_characters_are_replaced(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would write to a terminal, or could not be written at all."""
    for content in files.values():
        content["stack"] = STACK | {"processor": "\x1b[2J\ud800 Test\u202e"}
    write(tmp_path, files)

    assert report([str(tmp_path)]) == 0

    assert " on ?[2J? Test?, 2 cores: " in capsys.readouterr().out
    assert "?[2J? Test?" in parsed(tmp_path).text
