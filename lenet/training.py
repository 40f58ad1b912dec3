"""
The six steps of the tutorial's training, marked `step 1` to `step 6`, and the loop that repeats them.

`lenet-properties train` trains the network on real digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from tqdm import tqdm

from lenet.digits import Digits, one_hot
from lenet.net import Net

Step: TypeAlias = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""(net, images, targets, lr) -> the loss before the update, detached."""


def sgd_update(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """
    Update in place: weight = weight - lr * gradient.

    Skips parameters whose gradient is None, and does not change the gradients.
    """
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_(lr * parameter.grad)


def train_step(
    net: nn.Module, images: Tensor, targets: Tensor, lr: float, update: Callable[..., None] = sgd_update
) -> Tensor:
    """
    Take one training step on images (N,1,32,32) and targets (N,10); return the loss before the update, without graph.

    Earlier gradients are discarded, the network runs forward, `loss.backward()` computes the gradients of the mean
    squared error, and `update(parameters, lr)` updates the parameters.
    """
    net.zero_grad()
    logits = net(images)  # step 3: forward pass
    loss = F.mse_loss(logits, targets)  # step 4: loss
    loss.backward()  # step 5: backward pass
    update(net.parameters(), lr)  # step 6: update
    return loss.detach()


def optimizer_update(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """
    Update as `sgd_update` does, by `optim.SGD`.

    Without momentum it has no state, so it can be created in every step; usually it is created once.
    """
    optim.SGD(parameters, lr=lr).step()


SGD_FORMS: dict[str, dict[str, Any]] = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
"""
The implementations of `optim.SGD`, and the arguments that select each.

`for-loop` updates one parameter at a time, `foreach` does each operation for all parameters at once, and `fused` does
all operations in one kernel.
"""

MAX_SEED = 2**32 - 1  # the largest seed of NumPy

RANGES: dict[str, tuple[int, float]] = {
    "epochs": (1, math.inf),
    "batch": (1, math.inf),
    "lr": (0, math.inf),
    "seed": (0, MAX_SEED),
}
"""The smallest and the largest value of each setting that is a number."""

STEPS: dict[str, Step] = {"manual": train_step, "sgd": partial(train_step, update=optimizer_update)}
"""The training step with each optimizer of `Settings`."""


@dataclass(frozen=True)
class Settings:
    """The settings of a training run; `tox run -e train` prints what the defaults reach."""

    epochs: int = 10
    lr: float = 0.5
    batch: int = 16
    optimizer: Literal["manual", "sgd"] = "manual"
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch: the mean loss over the training images, and the test accuracy from 0 to 1."""

    loss: float
    accuracy: float


@dataclass
class Progress:
    """The state of a training run; together with the network's parameters, enough to resume it bit for bit."""

    step: int = 0  # batches completed in the current epoch
    loss_sum: float = 0.0  # over the images of those batches
    history: list[Epoch] = field(default_factory=list)  # the completed epochs


def out_of_range(name: str, value: float) -> str:
    """Return what a setting that is a number must be, if it is not; otherwise an empty text."""
    least, most = RANGES[name]
    if least <= value <= most:
        return ""
    return f"must be at least {least}" + (f" and at most {most}" if most < math.inf else "")


def initial_net(settings: Settings) -> Net:
    """Return the network that a run with these settings starts from; seeds PyTorch's generator."""
    torch.manual_seed(settings.seed)
    return Net()  # step 1: define the network


def batches(count: int, settings: Settings, epoch: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """
    Return the batches of an epoch as arrays of indices into `count` images; the last batch may be smaller.

    The order depends on the seed and the epoch alone, so a run can resume at any batch.
    """
    order = np.random.RandomState([settings.seed, epoch]).permutation(count)
    return [order[start : start + settings.batch] for start in range(0, count, settings.batch)]


def batch_count(count: int, settings: Settings) -> int:
    """Return the number of batches of an epoch of `count` images."""
    return len(range(0, count, settings.batch))


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images (N,1,32,32) whose largest logit is that of their label (N,)."""
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
    Train `net` in place; yields the progress after every batch, so that the caller can stop or save between batches.

    `progress` resumes an earlier run with the same settings. `step` replaces the training step of the settings.
    """
    progress = progress or Progress()
    step = step or STEPS[settings.optimizer]
    targets = one_hot(data.train_labels).to(data.train_images.dtype)
    while (epoch := len(progress.history)) < settings.epochs:
        indices = batches(len(data.train_images), settings, epoch)
        bar = tqdm(indices, f"epoch {epoch + 1}/{settings.epochs}", initial=progress.step, leave=False, disable=None)
        for batch in indices[progress.step :]:  # step 2: iterate over the data
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
