"""The training step: the order of its six parts, and missing parts."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from lenet import sgd_update, train_step
from properties.mutants import Category, mutant

STEP = "training_step_agrees_with_the_oracle"


@mutant("train_step", law=STEP, category=Category.API)
def zero_grad_missing(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """`zero_grad` is missing, so that the gradients of earlier steps are added."""
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.API)
def zero_grad_after_backward(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Gradients are zeroed between the backward pass and the update."""
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    net.zero_grad()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.API)
def zero_grad_only_after_update(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Gradients are zeroed only after the update, so that gradients from before the first step are added."""
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    sgd_update(net.parameters(), lr)
    net.zero_grad()
    return loss.detach()


@mutant("train_step", law="training_in_any_order_gives_the_expected_state", category=Category.API)
def gradients_cleared_after_update(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Gradients are also cleared after the update, so that the caller cannot read them."""
    loss = train_step(net, images, targets, lr)
    net.zero_grad()
    return loss


@mutant("train_step", law=STEP, category=Category.API)
def backward_called_twice(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """`backward` is called twice, which doubles the gradients."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    loss.backward(retain_graph=True)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.API)
def update_before_backward(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The update uses the gradients of the previous step."""
    loss = F.mse_loss(net(images), targets)
    before = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    loss.backward()
    for parameter, gradient in zip(net.parameters(), before, strict=True):
        if gradient is not None:
            parameter.data.sub_(lr * gradient)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.PROCESS)
def update_missing(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The gradients are computed, but the update is missing."""
    return train_step(net, images, targets, lr, update=lambda parameters, lr: None)


@mutant("train_step", law=STEP, category=Category.PROCESS)
def update_applied_twice(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The same gradients are applied twice, by the manual update and by an optimizer that was not removed."""
    loss = train_step(net, images, targets, lr)
    sgd_update(net.parameters(), lr)
    return loss


@mutant("train_step", law=STEP, category=Category.PROCESS)
def fc3_not_updated(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """fc3 is not updated."""
    return train_step(net, images, targets, lr, update=lambda parameters, lr: sgd_update([*parameters][:-2], lr))


@mutant("train_step", law=STEP, category=Category.PROCESS)
def only_weights_updated(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Only the weights are updated, not the biases."""
    return train_step(net, images, targets, lr, update=lambda parameters, lr: sgd_update([*parameters][::2], lr))


@mutant("train_step", law="training_in_any_order_gives_the_expected_state", category=Category.PROCESS)
def frozen_parameters_trained(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The step calls `requires_grad_()` on all parameters first, which also trains frozen ones."""
    net.requires_grad_()
    return train_step(net, images, targets, lr)


@mutant("train_step", law=STEP, category=Category.LOSS)
def loss_after_update(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The returned loss is computed after the update instead of before."""
    train_step(net, images, targets, lr)
    return F.mse_loss(net(images), targets).detach()


@mutant("train_step", law=STEP, category=Category.API)
def loss_returned_with_graph(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The returned loss is not detached, so that keeping it keeps its graph in memory."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss


@mutant("train_step", law=STEP, category=Category.LABELS)
def targets_shifted_by_one_image(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The targets are shifted by one image, as if they had been shuffled independently of the images."""
    return train_step(net, images, targets.roll(1, dims=0), lr)


@mutant("train_step", law=STEP, category=Category.CLIPPING)
def gradients_clipped(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The gradients are clipped to a global norm of 1 before the update."""

    def update(parameters: object, lr: float) -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        sgd_update(net.parameters(), lr)

    return train_step(net, images, targets, lr, update=update)


def accumulate_and_update(
    net: nn.Module, batches: list[tuple[Tensor, Tensor]], weights: list[float], lr: float
) -> None:
    """Take one step with the sum of the micro-batches' gradients, each multiplied by its weight."""
    net.zero_grad()
    for (images, targets), weight in zip(batches, weights, strict=True):
        (F.mse_loss(net(images), targets) * weight).backward()
    sgd_update(net.parameters(), lr)


def split_in_halves(images: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split a batch in two; the first half is larger if the batch size is odd."""
    size = max(1, -(-len(images) // 2))
    return [*zip(images.split(size), targets.split(size), strict=True)]


@mutant("train_step", law=STEP, category=Category.BATCH)
def last_micro_batch_ignored(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The step accumulates gradients over two halves of the batch, but leaves out the second."""
    loss, batches = F.mse_loss(net(images), targets), split_in_halves(images, targets)
    accumulate_and_update(net, batches[:1], [len(batches[0][0]) / max(1, len(images))], lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.BATCH)
def micro_batch_losses_summed(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The mean losses of two micro-batches are added, not averaged (huggingface/transformers#34191)."""
    loss, batches = F.mse_loss(net(images), targets), split_in_halves(images, targets)
    accumulate_and_update(net, batches, [1.0] * len(batches), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.BATCH)
def micro_batches_weighted_equally(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Two micro-batches have equal weights even if their sizes differ (huggingface/transformers#34191)."""
    loss, batches = F.mse_loss(net(images), targets), split_in_halves(images, targets)
    accumulate_and_update(net, batches, [1 / len(batches)] * len(batches), lr)
    return loss.detach()


@mutant("train_step", law="every_image_has_the_same_weight_in_training_step", category=Category.BATCH)
def micro_batches_of_four_averaged(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The means of micro-batches of four images are averaged, also if the last has fewer."""
    loss, batches = F.mse_loss(net(images), targets), [*zip(images.split(4), targets.split(4), strict=True)]
    accumulate_and_update(net, batches, [1 / len(batches)] * len(batches), lr)
    return loss.detach()


@mutant("train_step", law="every_image_has_the_same_weight_in_training_step", category=Category.BATCH)
def batch_size_rounded_up_to_eight(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """From nine images on, the sum of the gradients is divided by the next multiple of eight, as if padded."""
    padded = -(-len(images) // 8) * 8 if len(images) > 8 else max(1, len(images))
    loss = F.mse_loss(net(images), targets)
    accumulate_and_update(net, [(images, targets)], [len(images) / padded], lr)
    return loss.detach()


steps: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@mutant("train_step", law="training_on_digits_matches_the_oracle", category=Category.LEARNING_RATE)
def learning_rate_decays_per_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The learning rate is divided by 10 every 30 steps: a schedule meant for epochs counts steps."""
    steps[net] = steps.get(net, -1) + 1
    return train_step(net, images, targets, lr * 0.1 ** (steps[net] // 30))
