"""
Judge every mutant and every twin by every law: each mutant must be rejected by the law that it names, no twin by any.

First, each mutant is judged by the law that it names. Then all laws judge the reference, which shows the parts of a
subject that each law uses. Then each law judges all mutants and twins that differ from the reference in one of those
parts; for the others its verdict would be the same as for the reference.

All this is done in one dtype, which a mutant may choose. In the other dtypes, a mutant is judged by the laws that
rejected it in its own, a twin again by all: each mutant must be rejected, unless it says why it cannot be, and each law
must reject a mutant in each dtype in which it judges.
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
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NoReturn

from lenet.files import writable, write_atomically
from lenet.fingerprint import stamp
from lenet.processes import end_with_parent
from properties.diagnosis import correct_diagnoses
from properties.entries import dtype_of
from properties.mutants import BLIND, KINDS, Variant, all_mutants, all_twins
from properties.plugin import DEFAULT_DTYPES

Entry = dict[str, Any]
SubjectsByLaw = Mapping[str, Iterable[str]]
"""The subjects that each law judges."""
Kills = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By subject and law, each failure: its kind, and the number of the example that first failed."""

ROOT = Path(__file__).parents[2]
TIMEOUT = 120
"""Time limit in seconds for one law and one subject; the slowest took 8 s on the machine of table.json."""

TWIN_DTYPES = ("float32", "bfloat16")
"""The dtypes in which all laws judge the twins: a common one, and the one with the fewest bits."""

REFERENCE = "lenet"
"""The subject that is judged before and after all variants."""


class RunError(RuntimeError):
    """A run of pytest that did not complete; the message is what it printed."""


def judge(
    variants: Iterable[str], subjects_by_law: SubjectsByLaw | None, profile: str, dtype: str, *options: str
) -> list[Entry]:
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
        entries: list[Entry] = content["laws"]
        return entries


def judge_by_named_laws(chosen: list[Variant], dtypes: Iterable[str] = ()) -> list[Entry]:
    """
    Judge each mutant by the law that it names, in its own dtype and in `dtypes`, and return the entries.

    It is not judged in the dtypes in which it is declared `unseen`.
    """
    entries = []
    for dtype in DEFAULT_DTYPES:
        variants = [v for v in chosen if v.law and dtype in {v.dtype, *dtypes} - v.unseen.keys()]
        subjects_by_law = defaultdict(list)
        for variant in variants:
            subjects_by_law[variant.law].append(variant.spec)
        if variants:
            entries += judge([variant.spec for variant in variants], subjects_by_law, "kills", dtype)
    return entries


def judge_reference() -> tuple[list[Entry], dict[str, set[str]]]:
    """Judge the reference by all laws in all dtypes; return the entries, and the parts of a subject that each uses."""
    entries, used = judge([REFERENCE], None, "mutants", ",".join(DEFAULT_DTYPES), "--record-parts"), defaultdict(set)
    for entry in entries:
        used[entry["law"]] |= set(entry["parts"])
    return entries, used


def judge_by_all_laws(chosen: list[Variant], named: list[Entry], used: Mapping[str, set[str]]) -> list[Entry]:
    """
    Judge every variant in its own dtype by every law that uses a part that differs, then in the others; return entries.

    In another dtype, a mutant is judged by the laws that have rejected it in its own, if the law that it names has not
    rejected it there, and by those of them that have rejected no mutant there. A twin is judged by all laws again, in
    TWIN_DTYPES. Of a law with several parametrizations, only the first judges the variants. Each law judges the
    reference after them: that fails if a variant has changed global state that affects later verdicts.
    """
    entries: list[Entry] = []
    for is_own in (True, False):
        rejected = by_dtype(named + entries)
        for dtype in DEFAULT_DTYPES:
            useful = {law for variant in chosen for law in rejecting(rejected[dtype], variant)}
            subjects_by_law = defaultdict(list)
            for variant in chosen:
                if is_own:
                    laws = set(used) if variant.dtype == dtype else set()
                elif not variant.law:
                    laws = set(used) if dtype in TWIN_DTYPES and variant.dtype != dtype else set()
                else:
                    laws = rejecting(rejected[variant.dtype], variant) if variant.dtype != dtype else set()
                    laws -= useful if rejecting(rejected[dtype], variant) else set()
                for law in laws:
                    judged_before = law == variant.law and dtype not in variant.unseen
                    if variant.parts & used[law] and not judged_before:
                        subjects_by_law[law].append(variant.spec)
            if subjects_by_law:
                specs = [*sorted({spec for own in subjects_by_law.values() for spec in own}), REFERENCE]
                with_reference = {law: [*own, REFERENCE] for law, own in subjects_by_law.items()}
                entries += judge(specs, with_reference, "mutants", dtype, "--first-parametrization")
    return entries


def by_dtype(entries: Iterable[Entry]) -> dict[str, Kills]:
    """Return the failures in each dtype."""
    grouped = {dtype: list[Entry]() for dtype in DEFAULT_DTYPES}
    for entry in entries:
        grouped[dtype_of(entry)].append(entry)
    return {dtype: kills(own) for dtype, own in grouped.items()}


def kills(entries: Iterable[Entry]) -> Kills:
    """
    Return the failures.

    Of several parametrizations of a law, the first that fails by an assertion counts.
    """
    table: dict[str, dict[str, Any]] = defaultdict(dict)
    for entry in entries:
        if entry["outcome"] == "failed":
            kill = {"failure_kind": entry["failure_kind"], "example": entry["first_failure"]}
            own = table[entry["subject"]]
            own[entry["law"]] = min(own.get(entry["law"], kill), kill, key=_rank)
    return table


def _rank(kill: dict[str, Any]) -> tuple[bool, int]:
    """Return a sort key: assertions of a law before other kinds of failure, then the smallest example number."""
    return kill["failure_kind"] != "assertion", kill["example"]


def rejecting(broken: Kills, variant: Variant) -> set[str]:
    """Return the laws that reject the variant."""
    return {law for law, kill in broken.get(variant.spec, {}).items() if _is_rejection(kill)}


def _is_rejection(kill: Mapping[str, Any] | None) -> bool:
    """Whether a law failed by its own assertion, and not by a crash, a timeout or a flaky result."""
    return kill is not None and kill["failure_kind"] == "assertion"


def reasons_of_skips(entries: Iterable[Entry]) -> dict[str, dict[str, str]]:
    """Return, by law and dtype, why a law judges no subject in a dtype."""
    reasons: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in sorted(entries, key=lambda entry: entry["outcome"] != "skipped"):
        if entry["outcome"] == "skipped":
            reasons[entry["law"]][dtype_of(entry)] = entry["reason"].removeprefix("Skipped: ")
        else:
            reasons[entry["law"]].pop(dtype_of(entry), None)
    return reasons


def with_reasons(variant: Variant, broken: Mapping[str, Kills], reasons: Mapping[str, str]) -> Variant:
    """Return the mutant, unseen also where its law does not judge, for these reasons, unless another law rejects it."""
    skipped = {dtype: reason for dtype, reason in reasons.items() if not rejecting(broken[dtype], variant)}
    return replace(variant, unseen=skipped | dict(variant.unseen))


def problems(
    chosen: list[Variant], broken: Mapping[str, Kills], references: list[Entry], judged: Mapping[str, Iterable[str]]
) -> list[str]:
    """
    Return one line for each surviving mutant, each rejection of a twin or the reference, and each law without a kill.

    `broken` has the failures in each dtype. `judged` has the dtypes in which a mutant must be rejected besides its own,
    and the laws that must each reject at least one mutant there.
    """
    found = [
        f"the reference is rejected by {entry['law']} in {dtype_of(entry)}: {entry['message']}"
        for entry in references
        if entry["outcome"] == "failed"
    ]
    for variant in chosen:
        found += _problems_in_own_dtype(variant, broken) if variant.law else _problems_of_twin(variant, broken)
        found += _problems_in_other_dtypes(variant, broken, judged) if variant.law else []
    for dtype, laws in judged.items():
        useful = {law for variant in chosen if variant.law for law in rejecting(broken[dtype], variant)}
        blind = {law for law, reasons in BLIND.items() if dtype in reasons}
        found += [f"{law} rejects no mutant in {dtype}" for law in sorted({*laws} - useful - blind)]
        found += [f"{law} rejects a mutant in {dtype}: remove it from BLIND" for law in sorted(blind & useful)]
    return found


def _problems_in_own_dtype(variant: Variant, broken: Mapping[str, Kills]) -> list[str]:
    own, laws = broken[variant.dtype].get(variant.spec, {}), rejecting(broken[variant.dtype], variant)
    if not laws:
        return [f"{variant.spec} survives{_other_failures(own)}"]
    if variant.law in laws:
        return []
    result = own.get(variant.law, {"failure_kind": "passed"})["failure_kind"]
    return [f"{variant.spec} is not rejected by {variant.law} ({result}), but by {', '.join(sorted(laws))}"]


def _problems_in_other_dtypes(variant: Variant, broken: Mapping[str, Kills], dtypes: Iterable[str]) -> list[str]:
    found = []
    for dtype in dtypes:
        if dtype == variant.dtype:
            continue
        own, laws = broken[dtype].get(variant.spec, {}), rejecting(broken[dtype], variant)
        if not laws and dtype not in variant.unseen:
            found.append(f"{variant.spec} survives in {dtype}{_other_failures(own)}")
        if laws and dtype in variant.unseen:
            found.append(f"{variant.spec} is rejected in {dtype} by {', '.join(sorted(laws))}: remove it from `unseen`")
    return found


def _problems_of_twin(variant: Variant, broken: Mapping[str, Kills]) -> list[str]:
    return [
        f"{variant.spec}, a twin, is rejected by {law} in {dtype} ({kill['failure_kind']})"
        for dtype, kills_ in broken.items()
        for law, kill in kills_.get(variant.spec, {}).items()
    ]


def _other_failures(own: Mapping[str, Any]) -> str:
    return "".join(f"; {law}: {kill['failure_kind']}" for law, kill in own.items())


def table(
    chosen: list[Variant], broken: Mapping[str, Kills], laws: Mapping[str, str], judged: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """
    Return the content of `table.json`: places by kind, chapters by law, and the laws that each variant breaks.

    `broken` are those in the variant's own dtype, `other_dtypes` those in the others; `judged` has the laws that judge
    in each dtype.
    """
    places = {kind: (importlib.import_module(f"properties.mutants.{kind}").__doc__ or "").strip() for kind in KINDS}
    return {
        "kinds": places,
        "laws": dict(sorted(laws.items())),
        "judged": {dtype: sorted(names) for dtype, names in judged.items()},
        "blind": BLIND,
        "mutants": {variant.spec: _row(variant, broken) for variant in chosen if variant.law},
        "twins": {variant.spec: _row(variant, broken) for variant in chosen if not variant.law},
    }


def _row(variant: Variant, broken: Mapping[str, Kills]) -> dict[str, Any]:
    by_law = {dtype: dict(sorted(kills_.get(variant.spec, {}).items())) for dtype, kills_ in broken.items()}
    row = {"part": variant.part, "statement": variant.statement, "dtype": variant.dtype}
    row |= {"broken": by_law.pop(variant.dtype), "other_dtypes": by_law}
    if not variant.law:
        return row
    return {"kind": variant.kind, "law": variant.law, "category": variant.category, "unseen": variant.unseen} | row


def summary(
    chosen: list[Variant], named: Mapping[str, Kills], broken: Mapping[str, Kills], dtypes: Iterable[str]
) -> list[str]:
    """
    Return lines with the mutants that are rejected, and the number of examples until the first kill.

    By kind, those rejected by the laws that they name; then by dtype, of `dtypes`, those rejected by any law.
    """
    lines, mutants = [], [variant for variant in chosen if variant.law]
    own = {mutant.spec: named[mutant.dtype].get(mutant.spec, {}).get(mutant.law) for mutant in mutants}
    for kind in KINDS:
        kills_ = [own[mutant.spec] for mutant in mutants if mutant.kind == kind]
        if kills_:
            killed = sum(map(_is_rejection, kills_))
            lines.append(f"{kind:>12}: {killed:3} of {len(kills_):3} mutants rejected by the law that they name")
    first = [kill["example"] for kill in own.values() if kill and _is_rejection(kill)]
    if first:
        lines.append(f"examples until the first kill: median {median(first):g}, worst {max(first)}")
    for dtype in dtypes:
        rejected = sum(bool(rejecting(broken[dtype], mutant)) for mutant in mutants)
        unseen = sum(dtype in mutant.unseen for mutant in mutants)
        lines.append(f"{dtype:>12}: {rejected:3} of {len(mutants):3} mutants rejected, {unseen} cannot be seen there")
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
    parser.add_argument(
        "--first-kill", action="store_true", help="judge each mutant only by the law that it names, in one dtype"
    )
    parser.add_argument(
        "--dtype", default="", metavar="DTYPES", help="with --first-kill: judge in these as well, comma-separated"
    )
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
    dtypes = options.dtype.split(",") if options.dtype else () if options.first_kill else DEFAULT_DTYPES
    if options.dtype and not options.first_kill:
        parser.error("--dtype requires --first-kill: without it, all dtypes are judged")
    if unknown := set(dtypes) - set(DEFAULT_DTYPES):
        parser.error(f"--dtype {min(unknown)}: not one of {', '.join(DEFAULT_DTYPES)}")
    if options.output and (options.names or options.first_kill):
        parser.error("--output requires all variants and all laws: remove NAME and --first-kill")
    if options.output and (options.output.is_dir() or not writable(options.output.parent)):
        parser.error(f"--output {options.output}: not a file that can be written")
    try:
        named = judge_by_named_laws(chosen, dtypes)
        references, entries = [], list[Entry]()
        if not options.first_kill:
            references, used = judge_reference()
            entries = judge_by_all_laws(chosen, named, used)
    except RunError as error:
        print(error, file=sys.stderr)
        return 2
    references += [entry for entry in entries if entry["subject"] == REFERENCE]
    broken, laws = by_dtype(named + entries), {entry["law"]: entry["chapter"] for entry in references + named}
    judged = {dtype: set[str]() for dtype in dtypes}
    for entry in references:
        if entry["outcome"] != "skipped" and not options.names:
            judged[dtype_of(entry)].add(entry["law"])
    reasons = reasons_of_skips(references + named)
    chosen = [with_reasons(variant, broken, reasons.get(variant.law, {})) for variant in chosen]
    variants = [variant for variant in chosen if variant.law or not options.first_kill]
    found = problems(variants, broken, references, judged)
    lines = summary(variants, by_dtype(named), broken, dtypes)
    if options.output:
        content = stamp(shlex.join(["lenet-properties", "mutants", *arguments])) | table(chosen, broken, laws, judged)
        right, of = correct_diagnoses(content)
        lines.append(f"diagnosis from the other mutants: correct for {right} of {of} mutants")
        with write_atomically(options.output) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")
    print("\n".join(lines + [f"PROBLEM: {line}" for line in found]))
    return 1 if found else 0
