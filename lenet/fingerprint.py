"""
The versions and the hardware of a run, so that nobody compares figures of different stacks by mistake.

The processor's name is read by `lenet.system`, not by py-cpuinfo, which pytest-benchmark uses: that starts a process
and takes 0.3 s, and the fingerprint is taken in each of the hundreds of processes of a gate.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import warnings
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lenet import system
from lenet.engines import PEERS

FORMAT = 3
"""The version of the format of the JSON files that runs write and the report reads."""

ROOT = Path(__file__).resolve().parents[1]
"""The folder that contains this project's packages: a clone, or where they are installed."""

PROJECT = "lenet-properties"

PACKAGES = ("hypothesis", "pytest", "pytest-benchmark", "scikit-learn")
"""The packages whose versions are recorded, besides torch and NumPy; engines' packages follow if installed."""


def fingerprint() -> dict[str, str]:
    """
    Return the versions and hardware by name, each as text; what the system does not report, or limit, is left out.

    `cores` is how many of them this process can keep busy, by its affinity and the limits of its control groups.
    """
    stack = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": system.processor(),
        "cores": str(system.usable_cores()),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }
    stack |= {name: value for name, value in (_machine() | _libraries()).items() if value}
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


def _machine() -> dict[str, str]:
    """Return what limits the speed of this process, beside the processor; an empty text is unknown or no limit."""
    cpu, memory = system.cpu_limit(), system.memory_limit()
    return {
        "kernel": platform.release(),
        "affinity": system.affinity(),
        "CPU limit": "" if cpu is None else f"{cpu:g} cores",
        "memory limit": "" if memory is None else f"{memory // 2**20} MiB",
        "governor": system.governors(),
    }


def _libraries() -> dict[str, str]:
    """Return the versions of the libraries that compute in PyTorch and NumPy on the CPU; an empty text is unknown."""
    shown = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version ([\d.]+)", shown)
    onednn = re.search(r"MKL-DNN v([\d.]+)", shown)
    other = re.search(r"BLAS_INFO=(\w+)", shown)
    numpy: Any = np.show_config(mode="dicts")
    blas = numpy.get("Build Dependencies", {}).get("blas", {})
    return {
        "BLAS": f"MKL {mkl[1]}" if mkl else other[1] if other else "",
        "oneDNN": onednn[1] if onednn else "",
        "BLAS of numpy": f"{blas.get('name', '')} {blas.get('version', '')}".strip(),
    }


@cache
def project() -> dict[str, Any]:
    """
    Return this project's version and, in a clone, its commit and whether tracked files differ from it (`dirty`).

    The version is `unknown` if the packages are used without being installed.
    """
    try:
        about: dict[str, Any] = {"version": version(PROJECT)}
    except PackageNotFoundError:
        about = {"version": "unknown"}
    if not (ROOT / ".git").exists():  # else git would name the commit of a repository that it is installed in
        return about
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's are another's
    try:
        described = subprocess.run(command, env=own, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return about
    return about | {"commit": described.removesuffix("-dirty"), "dirty": described.endswith("-dirty")}


def stamp(command: str) -> dict[str, Any]:
    """
    Return the first fields of every JSON file: format, stack, project, date, and the command that wrote it.

    Paths below the current folder become relative, so that the command is the same on another machine.
    """
    written = datetime.now(UTC).isoformat(timespec="seconds")
    command = re.sub(rf"(?<=[\s='\"]){re.escape(f'{Path.cwd()}{os.sep}')}", "", command)
    return {"format": FORMAT, "stack": fingerprint(), "project": project(), "date": written, "command": command}


def headline(stack: dict[str, str]) -> str:
    """Return a fingerprint in one line: PyTorch, Python, processor and cores, GPU."""
    gpu = f", {stack['GPU']}" if "GPU" in stack else ""
    return f"torch {stack['torch']}, Python {stack['python']}, {stack['processor']}, {stack['cores']} cores{gpu}"


if __name__ == "__main__":
    for name, value in fingerprint().items():
        print(f"{name}: {value}")
