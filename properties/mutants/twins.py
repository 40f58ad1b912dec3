"""
Twins: correct variants that look different from the reference, which no law may reject.

Sums that a twin computes itself are accumulated in float32 or float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.func import functional_call, grad_and_value
from torch.utils import data
from torch.utils.checkpoint import checkpoint

import lenet
from properties.mutants import twin
from properties.mutants.staged import StagedNet

FEW = 16
"""The number of images up to which some twins compute in their own way; gradients of so few are exact in bfloat16."""

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of a layer's input, weight and bias."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums of this dtype's values: float32 for 16-bit dtypes, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def windows(maps: Tensor) -> Tensor:
    """Return the 2x2 pooling windows, (N,c,2h,2w) -> (N,c,h,w,4), each in row-major order."""
    split = maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # N,c,h,2,w,2
    return split.transpose(3, 4).flatten(4)


def patches(maps: Tensor) -> Tensor:
    """Return the 5x5 windows that a convolution reads, (N,c,h,w) -> (N,c,h-4,w-4,5,5)."""
    return maps.unfold(2, 5, 1).unfold(3, 5, 1)


class FunctionalNet(StagedNet):
    """LeNet with the methods `convolve` and `linear`, which get the parameters of the layers' modules."""

    def check(self, images: Tensor) -> None:
        super().check(images)
        own = self.conv1.weight
        if (images.dtype, images.device) != (own.dtype, own.device):
            raise ValueError(f"images are {own.dtype} on {own.device}, not {images.dtype} on {images.device}")

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(maps, weight, bias)

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(units, weight, bias)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool1(self.relu1(self.convolve(images, self.conv1.weight, self.conv1.bias)))
        maps = self.pool2(self.relu2(self.convolve(maps, self.conv2.weight, self.conv2.bias)))
        units = self.relu3(self.linear(self.flatten(maps), self.fc1.weight, self.fc1.bias))
        units = self.relu4(self.linear(units, self.fc2.weight, self.fc2.bias))
        return self.linear(units, self.fc3.weight, self.fc3.bias)


def in_accumulation_dtype(operation: Operation, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the operation's result, computed in the accumulation dtype and rounded once."""
    dtype = accumulation_dtype(inputs.dtype)
    return operation(inputs.to(dtype), weight.to(dtype), bias.to(dtype)).to(inputs.dtype)


@twin("Net")
class TutorialNet(nn.Module):
    """The network of PyTorch's tutorial, which pools away the last pixels of images of 33 to 35 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, input: Tensor) -> Tensor:
        c1 = F.relu(self.conv1(input))
        s2 = F.max_pool2d(c1, (2, 2))
        c3 = F.relu(self.conv2(s2))
        s4 = F.max_pool2d(c3, 2)
        s4 = torch.flatten(s4, 1)
        f5 = F.relu(self.fc1(s4))
        f6 = F.relu(self.fc2(f5))
        output: Tensor = self.fc3(f6)
        return output


@twin("Net")
class OlderTutorialNet(TutorialNet):
    """
    The tutorial's network before it had `torch.flatten`, with `num_flat_features`.

    It raises for images in the channels_last layout, whose feature maps `view` refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), (2, 2))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, self.num_flat_features(x))
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x

    def num_flat_features(self, x: Tensor) -> int:
        size = x.size()[1:]
        num_features = 1
        for s in size:
            num_features *= s
        return num_features


@twin("Net")
class OtherSizesCroppedOrPadded(TutorialNet):
    """Images of other sizes are cropped to 32x32 pixels, or padded with zeros on the right and at the bottom."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.pad(images, (0, 32 - images.shape[-1], 0, 32 - images.shape[-2])))


@twin("Net")
class UnbatchedImageAccepted(StagedNet):
    """A single image (1,32,32) without a batch dimension is a batch of one."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[None] if images.dim() == 3 else images)


@twin("Net")
class ReluAfterPooling(StagedNet):
    """ReLU follows max-pooling instead of preceding it, which is the same because ReLU is monotonic."""

    def relu1(self, maps: Tensor) -> Tensor:
        return maps

    def pool1(self, maps: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(maps, 2))

    def relu2(self, maps: Tensor) -> Tensor:
        return maps

    def pool2(self, maps: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(maps, 2))


class WithRelu(StagedNet):
    """All four ReLUs are computed by the method `relu`."""

    def relu(self, numbers: Tensor) -> Tensor:
        return F.relu(numbers)

    def relu1(self, maps: Tensor) -> Tensor:
        return self.relu(maps)

    def relu2(self, maps: Tensor) -> Tensor:
        return self.relu(maps)

    def relu3(self, units: Tensor) -> Tensor:
        return self.relu(units)

    def relu4(self, units: Tensor) -> Tensor:
        return self.relu(units)


@twin("Net")
class ReluInPlace(WithRelu):
    """ReLU overwrites the layers' outputs, which nothing else needs."""

    def relu(self, numbers: Tensor) -> Tensor:
        return F.relu_(numbers)


@twin("Net")
class ReluByWhere(WithRelu):
    """ReLU is computed by `torch.where`, with a condition that keeps NaN."""

    def relu(self, numbers: Tensor) -> Tensor:
        return torch.where(numbers <= 0, 0.0, numbers)


class ReluFunction(torch.autograd.Function):
    """ReLU with custom derivatives: reverse mode, forward mode, and a generated `vmap` rule for both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(numbers: Tensor) -> Tensor:
        return numbers.masked_fill(numbers <= 0, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0] <= 0)
        ctx.save_for_forward(inputs[0] <= 0)

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> Tensor:
        (inactive,) = ctx.saved_tensors
        return grad_output[0].masked_fill(inactive, 0.0)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (inactive,) = ctx.saved_tensors
        return tangents[0].masked_fill(inactive, 0.0)


@twin("Net")
class ReluAsAutogradFunction(WithRelu):
    """ReLU is an `autograd.Function` with correct derivatives."""

    def relu(self, numbers: Tensor) -> Tensor:
        return ReluFunction.apply(numbers)


class TutorialRelu(torch.autograd.Function):
    """ReLU as an `autograd.Function` in the form of PyTorch's tutorials, which `torch.func` does not support."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        output = numbers.masked_fill(numbers <= 0, 0.0)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return grad_output[0].masked_fill(output <= 0, 0.0)


@twin("Net")
class ReluWithBackwardOnly(WithRelu):
    """ReLU is an `autograd.Function` with a backward method only, without a `vmap` rule or forward mode."""

    def relu(self, numbers: Tensor) -> Tensor:
        return TutorialRelu.apply(numbers)


class WithPooling(StagedNet):
    """Both poolings are computed by the method `pool`."""

    def pool(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 2)

    def pool1(self, maps: Tensor) -> Tensor:
        return self.pool(maps)

    def pool2(self, maps: Tensor) -> Tensor:
        return self.pool(maps)


@twin("Net")
class PoolingByMaxOverWindows(WithPooling):
    """Pooling is `max` over the four numbers of each window; as in max-pooling, the first maximum gets the gradient."""

    def pool(self, maps: Tensor) -> Tensor:
        return windows(maps).max(dim=-1).values


@twin("Net")
class AdaptivePooling(WithPooling):
    """Pooling is adaptive max-pooling to half the size, which has the same 2x2 windows."""

    def pool(self, maps: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(maps, maps.shape[-1] // 2)


@twin("Net")
class ReluAndPoolingModules(StagedNet):
    """ReLU, pooling and flattening are modules without parameters, so that the ten parameter names stay the same."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.pool, self.flat = nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool(self.relu(self.conv1(images)))
        maps = self.pool(self.relu(self.conv2(maps)))
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(self.flat(maps))))))


@twin("Net")
class UnregisteredSequential(StagedNet):
    """The layers run as one `nn.Sequential` that is not registered, so that the ten parameter names stay the same."""

    def __init__(self) -> None:
        super().__init__()
        relu, pool = nn.ReLU(), nn.MaxPool2d(2)
        features = (self.conv1, relu, pool, self.conv2, relu, pool, nn.Flatten())
        self.unregistered = [nn.Sequential(*features, self.fc1, relu, self.fc2, relu, self.fc3)]

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return self.unregistered[0](images)


@twin("Net")
class FunctionalLayers(FunctionalNet):
    """The layers' modules are never called: `F.conv2d` and `F.linear` get their weights."""


@twin("Net")
class ConvolutionByUnfold(FunctionalNet):
    """A convolution is one matrix product with all 5x5 patches, which computes the same sums."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return in_accumulation_dtype(self.product, maps, weight, bias)

    def product(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        columns = F.unfold(maps, 5)  # N,25c,hw
        product = weight.flatten(1) @ columns + bias[:, None]
        return product.unflatten(2, (maps.shape[2] - 4, maps.shape[3] - 4))


@twin("Net")
class ConvolutionByEinsum(FunctionalNet):
    """Convolutions and linear layers are computed by `torch.einsum`, which computes the same sums."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return in_accumulation_dtype(self.product, maps, weight, bias)

    def product(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.einsum("nchwij,ocij->nohw", patches(maps), weight) + bias[:, None, None]

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.einsum("ni,oi->no", units, weight) + bias


@twin("Net")
class FiltersOneByOne(FunctionalNet):
    """Each filter and each unit is computed separately, since they are independent."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        filters = zip(weight.split(1), bias.split(1), strict=True)
        return torch.cat([F.conv2d(maps, one, offset) for one, offset in filters], dim=1)

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = zip(weight.split(1), bias.split(1), strict=True)
        return torch.cat([F.linear(units, one, offset) for one, offset in rows], dim=1)


@twin("Net")
class SumsInReverseOrder(FunctionalNet):
    """Sums over channels and units run from the last to the first, which changes only the rounding."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(maps.flip(1), weight.flip(1), bias)

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(units.flip(1), weight.flip(1), bias)


@twin("Net")
class SumsInHalves(FunctionalNet):
    """Each dot product is the sum of two halves (kernel rows or units), which changes only the rounding."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return in_accumulation_dtype(self.rows, maps, weight, bias)

    def rows(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        upper = F.conv2d(maps[:, :, :-3], weight[:, :, :2])
        return upper + F.conv2d(maps[:, :, 2:], weight[:, :, 2:], bias)

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return in_accumulation_dtype(self.units, units, weight, bias)

    def units(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        half = units.shape[1] // 2
        return F.linear(units[:, :half], weight[:, :half]) + F.linear(units[:, half:], weight[:, half:], bias)


@twin("Net")
class ComputesInFloat64(FunctionalNet):
    """The entire network is computed in float64 and the logits are rounded once, which is more accurate."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool1(self.relu1(self.convolve(images.double(), *float64_parameters(self.conv1))))
        maps = self.pool2(self.relu2(self.convolve(maps, *float64_parameters(self.conv2))))
        units = self.relu3(self.linear(self.flatten(maps), *float64_parameters(self.fc1)))
        units = self.relu4(self.linear(units, *float64_parameters(self.fc2)))
        return self.linear(units, *float64_parameters(self.fc3)).to(images.dtype)


def float64_parameters(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a layer's weight and bias in float64."""
    return layer.weight.double(), layer.bias.double()


@twin("Net")
class ChannelsLastInternally(StagedNet):
    """Images and maps are converted to channels_last, which changes their memory layout but no value."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return super().forward(images.contiguous(memory_format=torch.channels_last))

    def pool1(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps.contiguous(memory_format=torch.channels_last), 2)


@twin("Net")
class LinearByConvolution(FunctionalNet):
    """
    For up to FEW images, linear layers are convolutions, the first with 5x5 kernels and the others with 1x1.

    They compute the same sums, but on some processors PyTorch adds up their weight gradients in bfloat16.
    """

    def flatten(self, maps: Tensor) -> Tensor:
        return maps

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if len(units) > FEW:
            return F.linear(units.flatten(1), weight, bias)
        maps = units if units.dim() == 4 else units[:, :, None, None]
        return F.conv2d(maps, weight.unflatten(1, maps.shape[1:]), bias).flatten(1)


@twin("Net")
class ImageByImage(StagedNet):
    """
    Up to FEW images are processed one by one, since they are independent.

    Autograd adds up their gradients in the dtype of the network, which in bfloat16 cannot count beyond 256.
    """

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        parts = images.split(1) if len(images) <= FEW else (images,)
        return torch.cat([super(ImageByImage, self).forward(image) for image in parts])


@twin("Net")
class ActivationsRecomputed(StagedNet):
    """The backward pass recomputes pooling and ReLU from the same inputs (activation checkpointing)."""

    def pool1(self, maps: Tensor) -> Tensor:
        return checkpoint(super().pool1, maps, use_reentrant=False)

    def relu3(self, units: Tensor) -> Tensor:
        return checkpoint(super().relu3, units, use_reentrant=False)


@twin("Net")
class LayersRecomputed(StagedNet):
    """
    The backward pass recomputes conv2 and its pooling (activation checkpointing).

    Its weights must not change before that: PyTorch documents that the gradients may otherwise be wrong.
    """

    def second_stage(self, maps: Tensor) -> Tensor:
        return self.pool2(self.relu2(self.conv2(maps)))

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = checkpoint(self.second_stage, maps, use_reentrant=False)
        units = self.relu3(self.fc1(self.flatten(maps)))
        return self.fc3(self.relu4(self.fc2(units)))


def do_nothing(*_: Any) -> None:
    """A hook that changes nothing."""


@twin("Net")
class PassiveHooks(StagedNet):
    """Each layer has hooks before and after its forward pass and after its backward pass, which change nothing."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2, self.fc3):
            layer.register_forward_pre_hook(do_nothing)
            layer.register_forward_hook(do_nothing)
            layer.register_full_backward_hook(do_nothing)


@twin("torch.nn.functional.relu")
def relu_by_masked_fill(input: Tensor, inplace: bool = False) -> Tensor:
    """ReLU replaces every value that is at most zero by zero."""
    return input.masked_fill_(input <= 0, 0.0) if inplace else input.masked_fill(input <= 0, 0.0)


conv2d = F.conv2d


@twin("torch.nn.functional.conv2d")
def convolution_by_patches(
    input: Tensor, weight: Tensor, bias: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """A convolution in float32 or float64 is a sum of products with all patches, which computes the same sums."""
    plain = (stride, padding, dilation, groups) == ((1, 1), (0, 0), (1, 1), 1) and input.dim() == 4
    plain = plain and input.device == weight.device
    if (
        not plain
        or input.dtype != weight.dtype
        or input.dtype != accumulation_dtype(input.dtype)
        or torch.is_autocast_enabled()
    ):
        return conv2d(input, weight, bias, stride, padding, dilation, groups)
    return torch.einsum("nchwij,ocij->nohw", patches(input), weight) + bias[:, None, None]


mse_loss = F.mse_loss


@twin("torch.nn.functional.mse_loss")
def mse_loss_by_hand(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """The mean of the squared differences is computed by elementary operations."""
    if input.shape != target.shape or reduction != "mean" or (size_average, reduce, weight) != (None, None, None):
        return mse_loss(input, target, size_average, reduce, reduction, weight)
    dtype = torch.promote_types(input.dtype, target.dtype)
    return ((input.to(accumulation_dtype(dtype)) - target) ** 2).mean().to(dtype)


cross_entropy = F.cross_entropy

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "sum": torch.sum, "none": torch.clone}
"""The reductions of a loss, by name."""


@twin("torch.nn.functional.cross_entropy")
def cross_entropy_in_two_steps(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy is a log-softmax followed by `nll_loss`, or by a weighted sum if the targets are probabilities."""
    # What it does not compute itself is left to PyTorch: smoothed labels, and the rounding of autocast.
    if label_smoothing or torch.is_autocast_enabled(input.device.type):
        options = (weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        return cross_entropy(input, target, *options)
    log_probabilities = F.log_softmax(input.to(accumulation_dtype(input.dtype)), dim=1)
    if not target.is_floating_point():
        weight = None if weight is None else weight.to(log_probabilities.dtype)
        options = (weight, size_average, ignore_index, reduce, reduction)
        return F.nll_loss(log_probabilities, target, *options).to(input.dtype)
    if target.shape != input.shape:
        raise ValueError(f"{tuple(target.shape)} probabilities for {tuple(input.shape)} logits")
    losses = -(target * log_probabilities * (1 if weight is None else weight)).sum(dim=1)
    return REDUCTIONS[reduction](losses).to(input.dtype)


@twin("torch.optim.SGD")
class SGDByFormula(optim.SGD):
    """SGD follows its documented formula in a loop over the parameters, whichever implementation is requested."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._step_supports_amp_scaling = False  # so that a GradScaler unscales before the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = -parameter.grad if group["maximize"] else parameter.grad
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * parameter
        if group["momentum"]:
            state = self.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = gradient.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_((1 - group["dampening"]) * gradient)
            velocity = state["momentum_buffer"]
            gradient = gradient + group["momentum"] * velocity if group["nesterov"] else velocity
        parameter.sub_(group["lr"] * gradient)


@twin("torch.optim.lr_scheduler.StepLR")
class StepLRInClosedForm(optim.lr_scheduler.StepLR):
    """Each learning rate is computed from the initial one, by one power."""

    def get_lr(self) -> list[Any]:
        return self._get_closed_form_lr()


@twin("torch.optim.lr_scheduler.CosineAnnealingLR")
class CosineAnnealingInClosedForm(optim.lr_scheduler.CosineAnnealingLR):
    """Each learning rate is computed from the initial one, by one cosine."""

    def get_lr(self) -> list[Any]:
        return self._get_closed_form_lr()


@twin("torch.nn.utils.clip_grad_norm_")
@torch.no_grad()
def clip_by_norm_of_concatenation(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The total norm is computed from one vector; gradients are divided by norm / limit, if that is more than 1."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    total = torch.cat([gradient.flatten() for gradient in gradients]).norm(norm_type)
    if error_if_nonfinite and not total.isfinite():
        raise RuntimeError("the total norm is not finite")
    if total > max_norm:
        for gradient in gradients:
            gradient.mul_(float(max_norm / (total.double() + 1e-6)))
    return total


@twin("torch.nn.utils.clip_grad_value_")
@torch.no_grad()
def clip_by_minimum_and_maximum(
    parameters: Iterable[nn.Parameter], clip_value: float, foreach: bool | None = None
) -> None:
    """Elements are the larger of minus the limit and the smaller of limit and gradient."""
    for parameter in with_gradients(parameters):
        limit = torch.full_like(parameter.grad, clip_value)
        parameter.grad.copy_(torch.maximum(-limit, torch.minimum(limit, parameter.grad)))


@twin("torch.optim.swa_utils.get_ema_multi_avg_fn")
def average_by_two_products(decay: float = 0.999) -> Callable[..., None]:
    """The average is the sum of two products, as documented, not an interpolation."""

    def update(averages: list[Tensor], parameters: list[Tensor], _: Any) -> None:
        for average, parameter in zip(averages, parameters, strict=True):
            average.copy_(decay * average + (1 - decay) * parameter)

    return update


@twin("torch.nn.Module.zero_grad")
def zero_grad_by_hand(self: nn.Module, set_to_none: bool = True) -> None:
    """Each parameter's gradient is set to None or zeroed in place."""
    for parameter in self.parameters():
        if set_to_none or parameter.grad is None:
            parameter.grad = None
        else:
            parameter.grad = parameter.grad.detach().zero_()


@twin("torch.flatten")
def flatten_by_reshape(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Flattening is a reshape."""
    shape, end = input.shape, end_dim % max(1, input.dim())
    return input.reshape(*shape[:start_dim], shape[start_dim : end + 1].numel(), *shape[end + 1 :])


def with_gradients(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that have a gradient."""
    return [parameter for parameter in parameters if parameter.grad is not None]


@twin("sgd_update")
def update_by_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update is a step of `optim.SGD`."""
    optim.SGD(list(parameters), lr=lr).step()


@twin("sgd_update")
def update_of_parameter_data(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update is the tutorial's `f.data.sub_(f.grad.data * learning_rate)`."""
    for parameter in with_gradients(parameters):
        parameter.data.sub_(parameter.grad.data * lr)


@twin("sgd_update")
@torch.no_grad()
def update_by_foreach(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """One call of `torch._foreach_add_` updates all parameters."""
    if with_gradient := with_gradients(parameters):
        torch._foreach_add_(with_gradient, [parameter.grad for parameter in with_gradient], alpha=-lr)


@twin("sgd_update")
@torch.no_grad()
def update_by_add_with_alpha(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The product and the sum are one operation, `add_` with `alpha`."""
    for parameter in with_gradients(parameters):
        parameter.add_(parameter.grad, alpha=-lr)


@twin("sgd_update")
@torch.no_grad()
def update_by_addcmul(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is a tensor in the parameter's dtype, and `addcmul_` adds its product with the gradient."""
    for parameter in with_gradients(parameters):
        parameter.addcmul_(parameter.grad, parameter.new_tensor(-lr))


@twin("sgd_update")
@torch.no_grad()
def update_in_float64(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update is computed in float64 and rounded once."""
    for parameter in with_gradients(parameters):
        parameter.copy_(parameter.double() - lr * parameter.grad.double())


@twin("sgd_update")
@torch.no_grad()
def update_by_copy(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update computes a new tensor and copies it into the parameter's memory."""
    for parameter in with_gradients(parameters):
        parameter.copy_(parameter - lr * parameter.grad)


@twin("sgd_update")
@torch.no_grad()
def update_of_negated_parameter(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The parameter is negated, lr * gradient is added, and the result is negated: negation is exact."""
    for parameter in with_gradients(parameters):
        parameter.neg_().add_(parameter.grad, alpha=lr).neg_()


@twin("sgd_update")
@torch.no_grad()
def update_in_chunks(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Each parameter is updated in up to three chunks, since its elements are independent."""
    for parameter in with_gradients(parameters):
        for piece, gradient in zip(parameter.chunk(3), parameter.grad.chunk(3), strict=True):
            piece.sub_(lr * gradient)


@twin("sgd_update")
@torch.no_grad()
def update_of_concatenated_parameters(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The parameters of each dtype and device are updated as one vector, whose parts are copied back."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for parameter in with_gradients(parameters):
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in groups.values():
        vector = torch.cat([p.flatten() for p in group]) - lr * torch.cat([p.grad.flatten() for p in group])
        for parameter, part in zip(group, vector.split([p.numel() for p in group]), strict=True):
            parameter.copy_(part.view(parameter.shape))


@twin("train_step")
def step_by_optimizer(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The step uses `optim.SGD` for `zero_grad` and for the update."""
    optimizer = optim.SGD(net.parameters(), lr=lr)
    optimizer.zero_grad()
    loss = nn.MSELoss()(net(images), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


@twin("train_step")
def step_with_zeroed_gradients(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The step sets existing gradients to zero instead of None, which gives the same sums."""
    net.zero_grad(set_to_none=False)
    loss = F.mse_loss(net(images), targets)
    loss.backward(torch.ones_like(loss))
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach()


@twin("train_step")
def step_by_autograd_grad(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The step gets the gradients from `torch.autograd.grad` and assigns them to `.grad`."""
    net.zero_grad()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    loss = F.mse_loss(net(images), targets)
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.grad = gradient
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach()


def check_shapes(logits: Tensor, targets: Tensor) -> None:
    """Raise ValueError for targets that elementwise operations would broadcast."""
    if logits.shape != targets.shape:
        raise ValueError(f"{tuple(targets.shape)} targets for {tuple(logits.shape)} logits")


@twin("train_step")
def step_with_manual_loss(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The loss is the sum of the squared errors divided by their number, in the accumulation dtype."""
    net.zero_grad()
    logits = net(images)
    check_shapes(logits, targets)
    dtype = accumulation_dtype(logits.dtype)
    loss = (logits.to(dtype) - targets.to(dtype)).square().sum() / logits.numel()
    loss.backward()
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach().to(logits.dtype)


@twin("train_step")
def step_with_manual_loss_gradient(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Backward starts at the logits, with the derivative of the loss, 2 (logits - targets) / 10 N."""
    net.zero_grad()
    logits = net(images)
    check_shapes(logits, targets)
    errors = logits.detach().to(accumulation_dtype(logits.dtype)) - targets
    logits.backward((2 * errors / max(1, errors.numel())).to(logits.dtype))
    lenet.sgd_update(net.parameters(), lr)
    return errors.square().mean().to(logits.dtype)


@twin("train_step")
def step_in_micro_batches(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The step accumulates gradients over micro-batches of two images, weighted by their share of the batch."""
    net.zero_grad()
    if len(images) != len(targets):
        raise ValueError(f"{len(targets)} targets for {len(images)} images")
    losses = []
    for some_images, some_targets in zip(images.split(2), targets.split(2), strict=True):
        loss = F.mse_loss(net(some_images), some_targets) * (len(some_images) / max(1, len(images)))
        loss.backward()
        losses.append(loss.detach().to(accumulation_dtype(loss.dtype)))
    lenet.sgd_update(net.parameters(), lr)
    return torch.stack(losses).sum().to(images.dtype)


@twin("train_step")
def step_with_update_in_backward(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """A hook updates each parameter as soon as its gradient is complete."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def update(parameter: Tensor) -> None:
        lenet.sgd_update([parameter], lr)

    hooks = [parameter.register_post_accumulate_grad_hook(update) for parameter in trained]
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return loss.detach()


@twin("train_step")
def step_by_functional_call(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The loss is a function of the parameters that `torch.func` differentiates."""
    net.zero_grad()
    trained = {name: parameter.detach() for name, parameter in net.named_parameters() if parameter.requires_grad}

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(functional_call(net, parameters, (images,)), targets)

    gradients, loss = grad_and_value(loss_of)(trained)
    for name, gradient in gradients.items():
        net.get_parameter(name).grad = gradient
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach()


@twin("torch.utils.data.DataLoader")
class LoaderOfListedBatches(data.DataLoader):
    """The batches are listed before each epoch, by a batch sampler with the same settings."""

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        sampler = data.RandomSampler(dataset, generator=generator) if shuffle else data.SequentialSampler(dataset)
        batches = data.BatchSampler(sampler, batch_size, drop_last)
        super().__init__(dataset, batch_sampler=batches, generator=generator, **options)
