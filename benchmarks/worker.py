"""
The process that runs one engine, or one side of the gate; its only argument is an `Arm` as JSON.

It prepares the operation that it is asked for, verifies the answer, and then times calls. `benchmarks/worker_client.py`
is its parent's side and documents the protocol. The gate starts this module by name in a checkout of another revision.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from time import process_time, thread_time
from typing import IO, Any

import torch

from benchmarks.counters import compiled_graphs, count
from benchmarks.probes import machine_identity, peak_memory, reset_peak_memory
from benchmarks.tasks import Runs, Task, timed
from benchmarks.training_tasks import ALL_TASKS
from benchmarks.worker_client import PROTOCOL, Arm, Startup
from lenet import engines, subject
from lenet.engines import EngineError
from lenet.engines.eager import disable_tf32
from lenet.fingerprint import fingerprint
from lenet.system import available_cores, foreign_wait, run_queue_wait
from lenet.timer import timer
from properties.stack import Stack


class Bench:
    """The state of the process: the stack, what the engine has built, and the task that is timed now."""

    def __init__(self, arm: Arm) -> None:
        torch.set_num_threads(arm.threads)
        disable_tf32()
        engine = engines.load(arm.engine)
        self.stack = Stack(subject.load(arm.subject), torch.device(arm.device), getattr(torch, arm.dtype), engine)
        if not engine.supports(self.stack.device.type, arm.dtype):
            raise EngineError(f"--engine {arm.engine}: does not support {arm.dtype} on {arm.device}")
        self.runs: Runs = {}
        self.task: Task | None = None
        self.waited = run_queue_wait()

    def prepare(self, operation: str, batch: int) -> Startup:
        """Build an operation, call it once and verify the answer; raises AssertionError if it is wrong."""
        self.task = None
        task = ALL_TASKS[operation](self.stack, batch, self.runs)
        before = reset_peak_memory(self.stack.device)
        build = task.build()
        with torch.set_grad_enabled(task.needs_graph):
            first_call, answer = timed(task.call)
        memory = None if before is None else max(0, peak_memory(self.stack.device) - before)
        self.graphs = compiled_graphs()
        task.verify(answer)
        self.task = task
        return Startup(build, first_call, memory)

    def count(self) -> dict[str, int]:
        """Return the exact counters of a call."""
        task = self._prepared()
        with torch.set_grad_enabled(task.needs_graph):
            return count(task.call, self.stack.device, self.graphs)

    def sample(self, seconds: float, calls: int) -> list[float]:
        """
        Time single calls, until there are this many and they took this many seconds; return the seconds of each.

        Garbage is collected as in any other program, so that a call in which that happens is among the slow ones.
        """
        times: list[float] = []
        total = 0.0
        while len(times) < calls or total < seconds:
            times.append(self._seconds_of(1))
            total += times[-1]
        return times

    def block(self, calls: int) -> float:
        """Return the seconds that a block of this many calls takes, without garbage collection."""
        gc.disable()
        try:
            return self._seconds_of(calls)
        finally:
            gc.enable()

    def _seconds_of(self, calls: int) -> float:
        """Return the seconds that calls take, without those during which the system ran other programs instead."""
        task = self._prepared()
        call, cores = task.call, len(available_cores())
        with torch.set_grad_enabled(task.needs_graph):
            start, waited, others = timer(), self.waited(), _other_threads()
            for _ in range(calls):
                call()
            waited, others = self.waited() - waited, _other_threads() - others
            elapsed = timer() - start
        return elapsed - foreign_wait(elapsed, waited, others, cores)

    def _prepared(self) -> Task:
        if self.task is None:
            raise AssertionError("nothing has been prepared")
        return self.task

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request; an exception becomes an answer with the key `failed` or `not timed`."""
        error_key = "not timed" if "prepare" in request else "failed"
        try:
            if "prepare" in request:
                startup = self.prepare(*request["prepare"])
                return {"build": startup.build, "first": startup.first_call, "memory": startup.memory}
            if "count" in request:
                return self.count()
            if "sample" in request:
                return {"seconds": self.sample(*request["sample"])}
            return {"seconds": self.block(request["block"])}
        except AssertionError as error:
            return {error_key: _one_line(str(error))}
        except Exception as error:  # an engine can raise anything
            return {error_key: _failure(error)}


def _other_threads() -> float:
    """Return the processor time of this process's threads other than this one, in seconds."""
    return process_time() - thread_time()


def _failure(error: Exception) -> str:
    """Return the exception in one line, and print its traceback to stderr."""
    traceback.print_exc()
    return _one_line(f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000]


def _private_pipes() -> tuple[IO[str], IO[str]]:
    """
    Return the pipes for requests and answers, on new descriptors that no library uses.

    Standard input becomes empty and standard output goes to stderr, for this process and those that it starts.
    """
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def main() -> None:
    """Answer requests until the parent closes the pipe."""
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
        about = {"operations": list(ALL_TASKS), "machine": machine_identity(stack), "stack": stack, "root": root}
        reply({"protocol": PROTOCOL} | about)
        for line in requests:
            reply(bench.answer(json.loads(line)))
    atexit._run_exitfuncs()  # remove temporary folders; a normal interpreter exit would take as long as its start
    os._exit(0)


if __name__ == "__main__":
    main()
