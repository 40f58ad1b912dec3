"""Helpers of the tests: short training runs, and processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from lenet import Net, digits
from lenet.digits import Digits
from lenet.training import Progress, Settings, initial_net, train

SETTINGS = Settings(epochs=2, batch=64)

WITHOUT_LINUX = """
import ctypes, os, sys

del os.sched_setaffinity, os.sched_getaffinity

class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return super().__getattr__(name)

ctypes.CDLL = Library

def hide(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(arguments[0]))

sys.addaudithook(hide)
"""
"""A `sitecustomize.py`: all Python processes that have its folder in PYTHONPATH lack what only Linux has."""


def first_digits(count: int) -> Digits:
    """The first `count` training digits, and as many test digits."""
    data = digits.load()
    parts = data.train_images, data.train_labels, data.test_images, data.test_labels
    return Digits(data.name, *(part[:count] for part in parts))


def four_batches() -> Digits:
    """Digits for four batches of SETTINGS, the last of them smaller."""
    return first_digits(200)


def trained(settings: Settings, data: Digits) -> tuple[Net, Progress]:
    """The network after a whole run, and the progress at its end."""
    net, progress = initial_net(settings), Progress()
    for _ in train(net, data, settings, progress):
        pass
    return net, progress


def same_parameters(first: Net, second: Net) -> bool:
    """Whether two networks have the same parameters bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def is_running(process: int) -> bool:
    """Whether the process runs; one that has ended, and that its parent has not noticed, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def holds_soon(condition: Callable[[], bool]) -> bool:
    """Whether the condition holds within ten seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False
