"""The other optimizer and the oracle are compared under equal conditions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lenet import digits, oracle
from lenet.testing import SETTINGS, four_batches, trained
from lenet.training import batches, initial_net
from lenet.training_comparison import comparisons


@pytest.mark.slow
def test_comparisons_start_from_the_same_parameters_and_use_the_same_batches() -> None:
    data = four_batches()
    parameters = {name: p.detach().double().numpy() for name, p in initial_net(SETTINGS).named_parameters()}
    images, targets = data.train_images.double().numpy(), digits.one_hot(data.train_labels).double().numpy()
    order = [batch for epoch in range(2) for batch in batches(len(images), SETTINGS, epoch)]
    steps = ((images[batch], targets[batch]) for batch in order)
    by_oracle, losses = oracle.train(parameters, steps, SETTINGS.lr, oracle.PRECISIONS["float32"])
    predicted = oracle.predict(by_oracle, data.test_images.double().numpy()).value.argmax(axis=1)

    compared = comparisons(data, SETTINGS)

    assert compared.keys() == {"optim.SGD", "the oracle"}
    assert compared["optim.SGD"] == trained(replace(SETTINGS, optimizer="sgd"), data)[1].history
    assert [len(batch) for batch in order] == [64, 64, 64, 8] * 2
    epochs = [float(np.average(part, weights=[64, 64, 64, 8])) for part in (losses[:4], losses[4:])]
    assert [epoch.loss for epoch in compared["the oracle"]] == epochs
    assert compared["the oracle"][-1].accuracy == (predicted == data.test_labels.numpy()).mean()
    assert comparisons(data, replace(SETTINGS, optimizer="sgd")).keys() == {"by hand", "the oracle"}
