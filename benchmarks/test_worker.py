"""A worker times only right answers, and leaves no process behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import worker_client
from benchmarks.fakes import remaining_processes
from benchmarks.worker_client import Arm, NotTimed, Worker, WorkerError


def test_right_answer_is_timed_whatever_the_engine_prints(fake_engines: Path) -> None:
    with Worker(Arm(engine="fakes:noisy")) as worker:
        for operation, batch in (("forward", 4), ("training step", 16), ("matrix product", 64)):
            startup = worker.prepare(operation, batch)

            assert startup.first_call > 0
            assert startup.memory is None or startup.memory >= 0
            assert worker.block(2) > 0
            assert worker.measure() * worker.calls >= worker_client.MIN_BLOCK_SECONDS


def test_wrong_answer_or_exception_is_not_timed_and_the_worker_continues(fake_engines: Path) -> None:
    with Worker(Arm(engine="fakes:sometimes_wrong")) as worker:
        with pytest.raises(NotTimed, match=r"fakes:sometimes_wrong .* logits\[\d, \d\] is .* budgets of"):
            worker.prepare("forward", 2)
        with pytest.raises(WorkerError, match="nothing has been prepared"):
            worker.block(1)
        with pytest.raises(NotTimed, match="budgets of"):
            worker.prepare("training step", 2)
        with pytest.raises(NotTimed, match="NotImplementedError: three are too many"):
            worker.prepare("forward", 3)
        worker.prepare("forward", 1)

        assert worker.block(1) > 0


def test_engine_without_backward_pass_has_no_training_step(fake_engines: Path) -> None:
    with Worker(Arm(engine="fakes:forward_only")) as worker, pytest.raises(NotTimed, match="has no backward pass"):
        worker.prepare("training step", 1)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm(engine="none"), "--engine none: not one of"),
        (Arm(engine="autocast", dtype="float64"), "--engine autocast: does not support float64 on cpu"),
    ],
)
def test_arm_that_cannot_be_loaded_is_a_one_line_error(arm: Arm, message: str) -> None:
    with pytest.raises(WorkerError, match=message) as caught, Worker(arm):
        pass

    assert "\n" not in str(caught.value)


def test_error_of_a_dying_worker_has_the_last_line_of_stderr(fake_engines: Path) -> None:
    message = "the worker was terminated by SIGABRT; last line of stderr: the last words"
    with Worker(Arm(engine="fakes:dying")) as worker, pytest.raises(WorkerError, match=message):
        worker.prepare("forward", 1)

    assert not remaining_processes(fake_engines)


def test_hanging_worker_is_killed_with_its_children(fake_engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker(Arm(engine="fakes:hanging")) as worker, monkeypatch.context() as patch:
        patch.setattr(worker_client, "PREPARE_TIMEOUT", 3.0)
        patch.setattr(worker_client, "EXIT_TIMEOUT", 0.1)
        with pytest.raises(WorkerError, match="the worker did not answer within 3 s"):
            worker.prepare("forward", 1)

    assert len((fake_engines / "pids").read_text().split()) == 2
    assert not remaining_processes(fake_engines)


def test_interpreter_without_this_package_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    python.chmod(0o755)

    with (
        pytest.raises(WorkerError, match="exited with code 3; last line of stderr: no such module"),
        Worker(Arm(), python=str(python)),
    ):
        pass
