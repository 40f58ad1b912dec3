"""A worker times only right answers, and leaves no process behind."""

from __future__ import annotations

import gc
import io
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings

from benchmarks import worker, worker_client
from benchmarks.fakes import ROOT, mutated_json, remaining_processes
from benchmarks.worker import Bench
from benchmarks.worker_client import PROTOCOL, Arm, Limit, NotTimed, Worker, WorkerError
from lenet import system


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


@pytest.mark.slow
def test_hanging_worker_is_killed_with_its_children(fake_engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker(Arm(engine="fakes:hanging")) as worker, monkeypatch.context() as patch:
        patch.setattr(worker_client, "PREPARE_TIMEOUT", 3.0)
        patch.setattr(worker_client, "EXIT_TIMEOUT", 0.1)
        with pytest.raises(WorkerError, match="the worker did not answer within 3 s"):
            worker.prepare("forward", 1)

    assert len((fake_engines / "pids").read_text().split()) == 2
    assert not remaining_processes(fake_engines)


def test_process_in_a_session_of_its_own_is_killed(fake_engines: Path) -> None:
    with Worker(Arm(engine="fakes:escaping")) as worker:
        worker.prepare("forward", 1)

    assert len((fake_engines / "pids").read_text().split()) == 2
    assert not remaining_processes(fake_engines)


def stat(process: int) -> tuple[str, int]:
    """Return the state of a process and its processor time in clock ticks."""
    fields = (system.PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[11]) + int(fields[12])


def test_worker_with_spinning_threads_is_stopped_between_two_requests(fake_engines: Path) -> None:
    with Worker(Arm(engine="fakes:spinning")) as worker:
        worker.prepare("forward", 1)
        for _ in range(2):
            while stat(worker.process.pid)[0] != "T":  # all of its threads stop within a moment
                time.sleep(0.01)
            stopped = stat(worker.process.pid)
            time.sleep(0.2)  # twenty ticks of a spinning thread

            assert stat(worker.process.pid) == stopped
            assert worker.measure() > 0

    assert not remaining_processes(fake_engines)


def test_stopped_worker_exits_by_itself() -> None:
    worker = Worker(Arm())
    with worker:
        pass

    assert worker.process.returncode == 0


def test_limit_is_the_deadline_but_leaves_patience() -> None:
    assert 99 < Limit(time.monotonic() + 100, 5.0).seconds() <= 100
    assert Limit(time.monotonic() - 100, 5.0).seconds() == 5.0


def test_hanging_worker_is_given_up_at_its_limit_and_named(fake_engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "EXIT_TIMEOUT", 0.1)
    with Worker(Arm(engine="fakes:hanging"), side="head") as worker:
        worker.limit = Limit(0.0, 1.0)

        with pytest.raises(
            WorkerError, match=r"^head: .* did not answer within 1 s \(if it needs longer, raise --budget"
        ):
            worker.prepare("forward", 1)


def test_answers_are_verified_under_python_o(fake_engines: Path) -> None:
    """PYTHONOPTIMIZE removes every `assert`."""
    with (
        Worker(Arm(engine="fakes:misshaped"), environment={"PYTHONOPTIMIZE": "1"}) as worker,
        pytest.raises(NotTimed, match=r"logits has shape \(10,\), expected \(4, 10\)"),
    ):
        worker.prepare("forward", 4)


class StubbedTask:
    """A task that notes whether garbage is collected while it is called."""

    needs_graph = False

    def __init__(self) -> None:
        self.collected: list[bool] = []

    def call(self) -> None:
        self.collected.append(gc.isenabled())


@pytest.fixture
def bench() -> Bench:
    """The state of a worker process that has prepared a StubbedTask and waits for nothing."""
    bench = object.__new__(Bench)
    bench.task, bench.waited = StubbedTask(), lambda: 0.0
    return bench


@pytest.mark.parametrize(("others", "seconds"), [(0.0, 7.0), (3.0, 10.0)])
def test_time_that_other_programs_took_is_subtracted_and_that_of_own_threads_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, others: float, seconds: float
) -> None:
    clocks = {"timer": iter((0.0, 10.0)), "waited": iter((0.0, 3.0)), "others": iter((0.0, others))}
    monkeypatch.setattr(worker, "timer", lambda: next(clocks["timer"]))
    monkeypatch.setattr(worker, "_other_threads", lambda: next(clocks["others"]))
    monkeypatch.setattr(worker, "available_cores", lambda: [0])
    bench.waited = lambda: next(clocks["waited"])

    assert bench.block(2) == seconds


def test_garbage_is_collected_in_single_calls_and_not_in_blocks(bench: Bench) -> None:
    bench.block(2)
    bench.sample(0.0, 3)

    assert bench.task.collected == [False, False, True, True, True]


def test_processor_time_of_other_threads_is_counted() -> None:
    before = worker._other_threads()
    with ThreadPoolExecutor(1) as pool:
        used = pool.submit(lambda: sum(range(10**6)) and time.thread_time()).result()

    assert worker._other_threads() - before >= used > 0


def test_samples_have_at_least_the_requested_calls_and_time(bench: Bench) -> None:
    assert len(bench.sample(0.0, 5)) == 5
    assert sum(bench.sample(0.01, 1)) >= 0.01


@pytest.mark.parametrize("operation", ["backward", "update", "optimizer step"])
def test_part_of_a_step_is_verified_and_timed(operation: str) -> None:
    with Worker(Arm()) as part:
        part.prepare(operation, 2)

        assert part.block(3) > 0
        assert part.count()["operators"] > 0


WRONG_PARTS = """
import torch, lenet

class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.001 * gradient

class Net(lenet.Net):
    def forward(self, images):
        return Wrong.apply(super().forward(images))

def sgd_update(parameters, lr):
    lenet.sgd_update(list(parameters)[:-1], lr)

class SGD(torch.optim.SGD):
    def step(self):
        self.param_groups[0]["lr"] *= 1.001
        super().step()

replaces = {"torch.optim.SGD": SGD}
"""


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("backward", r"\.grad\[.* budgets of"),
        ("update", "fc3.bias"),
        ("optimizer step", "conv1.weight"),
    ],
)
def test_wrong_part_of_a_step_is_not_timed(tmp_path: Path, operation: str, message: str) -> None:
    (tmp_path / "wrong.py").write_text(WRONG_PARTS)

    with Worker(Arm(subject=f"{tmp_path}/wrong.py")) as part, pytest.raises(NotTimed, match=message):
        part.prepare(operation, 2)


def interpreter(folder: Path, script: str) -> str:
    """Return the path of a program that runs this script instead of Python."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo hello; sleep 9", "wrote 'hello' instead of an answer"),
        ("echo 5; sleep 9", "wrote '5' instead of an answer"),
        ("printf '\\377\\n'; sleep 9", "instead of an answer"),
        ("printf '{\"protocol\": 1'", "exited with code 0"),
        ("kill -40 $$", "was terminated by signal 40"),
        ("exec >&-; sleep 9", "closed its pipe without an answer"),
        ("head -c 20000000 /dev/zero", "wrote 16,777,216 bytes without the end of a line"),
        ('printf "%s\\n" \'{"failed": "a\\nb \\ud800"}\'', r"in float32: a b \\ud800"),
        (f"echo '{{\"protocol\": {PROTOCOL}}}'", "did not say what it runs"),
    ],
)
def test_process_that_is_no_worker_is_a_one_line_error(
    tmp_path: Path, script: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "EXIT_TIMEOUT", 0.1)

    with pytest.raises(WorkerError, match=message) as caught, Worker(Arm(), python=interpreter(tmp_path, script)):
        pass

    assert str(caught.value).isprintable()


def test_program_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("neither a program nor a script")
    (tmp_path / "python").chmod(0o755)

    with pytest.raises(WorkerError, match="cannot be executed: Exec format error"):
        Worker(Arm(), python=str(tmp_path / "python")).start()


@pytest.mark.slow
def test_worker_that_imported_another_copy_is_an_error(tmp_path: Path) -> None:
    for name in ("lenet/oracle.py", "benchmarks/worker.py"):  # a checkout of this project
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    python = interpreter(tmp_path, f"echo '{json.dumps(READY | {'root': '/elsewhere'})}'; sleep 9")

    with (
        pytest.raises(WorkerError, match=f"imported the packages in /elsewhere instead of those in {tmp_path}"),
        Worker(Arm(), python=python, folder=tmp_path),
    ):
        pass


READY = {
    "protocol": PROTOCOL,
    "operations": ["forward"],
    "machine": {"host": "a"},
    "stack": {"torch": "2"},
    "root": str(ROOT),
}
PREPARED = {"build": 0.5, "first": 0.25, "memory": 7}


class Silent(Worker):
    """A worker without a process."""

    def _signal(self, number: signal.Signals) -> None:
        pass


@pytest.fixture(scope="module")
def silent() -> Iterator[Worker]:
    """A worker without a process: what it receives is set by the tests."""
    worker = Silent(Arm())
    worker.requests = io.BytesIO()
    with tempfile.TemporaryFile() as worker.errors:
        yield worker


@given(
    ready=mutated_json(READY),
    prepared=mutated_json(PREPARED),
    counted=mutated_json({"FLOPs": 7}),
    timed=mutated_json({"seconds": 0.5}),
    sampled=mutated_json({"seconds": [0.5, 0.25]}),
)
@settings(max_examples=50)
def test_any_answer_is_right_or_a_one_line_error(silent: Worker, **answers: bytes) -> None:
    calls = {
        "ready": silent.wait_until_ready,
        "prepared": silent.wait_until_prepared,
        "counted": silent.count,
        "timed": lambda: silent.block(1),
        "sampled": lambda: silent.sample(1.0),
    }
    for name, call in calls.items():
        silent.received = bytearray(answers[name].replace(b"\n", b" ") + b"\n")
        problem = ""
        try:
            call()
        except WorkerError as error:
            problem = str(error)
        assert problem.isprintable()


def test_interpreter_without_this_package_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    python.chmod(0o755)

    with (
        pytest.raises(WorkerError, match="exited with code 3; last line of stderr: no such module"),
        Worker(Arm(), python=str(python)),
    ):
        pass
