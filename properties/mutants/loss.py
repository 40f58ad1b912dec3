"""The loss: `nn.MSELoss`, `nn.CrossEntropyLoss` and their targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from properties.mutants import Category, mutant

mse_loss, cross_entropy = F.mse_loss, F.cross_entropy

MSE, CROSS_ENTROPY = "torch.nn.functional.mse_loss", "torch.nn.functional.cross_entropy"


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def mse_summed(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The MSE loss is the sum of the squared errors instead of their mean."""
    return mse_loss(logits, targets, **options | {"reduction": "sum"})


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def mse_halved(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The MSE loss is half of the mean, a textbook convention that simplifies the derivative."""
    return mse_loss(logits, targets, **options) / 2


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def mse_divided_by_batch_size(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The sum of the squared errors is divided by the N images instead of by the 10 N logits."""
    return mse_loss(logits, targets, **options | {"reduction": "sum"}) / len(logits)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def absolute_errors(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The loss is the mean of the absolute errors instead of the squared errors."""
    return F.l1_loss(logits, targets, **options)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.TENSOR_SHAPE)
def targets_broadcast(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The targets have shape (N,1), so that broadcasting compares one target with all ten logits of an image."""
    return mse_loss(logits, targets[:, :1].expand_as(logits), **options)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.LOSS)
def mse_of_first_image(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The loss is that of the first image instead of the mean over all images."""
    return mse_loss(logits[:1], targets[:1], **options)


@mutant(MSE, law="mse_loss_agrees_with_the_oracle", category=Category.BATCH)
def empty_batch_loss_is_zero(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The loss of an empty batch is 0 instead of NaN, so that the loss on an accidentally empty split looks perfect."""
    return mse_loss(logits, targets, **options) if len(logits) else logits.sum()


@mutant(MSE, law="overflowing_loss_is_infinite", category=Category.NUMERICS)
def mse_square_expanded(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The square is expanded to x*x - 2xy + y*y, which is inf - inf for large logits."""
    return (logits * logits - 2 * logits * targets + targets * targets).mean()


@mutant(MSE, law="overflowing_loss_is_infinite", category=Category.NUMERICS)
def overflowing_loss_clamped(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """A loss that overflows its dtype is clamped to the largest finite number."""
    return mse_loss(logits, targets, **options).clamp(max=torch.finfo(logits.dtype).max)


@mutant(MSE, law="mean_loss_of_repeated_rows_equals_loss_of_one_row", category=Category.NUMERICS)
def block_sums_added_in_bfloat16(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Rows are summed in blocks of 256 in the logits' dtype, but the sums of the blocks are added in bfloat16."""
    blocks = [block.sum() for block in (logits - targets).square().split(256)]
    total = blocks[0]
    for block in blocks[1:]:
        total = (total.bfloat16() + block.bfloat16()).to(logits.dtype)
    return total / logits.numel()


@mutant(CROSS_ENTROPY, law="mean_loss_of_repeated_rows_equals_loss_of_one_row", category=Category.NUMERICS)
def cross_entropy_of_first_4096_images(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """
    The loss covers at most 4,096 images, as many as a kernel's grid has blocks, but is divided by the number of all.
    """
    return cross_entropy(logits[:4096], targets[:4096], **options) * (min(len(logits), 4096) / max(1, len(logits)))


@mutant(CROSS_ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LOSS)
def cross_entropy_summed(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The cross-entropy loss is the sum over the images instead of the mean."""
    return cross_entropy(logits, targets, **options | {"reduction": "sum"})


@mutant(CROSS_ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LOSS)
def softmax_applied_twice(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Softmax is applied to the logits before the cross-entropy loss, which applies it again."""
    return cross_entropy(logits.softmax(dim=1), targets, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LABELS)
def labels_off_by_one(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Labels start at one instead of zero, so that each image has the next class as its target."""
    return cross_entropy(logits.roll(-1, dims=1), targets, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.NUMERICS)
def softmax_overflows(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The softmax does not subtract the maximum first, so that large logits overflow before the logarithm."""
    return F.nll_loss(logits.exp().log() - logits.exp().sum(dim=1, keepdim=True).log(), targets, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.REGULARIZATION)
def labels_smoothed(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The loss uses a label smoothing of 0.1, left over from another training."""
    return cross_entropy(logits, targets, **options | {"label_smoothing": 0.1})


@mutant(CROSS_ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LABELS)
def class_zero_ignored(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Images of class 0 are excluded from the mean, as if 0 were a padding label."""
    indices = not targets.is_floating_point()
    return cross_entropy(logits, targets, **options | ({"ignore_index": 0} if indices else {}))


@mutant(CROSS_ENTROPY, law="cross_entropy_agrees_with_the_oracle", category=Category.LOSS)
def target_probabilities_normalized(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """Target probabilities are divided by their sum, which the definition does not do."""
    probabilities = targets / targets.sum(dim=1, keepdim=True) if targets.is_floating_point() else targets
    return cross_entropy(logits, probabilities, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_gradients_agree_with_the_oracle", category=Category.LOSS)
def cross_entropy_gradient_summed(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The loss is the mean over the N images, but its gradient is that of the sum."""
    loss = cross_entropy(logits, targets, **options)
    if loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * len(logits))
    return loss


# Options of the losses


@mutant(MSE, law="mse_loss_without_mean_is_exact_for_integers", category=Category.LOSS)
def mse_sum_is_mean(logits: Tensor, targets: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    """`reduction="sum"` gives the mean of the squared errors."""
    return mse_loss(logits, targets, reduction=reduction.replace("sum", "mean"), **options)


@mutant(MSE, law="mse_loss_without_mean_is_exact_for_integers", category=Category.TENSOR_SHAPE)
def mse_of_each_image(logits: Tensor, targets: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    """`reduction="none"` gives one number for each image, the sum over its classes."""
    loss = mse_loss(logits, targets, reduction=reduction, **options)
    return loss.sum(dim=1) if reduction == "none" else loss


@mutant(MSE, law="mse_loss_without_mean_is_exact_for_integers", category=Category.LOSS)
def mse_sum_with_gradient_of_mean(logits: Tensor, targets: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    """`reduction="sum"` gives the sum of the squared errors, but its gradient is that of the mean."""
    loss = mse_loss(logits, targets, reduction=reduction, **options)
    if reduction == "sum" and loss.requires_grad:
        loss.register_hook(lambda gradient: gradient / logits.numel())
    return loss


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the logarithm of the softmax, in float32 for 16-bit logits."""
    return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)


@mutant(CROSS_ENTROPY, law="cross_entropy_options_follow_their_formulas", category=Category.LOSS)
def weighted_mean_divided_by_count(logits: Tensor, targets: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    """With class weights, the mean divides by the number of images instead of by the sum of their weights."""
    if reduction != "mean" or options.get("weight") is None:
        return cross_entropy(logits, targets, reduction=reduction, **options)
    return cross_entropy(logits, targets, reduction="none", **options).mean()


@mutant(CROSS_ENTROPY, law="cross_entropy_options_follow_their_formulas", category=Category.LABELS)
def ignored_images_counted(logits: Tensor, targets: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
    """Images whose label is ignored have a loss of zero but count in the mean."""
    if reduction != "mean" or targets.is_floating_point() or options.get("weight") is not None:
        return cross_entropy(logits, targets, reduction=reduction, **options)
    return cross_entropy(logits, targets, reduction="sum", **options) / len(logits)


@mutant(CROSS_ENTROPY, law="cross_entropy_options_follow_their_formulas", category=Category.LABELS)
def only_default_index_ignored(logits: Tensor, targets: Tensor, ignore_index: int = -100, **options: Any) -> Tensor:
    """`ignore_index` is not passed on if it is one of the ten classes, so that its images count."""
    return cross_entropy(logits, targets, ignore_index=ignore_index if not 0 <= ignore_index < 10 else -100, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_options_follow_their_formulas", category=Category.REGULARIZATION)
def smoothing_leaves_out_true_class(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, **options: Any
) -> Tensor:
    """The smoothed share is spread over the nine other classes instead of over all ten."""
    return cross_entropy(logits, targets, label_smoothing=label_smoothing * 10 / 9, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_options_follow_their_formulas", category=Category.REGULARIZATION)
def smoothing_without_class_weights(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, weight: Any = None, **options: Any
) -> Tensor:
    """The class weights are left out if labels are smoothed."""
    weight = None if label_smoothing else weight
    return cross_entropy(logits, targets, label_smoothing=label_smoothing, weight=weight, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_options_follow_their_formulas", category=Category.LOSS)
def class_weights_of_probabilities_ignored(
    logits: Tensor, targets: Tensor, weight: Any = None, **options: Any
) -> Tensor:
    """The class weights are left out if the targets are probabilities."""
    return cross_entropy(logits, targets, weight=None if targets.is_floating_point() else weight, **options)


@mutant(CROSS_ENTROPY, law="cross_entropy_options_follow_their_formulas", category=Category.LOSS)
def unreduced_losses_divided_by_count(
    logits: Tensor, targets: Tensor, reduction: str = "mean", **options: Any
) -> Tensor:
    """`reduction="none"` gives each image's share of the mean."""
    loss = cross_entropy(logits, targets, reduction=reduction, **options)
    return loss / len(logits) if reduction == "none" else loss


@mutant(
    CROSS_ENTROPY, law="cross_entropy_options_have_the_gradients_of_their_formulas", category=Category.COMPUTATION_MODEL
)
def class_weights_after_detached_loss(logits: Tensor, targets: Tensor, weight: Any = None, **options: Any) -> Tensor:
    """The loss has the class weights, but its gradient is that of the loss without them."""
    plain = cross_entropy(logits, targets, **options)
    return plain + (cross_entropy(logits, targets, weight=weight, **options) - plain).detach()


@mutant(CROSS_ENTROPY, law="cross_entropy_options_have_the_gradients_of_their_formulas", category=Category.LABELS)
def ignored_images_have_gradients(logits: Tensor, targets: Tensor, ignore_index: int = -100, **options: Any) -> Tensor:
    """The value of the loss leaves ignored images out, but they get a gradient as if their class were 0."""
    loss = cross_entropy(logits, targets, ignore_index=ignore_index, **options)
    if targets.is_floating_point() or not (targets == ignore_index).any():
        return loss
    counted = cross_entropy(logits, torch.where(targets == ignore_index, 0, targets), **options)
    return counted + (loss - counted).detach()


@mutant(CROSS_ENTROPY, law="mean_loss_of_repeated_rows_equals_loss_of_one_row", category=Category.NUMERICS)
def sum_of_class_weights_rounded(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The sum of the class weights that the mean divides by is rounded to bfloat16."""
    weight = options.get("weight")
    if weight is None or targets.is_floating_point() or options.get("reduction", "mean") != "mean":
        return cross_entropy(logits, targets, **options)
    total = weight[targets.clamp(0)].sum().bfloat16().to(logits.dtype)
    return cross_entropy(logits, targets, **options | {"reduction": "sum"}) / total
