"""Accepted rises are read from a repository, and every error in the file is one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.accepted import FILE, Acceptance, read

BENCHMARKS = ("forward-1", "update")


def written(folder: Path, text: str) -> Path:
    (folder / FILE).parent.mkdir()
    (folder / FILE).write_text(text)
    return folder


def test_missing_file_accepts_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, BENCHMARKS) == {}


def test_rises_are_read_by_benchmark_and_counter(tmp_path: Path) -> None:
    text = """
        [forward-1]
        operators = { at_most = 64, reason = "checks  its input" }
        "peak memory" = { at_most = 73_088, reason = "keeps a copy" }
        [update.allocations]
        at_most = 2
        reason = "one buffer"
    """

    assert read(written(tmp_path, text), BENCHMARKS) == {
        "forward-1": {
            "operators": Acceptance(64, "checks its input"),
            "peak memory": Acceptance(73_088, "keeps a copy"),
        },
        "update": {"allocations": Acceptance(2, "one buffer")},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("forward-1", "cannot be read: Expected '=' after a key"),
        (
            'forward-9.FLOPs = { at_most = 1, reason = "a" }',
            "forward-9: no such benchmark; there are forward-1",
        ),
        ("forward-1 = 3", "forward-1: is not a table of counters; write [forward-1.operators] with at_most"),
        (
            'forward-1.speed = { at_most = 1, reason = "a" }',
            "forward-1: no counter is named speed; there are FLOPs",
        ),
        ("forward-1.FLOPs = { at_most = 1 }", "forward-1.FLOPs: needs at_most and reason alone"),
        ('forward-1.FLOPs = { at_most = 1, reason = "a", unit = "b" }', "forward-1.FLOPs: needs at_most and reason"),
        ('forward-1.FLOPs = { at_most = 1.5, reason = "a" }', "at_most is not a whole number, or reason no text"),
        ('forward-1.FLOPs = { at_most = true, reason = "a" }', "at_most is not a whole number, or reason no text"),
        ('forward-1.FLOPs = { at_most = 1, reason = " " }', "at_most is not a whole number, or reason no text"),
    ],
)
def test_error_in_the_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"accepted\.toml: ") as caught:
        read(written(tmp_path, text), BENCHMARKS)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir(parents=True)

    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path, BENCHMARKS)
