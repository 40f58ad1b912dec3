"""
The journal of a worker process: what it is about to do, written before it does it.

A process that crashes, or that is ended because it hangs, cannot report anything. What it has written stays: one file
for each law that it has started, with one JSON value a line, and one file of the tracebacks that `faulthandler` writes.
`properties.crashes` reads them. In a process that no other one controls, nothing is written.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

DEATHS = "deaths"
"""The file of the attempts of `properties.preconditions` that have ended a process."""

Line = list[Any]
"""A kind of line, `law`, `try`, `example` or `end`, followed by what it says."""


class Journal:
    """The journal of this process."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.folder, self.worker = folder, worker
        self.descriptor: int | None = None  # of the current law's file
        self.traceback = os.open(traceback_path(folder, worker), os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def write_tracebacks(self) -> None:
        """Have `faulthandler` write the traceback of a crash where the journal is."""
        faulthandler.enable(self.traceback)

    def begin_law(self, law: str, header: dict[str, Any]) -> None:
        """Begin the file of a law, known by its id, instead of any that another process has left."""
        self.end_law()
        os.ftruncate(self.traceback, 0)
        self.descriptor = os.open(law_path(self.folder, law), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        thread = threading.main_thread().ident
        self.write("law", header | {"worker": self.worker, "process": os.getpid(), "thread": thread})

    def write(self, *line: Any) -> None:
        """Add a line to the file of the current law, by one call of the system: it is never cut in the middle."""
        if self.descriptor is not None:
            os.write(self.descriptor, json.dumps(line).encode() + b"\n")

    def end_law(self) -> None:
        """Close the file of the current law."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


_journal: Journal | None = None


def keep(folder: Path, worker: str) -> Journal:
    """Have this process keep a journal in the folder, under the name of its worker."""
    global _journal
    _journal = Journal(folder, worker)
    return _journal


def is_kept() -> bool:
    """Whether this process keeps a journal."""
    return _journal is not None


def write(*line: Any) -> None:
    """Write a line to the journal if this process keeps one."""
    if _journal is not None:
        _journal.write(*line)


def law_path(folder: Path, law: str) -> Path:
    """Return the path of a law's file; an id can contain characters that a file's name cannot."""
    return folder / hashlib.sha256(law.encode(errors="surrogatepass")).hexdigest()


def traceback_path(folder: Path, worker: str) -> Path:
    """Return the path of the tracebacks of a worker."""
    return folder / f"traceback-{worker}"


def read(path: Path) -> list[Line]:
    """Return the lines of a file; empty if there is no such file."""
    lines: list[Line] = []
    with suppress(FileNotFoundError):
        for text in path.read_bytes().splitlines():
            with suppress(ValueError):  # half a line, on a full disk
                lines.append(json.loads(text))
    return lines


class DeadProcessError(RuntimeError):
    """An attempt has ended the process that made it. The message is one line, which may be followed by a traceback."""


def add_death(folder: Path, stack: str, attempt: str, message: str) -> None:
    """Have later processes know that an attempt has ended a process, so that they do not make it again."""
    with (folder / DEATHS).open("ab") as file:
        file.write(json.dumps([stack, attempt, message]).encode() + b"\n")


def deaths(stack: str) -> dict[str, DeadProcessError]:
    """Return the attempts with a stack that have ended another process of this run, each with an error that says so."""
    if _journal is None:
        return {}
    return {
        attempt: DeadProcessError(message)
        for other, attempt, message in read(_journal.folder / DEATHS)
        if other == stack
    }
