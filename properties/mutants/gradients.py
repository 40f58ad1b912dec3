"""The backward pass: what becomes of the gradients between the loss and `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.utils.checkpoint import checkpoint

from properties.mutants import Category, mutant
from properties.mutants.staged import Staged, with_gradient

backward, grad, zero_grad = Tensor.backward, torch.autograd.grad, nn.Module.zero_grad
call_backward, save_for_backward = BackwardCFunction.apply, FunctionCtx.save_for_backward


class Relu(Function):
    """ReLU by hand, for variants that are wrong in one of its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(units: Tensor) -> Tensor:
        return torch.relu(units)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, by_output: Tensor) -> Tensor:
        return by_output.masked_fill(ctx.saved_tensors[0] <= 0, 0)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.masked_fill(ctx.saved_tensors[0] <= 0, 0)


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class BiasGradientIsAMean(Staged):
    """conv1.bias's gradient is the mean over the 28x28 positions of its maps, not the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.bias.register_hook(lambda gradient: gradient / (28 * 28))


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class KernelGradientTransposed(Staged):
    """The gradient of conv2's 5x5 kernels has rows for columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2.weight.register_hook(lambda gradient: gradient.transpose(2, 3))


@mutant("Net", law="gradients_match_finite_differences", category=Category.NUMERICS, dtype="float64")
class GradientThroughFloat32(Staged):
    """In float64 the gradient of fc2's units is rounded to float32."""

    def relu4(self, units: Tensor) -> Tensor:
        return with_gradient(super().relu4(units), lambda gradient: gradient.float().to(gradient.dtype))


@mutant("Net", law="gradient_of_scaled_loss_is_scaled", category=Category.CLIPPING)
class GradientClippedOnItsWay(Staged):
    """The gradient of fc2's units is cut to what lies between -1 and 1."""

    def relu4(self, units: Tensor) -> Tensor:
        return with_gradient(super().relu4(units), lambda gradient: gradient.clamp(-1, 1))


@mutant("Net", law="second_backward_adds_exactly", category=Category.COMPUTATION_MODEL)
class GradientOverwritten(Staged):
    """fc3.bias's `.grad` is what the latest backward pass gave, and not the sum of all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.bias.register_hook(lambda gradient: setattr(self.fc3.bias, "grad", None))


@mutant("Net", law="second_backward_adds_exactly", category=Category.COMPUTATION_MODEL)
class GradientOfTheBatchBefore(Staged):
    """fc3.bias is given the gradient of the batch before; the first batch gives its own."""

    def __init__(self) -> None:
        super().__init__()
        latest: list[Tensor] = []

        def one_late(gradient: Tensor) -> Tensor:
            latest.append(gradient)
            return latest.pop(0) if len(latest) > 1 else gradient

        self.fc3.bias.register_hook(one_late)


@mutant("Net", law="micro_batch_gradients_accumulate_to_batch_gradients", category=Category.BATCH)
class LastSmallerBatchGivesNoGradient(Staged):
    """A batch that is smaller than the one before gives no gradient, as if it were the rest that is to be dropped."""

    size = 0

    def relu4(self, units: Tensor) -> Tensor:
        dropped, self.size = len(units) < self.size, len(units)
        return with_gradient(super().relu4(units), lambda gradient: gradient * (not dropped))


@mutant("Net", law="gradients_accumulate_in_place", category=Category.COMPUTATION_MODEL)
class GradientAddedIntoANewTensor(Staged):
    """After each backward pass conv1.weight's `.grad` is another tensor with the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.weight.register_post_accumulate_grad_hook(
            lambda weight: setattr(weight, "grad", weight.grad.clone())
        )


@mutant("Net", law="autograd_grad_matches_backward", category=Category.CLIPPING)
class GradientClippedWhereItIsKept(Staged):
    """Each `.grad` is clipped to a norm of 1 as soon as it is there, what `torch.autograd.grad` returns is not."""

    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(self.clip)

    def clip(self, parameter: Tensor) -> None:
        nn.utils.clip_grad_norm_(parameter, 1.0)


@mutant("torch.autograd.grad", law="autograd_grad_matches_backward", category=Category.COMPUTATION_MODEL)
def returned_gradients_are_kept_too(outputs: Any, inputs: Sequence[Tensor], *args: Any, **options: Any) -> Any:
    """`torch.autograd.grad` also leaves in `.grad` what it returns."""
    slopes = grad(outputs, inputs, *args, **options)
    for leaf, slope in zip(inputs, slopes, strict=True):
        if leaf.is_leaf:
            leaf.grad = slope
    return slopes


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API)
def zero_grad_does_nothing(net: nn.Module, set_to_none: bool = True) -> None:
    """`zero_grad` leaves every `.grad` as it is."""


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API_CHANGE)
def zero_grad_never_sets_to_none(net: nn.Module, set_to_none: bool = False) -> None:
    """`zero_grad` leaves zeros, also when it is to leave None: before PyTorch 2.0 it did when it was not told."""
    zero_grad(net, set_to_none=False)


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API)
def zero_grad_always_sets_to_none(net: nn.Module, set_to_none: bool = True) -> None:
    """`zero_grad` leaves None, also when it is to leave zeros."""
    zero_grad(net)


@mutant("torch.nn.Module.zero_grad", law="zero_grad_discards_earlier_gradients", category=Category.API)
def zero_grad_passes_over_what_is_frozen(net: nn.Module, set_to_none: bool = True) -> None:
    """The gradient that a parameter got before it was frozen outlives `zero_grad`."""
    held = {parameter: parameter.grad for parameter in net.parameters() if not parameter.requires_grad}
    zero_grad(net, set_to_none)
    for parameter, gradient in held.items():
        parameter.grad = gradient


@mutant("Net", law="zero_grad_discards_earlier_gradients", category=Category.API)
class ZeroGradMissesTheLastLayer(Staged):
    """The network's own `zero_grad` goes through its layers and stops before fc3."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for layer in (self.conv1, self.conv2, self.fc1, self.fc2):
            layer.zero_grad(set_to_none)


@mutant("torch.Tensor.backward", law="backward_through_freed_graph_raises", category=Category.API)
def graph_always_retained(
    tensor: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
) -> None:
    """`backward` keeps every graph, so that one that is used twice goes unnoticed and its memory is never free."""
    backward(tensor, gradient, retain_graph=True, create_graph=create_graph, inputs=inputs)


@mutant("Net", law="backward_through_freed_graph_raises", category=Category.COMPUTATION_MODEL)
class GraphKeptOnTheContext(Staged):
    """The whole network is one node, which keeps what it needs as an attribute that autograd does not know to free."""

    class Whole(Function):
        """A graph within a node of the graph."""

        @staticmethod
        def forward(ctx: Any, scores: Callable[[Tensor], Tensor], images: Tensor, *parameters: Tensor) -> Tensor:
            ctx.inputs = (images.detach().requires_grad_(images.requires_grad), *parameters)
            with torch.enable_grad():
                ctx.scores = scores(ctx.inputs[0])
            return ctx.scores.detach()

        @staticmethod
        def backward(ctx: Any, by_scores: Tensor) -> tuple[Tensor | None, ...]:
            wanted = [tensor for tensor in ctx.inputs if tensor.requires_grad]
            found = iter(grad(ctx.scores, wanted, by_scores, retain_graph=True))
            return None, *(next(found) if tensor.requires_grad else None for tensor in ctx.inputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.Whole.apply(super().forward, images, *self.parameters())


@mutant("Net", law="backward_twice_through_retained_graph_doubles_gradients", category=Category.COMPUTATION_MODEL)
class BackwardUsesUpWhatItSaved(Staged):
    """The backward pass of the last ReLU clears the mask that the forward pass left for it."""

    class Consuming(Relu):
        """The mask is an attribute, whose changes autograd does not count."""

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.mask = (output > 0).to(output.dtype)

        @staticmethod
        def backward(ctx: Any, by_output: Tensor) -> Tensor:
            by_units = by_output * ctx.mask
            ctx.mask.zero_()
            return by_units

    def relu4(self, units: Tensor) -> Tensor:
        return self.Consuming.apply(units)


@mutant("Net", law="gradient_of_sum_is_sum_of_gradients", category=Category.COMPUTATION_MODEL)
class MaskKeptOnTheModule(Staged):
    """fc2's gradient is masked by the latest forward pass of as many images, not by the one that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[torch.Size, Tensor] = {}

    def relu4(self, units: Tensor) -> Tensor:
        self.masks[units.shape] = units > 0
        return with_gradient(super().relu4(units), lambda gradient: gradient * self.masks[gradient.shape])


@mutant("Net", law="no_gradient_accumulates_under_no_grad", category=Category.API)
class GraphUnderNoGrad(Staged):
    """The forward pass records a graph, also under `torch.no_grad()`."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(images)


@mutant("Net", law="graph_reaches_every_parameter_once", category=Category.COMPUTATION_MODEL)
class HiddenLeaf(Staged):
    """The scores are multiplied by a 1 that requires a gradient and is none of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = [torch.tensor(1.0, requires_grad=True)]  # in a list, where nn.Module does not look

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.temperature[0].to(images.device)


@mutant("Net", law="relu_gradient_at_zero_is_zero", category=Category.ACTIVATION)
class ReluSlopeOneAtZero(Staged):
    """The last ReLU has a slope of 1 at exactly 0."""

    class Closed(Relu):
        """Zero counts as active."""

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx: Any, by_output: Tensor) -> Tensor:
            return by_output.masked_fill(ctx.saved_tensors[0] < 0, 0)

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent.masked_fill(ctx.saved_tensors[0] < 0, 0)

    def relu4(self, units: Tensor) -> Tensor:
        return self.Closed.apply(units)


@mutant("Net", law="input_gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class ImagesGradientMirrored(Staged):
    """The gradient by the images has left for right, those by the parameters are as they must be."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(with_gradient(images, lambda gradient: gradient.flip(3)))


@mutant("Net", law="upstream_gradient_may_have_any_memory_layout", category=Category.UNALIGNED_TENSOR)
class TransposedGradientReadByRows(Staged):
    """A gradient of the scores that lies in memory column by column is read row by row."""

    def forward(self, images: Tensor) -> Tensor:
        return with_gradient(super().forward(images), self.by_rows)

    def by_rows(self, gradient: Tensor) -> Tensor:
        return gradient.t().reshape(gradient.shape) if gradient.stride(0) == 1 else gradient


@mutant("Net", law="upstream_gradient_may_have_any_memory_layout", category=Category.UNALIGNED_TENSOR)
class ExpandedGradientReadOnce(Staged):
    """A gradient that is expanded from one number is taken for the first score's alone."""

    def forward(self, images: Tensor) -> Tensor:
        return with_gradient(super().forward(images), self.once)

    def once(self, gradient: Tensor) -> Tensor:
        return F.pad(gradient[:, :1], (0, 9)) if not any(gradient.stride()) else gradient


@mutant("Net", law="hessian_vector_products_match_finite_differences", category=Category.API, dtype="float64")
class BackwardCannotBeDifferentiated(Staged):
    """The gradient of fc2's units is detached, so that what is differentiated twice is taken for constant."""

    def relu4(self, units: Tensor) -> Tensor:
        return with_gradient(super().relu4(units), Tensor.detach)


@mutant(
    "Net", law="forward_over_reverse_matches_reverse_over_reverse", category=Category.COMPUTATION_MODEL, dtype="float64"
)
class BackwardHasNoForwardDerivative(Staged):
    """The backward pass from fc2's units on has a derivative in reverse mode alone, in forward mode it is 0."""

    class Opaque(Function):
        """The same tensor, whose tangent is lost."""

        generate_vmap_rule = True

        @staticmethod
        def forward(gradient: Tensor) -> Tensor:
            return gradient.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, by_output: Tensor) -> Tensor:
            return by_output

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return torch.zeros_like(tangent)

    def relu4(self, units: Tensor) -> Tensor:
        return with_gradient(super().relu4(units), self.Opaque.apply)


@mutant("Net", law="forward_mode_agrees_with_the_oracle", category=Category.COMPUTATION_MODEL)
class ForwardDerivativeOfReluMissing(Staged):
    """In forward mode the last ReLU lets every tangent through, in reverse mode it is as it must be."""

    class Straight(Relu):
        """The derivative is 1 everywhere."""

        @staticmethod
        def jvp(ctx: Any, tangent: Tensor) -> Tensor:
            return tangent.clone()

    def relu4(self, units: Tensor) -> Tensor:
        return self.Straight.apply(units)


@mutant("Net", law="per_sample_gradients_sum_to_batch_gradient", category=Category.COMPUTATION_MODEL)
class BatchingRuleTakesTheFirstsMask(Staged):
    """Under `vmap` the last ReLU lets through of every image what it lets through of the first."""

    class Batched(Relu):
        """Its rule for `vmap` is written by hand."""

        generate_vmap_rule = False

        @staticmethod
        def vmap(info: Any, dimensions: tuple[int], units: Tensor) -> tuple[Tensor, int]:
            units = units.movedim(dimensions[0], 0)
            return units.masked_fill(units[:1] <= 0, 0), 0

    def relu4(self, units: Tensor) -> Tensor:
        return self.Batched.apply(units)


@mutant(
    "torch.autograd.function.BackwardCFunction.apply",
    law="custom_autograd_function_joins_the_graph",
    category=Category.COMPUTATION_MODEL,
)
def incoming_gradient_ignored(node: Any, *by_outputs: Tensor) -> Any:
    """The backward of an `autograd.Function` is called with ones, whatever gradient reaches it."""
    return call_backward(node, *map(torch.ones_like, by_outputs))


@mutant(
    "torch.autograd.function.FunctionCtx.save_for_backward",
    law="custom_autograd_function_joins_the_graph",
    category=Category.COMPUTATION_MODEL,
)
def saved_in_reverse_order(context: Any, *tensors: Tensor) -> None:
    """What an `autograd.Function` saves is handed to its backward the other way round."""
    save_for_backward(context, *tensors[::-1])


@mutant("Net", law="backward_after_parameter_change_raises_or_uses_saved_values", category=Category.COMPUTATION_MODEL)
class LayerRecomputed(Staged):
    """conv2 and its pooling are computed anew for the backward pass, with the weights of that moment."""

    def middle(self, maps: Tensor) -> Tensor:
        return self.pool2(self.relu2(self.conv2(maps)))

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = checkpoint(self.middle, maps, use_reentrant=False)
        units = self.relu3(self.fc1(self.flatten(maps)))
        return self.fc3(self.relu4(self.fc2(units)))
