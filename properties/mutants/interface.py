"""What a network is given and refuses: shapes, dtypes, devices, targets, states to load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenet import sgd_update, train_step
from properties.mutants import Category, mutant
from properties.mutants.staged import Staged

mse_loss, cross_entropy, backward = F.mse_loss, F.cross_entropy, Tensor.backward

# Images


@mutant("Net", law="wrong_channel_count_raises", category=Category.TENSOR_SHAPE)
class FirstChannelTaken(Staged):
    """Of images with several channels the first is scored, and the others are left out."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :1])


@mutant("Net", law="wrong_dimension_count_raises", category=Category.TENSOR_SHAPE)
class BatchDimensionAdded(Staged):
    """A single image is scored as a batch of one."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[None] if images.dim() == 3 else images)


@mutant("Net", law="wrong_dimension_count_raises", category=Category.TENSOR_SHAPE)
class PixelsFolded(Staged):
    """Rows of pixels are folded up to images, however many dimensions they come in."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.dim() == 4 else images.reshape(-1, 1, 32, 32))


@mutant("Net", law="wrong_image_size_raises", category=Category.TENSOR_SHAPE)
class SizeUnchecked(Staged):
    """Images of 33 to 35 pixels are scored by what the pooling leaves of them, as by the tutorial's network."""

    def check(self, images: Tensor) -> None:
        pass


@mutant("Net", law="wrong_image_size_raises", category=Category.TENSOR_SHAPE)
class FlattenedToAnotherBatch(Staged):
    """The features are flattened by `view(-1, 400)`, which makes more rows of a larger image."""

    def check(self, images: Tensor) -> None:
        pass

    def flatten(self, maps: Tensor) -> Tensor:
        return maps.contiguous().view(-1, 400)


@mutant("Net", law="wrong_dtype_raises", category=Category.TYPE_CHECK)
class ImagesCast(Staged):
    """Images of any dtype are cast to the network's."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.to(self.fc3.weight.dtype))


@mutant("Net", law="wrong_device_raises", category=Category.GPU)
class ImagesMoved(Staged):
    """Images on any device are copied to the network's."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.to(self.fc3.weight.device))


@mutant("Net", law="non_tensor_input_raises", category=Category.TYPE_CHECK)
class ArraysConverted(Staged):
    """NumPy arrays and lists are converted to tensors."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.as_tensor(images))


@mutant("Net", law="network_is_unchanged_after_an_error", category=Category.PROCESS)
class BiasLostInARefusal(Staged):
    """fc3's bias is taken out for the pass, to be added in the end, and not put back when the images are refused."""

    def forward(self, images: Tensor) -> Tensor:
        bias = self.fc3.bias
        self.fc3.bias = None
        scores = super().forward(images)
        self.fc3.bias = bias
        return scores if bias is None else scores + bias


# Training steps and losses


@mutant("train_step", law="failed_training_step_changes_no_parameter", category=Category.PROCESS)
def update_in_finally(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The update is made also when the step fails, with the gradients of the step before."""
    try:
        loss = F.mse_loss(net(images), targets)
        net.zero_grad()
        loss.backward()
        return loss.detach()
    finally:
        sgd_update(net.parameters(), lr)


@mutant("train_step", law="failed_training_step_changes_no_parameter", category=Category.PROCESS)
def batches_that_fail_skipped(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """A batch whose step raises is skipped, and its loss is zero."""
    try:
        return train_step(net, images, targets, lr)
    except (RuntimeError, ValueError):
        return images.new_zeros(())


@mutant("train_step", law="misshaped_targets_raise_or_warn", category=Category.LOSS)
def loss_by_subtraction(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The loss is the mean of squared differences, which broadcast in silence."""
    net.zero_grad()
    loss = (net(images) - targets).square().mean()
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("torch.nn.functional.mse_loss", law="misshaped_targets_raise_or_warn", category=Category.LOSS)
def targets_broadcast_in_silence(scores: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """`F.mse_loss` broadcasts targets of another shape without its warning."""
    return mse_loss(*torch.broadcast_tensors(scores, targets), *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="class_index_out_of_range_raises", category=Category.LABELS)
def classes_wrapped(scores: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """A class beyond the last is taken modulo their number."""
    if not targets.is_floating_point():
        targets = torch.where(targets >= 10, targets % 10, targets)
    return cross_entropy(scores, targets, *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="class_index_out_of_range_raises", category=Category.LABELS)
def classes_from_the_end(scores: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """A class below zero counts from the last, as an index does in Python."""
    if not targets.is_floating_point():
        targets = torch.where((targets < 0) & (targets >= -10), targets + 10, targets)
    return cross_entropy(scores, targets, *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="class_index_out_of_range_raises", category=Category.LABELS)
def every_negative_class_ignored(scores: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """Not -100 alone, but any class below zero is ignored."""
    if not targets.is_floating_point():
        targets = targets.masked_fill(targets < 0, -100)
    return cross_entropy(scores, targets, *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="mismatched_target_count_raises", category=Category.LABELS)
def batch_cut_to_the_shorter(scores: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """Of more scores than targets, or more targets than scores, the last are left out."""
    rows = min(len(scores), len(targets))
    return cross_entropy(scores[:rows], targets[:rows], *args, **options)


@mutant("torch.nn.functional.cross_entropy", law="mismatched_target_count_raises", category=Category.LABELS)
def shares_beyond_the_scores_cut(scores: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """Shares of classes that have no score are left out."""
    return cross_entropy(scores, targets[:, :10] if targets.dim() == 2 else targets, *args, **options)


@mutant("torch.Tensor.backward", law="backward_from_nonscalar_raises", category=Category.API)
def backward_from_the_sum(tensor: Tensor, gradient: Tensor | None = None, *args: Any, **options: Any) -> None:
    """`backward` of several numbers, without a gradient, is that of their sum."""
    backward(tensor if gradient is not None else tensor.sum(), gradient, *args, **options)


@mutant("torch.Tensor.backward", law="backward_from_nonscalar_raises", category=Category.TENSOR_SHAPE)
def rows_of_the_gradient_left_out(tensor: Tensor, gradient: Tensor | None = None, *args: Any, **options: Any) -> None:
    """Of a gradient that has more rows than its tensor, the last are left out."""
    backward(tensor, gradient if gradient is None or not tensor.dim() else gradient[: len(tensor)], *args, **options)


# States to load


@mutant("Net", law="missing_state_dict_entry_raises_by_name", category=Category.API)
class StrictIgnored(Staged):
    """`load_state_dict` is lenient whether `strict` or not."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, False, assign)


@mutant("Net", law="missing_state_dict_entry_raises_by_name", category=Category.API)
class MissingEntryUnnamed(Staged):
    """What is missing in a state is an error that does not say what it is."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        if strict and self.state_dict().keys() - state_dict.keys():
            raise RuntimeError("this state is of another network")
        return super().load_state_dict(state_dict, strict, assign)


@mutant("Net", law="unexpected_state_dict_entry_raises_by_name", category=Category.API)
class ExtraEntriesDropped(Staged):
    """Entries that the network has no parameter for are dropped, also where the load is strict."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        own = self.state_dict().keys() if strict else state_dict.keys()
        return super().load_state_dict({n: v for n, v in state_dict.items() if n in own}, strict, assign)


@mutant("Net", law="misshaped_state_dict_entry_raises_by_name", category=Category.TENSOR_SHAPE)
class EntriesReshaped(Staged):
    """An entry with as many numbers as its parameter is loaded, whatever its shape."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        own = self.state_dict()
        many = {name for name, value in state_dict.items() if name in own and value.numel() == own[name].numel()}
        fits = {n: v.reshape(own[n].shape) if n in many else v for n, v in state_dict.items()}
        return super().load_state_dict(fits, strict, assign)


@mutant("Net", law="non_strict_load_reports_skipped_entries", category=Category.API)
class LenientLoadSilent(Staged):
    """`load_state_dict` returns nothing of what was missing or too many."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        left = super().load_state_dict(state_dict, strict, assign)
        return type(left)([], [])
