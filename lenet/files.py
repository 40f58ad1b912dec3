"""Write files so that earlier files are neither lost nor left half overwritten, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
"""The end of the names of files that are being written; a process that is killed leaves one."""


RESULTS = Path("lenet-results")
"""The folder that commands write to by default, below the current one: records, pages, examples, checkpoints."""


class LockedError(OSError):
    """Another process has locked a file; the message is one line that names the file."""


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """
    Open a temporary binary file that replaces `path` when the block ends; if the block raises, `path` stays unchanged.

    Missing parent folders are created, and what killed processes left of the same file is removed.
    """
    make_folder(path.parent)
    _remove_partial(path)
    file, temporary = _open_partial(path)
    try:
        with file:
            yield file
            file.flush()
            temporary.chmod(0o644)
            temporary.replace(path)  # before the file is closed, which ends the lock
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> Path:
    """Create a folder, unless it exists, and return it; git ignores RESULTS. Raises OSError if that is impossible."""
    folder.mkdir(parents=True, exist_ok=True)
    results = RESULTS.absolute()
    if results in (folder.absolute(), *folder.absolute().parents) and not (results / ".gitignore").exists():
        (results / ".gitignore").write_text("*\n")
    return folder


def _open_partial(path: Path) -> tuple[IO[bytes], Path]:
    """Create a hidden file beside `path`, locked for as long as it is open, where the file system has locks."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if Path(name).exists():  # another process did not remove it before it was locked
            return os.fdopen(descriptor, "wb"), Path(name)
        os.close(descriptor)


def _remove_partial(path: Path) -> None:
    """Remove the temporary files of `path` whose writer has ended, which no longer holds their lock."""
    for partial in path.parent.iterdir():
        if partial.name.startswith(f".{path.name}.") and partial.name.endswith(PARTIAL):
            with suppress(OSError), _opened(partial) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """
    Hold a lock on `path`, which need not exist; raises LockedError if another process holds it.

    The lock is a hidden file beside `path`. The system releases it however its process ends, and the next process that
    locks `path` removes what a killed one left. A file system that has no locks grants every one.
    """
    make_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with _opened(lock, os.O_CREAT) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LockedError(f"{path} is in use by another run; wait for its end, or name another file") from error
            except OSError:
                pass
            if lock.exists() and os.path.samestat(lock.stat(), os.fstat(descriptor)):
                try:
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return
            # Its last owner removed the file after it was opened here.


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a file whose content does not matter; no link is followed, and no pipe waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def resolved(path: Path) -> Path:
    """Return the path of the file that `path` leads to, through all links."""
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for a link to itself


def file_problem(error: OSError) -> str:
    """
    Return what an error of the system says, with the file, or for standard output, which is not written to again.

    Python writes what is left of standard output at its end, which would fail a second time.
    """
    if error.filename:
        return f"{error.filename}: {error.strerror}"
    with suppress(OSError), Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    return f"cannot write: {error.strerror or error}"


def writable(folder: Path) -> bool:
    """Create `folder` if it does not exist, and return whether files can be written to it."""
    try:
        with tempfile.TemporaryFile(dir=make_folder(folder)):
            return True
    except OSError:
        return False


def set_aside(path: Path) -> None:
    """Rename an earlier run's file, `name.json` to `name.previous.json`, so that it is not mistaken for this run's."""
    if path.exists():
        path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
