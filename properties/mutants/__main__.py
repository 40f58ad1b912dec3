"""
Judge every mutant and every twin by every law: each mutant must be rejected by the law that it names, no twin by any.

First, each mutant is judged by the law that it names. Then all laws judge the reference, which shows the parts of a
subject that each law uses. Last, each law judges all mutants and twins that differ from the reference in one of those
parts; for the others its verdict would be the same as for the reference.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NoReturn

from lenet.files import writable, write_atomically
from lenet.fingerprint import stamp
from lenet.processes import end_with_parent
from properties.diagnosis import correct_diagnoses
from properties.mutants import KINDS, Variant, all_mutants, all_twins

SubjectsByLaw = Mapping[str, Iterable[str]]
"""The subjects that each law judges."""

ROOT = Path(__file__).parents[2]
TIMEOUT = 120
"""Time limit in seconds for one law and one subject; the slowest took 8 s on the machine of table.json."""

REFERENCE = "lenet"
"""The subject that is judged before and after all variants."""


class RunError(RuntimeError):
    """A run of pytest that did not complete; the message is what it printed."""


def judge(
    variants: Iterable[str], subjects_by_law: SubjectsByLaw | None, profile: str, dtype: str, *options: str
) -> list[dict[str, Any]]:
    """
    Run the laws on these variants and return the entries of the run's record; raises RunError.

    Each law judges the variants that `subjects_by_law` lists for it, or all if that is None.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", str(ROOT / "properties/laws"), "-n", "2", "-q", "--tb=line"]
        command += ["-p", "no:cacheprovider", "-p", "properties.mutants.plugin", f"--timeout={TIMEOUT}", *options]
        command += ["--hypothesis-profile", profile, "--device", "cpu", "--dtype", dtype, "--record", folder]
        command += [word for spec in variants for word in ("--subject", spec)]
        if subjects_by_law is not None:
            path = Path(folder) / "subjects_by_law.json"
            path.write_text(json.dumps({law: sorted(specs) for law, specs in subjects_by_law.items()}))
            command += ["--subjects-by-law", str(path)]
        environment = {name: value for name, value in os.environ.items() if name != "LENET_SUBJECT"}
        run = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            check=False,
            preexec_fn=end_with_parent,
        )
        record = Path(folder) / "laws.json"
        content = json.loads(record.read_text()) if record.exists() else None
        if content is None or not content["finished"] or content["errors"]:
            raise RunError(run.stdout)
        entries: list[dict[str, Any]] = content["laws"]
        return entries


def group_by_dtype(variants: Iterable[Variant]) -> dict[str, list[Variant]]:
    """Group the variants by the dtype in which they are judged."""
    grouped = defaultdict(list)
    for variant in variants:
        grouped[variant.dtype].append(variant)
    return grouped


def judge_by_named_laws(chosen: list[Variant]) -> list[dict[str, Any]]:
    """Judge each mutant by the law that it names, and return the entries."""
    entries = []
    for dtype, variants in group_by_dtype(chosen).items():
        subjects_by_law = defaultdict(list)
        for variant in variants:
            subjects_by_law[variant.law].append(variant.spec)
        entries += judge([variant.spec for variant in variants], subjects_by_law, "kills", dtype)
    return entries


def judge_by_all_laws(chosen: list[Variant]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Judge the reference and every variant by every law that uses a part that differs; return the entries of both.

    Of a law with several parametrizations, only the first judges the variants. Each law also judges the reference at
    the end: that fails if a variant has changed global state that affects later verdicts.
    """
    references = judge([REFERENCE], None, "mutants", "float32,float64", "--record-parts")
    entries, used = [], defaultdict(set)
    for entry in references:
        used[entry["law"]] |= set(entry["parts"])
    for dtype, variants in group_by_dtype(chosen).items():
        subjects_by_law = {
            law: [*(v.spec for v in variants if v.parts & parts), REFERENCE] for law, parts in used.items()
        }
        specs = [*(v.spec for v in variants), REFERENCE]
        entries += judge(specs, subjects_by_law, "mutants", dtype, "--first-parametrization")
    references += [entry for entry in entries if entry["subject"] == REFERENCE]
    return references, [entry for entry in entries if entry["subject"] != REFERENCE]


def kills(entries: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """
    Return, by subject and law, each failure: its kind, and the number of the example that first failed.

    Of several parametrizations of a law, the first that fails by an assertion counts.
    """
    table: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for entry in entries:
        if entry["outcome"] == "failed":
            kill = {"failure_kind": entry["failure_kind"], "example": entry["first_failure"]}
            own = table[entry["subject"]]
            own[entry["law"]] = min(own.get(entry["law"], kill), kill, key=_rank)
    return table


def _rank(kill: dict[str, Any]) -> tuple[bool, int]:
    """Return a sort key: assertions of a law before other kinds of failure, then the smallest example number."""
    return kill["failure_kind"] != "assertion", kill["example"]


def _is_rejection(kill: Mapping[str, Any] | None) -> bool:
    """Whether a law failed by its own assertion, and not by a crash, a timeout or a flaky result."""
    return kill is not None and kill["failure_kind"] == "assertion"


def problems(chosen: list[Variant], broken: Mapping[str, Any], references: list[Any], laws: set[str]) -> list[str]:
    """
    Return one line for each surviving mutant, each rejection of a twin or the reference, and each law without a kill.

    `laws` are those that must each reject at least one mutant.
    """
    found = [f"the reference is rejected by {e['law']}: {e['message']}" for e in references if e["outcome"] == "failed"]
    useful = set()
    for variant in chosen:
        own = broken.get(variant.spec, {})
        rejecting = {law for law, kill in own.items() if _is_rejection(kill)}
        useful |= rejecting
        if not variant.law:
            found += [
                f"{variant.spec}, a twin, is rejected by {law} ({kill['failure_kind']})" for law, kill in own.items()
            ]
        elif not rejecting:
            found.append(f"{variant.spec} survives{_other_failures(own)}")
        elif variant.law not in rejecting:
            result = own.get(variant.law, {"failure_kind": "passed"})["failure_kind"]
            found.append(
                f"{variant.spec} is not rejected by {variant.law} ({result}), but by {', '.join(sorted(rejecting))}"
            )
    return found + [f"{law} rejects no mutant" for law in sorted(laws - useful)]


def _other_failures(own: Mapping[str, Any]) -> str:
    return "".join(f"; {law}: {kill['failure_kind']}" for law, kill in own.items())


def table(chosen: list[Variant], broken: Mapping[str, Any], laws: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of `table.json`: places by kind, chapters by law, and the laws that each variant breaks."""
    places = {kind: (importlib.import_module(f"properties.mutants.{kind}").__doc__ or "").strip() for kind in KINDS}
    return {
        "kinds": places,
        "laws": dict(sorted(laws.items())),
        "mutants": {variant.spec: _row(variant, broken) for variant in chosen if variant.law},
        "twins": {variant.spec: _row(variant, broken) for variant in chosen if not variant.law},
    }


def _row(variant: Variant, broken: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(sorted(broken.get(variant.spec, {}).items()))
    row = {"part": variant.part, "statement": variant.statement, "broken": own}
    if not variant.law:
        return row
    return {"kind": variant.kind, "law": variant.law, "category": variant.category, "dtype": variant.dtype} | row


def summary(chosen: list[Variant], named: Mapping[str, Any]) -> list[str]:
    """Return lines with the kills of each kind by the named laws, and the number of examples until the first kill."""
    lines = []
    for kind in KINDS:
        own = [variant for variant in chosen if variant.kind == kind and variant.law]
        if own:
            killed = sum(_is_rejection(named.get(variant.spec, {}).get(variant.law)) for variant in own)
            lines.append(f"{kind:>12}: {killed:3} of {len(own):3} mutants rejected by the law that they name")
    first = [kill["example"] for own in named.values() for kill in own.values() if _is_rejection(kill)]
    if first:
        lines.append(f"examples until the first kill: median {median(first):g}, worst {max(first)}")
    return lines


def select(names: list[str]) -> list[Variant]:
    """Return the variants of these kinds or names, or all if there are none; raises ValueError for an unknown name."""
    everything = all_mutants() + all_twins()
    for name in names:
        if not any(name in _names(variant) for variant in everything):
            kinds = ", ".join((*KINDS, "twins"))
            raise ValueError(f"no mutant, twin or kind is named {name}; the kinds are {kinds}")
    return [variant for variant in everything if not names or _names(variant) & set(names)]


def _names(variant: Variant) -> set[str]:
    """Return the names that select the variant; a diagnosis prints its kind and name."""
    return {variant.kind, variant.spec, variant.name, f"{variant.kind}:{variant.name}"}


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """End this process, and with it the run that it waits for, as the signal would have ended it alone."""
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Judge the catalogue; return exit code 0, 1 for a problem with the laws, or 2 if a run did not complete."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties mutants",
        description=__doc__.split("\n\n")[0],
        epilog="example: lenet-properties mutants Conv2BiasHalved gradients --first-kill",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a kind, mutant or twin to judge (default: all)")
    parser.add_argument("--first-kill", action="store_true", help="judge each mutant only by the law that it names")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the table as JSON; requires all variants and all laws"
    )
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        chosen = select(options.names)
    except ValueError as error:
        parser.error(str(error))
    if options.output and (options.names or options.first_kill):
        parser.error("--output requires all variants and all laws: remove NAME and --first-kill")
    if options.output and (options.output.is_dir() or not writable(options.output.parent)):
        parser.error(f"--output {options.output}: not a file that can be written")
    try:
        named = judge_by_named_laws([variant for variant in chosen if variant.law])
        references, entries = ([], []) if options.first_kill else judge_by_all_laws(chosen)
    except RunError as error:
        print(error, file=sys.stderr)
        return 2
    broken, laws = kills(named + entries), {e["law"]: e["chapter"] for e in references + entries + named}
    judged = [variant for variant in chosen if variant.law or not options.first_kill]
    partial = options.first_kill or options.names
    found = problems(judged, broken, references, set() if partial else set(laws))
    lines = summary(judged, kills(named))
    if options.output:
        content = stamp(shlex.join(["lenet-properties", "mutants", *arguments])) | table(chosen, broken, laws)
        right, of = correct_diagnoses(content), len(content["mutants"])
        lines.append(f"diagnosis from the other mutants: correct for {right} of {of} mutants")
        with write_atomically(options.output) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    print("\n".join(lines + [f"PROBLEM: {line}" for line in found]))
    return 1 if found else 0
