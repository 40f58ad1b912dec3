"""Save a training run to a file, and resume it bit for bit on the same machine with the same number of threads."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from lenet.digits import Digits
from lenet.files import write_atomically
from lenet.net import Net
from lenet.training import Epoch, Progress, Settings


class CheckpointError(ValueError):
    """A checkpoint that a run cannot resume from; the message is one line that names the file and the problem."""


def save(path: Path, net: nn.Module, data: Digits, settings: Settings, progress: Progress) -> None:
    """Write a checkpoint for `resume`; an earlier checkpoint at `path` stays valid until the new one is complete."""
    content = {
        "net": net.state_dict(),
        "data": _identity(data),
        "settings": asdict(settings),
        "progress": asdict(progress),
    }
    with write_atomically(path) as file:
        torch.save(content, file)


def resume(path: Path, data: Digits) -> tuple[Net, Settings, Progress]:
    """
    Return the network, settings and progress of a checkpoint.

    Raises CheckpointError if `path` does not exist, is not a checkpoint, or was trained on other data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; start a run without --resume")
    net = Net()
    try:
        content = torch.load(path, weights_only=True)
        net.load_state_dict(content["net"])
        settings, progress = Settings(**content["settings"]), Progress(**content["progress"])
        progress.history = [Epoch(**epoch) for epoch in content["progress"]["history"]]
        identity = content["data"]
    except Exception as error:  # torch.load raises almost any exception for a file that is not a checkpoint
        raise CheckpointError(f"{path}: not a checkpoint of this program ({type(error).__name__})") from error
    if identity != _identity(data):
        raise CheckpointError(f"{path}: was trained on {identity}, not on {_identity(data)}")
    return net, settings, progress


def _identity(data: Digits) -> str:
    """Return a description that distinguishes data sets, with a checksum of the training pixels."""
    checksum = zlib.crc32(data.train_images.numpy().tobytes())
    return f"{data.name}, {len(data.train_images)} images with checksum {checksum:08x}"
