"""
A process that holds one arm of a comparison, and its parent's handle to it.

The process, `python -m benchmarks.worker ARM`, prepares what it is asked for, verifies the answer, and then times
calls. Requests and answers are lines of JSON; between two requests it blocks in a read, so that of many workers only
one runs. It knows nothing of the others: engines, subjects and whole Python environments are compared alike.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, Self, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.counters import compiled_graphs, count
from benchmarks.workload import LR, Workload
from lenet import engines, subject
from lenet.engines import EngineError, Run
from lenet.engines.eager import compute_as_claimed
from lenet.fingerprint import fingerprint
from lenet.timer import timer
from properties.executed import Borrowing, Executed
from properties.stack import Stack

BLOCK = 0.005
"""Seconds that a block of calls takes at least: hundreds of times what the clock and the request cost."""

QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Idle threads sleep at once, where OpenMP's otherwise spin and take the cores from the worker whose turn it is."""

PREPARING = 1200.0
"""Seconds in which a worker is up, and in which it has built, called and verified what it is to time."""

ANSWERING = 120.0
"""Seconds in which it has timed a block."""

PROTOCOL = 1
"""Of requests and answers, and of what a time is: the gate may ask the worker of another version of this file."""

ENDING = 5.0
"""Seconds in which a worker that is no longer needed ends by itself."""


class WorkerError(RuntimeError):
    """A worker that cannot go on; the message is one line that names the arm and says what happened."""


class NotTimed(WorkerError):  # noqa: N818  # the worker is in order, what its arm gives is not
    """What was to be timed raises or gives a wrong answer; the worker can prepare something else."""


@dataclass(frozen=True)
class Arm:
    """Who is timed: a subject, the engine that runs it, the device, the dtype, and how many threads the CPU has."""

    subject: str = "lenet"
    engine: str = "eager"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.subject} by {self.engine} on {self.device} in {self.dtype}"


@dataclass(frozen=True)
class Cold:
    """What it costs to begin, imports not counted."""

    build: float  # seconds; the same for all batches, where the engine builds once for all
    first: float  # seconds of the first call, in which much of what is lazy is made
    memory: int | None  # bytes: the peak of both, above what was in use before; None where that cannot be had


@dataclass
class Worker:
    """
    A worker's process as its parent sees it, `with Worker(arm) as worker`: it is up and has found its arm.

    `python` is the interpreter that it runs in, `folder` where it runs, whose packages come before those installed,
    `environment` what it has in its environment beside its parent's. When the block ends, however it does, the process
    and all that it started are gone. Of several workers, all may `start` before the first is waited for.
    """

    arm: Arm
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        try:
            self.ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process."""
        own = QUIET | {"OMP_NUM_THREADS": str(self.arm.threads)} | dict(self.environment)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        self.process = subprocess.Popen(
            [self.python, "-m", "benchmarks.worker", json.dumps(asdict(self.arm))],
            env=os.environ | own,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,  # Ctrl-C is its parent's to handle, and all that it starts can be ended with it
        )
        assert self.process.stdin
        assert self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout

    def ready(self) -> None:
        """Wait until it is up and has found its arm, and says its operations, machine, stack, and where its code is."""
        answer = self._answer(PREPARING)
        if answer.get("protocol") != PROTOCOL:
            raise self._error(f"speaks protocol {answer.get('protocol')}, this version {PROTOCOL}")
        self.operations: list[str] = answer["operations"]
        self.machine: dict[str, str] = answer["machine"]
        self.stack: dict[str, str] = answer["stack"]
        self.root = Path(answer["root"])

    def stop(self) -> None:
        """End it, with all that it has started."""
        with suppress(OSError):  # it may be gone already
            self.requests.close()
        try:
            self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.answers.close()
            self.errors.close()

    def prepare(self, operation: str, batch: int) -> Cold:
        """
        Have it build an operation on a batch, call it once and verify the answer; then it can be timed.

        Raises NotTimed where it raises, or its answer is outside the oracle's budget at the precision that the engine
        claims.
        """
        self.request({"prepare": [operation, batch]})
        return self.prepared()

    def prepared(self) -> Cold:
        """Wait for the answer to a request to prepare, as `prepare` does."""
        self.calls = 1  # a block
        return Cold(**self._answer(PREPARING))

    def count(self) -> dict[str, int]:
        """The exact counters of one call."""
        return dict(self._ask({"count": True}, PREPARING))

    def sample(self, seconds: float) -> list[float]:
        """The seconds of single calls, one after the other for so many seconds."""
        return list(self._ask({"sample": seconds}, seconds + ANSWERING)["seconds"])

    def run_on(self, cores: Iterable[int]) -> None:
        """Have all its threads run on these cores from now on, where the system can do that."""
        if hasattr(os, "sched_setaffinity"):
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
                with suppress(ProcessLookupError):  # that thread has just ended
                    os.sched_setaffinity(int(thread.name), cores)

    def block(self, calls: int) -> float:
        """The seconds that so many calls take, one after the other."""
        return float(self._ask({"block": calls}, ANSWERING)["seconds"])

    def measure(self) -> float:
        """The seconds of one call, from a block that takes BLOCK at least: it has twice the calls until it does."""
        while (seconds := self.block(self.calls)) < BLOCK:
            self.calls *= 2
        return seconds / self.calls

    def request(self, request: dict[str, Any]) -> None:
        """Send it a request, whose answer is to be waited for."""
        with suppress(BrokenPipeError):  # then it has ended, which its answer says
            self.requests.write(json.dumps(request) + "\n")
            self.requests.flush()

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        self.request(request)
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not select.select([self.answers], [], [], 0.2)[0]:
            if self.process.poll() is not None:  # what it has started may hold its pipe open
                break
            if time.monotonic() > deadline:
                raise self._error(f"gave no answer within {seconds:g} s")
        else:
            if line := self.answers.readline():
                answer: dict[str, Any] = json.loads(line)
                for key, error in (("not timed", NotTimed), ("failed", WorkerError)):
                    if key in answer:
                        raise error(f"{self.arm}: {answer[key]}")
                return answer
        raise self._error(_ending(self.process.wait(ENDING)))

    def _error(self, what: str) -> WorkerError:
        """What happened, and the last line that the process wrote to stderr."""
        size = os.fstat(self.errors.fileno()).st_size
        tail = os.pread(self.errors.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")  # moves no offset
        words = tail.split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "none")
        return WorkerError(f"{self.arm}: its worker {what}; its last words: {last[:300]}")


def _ending(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """The seconds that a call takes, and what it gives."""
    start = timer()
    result = call()
    return timer() - start, result


Runs: TypeAlias = dict[int | None, tuple[float, Run]]
"""What an engine has built, and the seconds that it took; by batch, where it builds for each."""


class Task(Protocol):
    """Something to time."""

    graph: bool
    """Whether a call makes a graph for a backward pass."""

    def build(self) -> float:
        """Have the engine build what is called; the seconds that it took, now or before."""

    def call(self) -> Any:
        """What is timed."""

    def verify(self, answer: Any) -> None:
        """Raise AssertionError where this is not what a right first call gives."""


class Forward:
    """The engine's forward pass, without a graph."""

    graph = False

    def __init__(self, stack: Stack, batch: int, runs: Runs) -> None:
        assert stack.engine
        self.engine, self.work, self.runs = stack.engine, Workload(stack, batch), runs
        self.images, self.net = self.work.images, _network(self.work)
        self.key = None if self.engine.any_batch else batch

    def build(self) -> float:
        """One run serves all batches, where the engine can do that."""
        if self.key not in self.runs:
            self.runs[self.key] = timed(partial(self.engine.build, self.net))
        seconds, self.run = self.runs[self.key]
        return seconds

    def call(self) -> Tensor:
        """(batch,10)."""
        return self.run(self.images)

    def verify(self, answer: Tensor) -> None:
        """Every logit is within budget."""
        self.work.verify_logits(answer)


class Joined(Borrowing):
    """A network whose forward pass is a run of it, with nothing else beside that."""

    run: Run

    def __init__(self, net: nn.Module, run: Run) -> None:
        super().__init__(net)
        object.__setattr__(self, "run", run)  # which is no submodule of this one

    def forward(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10)."""
        logits: Tensor = self.run(images)
        return logits


class TrainingStep:
    """The subject's training step, whose forward pass the engine runs."""

    graph = True

    def __init__(self, stack: Stack, batch: int, runs: Runs) -> None:
        assert stack.engine
        if not stack.engine.differentiable:
            raise EngineError(f"--engine {stack.engine.name}: has no backward pass")
        self.engine, self.subject, self.work = stack.engine, stack.subject, Workload(stack, batch)
        self.images, self.targets, self.net = self.work.images, self.work.targets, _network(self.work)
        self.before, self.lr = self.work.parameters(), 0.5

    def build(self) -> float:
        """Of a network of its own, since the step changes it."""
        seconds, run = timed(partial(self.engine.build, self.net))
        self.joined = Joined(self.net, run)
        return seconds

    def call(self) -> Tensor:
        """The loss."""
        return self.subject.train_step(self.joined, self.images, self.targets, self.lr)

    def verify(self, answer: Tensor) -> None:
        """The loss and all parameters are within budget."""
        self.work.verify_step(self.before, answer, self.lr)
        self.lr = LR


class MatrixProduct:
    """The product of two square matrices: the rate that the machine can reach, in the same dtype."""

    graph = False

    def __init__(self, stack: Stack, size: int, runs: Runs) -> None:
        self.numbers = torch.randn(size, size, device=stack.device, dtype=stack.dtype)

    def build(self) -> float:
        """Nothing."""
        return 0.0

    def call(self) -> Tensor:
        """(size,size)."""
        return self.numbers @ self.numbers

    def verify(self, answer: Tensor) -> None:
        """That of ones is exact in every order of summation."""
        ones = torch.ones_like(self.numbers)
        assert bool((ones @ ones == len(ones)).all()), f"the product of {len(ones)} x {len(ones)} ones is wrong"


TASKS: dict[str, Callable[[Stack, int, Runs], Task]] = {
    "forward": Forward,
    "training step": TrainingStep,
    "matrix product": MatrixProduct,
}
"""What can be timed, by name; the number is the batch, of the matrix product its size."""


def _network(work: Workload) -> nn.Module:
    """What the engine is to run, without what the laws have put around it."""
    assert isinstance(work.net, Executed)
    return work.net.net


class Bench:
    """What the process holds: the stack of its arm, what its engine has built, and the task that is timed now."""

    def __init__(self, arm: Arm) -> None:
        torch.set_num_threads(arm.threads)
        compute_as_claimed()
        engine = engines.load(arm.engine)
        self.stack = Stack(subject.load(arm.subject), torch.device(arm.device), getattr(torch, arm.dtype), engine)
        if not engine.takes(self.stack.device.type, arm.dtype):
            raise EngineError(f"--engine {arm.engine}: takes no {arm.dtype} on {arm.device}")
        self.runs: Runs = {}
        self.task: Task | None = None
        self.waited = run_queue_wait()

    def prepare(self, operation: str, batch: int) -> Cold:
        """Build, call once, verify; raises AssertionError where the answer is wrong."""
        self.task = None
        task = TASKS[operation](self.stack, batch, self.runs)
        before = _in_use(self.stack.device)
        build = task.build()
        with torch.set_grad_enabled(task.graph):
            first, answer = timed(task.call)
        memory = None if before is None else max(0, _peak(self.stack.device) - before)
        self.graphs = compiled_graphs()
        task.verify(answer)
        self.task = task
        return Cold(build, first, memory)

    def count(self) -> dict[str, int]:
        """The exact counters of a call."""
        task = self._prepared()
        with torch.set_grad_enabled(task.graph):
            return count(task.call, self.stack.device, self.graphs)

    def sample(self, seconds: float) -> list[float]:
        """The seconds of each of the calls that can be made in so many seconds, one at least."""
        taken: list[float] = []
        total = 0.0
        while not taken or total < seconds:
            taken.append(self.block(1))
            total += taken[-1]
        return taken

    def block(self, calls: int) -> float:
        """The seconds of so many calls, without garbage collection and what else the system had run meanwhile."""
        task = self._prepared()
        call = task.call
        gc.disable()
        try:
            with torch.set_grad_enabled(task.graph):
                start, waited = timer(), self.waited()
                for _ in range(calls):
                    call()
                waited = self.waited() - waited
                return timer() - start - waited
        finally:
            gc.enable()

    def _prepared(self) -> Task:
        assert self.task, "nothing has been prepared"
        return self.task

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request is answered by."""
        key = "not timed" if "prepare" in request else "failed"
        try:
            if "prepare" in request:
                return asdict(self.prepare(*request["prepare"]))
            if "count" in request:
                return self.count()
            if "sample" in request:
                return {"seconds": self.sample(request["sample"])}
            return {"seconds": self.block(request["block"])}
        except AssertionError as error:
            return {key: _line(str(error))}
        except Exception as error:  # an engine may raise whatever it likes
            return {key: _failure(error)}


def run_queue_wait() -> Callable[[], float]:
    """
    The seconds that this thread has been ready to run and the system has run others; 0 where it does not tell.

    https://docs.kernel.org/scheduler/sched-stats.html
    """
    try:
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return lambda: 0.0
    return lambda: int(os.pread(file, 100, 0).split()[1]) / 1e9


def _failure(error: Exception) -> str:
    """In one line; the whole of it goes to stderr."""
    traceback.print_exc()
    return _line(f"{type(error).__name__}: {error}")


def _line(text: str) -> str:
    return " ".join(text.split())[:1000]


def _in_use(device: torch.device) -> int | None:
    """Bytes in use, from which on `_peak` is taken anew; None on systems that do not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident("VmRSS")


def _peak(device: torch.device) -> int:
    """Bytes in use at most, on a GPU those of PyTorch's allocator."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _machine(stack: Mapping[str, str]) -> dict[str, str]:
    """What two processes on one machine have in common, and two on different ones do not."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = {"host": platform.node()} | ({"boot": boot.read_text().strip()} if boot.exists() else {})
    return name | {part: value for part, value in stack.items() if part in ("processor", "cores", "GPU")}


def _private_pipes() -> tuple[IO[str], IO[str]]:
    """Requests and answers, where no library and no process that it starts reads or writes: they get stderr."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def main() -> None:
    """Serve until the parent closes the pipe."""
    requests, answers = _private_pipes()

    def reply(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        bench = Bench(Arm(**json.loads(sys.argv[1])))
    except Exception as error:
        reply({"failed": _failure(error)})
        return
    with bench.stack.installed():
        stack, root = fingerprint(), str(Path(__file__).resolve().parents[1])
        about = {"operations": list(TASKS), "machine": _machine(stack), "stack": stack, "root": root}
        reply({"protocol": PROTOCOL} | about)
        for line in requests:
            reply(bench.answer(json.loads(line)))
    atexit._run_exitfuncs()  # temporary folders; the interpreter's own end would take as long as its start
    os._exit(0)


if __name__ == "__main__":
    main()
