"""Laws of the forward pass: the logits and the losses agree with the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from lenet import oracle
from lenet.oracle import Budgeted
from properties.case import Case
from properties.comparison import assert_exact, assert_within_budget
from properties.laws.losses import UNEQUAL_LOGITS, cross_entropy_of, labelled_cases
from properties.laws.networks import BATCH_OF_17, BATCH_OF_33, cross_entropy_targets, gradient_of
from properties.stack import Stack, float64
from properties.strategies import LossOptions, cases, loss_options


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


@example(case=UNEQUAL_LOGITS, options=LossOptions(weighted=True, label_smoothing=0.1))
@example(case=UNEQUAL_LOGITS, options=LossOptions(reduction="sum", weighted=True, ignore_index=3))
@example(case=UNEQUAL_LOGITS, options=LossOptions("weights", weighted=True, label_smoothing=0.1))
@example(case=UNEQUAL_LOGITS, options=LossOptions(reduction="none", label_smoothing=0.5, ignore_index=255))
@given(case=labelled_cases(), options=loss_options())
def test_cross_entropy_options_follow_their_formulas(stack: Stack, case: Case, options: LossOptions) -> None:
    """
    Class weights, label smoothing, `ignore_index` and each reduction change the cross-entropy as documented.

    With the weights w of the classes and the smoothing e, the loss of an image with the targets y is the sum over the
    classes of -w * ((1 - e) * y + e / 10) * log_softmax; the loss of an ignored image is 0. The mean divides their sum
    by N, or, with class indices, by the sum of w[y] over the images that are not ignored. "none" gives the loss of each
    image, (N,). https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html Rejects: a weighted mean
    that divides by N, ignored images that count in the mean, smoothing that leaves the true class out.
    """
    loss, logits = cross_entropy_of(stack, case, options), stack.logits(case).detach()

    got = loss(logits)

    rows, weights = float64(logits), loss.weights
    if options.reduction == "none":
        exact = [oracle.loss(rows[[n]], weights[[n]], stack.precision, oracle.cross_entropy) for n in range(len(rows))]
        assert_within_budget(got, stacked(exact), "losses of the images")
    else:
        assert_within_budget(got, oracle.loss(rows, weights, stack.precision, loss.exact), "loss")


def stacked(scalars: list[Budgeted]) -> Budgeted:
    """Return the numbers and their budgets as arrays (N,)."""
    return Budgeted(np.array([each.value for each in scalars]), np.array([each.budget for each in scalars]))


@pytest.mark.parametrize("reduction", ["sum", "none"])
@given(batch=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_mse_loss_without_mean_is_exact_for_integers(stack: Stack, reduction: str, batch: int, seed: int) -> None:
    """
    `F.mse_loss` with `reduction="sum"` is the sum of the squared differences, and with "none" each of them, (N,10).

    Of -1, 0 and 1 these are integers up to 4, and their sum is at most 240, so that every dtype computes them exactly,
    and also the gradients, 2 * difference * upstream gradient. The mean is the default and has laws of its own.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html Rejects: a mean, a sum over the classes only,
    a gradient that is divided by the number of elements.
    """
    random = np.random.RandomState(seed)
    values, wanted, upstream = (random.randint(-1, 2, (batch, 10)).astype(np.float64) for _ in range(3))
    logits, targets = stack.tensor(values).requires_grad_(), stack.tensor(wanted).requires_grad_()
    squares, factors = (values - wanted) ** 2, upstream if reduction == "none" else np.full_like(upstream, 2)

    loss = F.mse_loss(logits, targets, reduction=reduction)
    (loss * stack.tensor(upstream if reduction == "none" else np.asarray(2.0))).sum().backward()

    assert_exact(loss, stack.tensor(squares if reduction == "none" else squares.sum()), "loss")
    gradient = stack.tensor(2 * (values - wanted) * factors)
    assert_exact(gradient_of(logits), gradient, "logits.grad")
    assert_exact(gradient_of(targets), -gradient, "targets.grad")


SMOOTHED, WEIGHTED = LossOptions(label_smoothing=0.1), LossOptions(weighted=True)
MEAN_LOSSES = {"mse": None, "cross-entropy": LossOptions(), "weighted": WEIGHTED, "smoothed": SMOOTHED}
"""The options of the cross-entropy, by the name of the loss in the next law."""


@pytest.mark.parametrize("loss", MEAN_LOSSES)
@pytest.mark.parametrize("count", [600, 4096, 16_384, 32_768])
def test_mean_loss_of_repeated_rows_equals_loss_of_one_row(stack: Stack, loss: str, count: int) -> None:
    """
    The mean loss of thousands of equal rows equals the loss of one row, within the rounding budget.

    Also with class weights, whose sum the mean divides by, and with label smoothing, which adds the losses of all
    classes. The budget is that of a sum of so many terms in the claimed precision, which accumulates in float32 if it
    has 16 bits. Rejects: an accumulator that is too narrow, so that the sum saturates or overflows before the division.
    """
    logits, targets = np.linspace(0, 1, 10)[None], np.eye(10)[:1]
    many_logits, many_targets = (stack.tensor(row).expand(count, 10).contiguous() for row in (logits, targets))
    options, exact_loss = MEAN_LOSSES[loss], oracle.mse

    if options is None:
        mean = F.mse_loss(many_logits, many_targets)
    else:
        class_weights = stack.tensor(options.class_weights(0))
        arguments = {"weight": class_weights} if options.weighted else {}
        mean = F.cross_entropy(
            many_logits, many_targets.argmax(dim=1), label_smoothing=options.label_smoothing, **arguments
        )
        smoothed = (1 - options.label_smoothing) * targets + options.label_smoothing / 10
        targets, exact_loss = smoothed * float64(class_weights) / float64(class_weights)[0], oracle.cross_entropy

    exact = oracle.loss(float64(many_logits[:1]), targets, stack.precision, exact_loss, repeats=count)
    assert_within_budget(mean, exact, "loss")
