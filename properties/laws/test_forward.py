"""Laws of the forward pass: the logits and the losses agree with the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import example, given

from lenet import oracle
from properties.case import Case
from properties.comparison import assert_within_budget
from properties.laws.networks import BATCH_OF_17, BATCH_OF_33, cross_entropy_targets
from properties.stack import Stack, float64
from properties.strategies import cases


@pytest.mark.engine
@example(case=Case())
@example(case=BATCH_OF_17)
@example(case=BATCH_OF_33)
@given(case=cases())
def test_logits_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    Every logit is within the rounding budget of its exact value.

    (N, 1, 32, 32) -> (N, 10), for every N, including 0. Rejects: a missing or moved activation, average pooling,
    another flattening order, a lower precision than the one claimed, a weight with a relative error of a few 1e-5.
    """
    logits = stack.logits(case)

    assert_within_budget(logits, stack.exact(case).logits, "logits")


@pytest.mark.engine
@example(case=Case())
@example(case=Case(batch=0))
@example(case=Case(images="huge", batch=2))
@example(case=BATCH_OF_17)
@example(case=BATCH_OF_33)
@given(case=cases())
def test_mse_loss_agrees_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    The loss of `nn.MSELoss` is the mean of all 10 N squared differences, within the rounding budget.

    It is NaN for an empty batch. Rejects: a sum instead of the mean, half the mean, a
    division by N instead of 10 N.
    """
    loss = stack.loss(stack.net(case), case)

    assert_within_budget(loss, stack.exact(case).loss, "loss")


@pytest.mark.engine
@pytest.mark.parametrize("targets", ["indices", "weights"])
@example(case=Case())
@example(case=BATCH_OF_17)
@example(case=BATCH_OF_33)
@given(case=cases())
def test_cross_entropy_agrees_with_the_oracle(stack: Stack, targets: str, case: Case) -> None:
    """
    The cross-entropy is the mean over images of -sum(targets * log_softmax(logits)), within the rounding budget.

    As `nn.CrossEntropyLoss` defines it, with class indices (N,) or ten weights per image (N,10) as targets. The weights
    are arbitrary, also negative; PyTorch's documentation calls them class probabilities. Rejects: a softmax applied
    twice, a sum instead of the mean, labels shifted by one, a softmax that overflows.
    """
    case, loss_targets = cross_entropy_targets(stack, case, targets)

    loss = F.cross_entropy(stack.logits(case), loss_targets)

    assert_within_budget(loss, stack.exact(case, loss=oracle.cross_entropy).loss, "loss")


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("count", [600, 4096, 16_384, 32_768])
def test_mean_loss_of_repeated_rows_equals_loss_of_one_row(stack: Stack, loss: str, count: int) -> None:
    """
    The mean loss of thousands of equal rows equals the loss of one row, within the rounding budget.

    The budget is that of a sum of so many terms in the claimed precision, which accumulates in float32 if it has 16
    bits. Rejects: an accumulator that is too narrow, so that the sum saturates or overflows before the division.
    """
    logits, targets = np.linspace(0, 1, 10)[None], np.eye(10)[:1]
    many_logits, many_targets = (stack.tensor(row).expand(count, 10).contiguous() for row in (logits, targets))
    exact_loss = {"mse": oracle.mse, "cross-entropy": oracle.cross_entropy}[loss]

    if loss == "mse":
        mean = F.mse_loss(many_logits, many_targets)
    else:
        mean = F.cross_entropy(many_logits, many_targets.argmax(dim=1))

    exact = oracle.loss(float64(many_logits[:1]), float64(many_targets[:1]), stack.precision, exact_loss, repeats=count)
    assert_within_budget(mean, exact, "loss")
