"""Helpers of the tests: faulty subjects, and commands that run in a new process, as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAULTY = """
import torch
from torch.nn.functional import relu, max_pool2d
from lenet import Net

class ReluMissing(Net):
    def forward(self, images):
        pooled = max_pool2d(relu(self.conv1(images)), 2)
        pooled = max_pool2d(self.conv2(pooled), 2)
        return self.fc3(relu(self.fc2(relu(self.fc1(torch.flatten(pooled, 1))))))

class Crashes(Net):
    def forward(self, images):
        raise KeyError("images")

class Misshaped(Net):
    def __init__(self):
        super().__init__()
        self.fc3 = torch.nn.Linear(84, 11)

class Skips16:
    @staticmethod
    @torch.no_grad()
    def sgd_update(parameters, lr):
        for p in parameters:
            if p.grad is not None:
                rest = p.numel() // 16 * 16
                p.view(-1)[rest:].sub_(lr * p.grad.view(-1)[rest:])
"""


def run(*arguments: str, path: Path | None = None, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `pytest` as a user does, in a new process in the folder; it finds plugins in the folder `path`."""
    return run_module("pytest", "-p", "no:cacheprovider", *arguments, path=path, folder=folder)


def run_module(
    module: str, *arguments: str, path: Path | None = None, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` likewise."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
