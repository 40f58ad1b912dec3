"""
Train the network on real digits: `lenet-properties train`.

Ctrl-C stops after the current step and saves a checkpoint. `--resume` continues from it bit for bit, on the same
machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lenet import digits
from lenet.checkpoint import CheckpointError, resume, save
from lenet.digits import Digits, DigitsError
from lenet.files import RESULTS, LockedError, file_problem, locked, resolved, set_aside, writable, write_atomically
from lenet.fingerprint import stamp
from lenet.net import Net, feature_maps
from lenet.training import RANGES, STEPS, Epoch, Progress, Settings, initial_net, out_of_range, train
from lenet.training_comparison import comparisons


def main(arguments: list[str]) -> int:
    """
    Train on real digits.

    Return 0 when done, 1 if a loss is not finite, 130 if stopped by Ctrl-C, 2 for an error in options or files.
    """
    options = _options(arguments)
    try:
        with ExitStack() as locks:
            locks.enter_context(locked(resolved(options.checkpoint)))
            if options.record:
                locks.enter_context(locked(options.record / "training.json"))
            code = _train(options)
            sys.stdout.flush()  # a full disk or a closed pipe shows here
            return code
    except (DigitsError, CheckpointError, LockedError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {file_problem(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped at once; if an epoch was completed, continue from it with --resume", file=sys.stderr)
        return 130
    return 2


def _train(options: argparse.Namespace) -> int:
    """Start or resume a run and record it; see `main` for the result."""
    if options.record:
        set_aside(options.record / "training.json")
    data = digits.load(options.mnist)
    net, settings, progress = _start(options, data)
    digit = data.test_images[:1]
    before = feature_maps(net, digit)
    print(f"{data.name}: {len(data.train_images):,} training and {len(data.test_images):,} test images; {settings}")
    completed = _run(net, data, settings, progress, options.checkpoint)
    if not completed:
        print(f"stopped after epoch {len(progress.history)}, batch {progress.step}; continue with --resume")
        return 130
    loss, reached = progress.history[-1].loss, progress.history[-1].accuracy
    print(f"test accuracy {reached:.1%}, loss {loss:.4f} after {settings.epochs} epochs")
    diverged = next((number for number, epoch in enumerate(progress.history, 1) if not math.isfinite(epoch.loss)), None)
    if options.record:
        maps = {"before": before, "after": feature_maps(net, digit)}
        record = partial(_record, options, data, settings, progress, maps)
        record({})
        if options.compare and not diverged:
            return _compare(data, settings, record)
    if diverged:
        advice = "start another run with a smaller --lr"
        print(f"error: the loss of epoch {diverged} is not finite at --lr {settings.lr}; {advice}", file=sys.stderr)
        return 1
    return 0


def _compare(data: Digits, settings: Settings, record: Callable[[dict[str, list[Epoch]]], None]) -> int:
    """Add the comparisons to the record; return 0, or 130 if Ctrl-C stopped them and the record has none."""
    try:
        compared = comparisons(data, settings)
    except KeyboardInterrupt:
        print("stopped the comparison", file=sys.stderr)
        return 130
    for label, history in compared.items():
        print(f"{label}: test accuracy {history[-1].accuracy:.1%}, loss {history[-1].loss:.4f}")
    record(compared)
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lenet-properties train",
        description="Train the network on real digits. Ctrl-C stops after the current step and saves a checkpoint.",
        epilog="example: lenet-properties train --optimizer sgd --epochs 3",
    )
    default = Settings()
    parser.add_argument("--epochs", type=int, help=f"epochs in total, also with --resume (default {default.epochs})")
    parser.add_argument("--lr", type=float, help=f"learning rate, default {default.lr}")
    parser.add_argument("--batch", type=int, help=f"batch size, default {default.batch}")
    parser.add_argument(
        "--optimizer", choices=STEPS, help=f"update by hand or by optim.SGD, default {default.optimizer}"
    )
    parser.add_argument("--seed", type=int, help=f"seed of parameters and shuffling, default {default.seed}")
    parser.add_argument(
        "--mnist",
        type=Path,
        metavar="DIR",
        help="train on MNIST's IDX files in this folder (default: scikit-learn's digits)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        default=RESULTS / "training.pt",
        help="save the run to this file after every epoch (default %(default)s)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint with its settings")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write training.json to this folder")
    parser.add_argument(
        "--compare", action="store_true", help="with --record: also train with the other optimizer and by the oracle"
    )
    parser.set_defaults(command=shlex.join(["lenet-properties", "train", *arguments]))
    options = parser.parse_args(arguments)
    for name in RANGES:
        value = getattr(options, name)
        if value is not None and (fault := out_of_range(name, value)):
            parser.error(f"--{name} {value}: {fault}")
    if options.compare and not options.record:
        parser.error("--compare requires --record DIR")
    for folder in (resolved(options.checkpoint).parent, options.record):
        if folder and not writable(folder):
            parser.error(f"{folder}: not a folder that can be written to")
    return options


def _start(options: argparse.Namespace, data: Digits) -> tuple[Net, Settings, Progress]:
    """Start a new run or resume the checkpoint; raises CheckpointError if that would lose or contradict a run."""
    given = {f.name: getattr(options, f.name) for f in fields(Settings) if getattr(options, f.name) is not None}
    if not options.resume:
        if options.checkpoint.is_dir():
            raise CheckpointError(f"{options.checkpoint} is a folder, not a file to save to")
        if options.checkpoint.exists():
            raise CheckpointError(
                f"{options.checkpoint} holds an earlier run: continue it with --resume, or save to another file with "
                "--checkpoint"
            )
        settings = Settings(**given)
        return initial_net(settings), settings, Progress()
    net, settings, progress = resume(options.checkpoint, data)
    settings = replace(settings, epochs=given.pop("epochs", settings.epochs))
    if own := [
        f"--{name} {getattr(settings, name)}" for name, value in given.items() if getattr(settings, name) != value
    ]:
        raise CheckpointError(
            f"{options.checkpoint}: was trained with {', '.join(own)}; omit the option, or name another file"
        )
    if len(progress.history) > settings.epochs:
        raise CheckpointError(
            f"{options.checkpoint}: already has {len(progress.history)} epochs; --epochs must be at least that"
        )
    return net, settings, progress


def _run(net: Net, data: Digits, settings: Settings, progress: Progress, checkpoint: Path) -> bool:
    """Train to the end and save after every epoch; return False if Ctrl-C stopped it, between two steps."""
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
    options: argparse.Namespace,
    data: Digits,
    settings: Settings,
    progress: Progress,
    maps: dict[str, dict[str, Tensor]],
    compared: dict[str, list[Epoch]],
) -> None:
    """Write training.json: the curves, and the feature maps of the first test digit before and after training."""
    content = _without_nonfinite(
        {
            **stamp(options.command),
            "data": data.name,
            "settings": asdict(settings),
            "history": [asdict(epoch) for epoch in progress.history],
            "comparisons": {label: [asdict(epoch) for epoch in history] for label, history in compared.items()},
            "digit": {"label": int(data.test_labels[0]), "pixels": data.test_images[0, 0].tolist()},
            "feature_maps": {
                when: {name: map_[0].tolist() for name, map_ in found.items()} for when, found in maps.items()
            },
        }
    )
    with write_atomically(options.record / "training.json") as file:
        file.write(json.dumps(content, allow_nan=False).encode())


def _without_nonfinite(value: Any) -> Any:
    """Return the same value for JSON, with None for every float that is not finite."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case list():
            return [_without_nonfinite(element) for element in value]
        case dict():
            return {name: _without_nonfinite(element) for name, element in value.items()}
    return value
