"""
Reads the files of a run, validates them against `reports/schema.json`, and checks that they are of one run.

The files are data of anybody: nothing in them names a file, is executed, or reaches a terminal as a control character.
"""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from benchmarks.trial_table import rows
from lenet.fingerprint import FORMAT
from reports.laws import LawResults, group_laws
from reports.run import Run, Timing
from reports.upgrades import OLDEST, upgrade

WRITERS = {
    "laws.json": "lenet-properties judge --record DIR",
    "benchmarks.json": "lenet-properties time --record DIR",
    "training.json": "lenet-properties train --record DIR",
    "engines.json": "lenet-properties judge --engine NAMES --record DIR",
    "engine_times.json": "lenet-properties engine-times --record DIR",
    "gate.json": "lenet-properties gate --json DIR/gate.json",
    "gate_trial.json": "lenet-properties gate-trial --record DIR",
}
"""The command that writes each file of a run."""

LAWS = ("laws.json", "engines.json")
"""The files with verdicts of laws. A run has at least one; that of the subject, if it is there, is the main one."""

COMPLETE = ("laws.json", "benchmarks.json", "training.json")
"""The files that a complete run has."""

OPTIONAL = ("engines.json", "engine_times.json", "gate.json", "gate_trial.json")
"""The files that are not used if they are of another run than the main file."""

SPAN = timedelta(days=1)
"""How far the dates of a run's files may lie apart: all commands of tox.ini, one after the other, take a few hours."""

MAX_INTEGER = 2**63 - 1
"""The largest integer of a file, as in C and NumPy; arithmetic with it stays finite."""

MAX_MESSAGE = 2000
"""The longest error message: 25 lines of a terminal."""

UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than tab and newline, changes of the direction of writing, and half surrogate pairs."""


class ReportError(ValueError):
    """A run cannot be read; the message is one line that names the file and the problem."""


def load(folder: Path, complete: bool = False) -> Run:
    """
    Read the files of a run; of a `complete` one, laws, times and training.

    Raises ReportError if one is invalid, if the run has no verdicts of laws or is not as complete as it should be, or
    if times or training are of another run than the main file. An optional file of another run is not used;
    `Run.unused` names it.
    """
    main = next((name for name in LAWS if (folder / name).exists()), LAWS[0])
    needed = {main, *(COMPLETE if complete else ())}
    contents = {name: read(folder / name) for name in WRITERS if name in needed or (folder / name).exists()}
    faults = {name: _of_another_run(name, content, contents[main]) for name, content in contents.items()}
    for name, fault in faults.items():
        if fault and name not in OPTIONAL:
            raise ReportError(f"{folder / name}: {fault}")
    files = {name: content for name, content in contents.items() if not faults[name]}
    laws, benchmarks = files[main], files.get("benchmarks.json", {"benchmarks": [], "errors": []})
    run = Run(
        stack=laws["stack"],
        date=laws["date"],
        threshold=laws["threshold"],
        profile=laws["profile"],
        commands=[content["command"] for content in files.values()],
        laws=law_results(laws),
        timings=[_timing(entry) for entry in benchmarks["benchmarks"]],
        failed_benchmarks=benchmarks["errors"],
        training={"comparisons": {}} | files["training.json"] if "training.json" in files else None,
        gate=files.get("gate.json"),
        gate_trial=rows(files["gate_trial.json"]["verdicts"]) if "gate_trial.json" in files else [],
        engines=law_results(files["engines.json"]) if "engines.json" in files and main == "laws.json" else None,
        engine_times=files.get("engine_times.json"),
        latencies=[_latency(entry) for entry in benchmarks["benchmarks"] if "latency" in entry["extra_info"]],
        project=laws.get("project", {}),
        files=list(files),
        unused=[f"{name}: {fault}" for name, fault in faults.items() if fault],
    )
    _check(folder, main, run, {entry["subject"] for entry in laws["laws"]})
    return run


def _check(folder: Path, main: str, run: Run, judged: set[str]) -> None:
    """Raise ReportError if nothing was judged, timed or trained, or if something was timed that was not judged."""
    if not run.laws.stacks:
        raise ReportError(f"{folder / main}: no law was checked; {_again(main)}")
    timed = {timing.subject for timing in run.timings}
    if timed - judged:
        subjects = f"benchmarks.json is of {', '.join(sorted(timed))}, laws.json of {', '.join(sorted(judged))}"
        raise ReportError(f"{folder}: {subjects}; {_again('benchmarks.json')}, with the same --subject")
    for timing in run.timings:
        stack = f"{timing.subject} on {timing.device} in {timing.dtype}"
        if not any(each.startswith(stack) for each in run.laws.stacks):
            raise ReportError(
                f"{folder}: benchmarks.json is of {stack}, laws.json of {'; '.join(run.laws.stacks)}; "
                f"{_again('benchmarks.json')}, with the same --device and --dtype"
            )
    if not run.timings and "benchmarks.json" in run.files:
        raise ReportError(f"{folder / 'benchmarks.json'}: nothing was timed; {_again('benchmarks.json')}")
    if run.training is None:
        return
    if not run.training.get("history"):
        raise ReportError(f"{folder / 'training.json'}: no epoch was trained; {_again('training.json')}")
    maps = [map_ for when in run.training["feature_maps"].values() for layer in when.values() for map_ in layer]
    if any(len(set(map(len, image))) > 1 for image in (run.training["digit"]["pixels"], *maps)):
        fault = "an image has rows of different lengths"
        raise ReportError(f"{folder / 'training.json'}: {fault}; {_again('training.json')}")


def read(path: Path) -> dict[str, Any]:
    """
    Read one file of a run as `reports/schema.json` defines it, upgraded to the current format.

    Raises ReportError if the file is missing, corrupt, of an unknown format, or does not match the schema.
    """
    if not path.is_file():
        raise ReportError(f"{path} is missing; `{WRITERS[path.name]}` writes it")
    try:
        return _valid(path, _printable(_parsed(path.read_text())))
    except ReportError:
        raise
    except RecursionError as error:
        raise ReportError(f"{path} is corrupt: too deeply nested; {_again(path.name)}") from error
    except (ValueError, OSError) as error:
        state = "empty" if path.stat().st_size == 0 else "corrupt"
        raise ReportError(f"{path} is {state}: {error}; {_again(path.name)}") from error


def _valid(path: Path, content: object) -> dict[str, Any]:
    """The content of a file, upgraded to the current format, if it matches the schema."""
    if not isinstance(content, dict) or "format" not in content or not isinstance(content.get("stack"), dict):
        raise ReportError(f"{path}: not a file of this project; {_again(path.name)}")
    content = upgrade(path.name, content)
    if content["format"] != FORMAT:
        known = f"this version reads formats {OLDEST} to {FORMAT}"
        raise ReportError(f"{path}: format {str(content['format'])[:80]} is unknown; {known}")
    if fault := best_match(_validator(path.name).iter_errors(content)):
        message = " ".join(fault.message.split())
        message = message if len(message) <= 200 else f"... {message[-200:]}"
        raise ReportError(f"{path}: {fault.json_path}: {message}; {_again(path.name)}")
    try:
        datetime.fromisoformat(content["date"])
    except ValueError as error:
        raise ReportError(f"{path}: $.date: {error}; {_again(path.name)}") from error
    return content


def _parsed(text: str) -> Any:
    """The value of a JSON text; raises ValueError for NaN, infinities, and integers beyond 64 bits."""

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"the number {number[:40]} is not finite")
        return value

    def integer(number: str) -> int:
        if len(number) > len(str(-MAX_INTEGER)) or abs(value := int(number)) > MAX_INTEGER:
            raise ValueError(f"the integer {number[:40]} has more than 64 bits")
        return value

    return json.loads(text, parse_constant=finite, parse_float=finite, parse_int=integer)


def _printable(value: Any) -> Any:
    """The same JSON value with a question mark in place of every character of UNPRINTABLE."""
    match value:
        case str():
            return UNPRINTABLE.sub("?", value)
        case list():
            return [_printable(element) for element in value]
        case dict():
            return {_printable(name): _printable(element) for name, element in value.items()}
    return value


def one_line(text: str) -> str:
    """The text on one line, without control characters, and clipped to what a terminal shows at once."""
    line = UNPRINTABLE.sub("?", " ".join(text.split()))
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]} ... ({len(line):,} characters)"


def _again(name: str) -> str:
    return f"write it again with `{WRITERS[name]}`"


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads(resources.files("reports").joinpath("schema.json").read_text())
    return Draft202012Validator(schema | {"$ref": f"#/$defs/{name}"})


def _of_another_run(name: str, content: dict[str, Any], laws: dict[str, Any]) -> str:
    """Why a file is of another run than `laws.json`: its stack, its date or its subject; empty if it is of that run."""
    extra = () if name in OPTIONAL else content["stack"]  # engines may need further packages
    for part in dict.fromkeys([*laws["stack"], *extra]):
        expected, found = (file["stack"].get(part, "missing") for file in (laws, content))
        if expected != found:
            return f"{part} is {found}, but {expected} in laws.json; run both on one stack"
    if abs(datetime.fromisoformat(content["date"]) - datetime.fromisoformat(laws["date"])) > SPAN:
        dates = f"written at {content['date']}, but laws.json at {laws['date']}"
        return f"{dates}: more than a day apart is another run; {_again(name)}"
    if name == "engines.json":
        judged = {entry["subject"] for entry in laws["laws"]}
        subjects = {entry["subject"] for entry in content["laws"]} - judged - {""}
        if foreign := [one for one in subjects if not any(one.startswith(f"{subject} by ") for subject in judged)]:
            problem = f"of {', '.join(sorted(foreign))}, but laws.json of {', '.join(sorted(judged))}"
            return f"{problem}; {_again(name)}, with the same --subject"
    return ""


def law_results(content: dict[str, Any]) -> LawResults:
    """The results in a file with verdicts of laws."""
    return LawResults(group_laws(content["laws"]), content["finished"], content["errors"])


def _timing(entry: dict[str, Any]) -> Timing:
    info, stats = entry["extra_info"], entry["stats"]
    return Timing(
        operation=info["operation"],
        subject=info["subject"],
        device=info["device"],
        dtype=info["dtype"],
        threads=info["threads"],
        batch=info.get("batch"),
        median=stats["median"],
        q1=stats["q1"],
        q3=stats["q3"],
        calls=stats["rounds"] * stats["iterations"],
        flops=info["flops"],
        bytes_moved=info.get("bytes", 0),
        images=info.get("images", 0),
        roofline_share=info.get("roofline", {}).get("share"),
        parts=info.get("parts", {}),
        limits=info.get("limits", {}),
    )


def _latency(entry: dict[str, Any]) -> dict[str, Any]:
    info = entry["extra_info"]
    return {
        "label": _timing(entry).label,
        "queries": info["queries"],
        "percentiles": info["latency"],
        "quantiles": info.get("quantiles", []),
    }
