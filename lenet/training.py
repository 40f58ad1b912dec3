"""
The six steps of training, by hand: define, iterate, forward, loss, backward, update.

`python -m lenet.training` trains the Net on real digits. Ctrl-C stops after the step that is under way and leaves a
checkpoint; `--resume` goes on from it bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from tqdm import tqdm

from lenet import digits
from lenet.digits import Digits, DigitsError, one_hot
from lenet.files import write_atomically
from lenet.net import Net, feature_maps

Step: TypeAlias = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""(net, images, targets, lr) -> the loss before the update, detached."""


def sgd_update(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """
    weight = weight - learning_rate * gradient, in place.

    Skips a parameter whose gradient is None; leaves every gradient as it is.
    """
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_(lr * parameter.grad)


def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Zero the gradients, forward, mean squared error, backward, update by hand; returns the loss, detached."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


def optimizer_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The same step with `optim.SGD`, which without momentum keeps no state from one step to the next."""
    optimizer = optim.SGD(net.parameters(), lr=lr)
    optimizer.zero_grad()
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


STEPS: dict[str, Step] = {"manual": train_step, "sgd": optimizer_step}


@dataclass(frozen=True)
class Settings:
    """How to train. The defaults reach 95 % of the test digits; `tox run -e train` prints what exactly."""

    epochs: int = 10
    lr: float = 0.5
    batch: int = 16
    optimizer: Literal["manual", "sgd"] = "manual"
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one epoch reached: the mean loss over its training images, and the share of test digits told right."""

    loss: float
    accuracy: float


@dataclass
class Progress:
    """Where a run of training stands; with the net's parameters, all that it needs to go on bit for bit."""

    step: int = 0  # batches done in the epoch under way
    loss_sum: float = 0.0  # over the images of those batches
    history: list[Epoch] = field(default_factory=list)  # the epochs done


def batches(images: int, settings: Settings, epoch: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """The indices of an epoch's batches, shuffled by seed and epoch alone, so that a run can go on from anywhere."""
    order = np.random.RandomState([settings.seed, epoch]).permutation(images)
    return [order[start : start + settings.batch] for start in range(0, images, settings.batch)]


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest score is their label's."""
    with torch.no_grad():
        return float((net(images).argmax(dim=1) == labels).double().mean())


def train(
    net: nn.Module,
    data: Digits,
    settings: Settings,
    progress: Progress | None = None,
    step: Step | None = None,
) -> Iterator[Progress]:
    """
    Train `net` in place; yields the progress after every batch, so that the caller may stop or save between two.

    `progress` is where an earlier run of the same settings stopped; `step` takes the place of the settings' own.
    """
    progress = progress or Progress()
    step = step or STEPS[settings.optimizer]
    targets = one_hot(data.train_labels).to(data.train_images.dtype)
    while (epoch := len(progress.history)) < settings.epochs:
        indices = batches(len(data.train_images), settings, epoch)
        bar = tqdm(indices, f"epoch {epoch + 1}/{settings.epochs}", initial=progress.step, leave=False, disable=None)
        for batch in indices[progress.step :]:
            loss = step(net, data.train_images[batch], targets[batch], settings.lr)
            progress.step += 1
            progress.loss_sum += float(loss) * len(batch)
            if progress.step == len(indices):
                reached = accuracy(net, data.test_images, data.test_labels)
                progress.history.append(Epoch(progress.loss_sum / len(data.train_images), reached))
                progress.step, progress.loss_sum = 0, 0.0
            bar.update()
            yield progress
        bar.close()


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from; the message is one line that names the file and what was found."""


def save(path: Path, net: nn.Module, data: Digits, settings: Settings, progress: Progress) -> None:
    """Write a checkpoint that `resume` goes on from; an earlier one is whole until the new one is."""
    content = {"net": net.state_dict(), "data": data.name, "settings": asdict(settings), "progress": asdict(progress)}
    with write_atomically(path) as file:
        torch.save(content, file)


def resume(path: Path, data: Digits) -> tuple[Net, Settings, Progress]:
    """The net, settings and progress of a checkpoint; raises CheckpointError where it is none, or of other data."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint to resume from")
    net = Net()
    try:
        content = torch.load(path, weights_only=True)
        net.load_state_dict(content["net"])
        settings, progress = Settings(**content["settings"]), Progress(**content["progress"])
        progress.history = [Epoch(**epoch) for epoch in content["progress"]["history"]]
        name = content["data"]
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this program ({type(error).__name__})") from error
    if name != data.name:
        raise CheckpointError(f"{path}: was trained on {name}, not on {data.name}")
    return net, settings, progress
