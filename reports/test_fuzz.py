"""Records with mutated bytes and fields: an error of one line or a report, and never a file outside their folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reports import figures, history
from reports.commands import publish, report
from reports.conftest import Files, parsed, write

fuzz = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
EVIL = (
    "../../../x",
    "/x",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "$\\frac$",
    "a\nb",
    "]]>",
    "<script>",
    "`|`",
    "lenet on cpu",
    "é" * 300,
)
numbers = st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, 2**63, 10**400, 0.0, -0.0, 0.5, 1e-300, 5e-324, 1e300, -1e300])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.sampled_from(EVIL) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all fields and elements of a file."""
    parts = dict(enumerate(content)) if isinstance(content, list) else content
    for key, value in parts.items() if isinstance(parts, dict) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def similar(value: Any) -> st.SearchStrategy[Any]:
    """Values that often match the schema where this value does."""
    match value:
        case str():
            return st.sampled_from(EVIL) | st.text(max_size=5)
        case bool():
            return st.booleans()
        case int():
            return st.integers(0, 300) | numbers
        case float():
            return st.floats(min_value=0) | numbers
        case list():
            return st.sampled_from([value[:1], value * 2, []])
    return values


def mutated(data: st.DataObject, files: Files) -> Files:
    """The same files with up to three fields replaced or removed, and sometimes a few characters of one file."""
    files = copy.deepcopy(files)
    for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 3]))):
        name = data.draw(st.sampled_from(sorted(files)))
        *outer, last = data.draw(st.sampled_from(list(places(files[name]))))
        inner = files[name]
        for key in outer:
            inner = inner[key]
        if isinstance(inner, dict) and data.draw(st.integers(0, 9)) == 0:
            del inner[last]
        else:
            inner[last] = data.draw(similar(inner[last]) if data.draw(st.integers(0, 4)) else values)
    if data.draw(st.integers(0, 4)) == 0:
        text = json.dumps(files[name])
        start = data.draw(st.integers(0, len(text)))
        files[name] = text[:start] + data.draw(st.text(max_size=3)) + text[start + data.draw(st.integers(0, 3)) :]
    return files


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is slow."""
    monkeypatch.setattr(figures, "_svg", lambda figure: "<svg></svg>")


@pytest.mark.usefixtures("undrawn")
@fuzz
@given(data=st.data())
def test_report_of_any_fields(
    tmp_path: Path, complete: Files, gated: Files, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    for left in folder.iterdir():
        left.unlink()
    write(folder, mutated(data, complete | {"gate_trial.json": gated["gate_trial.json"]}))

    code = report([str(folder)])

    shown = capsys.readouterr()
    assert (code == 2) == shown.err.startswith("error: ")
    assert shown.err.count("\n") == (code == 2)
    assert "lacks data for the report" not in shown.err
    assert list(tmp_path.iterdir()) == [folder]
    if code != 2:
        assert parsed(folder).external == []
        assert Xml.parse(folder / "junit.xml").getroot().tag == "testsuite"
        json.loads((folder / "benchmark-action.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.usefixtures("undrawn")
@fuzz
@given(
    date=st.sampled_from(["2026-11-22T12:00:00+00:00"]) | st.sampled_from(EVIL) | st.text(),
    torch=st.sampled_from(["2.13.0", "2.."]) | st.sampled_from(EVIL) | st.text(),
    processor=st.sampled_from(["Test", ".."]) | st.sampled_from(EVIL) | st.text(),
)
def test_published_run_stays_in_its_folder(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch, date: str, torch: str, processor: str
) -> None:
    folder, runs = tmp_path / "run", tmp_path / "reports" / "runs"
    monkeypatch.setattr(history, "RUNS", runs)
    folder.mkdir(exist_ok=True)
    for content in files.values():
        content |= {"date": date, "stack": content["stack"] | {"torch": torch, "processor": processor}}
    write(folder, files)

    code = report([str(folder)]) or publish([str(folder)])

    assert code in (0, 2)
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "reports"}
    assert {path.name for path in tmp_path.glob("reports/*")} <= {"runs", "index.html"}
    assert all("_torch-2" in path.name and path.is_dir() for path in runs.glob("*"))
