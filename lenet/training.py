"""
The six steps of training, by hand: define, iterate, forward, loss, backward, update.

`python -m lenet.training` trains the Net on real digits. Ctrl-C stops after the step that is under way and leaves a
checkpoint; `--resume` goes on from it bit for bit, on the same machine with as many threads.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from tqdm import tqdm

from lenet import digits, oracle
from lenet.digits import Digits, DigitsError, one_hot
from lenet.files import set_aside, writable, write_atomically
from lenet.fingerprint import stamp
from lenet.net import Net, feature_maps
from lenet.oracle import PRECISIONS

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


def train_step(
    net: nn.Module, images: Tensor, targets: Tensor, lr: float, update: Callable[..., None] = sgd_update
) -> Tensor:
    """Zero the gradients, forward, mean squared error, backward, update by hand; returns the loss, detached."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    update(net.parameters(), lr)
    return loss.detach()


def optimizer_update(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The same update by `optim.SGD`, which without momentum keeps no state from one step to the next."""
    optim.SGD(parameters, lr=lr).step()


SGD_FORMS: dict[str, dict[str, Any]] = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
"""The implementations of `optim.SGD`, by the arguments that choose them."""

MAX_SEED = 2**32 - 1  # what NumPy takes

STEPS: dict[str, Step] = {"manual": train_step, "sgd": partial(train_step, update=optimizer_update)}


@dataclass(frozen=True)
class Settings:
    """How to train; `tox run -e train` prints what the defaults reach."""

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


WAYS = {"manual": "by hand", "sgd": "optim.SGD"}
"""The optimizers in words."""

JUDGED = 256
"""Digits that the oracle tells at a time: of each it keeps some 1.5 MB."""


def untrained(settings: Settings) -> Net:
    """The network that a run of these settings begins with."""
    torch.manual_seed(settings.seed)
    return Net()


def other_ways(data: Digits, settings: Settings) -> dict[str, list[Epoch]]:
    """What the other optimizer and the oracle reach, from the same parameters on the same batches."""
    other: Literal["manual", "sgd"] = "manual" if settings.optimizer == "sgd" else "sgd"
    *_, last = train(untrained(settings), data, replace(settings, optimizer=other))
    return {WAYS[other]: last.history, "the oracle": list(oracle_epochs(untrained(settings), data, settings))}


def oracle_epochs(net: nn.Module, data: Digits, settings: Settings) -> Iterator[Epoch]:
    """What the oracle, which is NumPy in float64, reaches with these parameters, epoch by epoch."""
    parameters = {name: parameter.detach().double().numpy() for name, parameter in net.named_parameters()}
    images, targets = data.train_images.double().numpy(), one_hot(data.train_labels).double().numpy()
    for epoch in range(settings.epochs):
        indices = batches(len(images), settings, epoch)
        shown = tqdm(indices, f"the oracle's epoch {epoch + 1}/{settings.epochs}", leave=False, disable=None)
        steps = ((images[batch], targets[batch]) for batch in shown)
        copies, losses = oracle.train(parameters, steps, settings.lr, PRECISIONS["float32"])
        parameters = {name: copy[0] for name, copy in copies.items()}
        parts = (part.double().numpy() for part in data.test_images.split(JUDGED))
        told = np.concatenate([oracle.predict(copies, part).value.argmax(axis=1) for part in parts])
        loss = float(np.average(losses, weights=[len(batch) for batch in indices]))
        yield Epoch(loss, float((told == data.test_labels.numpy()).mean()))


class CheckpointError(ValueError):
    """A checkpoint that cannot be gone on from; the message is one line that names the file and what was found."""


def save(path: Path, net: nn.Module, data: Digits, settings: Settings, progress: Progress) -> None:
    """Write a checkpoint that `resume` goes on from; an earlier one is whole until the new one is."""
    content = {
        "net": net.state_dict(),
        "data": _identity(data),
        "settings": asdict(settings),
        "progress": asdict(progress),
    }
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
    except Exception as error:  # torch.load raises almost anything on what is no checkpoint
        raise CheckpointError(f"{path}: not a checkpoint of this program ({type(error).__name__})") from error
    if name != _identity(data):
        raise CheckpointError(f"{path}: was trained on {name}, not on {_identity(data)}")
    return net, settings, progress


def _identity(data: Digits) -> str:
    """What tells one data set from another, with a checksum of its pixels."""
    checksum = zlib.crc32(data.train_images.numpy().tobytes())
    return f"{data.name}, {len(data.train_images)} images with checksum {checksum:08x}"


def main(arguments: list[str] | None = None) -> int:
    """Train on real digits; 0 when done, 130 when stopped by Ctrl-C, 2 for what cannot be done."""
    options = _options(arguments)
    if options.record:
        set_aside(options.record / "training.json")
    try:
        data = digits.load(options.mnist)
        net, settings, progress = _begin(options, data)
    except (DigitsError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    digit = data.test_images[:1]
    before = feature_maps(net, digit)
    print(f"{data.name}: {len(data.train_images):,} to train on, {len(data.test_images):,} to test on; {settings}")
    finished = _run(net, data, settings, progress, options.checkpoint)
    if not finished:
        print(f"stopped after epoch {len(progress.history)}, batch {progress.step}; go on with --resume")
        return 130
    loss, reached = progress.history[-1].loss, progress.history[-1].accuracy
    print(f"reached {reached:.1%} of the test digits, loss {loss:.4f}, after {settings.epochs} epochs")
    if options.record:
        maps = {"before": before, "after": feature_maps(net, digit)}
        record = partial(_record, options.record, data, settings, progress, maps)
        record({})
        if options.compare:
            return _compare(data, settings, record)
    return 0


def _compare(data: Digits, settings: Settings, record: Callable[[dict[str, list[Epoch]]], None]) -> int:
    """Add what other ways to train reach to the record; 0, or 130 where Ctrl-C came first, and it stays without."""
    try:
        others = other_ways(data, settings)
    except KeyboardInterrupt:
        print("stopped comparing", file=sys.stderr)
        return 130
    for way, history in others.items():
        print(f"{way}: {history[-1].accuracy:.1%} of the test digits, loss {history[-1].loss:.4f}")
    record(others)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lenet.training", description=__doc__)
    own = Settings()
    parser.add_argument("--epochs", type=int, help=f"default {own.epochs}")
    parser.add_argument("--lr", type=float, help=f"learning rate, default {own.lr}")
    parser.add_argument("--batch", type=int, help=f"images a batch, default {own.batch}")
    parser.add_argument("--optimizer", choices=STEPS, help=f"the update: by hand or optim.SGD, default {own.optimizer}")
    parser.add_argument("--seed", type=int, help=f"of parameters and shuffling, default {own.seed}")
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="train on MNIST's IDX files in this folder")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE", default=Path("training.pt"), help="default %(default)s"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, with its settings")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the run to training.json in this folder")
    parser.add_argument(
        "--compare", action="store_true", help="record what the other optimizer and the oracle reach as well"
    )
    options = parser.parse_args(arguments)
    for name, least, most in (
        ("epochs", 1, math.inf),
        ("batch", 1, math.inf),
        ("lr", 0, math.inf),
        ("seed", 0, MAX_SEED),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name} {value}: from {least} to {most} is possible")
    if options.compare and not options.record:
        parser.error("--compare: is for the record; name a folder with --record DIR")
    for folder in (options.checkpoint.parent, options.record):
        if folder and not writable(folder):
            parser.error(f"{folder}: not a folder that can be written to")
    return options


def _begin(options: argparse.Namespace, data: Digits) -> tuple[Net, Settings, Progress]:
    """A new run, or the checkpoint's; raises CheckpointError where an earlier run would be lost or contradicted."""
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if getattr(options, f.name) is not None}
    if not options.resume:
        if options.checkpoint.is_dir():
            raise CheckpointError(f"{options.checkpoint} is a folder, not a file to save to")
        if options.checkpoint.exists():
            raise CheckpointError(
                f"{options.checkpoint} holds an earlier run: go on with --resume, or name another with --checkpoint"
            )
        settings = Settings(**given)
        return untrained(settings), settings, Progress()
    net, settings, progress = resume(options.checkpoint, data)
    settings = replace(settings, epochs=given.pop("epochs", settings.epochs))
    if changed := [f"--{name} {value}" for name, value in given.items() if getattr(settings, name) != value]:
        raise CheckpointError(f"{options.checkpoint}: was trained otherwise than with {', '.join(changed)}")
    if len(progress.history) > settings.epochs:
        raise CheckpointError(f"{options.checkpoint}: has {len(progress.history)} epochs, more than --epochs asks for")
    return net, settings, progress


def _run(net: Net, data: Digits, settings: Settings, progress: Progress, checkpoint: Path) -> bool:
    """Train to the end, saving after every epoch; False if Ctrl-C came first, which stops between two steps."""
    stop = False

    def stop_soon(number: int, frame: Any) -> None:
        nonlocal stop
        stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once

    previous = signal.signal(signal.SIGINT, stop_soon)
    try:
        for _ in train(net, data, settings, progress):
            if progress.step == 0:
                epoch = progress.history[-1]
                print(
                    f"epoch {len(progress.history)}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.1%}", flush=True
                )
            if progress.step == 0 or stop:
                save(checkpoint, net, data, settings, progress)
            if stop:
                return False
        return True
    finally:
        signal.signal(signal.SIGINT, previous)


def _record(
    folder: Path,
    data: Digits,
    settings: Settings,
    progress: Progress,
    maps: dict[str, dict[str, Tensor]],
    others: dict[str, list[Epoch]],
) -> None:
    """What the report shows of a run: curves, and what each filter finds in the first digit before and after it."""

    content = {
        **stamp(shlex.join(["python", "-m", "lenet.training", *sys.argv[1:]])),
        "data": data.name,
        "settings": asdict(settings),
        "history": [asdict(epoch) for epoch in progress.history],
        "others": {way: [asdict(epoch) for epoch in history] for way, history in others.items()},
        "digit": {"label": int(data.test_labels[0]), "pixels": data.test_images[0, 0].tolist()},
        "feature_maps": {
            when: {name: map_[0].tolist() for name, map_ in found.items()} for when, found in maps.items()
        },
    }
    with write_atomically(folder / "training.json") as file:
        file.write(json.dumps(content).encode())


if __name__ == "__main__":
    sys.exit(main())
