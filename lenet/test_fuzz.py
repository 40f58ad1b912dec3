"""
Checkpoints and IDX files with mutated bytes and fields: an error of one line or a right answer, no other exception.

What a reader answers is right if a run can go on from it.
"""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lenet import Net, checkpoint, digits
from lenet.checkpoint import CheckpointError
from lenet.digits import DigitsError
from lenet.testing import first_digits
from lenet.training import train

DATA = first_digits(200)
IMAGES = struct.pack(">4I", 2051, 2, 28, 28) + bytes(2 * 784)
LABELS = struct.pack(">2I", 2049, 2) + bytes([1, 9])

fuzz = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 5)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([torch.zeros(3), torch.zeros(10, dtype=torch.float64), torch.zeros(2).to_sparse()]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
edits = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1, exclude_max=True), st.binary(min_size=1)),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """The content after these changes, each at a share of its length."""
    for kind, share, new in changes:
        at = int(share * len(content))
        match kind:
            case "flip":
                content = content[:at] + new + content[at + len(new) :]
            case "cut":
                content = content[:at] + content[at + len(new) :]
            case "insert":
                content = content[:at] + new + content[at:]
    return content


@pytest.fixture(scope="module")
def saved() -> bytes:
    """What `torch.save` writes in a checkpoint of a run in its second epoch."""
    content = {
        "net": Net().state_dict(),
        "data": checkpoint._identity(DATA),
        "settings": {"epochs": 2, "lr": 0.5, "batch": 64, "optimizer": "manual", "seed": 0},
        "progress": {"step": 2, "loss_sum": 1.0, "history": [{"loss": 0.1, "accuracy": 0.5}]},
    }
    return pickled(content)


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def resumes_or_is_refused(path: Path) -> None:
    """A checkpoint is refused in one line, or a step of the run can follow."""
    message = ""
    try:
        net, resumed, progress = checkpoint.resume(path, DATA)
        next(train(net, DATA, resumed, progress), None)
    except CheckpointError as error:
        message = str(error)
    assert not message or message.startswith(f"{path}: ")
    assert message.isprintable()


@fuzz
@given(changes=edits)
def test_damaged_checkpoint_is_refused(tmp_path: Path, saved: bytes, changes: list[tuple[str, float, bytes]]) -> None:
    path = tmp_path / "run.pt"
    content = checkpoint.with_checksum(saved)
    path.write_bytes(edited(content, changes))
    if path.read_bytes() == content:
        return

    with pytest.raises(CheckpointError):
        checkpoint.resume(path, DATA)


@fuzz
@given(changes=edits)
def test_checkpoint_of_any_bytes_with_a_right_checksum(
    tmp_path: Path, saved: bytes, changes: list[tuple[str, float, bytes]]
) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(checkpoint.with_checksum(edited(saved, changes)))

    resumes_or_is_refused(path)


@fuzz
@given(part=st.sampled_from(["net", "data", "settings", "progress"]), choice=st.integers(0), value=values)
def test_checkpoint_of_any_field(tmp_path: Path, saved: bytes, part: str, choice: int, value: Any) -> None:
    """A field, or a part as a whole, is replaced."""
    content = torch.load(io.BytesIO(saved), weights_only=True)
    names = [None, *content[part]] if isinstance(content[part], dict) else [None]
    name = names[choice % len(names)]
    if name is None:
        content[part] = value
    else:
        content[part][name] = value
    path = tmp_path / "run.pt"
    path.write_bytes(checkpoint.with_checksum(pickled(content)))

    resumes_or_is_refused(path)


@fuzz
@given(
    name=st.sampled_from(["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]),
    zipped=st.booleans(),
    changes=edits,
    sizes=st.none() | st.lists(st.sampled_from([0, 1, 2, 27, 28, 2**31, 2**32 - 1]), min_size=3, max_size=3),
)
def test_idx_files_of_any_bytes(
    tmp_path: Path, name: str, zipped: bool, changes: list[tuple[str, float, bytes]], sizes: list[int] | None
) -> None:
    images = struct.pack(">4I", 2051, *(sizes or (2, 28, 28))) + bytes(2 * 784)
    labels = struct.pack(">2I", 2049, (sizes or [2])[0]) + bytes([1, 9])
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(images if part == "train" else IMAGES)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(labels if part == "train" else LABELS)
    content = (tmp_path / name).read_bytes()
    (tmp_path / f"{name}.gz").unlink(missing_ok=True)
    if zipped:
        (tmp_path / name).unlink()
        (tmp_path / f"{name}.gz").write_bytes(edited(gzip.compress(content), changes))
    else:
        (tmp_path / name).write_bytes(edited(content, changes))

    message = ""
    try:
        data = digits.load(tmp_path)
        assert data.train_images.shape == (len(data.train_labels), 1, 32, 32)
        assert data.train_images.max() <= 1
        assert data.train_labels.max() <= 9
    except DigitsError as error:
        message = str(error)
    assert not message or str(tmp_path) in message
    assert message.isprintable()
