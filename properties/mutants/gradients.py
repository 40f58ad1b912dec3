"""The backward pass: the gradients between the loss and `.grad`, `zero_grad`, and the autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn.grad import conv2d_input, conv2d_weight

from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet, with_altered_gradient

backward, grad, zero_grad = Tensor.backward, torch.autograd.grad, nn.Module.zero_grad
call_backward, save_for_backward = BackwardCFunction.apply, FunctionCtx.save_for_backward


class Relu(Function):
    """A ReLU as an `autograd.Function`, for mutants with a fault in one of its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(units: Tensor) -> Tensor:
        return torch.relu(units)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return grad_output.masked_fill(ctx.saved_tensors[0] <= 0, 0)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.masked_fill(ctx.saved_tensors[0] <= 0, 0)


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class BiasGradientAveraged(StagedNet):
    """The gradient of conv1's bias is the mean over the 28x28 positions instead of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.bias.register_hook(lambda gradient: gradient / (28 * 28))


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class KernelGradientTransposed(StagedNet):
    """The gradient of conv2's 5x5 kernels is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2.weight.register_hook(lambda gradient: gradient.transpose(2, 3))


@mutant("Net", law="gradients_match_finite_differences", category=Category.NUMERICS, dtype="float64")
class GradientRoundedToFloat32(StagedNet):
    """In float64, the gradient of fc2's output is rounded to float32."""

    def relu4(self, units: Tensor) -> Tensor:
        return with_altered_gradient(super().relu4(units), lambda gradient: gradient.float().to(gradient.dtype))


@mutant("Net", law="gradient_of_scaled_loss_is_scaled", category=Category.CLIPPING)
class ActivationGradientClipped(StagedNet):
    """The gradient of fc2's output is clamped to [-1, 1]."""

    def relu4(self, units: Tensor) -> Tensor:
        return with_altered_gradient(super().relu4(units), lambda gradient: gradient.clamp(-1, 1))


@mutant("Net", law="second_backward_adds_exactly", category=Category.COMPUTATION_MODEL)
class Fc3BiasGradientOverwritten(StagedNet):
    """Each backward pass overwrites the `.grad` of fc3's bias instead of adding to it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.bias.register_hook(lambda gradient: setattr(self.fc3.bias, "grad", None))


@mutant("Net", law="second_backward_adds_exactly", category=Category.COMPUTATION_MODEL)
class GradientOfPreviousBatch(StagedNet):
    """From the second batch on, fc3's bias gets the gradient of the previous batch."""

    def __init__(self) -> None:
        super().__init__()
        latest: list[Tensor] = []

        def return_previous(gradient: Tensor) -> Tensor:
            latest.append(gradient)
            return latest.pop(0) if len(latest) > 1 else gradient

        self.fc3.bias.register_hook(return_previous)


@mutant("Net", law="micro_batch_gradients_accumulate_to_batch_gradients", category=Category.BATCH)
class SmallerBatchHasNoGradient(StagedNet):
    """A batch that is smaller than the previous one gives no gradient to the layers before fc3."""

    size = 0

    def relu4(self, units: Tensor) -> Tensor:
        dropped, self.size = len(units) < self.size, len(units)
        return with_altered_gradient(super().relu4(units), lambda gradient: gradient * (not dropped))


@mutant("Net", law="gradients_accumulate_in_place", category=Category.COMPUTATION_MODEL)
class Conv1WeightGradientReallocated(StagedNet):
    """After each backward pass, the `.grad` of conv1's weight is a new tensor with the same values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.weight.register_post_accumulate_grad_hook(
            lambda weight: setattr(weight, "grad", weight.grad.clone())
        )


@mutant("Net", law="autograd_grad_matches_backward", category=Category.CLIPPING)
class StoredGradientClipped(StagedNet):
    """Each accumulated `.grad` is clipped to a norm of 1; `torch.autograd.grad` returns unclipped gradients."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self.clip)

    def clip(self, parameter: Tensor) -> None:
        nn.utils.clip_grad_norm_(parameter, 1.0)


@mutant("torch.autograd.grad", law="autograd_grad_matches_backward", category=Category.COMPUTATION_MODEL)
def autograd_grad_writes_to_grad(outputs: Any, inputs: Sequence[Tensor], *args: Any, **options: Any) -> Any:
    """`torch.autograd.grad` also writes the gradients that it returns to `.grad`."""
    gradients = grad(outputs, inputs, *args, **options)
    for leaf, gradient in zip(inputs, gradients, strict=True):
        if leaf.is_leaf:
            leaf.grad = gradient
    return gradients


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API)
def zero_grad_does_nothing(net: nn.Module, set_to_none: bool = True) -> None:
    """`zero_grad` leaves every `.grad` unchanged."""


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API_CHANGE)
def zero_grad_never_sets_to_none(net: nn.Module, set_to_none: bool = False) -> None:
    """`zero_grad` sets gradients to zero even with `set_to_none=True`; zero was the default before PyTorch 2.0."""
    zero_grad(net, set_to_none=False)


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API)
def zero_grad_always_sets_to_none(net: nn.Module, set_to_none: bool = True) -> None:
    """`zero_grad` sets gradients to None even with `set_to_none=False`."""
    zero_grad(net)


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API)
def zero_grad_skips_frozen_parameters(net: nn.Module, set_to_none: bool = True) -> None:
    """`zero_grad` keeps the gradient of a parameter that was frozen after it got one."""
    held = {parameter: parameter.grad for parameter in net.parameters() if not parameter.requires_grad}
    zero_grad(net, set_to_none)
    for parameter, gradient in held.items():
        parameter.grad = gradient


@mutant("Net", law="zero_grad_discards_earlier_gradients", category=Category.API)
class ZeroGradSkipsFc3(StagedNet):
    """The network's `zero_grad` skips fc3."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            layer.zero_grad(set_to_none)


@mutant("torch.Tensor.backward", law="backward_through_freed_graph_raises", category=Category.API)
def graph_always_retained(
    tensor: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    """`backward` retains every graph, so that a second backward pass does not raise and memory is not freed."""
    backward(tensor, gradient, retain_graph=True, create_graph=create_graph, inputs=inputs)


@mutant("Net", law="backward_through_freed_graph_raises", category=Category.COMPUTATION_MODEL)
class GraphStoredOnContext(StagedNet):
    """The network is one autograd node that keeps its graph in a plain attribute, which autograd does not free."""

    class NetworkNode(Function):
        """An autograd node that contains the graph of the entire network."""

        @staticmethod
        def forward(
            ctx: Any, compute_logits: Callable[[Tensor], Tensor], images: Tensor, *parameters: Tensor
        ) -> Tensor:
            ctx.inputs = (images.detach().requires_grad_(images.requires_grad), *parameters)
            with torch.enable_grad():
                ctx.logits = compute_logits(ctx.inputs[0])
            return ctx.logits.detach()

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            differentiable = [tensor for tensor in ctx.inputs if tensor.requires_grad]
            found = iter(grad(ctx.logits, differentiable, grad_output, retain_graph=True))
            return None, *(next(found) if tensor.requires_grad else None for tensor in ctx.inputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.NetworkNode.apply(super().forward, images, *self.parameters())


@mutant("Net", law="backward_twice_through_retained_graph_doubles_gradients", category=Category.COMPUTATION_MODEL)
class BackwardClearsSavedMask(StagedNet):
    """The backward pass of the last ReLU clears the mask that its forward pass saved."""

    class ClearingRelu(Relu):
        """A ReLU that stores its mask as an attribute, outside autograd's version counting."""

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.mask = (output > 0).to(output.dtype)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            grad_input = grad_output * ctx.mask
            ctx.mask.zero_()
            return grad_input

    def relu4(self, units: Tensor) -> Tensor:
        return self.ClearingRelu.apply(units)


@mutant("Net", law="gradient_of_sum_is_sum_of_gradients", category=Category.COMPUTATION_MODEL)
class ReluMaskStoredOnModule(StagedNet):
    """The gradient of fc2's output is masked by the latest forward pass of the same batch size, not by its own."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[torch.Size, Tensor] = {}

    def relu4(self, units: Tensor) -> Tensor:
        self.masks[units.shape] = units > 0
        return with_altered_gradient(super().relu4(units), lambda gradient: gradient * self.masks[gradient.shape])


@mutant("Net", law="no_gradient_accumulates_under_no_grad", category=Category.API)
class GraphRecordedUnderNoGrad(StagedNet):
    """The forward pass records a graph even under `torch.no_grad()`."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(images)


@mutant("Net", law="graph_reaches_exactly_the_parameters", category=Category.COMPUTATION_MODEL)
class UnregisteredLeafInGraph(StagedNet):
    """The logits are multiplied by a leaf tensor (1.0) that requires a gradient but is not a registered parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = [torch.tensor(1.0, requires_grad=True)]  # nn.Module does not register tensors in a list

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.temperature[0].to(images.device)


@mutant("Net", law="relu_gradient_at_zero_is_zero", category=Category.ACTIVATION)
class ReluGradientOneAtZero(StagedNet):
    """The gradient of the last ReLU at exactly 0 is 1 instead of 0."""

    class OneAtZeroRelu(Relu):
        """A ReLU whose derivative at 0 is 1."""

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            return grad_output.masked_fill(ctx.saved_tensors[0] < 0, 0)

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent.masked_fill(ctx.saved_tensors[0] < 0, 0)

    def relu4(self, units: Tensor) -> Tensor:
        return self.OneAtZeroRelu.apply(units)


@mutant("Net", law="input_gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class InputGradientMirrored(StagedNet):
    """The gradient with respect to the images is mirrored horizontally; the parameters' gradients are correct."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(with_altered_gradient(images, lambda gradient: gradient.flip(3)))


@mutant("Net", law="backward_is_correct_for_any_upstream_gradient_layout", category=Category.UNALIGNED_TENSOR)
class TransposedUpstreamGradientMisread(StagedNet):
    """An upstream gradient in column-major memory order is read as if it were row-major."""

    def forward(self, images: Tensor) -> Tensor:
        return with_altered_gradient(super().forward(images), self.misread)

    def misread(self, gradient: Tensor) -> Tensor:
        return gradient.t().reshape(gradient.shape) if gradient.stride(0) == 1 else gradient


@mutant("Net", law="backward_is_correct_for_any_upstream_gradient_layout", category=Category.UNALIGNED_TENSOR)
class ExpandedUpstreamGradientMisread(StagedNet):
    """An upstream gradient that is expanded from one number is applied to the first logit only."""

    def forward(self, images: Tensor) -> Tensor:
        return with_altered_gradient(super().forward(images), self.misread)

    def misread(self, gradient: Tensor) -> Tensor:
        return F.pad(gradient[:, :1], (0, 9)) if not any(gradient.stride()) else gradient


@mutant("Net", law="hessian_vector_products_match_finite_differences", category=Category.API, dtype="float64")
class BackwardNotDifferentiable(StagedNet):
    """The gradient of fc2's output is detached, so that second derivatives treat it as a constant."""

    def relu4(self, units: Tensor) -> Tensor:
        return with_altered_gradient(super().relu4(units), Tensor.detach)


@mutant(
    "Net",
    law="second_derivatives_are_exact",
    category=Category.COMPUTATION_MODEL,
    dtype="bfloat16",
    unseen=dict.fromkeys(("float32", "float64"), "the fault is in 16 bits alone"),
)
class BackwardNotDifferentiableIn16Bits(StagedNet):
    """In 16 bits, the gradient of fc2's output is detached, so that second derivatives treat it as a constant."""

    def relu4(self, units: Tensor) -> Tensor:
        units = super().relu4(units)
        return with_altered_gradient(units, Tensor.detach) if units.element_size() == 2 else units


@mutant("Net", law="second_derivatives_are_exact", category=Category.COMPUTATION_MODEL)
class InputGradientNotDifferentiable(StagedNet):
    """The gradient with respect to the images is detached, so that it cannot be differentiated."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(with_altered_gradient(images, Tensor.detach))


@mutant("Net", law="frozen_parameters_change_no_other_gradient", category=Category.COMPUTATION_MODEL)
class InputGradientStopsAtFrozenConv1(StagedNet):
    """The images get no gradient if conv1 is frozen, as if no earlier layer could need one."""

    def forward(self, images: Tensor) -> Tensor:
        frozen = not any(parameter.requires_grad for parameter in self.conv1.parameters())
        return super().forward(images.detach() if frozen else images)


@mutant("Net", law="frozen_parameters_change_no_other_gradient", category=Category.COMPUTATION_MODEL, dtype="float16")
class BiasGradientOnlyWithWeightGradient(StagedNet):
    """The gradient of fc2's bias is computed together with that of its weight, and not if the weight is frozen."""

    def relu3(self, units: Tensor) -> Tensor:
        bias, weight = self.fc2.bias, self.fc2.weight
        self.fc2.forward = lambda inputs: F.linear(inputs, weight, bias if weight.requires_grad else bias.detach())
        return super().relu3(units)


@mutant("Net", law="frozen_parameters_change_no_other_gradient", category=Category.API, dtype="float64")
class ForwardUnfreezesParameters(StagedNet):
    """The forward pass sets `requires_grad=True` on all parameters."""

    def forward(self, images: Tensor) -> Tensor:
        self.requires_grad_()
        return super().forward(images)


@mutant(
    "Net", law="forward_over_reverse_matches_reverse_over_reverse", category=Category.COMPUTATION_MODEL, dtype="float64"
)
class ForwardOverReverseDerivativeIsZero(StagedNet):
    """The backward pass through fc2's ReLU supports double backward, but its forward-mode derivative is always 0."""

    class WithoutTangent(Function):
        """The identity function, with a forward-mode derivative of 0."""

        generate_vmap_rule = True

        @staticmethod
        def forward(gradient: Tensor) -> Tensor:
            return gradient.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> Tensor:
            return grad_output

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return torch.zeros_like(tangent)

    def relu4(self, units: Tensor) -> Tensor:
        return with_altered_gradient(super().relu4(units), self.WithoutTangent.apply)


@mutant(
    "Net",
    law="forward_mode_agrees_with_the_oracle",
    category=Category.COMPUTATION_MODEL,
    unseen={"bfloat16": "it changes derivatives by a tenth, as much as the rounding errors of bfloat16 may"},
)
class ReluForwardDerivativeMissing(StagedNet):
    """In forward mode, the derivative of the last ReLU is 1 everywhere; in reverse mode it is correct."""

    class ReluWithoutJvp(Relu):
        """A ReLU whose forward-mode derivative is 1 everywhere."""

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent.clone()

    def relu4(self, units: Tensor) -> Tensor:
        return self.ReluWithoutJvp.apply(units)


@mutant("Net", law="forward_mode_agrees_with_the_oracle", category=Category.COMPUTATION_MODEL, dtype="bfloat16")
class ReluForwardDerivativeZero(StagedNet):
    """In forward mode, the derivative of the last ReLU is 0 everywhere; in reverse mode it is correct."""

    class ReluWithZeroJvp(Relu):
        """A ReLU whose forward-mode derivative is 0 everywhere."""

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return torch.zeros_like(tangent)

    def relu4(self, units: Tensor) -> Tensor:
        return self.ReluWithZeroJvp.apply(units)


@mutant("Net", law="per_sample_gradients_sum_to_batch_gradient", category=Category.COMPUTATION_MODEL)
class VmapRuleUsesFirstMask(StagedNet):
    """Under `vmap`, the last ReLU applies the mask of the first image to all images."""

    class BatchedRelu(Relu):
        """A ReLU with a custom, faulty rule for `vmap`."""

        generate_vmap_rule = False

        @staticmethod
        def vmap(info: Any, dimensions: tuple[int], units: Tensor) -> tuple[Tensor, int]:
            units = units.movedim(dimensions[0], 0)
            return units.masked_fill(units[:1] <= 0, 0), 0

    def relu4(self, units: Tensor) -> Tensor:
        return self.BatchedRelu.apply(units)


@mutant(
    "torch.autograd.function.BackwardCFunction.apply",
    law="custom_autograd_function_joins_the_graph",
    category=Category.COMPUTATION_MODEL,
)
def upstream_gradient_ignored(node: Any, *grad_outputs: Tensor) -> Any:
    """The backward method of an `autograd.Function` receives ones instead of the upstream gradient."""
    return call_backward(node, *map(torch.ones_like, grad_outputs))


@mutant(
    "torch.autograd.function.FunctionCtx.save_for_backward",
    law="custom_autograd_function_joins_the_graph",
    category=Category.COMPUTATION_MODEL,
)
def saved_tensors_reversed(context: Any, *tensors: Tensor) -> None:
    """The tensors that an `autograd.Function` saves reach its backward method in reverse order."""
    save_for_backward(context, *tensors[::-1])


@mutant("Net", law="backward_after_parameter_change_raises_or_uses_saved_values", category=Category.COMPUTATION_MODEL)
class WeightsReadInBackward(StagedNet):
    """The backward pass of conv2 reads the weights at that time, which it has not saved by `save_for_backward`."""

    class Convolution(Function):
        """A convolution that keeps its weights as an attribute of the context."""

        @staticmethod
        def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            ctx.save_for_backward(maps)
            ctx.weight = weight
            return F.conv2d(maps, weight, bias)

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
            (maps,), (grad,), weight = ctx.saved_tensors, grad_outputs, ctx.weight
            with_respect_to_maps = conv2d_input(maps.shape, weight, grad)
            return with_respect_to_maps, conv2d_weight(maps, weight.shape, grad), grad.sum((0, 2, 3))

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.Convolution.apply(maps, self.conv2.weight, self.conv2.bias)))
        units = self.relu3(self.fc1(self.flatten(maps)))
        return self.fc3(self.relu4(self.fc2(units)))
