"""
Published runs: `lenet-properties publish`, `index` and `diff`.

A published run is a folder `<date>_<machine>_torch-<version>` with the JSON files of a run and its page. Stacks, laws
and known issues are compared between any two runs. Times are not: a run times each operation in one process, which
cannot show that another run is slower. The gate can.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from itertools import groupby
from pathlib import Path

from lenet.files import locked, write_atomically
from reports.loading import ReportError, load
from reports.run import Run

RUNS = Path("reports/runs")
"""The folder of published runs."""

PAGES = ("index.html", "learn.html", "validation.html", "summary.md", "picture.svg")
"""The files for readers that are made from a run."""

PUBLISHING = ".publishing"
"""The beginning of the names of folders that are not complete yet."""

MACHINE = ("processor", "cores", "GPU", "system", "CPU capability")
"""The parts of a stack that identify its machine."""


def folder_name(run: Run) -> str:
    """The name of the folder of a published run: date, machine, version of PyTorch, each as the schema allows it."""
    machine = run.stack.get("GPU", run.stack["processor"])
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") or "unknown"
    return f"{run.date[:10]}_{slug}_torch-{run.torch_version}"


def publish(folder: Path, runs: Path) -> Path:
    """
    Copy a run's files to its own folder in `runs`, and return that folder.

    Files that were published there before stay. Raises ReportError if the run cannot be read, has no page yet, has a
    link among its files, or would change a published file.
    """
    run = load(folder, complete=True)
    if missing := [page for page in PAGES if not (folder / page).is_file()]:
        raise ReportError(f"{folder / missing[0]} is missing; `lenet-properties report {folder}` writes it")
    files = [folder / file for file in (*run.files, *PAGES)]
    if links := [file for file in files if file.is_symlink()]:
        raise ReportError(f"{links[0]} is a link, which could lead to a file that nobody means to publish")
    target = runs / folder_name(run)
    with locked(runs / PUBLISHING):
        for left in runs.glob(f"{PUBLISHING}-*"):  # by a process that was killed
            shutil.rmtree(left)
        _check_inside(target, runs)
        for file in files:
            published = target / file.name
            if published.exists() and published.read_bytes() != file.read_bytes():
                raise ReportError(f"{published} belongs to another run; remove {target} to publish this one instead")
        if target.exists():
            _add(files, target)
        else:
            _create(files, target)
    return target


def _add(files: list[Path], target: Path) -> None:
    """Copy those files to a published run that it does not have yet."""
    for file in files:
        if not (target / file.name).exists():
            with write_atomically(target / file.name) as copy:
                copy.write(file.read_bytes())


def _create(files: list[Path], target: Path) -> None:
    """Copy the files to a new folder, which has its name once it is complete."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{PUBLISHING}-") as temporary:
        complete = Path(temporary) / "complete"
        complete.mkdir()
        for file in files:
            shutil.copy(file, complete)
        complete.rename(target)


def published(runs: Path) -> list[tuple[str, Run]]:
    """The published runs with the names of their folders, ordered by date; raises ReportError if one cannot be read."""
    folders = [folder for folder in runs.glob("*_torch-*") if (folder / "laws.json").is_file()]
    for folder in folders:
        _check_inside(folder, runs)
    named = [(folder.name, load(folder, complete=True)) for folder in folders]
    return sorted(named, key=lambda each: (each[1].date, each[0]))


def _check_inside(folder: Path, runs: Path) -> None:
    """Raise ReportError unless `folder` is, or will be, a folder in `runs`, and no link to another one."""
    if folder.resolve() != runs.resolve() / folder.name:
        raise ReportError(f"{folder} leads to {folder.resolve()}; a published run is a folder in {runs}")


def by_machine(named: list[tuple[str, Run]]) -> list[list[tuple[str, Run]]]:
    """The same runs, one list per machine."""
    ordered = sorted(named, key=lambda each: machine(each[1]))
    return [list(runs) for _, runs in groupby(ordered, key=lambda each: machine(each[1]))]


def machine(run: Run) -> tuple[str, ...]:
    """The parts of a run's stack that identify its machine."""
    return tuple(run.stack.get(part, "none") for part in MACHINE)


def differences(old: Run, new: Run) -> list[str]:
    """One line for each difference between two runs: stack, laws, known issues, known deviations."""
    lines = []
    for part in dict.fromkeys([*old.stack, *new.stack]):
        before, after = (run.stack.get(part, "none") for run in (old, new))
        if before != after:
            lines.append(f"{part}: {before} -> {after}")
    titles = {law.name: law.title for law in [*old.laws.laws, *new.laws.laws]}
    outcomes = [{law.name: law.outcome for law in run.laws.laws} for run in (old, new)]
    for law, title in titles.items():
        before, after = (outcome.get(law, "no such law") for outcome in outcomes)
        if before != after:
            lines.append(f"{title}: {before} -> {after}")
    issues = [list(map(str, run.laws.known_issues)) for run in (old, new)]
    lines += [f"known issue gone: {issue}" for issue in issues[0] if issue not in issues[1]]
    lines += [f"new known issue: {issue}" for issue in issues[1] if issue not in issues[0]]
    deviations = [list(map(str, run.laws.known_deviations)) for run in (old, new)]
    lines += [f"known deviation gone: {one}" for one in deviations[0] if one not in deviations[1]]
    lines += [f"new known deviation: {one}" for one in deviations[1] if one not in deviations[0]]
    return lines
