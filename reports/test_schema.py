"""The schema of a run's files: what the commands write keeps to it, and what does not is refused in a line."""

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
from properties.test_options import run, run_module
from reports import figures
from reports.__main__ import main
from reports.run import WRITERS, read
from reports.test_page import Files, files, gated, write

__all__ = ["files", "gated"]

SCHEMA = json.loads(resources.files("reports").joinpath("schema.json").read_text())
PUBLISHED = sorted(Path(__file__).parent.glob("runs/*/*.json"))

COMMANDS = {
    "laws.json": ["pytest", "properties/test_module.py", "-k", "float32", "--hypothesis-profile=mutants"],
    "engines.json": ["pytest", "properties/test_forward.py", "--engine", "eager", "--hypothesis-profile=mutants"],
    "benchmarks.json": ["pytest", "benchmarks", "-m", "benchmark", "--dtype", "float32", "-k", "update and manual"],
    "training.json": ["lenet.training", "--epochs", "1", "--compare"],
    "engine_times.json": ["benchmarks.engine_times", "--engines", "eager", "--batches", "1", "--budget", "0.01"],
}
"""What writes each file, as small as it can be."""


def test_the_schema_is_one_and_defines_every_file() -> None:
    Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["$defs"].keys() >= WRITERS.keys()
    assert all(SCHEMA["$defs"][name]["description"] for name in WRITERS)
    assert SCHEMA["$defs"]["run"]["properties"]["format"]["const"] == FORMAT
    assert f"format {FORMAT}" in SCHEMA["title"]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_writes_keeps_to_the_schema(name: str, tmp_path: Path) -> None:
    checkpoint = ["--checkpoint", str(tmp_path / "run.pt")] if name == "training.json" else []

    result = run_module(*COMMANDS[name], "--record", str(tmp_path), *checkpoint)

    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert read(tmp_path / name)["format"] == FORMAT


def test_an_error_without_end_is_null(tmp_path: Path) -> None:
    """JSON has no infinity."""
    forward = "def forward(self, images):\n        return super().forward(images) + float('nan')"
    source = f"import lenet\n\n\nclass Net(lenet.Net):\n    {forward}\n"
    (tmp_path / "faulty.py").write_text(source)
    law = ["properties/test_forward.py", "-k", "logits_agree", "--hypothesis-profile=mutants", "--dtype", "float32"]
    given = ["--subject", f"{tmp_path}/faulty.py:Net", "--record", str(tmp_path)]

    result = run(*law, *given)

    assert result.returncode == 1, result.stdout[-2000:] + result.stderr[-2000:]
    assert [entry["worst"] for entry in read(tmp_path / "laws.json")["laws"]][:1] == [None]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_published_keeps_to_the_schema(path: Path) -> None:
    if path.name in WRITERS:
        assert read(path)["format"] == FORMAT


def required(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all that is in a file, of a list its first element's."""
    parts = dict(enumerate(content[:1])) if isinstance(content, list) else content
    for key, value in parts.items() if isinstance(parts, dict) else ():
        yield (*place, key)
        yield from required(value, (*place, key))


def test_a_page_or_a_line_comes_of_files_that_lack_anything(
    tmp_path: Path, gated: Files, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is taken away, and whatever is of another type: no traceback, and what is refused is named."""
    monkeypatch.setattr(figures, "_svg", lambda figure: "<svg></svg>")  # which takes the time
    refused = 0
    for name, content in gated.items():
        for place in required(content):
            for spoil in ("lacks", "other"):
                spoiled = copy.deepcopy(content)
                inner = spoiled
                for key in place[:-1]:
                    inner = inner[key]
                if spoil == "lacks":
                    del inner[place[-1]]
                else:
                    inner[place[-1]] = {"a": [None]}
                write(tmp_path, gated | {name: spoiled})
                code = main([str(tmp_path)])
                error = capsys.readouterr().err
                assert code in (0, 1) or (code == 2 and error.startswith("error: ") and error.count("\n") == 1), place
                assert code != 2 or name in error, (place, error)
                refused += code == 2
    assert refused > 100
