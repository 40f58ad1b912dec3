"""The operations that a worker can time, and how each verifies its answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.roofline import copied_bytes, last_level_cache
from benchmarks.workload import LR, Workload, output_problem
from lenet.engines import Engine, EngineError, Run
from lenet.timer import timer
from properties.executed import Borrowing, Executed
from properties.stack import Stack

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call takes, and its result."""
    start = timer()
    result = call()
    return timer() - start, result


Runs: TypeAlias = dict[int | None, tuple[float, Run]]
"""The runs that an engine has built and the seconds that each took, by batch size; None if one serves all sizes."""


class Task(Protocol):
    """An operation to time."""

    needs_graph: bool
    """Whether a call records a graph for a backward pass."""

    def build(self) -> float:
        """Have the engine build the callable, and return the seconds that it took, now or in an earlier task."""

    def call(self) -> Any:
        """Run the operation once: this is what is timed."""

    def verify(self, answer: Any) -> None:
        """Raise AssertionError unless this is the correct answer of the first call."""


class Forward:
    """The forward pass of the engine, without a graph."""

    needs_graph = False

    def __init__(self, stack: Stack, batch: int, runs: Runs) -> None:
        self.engine, self.workload, self.runs = _engine(stack), Workload(stack, batch), runs
        self.images, self.net = self.workload.images, _network(self.workload)
        self.key = None if self.engine.dynamic_batch else batch

    def build(self) -> float:
        """Build a run, unless there is one for this batch size, and return the seconds that it took."""
        if self.key not in self.runs:
            self.runs[self.key] = timed(partial(self.engine.build, self.net))
        seconds, self.run = self.runs[self.key]
        return seconds

    def call(self) -> Tensor:
        """Return the logits (batch,10)."""
        return self.run(self.images)

    def verify(self, answer: Tensor) -> None:
        """Raise AssertionError unless the logits are a tensor like the images, and every logit is within budget."""
        if problem := output_problem(answer, self.images):
            raise AssertionError(f"logits: {problem}")
        self.workload.verify_logits(answer)


class EngineNet(Borrowing):
    """A network whose forward pass is an engine's run of it, without the checks that `Executed` adds for the laws."""

    run: Run

    def __init__(self, net: nn.Module, run: Run) -> None:
        super().__init__(net)
        object.__setattr__(self, "run", run)  # not a submodule

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits: (N,1,32,32) -> (N,10)."""
        logits: Tensor = self.run(images)
        return logits


class TrainingStep:
    """The subject's training step, with the forward pass run by the engine."""

    needs_graph = True

    def __init__(self, stack: Stack, batch: int, runs: Runs) -> None:
        self.engine, self.subject, self.workload = _engine(stack), stack.subject, Workload(stack, batch)
        if not self.engine.differentiable:
            raise EngineError(f"--engine {self.engine.name}: has no backward pass")
        self.images, self.targets, self.net = self.workload.images, self.workload.targets, _network(self.workload)
        self.before, self.lr = self.workload.parameters(), 0.5

    def build(self) -> float:
        """Build a run of a network that no other task uses, since the step changes its parameters."""
        seconds, run = timed(partial(self.engine.build, self.net))
        self.engine_net = EngineNet(self.net, run)
        return seconds

    def call(self) -> Tensor:
        """Do one training step and return the loss."""
        return self.subject.train_step(self.engine_net, self.images, self.targets, self.lr)

    def verify(self, answer: Tensor) -> None:
        """Raise AssertionError unless the loss and all updated parameters are within budget."""
        if problem := output_problem(answer, self.images):
            raise AssertionError(f"loss: {problem}")
        self.workload.verify_step(self.before, answer, self.lr)
        self.lr = LR


class MatrixProduct:
    """The product of two square matrices: a measure of the rate that the machine reaches in the same dtype."""

    needs_graph = False

    def __init__(self, device: torch.device, dtype: torch.dtype, size: int) -> None:
        self.matrix = torch.randn(size, size, device=device, dtype=dtype)
        self.flops = 2 * size**3

    def build(self) -> float:
        """Return 0: there is nothing to build."""
        return 0.0

    def call(self) -> Tensor:
        """Return the product (size,size)."""
        return self.matrix @ self.matrix

    def verify(self, answer: Tensor) -> None:
        """Raise AssertionError unless the product of two matrices of ones is right; it is exact in every order."""
        ones = torch.ones_like(self.matrix)
        if not bool((ones @ ones == len(ones)).all()):
            raise AssertionError(f"the product of {len(ones)} x {len(ones)} ones is wrong")


class Copy:
    """A copy of an array too large for any cache: the memory rate of the machine, each byte read and written once."""

    def __init__(self, device: torch.device) -> None:
        page = torch.arange(1024, device=device, dtype=torch.int32)  # distinct values
        self.numbers = page.repeat(copied_bytes(last_level_cache(device)) // page.nbytes)
        self.copy = torch.empty_like(self.numbers)
        self.moved = 2 * self.numbers.nbytes

    def call(self) -> Tensor:
        """Return the copy."""
        return self.copy.copy_(self.numbers)

    def verify(self, answer: Tensor) -> None:
        """Raise AssertionError unless the copy has the same numbers."""
        if not torch.equal(answer, self.numbers):
            raise AssertionError(f"a copy of {self.numbers.nbytes:,} bytes is wrong")


TASKS: dict[str, Callable[[Stack, int, Runs], Task]] = {
    "forward": Forward,
    "training step": TrainingStep,
    "matrix product": lambda stack, size, _: MatrixProduct(stack.device, stack.dtype, size),
}
"""The operations by name. The integer is the batch size, or the size of the matrices."""


def _engine(stack: Stack) -> Engine:
    if stack.engine is None:
        raise EngineError("a worker needs an engine")
    return stack.engine


def _network(workload: Workload) -> nn.Module:
    """Return the network for the engine to run, without the wrapper that the laws use."""
    return workload.net.net if isinstance(workload.net, Executed) else workload.net
