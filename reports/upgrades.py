"""
Upgrades files of older formats, one step per format, so that published runs stay readable.

A step renames fields, laws, chapters and known issues; what is missing stays missing, and the schema reports it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from typing import Any

OLDEST = 2
"""The oldest format that can be read."""


def upgrade(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the file `name` in the current format; content of any other format is unchanged."""
    for old, step in UPGRADES.items():
        if content["format"] == old:
            step(name, content)
            content["format"] = old + 1
    return content


def _from_2_to_3(name: str, content: dict[str, Any]) -> None:
    """Plain names for fields, laws, chapters and known issues."""
    match name:
        case "laws.json" | "engines.json":
            _rename(content, broken="errors")
            for entry in _dicts(content, "laws"):
                _rename(entry, group="chapter", wording="statement", open="partly_judged", worst="worst_ratio")
                _rename(entry, known="known_issues", graphs="compiled_graphs")
                _rename(entry, how="failure_kind", failed="first_failure")
                for issue in _dicts(entry, "known_issues"):
                    _rename(issue, fixed="fixed_in")
                    _replace(issue, "title", _renamed()["known_issues"])
                _replace(entry, "law", _renamed()["laws"])
                _replace(entry, "chapter", _renamed()["chapters"])
            for outcomes in _dicts(content, "matrix"):
                _rename(outcomes, **_renamed()["laws"])
        case "training.json":
            _rename(content, others="comparisons")
        case "benchmarks.json":
            _rename(content, failed="errors")
        case "engine_times.json":
            _rename(content, refused="not_timed")
            for timing in _dicts(content, "timings"):
                _rename(timing, cold="startup", share="share_of_matrix_product")
                if isinstance(timing.get("startup"), dict):
                    _rename(timing["startup"], first="first_call")
        case "gate.json":
            _replace(content, "verdict", {"broken": "error"})
            for benchmark in _dicts(content, "benchmarks"):
                _rename(benchmark, found="slowdown", suspicion="first_round", why="reason")
        case "gate_trial.json":
            for verdict in _dicts(content, "verdicts"):
                _rename(verdict, beside="background_processes", found="slowdown", suspicion="first_round")


UPGRADES: dict[int, Callable[[str, dict[str, Any]], None]] = {2: _from_2_to_3}
"""The step from each older format to the next."""


@cache
def _renamed() -> dict[str, dict[str, str]]:
    """Laws, chapters and titles of known issues in format 2, each with its name today."""
    text = resources.files("reports").joinpath("renamed.json").read_text()
    renamed: dict[str, dict[str, str]] = json.loads(text)
    return renamed


def _rename(fields: dict[str, Any], **names: str) -> None:
    """Rename fields in place, and keep their order."""
    renamed = {names.get(name, name): value for name, value in fields.items()}
    fields.clear()
    fields.update(renamed)


def _replace(fields: dict[str, Any], name: str, values: dict[str, str]) -> None:
    """Replace a field's value by the one that `values` gives for it."""
    if isinstance(fields.get(name), str):
        fields[name] = values.get(fields[name], fields[name])


def _dicts(content: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The elements of a field that are dicts, whether it is a list or a dict of them; none if it is neither."""
    field = content.get(name)
    elements = field.values() if isinstance(field, dict) else field if isinstance(field, list) else ()
    yield from (element for element in elements if isinstance(element, dict))
