"""The law of the whole: trained on real digits, the network learns what the oracle learns."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
import torch

from lenet import digits, oracle
from lenet.digits import Digits, one_hot
from lenet.oracle import THRESHOLD, Bounded
from lenet.training import Settings, batches, train
from properties.case import Case
from properties.comparison import ledger
from properties.stack import Stack, float64, precision_of, rounded

SETTINGS = Settings(epochs=2)
CASE = Case(seed=0)  # the initial parameters


@pytest.mark.engine
def test_training_on_digits_matches_the_oracle(stack: Stack) -> None:
    """
    Trained on real digits by `train_step`, the loss falls in every epoch, and the oracle tells the test digits alike.

    The oracle trains in float64 from the same parameters on the same batches. Thousands of steps carry rounding far,
    so a digit counts where the oracle's two best scores are further apart than rounding carries them: twice THRESHOLD
    times the drift between the oracle's run and the same runs disturbed. Where most digits do not count the law says
    nothing, as in 16 bits: 39 % of them would in float16, none in bfloat16. Rejects: whatever goes wrong only in the
    long run.
    """
    if stack.dtype in (torch.float16, torch.bfloat16):
        pytest.skip("inconclusive: over so many steps rounding in 16 bits decides most digits")
    data = _on(stack, digits.load())
    net = stack.net(CASE)
    exact, losses = _oracle_run(stack.dtype)
    best = np.sort(exact.value, axis=1)
    decided = best[:, -1] - best[:, -2] > 2 * THRESHOLD * exact.budget[:, 0]
    if decided.mean() <= 0.5:
        pytest.skip(f"inconclusive: over so many steps rounding decides all but {decided.mean():.0%} of the digits")

    history = [
        progress.history[-1]
        for progress in train(net, data, SETTINGS, step=stack.subject.train_step)
        if progress.step == 0
    ]

    labels = data.test_labels.cpu().numpy()
    got = float64(net(data.test_images)).argmax(axis=1)
    wrong = decided & (got != exact.value.argmax(axis=1))
    ledger.notes.append(
        f"after {SETTINGS.epochs} epochs {(got == labels).mean():.1%} of the test digits are told right, "
        f"{(exact.value.argmax(axis=1) == labels).mean():.1%} by the oracle; "
        f"{decided.mean():.1%} of them are decided in spite of rounding"
    )
    assert not wrong.any(), (
        f"{wrong.sum()} of {decided.sum()} decided test digits are told otherwise; {ledger.notes[-1]}"
    )
    assert _falls([epoch.loss for epoch in history]), f"the loss does not fall: {history}"
    assert _falls(losses), "the oracle's own loss does not fall: its settings are at fault"


def _on(stack: Stack, data: Digits) -> Digits:
    parts = data.train_images, data.test_images
    images, test_images = (part.to(stack.device, stack.dtype, copy=True) for part in parts)  # whoever writes to them
    return Digits(data.name, images, data.train_labels.to(stack.device), test_images, data.test_labels.to(stack.device))


@lru_cache
def _oracle_run(dtype: torch.dtype) -> tuple[Bounded, list[float]]:
    """The logits of the test digits after the oracle's own training, and its mean loss in each epoch."""
    data, precision = digits.load(), precision_of(dtype)
    images, targets = float64(data.train_images.to(dtype)), float64(one_hot(data.train_labels))
    parameters = {name: float64(rounded(value, dtype)) for name, value in CASE.parameters(precision).items()}
    order = [batches(len(images), SETTINGS, epoch) for epoch in range(SETTINGS.epochs)]
    steps = ((images[batch], targets[batch]) for epoch in order for batch in epoch)
    trained, losses = oracle.train(parameters, steps, SETTINGS.lr, precision)
    epochs = [float(np.mean(part)) for part in np.split(np.array(losses), SETTINGS.epochs)]
    return oracle.predict(trained, float64(data.test_images.to(dtype))), epochs


def _falls(losses: list[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(losses))
