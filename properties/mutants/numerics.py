"""Numerics: precision, accumulation, memory layout, special values (NaN, infinity, subnormal) and batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet, with_altered_gradient

cross_entropy, max_pool2d = F.cross_entropy, F.max_pool2d
"""PyTorch's original functions, also while a mutant replaces them."""


def with_gradient_of(graph: Tensor, value: Tensor) -> Tensor:
    """Return the values of `value` with the gradient of `graph`, which is nearly equal."""
    return torch.where(graph == value, graph, graph + (value - graph).detach())


def round_to_tf32(numbers: Tensor) -> Tensor:
    """Round float32 and float64 values to TF32's 11 significant bits; return 16-bit values unchanged."""
    if numbers.dtype.itemsize < 4:
        return numbers
    bits = numbers.detach().float().view(torch.int32)
    return with_gradient_of(numbers, (bits + 2**12 & -(2**13)).view(torch.float32).to(numbers.dtype))


def with_parameters(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the output of a linear or convolutional layer for another weight and bias."""
    return F.linear(inputs, weight, bias) if inputs.dim() == 2 else F.conv2d(inputs, weight, bias)


def with_rounded_operands(layer: nn.Module, inputs: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the output of a layer whose inputs, weight and bias are rounded by `rounding`."""
    return with_parameters(layer, rounding(inputs), rounding(layer.weight), rounding(layer.bias)).to(inputs.dtype)


def read_as_contiguous(tensor: Tensor) -> Tensor:
    """Return what code reads that ignores the tensor's strides, or the tensor itself if that exceeds its memory."""
    strides = torch.empty(tensor.shape, device="meta").stride()
    if tensor.storage_offset() + tensor.numel() > tensor.untyped_storage().nbytes() // tensor.element_size():
        return tensor
    return tensor.as_strided(tensor.shape, strides)


def with_altered_maximum(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to the maximum in an output of `max_pool2d`, which may also contain indices."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


class AlteredLayer(StagedNet):
    """The reference with an altered output of one layer."""

    layer_name: str

    def __init__(self) -> None:
        super().__init__()
        self.get_submodule(self.layer_name).register_forward_hook(self.alter)

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        raise NotImplementedError


class AlteredLayers(StagedNet):
    """The reference with an altered output of each layer."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.children():
            layer.register_forward_hook(self.alter)

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        raise NotImplementedError


class AlteredImages(StagedNet):
    """The reference applied to altered images."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return super().forward(self.alter(images))

    def alter(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class AlteredLogits(StagedNet):
    """The reference with altered logits."""

    def forward(self, images: Tensor) -> Tensor:
        return self.alter(super().forward(images))

    def alter(self, logits: Tensor) -> Tensor:
        raise NotImplementedError


# Precision


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.NUMERICS, unseen={"float16": "nothing is rounded"})
class Conv1InFloat16(AlteredLayer):
    """conv1 is computed in float16, in the forward and the backward pass."""

    layer_name = "conv1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_rounded_operands(layer, inputs[0], Tensor.half).to(output.dtype)


@mutant(
    "Net",
    law="logits_agree_with_the_oracle",
    category=Category.NUMERICS,
    unseen=dict.fromkeys(("bfloat16", "float16"), "TF32 has no fewer bits"),
)
class Conv2InTf32(AlteredLayer):
    """conv2's operands are rounded to TF32, which is cuDNN's default."""

    layer_name = "conv2"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_rounded_operands(layer, inputs[0], round_to_tf32).to(output.dtype)


@mutant(
    "Net", law="logits_agree_with_the_oracle", category=Category.NUMERICS, unseen={"bfloat16": "nothing is rounded"}
)
class Fc1ForwardInBfloat16(AlteredLayer):
    """fc1 is computed in bfloat16 in the forward pass only."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_gradient_of(output, with_rounded_operands(layer, inputs[0], Tensor.bfloat16).to(output.dtype))


@mutant(
    "Net",
    law="gradients_agree_with_the_oracle",
    category=Category.NUMERICS,
    unseen=dict.fromkeys(("bfloat16", "float16"), "TF32 has no fewer bits"),
)
class Fc2BackwardInTf32(AlteredLayer):
    """fc2's operands are rounded to TF32 in the backward pass only."""

    layer_name = "fc2"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_gradient_of(with_rounded_operands(layer, inputs[0], round_to_tf32).to(output.dtype), output)


@mutant(
    "Net",
    law="gradients_agree_with_the_oracle",
    category=Category.NUMERICS,
    unseen={"bfloat16": "the weights round to their exact values"},
)
class Fc3WeightErrorOf1eMinus3(AlteredLayer):
    """fc3's weights have a relative error of 1e-3."""

    layer_name = "fc3"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_parameters(layer, inputs[0], layer.weight * (1 + 1e-3), layer.bias)


@mutant(
    "Net",
    law="gradients_agree_with_the_oracle",
    category=Category.NUMERICS,
    unseen=dict.fromkeys(("bfloat16", "float16"), "the weights round to their exact values"),
)
class Conv1WeightErrorOf1eMinus5(AlteredLayer):
    """conv1's weights have a relative error of 1e-5."""

    layer_name = "conv1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_parameters(layer, inputs[0], layer.weight * (1 + 1e-5), layer.bias)


@mutant(
    "Net",
    law="gradients_agree_with_the_oracle",
    category=Category.NUMERICS,
    dtype="float64",
    unseen=dict.fromkeys(("bfloat16", "float16"), "the weights round to their exact values"),
)
class Conv1WeightErrorOf1eMinus6(AlteredLayer):
    """conv1's weights have a relative error of 1e-6, far above the precision of float64."""

    layer_name = "conv1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_parameters(layer, inputs[0], layer.weight * (1 + 1e-6), layer.bias)


@mutant("Net", law="integer_logits_and_gradients_are_exact", category=Category.UPSTREAM)
class Conv1ByFourierTransform(AlteredLayer):
    """conv1 is computed by Fourier transforms of the entire image, which spread NaN (pytorch/pytorch#157237)."""

    layer_name = "conv1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        wide = torch.promote_types(output.dtype, torch.float32)  # PyTorch has no Fourier transforms in 16 bits on a CPU
        filters = torch.fft.rfft2(layer.weight[:, 0].to(wide), s=(32, 32)).conj()
        maps = torch.fft.irfft2(torch.fft.rfft2(inputs[0].to(wide)) * filters, s=(32, 32))[..., :28, :28]
        return maps.to(output.dtype) + layer.bias[:, None, None]


@mutant("Net", law="same_call_gives_same_bits", category=Category.NUMERICS)
class LogitsRoundedStochastically(AlteredLogits):
    """The last bit of the logits is rounded up or down at random, by the network's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def alter(self, logits: Tensor) -> Tensor:
        self.calls += 1
        random = torch.rand(logits.shape, generator=torch.Generator().manual_seed(self.calls))
        spacing = torch.finfo(logits.dtype).eps * logits.detach().abs()
        return with_gradient_of(logits, logits + spacing * (random - 0.5).to(logits.dtype).sign())


@mutant("sgd_update", law="integer_updates_are_exact", category=Category.NUMERICS)
def update_product_in_bfloat16(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The product of learning rate and gradient is computed in bfloat16, where integers are exact only up to 256."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.sub_((lr * parameter.grad.bfloat16()).to(parameter.dtype))


@mutant(
    "torch.nn.functional.cross_entropy",
    law="cross_entropy_gradients_agree_with_the_oracle",
    category=Category.NUMERICS,
    unseen={"bfloat16": "nothing is rounded", "float16": "the error, up to 4 roundings, is below 8 budgets"},
)
def cross_entropy_backward_in_bfloat16(logits: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The gradient of the cross-entropy loss is rounded to bfloat16."""
    coarse = with_altered_gradient(logits, lambda gradient: gradient.bfloat16().to(gradient.dtype))
    return cross_entropy(coarse, targets, **options)


# Accumulation


@mutant("Net", law="large_batch_counts_are_exact", category=Category.NUMERICS)
class BiasGradientSummedInFloat16(AlteredLayer):
    """The gradient of fc3's bias is accumulated over the batch in float16, where a sum of ones saturates at 2,048."""

    layer_name = "fc3"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not len(output):
            return output
        half = layer.bias.half()
        rows = torch.stack([half.to(output.dtype) for _ in output])
        product = F.linear(inputs[0], layer.weight)
        return with_gradient_of(product + rows.to(product.dtype), output)


@mutant("Net", law="large_batch_counts_are_exact", category=Category.BATCH)
class LargeBatchRemainderHasNoGradient(AlteredLogits):
    """Gradients are summed in blocks of 256 images; from 256 images on, an incomplete last block gets no gradient."""

    def alter(self, logits: Tensor) -> Tensor:
        whole = len(logits) // 256 * 256
        return torch.cat([logits[:whole], logits[whole:].detach()]) if whole else logits


# Bits


def round_to_bits(numbers: Tensor, bits: int) -> Tensor:
    """Round to this number of significant bits."""
    mantissa, exponent = torch.frexp(numbers.detach().double())
    return with_gradient_of(numbers, torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent).to(numbers.dtype))


def round_to_18_bits(numbers: Tensor) -> Tensor:
    """Round to 18 significant bits, 6 fewer than float32 has."""
    return round_to_bits(numbers, 18)


NARROW = {"bfloat16": "the dtype has fewer than 18 bits", "float16": "the dtype has fewer than 18 bits"}


def truncate(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a dtype, toward zero."""
    nearest, toward_zero = numbers.to(dtype), torch.zeros((), dtype=dtype, device=numbers.device)
    return torch.where(nearest.abs().to(numbers.dtype) > numbers.abs(), nearest.nextafter(toward_zero), nearest)


@mutant("Net", law="every_bit_of_two_factors_counts", category=Category.NUMERICS, unseen=NARROW)
class OperandsRoundedTo18Bits(AlteredLayers):
    """The operands of all five layers are rounded to 18 significant bits."""

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_rounded_operands(layer, inputs[0], round_to_18_bits)


@mutant("Net", law="every_bit_of_two_factors_counts", category=Category.NUMERICS, dtype="float64", unseen=NARROW)
class Fc1OperandsRoundedTo18Bits(AlteredLayer):
    """The operands of fc1 are rounded to 18 significant bits."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_rounded_operands(layer, inputs[0], round_to_18_bits)


IN_16_BITS = dict.fromkeys(("float32", "float64"), "the fault is in 16 bits alone")


@mutant("Net", law="every_bit_of_two_factors_counts", category=Category.NUMERICS, dtype="bfloat16", unseen=IN_16_BITS)
class Conv2ResultsTruncated(AlteredLayer):
    """In 16 bits, conv2's results are computed in float32 and truncated instead of rounded."""

    layer_name = "conv2"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        wide = F.conv2d(inputs[0].float(), layer.weight.float(), layer.bias.float())
        return output if output.element_size() > 2 else with_gradient_of(output, truncate(wide, output.dtype))


@mutant("Net", law="long_sums_are_exact", category=Category.NUMERICS)
class Fc1SumsRoundedTo20Bits(AlteredLayer):
    """fc1 accumulates in 20 significant bits: the sum over each hundred inputs is rounded to them."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        total = torch.zeros_like(output)
        for units, weight in zip(inputs[0].split(100, 1), layer.weight.split(100, 1), strict=True):
            total = round_to_bits(total + F.linear(units, weight), 20)
        return with_gradient_of(output, total + layer.bias)


@mutant(
    "Net",
    law="long_sums_are_exact",
    category=Category.NUMERICS,
    unseen={"bfloat16": "the first part is the number itself"},
)
class Fc1InTwoBfloat16Parts(AlteredLayer):
    """fc1 multiplies its inputs in two parts of 8 bits each, as for matrix units that have only bfloat16."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        def in_parts(numbers: Tensor) -> Tensor:
            first = numbers.bfloat16().to(numbers.dtype)
            return first + (numbers - first).bfloat16().to(numbers.dtype)

        return with_rounded_operands(layer, inputs[0], in_parts)


@mutant(
    "Net",
    law="long_sums_are_exact",
    category=Category.NUMERICS,
    dtype="float16",
    unseen=dict.fromkeys(("float32", "float64"), "stored sums are as precise as the accumulator"),
)
class Fc1StoresPartialSums(AlteredLayer):
    """fc1 stores the sum over each hundred inputs in the dtype of the images, and adds up the stored sums."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        total = torch.zeros_like(output)
        for units, weight in zip(inputs[0].split(100, 1), layer.weight.split(100, 1), strict=True):
            total = total + F.linear(units, weight)
        return with_gradient_of(output, total + layer.bias)


@mutant("Net", law="long_sums_are_exact", category=Category.NUMERICS, dtype="bfloat16", unseen=IN_16_BITS)
class Fc1SumsTruncated(AlteredLayer):
    """In 16 bits, fc1's sums are truncated instead of rounded when they are stored."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        wide = F.linear(inputs[0].float(), layer.weight.float(), layer.bias.float())
        return output if output.element_size() > 2 else with_gradient_of(output, truncate(wide, output.dtype))


# Threads


def with_gradient_of_first_thread(tensor: Tensor) -> Tensor:
    """With more than one thread, pass the gradient of only the first thread's block of rows back."""
    rows = -(-len(tensor) // torch.get_num_threads())
    return torch.cat([tensor[:rows], tensor[rows:].detach()])


@mutant("Net", law="results_are_exact_with_any_number_of_threads", category=Category.NUMERICS)
class WeightGradientOfFirstThread(AlteredLayer):
    """With several threads, only the first one's block of the batch is reduced into the gradient of fc2's weight."""

    layer_name = "fc2"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        others = F.linear(inputs[0], layer.weight.detach(), layer.bias) - output.detach()  # zeros, with a gradient
        return with_gradient_of_first_thread(F.linear(inputs[0].detach(), layer.weight)) + layer.bias.detach() + others


@mutant("Net", law="results_are_exact_with_any_number_of_threads", category=Category.BATCH)
class RemainderOfThreadsLost(AlteredLogits):
    """With several threads, each computes an equal number of images, and a remainder gets the logits of the first."""

    def alter(self, logits: Tensor) -> Tensor:
        whole = len(logits) // torch.get_num_threads() * torch.get_num_threads()
        return torch.cat([logits[:whole], logits[:1].expand(len(logits) - whole, -1)]) if whole else logits


@mutant("sgd_update", law="training_step_is_correct_with_any_number_of_threads", category=Category.NUMERICS)
def update_by_first_thread(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """With several threads, only the first one updates its block of a parameter with 32,768 elements or more."""
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parallel = parameter.numel() >= 2**15
                rows = -(-len(parameter) // torch.get_num_threads()) if parallel else len(parameter)
                parameter[:rows].sub_(lr * parameter.grad[:rows])


# Pixels


@mutant("Net", law="input_gradients_agree_with_the_oracle", category=Category.INPUT)
class CornerPixelIgnored(AlteredImages):
    """The pixel in the last row and column is replaced by 0."""

    def alter(self, images: Tensor) -> Tensor:
        corner = torch.zeros(32, 32, dtype=torch.bool, device=images.device)
        corner[-1, -1] = True
        return images.masked_fill(corner, 0)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.INPUT)
class NegativePixelsIgnored(AlteredImages):
    """Negative pixels are replaced by 0."""

    def alter(self, images: Tensor) -> Tensor:
        return images.clamp(min=0)


@mutant("Net", law="mse_loss_agrees_with_the_oracle", category=Category.NUMERICS)
class ReluSaturatesAt10000(StagedNet):
    """The first ReLU saturates at 10,000, far above the activations of digits."""

    def relu1(self, maps: Tensor) -> Tensor:
        return F.relu(maps).clamp(max=1e4)


@mutant(
    "Net",
    law="without_biases_logits_scale_with_images",
    category=Category.NUMERICS,
    unseen={"float16": "1e-9 is less than half of the smallest number"},
)
class EpsilonAddedToLogits(AlteredLogits):
    """Every logit is increased by 1e-9, like a denominator that is protected against division by zero."""

    def alter(self, logits: Tensor) -> Tensor:
        return logits + 1e-9


# Batch sizes


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.BATCH)
class LastImageOfOddBatchZeroed(AlteredImages):
    """In a batch of odd size, the last image is replaced by zeros, unless it is the only one."""

    def alter(self, images: Tensor) -> Tensor:
        if len(images) < 3 or len(images) % 2 == 0:
            return images
        return torch.cat([images[:-1], torch.zeros_like(images[-1:])])


@mutant("Net", law="batches_of_any_size_are_exact", category=Category.BATCH)
class LastOf31Stale(AlteredLogits):
    """If the last block of 32 images lacks one, the last image has the logits of the one before it."""

    def alter(self, logits: Tensor) -> Tensor:
        return torch.cat([logits[:-1], logits[-2:-1]]) if len(logits) % 32 == 31 else logits


@mutant("Net", law="batches_of_any_size_are_exact", category=Category.BATCH, dtype="float64")
class InputGradientStopsAfter128(AlteredImages):
    """The gradient with respect to the images is zero from the 129th image on."""

    def alter(self, images: Tensor) -> Tensor:
        return torch.cat([images[:128], images[128:].detach()])


@mutant("Net", law="batches_of_any_size_are_exact", category=Category.BATCH, dtype="bfloat16")
class Image65HasNoBiasGradient(AlteredLayer):
    """In a batch of 65 images, the last one adds nothing to the gradient of conv1's bias."""

    layer_name = "conv1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if len(output) != 65:
            return output
        bias = layer.bias.expand(65, -1)[:, :, None, None]
        bias = torch.cat([bias[:64], bias[64:].detach()])
        return output + (bias - bias.detach()) - (layer.bias - layer.bias.detach())[:, None, None]


@mutant(
    "Net",
    law="batches_of_any_size_are_exact",
    category=Category.NUMERICS,
    unseen=dict.fromkeys(("bfloat16", "float16"), "TF32 has all bits of the dtype"),
)
class LargeBatchInputGradientInTf32(AlteredImages):
    """From 64 images on, the gradient with respect to the images is rounded to TF32."""

    def alter(self, images: Tensor) -> Tensor:
        return with_altered_gradient(images, round_to_tf32) if len(images) >= 64 else images


@mutant(
    "Net",
    law="batches_of_any_size_are_exact",
    category=Category.NUMERICS,
    dtype="float16",
    unseen={"bfloat16": "it is the dtype"},
)
class LargeBatchGradientInBfloat16(AlteredLayer):
    """From 64 images on, the gradients of fc1's parameters are rounded to bfloat16."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if len(output) < 64:
            return output
        weight, bias = (
            with_altered_gradient(p, lambda gradient: gradient.bfloat16().to(gradient.dtype))
            for p in (layer.weight, layer.bias)
        )
        return with_parameters(layer, inputs[0], weight, bias)


# Memory layout


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.UNALIGNED_TENSOR)
class LastColumnStaleInChannelsLast(AlteredImages):
    """In channels_last layout, the last pixel of each row is a copy of the one before it."""

    def alter(self, images: Tensor) -> Tensor:
        if images.stride(1) != 1:
            return images
        return torch.cat([images[..., :31], images[..., 30:31]], dim=3)


@mutant("Net", law="results_are_correct_in_any_memory_layout", category=Category.UNALIGNED_TENSOR)
class Fc1WeightReadAsContiguous(AlteredLayer):
    """fc1's weight is read as if it were contiguous."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if layer.weight.is_contiguous():
            return output
        return with_parameters(layer, inputs[0], read_as_contiguous(layer.weight), layer.bias)


@mutant("Net", law="results_are_correct_after_memory_format_changes", category=Category.UPSTREAM)
class Conv1OutputPermutedInChannelsLast(AlteredLayer):
    """conv1's output is permuted if its weight is in channels_last layout (pytorch/pytorch#82060)."""

    layer_name = "conv1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if layer.weight.stride(1) != 1:
            return output
        return output.reshape(-1, 28, 28, 6).permute(0, 3, 1, 2)


@mutant("Net", law="backward_is_correct_for_any_upstream_gradient_layout", category=Category.UNALIGNED_TENSOR)
class UpstreamGradientReadAsContiguous(AlteredLogits):
    """The upstream gradient is read as if it were contiguous."""

    def alter(self, logits: Tensor) -> Tensor:
        return with_altered_gradient(logits, read_as_contiguous)


# NaN, infinity, subnormal and largest numbers


@mutant("Net", law="nan_pixel_makes_all_logits_of_its_image_nan", category=Category.INPUT)
class NanPixelsReplacedByZero(AlteredImages):
    """NaN pixels are replaced by 0."""

    def alter(self, images: Tensor) -> Tensor:
        return images.masked_fill(images.isnan(), 0)


@mutant("Net", law="nan_pixel_makes_all_logits_of_its_image_nan", category=Category.ACTIVATION)
class ReluDropsNan(StagedNet):
    """The ReLU after fc2 keeps a value only if it is larger than 0, which NaN is not."""

    def relu4(self, units: Tensor) -> Tensor:
        return torch.where(units > 0, units, 0)


@mutant("torch.nn.functional.relu", law="relu_is_exact_for_nonfinite_values", category=Category.ACTIVATION)
def relu_multiplies_by_mask(tensor: Tensor, inplace: bool = False) -> Tensor:
    """ReLU is a multiplication by a mask, which turns -inf into NaN."""
    return tensor.mul_(tensor > 0) if inplace else tensor * (tensor > 0)


@mutant("torch.nn.functional.relu", law="relu_is_exact_for_nonfinite_values", category=Category.ACTIVATION)
def relu_by_sign_bit(tensor: Tensor, inplace: bool = False) -> Tensor:
    """ReLU replaces values whose sign bit is set, which includes the NaN that x86 computes for inf - inf."""
    negative = tensor.signbit()
    return tensor.masked_fill_(negative, 0) if inplace else tensor.masked_fill(negative, 0)


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_is_exact_for_nonfinite_values", category=Category.LAYER)
def pooling_by_greater_than(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """Max-pooling compares with `>`, which is false for NaN, so that a NaN after a window's first pixel is lost."""
    first = maps[..., ::2, ::2].isnan()
    numbers = max_pool2d(maps.detach().masked_fill(maps.isnan(), -torch.inf), 2)
    output = max_pool2d(maps, *arguments, **options)
    return with_altered_maximum(output, lambda largest: torch.where(largest.isnan() & ~first, numbers, largest))


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_is_exact_for_nonfinite_values", category=Category.LAYER)
def pooling_starts_at_lowest_finite_number(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """The maximum of a pooling window starts at the lowest finite number, and is therefore never -inf."""
    lowest = torch.finfo(maps.dtype).min
    return with_altered_maximum(max_pool2d(maps, *arguments, **options), lambda largest: largest.clamp(min=lowest))


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_is_exact_for_nonfinite_values", category=Category.UPSTREAM)
def pooling_starts_at_zero_in_channels_last(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """In channels_last layout, the maximum starts at 0 (pytorch/pytorch#109586, which is about integers)."""
    output = max_pool2d(maps, *arguments, **options)
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return output
    return with_altered_maximum(output, lambda largest: largest.clamp(min=0))


@mutant("torch.nn.functional.max_pool2d", law="max_pooling_is_exact_for_nonfinite_values", category=Category.LAYER)
def pooling_loses_sign_of_infinity(maps: Tensor, *arguments: Any, **options: Any) -> Any:
    """The maximum of a pooling window that contains only -inf is inf."""
    output = max_pool2d(maps, *arguments, **options)
    return with_altered_maximum(output, lambda largest: torch.where(largest.isinf(), largest.abs(), largest))


@mutant("Net", law="nan_spreads_exactly_over_its_receptive_field", category=Category.NUMERICS)
class NanSpreadsOverMap(AlteredLayer):
    """Zero times the mean of the map is added to each of conv1's output maps, which spreads NaN."""

    layer_name = "conv1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + 0 * output.mean(dim=(2, 3), keepdim=True).detach()


@mutant("Net", law="nonfinite_pixel_does_not_affect_other_images", category=Category.BATCH)
class NanSpreadsOverBatch(AlteredLogits):
    """Zero times the sum over the batch is added to the logits, which spreads NaN and infinity to other images."""

    def alter(self, logits: Tensor) -> Tensor:
        return logits + 0 * logits.sum(dim=0).detach()


@mutant("Net", law="nonfinite_pixel_does_not_affect_gradients_of_other_images", category=Category.BATCH)
class NonfiniteBatchHasNoInputGradient(AlteredImages):
    """The gradient with respect to the images is zero for the entire batch if any pixel is not finite."""

    def alter(self, images: Tensor) -> Tensor:
        finite = images.detach().isfinite().all()
        return with_altered_gradient(images, lambda gradient: gradient.masked_fill(~finite, 0))


@mutant("Net", law="nonfinite_upstream_gradient_does_not_affect_other_images", category=Category.CLIPPING)
class NanGradientReplacedByZero(AlteredLogits):
    """NaN in the upstream gradient is replaced by 0."""

    def alter(self, logits: Tensor) -> Tensor:
        return with_altered_gradient(logits, lambda gradient: gradient.masked_fill(gradient.isnan(), 0))


@mutant("Net", law="subnormal_numbers_are_preserved", category=Category.NUMERICS)
class SubnormalPixelsFlushed(AlteredImages):
    """Subnormal pixels are replaced by 0."""

    def alter(self, images: Tensor) -> Tensor:
        return images.masked_fill(images.abs() < torch.finfo(images.dtype).smallest_normal, 0)


@mutant("Net", law="largest_number_is_preserved_and_next_overflows", category=Category.NUMERICS)
class InfiniteLogitsClamped(AlteredLogits):
    """Infinite logits are clamped to the largest finite number."""

    def alter(self, logits: Tensor) -> Tensor:
        limits = torch.finfo(logits.dtype)
        return logits.clamp(limits.min, limits.max)


# Mixed precision


@mutant("Net", law="autocast_preserves_representable_values", category=Category.NUMERICS)
class AutocastRoundsToBfloat16(AlteredLayer):
    """Under autocast, fc1's weights are rounded to bfloat16 first, even in a float16 region."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(output.device.type):
            return output
        return F.linear(inputs[0], layer.weight.bfloat16().to(output.dtype), layer.bias)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.BATCH)
class WrongFromSeventeenthImage(StagedNet):
    """From the 17th image on, the logits are those of the first image."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.cat([logits[:16], logits[:1].expand(max(0, len(images) - 16), -1)])


# Small errors


def rounded_toward_zero(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float64 numbers in a dtype, rounded toward zero; those of float64 become one unit roundoff smaller."""
    if dtype == torch.float64:
        return numbers * (1 - 2.0**-53)
    return truncate(numbers, dtype)


@mutant("Net", law="typical_errors_are_small", category=Category.NUMERICS, unseen=NARROW)
class Fc1OperandsOf18Bits(Fc1OperandsRoundedTo18Bits):
    """fc1's operands are rounded to 18 bits. No number is as wrong as THRESHOLD budgets."""


TOO_SMALL = {"bfloat16": "1e-6 is below its precision", "float16": "1e-6 is below its precision"}


@mutant("Net", law="typical_errors_are_small", category=Category.NUMERICS, unseen=TOO_SMALL)
class WeightErrorOf1eMinus6(AlteredLayers):
    """All weights have a relative error of 1e-6."""

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return with_parameters(layer, inputs[0], layer.weight * (1 + 1e-6), layer.bias)


@mutant("Net", law="errors_have_no_bias_toward_zero", category=Category.NUMERICS)
class Fc1SumsRoundedTowardZero(AlteredLayer):
    """fc1 rounds its sum toward zero after every 16 terms."""

    layer_name = "fc1"

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        total = torch.zeros_like(output.detach(), dtype=torch.float64)
        columns = layer.weight.detach().double().split(16, dim=1)
        for part, weight in zip(inputs[0].detach().double().split(16, dim=1), columns, strict=True):
            total = rounded_toward_zero(total + part @ weight.T, output.dtype).double()
        return with_gradient_of(output, (total + layer.bias.detach()).to(output.dtype))


@mutant("Net", law="errors_have_no_bias_toward_zero", category=Category.NUMERICS)
class ResultsTruncated(AlteredLayers):
    """All layers round their results toward zero instead of to nearest."""

    @staticmethod
    def alter(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        operands = inputs[0].detach(), layer.weight.detach(), layer.bias.detach()
        exact = with_parameters(layer, *(operand.double() for operand in operands))
        return with_gradient_of(output, rounded_toward_zero(exact, output.dtype))
