"""
Save a training run to a file, and resume it bit for bit on the same machine with the same number of threads.

A checkpoint is a line with a checksum, and then what `torch.save` writes. The checksum finds damage, not intent: every
field is validated as well, because anybody can write a checkpoint whose checksum is right.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lenet.digits import Digits
from lenet.files import resolved, write_atomically
from lenet.net import Net
from lenet.training import RANGES, STEPS, Epoch, Progress, Settings, batch_count, out_of_range

HEADER = b"lenet-properties checkpoint, sha256 %s\n"
"""The first line of a checkpoint, with the checksum of everything after it."""


TYPES: dict[str, type] = {
    "epochs": int,
    "lr": float,
    "batch": int,
    "optimizer": str,
    "seed": int,
    "step": int,
    "loss_sum": float,
    "history": list,
    "loss": float,
    "accuracy": float,
}
"""The type of each field of Settings, Progress and Epoch."""


class CheckpointError(ValueError):
    """A checkpoint that a run cannot resume from; the message is one line that names the file and the problem."""


def save(path: Path, net: nn.Module, data: Digits, settings: Settings, progress: Progress) -> None:
    """
    Write a checkpoint for `resume`; an earlier checkpoint at `path` stays valid until the new one is complete.

    If `path` is a link, the file that it leads to is written, and the link stays.
    """
    content = {
        "net": net.state_dict(),
        "data": _identity(data),
        "settings": asdict(settings),
        "progress": asdict(progress),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with write_atomically(resolved(path)) as file:
        file.write(with_checksum(buffer.getvalue()))


def with_checksum(saved: bytes) -> bytes:
    """Return what `torch.save` wrote as the content of a checkpoint."""
    return HEADER % hashlib.sha256(saved).hexdigest().encode() + saved


def resume(path: Path, data: Digits) -> tuple[Net, Settings, Progress]:
    """
    Return the network, settings and progress of a checkpoint.

    Raises CheckpointError if `path` does not exist, is damaged or not a checkpoint, has a field that no run writes, or
    was trained on other data.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; start a run without --resume")
    try:
        return _restored(_verified(path.read_bytes()), data)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _verified(content: bytes) -> Any:
    """Return what was saved in a file with this content."""
    line, _, saved = content.partition(b"\n")
    if not line.startswith(HEADER.partition(b"%")[0]):
        raise CheckpointError("not a checkpoint of this program, or one of an older version")
    if content != with_checksum(saved):
        raise CheckpointError("damaged: its checksum does not match its content; restore it, or start again")
    try:
        return torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises almost any exception for a file that it did not write
        raise CheckpointError(f"not a checkpoint of this program ({type(error).__name__})") from error


def _restored(content: Any, data: Digits) -> tuple[Net, Settings, Progress]:
    """Return what the fields of a checkpoint say, if a run on this data can have written them."""
    if not isinstance(content, dict) or content.keys() != {"net", "data", "settings", "progress"}:
        raise CheckpointError("not a checkpoint of this program")
    if (identity := content["data"]) != _identity(data):
        known = isinstance(identity, str) and identity.isprintable()
        raise CheckpointError(f"was trained on {identity if known else 'other data'}, not on {_identity(data)}")
    settings = Settings(**_fields(Settings, content["settings"]))
    for name in RANGES:
        if fault := out_of_range(name, value := getattr(settings, name)):
            raise CheckpointError(f"{name} is {value}, it {fault}")
    if settings.optimizer not in STEPS:
        raise CheckpointError(f"unknown optimizer; known are {', '.join(STEPS)}")
    return _net(content["net"]), settings, _progress(content["progress"], settings, len(data.train_images))


def _progress(values: Any, settings: Settings, images: int) -> Progress:
    """Return the progress of a run with these settings on this number of images."""
    progress = Progress(**_fields(Progress, values))
    progress.history = [Epoch(**_fields(Epoch, epoch)) for epoch in progress.history]
    steps, epochs = batch_count(images, settings), len(progress.history) + (progress.step != 0)
    if not 0 <= progress.step < steps:
        raise CheckpointError(f"step is {progress.step}, an epoch has steps 0 to {steps - 1}")
    if epochs > settings.epochs:
        raise CheckpointError(f"is in epoch {epochs} of {settings.epochs}")
    if progress.step == 0 and progress.loss_sum != 0:
        raise CheckpointError(f"loss_sum is {progress.loss_sum} before the first step of an epoch")
    if not all(0 <= epoch.accuracy <= 1 for epoch in progress.history):
        raise CheckpointError("an accuracy is not between 0 and 1")
    return progress


def _fields(kind: type[Settings | Progress | Epoch], values: Any) -> dict[str, Any]:
    """Return `values` if it has the fields of this class with values of their types."""
    names = [field.name for field in fields(kind)]
    if not isinstance(values, dict) or values.keys() != set(names):
        raise CheckpointError(f"{kind.__name__.lower()} does not consist of {', '.join(names)}")
    for name in names:
        if type(values[name]) is not TYPES[name]:
            raise CheckpointError(f"{name} is of type {type(values[name]).__name__}, expected {TYPES[name].__name__}")
    return values


def _net(parameters: Any) -> Net:
    """Return a network with these parameters, which must have the names, shapes and types of Net's."""
    net = Net()
    expected = net.state_dict()
    if not isinstance(parameters, dict) or parameters.keys() != expected.keys():
        raise CheckpointError(f"the parameters are not {', '.join(expected)}")
    for name, tensor in expected.items():
        found = parameters[name]
        if not isinstance(found, Tensor) or _kind(found) != _kind(tensor):
            raise CheckpointError(f"{name} is not a tensor of shape {tuple(tensor.shape)} and type {tensor.dtype}")
    net.load_state_dict(parameters)
    return net


def _kind(tensor: Tensor) -> tuple[object, ...]:
    """Return what two tensors must have in common to be exchangeable."""
    return tensor.shape, tensor.dtype, tensor.layout, tensor.device


def _identity(data: Digits) -> str:
    """Return a description that distinguishes data sets, with a checksum of the training pixels."""
    checksum = zlib.crc32(data.train_images.numpy().tobytes())
    return f"{data.name}, {len(data.train_images)} images with checksum {checksum:08x}"
