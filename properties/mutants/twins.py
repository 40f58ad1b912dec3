"""
Correct variants that look different: no law is to reject them.

What is computed otherwise than by PyTorch's layers is added up as wide as a dtype claims, in float32 or float64, and
rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.func import functional_call, grad_and_value
from torch.utils.checkpoint import checkpoint

import lenet
from properties.mutants import twin
from properties.mutants.staged import Staged

Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What a layer does with its input, weight and bias."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """What the dtype's sums are added up in."""
    return torch.promote_types(dtype, torch.float32)


def windows(maps: Tensor) -> Tensor:
    """The 2x2 pooling windows, (N,c,2h,2w) -> (N,c,h,w,4), each in row-major order."""
    split = maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # N,c,h,2,w,2
    return split.transpose(3, 4).flatten(4)


def patches(maps: Tensor) -> Tensor:
    """The 5x5 windows that a convolution reads, (N,c,h,w) -> (N,c,h-4,w-4,5,5)."""
    return maps.unfold(2, 5, 1).unfold(3, 5, 1)


class ByHand(Staged):
    """The layers' products by functions of the variant's own, which the layers' modules only lend their parameters."""

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


def widened(operation: Operation, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The operation in the precision that sums are added up in, rounded once."""
    dtype = wide(inputs.dtype)
    return operation(inputs.to(dtype), weight.to(dtype), bias.to(dtype)).to(inputs.dtype)


@twin("Net")
class ReluAfterPooling(Staged):
    """The maximum of a window is rectified, instead of each of its elements."""

    def relu1(self, maps: Tensor) -> Tensor:
        return maps

    def pool1(self, maps: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(maps, 2))

    def relu2(self, maps: Tensor) -> Tensor:
        return maps

    def pool2(self, maps: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(maps, 2))


class Rectified(Staged):
    """All four ReLUs by one function of the variant's own."""

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
class ReluInPlace(Rectified):
    """The layers' outputs, which nothing else needs, are overwritten by their ReLU."""

    def relu(self, numbers: Tensor) -> Tensor:
        return F.relu_(numbers)


@twin("Net")
class ReluByWhere(Rectified):
    """ReLU as a choice that keeps NaN: zero where a number is at most zero, else the number."""

    def relu(self, numbers: Tensor) -> Tensor:
        return torch.where(numbers <= 0, 0.0, numbers)


class Relu(torch.autograd.Function):
    """ReLU with derivatives of its own: by backward pass, forward mode, and both of them batched."""

    generate_vmap_rule = True

    @staticmethod
    def forward(numbers: Tensor) -> Tensor:
        return numbers.masked_fill(numbers <= 0, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0] <= 0)
        ctx.save_for_forward(inputs[0] <= 0)

    @staticmethod
    def backward(ctx: Any, *by_output: Tensor) -> Tensor:
        (closed,) = ctx.saved_tensors
        return by_output[0].masked_fill(closed, 0.0)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (closed,) = ctx.saved_tensors
        return tangents[0].masked_fill(closed, 0.0)


@twin("Net")
class ReluWithItsOwnDerivatives(Rectified):
    """ReLU as an `autograd.Function`."""

    def relu(self, numbers: Tensor) -> Tensor:
        return Relu.apply(numbers)


class PlainRelu(torch.autograd.Function):
    """ReLU in the form that tutorials have it, which `torch.func` does not take."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        output = numbers.masked_fill(numbers <= 0, 0.0)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *by_output: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return by_output[0].masked_fill(output <= 0, 0.0)


@twin("Net")
class ReluWithABackwardOnly(Rectified):
    """ReLU as an `autograd.Function` without batching rule and forward mode."""

    def relu(self, numbers: Tensor) -> Tensor:
        return PlainRelu.apply(numbers)


class Pooled(Staged):
    """Both poolings by one function of the variant's own."""

    def pool(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 2)

    def pool1(self, maps: Tensor) -> Tensor:
        return self.pool(maps)

    def pool2(self, maps: Tensor) -> Tensor:
        return self.pool(maps)


@twin("Net")
class PoolingByMaximum(Pooled):
    """The maximum over a dimension of the windows' four numbers, of which the first has the gradient."""

    def pool(self, maps: Tensor) -> Tensor:
        return windows(maps).max(dim=-1).values


@twin("Net")
class PoolingToASize(Pooled):
    """Adaptive pooling to half the size."""

    def pool(self, maps: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(maps, maps.shape[-1] // 2)


@twin("Net")
class ModulesForFunctions(Staged):
    """ReLU, pooling and flattening are modules without parameters, registered beside the five layers."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.pool, self.flat = nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool(self.relu(self.conv1(images)))
        maps = self.pool(self.relu(self.conv2(maps)))
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(self.flat(maps))))))


@twin("Net")
class SequentialInside(Staged):
    """The layers run as one `nn.Sequential`, which is held without being registered: the ten names stay."""

    def __init__(self) -> None:
        super().__init__()
        relu, pool = nn.ReLU(), nn.MaxPool2d(2)
        features = (self.conv1, relu, pool, self.conv2, relu, pool, nn.Flatten())
        self.whole = [nn.Sequential(*features, self.fc1, relu, self.fc2, relu, self.fc3)]

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return self.whole[0](images)


@twin("Net")
class FunctionsForModules(ByHand):
    """The layers' modules are never called: `F.conv2d` and `F.linear` take their weights."""


@twin("Net")
class ConvolutionByUnfold(ByHand):
    """A convolution as one matrix product with all 5x5 patches."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return widened(self.product, maps, weight, bias)

    def product(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        columns = F.unfold(maps, 5)  # N,25c,hw
        product = weight.flatten(1) @ columns + bias[:, None]
        return product.unflatten(2, (maps.shape[2] - 4, maps.shape[3] - 4))


@twin("Net")
class ConvolutionByEinsum(ByHand):
    """Products as sums over named indices."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return widened(self.product, maps, weight, bias)

    def product(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.einsum("nchwij,ocij->nohw", patches(maps), weight) + bias[:, None, None]

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.einsum("ni,oi->no", units, weight) + bias


@twin("Net")
class FiltersOneByOne(ByHand):
    """Each filter and each unit is computed by itself."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        filters = zip(weight.split(1), bias.split(1), strict=True)
        return torch.cat([F.conv2d(maps, one, offset) for one, offset in filters], dim=1)

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = zip(weight.split(1), bias.split(1), strict=True)
        return torch.cat([F.linear(units, one, offset) for one, offset in rows], dim=1)


@twin("Net")
class SumsBackwards(ByHand):
    """Channels and units are added up from the last to the first."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(maps.flip(1), weight.flip(1), bias)

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(units.flip(1), weight.flip(1), bias)


@twin("Net")
class SumsInHalves(ByHand):
    """Each dot product is the sum of two, over the kernels' upper and lower rows, and over half of the units each."""

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return widened(self.rows, maps, weight, bias)

    def rows(self, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        upper = F.conv2d(maps[:, :, :-3], weight[:, :, :2])
        return upper + F.conv2d(maps[:, :, 2:], weight[:, :, 2:], bias)

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return widened(self.units, units, weight, bias)

    def units(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        half = units.shape[1] // 2
        return F.linear(units[:, :half], weight[:, :half]) + F.linear(units[:, half:], weight[:, half:], bias)


@twin("Net")
class Float64Inside(ByHand):
    """All is computed in float64, and the scores are rounded once."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool1(self.relu1(self.convolve(images.double(), *exactly(self.conv1))))
        maps = self.pool2(self.relu2(self.convolve(maps, *exactly(self.conv2))))
        units = self.relu3(self.linear(self.flatten(maps), *exactly(self.fc1)))
        units = self.relu4(self.linear(units, *exactly(self.fc2)))
        return self.linear(units, *exactly(self.fc3)).to(images.dtype)


def exactly(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias in float64."""
    return layer.weight.double(), layer.bias.double()


@twin("Net")
class ChannelsLastInside(Staged):
    """Images and maps are laid out channels_last on the way."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return super().forward(images.contiguous(memory_format=torch.channels_last))

    def pool1(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps.contiguous(memory_format=torch.channels_last), 2)


@twin("Net")
class LinearByConvolution(ByHand):
    """Linear layers are convolutions: the first with 5x5 kernels, the others with 1x1."""

    def flatten(self, maps: Tensor) -> Tensor:
        return maps

    def linear(self, units: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        maps = units if units.dim() == 4 else units[:, :, None, None]
        return F.conv2d(maps, weight.unflatten(1, maps.shape[1:]), bias).flatten(1)


@twin("Net")
class ImageByImage(Staged):
    """The images of a batch are scored one by one."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return torch.cat([super(ImageByImage, self).forward(image) for image in images.split(1)])


@twin("Net")
class MiddleRecomputed(Staged):
    """What ReLU and pooling would keep for the backward pass is computed again by it."""

    def pool1(self, maps: Tensor) -> Tensor:
        return checkpoint(super().pool1, maps, use_reentrant=False)

    def relu3(self, units: Tensor) -> Tensor:
        return checkpoint(super().relu3, units, use_reentrant=False)


def look(*_: Any) -> None:
    """A hook that changes nothing."""


@twin("Net")
class HooksThatOnlyLook(Staged):
    """Hooks before and after each layer, forward and backward, which change nothing."""

    def __init__(self) -> None:
        super().__init__()
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2, self.fc3):
            layer.register_forward_pre_hook(look)
            layer.register_forward_hook(look)
            layer.register_full_backward_hook(look)


@twin("torch.nn.functional.relu")
def relu_by_mask(input: Tensor, inplace: bool = False) -> Tensor:
    """What is at most zero is filled with zero."""
    return input.masked_fill_(input <= 0, 0.0) if inplace else input.masked_fill(input <= 0, 0.0)


whole_conv2d = F.conv2d


@twin("torch.nn.functional.conv2d")
def convolution_of_patches(
    input: Tensor, weight: Tensor, bias: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """A convolution of float32 or float64 as a sum over the products with all patches."""
    plain = (stride, padding, dilation, groups) == ((1, 1), (0, 0), (1, 1), 1) and input.dim() == 4
    plain = plain and input.device == weight.device
    if not plain or input.dtype != weight.dtype or input.dtype != wide(input.dtype) or torch.is_autocast_enabled():
        return whole_conv2d(input, weight, bias, stride, padding, dilation, groups)
    return torch.einsum("nchwij,ocij->nohw", patches(input), weight) + bias[:, None, None]


whole_mse_loss = F.mse_loss


@twin("torch.nn.functional.mse_loss")
def mse_loss_by_hand(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """The mean of the squared differences, in plain operations."""
    if input.shape != target.shape or reduction != "mean" or (size_average, reduce, weight) != (None, None, None):
        return whole_mse_loss(input, target, size_average, reduce, reduction, weight)
    dtype = torch.promote_types(input.dtype, target.dtype)
    return ((input.to(wide(dtype)) - target) ** 2).mean().to(dtype)


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
    """A logarithm of the softmax, and the loss that picks or weights it."""
    chances = F.log_softmax(input.to(wide(input.dtype)), dim=1)
    if not target.is_floating_point():
        options = (weight, size_average, ignore_index, reduce, reduction)
        return F.nll_loss(chances, target, *options).to(input.dtype)
    if target.shape != input.shape:
        raise ValueError(f"{tuple(target.shape)} shares for {tuple(input.shape)} scores")
    return (-(target * chances).sum() / len(input)).to(input.dtype)


@twin("torch.optim.SGD")
class SGDByItsFormula(optim.SGD):
    """The documented formula in a loop over the parameters, whatever form is asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._step_supports_amp_scaling = False  # a GradScaler then unscales before the step

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
        slope = -parameter.grad if group["maximize"] else parameter.grad
        if group["weight_decay"]:
            slope = slope + group["weight_decay"] * parameter
        if group["momentum"]:
            state = self.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = slope.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_((1 - group["dampening"]) * slope)
            velocity = state["momentum_buffer"]
            slope = slope + group["momentum"] * velocity if group["nesterov"] else velocity
        parameter.sub_(group["lr"] * slope)


@twin("torch.nn.Module.zero_grad")
def zero_grad_by_hand(self: nn.Module, set_to_none: bool = True) -> None:
    """Each parameter's gradient is dropped or replaced by zeros in its own memory."""
    for parameter in self.parameters():
        if set_to_none or parameter.grad is None:
            parameter.grad = None
        else:
            parameter.grad = parameter.grad.detach().zero_()


@twin("torch.flatten")
def flatten_by_reshape(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Flattening as a change of shape."""
    shape, end = input.shape, end_dim % max(1, input.dim())
    return input.reshape(*shape[:start_dim], shape[start_dim : end + 1].numel(), *shape[end + 1 :])


def updated(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that have a gradient."""
    return [parameter for parameter in parameters if parameter.grad is not None]


@twin("sgd_update")
def update_by_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A step of `optim.SGD`."""
    optim.SGD(list(parameters), lr=lr).step()


@twin("sgd_update")
def update_of_data(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """`f.data.sub_(f.grad.data * learning_rate)`, as the tutorial has it."""
    for parameter in updated(parameters):
        parameter.data.sub_(parameter.grad.data * lr)


@twin("sgd_update")
@torch.no_grad()
def update_by_foreach(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """All parameters in one call."""
    if own := updated(parameters):
        torch._foreach_add_(own, [parameter.grad for parameter in own], alpha=-lr)


@twin("sgd_update")
@torch.no_grad()
def update_fused(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The product and the sum in one operation."""
    for parameter in updated(parameters):
        parameter.add_(parameter.grad, alpha=-lr)


@twin("sgd_update")
@torch.no_grad()
def update_by_addcmul(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is a tensor in the parameter's dtype, whose product with the gradient is added."""
    for parameter in updated(parameters):
        parameter.addcmul_(parameter.grad, parameter.new_tensor(-lr))


@twin("sgd_update")
@torch.no_grad()
def update_in_float64(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """In float64, and rounded once."""
    for parameter in updated(parameters):
        parameter.copy_(parameter.double() - lr * parameter.grad.double())


@twin("sgd_update")
@torch.no_grad()
def update_by_copy(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A new tensor, which is then copied."""
    for parameter in updated(parameters):
        parameter.copy_(parameter - lr * parameter.grad)


@twin("sgd_update")
@torch.no_grad()
def update_of_the_negative(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The gradient is added to the negative parameter."""
    for parameter in updated(parameters):
        parameter.neg_().add_(parameter.grad, alpha=lr).neg_()


@twin("sgd_update")
@torch.no_grad()
def update_in_pieces(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Each parameter in up to three pieces."""
    for parameter in updated(parameters):
        for piece, slope in zip(parameter.chunk(3), parameter.grad.chunk(3), strict=True):
            piece.sub_(lr * slope)


@twin("train_step")
def step_by_optimizer(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """With `optim.SGD` from beginning to end."""
    optimizer = optim.SGD(net.parameters(), lr=lr)
    optimizer.zero_grad()
    loss = nn.MSELoss()(net(images), targets)
    loss.backward()
    optimizer.step()
    return loss.detach()


@twin("train_step")
def step_from_zeros(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Gradients begin as zeros where there were some."""
    net.zero_grad(set_to_none=False)
    loss = F.mse_loss(net(images), targets)
    loss.backward(torch.ones_like(loss))
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach()


@twin("train_step")
def step_by_autograd_grad(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The gradients are returned by `torch.autograd.grad`, and put in their places by hand."""
    net.zero_grad()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    loss = F.mse_loss(net(images), targets)
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.grad = gradient
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach()


def same_shape(scores: Tensor, targets: Tensor) -> None:
    """Refuse targets that arithmetic would broadcast."""
    if scores.shape != targets.shape:
        raise ValueError(f"{tuple(targets.shape)} targets for {tuple(scores.shape)} scores")


@twin("train_step")
def step_with_its_own_loss(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The sum of the squared errors divided by their number, added up as wide as the dtype claims."""
    net.zero_grad()
    scores = net(images)
    same_shape(scores, targets)
    dtype = wide(scores.dtype)
    loss = (scores.to(dtype) - targets.to(dtype)).square().sum() / scores.numel()
    loss.backward()
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach().to(scores.dtype)


@twin("train_step")
def step_from_the_scores(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Backward begins at the scores, with the loss's derivative 2 (scores - targets) / 10 N."""
    net.zero_grad()
    scores = net(images)
    same_shape(scores, targets)
    errors = scores.detach().to(wide(scores.dtype)) - targets
    scores.backward((2 * errors / max(1, errors.numel())).to(scores.dtype))
    lenet.sgd_update(net.parameters(), lr)
    return errors.square().mean().to(scores.dtype)


@twin("train_step")
def step_in_pairs(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Two images at a time, whose loss counts by their share of the batch."""
    net.zero_grad()
    if len(images) != len(targets):
        raise ValueError(f"{len(targets)} targets for {len(images)} images")
    losses = []
    for some, goals in zip(images.split(2), targets.split(2), strict=True):
        loss = F.mse_loss(net(some), goals) * (len(some) / max(1, len(images)))
        loss.backward()
        losses.append(loss.detach().to(wide(loss.dtype)))
    lenet.sgd_update(net.parameters(), lr)
    return torch.stack(losses).sum().to(images.dtype)


@twin("train_step")
def step_in_backward(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Each parameter is updated by a hook as soon as it has its gradient."""
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
def step_of_a_function(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The loss is a function of the parameters, which `torch.func` differentiates."""
    net.zero_grad()
    trained = {name: parameter.detach() for name, parameter in net.named_parameters() if parameter.requires_grad}

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(functional_call(net, parameters, (images,)), targets)

    slopes, loss = grad_and_value(loss_of)(trained)
    for name, slope in slopes.items():
        net.get_parameter(name).grad = slope
    lenet.sgd_update(net.parameters(), lr)
    return loss.detach()
