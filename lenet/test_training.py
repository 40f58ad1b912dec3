"""The loop of training: its batches, what it reports, and that it can be resumed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lenet import Net, training
from lenet.testing import SETTINGS, first_digits, four_batches, same_parameters, trained
from lenet.training import MAX_SEED, SGD_FORMS, Progress, Settings, initial_net, train


def test_manual_and_optimizer_updates_train_identically_at_a_power_of_two() -> None:
    by_hand, history = trained(SETTINGS, four_batches())
    by_optimizer, other = trained(replace(SETTINGS, optimizer="sgd"), four_batches())

    assert same_parameters(by_hand, by_optimizer)
    assert history == other


def test_different_seeds_train_different_networks() -> None:
    data = four_batches()

    assert not same_parameters(trained(SETTINGS, data)[0], trained(replace(SETTINGS, seed=1), data)[0])


def test_batches_contain_every_image_once() -> None:
    indices = training.batches(100, Settings(batch=32), epoch=3)

    assert [len(batch) for batch in indices] == [32, 32, 32, 4]
    assert sorted(int(i) for batch in indices for i in batch) == list(range(100))


def test_epoch_loss_is_the_mean_over_its_images() -> None:
    """10 images in batches of 4, 4 and 2, whose losses are 1, 2 and 3; the sum starts at zero in the next epoch."""
    losses = iter([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    settings = Settings(epochs=2, batch=4)

    *_, progress = train(Net(), first_digits(10), settings, step=lambda *_: torch.tensor(next(losses)))

    assert [epoch.loss for epoch in progress.history] == [(4 * 1 + 4 * 2 + 2 * 3) / 10] * 2
    assert (progress.step, progress.loss_sum) == (0, 0.0)


def test_accuracy_is_the_share_of_correctly_classified_images() -> None:
    def logits(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, -4.0], [0.0, 0.0, 1.0], [5.0, 6.0, 0.0]])

    net = Net()
    net.forward = logits  # type: ignore[method-assign]

    assert training.accuracy(net, torch.zeros(4), torch.tensor([1, 0, 2, 0])) == 0.75


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_stopped_run_resumes_bit_for_bit(stop: int) -> None:
    """Stopped in the first epoch of 4 batches, just before its end, at its end, and just after."""
    data = four_batches()
    uninterrupted, history = trained(SETTINGS, data)
    net, progress = initial_net(SETTINGS), Progress()
    for _, _ in zip(range(stop), train(net, data, SETTINGS, progress), strict=False):
        pass

    for _ in train(net, data, SETTINGS, progress):
        pass

    assert same_parameters(net, uninterrupted)
    assert progress == history


def test_each_form_of_sgd_is_selected_by_its_own_argument() -> None:
    chosen = {form: [name for name, choice in arguments.items() if choice] for form, arguments in SGD_FORMS.items()}

    assert chosen == {"for-loop": [], "foreach": ["foreach"], "fused": ["fused"]}
    assert SGD_FORMS["for-loop"] == {"foreach": False, "fused": False}


def test_max_seed_is_the_largest_seed_of_numpy() -> None:
    assert len(training.batches(10, Settings(seed=MAX_SEED), epoch=0)) == 1
    with pytest.raises(ValueError, match="Seed"):
        training.batches(10, Settings(seed=MAX_SEED + 1), epoch=0)
