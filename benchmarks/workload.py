"""What is timed: a network and a batch of real digits, of any size, whose right answer the oracle knows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from lenet import oracle
from lenet.oracle import Answer, Array, Bounded
from properties.case import Case
from properties.comparison import assert_gradients, assert_within_budget
from properties.stack import Stack, float64

LR = 2.0**-20
"""Of the training steps that are timed: so small that thousands of them leave the work as it is."""

BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 8192)
"""The sizes that are timed: one image, and then from what a cache holds to what memory is full of."""

DISTINCT = 16
"""Images that differ in a batch; a larger one repeats them, so that the oracle need not compute thousands."""


@dataclass(frozen=True)
class Workload:
    """A batch of `batch` digits, a multiple of DISTINCT where it is larger, for a stack's network."""

    stack: Stack
    batch: int

    @property
    def case(self) -> Case:
        """The digits that differ."""
        return Case(batch=min(self.batch, DISTINCT))

    @property
    def repeats(self) -> int:
        """How often each of them occurs."""
        return self.batch // self.case.batch

    @cached_property
    def net(self) -> nn.Module:
        """The subject's Net with default parameters."""
        return self.stack.net(self.case)

    @cached_property
    def images(self) -> Tensor:
        """(batch,1,32,32)."""
        return self.stack.images(self.case).repeat(self.repeats, 1, 1, 1)

    @cached_property
    def targets(self) -> Tensor:
        """(batch,10)."""
        return self.stack.targets(self.case).repeat(self.repeats, 1)

    @property
    def exact(self) -> Answer:
        """The oracle's answer; its logits are those of the digits that differ."""
        return self.stack.exact(self.case, self.repeats)

    def loss(self) -> Tensor:
        """The mean squared error with its graph."""
        return F.mse_loss(self.net(self.images), self.targets)

    def step(self, lr: float = LR) -> Tensor:
        """The subject's whole training step: gradients to None, forward, loss, backward, update by hand."""
        return self.stack.subject.train_step(self.net, self.images, self.targets, lr)

    def parameters(self) -> dict[str, Array]:
        """Those that the net has now, in float64."""
        return {name: float64(parameter).copy() for name, parameter in self.net.named_parameters()}

    def verify_logits(self, logits: Tensor) -> None:
        """Every row is within budget; raises AssertionError where one is not."""
        exact = self.exact.logits
        every = Bounded(np.tile(exact.value, (self.repeats, 1)), np.tile(exact.budget, (self.repeats, 1)))
        assert_within_budget(logits, every, "logits")

    def verify_loss(self, loss: Tensor) -> None:
        """The loss is within budget."""
        assert_within_budget(loss, self.exact.loss, "loss")

    def verify_gradients(self) -> None:
        """The gradients that the net holds are within budget."""
        assert_gradients(self.net, self.exact.gradients)

    def verify_step(self, before: dict[str, Array], loss: Tensor, lr: float) -> None:
        """
        The loss of a training step, and the parameters that the net holds since, are within budget.

        The step is one of a large `lr`: at LR a missing update would be lost in the parameters' own rounding.
        """
        self.verify_loss(loss)
        exact = oracle.updated(before, self.exact, lr, self.stack.stored)
        for name, parameter in self.net.named_parameters():
            assert_within_budget(parameter, exact[name], name)
