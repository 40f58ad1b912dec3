"""Nothing written before is lost or half written."""

from pathlib import Path

import pytest

from lenet.files import write_atomically


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"

    with write_atomically(path) as file:
        file.write(b"first")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as file:
        file.write(bytes([1 // 0]))

    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]
