"""Checkpoints resume a run exactly, and corrupt or foreign ones are rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lenet import Net, checkpoint, digits
from lenet.checkpoint import CheckpointError
from lenet.testing import SETTINGS, first_digits, four_batches, same_parameters, trained
from lenet.training import Progress, initial_net, train


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


def test_loading_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Code(), tmp_path / "training.pt")

    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        checkpoint.resume(tmp_path / "training.pt", digits.load())

    assert not (tmp_path / "ran").exists()
