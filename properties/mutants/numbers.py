"""The numbers: precision, particular values, particular batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from properties.mutants import Category, mutant
from properties.mutants.staged import Staged, with_gradient

cross_entropy, pooling = F.cross_entropy, F.max_pool2d
"""PyTorch's own, whatever takes their place."""


def with_value(graph: Tensor, value: Tensor) -> Tensor:
    """The numbers of one tensor, with the gradient of another that nearly equals it."""
    return torch.where(graph == value, graph, graph + (value - graph).detach())


def tf32(numbers: Tensor) -> Tensor:
    """Rounded to the 11 bits of significand that TF32 keeps of float32."""
    if numbers.dtype != torch.float32:
        return numbers
    bits = numbers.detach().view(torch.int32)
    return with_value(numbers, (bits + 2**12 & -(2**13)).view(torch.float32))


def applied(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a layer gives with another weight and bias than its own."""
    return F.linear(inputs, weight, bias) if inputs.dim() == 2 else F.conv2d(inputs, weight, bias)


def computed(layer: nn.Module, inputs: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """What a layer gives where its operands are rounded."""
    return applied(layer, rounded(inputs), rounded(layer.weight), rounded(layer.bias)).to(inputs.dtype)


def in_memory_order(tensor: Tensor) -> Tensor:
    """What is read by code that takes a tensor for contiguous; the tensor itself where its memory ends before that."""
    strides = torch.empty(tensor.shape, device="meta").stride()
    if tensor.storage_offset() + tensor.numel() > tensor.untyped_storage().nbytes() // tensor.element_size():
        return tensor
    return tensor.as_strided(tensor.shape, strides)


def with_maximum(found: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What `max_pool2d` has found, alone or with the indices, with another maximum."""
    return (change(found[0]), *found[1:]) if isinstance(found, tuple) else change(found)


class Altered(Staged):
    """The reference, one of whose layers gives another answer."""

    altered: str

    def __init__(self) -> None:
        super().__init__()
        self.get_submodule(self.altered).register_forward_hook(self.answer)

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        raise NotImplementedError


class Prepared(Staged):
    """The reference, which is given other images than it was called with."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return super().forward(self.prepared(images))

    def prepared(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Finished(Staged):
    """The reference, which gives other scores than it has computed."""

    def forward(self, images: Tensor) -> Tensor:
        return self.finished(super().forward(images))

    def finished(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


# Precision


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.NUMERICS)
class Conv1InFloat16(Altered):
    """conv1 is computed in float16, forward and backward."""

    altered = "conv1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return computed(layer, inputs[0], Tensor.half).to(output.dtype)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.NUMERICS)
class Conv2InTf32(Altered):
    """conv2's operands are rounded to TF32, as cuDNN does by default."""

    altered = "conv2"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return computed(layer, inputs[0], tf32).to(output.dtype)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.NUMERICS)
class Fc1ForwardInBfloat16(Altered):
    """fc1 is computed in bfloat16, forward only."""

    altered = "fc1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_value(output, computed(layer, inputs[0], Tensor.bfloat16).to(output.dtype))


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.NUMERICS)
class Fc2BackwardInTf32(Altered):
    """fc2's operands are rounded to TF32, backward only."""

    altered = "fc2"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_value(computed(layer, inputs[0], tf32).to(output.dtype), output)


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.NUMERICS)
class Fc3WeightOffByAThousandth(Altered):
    """fc3's weights are too large by a relative 1e-3."""

    altered = "fc3"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return applied(layer, inputs[0], layer.weight * (1 + 1e-3), layer.bias)


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.NUMERICS)
class Conv1WeightOffByOneIn100000(Altered):
    """conv1's weights are too large by a relative 1e-5."""

    altered = "conv1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return applied(layer, inputs[0], layer.weight * (1 + 1e-5), layer.bias)


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.NUMERICS, dtype="float64")
class Conv1WeightOffByAMillionth(Altered):
    """conv1's weights are too large by a relative 1e-6, which is more than float64 may lose."""

    altered = "conv1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return applied(layer, inputs[0], layer.weight * (1 + 1e-6), layer.bias)


@mutant("Net", law="integer_logits_and_gradients_are_exact", category=Category.UPSTREAM)
class Conv1ByFourierTransform(Altered):
    """conv1 goes by way of Fourier transforms of the whole image, which smear NaN (pytorch/pytorch#157237)."""

    altered = "conv1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if output.dtype not in (torch.float32, torch.float64):
            return output
        filters = torch.fft.rfft2(layer.weight[:, 0], s=(32, 32)).conj()
        maps = torch.fft.irfft2(torch.fft.rfft2(inputs[0]) * filters, s=(32, 32))[..., :28, :28]
        return maps + layer.bias[:, None, None]


@mutant("Net", law="same_call_gives_same_bits", category=Category.NUMERICS)
class StochasticRounding(Finished):
    """The scores are rounded up or down at random, to one bit less than there is, by a generator of the Net's own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def finished(self, logits: Tensor) -> Tensor:
        self.calls += 1
        random = torch.rand(logits.shape, generator=torch.Generator().manual_seed(self.calls))
        spacing = torch.finfo(logits.dtype).eps * logits.detach().abs()
        return with_value(logits, logits + spacing * (random - 0.5).to(logits.dtype).sign())


@mutant("sgd_update", law="integer_updates_are_exact", category=Category.NUMERICS)
def sgd_update_by_bfloat16_products(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate times the gradient is computed in bfloat16, whose integers are exact up to 256."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_((lr * parameter.grad.bfloat16()).to(parameter.dtype))


@mutant(
    "torch.nn.functional.cross_entropy",
    law="cross_entropy_gradients_agree_with_the_oracle",
    category=Category.NUMERICS,
)
def cross_entropy_backward_in_bfloat16(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The cross-entropy's gradient is rounded to bfloat16."""
    coarse = with_gradient(logits, lambda gradient: gradient.bfloat16().to(gradient.dtype))
    return cross_entropy(coarse, targets, **options)


# Sums


@mutant("Net", law="large_batch_counts_are_exact", category=Category.NUMERICS)
class BiasGradientSummedInFloat16(Altered):
    """The gradient of fc3.bias is a running sum in float16 over the batch, which stands still at 2,048."""

    altered = "fc3"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not len(output):
            return output
        half = layer.bias.half()
        rows = torch.stack([half.to(output.dtype) for _ in output])
        product = F.linear(inputs[0], layer.weight)
        return with_value(product + rows.to(product.dtype), output)


@mutant("Net", law="large_batch_counts_are_exact", category=Category.BATCH)
class RestOfALargeBatchWithoutGradient(Finished):
    """The gradient is summed in blocks of 256 images, and where there is one block, the rest of the batch is lost."""

    def finished(self, logits: Tensor) -> Tensor:
        whole = len(logits) // 256 * 256
        return torch.cat([logits[:whole], logits[whole:].detach()]) if whole else logits


# Particular images


@mutant("Net", law="input_gradients_agree_with_the_oracle", category=Category.INPUT)
class CornerPixelIgnored(Prepared):
    """The pixel in the last row and column counts as 0."""

    def prepared(self, images: Tensor) -> Tensor:
        corner = torch.zeros(32, 32, dtype=torch.bool, device=images.device)
        corner[-1, -1] = True
        return images.masked_fill(corner, 0)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.INPUT)
class NegativePixelsIgnored(Prepared):
    """Negative pixels count as 0."""

    def prepared(self, images: Tensor) -> Tensor:
        return images.clamp(min=0)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.NUMERICS)
class SaturatesAbove10000(Staged):
    """The first ReLU saturates at 10,000, far above what digits give."""

    def relu1(self, maps: Tensor) -> Tensor:
        return F.relu(maps).clamp(max=1e4)


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.NUMERICS)
class HiddenBias(Finished):
    """Every score has 1e-9 added, as formulas have against a division by zero."""

    def finished(self, logits: Tensor) -> Tensor:
        return logits + 1e-9


# Particular batches


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.BATCH)
class LastOfAnOddBatchIsBlack(Prepared):
    """Images are taken in pairs; the last of three or more, an odd number of them, counts as black."""

    def prepared(self, images: Tensor) -> Tensor:
        if len(images) < 3 or len(images) % 2 == 0:
            return images
        return torch.cat([images[:-1], torch.zeros_like(images[-1:])])


# Memory


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.UNALIGNED_TENSOR)
class StaleColumnOfChannelsLast(Prepared):
    """Of images in channels_last the last column is still what the one before was."""

    def prepared(self, images: Tensor) -> Tensor:
        if images.stride(1) != 1:
            return images
        return torch.cat([images[..., :31], images[..., 30:31]], dim=3)


@mutant("Net", law="any_memory_layout_gives_right_results", category=Category.UNALIGNED_TENSOR)
class WeightsReadInMemoryOrder(Altered):
    """fc1's weights are read as if they were contiguous."""

    altered = "fc1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if layer.weight.is_contiguous():
            return output
        return applied(layer, inputs[0], in_memory_order(layer.weight), layer.bias)


@mutant("Net", law="memory_format_may_change_between_passes", category=Category.UPSTREAM)
class SingleChannelWeightInChannelsLast(Altered):
    """conv1's maps come in another order once its weight is in channels_last (pytorch/pytorch#82060)."""

    altered = "conv1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if layer.weight.stride(1) != 1:
            return output
        return output.reshape(-1, 28, 28, 6).permute(0, 3, 1, 2)


@mutant("Net", law="upstream_gradient_may_have_any_memory_layout", category=Category.UNALIGNED_TENSOR)
class GradientReadInMemoryOrder(Finished):
    """The gradient that comes in is read as if it were contiguous."""

    def finished(self, logits: Tensor) -> Tensor:
        return with_gradient(logits, in_memory_order)


# What is no number, or hardly one


@mutant("Net", law="nan_pixel_makes_all_logits_of_its_image_nan", category=Category.INPUT)
class NanPixelsCleaned(Prepared):
    """Pixels that are NaN count as 0."""

    def prepared(self, images: Tensor) -> Tensor:
        return images.masked_fill(images.isnan(), 0)


@mutant("Net", law="nan_pixel_makes_all_logits_of_its_image_nan", category=Category.ACTIVATION)
class ReluDropsNan(Staged):
    """The fourth ReLU asks whether a unit is larger than 0, which NaN is not."""

    def relu4(self, units: Tensor) -> Tensor:
        return torch.where(units > 0, units, 0)


@mutant("torch.nn.functional.relu", law="relu_propagates_nonfinite_values", category=Category.ACTIVATION)
def relu_by_a_mask(tensor: Tensor, inplace: bool = False) -> Tensor:
    """ReLU multiplies by a mask, and so makes NaN of -inf."""
    return tensor.mul_(tensor > 0) if inplace else tensor * (tensor > 0)


@mutant("torch.nn.functional.relu", law="relu_propagates_nonfinite_values", category=Category.ACTIVATION)
def relu_by_the_sign_bit(tensor: Tensor, inplace: bool = False) -> Tensor:
    """ReLU goes by the sign bit, and so makes 0 of the NaN that x86 makes, inf - inf, whose sign is set."""
    negative = tensor.signbit()
    return tensor.masked_fill_(negative, 0) if inplace else tensor.masked_fill(negative, 0)


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_propagates_nonfinite_values", category=Category.LAYER)
def pooling_by_comparison(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """A pixel takes the window's first one's place where it is larger, which NaN never is."""
    first = maps[..., ::2, ::2].isnan()
    numbers = pooling(maps.detach().masked_fill(maps.isnan(), -torch.inf), 2)
    found = pooling(maps, *arguments, **options)
    return with_maximum(found, lambda largest: torch.where(largest.isnan() & ~first, numbers, largest))


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_propagates_nonfinite_values", category=Category.LAYER)
def pooling_from_the_lowest_number(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """The maximum of a window begins at the lowest finite number, and so is never -inf."""
    lowest = torch.finfo(maps.dtype).min
    return with_maximum(pooling(maps, *arguments, **options), lambda largest: largest.clamp(min=lowest))


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_propagates_nonfinite_values", category=Category.UPSTREAM)
def pooling_from_zero_in_channels_last(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """In channels_last the maximum of a window begins at 0 (pytorch/pytorch#109586, there of integers)."""
    found = pooling(maps, *arguments, **options)
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return found
    return with_maximum(found, lambda largest: largest.clamp(min=0))


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_propagates_nonfinite_values", category=Category.LAYER)
def pooling_loses_the_sign_of_infinity(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """The maximum of a window that is -inf comes out as inf."""
    found = pooling(maps, *arguments, **options)
    return with_maximum(found, lambda largest: torch.where(largest.isinf(), largest.abs(), largest))


@mutant("Net", law="nan_spreads_exactly_over_its_receptive_field", category=Category.NUMERICS)
class NanSmearedOverTheMap(Altered):
    """conv1's maps have zero times their mean added, which is nothing but where one number is NaN."""

    altered = "conv1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + 0 * output.mean(dim=(2, 3), keepdim=True).detach()


@mutant("Net", law="nonfinite_pixel_does_not_affect_other_images", category=Category.BATCH)
class NanSmearedOverTheBatch(Finished):
    """The scores have zero times their sum over the batch added, which is nothing but where one is no number."""

    def finished(self, logits: Tensor) -> Tensor:
        return logits + 0 * logits.sum(dim=0).detach()


@mutant("Net", law="nonfinite_pixel_does_not_affect_other_images_gradients", category=Category.BATCH)
class BatchWithNanHasNoGradient(Prepared):
    """The gradient by a whole batch is zero where one of its pixels is no number."""

    def prepared(self, images: Tensor) -> Tensor:
        finite = images.detach().isfinite().all()
        return with_gradient(images, lambda gradient: gradient.masked_fill(~finite, 0))


@mutant("Net", law="nonfinite_upstream_gradient_does_not_affect_other_images", category=Category.CLIPPING)
class NanGradientCleaned(Finished):
    """A gradient that is NaN counts as 0."""

    def finished(self, logits: Tensor) -> Tensor:
        return with_gradient(logits, lambda gradient: gradient.masked_fill(gradient.isnan(), 0))


@mutant("Net", law="subnormal_numbers_are_preserved", category=Category.NUMERICS)
class SubnormalsFlushed(Prepared):
    """Pixels that are subnormal count as 0."""

    def prepared(self, images: Tensor) -> Tensor:
        return images.masked_fill(images.abs() < torch.finfo(images.dtype).smallest_normal, 0)


@mutant("Net", law="largest_number_is_preserved_and_next_overflows", category=Category.NUMERICS)
class InfinityClamped(Finished):
    """Infinite scores are clamped to the largest number."""

    def finished(self, logits: Tensor) -> Tensor:
        limits = torch.finfo(logits.dtype)
        return logits.clamp(limits.min, limits.max)


# Lower precision


@mutant("Net", law="autocast_preserves_representable_values", category=Category.NUMERICS)
class AutocastByWayOfBfloat16(Altered):
    """Under autocast fc1's weights are rounded to bfloat16 first, also where float16 is claimed."""

    altered = "fc1"

    @staticmethod
    def answer(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(output.device.type):
            return output
        return F.linear(inputs[0], layer.weight.bfloat16().to(output.dtype), layer.bias)
