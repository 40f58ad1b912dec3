"""Checkpoints resume a run exactly, and corrupt or foreign ones are rejected."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lenet import Net, checkpoint, digits
from lenet.checkpoint import CheckpointError
from lenet.testing import SETTINGS, first_digits, four_batches, same_parameters, trained
from lenet.training import Epoch, Progress, initial_net, train


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_run_resumes_from_a_checkpoint_bit_for_bit(tmp_path: Path, stop: int) -> None:
    """Stopped in the first epoch of 4 batches, just before its end, at its end, and just after."""
    data, path = four_batches(), tmp_path / "training.pt"
    uninterrupted, history = trained(SETTINGS, data)
    net, progress = initial_net(SETTINGS), Progress()
    for done, _ in enumerate(train(net, data, SETTINGS, progress), start=1):
        if done == stop:
            break
    checkpoint.save(path, net, data, SETTINGS, progress)

    net, settings, progress = checkpoint.resume(path, data)
    for _ in train(net, data, settings, progress):
        pass

    assert settings == SETTINGS
    assert same_parameters(net, uninterrupted)
    assert progress == history


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04truncated"])
def test_corrupt_checkpoint_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training.pt"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        checkpoint.resume(path, digits.load())


def test_checkpoint_of_other_pixels_is_rejected(tmp_path: Path) -> None:
    data = first_digits(10)
    pixels = data.train_images.clone()
    pixels[3, 0, 5, 5] += 0.5
    checkpoint.save(tmp_path / "training.pt", Net(), data, SETTINGS, Progress())

    with pytest.raises(CheckpointError, match="was trained on scikit-learn's digits, 10 images with checksum"):
        checkpoint.resume(tmp_path / "training.pt", replace(data, train_images=pixels))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The checkpoint of a run in its second epoch of four batches."""
    progress = Progress(step=3, loss_sum=0.5, history=[Epoch(0.1, 0.2)])
    checkpoint.save(tmp_path / "training.pt", Net(), four_batches(), SETTINGS, progress)
    return tmp_path / "training.pt"


def test_every_flipped_bit_is_found(saved: Path) -> None:
    """40 of them, spread over the file by a fixed seed."""
    content = saved.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(content), 40, replace=False):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(flipped)

        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint"):
            checkpoint.resume(saved, four_batches())


def test_link_stays_and_its_file_is_written(saved: Path) -> None:
    link = saved.with_name("link.pt")
    link.symlink_to(saved.name)
    net = Net()

    checkpoint.save(link, net, four_batches(), SETTINGS, Progress())

    assert link.readlink() == Path(saved.name)
    assert same_parameters(checkpoint.resume(saved, four_batches())[0], net)


FIELDS: dict[str, tuple[str, str, object, str]] = {
    "negative batch": ("settings", "batch", -5, "batch is -5, it must be at least 1"),
    "batch is text": ("settings", "batch", "16", "batch is of type str, expected int"),
    "epochs is true": ("settings", "epochs", True, "epochs is of type bool, expected int"),
    "rate is NaN": ("settings", "lr", float("nan"), "lr is nan, it must be at least 0"),
    "unknown optimizer": ("settings", "optimizer", "adam", "unknown optimizer; known are manual, sgd"),
    "huge seed": ("settings", "seed", 2**32, "seed is 4294967296, it must be at least 0 and at most 4294967295"),
    "further setting": ("settings", "momentum", 0.9, "settings does not consist of epochs, lr, batch, optimizer, seed"),
    "step beyond the epoch": ("progress", "step", 4, "step is 4, an epoch has steps 0 to 3"),
    "negative step": ("progress", "step", -1, "step is -1, an epoch has steps 0 to 3"),
    "loss before the first step": ("progress", "step", 0, "loss_sum is 0.5 before the first step of an epoch"),
    "no sum": ("progress", "loss_sum", None, "loss_sum is of type NoneType, expected float"),
    "history is text": ("progress", "history", "none", "history is of type str, expected list"),
    "epoch is a number": ("progress", "history", [3], "epoch does not consist of loss, accuracy"),
    "accuracy of 2": ("progress", "history", [{"loss": 0.1, "accuracy": 2.0}], "an accuracy is not between 0 and 1"),
    "more epochs": ("progress", "history", [{"loss": 0.1, "accuracy": 0.5}] * 2, "is in epoch 3 of 2"),
    "other shape": (
        "net",
        "fc3.bias",
        torch.zeros(9),
        "fc3.bias is not a tensor of shape (10,) and type torch.float32",
    ),
    "other type": ("net", "fc3.bias", torch.zeros(10).double(), "fc3.bias is not a tensor of shape (10,)"),
    "no tensor": ("net", "fc3.bias", 1.0, "fc3.bias is not a tensor of shape (10,)"),
    "further tensor": ("net", "fc4.bias", torch.zeros(10), "the parameters are not conv1.weight"),
}


@pytest.mark.parametrize("fault", FIELDS)
def test_field_that_no_run_writes_is_named(saved: Path, fault: str) -> None:
    """Its checksum is right: anybody can write one."""
    part, name, value, message = FIELDS[fault]
    content = torch.load(io.BytesIO(saved.read_bytes().partition(b"\n")[2]), weights_only=True)
    content[part][name] = value
    buffer = io.BytesIO()
    torch.save(content, buffer)
    saved.write_bytes(checkpoint.with_checksum(buffer.getvalue()))

    with pytest.raises(CheckpointError, match=re.escape(f"{saved}: {message}")) as caught:
        checkpoint.resume(saved, four_batches())

    assert "\n" not in str(caught.value)


def test_checkpoint_without_its_parts_is_rejected(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save([1, 2, 3], buffer)
    (tmp_path / "training.pt").write_bytes(checkpoint.with_checksum(buffer.getvalue()))

    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        checkpoint.resume(tmp_path / "training.pt", four_batches())


def test_loading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    buffer = io.BytesIO()
    torch.save(Code(), buffer)
    (tmp_path / "training.pt").write_bytes(checkpoint.with_checksum(buffer.getvalue()))

    with pytest.raises(CheckpointError, match=r"not a checkpoint of this program \(UnpicklingError\)"):
        checkpoint.resume(tmp_path / "training.pt", digits.load())

    assert not (tmp_path / "ran").exists()
