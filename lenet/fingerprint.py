"""What a run ran on: versions and hardware, so that figures are compared with their like only."""

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

FORMAT = 2
"""Of the JSON files that runs write and the report reads."""

PACKAGES = ("hypothesis", "pytest", "pytest-benchmark", "scikit-learn")
PEERS = ("onnxruntime", "openvino", "jax")
"""Which need not be there."""


def fingerprint() -> dict[str, str]:
    """The stack's versions and hardware by name, each in words."""
    stack = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old driver is no reason to have no record
        cuda = torch.cuda.is_available()
    if cuda:
        stack |= {"GPU": torch.cuda.get_device_name(), "CUDA": str(torch.version.cuda)}
        stack["cuDNN"] = str(torch.backends.cudnn.version())
    for package in (*PACKAGES, *PEERS):
        try:
            stack[package] = version(package)
        except PackageNotFoundError:
            continue
    return stack


def stamp(command: str) -> dict[str, Any]:
    """
    What every file of a run begins with: its format, the stack, when it was written, and by which command.

    Files below the current folder are named from there, so that the command is the same on another machine.
    """
    written = datetime.now(UTC).isoformat(timespec="seconds")
    command = re.sub(rf"(?<=[\s='\"]){re.escape(f'{Path.cwd()}{os.sep}')}", "", command)
    return {"format": FORMAT, "stack": fingerprint(), "date": written, "command": command}


def headline(stack: dict[str, str]) -> str:
    """The same in one line: PyTorch, Python, processor and cores, GPU."""
    gpu = f", {stack['GPU']}" if "GPU" in stack else ""
    return f"torch {stack['torch']}, Python {stack['python']}, {stack['processor']}, {stack['cores']} cores{gpu}"


def _processor() -> str:
    """The processor's model name: from /proc/cpuinfo where there is one, else as the platform calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    for name, value in fingerprint().items():
        print(f"{name}: {value}")
