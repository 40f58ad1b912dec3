"""Laws of the forward pass: the numbers that the network and its loss give."""

from __future__ import annotations

from hypothesis import given

from properties.closeness import assert_within_budget
from properties.stack import Stack
from properties.strategies import Case, cases


@given(case=cases())
def test_logits_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    Every logit lies within the rounding budget of its exact value.

    (N, 1, 32, 32) -> (N, 10), for every N, 0 included. Rejects: a missing or moved activation, average pooling,
    another flattening order, a lower precision than the one claimed, a weight off by a few units in 10**5.
    """
    logits = stack.logits(case)

    assert_within_budget(logits, stack.exact(case).logits, "logits")


@given(case=cases())
def test_mse_loss_agrees_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    `nn.MSELoss` is the mean of the squared errors over all 10 N of them, NaN for an empty batch.

    Rejects: a sum for the mean, half of it, a division by N instead of 10 N.
    """
    loss = stack.loss(stack.net(case), case)

    assert_within_budget(loss, stack.exact(case).loss, "loss")
