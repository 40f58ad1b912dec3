"""What the tests here share: fake workers with known times, fake engines for real workers, and running commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from benchmarks.roofline import Entry
from benchmarks.worker_client import Arm, Limit, Startup, WorkerError
from lenet.fingerprint import fingerprint

ROOT = Path(__file__).parents[1]
MACHINE = {"host": "here", "processor": "a fast one"}

FAKE_ENGINES = r"""
import os, subprocess, sys, threading, time
from pathlib import Path

def note(pid):
    with Path(__file__).with_name("pids").open("a") as file:
        print(pid, file=file)

note(os.getpid())

def noisy(net):
    def run(images):
        print("on stdout")
        return net(images)
    return run

def wrong(net):
    return lambda images: net(images) * (1 + 1e-4)

def sometimes_wrong(net):
    def run(images):
        if len(images) == 3:
            raise NotImplementedError("three\nare too many")
        return net(images) * (1 + 1e-4 * (len(images) > 1))
    return run

def forward_only(net):
    return net
forward_only.differentiable = False

def dying(net):
    print("these are\nthe last words", file=sys.stderr, flush=True)
    os.abort()

def failing_later(net, failure=None):
    calls = 0
    def run(images):
        nonlocal calls
        calls += 1
        if calls > 5:
            failure() if failure else 1 / 0
        return net(images)
    return run

def dying_later(net):
    return failing_later(net, os.abort)

def misshaped(net):
    return lambda images: net(images)[0]

def escaping(net):
    note(subprocess.Popen(["sleep", "1000"], start_new_session=True).pid)
    return net

def spinning(net):
    def spin():
        while True:
            pass
    threading.Thread(target=spin, daemon=True).start()
    return net

def hanging(net):
    note(subprocess.Popen(["sleep", "1000"]).pid)
    time.sleep(1000)
"""
"""A module of engines, `fakes`. Each process that imports it appends its process id to the file `pids` next to it."""


@dataclass
class FakeWorkers:
    """
    The behavior of fake workers, by the names of their subjects, and what they were asked to do.

    A key of `slower` and `slower_at_first` is a subject, or a subject and an operation: "head's training step".
    """

    slower: dict[str, float] = field(default_factory=dict)
    slower_at_first: dict[str, float] = field(default_factory=dict)  # in the first nine pairs
    noise: float = 0.003  # relative standard deviation between processes
    slow_calls: dict[str, float] = field(default_factory=dict)  # how much slower every tenth single call is
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    stacks: dict[str, dict[str, str]] = field(default_factory=dict)
    machines: dict[str, dict[str, str]] = field(default_factory=dict)
    without_training: tuple[str, ...] = ()
    dies_at: int | None = None  # the number of the block, over all workers
    started: int = 0
    running: int = 0
    blocks: int = 0
    prepared: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> int:
        """The number of timed pairs; the first pair of processes only counts."""
        return self.started // 2 - 1


class FakeWorker:
    """A worker whose call takes one second, times its subject's slowdown and noise that differs between processes."""

    workers: ClassVar[FakeWorkers]
    random: ClassVar[np.random.Generator]
    calls = 1
    single_calls = 0

    def __init__(
        self, arm: Arm, python: str, environment: Mapping[str, str], folder: Path | None, side: str, limit: Limit
    ) -> None:
        self.arm, self.side = arm, side

    def start(self) -> None:
        """As `Worker.start`."""
        self.workers.started += 1
        self.workers.running += 1
        self.noise = self.random.normal(0, self.workers.noise)

    def wait_until_ready(self) -> None:
        """As `Worker.wait_until_ready`."""
        self.machine = self.workers.machines.get(self.arm.subject, MACHINE)
        self.stack = fingerprint() | self.workers.stacks.get(self.arm.subject, {})
        self.operations = ["forward", "training step"][: 1 if self.arm.subject in self.workers.without_training else 2]

    def stop(self) -> None:
        """As `Worker.stop`."""
        self.workers.running -= 1

    def request(self, request: dict[str, Any]) -> None:
        """As `Worker.request`, of preparations only."""
        operation, batch = request["prepare"]
        self.workers.prepared.append(f"{operation} {batch}")
        self.operation = operation

    def wait_until_prepared(self) -> Startup:
        """As `Worker.wait_until_prepared`."""
        return Startup(0.0, 1 + self.slower_by, None)

    def pin(self, cores: Iterable[int]) -> None:
        """As `Worker.pin`."""

    def count(self) -> dict[str, int]:
        """As `Worker.count`."""
        return self.workers.counters.get(self.arm.subject, {"FLOPs": 7, "peak memory": 100})

    def measure(self) -> float:
        """As `Worker.measure`."""
        return self.block(1)

    def block(self, calls: int) -> float:
        """As `Worker.block`."""
        self.workers.blocks += 1
        if self.workers.blocks == self.workers.dies_at:
            raise WorkerError(
                f"{self.side}: {self.arm}: the worker was terminated by SIGKILL; last line of stderr: none"
            )
        return (1 + self.slower_by) * float(np.exp(self.noise))

    def sample(self, calls: int) -> list[float]:
        """As `Worker.sample`: every tenth call is as slow as `slow_calls` has it."""
        seconds = []
        for _ in range(calls):
            self.single_calls += 1
            slow = self.workers.slow_calls.get(self.arm.subject, 0.0) if self.single_calls % 10 == 0 else 0.0
            seconds.append((1 + self.slower_by) * (1 + slow) * float(np.exp(self.noise)))
        return seconds

    @property
    def slower_by(self) -> float:
        """How much slower it is than one second now, without noise."""
        slower = self.workers.slower_at_first if self.workers.pairs <= 9 else self.workers.slower
        slower = slower or self.workers.slower
        return slower.get(self.arm.subject, slower.get(f"{self.arm.subject} {self.operation}", 0.0))


def start_command(command: str, *options: str) -> subprocess.Popen[str]:
    """Start `lenet-properties COMMAND` on one thread, as a user would."""
    default_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    arguments = [sys.executable, "-m", "lenet_properties", command, "--threads", "1", *options]
    return subprocess.Popen(
        arguments, cwd=ROOT, preexec_fn=default_sigint, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_processes(run: subprocess.Popen[str], folder: Path, processes: int) -> None:
    """Wait until this many process ids are in `folder`/pids."""
    pids = folder / "pids"
    while not pids.exists() or len(pids.read_text().split()) < processes:
        assert run.poll() is None
        time.sleep(0.1)


def interrupt(run: subprocess.Popen[str], folder: Path, processes: int) -> str:
    """Send Ctrl-C once this many process ids are in `folder`/pids; return the last line of the command's stderr."""
    wait_for_processes(run, folder, processes)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    return errors.splitlines()[-1]


def remaining_processes(folder: Path) -> list[int]:
    """Return which of the processes in `folder`/pids, except this one, still run after five seconds."""
    pids = {int(line) for line in (folder / "pids").read_text().split()} - {os.getpid()}
    for _ in range(50):
        running = [pid for pid in pids if process_runs(pid)]
        if not running:
            break
        time.sleep(0.1)
    return running


def process_runs(pid: int) -> bool:
    """Return whether there is such a process, other than a zombie that its parent has not waited for."""
    states = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not set(states.split()) <= {"Z"}


ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "\x1b[31m\n\ud800",
    [],
    {},
    [[]],
    {"": {}},
)
"""Values that a corrupt or hostile file may have anywhere."""


@st.composite
def mutated_json(draw: st.DrawFn, valid: Any) -> bytes:
    """Draw a JSON file like `valid`, in which fields, keys or bytes may have changed; or one that is deeply nested."""
    content = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(0, 2))):
        content = _mutated(draw, content)
    data = bytearray(json.dumps(content).encode())
    for _ in range(draw(st.integers(0, 1))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return draw(st.sampled_from([bytes(data), bytes(data), bytes(data[: len(data) // 2]), b"[" * 100_000]))


def _mutated(draw: st.DrawFn, content: Any) -> Any:
    """Return the content with one value replaced, at any depth, or one key left out."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 4)) == 0:
        return deepcopy(draw(st.sampled_from(ODD_VALUES)))  # a later mutation may change it
    key = draw(st.sampled_from(list(content) if isinstance(content, dict) else range(len(content))))
    if draw(st.integers(0, 4)) == 0:
        content.pop(key)
    else:
        content[key] = _mutated(draw, content[key])
    return content


def benchmark_entry(operation: str, seconds: float, threads: int = 1, **figures: Any) -> Entry:
    """Return a benchmark of benchmarks.json with this median."""
    info = {"operation": operation, "subject": "lenet", "device": "cpu", "dtype": "float32", "threads": threads}
    return {"extra_info": info | figures, "stats": {"median": seconds}}
