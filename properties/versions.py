"""
Judge releases of PyTorch, each in an environment of its own, and keep what was found in `properties/releases/`.

For each release, the stand-alone scripts of the known issues show which bugs it has; then the laws judge the reference
in all dtypes, and PyTorch's own engines. A file holds what is done, so that a run that was stopped continues there. An
environment takes some 7 GB, since all releases but the pinned one install CUDA's libraries, and is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lenet.files import write_atomically
from properties.bug_reports import findings, outcome, run
from properties.law_index import short

ROOT = Path(__file__).parents[1]
RELEASES = Path(__file__).with_name("releases")
NEEDED = 12e9
"""Free bytes that an installation must find: 7 GB for the environment, and what pip downloads and unpacks meanwhile."""

ENGINES = "eager,channels-last,no-onednn,vmap,autocast,exported,compiled"
"""PyTorch's own engines that every release has, without those that take minutes to compile."""

Found = dict[str, Any]


def run_scripts(python: Path, folder: Path) -> Found:
    """Return the outcome of each stand-alone script."""
    return {finding.name: outcome(run(finding, python)) for finding in findings().values()}


def run_laws(python: Path, folder: Path, *options: str) -> Found:
    """
    Return the stacks by outcome of each law, such as {"sgd_steps_match_the_formula": {"failed": ["lenet on cpu ..."]}}.

    Raises RuntimeError if the run does not complete.
    """
    command = [str(python), "-m", "lenet_properties", "judge", "--device", "cpu", "--record", str(folder), *options]
    subprocess.run(command, cwd=ROOT, check=False)
    record = folder / "laws.json"
    content = json.loads(record.read_text()) if record.exists() else None
    if content is None or not content["finished"] or content["errors"]:
        raise RuntimeError(f"the laws did not run to their end: {shlex.join(command)}")
    found: dict[str, dict[str, set[str]]] = {}
    for entry in content["laws"]:
        outcomes = found.setdefault(short(entry["law"]), {})
        outcomes.setdefault("known issue" if entry["known_issues"] else entry["outcome"], set()).add(entry["stack"])
    return {law: {name: sorted(stacks) for name, stacks in outcomes.items()} for law, outcomes in found.items()}


def run_engines(python: Path, folder: Path) -> Found:
    """Return the stacks by outcome of each law about running a network, in float32."""
    return run_laws(python, folder, "--profile", "quick", "--dtype", "float32", "--engine", ENGINES)


PARTS: dict[str, Callable[[Path, Path], Found]] = {"scripts": run_scripts, "laws": run_laws, "engines": run_engines}
"""What is found in a release, in this order: minutes, then a quarter of an hour each."""


def judged_versions() -> list[str]:
    """Return the releases that a file was kept of, from the oldest on."""
    return sorted((path.stem for path in RELEASES.glob("*.json")), key=lambda name: [*map(int, name.split("."))])


def read(version: str) -> Found:
    """Return what was found in a release so far; empty if there is no file."""
    path = RELEASES / f"{version}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def install(version: str, folder: Path) -> Path:
    """Install the release and this project into a new environment, and return its Python. Raises RuntimeError."""
    if (free := shutil.disk_usage(folder.parent).free) < NEEDED:
        raise RuntimeError(f"{folder.parent} has {free / 1e9:.1f} GB free, an installation needs {NEEDED / 1e9:.0f} GB")
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin/python"
    command = [str(python), "-m", "pip", "install", "--no-cache-dir", "-qq", f"torch=={version}", "-e", str(ROOT)]
    if subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"torch {version} could not be installed: {shlex.join(command)}")
    return python


def describe(python: Path) -> dict[str, str]:
    """Return the versions and the hardware that this Python finds, see `lenet.fingerprint`."""
    command = [str(python), "-m", "lenet.fingerprint"]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return dict(line.split(": ", 1) for line in printed.splitlines())


def judge(version: str, parts: list[str], keep: bool) -> None:
    """Judge a release by the parts that are not done, and write the file after each. Raises RuntimeError."""
    missing = [part for part in parts if part not in read(version)]
    if not missing:
        print(f"torch {version}: done already, in {RELEASES / version}.json")
        return
    folder = ROOT / "lenet-results/versions" / version
    folder.mkdir(parents=True, exist_ok=True)
    try:
        print(f"torch {version}: installing", flush=True)
        python = install(version, folder / "environment")
        stack = describe(python)
        for part in missing:
            print(f"torch {version}: {part}", flush=True)
            found = {"stack": stack} | read(version) | {part: PARTS[part](python, folder / part)}
            with write_atomically(RELEASES / f"{version}.json") as file:
                file.write(json.dumps(found, indent=1).encode() + b"\n")
    finally:
        if not keep:
            shutil.rmtree(folder)


def main(arguments: list[str]) -> int:
    """Judge the releases; return 0, or 2 if one could not be judged, after the others."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties versions",
        description=__doc__,
        epilog="example: lenet-properties versions 2.14.0 2.15.0 --part scripts",
    )
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="a release of PyTorch, such as 2.9.1")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="what to find (default: all)")
    parser.add_argument("--keep", action="store_true", help="keep the environments, in lenet-results/versions")
    options = parser.parse_args(arguments)
    for version in options.versions:
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            parser.error(f"{version}: not a release such as 2.9.1")
    RELEASES.mkdir(exist_ok=True)
    failed = False
    for version in options.versions:
        try:
            judge(version, options.part, options.keep)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"torch {version}: {error}", file=sys.stderr)
            failed = True
    return 2 if failed else 0
