"""The schema of a run's files: the commands write files that match it, and any other file is an error of one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lenet.fingerprint import FORMAT
from properties.testing import run, run_module
from reports import figures
from reports.commands import report
from reports.conftest import Files, write
from reports.loading import WRITERS, read
from reports.upgrades import OLDEST

SCHEMA = json.loads(resources.files("reports").joinpath("schema.json").read_text())
PUBLISHED = sorted(Path(__file__).parent.glob("runs/*/*.json"))

COMMANDS = {
    "laws.json": ["judge", "--law", "to_dtype*", "--dtype", "float32", "--profile", "quick"],
    "engines.json": ["judge", "--law", "logits_agree*", "--dtype", "float32", "--engine", "eager"],
    "benchmarks.json": ["time", "--dtype", "float32", "--steps", "update and manual"],
    "training.json": ["train", "--epochs", "1", "--compare"],
    "engine_times.json": ["engine-times", "--engines", "eager", "--batches", "1", "--budget", "0.01"],
}
"""A short command that writes each file."""


def test_schema_defines_every_file() -> None:
    Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["$defs"].keys() >= WRITERS.keys()
    assert all(SCHEMA["$defs"][name]["description"] for name in WRITERS)
    assert SCHEMA["$defs"]["run"]["properties"]["format"]["const"] == FORMAT
    assert f"format {FORMAT}" in SCHEMA["title"]
    assert SCHEMA["$id"] == f"urn:lenet-properties:run:{FORMAT}"


def with_unknown_fields(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a file with a further field, and one in each object of its lists."""
    added: dict[str, Any] = {"unknown": {"a": 1}}
    for name, value in content.items():
        objects = isinstance(value, list) and all(isinstance(element, dict) for element in value)
        added[name] = [with_unknown_fields(element) for element in value] if objects else value
    return added


@pytest.mark.slow
def test_unknown_fields_are_ignored(tmp_path: Path, gated: Files) -> None:
    """A newer version may add fields to a format."""
    pages = []
    for files in (gated, {name: with_unknown_fields(content) for name, content in gated.items()}):
        write(tmp_path, files)
        assert report([str(tmp_path)]) == 1  # its gate failed
        pages.append((tmp_path / "summary.md").read_text())

    assert pages[0] == pages[1]


@pytest.mark.parametrize("name", WRITERS)
def test_newer_format_is_an_error_of_one_line(
    name: str, tmp_path: Path, gated: Files, complete: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files = complete | gated
    write(tmp_path, files | {name: files[name] | {"format": FORMAT + 1}})

    assert report([str(tmp_path)]) == 2

    known = f"this version reads formats {OLDEST} to {FORMAT}"
    assert capsys.readouterr().err == f"error: {tmp_path / name}: format {FORMAT + 1} is unknown; {known}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_written_file_matches_the_schema(name: str, tmp_path: Path) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "run.pt")] if name == "training.json" else []

    result = run_module("lenet_properties", *COMMANDS[name], "--record", str(tmp_path), *checkpoint)

    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert json.loads((tmp_path / name).read_text())["format"] == FORMAT
    assert read(tmp_path / name)["format"] == FORMAT


def test_infinite_error_is_null(tmp_path: Path) -> None:
    """JSON has no infinity."""
    forward = "def forward(self, images):\n        return super().forward(images) + float('nan')"
    source = f"import lenet\n\n\nclass Net(lenet.Net):\n    {forward}\n"
    (tmp_path / "faulty.py").write_text(source)
    law = ["properties/laws/test_forward.py", "-k", "logits_agree", "--hypothesis-profile=mutants"]
    options = ["--dtype", "float32", "--subject", f"{tmp_path}/faulty.py:Net", "--record", str(tmp_path)]

    result = run(*law, *options)

    assert result.returncode == 1, result.stdout[-2000:] + result.stderr[-2000:]
    assert [entry["worst_ratio"] for entry in read(tmp_path / "laws.json")["laws"]][:1] == [None]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_published_file_matches_the_schema(path: Path) -> None:
    if path.name in WRITERS:
        assert read(path)["format"] == FORMAT


def fields(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all fields of a file; of a list, only those of its first element."""
    parts = dict(enumerate(content[:1])) if isinstance(content, list) else content
    for key, value in parts.items() if isinstance(parts, dict) else ():
        yield (*path, key)
        yield from fields(value, (*path, key))


@pytest.mark.slow
def test_missing_or_mistyped_field_gives_a_page_or_an_error_of_one_line(
    tmp_path: Path, gated: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is never a traceback, and the error names the file."""
    monkeypatch.setattr(figures, "_svg", lambda figure: "<svg></svg>")  # drawing is slow
    errors = 0
    for name, content in gated.items():
        for path in fields(content):
            for damage in ("missing", "mistyped"):
                damaged = copy.deepcopy(content)
                inner = damaged
                for key in path[:-1]:
                    inner = inner[key]
                if damage == "missing":
                    del inner[path[-1]]
                else:
                    inner[path[-1]] = {"a": [None]}
                write(tmp_path, gated | {name: damaged})
                code = report([str(tmp_path)])
                error = capsys.readouterr().err
                assert code in (0, 1) or (code == 2 and error.startswith("error: ") and error.count("\n") == 1), path
                assert code != 2 or name in error, (path, error)
                errors += code == 2
    assert errors > 100
