"""The training step: the order of its six parts, and what is left out."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from lenet import sgd_update, train_step
from properties.mutants import Category, mutant

STEP = "training_step_agrees_with_the_oracle"


@mutant("train_step", law=STEP, category=Category.API)
def zero_grad_missing(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The gradients of the step before are still there, and are added to."""
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.API)
def zero_grad_after_backward(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The gradients are zeroed between backward and update."""
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    net.zero_grad()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.API)
def zero_grad_at_the_end(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The gradients are zeroed after the update alone, so that those from before the first step count."""
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    sgd_update(net.parameters(), lr)
    net.zero_grad()
    return loss.detach()


@mutant("train_step", law="training_in_any_order_matches_the_model", category=Category.API)
def zero_grad_at_the_end_too(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The gradients that the step has used are gone when it returns."""
    loss = train_step(net, images, targets, lr)
    net.zero_grad()
    return loss


@mutant("train_step", law=STEP, category=Category.API)
def two_backwards(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Backward is called twice, and its gradients count twice."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    loss.backward(retain_graph=True)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.API)
def update_before_backward(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The update takes the gradients of the step before."""
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
    """The gradients are there, and no update follows."""
    return train_step(net, images, targets, lr, update=lambda parameters, lr: None)


@mutant("train_step", law=STEP, category=Category.PROCESS)
def update_twice(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The same gradients are subtracted twice, by hand and by an optimizer that nobody took out."""
    loss = train_step(net, images, targets, lr)
    sgd_update(net.parameters(), lr)
    return loss


@mutant("train_step", law=STEP, category=Category.PROCESS)
def last_layer_not_updated(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """fc3 stays as it was initialized."""
    return train_step(net, images, targets, lr, update=lambda parameters, lr: sgd_update([*parameters][:-2], lr))


@mutant("train_step", law=STEP, category=Category.PROCESS)
def biases_not_updated(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The list of what is trained has the weights alone."""
    return train_step(net, images, targets, lr, update=lambda parameters, lr: sgd_update([*parameters][::2], lr))


@mutant("train_step", law="training_in_any_order_matches_the_model", category=Category.PROCESS)
def frozen_layers_trained(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The step begins by having every parameter require its gradient, also one that was frozen."""
    net.requires_grad_()
    return train_step(net, images, targets, lr)


@mutant("train_step", law=STEP, category=Category.LOSS)
def loss_after_the_update(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The loss is that of the parameters after the update."""
    train_step(net, images, targets, lr)
    return F.mse_loss(net(images), targets).detach()


@mutant("train_step", law=STEP, category=Category.API)
def loss_with_its_graph(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The loss is returned with its graph, which lives as long as the loss is kept in a list."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss


@mutant("train_step", law=STEP, category=Category.LABELS)
def targets_of_other_images(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The targets are moved on by one image, as if they had been shuffled on their own."""
    return train_step(net, images, targets.roll(1, dims=0), lr)


@mutant("train_step", law=STEP, category=Category.CLIPPING)
def gradients_clipped(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """All gradients together are clipped to a norm of 1 before the update."""

    def update(parameters: object, lr: float) -> None:
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        sgd_update(net.parameters(), lr)

    return train_step(net, images, targets, lr, update=update)


def by_micro_batches(net: nn.Module, batches: list[tuple[Tensor, Tensor]], shares: list[float], lr: float) -> None:
    """A step by the sum of the micro-batches' gradients, each times its share."""
    net.zero_grad()
    for (images, targets), share in zip(batches, shares, strict=True):
        (F.mse_loss(net(images), targets) * share).backward()
    sgd_update(net.parameters(), lr)


def halves(images: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A batch in two, the first of which is the larger where it is odd."""
    size = max(1, -(-len(images) // 2))
    return [*zip(images.split(size), targets.split(size), strict=True)]


@mutant("train_step", law=STEP, category=Category.BATCH)
def last_micro_batch_lost(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Of the halves that a batch is gone through in, the second gives no gradient."""
    loss, batches = F.mse_loss(net(images), targets), halves(images, targets)
    by_micro_batches(net, batches[:1], [len(batches[0][0]) / max(1, len(images))], lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.BATCH)
def micro_batches_summed(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The means over both halves are added without their weights of one half (huggingface/transformers#34191)."""
    loss, batches = F.mse_loss(net(images), targets), halves(images, targets)
    by_micro_batches(net, batches, [1.0] * len(batches), lr)
    return loss.detach()


@mutant("train_step", law=STEP, category=Category.BATCH)
def micro_batches_count_alike(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The mean over both halves' means, also where one has an image more (huggingface/transformers#34191)."""
    loss, batches = F.mse_loss(net(images), targets), halves(images, targets)
    by_micro_batches(net, batches, [1 / len(batches)] * len(batches), lr)
    return loss.detach()


steps: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@mutant("train_step", law="training_on_digits_matches_the_oracle", category=Category.LEARNING_RATE)
def rate_falls_unasked(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The learning rate is divided by 10 every 30 steps of a network, a schedule for epochs that counts steps."""
    steps[net] = steps.get(net, -1) + 1
    return train_step(net, images, targets, lr * 0.1 ** (steps[net] // 30))
