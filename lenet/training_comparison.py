"""The loss and accuracy that the other optimizer and the oracle reach, from the same parameters on the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import nn
from tqdm import tqdm

from lenet import oracle
from lenet.digits import Digits, one_hot
from lenet.oracle import PRECISIONS
from lenet.training import Epoch, Settings, batches, initial_net, train

OPTIMIZER_LABELS = {"manual": "by hand", "sgd": "optim.SGD"}
"""The names of the optimizers of `Settings` in reports."""

ORACLE_BATCH = 256
"""Test digits that the oracle predicts at a time; it keeps about 1.5 MB for each."""


def comparisons(data: Digits, settings: Settings) -> dict[str, list[Epoch]]:
    """Return the epochs of a run with the other optimizer and of the oracle's training, by label."""
    other: Literal["manual", "sgd"] = "manual" if settings.optimizer == "sgd" else "sgd"
    *_, last = train(initial_net(settings), data, replace(settings, optimizer=other))
    by_oracle = list(oracle_epochs(initial_net(settings), data, settings))
    return {OPTIMIZER_LABELS[other]: last.history, "the oracle": by_oracle}


def oracle_epochs(net: nn.Module, data: Digits, settings: Settings) -> Iterator[Epoch]:
    """Train by the oracle, in float64, from the parameters of `net`, which stays unchanged; yields each epoch."""
    parameters = {name: parameter.detach().double().numpy() for name, parameter in net.named_parameters()}
    images, targets = data.train_images.double().numpy(), one_hot(data.train_labels).double().numpy()
    for epoch in range(settings.epochs):
        indices = batches(len(images), settings, epoch)
        shown = tqdm(indices, f"the oracle's epoch {epoch + 1}/{settings.epochs}", leave=False, disable=None)
        steps = ((images[batch], targets[batch]) for batch in shown)
        trained, losses = oracle.train(parameters, steps, settings.lr, PRECISIONS["float32"])
        parameters = {name: replicas[0] for name, replicas in trained.items()}
        parts = (part.double().numpy() for part in data.test_images.split(ORACLE_BATCH))
        predicted = np.concatenate([oracle.predict(trained, part).value.argmax(axis=1) for part in parts])
        loss = float(np.average(losses, weights=[len(batch) for batch in indices]))
        yield Epoch(loss, float((predicted == data.test_labels.numpy()).mean()))
