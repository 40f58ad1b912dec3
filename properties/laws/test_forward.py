"""Laws of the forward pass: the numbers that the network and its loss give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor

from lenet import oracle
from properties.case import Case
from properties.comparison import assert_within_budget
from properties.stack import Stack, float64
from properties.strategies import cases


@pytest.mark.engine
@given(case=cases())
def test_logits_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    Every logit lies within the rounding budget of its exact value.

    (N, 1, 32, 32) -> (N, 10), for every N, 0 included. Rejects: a missing or moved activation, average pooling,
    another flattening order, a lower precision than the one claimed, a weight off by a few units in 10**5.
    """
    logits = stack.logits(case)

    assert_within_budget(logits, stack.exact(case).logits, "logits")


@pytest.mark.engine
@given(case=cases())
def test_mse_loss_agrees_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    `nn.MSELoss` is the mean of the squared errors over all 10 N of them, NaN for an empty batch.

    Rejects: a sum for the mean, half of it, a division by N instead of 10 N.
    """
    loss = stack.loss(stack.net(case), case)

    assert_within_budget(loss, stack.exact(case).loss, "loss")


@pytest.mark.engine
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@given(case=cases())
def test_cross_entropy_agrees_with_the_oracle(stack: Stack, targets: str, case: Case) -> None:
    """
    `nn.CrossEntropyLoss` is the mean of -log(softmax(logits)) at the labels, or weighted by ten numbers an image.

    Rejects: a softmax taken twice, a sum for the mean, labels shifted by one, a softmax that overflows.
    """
    case, goals = entropy_targets(stack, case, targets)

    loss = F.cross_entropy(stack.logits(case), goals)

    assert_within_budget(loss, stack.exact(case, loss=oracle.cross_entropy).loss, "loss")


def entropy_targets(stack: Stack, case: Case, targets: str) -> tuple[Case, Tensor]:
    """The case with its targets as the labels' indices (N,), or as they are (N,10)."""
    if targets == "probabilities":
        return case, stack.targets(case)
    case = replace(case, targets="one-hot")
    return case, stack.targets(case).argmax(dim=1)


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("count", [600, 4096, 16_384, 32_768])
def test_mean_loss_of_repeated_rows_equals_loss_of_one_row(stack: Stack, loss: str, count: int) -> None:
    """
    Over thousands of equal rows the mean loss is what it is for one of them.

    Within the budget of a sum of so many terms, kept as wide as the dtype claims. Rejects: an accumulator that is
    too narrow, so that the sum stands still or leaves the range before it is divided.
    """
    logits, targets = np.linspace(0, 1, 10)[None], np.eye(10)[:1]
    rows, goals = (stack.tensor(part).expand(count, 10).contiguous() for part in (logits, targets))
    exactly = {"mse": oracle.mse, "cross-entropy": oracle.cross_entropy}[loss]

    mean = F.mse_loss(rows, goals) if loss == "mse" else F.cross_entropy(rows, goals.argmax(dim=1))

    want = oracle.loss(float64(rows[:1]), float64(goals[:1]), stack.precision, exactly, repeats=count)
    assert_within_budget(mean, want, "loss")
