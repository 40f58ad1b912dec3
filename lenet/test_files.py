"""Files are written completely or not at all, and earlier files are kept."""

from pathlib import Path

import pytest

from lenet.files import set_aside, writable, write_atomically


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
