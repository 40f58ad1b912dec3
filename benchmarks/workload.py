"""What is timed: a network and a batch of real digits of any size, for which the oracle computes the right answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from lenet import oracle
from lenet.oracle import Answer, Array, Budgeted
from properties.case import Case
from properties.comparison import assert_gradients, assert_within_budget
from properties.stack import Stack, float64

LR = 2.0**-20
"""The learning rate of timed training steps: so small that thousands of steps do not change the work they do."""

TIMED_BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 8192)
"""The batch sizes that are timed: a single image, batches that fit into a cache, and batches that exceed it."""

DISTINCT = 16
"""Distinct images in a batch. A larger batch repeats them, so that the oracle does not compute thousands of images."""


def output_problem(output: object, images: Tensor) -> str:
    """Return why this is no output for these images, such as another dtype or device; an empty string if it is one."""
    if not isinstance(output, Tensor):
        return f"of type {type(output).__name__}, not a tensor"
    if (output.dtype, output.device) != (images.dtype, images.device):
        return f"{output.dtype} on {output.device}; the images are {images.dtype} on {images.device}"
    return ""


@dataclass(frozen=True)
class Workload:
    """A stack's network and a batch of digits; a batch size above DISTINCT is a multiple of it."""

    stack: Stack
    batch: int

    @property
    def case(self) -> Case:
        """The case of the distinct digits."""
        return Case(batch=min(self.batch, DISTINCT))

    @property
    def repeats(self) -> int:
        """How often each distinct digit occurs."""
        return self.batch // self.case.batch

    @cached_property
    def net(self) -> nn.Module:
        """The subject's Net with default initialization, run by the stack's engine."""
        return self.stack.net(self.case)

    @cached_property
    def images(self) -> Tensor:
        """The images (batch,1,32,32)."""
        return self.stack.images(self.case).repeat(self.repeats, 1, 1, 1)

    @cached_property
    def targets(self) -> Tensor:
        """The one-hot targets (batch,10)."""
        return self.stack.targets(self.case).repeat(self.repeats, 1)

    @property
    def exact(self) -> Answer:
        """The oracle's answer for the batch; its logits are only those of the distinct digits."""
        return self.stack.exact(self.case, self.repeats)

    def loss(self) -> Tensor:
        """Return the mean squared error, with its graph."""
        return F.mse_loss(self.net(self.images), self.targets)

    def step(self, lr: float = LR) -> Tensor:
        """Do the subject's training step (zero gradients, forward, loss, backward, update) and return the loss."""
        return self.stack.subject.train_step(self.net, self.images, self.targets, lr)

    def parameters(self) -> dict[str, Array]:
        """Return copies of the current parameters in float64, by name."""
        return {name: float64(parameter).copy() for name, parameter in self.net.named_parameters()}

    def verify_logits(self, logits: Tensor) -> None:
        """Raise AssertionError unless every row of the logits (batch,10) is within budget."""
        exact = self.exact.logits
        repeated = Budgeted(np.tile(exact.value, (self.repeats, 1)), np.tile(exact.budget, (self.repeats, 1)))
        assert_within_budget(logits, repeated, "logits")

    def verify_loss(self, loss: Tensor) -> None:
        """Raise AssertionError unless the loss is within budget."""
        assert_within_budget(loss, self.exact.loss, "loss")

    def verify_gradients(self) -> None:
        """Raise AssertionError unless the current gradients of the network are within budget."""
        assert_gradients(self.net, self.exact.gradients)

    def verify_step(self, before: dict[str, Array], loss: Tensor, lr: float) -> None:
        """
        Raise AssertionError unless the loss of a training step and the updated parameters are within budget.

        `before` are the parameters before the step. Use a large `lr`: at LR, a missing update would be smaller than the
        rounding of the parameters.
        """
        self.verify_loss(loss)
        exact = oracle.updated_parameters(before, self.exact, lr, self.stack.stored_precision)
        for name, parameter in self.net.named_parameters():
            assert_within_budget(parameter, exact[name], name)
