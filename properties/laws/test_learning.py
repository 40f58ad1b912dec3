"""The law of training as a whole: on real digits, the network learns what the oracle learns."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
import torch

from lenet import digits, oracle
from lenet.digits import Digits, one_hot
from lenet.oracle import THRESHOLD, Budgeted
from lenet.training import Settings, batches, train
from properties.case import Case
from properties.ledger import current_ledger
from properties.stack import Stack, float64, precision_of, rounded

SETTINGS = Settings(epochs=2)
INITIAL = Case(seed=0)  # the case whose parameters training starts from


@pytest.mark.engine
def test_training_on_digits_matches_the_oracle(stack: Stack) -> None:
    """
    After training on real digits the network predicts the same classes as the oracle, and its loss has decreased.

    `train_step` and the oracle, in float64, train from the same initial parameters on the same batches. Rounding errors
    grow over the 180 steps, so a test digit is compared only if the oracle's two largest logits differ by more than 2 *
    THRESHOLD times the drift of the logits between the oracle's run and perturbed runs; these must be more than half of
    the digits. The loss must decrease in every epoch. The law is skipped as inconclusive in 16 bits, where rounding
    leaves 39% of the digits comparable in float16, and none in bfloat16. Rejects: a fault that shows only after many
    steps.
    """
    if stack.dtype in (torch.float16, torch.bfloat16):
        pytest.skip("inconclusive: in 16 bits, the rounding errors of so many steps change most predictions")
    data = digits_on(stack, digits.load())
    net = stack.net(INITIAL)

    history = [
        progress.history[-1]
        for progress in train(net, data, SETTINGS, step=stack.subject.train_step)
        if progress.step == 0
    ]

    assert decreases([epoch.loss for epoch in history]), f"the loss does not decrease in every epoch: {history}"
    exact, oracle_losses = oracle_run(stack.dtype)
    largest = np.sort(exact.value, axis=1)[:, -2:]
    comparable = largest[:, 1] - largest[:, 0] > 2 * THRESHOLD * exact.budget[:, 0]
    assert comparable.mean() > 0.5, (
        f"inconclusive: only {comparable.mean():.0%} of the oracle's predictions do not depend on rounding"
    )
    labels = data.test_labels.cpu().numpy()
    predicted = float64(net(data.test_images)).argmax(axis=1)
    expected = exact.value.argmax(axis=1)
    wrong = comparable & (predicted != expected)
    note = (
        f"test accuracy {(predicted == labels).mean():.1%} after {SETTINGS.epochs} epochs, "
        f"the oracle's {(expected == labels).mean():.1%}; "
        f"{comparable.mean():.1%} of the predictions compared, the others depend on rounding"
    )
    current_ledger().notes.append(note)
    assert not wrong.any(), f"{wrong.sum()} of {comparable.sum()} compared predictions differ from the oracle's; {note}"
    assert decreases(oracle_losses), "the oracle's own loss does not decrease in every epoch: check the settings"


def digits_on(stack: Stack, data: Digits) -> Digits:
    """Return the data on the stack's device with a copy of the images in its dtype, which a subject cannot corrupt."""
    parts = data.train_images, data.test_images
    images, test_images = (part.to(stack.device, stack.dtype, copy=True) for part in parts)
    return Digits(data.name, images, data.train_labels.to(stack.device), test_images, data.test_labels.to(stack.device))


@lru_cache
def oracle_run(dtype: torch.dtype) -> tuple[Budgeted, list[float]]:
    """Train the oracle; return its logits for the test digits and its mean loss in each epoch."""
    data, precision = digits.load(), precision_of(dtype)
    images, targets = float64(data.train_images.to(dtype)), float64(one_hot(data.train_labels))
    parameters = {name: float64(rounded(value, dtype)) for name, value in INITIAL.parameters(precision).items()}
    order = [batches(len(images), SETTINGS, epoch) for epoch in range(SETTINGS.epochs)]
    steps = ((images[batch], targets[batch]) for epoch in order for batch in epoch)
    trained, losses = oracle.train(parameters, steps, SETTINGS.lr, precision)
    epochs = [float(np.mean(part)) for part in np.split(np.array(losses), SETTINGS.epochs)]
    return oracle.predict(trained, float64(data.test_images.to(dtype))), epochs


def decreases(losses: list[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(losses))
