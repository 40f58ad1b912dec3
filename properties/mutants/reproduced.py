"""
Check the files of `--repro`: each must fail on a mutant, in a process of its own, and pass on the reference network.

`lenet-properties repro-check FOLDER` judges the first mutant that names each law, and writes the files.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from properties.mutants import Variant, all_mutants
from properties.mutants.__main__ import ROOT, TIMEOUT
from properties.plugin import DEFAULT_DTYPES

HEADING = "stand-alone counterexamples"


def chosen(laws: list[str]) -> list[Variant]:
    """Return the first mutant of each law, or of each of these laws."""
    first: dict[str, Variant] = {}
    for variant in all_mutants():
        first.setdefault(variant.law, variant)
    return [variant for law, variant in first.items() if not laws or law.removeprefix("test_") in laws]


def problems_of(variants: list[Variant], dtype: str, folder: Path) -> list[str]:
    """Judge the mutants by the laws that they name, and return a line for each file that is not as it must be."""
    with tempfile.TemporaryDirectory() as temporary:
        subjects = Path(temporary) / "subjects_by_law.json"
        subjects.write_text(json.dumps({variant.law: [variant.spec] for variant in variants}))
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(ROOT / "properties/laws"),
            "-q",
            "--tb=line",
            "--repro",
            str(folder),
        ]
        command += ["-p", "no:cacheprovider", "-p", "properties.mutants.plugin", f"--timeout={TIMEOUT}"]
        command += ["--hypothesis-profile=kills", "--device=cpu", "--dtype", dtype, "--subjects-by-law", str(subjects)]
        command += [word for variant in variants for word in ("--subject", variant.spec)]
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if HEADING not in run.stdout:
        return [f"the run did not complete: {run.stdout}"]
    listed = run.stdout.partition(HEADING)[2].partition("\n----")[0].splitlines()[1:]
    return [line for line in listed if re.search(r"\.py: ", line)]


def main(arguments: list[str]) -> int:
    """Write and run the files; return 1 if one is not as it must be."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties repro-check",
        description=__doc__.split("\n\n")[0],
        epilog="example: lenet-properties repro-check lenet-results/repro logits_agree_with_the_oracle",
    )
    parser.add_argument("folder", type=Path, help="where the files are written")
    parser.add_argument("laws", nargs="*", metavar="LAW", help="a law, without its prefix test_ (default: all)")
    options = parser.parse_args(arguments)
    variants = chosen(options.laws)
    problems = []
    for dtype in DEFAULT_DTYPES:
        if own := [variant for variant in variants if variant.dtype == dtype]:
            problems += problems_of(own, dtype, options.folder.resolve())
    lengths = [len(path.read_text().splitlines()) for path in options.folder.glob("*.py")]
    print(f"{len(variants)} laws, {len(lengths)} files of {median(lengths):g} lines (median), {max(lengths)} at most")
    print("\n".join(f"PROBLEM: {line}" for line in problems))
    return 1 if problems else 0
