"""
Judge the judge: every mutant and every twin by every law, and the table of what rejected whom.

First each mutant by the law that it names. Then the reference, to see which of its parts each law reaches; and then
every law judges all that differ from the reference in a part that it reaches: the others are to it the reference.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from lenet.files import write_atomically
from lenet.fingerprint import stamp
from properties.diagnosis import told_right
from properties.mutants import KINDS, Variant, all_mutants, all_twins

Cells = Mapping[str, Iterable[str]]
"""By law, the subjects that it is to judge."""

ROOT = Path(__file__).parents[2]
TIMEOUT = 120
"""Seconds that one law may take with one subject; the slowest took 8 on the machine of table.json."""


LAST = "lenet"
"""Who is judged after all variants."""


class BrokenRunError(RuntimeError):
    """A run of pytest that came to no verdict; the message is what it printed."""


def judge(
    variants: Iterable[str], cells: Cells | None, profile: str, dtype: str, *options: str
) -> list[dict[str, Any]]:
    """The entries of these variants' cells, as the run of pytest that judged them recorded them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", str(ROOT / "properties/laws"), "-n", "2", "-q", "--tb=line"]
        command += ["-p", "no:cacheprovider", "-p", "properties.mutants.plugin", f"--timeout={TIMEOUT}", *options]
        command += ["--hypothesis-profile", profile, "--device", "cpu", "--dtype", dtype, "--record", folder]
        command += [word for spec in variants for word in ("--subject", spec)]
        if cells is not None:
            chosen = Path(folder) / "cells.json"
            chosen.write_text(json.dumps({law: sorted(specs) for law, specs in cells.items()}))
            command += ["--cells", str(chosen)]
        environment = {name: value for name, value in os.environ.items() if name != "LENET_SUBJECT"}
        run = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        record = Path(folder) / "laws.json"
        content = json.loads(record.read_text()) if record.exists() else None
        if content is None or not content["finished"] or content["broken"]:
            raise BrokenRunError(run.stdout)
        entries: list[dict[str, Any]] = content["laws"]
        return entries


def by_dtype(variants: Iterable[Variant]) -> dict[str, list[Variant]]:
    """The variants by the dtype that they are judged in."""
    grouped = defaultdict(list)
    for variant in variants:
        grouped[variant.dtype].append(variant)
    return grouped


def by_named_laws(chosen: list[Variant]) -> list[dict[str, Any]]:
    """Each mutant, judged by the law that it names."""
    entries = []
    for dtype, variants in by_dtype(chosen).items():
        cells = defaultdict(list)
        for variant in variants:
            cells[variant.law].append(variant.spec)
        entries += judge([variant.spec for variant in variants], cells, "kills", dtype)
    return entries


def by_all_laws(chosen: list[Variant]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    The reference's entries, and those of every variant by every law that reaches what is other in it.

    By the first form alone of a law that has several. Each law judges the reference again at the end, which fails where
    a variant has left something behind that spoils the verdicts after it.
    """
    references = judge([LAST], None, "mutants", "float32,float64", "--reached")
    entries, reached = [], defaultdict(set)
    for entry in references:
        reached[entry["law"]] |= set(entry["reached"])
    for dtype, variants in by_dtype(chosen).items():
        cells = {law: [*(v.spec for v in variants if v.parts & parts), LAST] for law, parts in reached.items()}
        entries += judge([*(v.spec for v in variants), LAST], cells, "mutants", dtype, "--first-form")
    return references + [e for e in entries if e["subject"] == LAST], [e for e in entries if e["subject"] != LAST]


def kills(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By subject and by the law that it broke: how, and at which example of the first of the law's forms to notice."""
    table: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for entry in entries:
        if entry["outcome"] == "failed":
            found = {"how": entry["how"], "example": entry["failed"]}
            own = table[entry["subject"]]
            own[entry["law"]] = min(own.get(entry["law"], found), found, key=_rank)
    return table


def _rank(found: dict[str, Any]) -> tuple[bool, int]:
    """A law's own assertion counts before all else that may happen to it; then the earliest."""
    return found["how"] != "assertion", found["example"]


def problems(chosen: list[Variant], broken: Mapping[str, Any], references: list[Any], laws: set[str]) -> list[str]:
    """Everything for which the laws cannot be believed, a line each; `laws` are those that were to reject something."""
    found = [f"the reference is rejected by {e['law']}: {e['message']}" for e in references if e["outcome"] == "failed"]
    useful = set()
    for variant in chosen:
        own = broken.get(variant.spec, {})
        rejecting = {law for law, kill in own.items() if kill["how"] == "assertion"}
        useful |= rejecting
        if not variant.law:
            found += [f"{variant.spec}, a twin, is rejected by {law} ({kill['how']})" for law, kill in own.items()]
        elif not rejecting:
            found.append(f"{variant.spec} survives{_otherwise(own)}")
        elif variant.law not in rejecting:
            how = own.get(variant.law, {"how": "passed"})["how"]
            found.append(
                f"{variant.spec} is not rejected by {variant.law} ({how}), but by {', '.join(sorted(rejecting))}"
            )
    return found + [f"{law} rejects no mutant" for law in sorted(laws - useful)]


def _otherwise(own: Mapping[str, Any]) -> str:
    return "".join(f"; {law}: {kill['how']}" for law, kill in own.items())


def table(chosen: list[Variant], broken: Mapping[str, Any], laws: Mapping[str, str]) -> dict[str, Any]:
    """What is kept: each kind and its place, each law and its group, each variant and the laws that it broke."""
    places = {kind: (importlib.import_module(f"properties.mutants.{kind}").__doc__ or "").strip() for kind in KINDS}
    return {
        "kinds": places,
        "laws": dict(sorted(laws.items())),
        "mutants": {variant.spec: _row(variant, broken) for variant in chosen if variant.law},
        "twins": {variant.spec: _row(variant, broken) for variant in chosen if not variant.law},
    }


def _row(variant: Variant, broken: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(sorted(broken.get(variant.spec, {}).items()))
    about = {"part": variant.part, "wording": variant.wording, "broken": own}
    if not variant.law:
        return about
    named = {"law": variant.law, "category": variant.category, "dtype": variant.dtype}
    return {"kind": variant.kind} | named | about


def summary(chosen: list[Variant], named: Mapping[str, Any]) -> list[str]:
    """Counts by kind, and how many examples the named laws needed."""
    lines = []
    for kind in KINDS:
        own = [variant for variant in chosen if variant.kind == kind and variant.law]
        if own:
            killed = [v for v in own if named.get(v.spec, {}).get(v.law, {"how": ""})["how"] == "assertion"]
            lines.append(f"{kind:>12}: {len(killed):3} of {len(own):3} mutants rejected by the laws that they name")
    first = [kill["example"] for own in named.values() for kill in own.values() if kill["how"] == "assertion"]
    if first:
        lines.append(f"examples to the first kill: median {median(first):g}, worst {max(first)}")
    return lines


def select(names: list[str]) -> list[Variant]:
    """The variants of these kinds, or of these names; all where none is given. Raises ValueError."""
    everything = all_mutants() + all_twins()
    for name in names:
        if not any(name in (variant.kind, variant.spec, variant.name) for variant in everything):
            kinds = ", ".join((*KINDS, "twins"))
            raise ValueError(f"{name}: no such mutant, twin or kind; the kinds are {kinds}")
    return [v for v in everything if not names or {v.kind, v.spec, v.name} & set(names)]


def main() -> int:
    """Judge the catalogue as the options say; 1 where the laws cannot be believed."""
    parser = argparse.ArgumentParser(prog="python -m properties.mutants", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="only this kind, mutant or twin (default: all)")
    parser.add_argument("--first-kill", action="store_true", help="each mutant by the law that it names, no twins")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the table as JSON")
    options = parser.parse_args()
    try:
        chosen = select(options.names)
    except ValueError as error:
        parser.error(str(error))
    if options.output and (options.names or options.first_kill):
        parser.error("--output: the table is of all variants and all laws")
    try:
        named = by_named_laws([variant for variant in chosen if variant.law])
        references, entries = ([], []) if options.first_kill else by_all_laws(chosen)
    except BrokenRunError as error:
        print(error, file=sys.stderr)
        return 2
    broken, laws = kills(named + entries), {e["law"]: e["group"] for e in references + entries + named}
    judged = [variant for variant in chosen if variant.law or not options.first_kill]
    partial = options.first_kill or options.names
    found = problems(judged, broken, references, set() if partial else set(laws))
    lines = summary(judged, kills(named))
    if options.output:
        content = stamp(shlex.join(["python", "-m", "properties.mutants", *sys.argv[1:]])) | table(chosen, broken, laws)
        right, of = told_right(content), len(content["mutants"])
        lines.append(f"diagnosis: the likeliest place of a mutant by the others is its own for {right} of {of}")
        with write_atomically(options.output) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    print("\n".join(lines + [f"PROBLEM: {line}" for line in found]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
