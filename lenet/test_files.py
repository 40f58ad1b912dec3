"""Nothing written before is lost or half written."""

from pathlib import Path

import pytest

from lenet.files import set_aside, writable, write_atomically


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"

    with write_atomically(path) as file:
        file.write(b"first")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as file:
        file.write(bytes([1 // 0]))

    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_for_all_to_read_and_its_owner_to_write(tmp_path: Path) -> None:
    with write_atomically(tmp_path / "file.json") as file:
        file.write(b"content")

    assert (tmp_path / "file.json").stat().st_mode & 0o777 == 0o644


def test_a_folder_is_made_where_there_is_none_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"

    assert writable(folder)
    assert writable(folder)
    assert list(folder.iterdir()) == []


def test_a_file_is_no_folder_to_write_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert not writable(tmp_path / "file")
    assert not writable(tmp_path / "file" / "folder")


def test_what_an_earlier_run_left_is_set_aside(tmp_path: Path) -> None:
    path, previous = tmp_path / "laws.json", tmp_path / "laws.previous.json"

    set_aside(path)
    assert list(tmp_path.iterdir()) == []

    for content in ("first", "second"):
        path.write_text(content)
        set_aside(path)
        assert previous.read_text() == content
        assert not path.exists()
