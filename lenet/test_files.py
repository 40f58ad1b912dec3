"""Files are written completely or not at all, earlier files are kept, and killed processes leave nothing for long."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lenet.files import PARTIAL, LockedError, file_problem, locked, set_aside, writable, write_atomically

ROOT = Path(__file__).parents[1]
WRITE = "from lenet.files import *; import sys, pathlib\nwith write_atomically(pathlib.Path(sys.argv[1])) as file:"
WRITE_BYTES = "with write_atomically(pathlib.Path(sys.argv[1])) as file: file.write(bytes([byte]) * 2**20)"
LOCK = "from lenet.files import *; import sys, pathlib\nwith locked(pathlib.Path(sys.argv[1])):"


@contextmanager
def another_process(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the code as far as a last statement, waits there, and is killed at the end."""
    command = [sys.executable, "-c", f"{code}\n    print('ready', flush=True)\n    sys.stdin.read()", str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_failed_write_leaves_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"

    with write_atomically(path) as file:
        file.write(b"first")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as file:
        file.write(bytes([1 // 0]))

    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_file_is_readable_by_all_and_writable_by_its_owner(tmp_path: Path) -> None:
    with write_atomically(tmp_path / "file.json") as file:
        file.write(b"content")

    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o644


def test_next_write_removes_what_killed_processes_left(tmp_path: Path) -> None:
    """It does not touch what a living process writes, nor files with similar names."""
    path, other = tmp_path / "run.pt", tmp_path / ".run.pt.previous"
    other.write_bytes(b"mine")
    with another_process(WRITE, path):
        pass
    assert len(list(tmp_path.glob(f".run.pt.*{PARTIAL}"))) == 1

    with another_process(WRITE, path):
        (living,) = tmp_path.glob(f".run.pt.*{PARTIAL}")
        with write_atomically(path) as file:
            file.write(b"content")

        assert set(tmp_path.iterdir()) == {path, living, other}
        assert path.read_bytes() == b"content"


def test_writer_that_is_killed_at_any_moment_leaves_a_complete_file(tmp_path: Path) -> None:
    """A process writes without end, and is killed 10 times; each file is one byte, a megabyte long."""
    path, moments = tmp_path / "run.pt", random.Random(0)
    endless = f"while True:\n  for byte in range(256):\n    {WRITE_BYTES}\n    print(byte, flush=True)"
    code = f"from lenet.files import *; import sys, pathlib\n{endless}"
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"0\n"
            time.sleep(moments.uniform(0, 0.02))
            process.kill()

        content = path.read_bytes()
        assert content == content[:1] * 2**20
        assert len(list(tmp_path.iterdir())) <= 2  # the file, and what the last process was writing


@pytest.mark.timeout(10)
def test_leftover_that_is_a_pipe_or_a_link_is_not_opened(tmp_path: Path) -> None:
    path, target = tmp_path / "run.pt", tmp_path / "target"
    target.write_bytes(b"mine")
    os.mkfifo(tmp_path / f".run.pt.pipe{PARTIAL}")
    (tmp_path / f".run.pt.link{PARTIAL}").symlink_to(target)

    with write_atomically(path) as file:
        file.write(b"content")

    assert path.read_bytes() == b"content"
    assert target.read_bytes() == b"mine"


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files cannot grow beyond 10 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(b"earlier")

    with pytest.raises(OSError, match="too large"), write_atomically(path) as file:
        file.write(b"more than ten bytes")

    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_locked_file_is_refused_to_others_until_its_process_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with (
        another_process(LOCK, path),
        pytest.raises(LockedError, match=r"run\.pt is in use by another run; wait for"),
        locked(path),
    ):
        pass

    with locked(path):  # what the killed process left is no lock
        assert list(tmp_path.iterdir()) == [tmp_path / ".run.pt.lock"]
    assert list(tmp_path.iterdir()) == []


def test_lock_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / ".run.pt.lock").symlink_to("target")

    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "run.pt"):
        pass

    assert (tmp_path / "target").read_bytes() == b"mine"


def test_problem_names_the_file_or_the_output() -> None:
    assert file_problem(OSError(errno.EACCES, "Permission denied", "run.pt")) == "run.pt: Permission denied"
    script = "from lenet.files import *\ntry: print('x', flush=True)\nexcept OSError as e: sys.exit(file_problem(e))"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)

    assert (done.returncode, done.stderr) == (1, "cannot write: No space left on device\n")


def test_missing_folder_is_created_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"

    assert writable(folder)
    assert writable(folder)
    assert list(folder.iterdir()) == []


def test_file_is_not_a_writable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert not writable(tmp_path / "file")
    assert not writable(tmp_path / "file" / "folder")


def test_earlier_file_is_renamed(tmp_path: Path) -> None:
    path, previous = tmp_path / "laws.json", tmp_path / "laws.previous.json"

    set_aside(path)
    assert list(tmp_path.iterdir()) == []

    for content in ("first", "second"):
        path.write_text(content)
        set_aside(path)
        assert previous.read_text() == content
        assert not path.exists()
