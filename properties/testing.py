"""Helpers of the tests: faulty subjects, and commands that run in a new process, as a user runs them."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
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
    """Run `python -m module` likewise, in a fork of a process that has imported torch, which is most of a start."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    server = _server()
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as outputs:
        server.stdin.write(json.dumps([[module, *arguments], environment, str(folder), outputs]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        printed = [(Path(outputs) / name).read_text() for name in ("1", "2")]
    return subprocess.CompletedProcess([module, *arguments], code, *printed)


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import properties.testing; properties.testing.serve()"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve() -> None:
    """Run each module that a line of stdin names in a fork of this process; print its exit code."""
    import torch  # noqa: F401

    for line in sys.stdin:
        if os.fork() == 0:
            _become(*json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)


def _become(words: list[str], environment: dict[str, str], folder: str, outputs: str) -> None:
    """Turn this process into `python -m words`, with its output in the files 1 and 2 of a folder."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(os.open(f"{outputs}/{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:1] = [folder, *filter(None, [environment.get("PYTHONPATH")])]
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
