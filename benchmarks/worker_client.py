"""
The parent's handle to a worker process: `with Worker(arm) as worker` starts one, asks it to time calls and stops it.

The process is `python -m benchmarks.worker`. A request is one line of JSON, and so is its answer. Between two requests
the process blocks in a read, so of many workers only one computes at any time. A worker knows nothing of the others:
engines, subjects and entire Python environments are compared in the same way.
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

MIN_BLOCK_SECONDS = 0.005
"""A block of calls takes at least this long: hundreds of times what the clock and the request cost."""

PASSIVE_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Environment in which idle OpenMP threads sleep. By default they spin, and take cores from the worker being timed."""

PREPARE_TIMEOUT = 1200.0
"""Seconds that a worker has to start, and to build, call and verify what it is to time."""

ANSWER_TIMEOUT = 120.0
"""Seconds that a worker has to time a block of calls."""

EXIT_TIMEOUT = 5.0
"""Seconds that a worker has to exit by itself once its pipe is closed."""

PROTOCOL = 1
"""
The version of the requests and answers, and of what a time means.

The gate may talk to the worker of another revision, so raise this number whenever either of them changes.
"""


class WorkerError(RuntimeError):
    """A worker failed. The message is one line that names what the worker runs and says what happened."""


class NotTimed(WorkerError):  # noqa: N818  # the worker is fine, the operation is not
    """The operation raised an exception or gave a wrong answer; the worker can still prepare another one."""


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
    """The working directory of the process. Packages found there take precedence over installed ones."""
    side: str = ""
    """`base` or `head` in a gate, which its errors name."""

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
        """Start the process, without waiting for it."""
        variables = PASSIVE_WAIT | {"OMP_NUM_THREADS": str(self.arm.threads)} | dict(self.environment)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        self.process = subprocess.Popen(
            [self.python, "-m", "benchmarks.worker", json.dumps(asdict(self.arm))],
            env=os.environ | variables,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,  # the parent handles Ctrl-C, and can kill the process with all that it started
        )
        assert self.process.stdin
        assert self.process.stdout
        self.requests, self.answers = self.process.stdin, self.process.stdout

    def wait_until_ready(self) -> None:
        """
        Wait until the process has loaded what it runs; then `operations`, `machine`, `stack` and `root` are set.

        `root` is the folder that the process imported `benchmarks` from. Raises WorkerError if the subject or engine
        cannot be loaded or the process uses another protocol.
        """
        answer = self._answer(PREPARE_TIMEOUT)
        if answer.get("protocol") != PROTOCOL:
            raise self._error(
                f"uses protocol {answer.get('protocol')}, this version protocol {PROTOCOL}: "
                "this commit cannot be compared; choose a newer --base"
            )
        self.operations: list[str] = answer["operations"]
        self.machine: dict[str, str] = answer["machine"]
        self.stack: dict[str, str] = answer["stack"]
        self.root = Path(answer["root"])

    def stop(self) -> None:
        """Stop the process and everything that it started."""
        with suppress(OSError):  # the process may have exited already
            self.requests.close()
        try:
            self.process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.answers.close()
            self.errors.close()

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
        return Startup(answer["build"], answer["first"], answer["memory"])

    def count(self) -> dict[str, int]:
        """Return the exact counters of one call."""
        return dict(self._ask({"count": True}, PREPARE_TIMEOUT))

    def sample(self, seconds: float) -> list[float]:
        """Call the operation repeatedly for this many seconds, and return the seconds of each call."""
        return list(self._ask({"sample": seconds}, seconds + ANSWER_TIMEOUT)["seconds"])

    def pin(self, cores: Iterable[int]) -> None:
        """Restrict all threads of the process to these cores, if the system supports it."""
        if hasattr(os, "sched_setaffinity"):
            for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
                with suppress(ProcessLookupError):  # the thread has just ended
                    os.sched_setaffinity(int(thread.name), cores)

    def block(self, calls: int) -> float:
        """Return the seconds that a block of this many calls takes."""
        return float(self._ask({"block": calls}, ANSWER_TIMEOUT)["seconds"])

    def measure(self) -> float:
        """Return the seconds of one call, from a block of MIN_BLOCK_SECONDS: `calls` is doubled until it is reached."""
        while (seconds := self.block(self.calls)) < MIN_BLOCK_SECONDS:
            self.calls *= 2
        return seconds / self.calls

    def request(self, request: dict[str, Any]) -> None:
        """Send a request without waiting for the answer."""
        with suppress(BrokenPipeError):  # the process has exited, which reading the answer will report
            self.requests.write(json.dumps(request) + "\n")
            self.requests.flush()

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.request(request)
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not select.select([self.answers], [], [], 0.2)[0]:
            if self.process.poll() is not None:  # a child of the process may still hold the pipe open
                break
            if time.monotonic() > deadline:
                raise self._error(f"did not answer within {timeout:g} s")
        else:
            if line := self.answers.readline():
                answer: dict[str, Any] = json.loads(line)
                for key, error in (("not timed", NotTimed), ("failed", WorkerError)):
                    if key in answer:
                        raise error(f"{self._label}: {answer[key]}")
                return answer
        raise self._error(_exit_reason(self.process.wait(EXIT_TIMEOUT)))

    def _error(self, reason: str) -> WorkerError:
        """Return an error with the reason and the last line that the process wrote to stderr."""
        size = os.fstat(self.errors.fileno()).st_size
        end = os.pread(self.errors.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")  # moves no offset
        last = next((line.strip() for line in reversed(end.split("\n")) if line.strip()), "none")
        return WorkerError(f"{self._label}: the worker {reason}; last line of stderr: {last[:300]}")

    @property
    def _label(self) -> str:
        return f"{self.side}: {self.arm}" if self.side else str(self.arm)


def _exit_reason(code: int) -> str:
    return f"exited with code {code}" if code >= 0 else f"was terminated by {signal.Signals(-code).name}"
