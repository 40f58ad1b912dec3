"""The activation functions and the pooling between the layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet


@mutant("Net", law="pooled_feature_maps_equal_next_layer_inputs", category=Category.ACTIVATION)
class FirstReluMissing(StagedNet):
    """The ReLU after conv1 is missing."""

    def relu1(self, maps: Tensor) -> Tensor:
        return maps


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class SecondReluMissing(StagedNet):
    """The ReLU after conv2 is missing."""

    def relu2(self, maps: Tensor) -> Tensor:
        return maps


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.ACTIVATION)
class ThirdReluMissing(StagedNet):
    """The ReLU after fc1 is missing."""

    def relu3(self, units: Tensor) -> Tensor:
        return units


@mutant("Net", law="input_gradients_agree_with_the_oracle", category=Category.ACTIVATION)
class FourthReluMissing(StagedNet):
    """The ReLU after fc2 is missing."""

    def relu4(self, units: Tensor) -> Tensor:
        return units


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class ReluOnLogits(StagedNet):
    """A ReLU after fc3 replaces negative logits by zero."""

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(super().forward(images))


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.ACTIVATION)
class SoftmaxOnLogits(StagedNet):
    """The network returns softmax probabilities instead of logits; cross-entropy then applies softmax twice."""

    def forward(self, images: Tensor) -> Tensor:
        return F.softmax(super().forward(images), dim=1)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class LogSoftmaxOnLogits(StagedNet):
    """The network returns log-probabilities instead of logits; a cross-entropy loss is the same for both."""

    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(super().forward(images), dim=1)


@mutant("Net", law="pooled_feature_maps_equal_next_layer_inputs", category=Category.ACTIVATION)
class SecondReluLeaky(StagedNet):
    """The ReLU after conv2 is leaky: it multiplies negative values by 0.01, and so still commutes with scaling."""

    def relu2(self, maps: Tensor) -> Tensor:
        return F.leaky_relu(maps)


@mutant("Net", law="power_of_two_scaling_between_layers_preserves_logits", category=Category.ACTIVATION)
class ThirdReluIsRelu6(StagedNet):
    """fc1 is followed by ReLU6, which clips at 6, far above the activations of ordinary images."""

    def relu3(self, units: Tensor) -> Tensor:
        return F.relu6(units)


@mutant("Net", law="power_of_two_scaling_between_layers_preserves_logits", category=Category.ACTIVATION)
class TanhInsteadOfRelu(StagedNet):
    """fc2 is followed by tanh instead of ReLU, as in LeCun et al. 1998."""

    def relu4(self, units: Tensor) -> Tensor:
        return torch.tanh(units)


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.ACTIVATION)
class SigmoidInsteadOfRelu(StagedNet):
    """fc1 is followed by a sigmoid instead of ReLU."""

    def relu3(self, units: Tensor) -> Tensor:
        return torch.sigmoid(units)


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.ACTIVATION)
class GeluInsteadOfRelu(StagedNet):
    """conv2 is followed by GELU instead of ReLU."""

    def relu2(self, maps: Tensor) -> Tensor:
        return F.gelu(maps)


@mutant("Net", law="power_of_two_scaling_between_layers_preserves_logits", category=Category.ACTIVATION)
class SoftplusInsteadOfRelu(StagedNet):
    """fc2 is followed by softplus, log(1 + exp(x)), instead of ReLU."""

    def relu4(self, units: Tensor) -> Tensor:
        return F.softplus(units)


@mutant("Net", law="relu_gradient_at_zero_is_zero", category=Category.COMPUTATION_MODEL)
class ClampInsteadOfRelu(StagedNet):
    """conv2 is followed by `clamp(min=0)` instead of ReLU; its derivative at 0 is 1."""

    def relu2(self, maps: Tensor) -> Tensor:
        return maps.clamp(min=0)


class StraightThroughFunction(torch.autograd.Function):
    """A ReLU whose backward pass returns the gradient unchanged."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        return F.relu(numbers)

    @staticmethod
    def backward(ctx: Any, *grad_output: Tensor) -> Tensor:
        return grad_output[0]


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class FirstReluStraightThrough(StagedNet):
    """The ReLU after conv1 also passes the gradients of negative inputs, like a straight-through estimator."""

    def relu1(self, maps: Tensor) -> Tensor:
        return StraightThroughFunction.apply(maps)


@mutant("Net", law="one_hot_weights_route_gradients_to_pixels", category=Category.LAYER)
class AveragePooling(StagedNet):
    """conv1's maps are pooled by the mean of each window, as in LeCun et al. 1998."""

    def pool1(self, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2)


def windows(maps: Tensor) -> Tensor:
    """Return the four numbers of each pooling window, (N,C,2h,2w) -> (N,C,h,w,4)."""
    return maps.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.LAYER)
class PoolingTakesSecondLargest(StagedNet):
    """conv1's maps are pooled by the second largest number of each window."""

    def pool1(self, maps: Tensor) -> Tensor:
        return windows(maps).topk(2).values[..., 1]


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.LAYER_PROPERTIES)
class OverlappingPoolingWindows(StagedNet):
    """conv1's maps are pooled in overlapping 3x3 windows with a stride of 2, as in AlexNet."""

    def pool1(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 3, stride=2, padding=1)


@mutant("Net", law="flipping_images_and_kernels_preserves_logits", category=Category.LAYER_PROPERTIES)
class PoolingWindowsShifted(StagedNet):
    """conv2's pooling windows start at the second row and column instead of the first."""

    def pool2(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps[..., 1:, 1:], 2, ceil_mode=True)


@mutant("Net", law="pooling_tie_sends_gradient_to_first_element", category=Category.COMPUTATION_MODEL)
class PoolingTieGradientToLast(StagedNet):
    """Of equal numbers in a pooling window of conv1's maps, the last gets the gradient instead of the first."""

    def pool1(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps.flip((-2, -1)), 2).flip((-2, -1))
