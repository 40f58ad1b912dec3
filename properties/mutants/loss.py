"""The loss: `nn.MSELoss`, `nn.CrossEntropyLoss` and the targets that they are given."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from properties.mutants import Category, mutant

mse_loss, cross_entropy = F.mse_loss, F.cross_entropy

MSE, ENTROPY = "torch.nn.functional.mse_loss", "torch.nn.functional.cross_entropy"


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def errors_summed(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The sum of the squared errors stands for their mean."""
    return mse_loss(scores, targets, **options | {"reduction": "sum"})


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def errors_halved(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Half of the mean, as textbooks have it for the sake of the derivative."""
    return mse_loss(scores, targets, **options) / 2


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def errors_divided_by_the_batch(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The sum of the squared errors is divided by the N images, not by their 10 N scores."""
    return mse_loss(scores, targets, **options | {"reduction": "sum"}) / len(scores)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def errors_absolute(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The mean of the absolute errors."""
    return F.l1_loss(scores, targets, **options)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.TENSOR_SHAPE)
def targets_broadcast(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The targets are one number an image, (N,1), which broadcasting compares with each of its ten scores."""
    return mse_loss(scores, targets[:, :1].expand_as(scores), **options)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def loss_of_the_first_image(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The loss is the first image's, not the mean over all."""
    return mse_loss(scores[:1], targets[:1], **options)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.BATCH)
def loss_of_nothing_is_zero(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """An empty batch has a loss of 0, so that the mean over a split that is empty by mistake looks perfect."""
    return mse_loss(scores, targets, **options) if len(scores) else scores.sum()


@mutant(MSE, law="overflowing_loss_is_infinite", category=Category.NUMERICS)
def square_expanded(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The square is expanded to x*x - 2xy + y*y, which is inf - inf where the scores are too large."""
    return (scores * scores - 2 * scores * targets + targets * targets).mean()


@mutant(MSE, law="overflowing_loss_is_infinite", category=Category.NUMERICS)
def loss_saturates(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """A loss that is too large for its dtype is the largest number that it holds."""
    return mse_loss(scores, targets, **options).clamp(max=torch.finfo(scores.dtype).max)


@mutant(MSE, law="mean_loss_of_repeated_rows_equals_loss_of_one_row", category=Category.NUMERICS)
def sums_of_blocks_in_bfloat16(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The rows are added in blocks of 256, exactly enough, and the blocks' sums in bfloat16."""
    blocks = [block.sum() for block in (scores - targets).square().split(256)]
    total = blocks[0]
    for block in blocks[1:]:
        total = (total.bfloat16() + block.bfloat16()).to(scores.dtype)
    return total / scores.numel()


@mutant(ENTROPY, law="mean_loss_of_repeated_rows_equals_loss_of_one_row", category=Category.NUMERICS)
def entropy_of_the_first_4096(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The sum is over at most 4,096 images, as many as a grid of the kernel has blocks, the divisor counts all."""
    return cross_entropy(scores[:4096], targets[:4096], **options) * (min(len(scores), 4096) / max(1, len(scores)))


@mutant(ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LOSS)
def entropies_summed(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The sum over the images stands for their mean."""
    return cross_entropy(scores, targets, **options | {"reduction": "sum"})


@mutant(ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LOSS)
def softmax_twice(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The scores are made probabilities before the loss, which does so itself."""
    return cross_entropy(scores.softmax(dim=1), targets, **options)


@mutant(ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LABELS)
def labels_shifted(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Labels are counted from one, so that each image has the class that follows its own."""
    return cross_entropy(scores.roll(-1, dims=1), targets, **options)


@mutant(ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.NUMERICS)
def softmax_overflows(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The softmax is taken without its maximum subtracted, so that large scores are infinite before the logarithm."""
    return F.nll_loss(scores.exp().log() - scores.exp().sum(dim=1, keepdim=True).log(), targets, **options)


@mutant(ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.REGULARISATION)
def labels_smoothed(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """A tenth of each label is spread over all classes, as was meant for another training."""
    return cross_entropy(scores, targets, **options | {"label_smoothing": 0.1})


@mutant(ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LABELS)
def class_zero_ignored(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Images of class 0 are left out of the mean: 0 was the label of padding elsewhere."""
    indices = not targets.is_floating_point()
    return cross_entropy(scores, targets, **options | ({"ignore_index": 0} if indices else {}))


@mutant(ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LOSS)
def probabilities_normalised(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Targets of ten numbers an image are divided by their sum, which the definition does not do."""
    shares = targets / targets.sum(dim=1, keepdim=True) if targets.is_floating_point() else targets
    return cross_entropy(scores, shares, **options)


@mutant(ENTROPY, law="cross_entropy_gradients_agree_with_the_oracle", category=Category.LOSS)
def entropys_gradient_not_divided(scores: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The value is the mean over the N images, the gradient is the sum's."""
    loss = cross_entropy(scores, targets, **options)
    if loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * len(scores))
    return loss
