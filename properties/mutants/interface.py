"""Input validation: image shapes, dtypes and devices, targets, and state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenet import sgd_update, train_step
from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet

mse_loss, cross_entropy, backward = F.mse_loss, F.cross_entropy, Tensor.backward

# Images


@mutant("Net", law="wrong_channel_count_raises", category=Category.TENSOR_SHAPE)
class OnlyFirstChannelUsed(StagedNet):
    """Images with several channels are accepted, and all channels but the first are ignored."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :1])


@mutant("Net", law="unbatched_image_raises_or_gives_its_logits", category=Category.TENSOR_SHAPE)
class UnbatchedImageTransposed(StagedNet):
    """A single image without a batch dimension is accepted, but its rows are taken for its columns."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.transpose(1, 2)[None] if images.dim() == 3 else images)


@mutant("Net", law="unbatched_image_raises_or_gives_its_logits", category=Category.TENSOR_SHAPE)
class UnbatchedImageRepeated(StagedNet):
    """A single image without a batch dimension is broadcast to a batch of two, and two rows of logits are returned."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.expand(2, 1, 32, 32) if images.dim() == 3 else images)


@mutant("Net", law="wrong_dimension_count_raises", category=Category.TENSOR_SHAPE)
class ChannelDimensionAdded(StagedNet):
    """Three dimensions are accepted as a batch without a channel dimension, (N, 32, 32)."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, None] if images.dim() == 3 else images)


@mutant("Net", law="wrong_dimension_count_raises", category=Category.TENSOR_SHAPE)
class InputReshapedToImages(StagedNet):
    """Inputs with any number of dimensions are reshaped to images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.dim() == 4 else images.reshape(-1, 1, 32, 32))


@mutant("Net", law="wrong_dtype_raises", category=Category.TYPE_CHECK)
class ImagesCastToNetworkDtype(StagedNet):
    """Images of any dtype are cast to the network's dtype."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.to(self.fc3.weight.dtype))


@mutant("Net", law="wrong_device_raises", category=Category.GPU)
class ImagesMovedToNetworkDevice(StagedNet):
    """Images on any device are copied to the network's device."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.to(self.fc3.weight.device))


@mutant("Net", law="non_tensor_input_raises", category=Category.TYPE_CHECK)
class ArraysConvertedToTensors(StagedNet):
    """NumPy arrays and lists are converted to tensors of the network's dtype."""

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            images = torch.as_tensor(images, dtype=self.fc3.weight.dtype)
        return super().forward(images)


@mutant("Net", law="network_is_unchanged_after_an_error", category=Category.PROCESS)
class BiasLostOnError(StagedNet):
    """fc3's bias is removed during the forward pass, and not restored if the pass raises."""

    def forward(self, images: Tensor) -> Tensor:
        bias = self.fc3.bias
        self.fc3.bias = None
        logits = super().forward(images)
        self.fc3.bias = bias
        return logits if bias is None else logits + bias


# Training steps and losses


@mutant("train_step", law="failed_training_step_changes_no_parameter", category=Category.PROCESS)
def update_despite_error(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The update runs even if the step raises, with the gradients of the previous step."""
    try:
        loss = F.mse_loss(net(images), targets)
        net.zero_grad()
        loss.backward()
        return loss.detach()
    finally:
        sgd_update(net.parameters(), lr)


@mutant("train_step", law="failed_training_step_changes_no_parameter", category=Category.PROCESS)
def failing_batches_skipped(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """A batch whose step raises is skipped, and its loss is zero."""
    try:
        return train_step(net, images, targets, lr)
    except (RuntimeError, ValueError):
        return images.new_zeros(())


@mutant("train_step", law="misshaped_targets_raise_or_warn", category=Category.LOSS)
def loss_without_shape_check(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The loss is the mean of squared differences, which broadcast without a warning."""
    net.zero_grad()
    loss = (net(images) - targets).square().mean()
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("torch.nn.functional.mse_loss", law="misshaped_targets_raise_or_warn", category=Category.LOSS)
def mse_loss_broadcasts_without_warning(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """`F.mse_loss` broadcasts targets of another shape without its warning."""
    return mse_loss(*torch.broadcast_tensors(logits, targets), *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="class_index_out_of_range_raises", category=Category.LABELS)
def class_index_taken_modulo_10(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """A class index above 9 is taken modulo 10."""
    if not targets.is_floating_point():
        targets = torch.where(targets >= 10, targets % 10, targets)
    return cross_entropy(logits, targets, *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="class_index_out_of_range_raises", category=Category.LABELS)
def negative_class_counted_from_end(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """A negative class index counts from the last class, like a Python index."""
    if not targets.is_floating_point():
        targets = torch.where((targets < 0) & (targets >= -10), targets + 10, targets)
    return cross_entropy(logits, targets, *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="class_index_out_of_range_raises", category=Category.LABELS)
def all_negative_classes_ignored(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """Every negative class index is ignored, not only -100."""
    if not targets.is_floating_point():
        targets = targets.masked_fill(targets < 0, -100)
    return cross_entropy(logits, targets, *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="mismatched_target_count_raises", category=Category.LABELS)
def batch_truncated_to_shorter(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """If there are more logits than targets, or the reverse, the surplus rows are ignored."""
    rows = min(len(logits), len(targets))
    return cross_entropy(logits[:rows], targets[:rows], *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="mismatched_target_count_raises", category=Category.LABELS)
def extra_class_probabilities_dropped(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """Probabilities of classes that have no logit are ignored."""
    return cross_entropy(logits, targets[:, :10] if targets.dim() == 2 else targets, *args, **options)


@mutant("torch.Tensor.backward", law="backward_from_nonscalar_raises", category=Category.API)
def backward_sums_nonscalar(tensor: Tensor, gradient: Tensor | None = None, *args: Any, **options: Any) -> None:
    """`backward` from a tensor with several elements and without a gradient differentiates their sum."""
    backward(tensor if gradient is not None else tensor.sum(), gradient, *args, **options)


@mutant("torch.Tensor.backward", law="backward_from_nonscalar_raises", category=Category.TENSOR_SHAPE)
def extra_gradient_rows_dropped(tensor: Tensor, gradient: Tensor | None = None, *args: Any, **options: Any) -> None:
    """If the gradient given to `backward` has more rows than the tensor, the surplus rows are ignored."""
    backward(tensor, gradient if gradient is None or not tensor.dim() else gradient[: len(tensor)], *args, **options)


# State dicts


@mutant("Net", law="missing_state_dict_entry_raises_by_name", category=Category.API)
class LoadIgnoresStrict(StagedNet):
    """`load_state_dict` ignores `strict=True`."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, False, assign)


@mutant("Net", law="missing_state_dict_entry_raises_by_name", category=Category.API)
class MissingEntryNotNamed(StagedNet):
    """The error for a missing state dict entry does not name the entry."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if strict and self.state_dict().keys() - state_dict.keys():
            raise RuntimeError("the state dict is of another network")
        return super().load_state_dict(state_dict, strict, assign)


@mutant("Net", law="unexpected_state_dict_entry_raises_by_name", category=Category.API)
class UnexpectedEntriesDropped(StagedNet):
    """A strict load ignores entries that match no parameter."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        accepted = self.state_dict().keys() if strict else state_dict.keys()
        known = {name: value for name, value in state_dict.items() if name in accepted}
        return super().load_state_dict(known, strict, assign)


@mutant("Net", law="misshaped_state_dict_entry_raises_by_name", category=Category.TENSOR_SHAPE)
class MisshapedEntriesReshaped(StagedNet):
    """An entry with the right number of elements is loaded, whatever its shape."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        own = self.state_dict()
        fitting = {name for name, value in state_dict.items() if name in own and value.numel() == own[name].numel()}
        reshaped = {n: v.reshape(own[n].shape) if n in fitting else v for n, v in state_dict.items()}
        return super().load_state_dict(reshaped, strict, assign)


@mutant("Net", law="non_strict_load_reports_skipped_entries", category=Category.API)
class NonStrictLoadReportsNothing(StagedNet):
    """A non-strict load does not report missing and unexpected entries."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        skipped = super().load_state_dict(state_dict, strict, assign)
        return type(skipped)([], [])


@mutant("Net", law="empty_batch_does_not_raise", category=Category.TENSOR_SHAPE)
class EmptyBatchRaises(StagedNet):
    """The number of features is left to `reshape`, which cannot determine it for an empty batch."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.reshape(len(maps), -1)


@mutant("Net", law="one_image_does_not_raise", category=Category.TENSOR_SHAPE)
class OneImageHasNoStatistics(StagedNet):
    """The mean and the variance of the features over the batch are computed, which one image does not have."""

    def flatten(self, maps: Tensor) -> Tensor:
        features = super().flatten(maps)
        if len(features):
            F.batch_norm(features.detach(), None, None, training=True)
        return features


@mutant(
    "Net",
    law="one_image_does_not_raise",
    category=Category.TYPE_CHECK,
    dtype="float64",
    unseen={"float32": "it is accepted"},
)
class OnlyFloat32Accepted(StagedNet):
    """Images of any dtype but float32 raise an error, although the network has been converted to theirs."""

    def check(self, images: Tensor) -> None:
        super().check(images)
        if images.dtype is not torch.float32:
            raise TypeError(f"images must be float32, not {images.dtype}")
