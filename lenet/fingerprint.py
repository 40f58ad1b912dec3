"""The versions and the hardware of a run, so that nobody compares figures of different stacks by mistake."""

from __future__ import annotations

import os
import platform
import re
import warnings
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lenet import system
from lenet.engines import PEERS

FORMAT = 3
"""The version of the format of the JSON files that runs write and the report reads."""

PACKAGES = ("hypothesis", "pytest", "pytest-benchmark", "scikit-learn")
"""The packages whose versions are recorded, besides torch and NumPy; engines' packages follow if installed."""


def fingerprint() -> dict[str, str]:
    """Return the versions and hardware by name, each as text."""
    stack = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": system.processor(),
        "cores": str(os.cpu_count()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of an old driver
        cuda = torch.cuda.is_available()
    if cuda:
        stack |= {"GPU": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda)}
        stack["cuDNN"] = str(torch.backends.cudnn.version())
    for package in dict.fromkeys((*PACKAGES, *PEERS.values())):
        try:
            stack[package] = version(package)
        except PackageNotFoundError:
            continue
    return stack


def stamp(command: str) -> dict[str, Any]:
    """
    Return the first fields of every JSON file: its format, the stack, the date, and the command that wrote it.

    Paths below the current folder become relative, so that the command is the same on another machine.
    """
    written = datetime.now(UTC).isoformat(timespec="seconds")
    command = re.sub(rf"(?<=[\s='\"]){re.escape(f'{Path.cwd()}{os.sep}')}", "", command)
    return {"format": FORMAT, "stack": fingerprint(), "date": written, "command": command}


def headline(stack: dict[str, str]) -> str:
    """Return a fingerprint in one line: PyTorch, Python, processor and cores, GPU."""
    gpu = f", {stack['GPU']}" if "GPU" in stack else ""
    return f"torch {stack['torch']}, Python {stack['python']}, {stack['processor']}, {stack['cores']} cores{gpu}"


if __name__ == "__main__":
    for name, value in fingerprint().items():
        print(f"{name}: {value}")
