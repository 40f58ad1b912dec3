"""`lenet-properties doctor`: what is installed, which devices and engines are usable, and what is missing."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from lenet import engines
from lenet.engines import ENGINES_BY_MODULE, PEERS, EngineError
from lenet.files import RESULTS, writable
from lenet.fingerprint import fingerprint, headline
from lenet.system import process_limitations, timing_limitations

DISTRIBUTION = "lenet-properties"
COMPILING = (*ENGINES_BY_MODULE["compiled"], "aot-inductor")
"""The engines that need a C++ compiler on the CPU."""


class Finding(NamedTuple):
    """One thing that was looked for."""

    name: str
    state: str  # ok, missing, unusable or limited
    detail: str = ""
    required: bool = False  # whether nothing can be judged without it


def main(arguments: list[str]) -> int:
    """Print what was found; return 0, or 1 if something is missing without which nothing can be judged."""
    parser = argparse.ArgumentParser(
        prog="lenet-properties doctor",
        description="What is installed, which devices and engines are usable, and what is missing.",
        epilog="example: lenet-properties doctor. Exit codes: 0 ready to judge, 1 something is missing",
    )
    parser.parse_args(arguments)
    found = [*packages(), *devices(), *tools(), *usable_engines()]
    print(headline(fingerprint()))
    width = max(len(finding.name) for finding in found)
    for finding in found:
        print(f"{finding.name:<{width}}  {finding.state:<8}  {finding.detail}".rstrip())
    missing = [finding.name for finding in found if finding.required and finding.state != "ok"]
    print(f"cannot judge: {', '.join(missing)}" if missing else "ready: lenet-properties judge")
    return int(bool(missing))


def packages() -> Iterator[Finding]:
    """Yield what is installed of the packages that this project requires."""
    try:
        requirements = [Requirement(text) for text in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        yield Finding(DISTRIBUTION, "missing", "not installed: run `pip install .` in a clone")
        return
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate():
            yield _package(requirement)


def _package(requirement: Requirement) -> Finding:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, "missing", f"pip install '{requirement}'", required=True)
    if not requirement.specifier.contains(found, prereleases=True):
        return Finding(requirement.name, "unusable", f"{found}; needed: {requirement.specifier}", required=True)
    return Finding(requirement.name, "ok", found)


def devices() -> Iterator[Finding]:
    """Yield which devices compute."""
    for name in ("cpu", "cuda"):
        try:
            torch.ones(1, device=name).cpu()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            yield Finding(f"device {name}", "unusable", reason, required=name == "cpu")
        else:
            yield Finding(f"device {name}", "ok", torch.cuda.get_device_name() if name == "cuda" else "")


def tools() -> Iterator[Finding]:
    """Yield which programs and abilities of the system are there, and what needs them."""
    compiler = _compiler()
    yield Finding("C++ compiler", "ok" if compiler else "missing", compiler or "for engines that compile on the CPU")
    git = shutil.which("git")
    yield Finding("git", "ok" if git else "missing", git or "for the gate: it checks out the base commit")
    for limitation in (*timing_limitations(), *process_limitations()):
        yield Finding("system", "limited", limitation)
    place = RESULTS if RESULTS.exists() else RESULTS.absolute().parent
    state = "ok" if writable(place) else "unusable"
    yield Finding(f"folder {RESULTS}", state, "" if state == "ok" else "not writable; use --record DIR")


def _compiler() -> str | None:
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None
    )


def usable_engines() -> Iterator[Finding]:
    """Yield which engines can be loaded and on which of this machine's devices they run. None is built."""
    available = ["cpu", *["cuda"] * torch.cuda.is_available()]
    for name in engines.names():
        try:
            engine = engines.load(name)
        except EngineError as error:
            yield Finding(f"engine {name}", "missing", str(error).partition(": ")[2])
            continue
        except Exception as error:  # a package of another version than the engine needs
            yield Finding(f"engine {name}", "unusable", " ".join(f"{type(error).__name__}: {error}".split()))
            continue
        supported = [device for device in available if device in engine.devices]
        if not supported:
            yield Finding(f"engine {name}", "unusable", f"runs only on {', '.join(engine.devices)}")
        elif name in COMPILING and supported == ["cpu"] and not _compiler():
            yield Finding(f"engine {name}", "unusable", "needs a C++ compiler")
        else:
            yield Finding(f"engine {name}", "ok", f"{version_of(name)}on {', '.join(supported)}")


def version_of(engine: str) -> str:
    """Return the version of the package that executes an engine; empty for PyTorch's own."""
    return f"{PEERS[engine]} {version(PEERS[engine])} " if engine in PEERS else ""
