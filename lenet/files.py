"""Write files so that earlier files are neither lost nor left half overwritten."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """
    Open a temporary binary file that replaces `path` when the block ends; if the block raises, `path` stays unchanged.

    Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def writable(folder: Path) -> bool:
    """Create `folder` if it does not exist, and return whether files can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def set_aside(path: Path) -> None:
    """Rename an earlier run's file, `name.json` to `name.previous.json`, so that it is not mistaken for this run's."""
    if path.exists():
        path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
