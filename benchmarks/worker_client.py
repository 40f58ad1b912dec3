"""
The parent's handle to a worker process: `with Worker(arm) as worker` starts one, asks it to time calls and stops it.

The process runs `benchmarks/worker.py`. A request is one line of JSON, and so is its answer. Between two requests
the process is stopped (SIGSTOP), so of many workers only one computes at any time, although idle threads of OpenMP,
ONNX Runtime and others spin by default: each library keeps the way to wait that it has for its users. A worker knows
nothing of the others: engines, subjects and entire Python environments are compared in the same way.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks import guard
from benchmarks.command import one_line
from lenet import system

MIN_BLOCK_SECONDS = 0.005
"""A block of calls takes at least this long: hundreds of times what the clock and the request cost."""

PREPARE_TIMEOUT = 1200.0
"""Seconds that a worker has to start, and to build, call and verify what it is to time."""

ANSWER_TIMEOUT = 120.0
"""Seconds that a worker has to time a block of calls."""

EXIT_TIMEOUT = 5.0
"""Seconds that a worker has to exit by itself once its pipe is closed."""

MAX_ANSWER = 2**24
"""Bytes of an answer, at most. The longest, a second of single calls, has less than a megabyte."""

ROOT = Path(__file__).resolve().parents[1]
"""The folder that contains this project's packages: a clone, or where they are installed."""

START = """
import json, os, runpy, sys
sys.path[:0] = [place for place in json.loads(sys.argv.pop(1)) if place not in sys.path]
sys.path.append(os.getcwd())
runpy.run_module("benchmarks.worker", run_name="__main__", alter_sys=True)
"""
"""
The program of a worker process. Its first argument is a list of folders to import packages from before all others.

The working directory comes last, so that nothing in it hides a package of this project.
"""

PROTOCOL = 2
"""
The version of the requests and answers, and of what a time means.

The gate may talk to the worker of another revision, so raise this number whenever either of them changes.
"""


class WorkerError(RuntimeError):
    """A worker failed. The message is one line that names what the worker runs and says what happened."""


class NotTimed(WorkerError):  # noqa: N818  # the worker is fine, the operation is not
    """The operation raised an exception or gave a wrong answer; the worker can still prepare another one."""


def contains_project(folder: Path) -> bool:
    """Whether a folder is a checkout of this project, of a revision that has a worker."""
    return (folder / "lenet" / "oracle.py").is_file() and (folder / "benchmarks" / "worker.py").is_file()


@dataclass(frozen=True)
class Arm:
    """What a worker runs: a subject, the engine that runs it, the device, the dtype and the number of CPU threads."""

    subject: str = "lenet"
    engine: str = "eager"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.subject} by {self.engine} on {self.device} in {self.dtype}"


@dataclass(frozen=True)
class Startup:
    """The cost of building an operation and calling it for the first time; imports are not included."""

    build: float  # seconds; the same for all batch sizes if the engine builds once for all of them
    first_call: float  # seconds; includes what the engine initializes lazily
    memory: int | None  # bytes at the peak of both, above those in use before; None if the system does not report it


@dataclass(frozen=True)
class Limit:
    """When a worker that does not answer is given up: at the deadline, but never before it had `patience` seconds."""

    deadline: float  # by time.monotonic
    patience: float

    def seconds(self) -> float:
        """Return the seconds that an answer may take from now on."""
        return max(self.deadline - time.monotonic(), self.patience)


@dataclass
class Worker:
    """
    A worker process. Use it as a context manager: inside the block the process is ready to prepare an operation.

    When the block ends, for whatever reason, the process and everything that it started are gone. To start several
    workers at the same time, call `start` on each of them and then `wait_until_ready`.
    """

    arm: Arm
    python: str = sys.executable
    """The interpreter that runs the process."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the process, in addition to its parent's."""
    folder: Path | None = None
    """The working directory of the process. A checkout of this project there is what it imports."""
    side: str = ""
    """`base` or `head` in a gate, which its errors name."""
    limit: Limit | None = None
    """When it is given up; by default, each answer has a timeout of its own."""

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, without waiting for it; raises WorkerError if the interpreter cannot be executed."""
        place = Path(tempfile.mkdtemp(prefix="worker-", dir=guard.folder()))
        own = {"OMP_NUM_THREADS": str(self.arm.threads), "TMPDIR": str(place), guard.VARIABLE: str(place)}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        try:
            self.process = subprocess.Popen(
                [self.python, "-P", "-c", START, json.dumps(self._first_imports()), json.dumps(asdict(self.arm))],
                env=os.environ | own | dict(self.environment),
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                start_new_session=True,  # the parent handles Ctrl-C, and can kill the process with all that it started
            )
        except OSError as error:
            self.errors.close()
            raise WorkerError(one_line(f"{self._label}: {self.python} cannot be executed: {error.strerror}")) from error
        if not self.process.stdin or not self.process.stdout:
            raise WorkerError(f"{self._label}: the worker has no pipes")
        self.place, self.requests, self.answers = place, self.process.stdin, self.process.stdout
        self.received, self.awaited = bytearray(), True  # it says by itself that it is ready

    def _first_imports(self) -> list[str]:
        """Return where the process looks for packages first: in a checkout of this project, or where this one is."""
        if self.folder and contains_project(self.folder):
            return [str(self.folder)]
        return [str(ROOT)] if self.python == sys.executable else []

    def wait_until_ready(self) -> None:
        """
        Wait until the process has loaded what it runs; then `operations`, `machine` and `stack` are set.

        Raises WorkerError if the subject or engine cannot be loaded, or if the process uses another protocol or another
        copy of this project than it should.
        """
        answer = self._answer(PREPARE_TIMEOUT)
        if answer.get("protocol") != PROTOCOL:
            raise self._error(
                f"uses protocol {answer.get('protocol')}, this version protocol {PROTOCOL}: "
                "this commit cannot be compared; choose a newer --base"
            )
        operations, self.machine = answer.get("operations"), self._texts(answer.get("machine"))
        self.stack, root = self._texts(answer.get("stack")), answer.get("root")
        if not isinstance(operations, list) or not isinstance(root, str):
            raise self._error("did not say what it runs")
        self.operations = [str(operation) for operation in operations]
        if (first := self._first_imports()) and Path(root) != Path(first[0]).resolve():
            raise self._error(f"imported the packages in {root} instead of those in {first[0]}")

    def stop(self) -> None:
        """Stop the process and everything that it started, unless that was done before."""
        if self.answers.closed:
            return
        with suppress(OSError):  # the process may have exited already
            self._signal(signal.SIGCONT)
            self.requests.close()
        try:
            self.process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            guard.remove(self.place)  # also processes in a session of their own
            self.answers.close()
            self.errors.close()

    @property
    def running(self) -> bool:
        """Whether the process runs and has answered all requests."""
        return self.process.poll() is None and not self.awaited

    def prepare(self, operation: str, batch: int) -> Startup:
        """
        Build an operation for a batch size, call it once and verify the answer, so that it can be timed.

        Raises NotTimed if the operation raises, or if its answer is outside the oracle's budget at the precision that
        the engine claims.
        """
        self.request({"prepare": [operation, batch]})
        return self.wait_until_prepared()

    def wait_until_prepared(self) -> Startup:
        """Wait for the answer to a request to prepare; raises as `prepare` does."""
        self.calls = 1  # per block
        answer = self._answer(PREPARE_TIMEOUT)
        memory = answer.get("memory")
        known = self._count(memory) if memory is not None else None
        return Startup(self._seconds(answer.get("build")), self._seconds(answer.get("first")), known)

    def count(self) -> dict[str, int]:
        """Return the exact counters of one call."""
        return {name: self._count(value) for name, value in self._ask({"count": True}, PREPARE_TIMEOUT).items()}

    def sample(self, seconds: float = 0.0, calls: int = 1) -> list[float]:
        """Time single calls, at least this many and for at least this many seconds; return the seconds of each."""
        times = self._ask({"sample": [seconds, calls]}, seconds + ANSWER_TIMEOUT).get("seconds")
        if not isinstance(times, list) or len(times) < calls:
            raise self._error("gave too few times of single calls")
        found = [self._seconds(value) for value in times]
        if 0 in found:
            raise self._error("took no time for a call")
        return found

    def pin(self, cores: Iterable[int]) -> None:
        """Restrict all threads of the process to these cores, if the system supports it."""
        system.pin(self.process.pid, cores)

    def block(self, calls: int) -> float:
        """Return the seconds that a block of this many calls takes."""
        seconds = self._seconds(self._ask({"block": calls}, ANSWER_TIMEOUT).get("seconds"))
        if seconds == 0:
            raise self._error("took no time for a block of calls")
        return seconds

    def measure(self) -> float:
        """Return the seconds of one call, from a block of MIN_BLOCK_SECONDS: `calls` is doubled until it is reached."""
        while (seconds := self.block(self.calls)) < MIN_BLOCK_SECONDS:
            self.calls *= 2
        return seconds / self.calls

    def request(self, request: dict[str, Any]) -> None:
        """Send a request without waiting for the answer."""
        self.awaited = True
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # the process has exited, which reading the answer will report
            self.requests.write(json.dumps(request).encode() + b"\n")
            self.requests.flush()

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and what it started, except what is in a session of its own."""
        with suppress(ProcessLookupError):  # it has exited, which reading an answer will report
            os.killpg(self.process.pid, number)

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.request(request)
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        """
        Return the answer to the last request, and stop the process until the next one.

        Raises WorkerError, or NotTimed, if the answer is an error or if there is none.
        """
        line = self._line(timeout if self.limit is None else self.limit.seconds())
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._error(f"wrote {one_line(line.decode(errors='replace'))[:100]!r} instead of an answer")
        self.awaited = False
        self._signal(signal.SIGSTOP)
        for key, error in (("not timed", NotTimed), ("failed", WorkerError)):
            if key in answer:
                raise error(one_line(f"{self._label}: {str(answer[key])[:1000]}"))
        return answer

    def _line(self, timeout: float) -> bytes:
        """Return the next line that the process writes; raises WorkerError if it exits or takes longer."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.received:
            if select.select([self.answers], [], [], 0.2)[0]:
                chunk = os.read(self.answers.fileno(), 2**16)
                if not chunk:
                    raise self._error(self._ending())
                self.received += chunk
            elif self.process.poll() is not None:  # a child of the process may still hold the pipe open
                raise self._error(self._ending())
            if len(self.received) > MAX_ANSWER:
                raise self._error(f"wrote {MAX_ANSWER:,} bytes without the end of a line")
            if time.monotonic() > deadline:
                longer = " (if it needs longer, raise --budget)" if self.limit else ""
                raise self._error(f"did not answer within {timeout:.0f} s{longer}")
        line, _, self.received = self.received.partition(b"\n")
        return bytes(line)

    def _seconds(self, value: object) -> float:
        """Return a time that the process has measured; raises WorkerError unless it is finite and not negative."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < sys.float_info.max:
            raise self._error(one_line(f"gave {value!r:.100} as a time"))
        return float(value)

    def _count(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error(one_line(f"gave {value!r:.100} as a count"))
        return value

    def _texts(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict):
            raise self._error("did not say what it runs")
        return {name: one_line(str(text)) for name, text in value.items()}

    def _ending(self) -> str:
        """Return how the process ended, in words."""
        try:
            code = self.process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "closed its pipe without an answer"
        if code >= 0:
            return f"exited with code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"was terminated by {names.get(-code, f'signal {-code}')}"

    def _error(self, reason: str) -> WorkerError:
        """Return an error with the reason and the last line that the process wrote to stderr."""
        size = os.fstat(self.errors.fileno()).st_size
        end = os.pread(self.errors.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")  # moves no offset
        last = next((line.strip() for line in reversed(end.split("\n")) if line.strip()), "none")
        return WorkerError(one_line(f"{self._label}: the worker {reason}; last line of stderr: {last[:300]}"))

    @property
    def _label(self) -> str:
        return f"{self.side}: {self.arm}" if self.side else str(self.arm)
