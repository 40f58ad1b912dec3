"""
Runs over time: `python -m reports publish`, `index` and `diff`.

A published run is a folder `<date>_<machine>_torch-<version>` with the raw files of a run and its page. Laws are
compared between any two, times only between runs of one machine; and what they show is no verdict: the gate gives one.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from itertools import groupby
from pathlib import Path

from reports.run import ReportError, Run, Timing, load, title_of

RUNS = Path("reports/runs")
PAGES = ("index.html", "summary.md", "picture.svg")
"""What is made of a run for people."""

MACHINE = ("processor", "cores", "GPU", "system", "CPU capability")
"""What two runs must have in common for their times to be compared."""


def name(run: Run) -> str:
    """The name of its folder: date, machine, version of PyTorch."""
    machine = run.stack.get("GPU", run.stack["processor"])
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") or "unknown"
    return f"{run.date[:10]}_{slug}_torch-{run.version}"


def publish(folder: Path, runs: Path) -> Path:
    """
    Keep a run's files under `runs`, beside what is published there of it already; its new folder.

    Raises ReportError where the run is not whole, has no page yet, or the folder has files of another.
    """
    run = load(folder)
    if missing := [page for page in PAGES if not (folder / page).is_file()]:
        raise ReportError(f"{folder / missing[0]} is missing: it is written by `python -m reports {folder}`")
    files = [folder / file for file in (*run.files, *PAGES)]
    place = runs / name(run)
    for file in files:
        there = place / file.name
        if there.exists() and there.read_bytes() != file.read_bytes():
            raise ReportError(f"{there} is of another run; remove {place} to publish this one instead")
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs, prefix=".publishing-") as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        for file in [*(place.iterdir() if place.exists() else ()), *files]:
            shutil.copy(file, whole)
        if place.exists():
            place.rename(Path(made) / "before")
        whole.rename(place)
    return place


def published(runs: Path) -> list[tuple[str, Run]]:
    """The whole runs that are published, by folder, in order of their dates; raises ReportError where one is torn."""
    folders = [folder for folder in runs.glob("*_torch-*") if (folder / "laws.json").is_file()]
    found = [(folder.name, load(folder)) for folder in folders]
    return sorted(found, key=lambda each: (each[1].date, each[0]))


def by_machine(found: list[tuple[str, Run]]) -> list[list[tuple[str, Run]]]:
    """The same, apart by machine."""
    ordered = sorted(found, key=lambda each: machine(each[1]))
    return [list(own) for _, own in groupby(ordered, key=lambda each: machine(each[1]))]


def machine(run: Run) -> tuple[str, ...]:
    """What tells its machine from others."""
    return tuple(run.stack.get(part, "none") for part in MACHINE)


def differences(old: Run, new: Run) -> list[str]:
    """What changed from one run to another, in lines: the stack, the laws, the known issues, the times."""
    lines = []
    for part in dict.fromkeys([*old.stack, *new.stack]):
        before, after = (run.stack.get(part, "none") for run in (old, new))
        if before != after:
            lines.append(f"{part}: {before} -> {after}")
    outcomes = [{law.name: law.outcome for law in run.laws} for run in (old, new)]
    for law in dict.fromkeys([*outcomes[0], *outcomes[1]]):
        before, after = (outcome.get(law, "no such law") for outcome in outcomes)
        if before != after:
            lines.append(f"{title_of(law)}: {before} -> {after}")
    lines += [f"known issue gone: {issue}" for issue in old.known if issue not in new.known]
    lines += [f"known issue new: {issue}" for issue in new.known if issue not in old.known]
    return lines + _times(old, new)


def _times(old: Run, new: Run) -> list[str]:
    """The medians of which each lies outside the other run's middle half."""
    if machine(old) != machine(new):
        return ["times are not compared: the runs are of different machines"]
    before = {_cell(timing): timing for timing in old.timings}
    pairs = [(before[_cell(timing)], timing) for timing in new.timings if _cell(timing) in before]
    apart = [(a, b) for a, b in pairs if not (b.low <= a.median <= b.high or a.low <= b.median <= a.high)]
    lines = [f"{_words(b)}: {b.median / a.median:.2f} times as long" for a, b in apart]
    alike = len(pairs) - len(apart)
    return [*lines, f"{alike} of {len(pairs)} times differ by no more than they vary; the gate gives verdicts"]


def _cell(timing: Timing) -> tuple[object, ...]:
    return timing.operation, timing.place, timing.batch


def _words(timing: Timing) -> str:
    batch = f" of {timing.batch}" if timing.batch else ""
    return f"{timing.operation}{batch} ({timing.subject}, {timing.where})"
