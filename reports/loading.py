"""Reads the files of a run, validates them against `reports/schema.json`, and checks that their stacks agree."""

from __future__ import annotations

import json
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
    "laws.json": "pytest properties/laws --record DIR",
    "benchmarks.json": "pytest benchmarks -m benchmark --record DIR",
    "training.json": "python -m lenet.train --record DIR",
    "engines.json": "pytest properties/laws -m engine --engine NAMES --record DIR",
    "engine_times.json": "python -m benchmarks.engine_times --record DIR",
    "gate.json": "python -m benchmarks.gate --json DIR/gate.json",
    "gate_trial.json": "python -m benchmarks.gate_trial --record DIR",
}
"""The command that writes each file of a run."""

OPTIONAL = ("engines.json", "engine_times.json", "gate.json", "gate_trial.json")
"""The files that a run may lack."""


class ReportError(ValueError):
    """A run cannot be read; the message is one line that names the file and the problem."""


def load(folder: Path) -> Run:
    """Read the files of a run; raises ReportError if one is missing or invalid, or if their stacks differ."""
    names = [name for name in WRITERS if name not in OPTIONAL or (folder / name).exists()]
    files = {name: read(folder / name) for name in names}
    _check_stacks(folder, files)
    laws, benchmarks = files["laws.json"], files["benchmarks.json"]
    run = Run(
        stack=laws["stack"],
        date=laws["date"],
        threshold=laws["threshold"],
        profile=laws["profile"],
        commands=[content["command"] for content in files.values()],
        laws=_law_results(laws),
        timings=[_timing(entry) for entry in benchmarks["benchmarks"]],
        failed_benchmarks=benchmarks["errors"],
        training={"comparisons": {}} | files["training.json"],
        gate=files.get("gate.json"),
        gate_trial=rows(files["gate_trial.json"]["verdicts"]) if "gate_trial.json" in files else [],
        engines=_law_results(files["engines.json"]) if "engines.json" in files else None,
        engine_times=files.get("engine_times.json"),
        latencies=[_latency(entry) for entry in benchmarks["benchmarks"] if "latency" in entry["extra_info"]],
        files=names,
    )
    if not run.laws.stacks:
        raise ReportError(f"{folder / 'laws.json'}: no law was checked; {_again('laws.json')}")
    judged = {entry["subject"] for entry in laws["laws"]}
    timed = {timing.subject for timing in run.timings}
    if timed - judged:
        subjects = f"benchmarks.json is of {', '.join(timed)}, laws.json of {', '.join(judged)}"
        raise ReportError(f"{folder}: {subjects}; {_again('benchmarks.json')}, with the same --subject")
    if not run.timings:
        raise ReportError(f"{folder / 'benchmarks.json'}: nothing was timed; {_again('benchmarks.json')}")
    if not run.training.get("history"):
        raise ReportError(f"{folder / 'training.json'}: no epoch was trained; {_again('training.json')}")
    return run


def read(path: Path) -> dict[str, Any]:
    """
    Read one file of a run as `reports/schema.json` defines it, upgraded to the current format.

    Raises ReportError if the file is missing, corrupt, of an unknown format, or does not match the schema.
    """
    if not path.is_file():
        raise ReportError(f"{path} is missing; `{WRITERS[path.name]}` writes it")
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        state = "empty" if path.stat().st_size == 0 else "corrupt"
        raise ReportError(f"{path} is {state}: {error}; {_again(path.name)}") from error
    if not isinstance(content, dict) or "format" not in content or not isinstance(content.get("stack"), dict):
        raise ReportError(f"{path}: not a file of this project; {_again(path.name)}")
    content = upgrade(path.name, content)
    if content["format"] != FORMAT:
        known = f"this version reads formats {OLDEST} to {FORMAT}"
        raise ReportError(f"{path}: format {content['format']!r} is unknown; {known}")
    if fault := best_match(_validator(path.name).iter_errors(content)):
        message = " ".join(fault.message.split())
        message = message if len(message) <= 200 else f"... {message[-200:]}"
        raise ReportError(f"{path}: {fault.json_path}: {message}; {_again(path.name)}")
    return content


def _again(name: str) -> str:
    return f"write it again with `{WRITERS[name]}`"


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = json.loads(resources.files("reports").joinpath("schema.json").read_text())
    return Draft202012Validator(schema | {"$ref": f"#/$defs/{name}"})


def _check_stacks(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    first, *others = files
    for name in others:
        extra = () if name in OPTIONAL else files[name]["stack"]  # engines may need further packages
        for part in dict.fromkeys([*files[first]["stack"], *extra]):
            expected, found = (files[file]["stack"].get(part, "missing") for file in (first, name))
            if expected != found:
                problem = f"{part} is {found}, but {expected} in {first}"
                raise ReportError(f"{folder / name}: {problem}; run both on one stack")


def _law_results(content: dict[str, Any]) -> LawResults:
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
    )


def _latency(entry: dict[str, Any]) -> dict[str, Any]:
    info = entry["extra_info"]
    return {
        "label": _timing(entry).label,
        "queries": info["queries"],
        "percentiles": info["latency"],
        "quantiles": info.get("quantiles", []),
    }
