"""The parts of a training step that the gate can time by themselves: the backward pass, and two updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.tasks import TASKS, Runs, Task, TrainingStep
from benchmarks.workload import LR, Workload
from lenet.exact_sgd import SGD
from properties.comparison import assert_rounded
from properties.stack import Stack, float64


class Backward(TrainingStep):
    """The backward pass through the graph of a loss, which is kept; gradients accumulate."""

    def build(self) -> float:
        """Have the engine build a run, and record the graph of a loss."""
        seconds = super().build()
        with torch.enable_grad():
            self.loss = nn.functional.mse_loss(self.engine_net(self.images), self.targets)
        return seconds

    def call(self) -> Any:
        """Add the gradients of the loss to those of the parameters."""
        self.loss.backward(retain_graph=True)

    def verify(self, answer: Any) -> None:
        """Raise AssertionError unless the gradients of all parameters are within budget."""
        self.workload.verify_gradients()


class Update:
    """The subject's `sgd_update` of all parameters, whose gradients are ones."""

    needs_graph = True  # as in training: the update itself must not be recorded

    def __init__(self, stack: Stack, batch: int, runs: Runs) -> None:
        self.stack, self.net, self.lr = stack, Workload(stack, batch).net, 0.5
        self.parameters = list(self.net.parameters())
        for parameter in self.parameters:
            parameter.grad = torch.ones_like(parameter)
        self.before = [float64(parameter).copy() for parameter in self.parameters]

    def build(self) -> float:
        """Return 0: there is nothing to build."""
        return 0.0

    def call(self) -> Any:
        """Update all parameters once."""
        self.stack.subject.sgd_update(self.parameters, self.lr)

    def verify(self, answer: Any) -> None:
        """Raise AssertionError unless each parameter is what the first update makes of it, but for its roundings."""
        for old, (name, parameter) in zip(self.before, self.net.named_parameters(), strict=True):
            exact, _ = SGD(self.lr).step(old, np.ones_like(old), None, self.stack.stored_precision)
            assert_rounded(parameter, exact, name)
        self.lr = LR


class OptimizerStep(Update):
    """A step of `torch.optim.SGD`, or of what the subject replaces it with."""

    def build(self) -> float:
        """Create the optimizer, which is not timed."""
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.lr)
        return 0.0

    def call(self) -> Any:
        """Take a step."""
        self.optimizer.step()

    def verify(self, answer: Any) -> None:
        """Raise AssertionError unless the first step is right; later steps have the learning rate of timed ones."""
        super().verify(answer)
        self.build()


ALL_TASKS: dict[str, Callable[[Stack, int, Runs], Task]] = TASKS | {
    "backward": Backward,
    "update": Update,
    "optimizer step": OptimizerStep,
}
"""All operations that a worker can time."""
