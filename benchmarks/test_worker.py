"""A worker times only what is right, and no process outlives the need for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks import worker
from benchmarks.worker import Arm, NotTimed, Worker, WorkerError
from properties.test_options import ROOT

FAKES = r"""
import os, subprocess, sys, time
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

def moody(net):
    def run(images):
        if len(images) == 3:
            raise NotImplementedError("three\nare too many")
        return net(images) * (1 + 1e-4 * (len(images) > 1))
    return run

def forward_only(net):
    return net
forward_only.differentiable = False

def dying(net):
    print("these are my\nlast words", file=sys.stderr, flush=True)
    os.abort()

def hanging(net):
    note(subprocess.Popen(["sleep", "1000"]).pid)
    time.sleep(1000)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the workers' path with engines of all kinds; whoever imports them leaves a process id in `pids`."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def left(folder: Path) -> list[int]:
    """Those of the other processes noted that still run, after some time to end."""
    pids = {int(line) for line in (folder / "pids").read_text().split()} - {os.getpid()}
    for _ in range(50):
        running = [pid for pid in pids if runs(pid)]
        if not running:
            break
        time.sleep(0.1)
    return running


def command(module: str, *options: str) -> subprocess.Popen[str]:
    """A program as its user starts it."""
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where this runs in a shell's background
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    arguments = [sys.executable, "-m", module, "--threads", "1", *options]
    return subprocess.Popen(arguments, cwd=ROOT, preexec_fn=heard, text=True, **pipes)


def interrupted(run: subprocess.Popen[str], folder: Path, processes: int) -> str:
    """The last line of a program that Ctrl-C reaches once so many processes have been noted in a folder."""
    noted = folder / "pids"
    while not noted.exists() or len(noted.read_text().split()) < processes:
        assert run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    return errors.splitlines()[-1]


def runs(pid: int) -> bool:
    """Whether there is such a process, other than as an entry that its parent has yet to read."""
    states = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return not set(states.split()) <= {"Z"}


def test_what_is_right_is_timed_whatever_an_engine_prints(fakes: Path) -> None:
    with Worker(Arm(engine="fakes:noisy")) as one:
        for operation, batch in (("forward", 4), ("training step", 16), ("matrix product", 64)):
            cold = one.prepare(operation, batch)

            assert cold.first > 0
            assert cold.memory is None or cold.memory >= 0
            assert one.block(2) > 0
            assert one.measure() * one.calls >= worker.BLOCK


def test_what_is_wrong_or_raises_is_not_timed_and_the_worker_goes_on(fakes: Path) -> None:
    with Worker(Arm(engine="fakes:moody")) as one:
        with pytest.raises(NotTimed, match=r"fakes:moody .* logits\[\d, \d\] is .* budgets of"):
            one.prepare("forward", 2)
        with pytest.raises(WorkerError, match="nothing has been prepared"):
            one.block(1)
        with pytest.raises(NotTimed, match="budgets of"):
            one.prepare("training step", 2)
        with pytest.raises(NotTimed, match="NotImplementedError: three are too many"):
            one.prepare("forward", 3)
        one.prepare("forward", 1)

        assert one.block(1) > 0


def test_what_has_no_backward_pass_has_no_training_step(fakes: Path) -> None:
    with Worker(Arm(engine="fakes:forward_only")) as one, pytest.raises(NotTimed, match="has no backward pass"):
        one.prepare("training step", 1)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm(engine="none"), "--engine none: not one of"),
        (Arm(engine="autocast", dtype="float64"), "--engine autocast: takes no float64 on cpu"),
    ],
)
def test_an_arm_that_cannot_be_had_is_said_in_one_line(arm: Arm, message: str) -> None:
    with pytest.raises(WorkerError, match=message) as caught, Worker(arm):
        pass

    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_said_with_its_last_words(fakes: Path) -> None:
    message = "its worker was ended by SIGABRT; its last words: last words"
    with Worker(Arm(engine="fakes:dying")) as one, pytest.raises(WorkerError, match=message):
        one.prepare("forward", 1)

    assert not left(fakes)


def test_a_worker_that_hangs_is_ended_with_all_that_it_started(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker(Arm(engine="fakes:hanging")) as one, monkeypatch.context() as impatient:
        impatient.setattr(worker, "PREPARING", 3.0)
        impatient.setattr(worker, "ENDING", 0.1)
        with pytest.raises(WorkerError, match="its worker gave no answer within 3 s"):
            one.prepare("forward", 1)

    assert len((fakes / "pids").read_text().split()) == 2
    assert not left(fakes)


def test_an_interpreter_that_has_no_workers_is_said(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    python.chmod(0o755)

    with (
        pytest.raises(WorkerError, match="ended with exit code 3; its last words: no such module"),
        Worker(Arm(), python=str(python)),
    ):
        pass
