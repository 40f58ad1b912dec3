"""The activations and the pooling between the layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from properties.mutants import Category, mutant
from properties.mutants.staged import Staged


@mutant("Net", law="feature_maps_match_the_next_layers_input", category=Category.ACTIVATION)
class FirstReluMissing(Staged):
    """conv1's maps are pooled without their ReLU."""

    def relu1(self, maps: Tensor) -> Tensor:
        return maps


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class SecondReluMissing(Staged):
    """conv2's maps are pooled without their ReLU."""

    def relu2(self, maps: Tensor) -> Tensor:
        return maps


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.ACTIVATION)
class ThirdReluMissing(Staged):
    """fc1's units go to fc2 without their ReLU."""

    def relu3(self, units: Tensor) -> Tensor:
        return units


@mutant("Net", law="input_gradients_agree_with_the_oracle", category=Category.ACTIVATION)
class FourthReluMissing(Staged):
    """fc2's units go to fc3 without their ReLU."""

    def relu4(self, units: Tensor) -> Tensor:
        return units


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class ScoresRectified(Staged):
    """A fifth ReLU takes the negative scores away."""

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(super().forward(images))


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.ACTIVATION)
class SoftmaxInside(Staged):
    """The scores are probabilities, of which a loss takes the softmax once more."""

    def forward(self, images: Tensor) -> Tensor:
        return F.softmax(super().forward(images), dim=1)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class LogSoftmaxInside(Staged):
    """The scores are logarithms of probabilities; the cross-entropy does not notice, since it makes them the same."""

    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(super().forward(images), dim=1)


@mutant("Net", law="feature_maps_match_the_next_layers_input", category=Category.ACTIVATION)
class LeakyRelu(Staged):
    """A hundredth of what is negative in conv2's maps remains; being homogeneous, it bears any scale between layers."""

    def relu2(self, maps: Tensor) -> Tensor:
        return F.leaky_relu(maps)


@mutant("Net", law="power_of_two_scaling_between_layers_preserves_logits", category=Category.ACTIVATION)
class Relu6(Staged):
    """fc1's units are cut off at 6, as for phones; those of ordinary images are far below."""

    def relu3(self, units: Tensor) -> Tensor:
        return F.relu6(units)


@mutant("Net", law="power_of_two_scaling_between_layers_preserves_logits", category=Category.ACTIVATION)
class TanhForRelu(Staged):
    """fc2's units are squashed, as in LeCun et al. 1998."""

    def relu4(self, units: Tensor) -> Tensor:
        return torch.tanh(units)


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.ACTIVATION)
class SigmoidForRelu(Staged):
    """fc1's units are squashed to between 0 and 1."""

    def relu3(self, units: Tensor) -> Tensor:
        return torch.sigmoid(units)


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.ACTIVATION)
class GeluForRelu(Staged):
    """conv2's maps are smoothed around zero and dip below it."""

    def relu2(self, maps: Tensor) -> Tensor:
        return F.gelu(maps)


@mutant("Net", law="power_of_two_scaling_between_layers_preserves_logits", category=Category.ACTIVATION)
class SoftplusForRelu(Staged):
    """fc2's units are rectified by log(1 + exp(x)), which is nowhere zero."""

    def relu4(self, units: Tensor) -> Tensor:
        return F.softplus(units)


@mutant("Net", law="relu_gradient_at_zero_is_zero", category=Category.COMPUTATION_MODEL)
class ClampForRelu(Staged):
    """conv2's maps are clamped at zero, where the derivative of a clamp is 1."""

    def relu2(self, maps: Tensor) -> Tensor:
        return maps.clamp(min=0)


class _ReluForwardAlone(torch.autograd.Function):
    """A ReLU that hands its gradient on as it is."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        return F.relu(numbers)

    @staticmethod
    def backward(ctx: Any, *by_relu: Tensor) -> Tensor:
        return by_relu[0]


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.COMPUTATION_MODEL)
class ReluForwardAlone(Staged):
    """conv1's ReLU hands on the gradients of what it cut off, too, like a straight-through estimator."""

    def relu1(self, maps: Tensor) -> Tensor:
        return _ReluForwardAlone.apply(maps)


@mutant("Net", law="one_hot_weights_route_gradients_to_pixels", category=Category.LAYER)
class AveragePooling(Staged):
    """conv1's maps are pooled by the mean of a window, as in LeCun et al. 1998."""

    def pool1(self, maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, 2)


def windows(maps: Tensor) -> Tensor:
    """The four numbers of each pooling window: (N,C,2h,2w) -> (N,C,h,w,4)."""
    return maps.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.LAYER)
class SecondLargest(Staged):
    """conv1's maps are pooled by the second largest number of a window."""

    def pool1(self, maps: Tensor) -> Tensor:
        return windows(maps).topk(2).values[..., 1]


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.LAYER_PROPERTIES)
class WindowsOfThree(Staged):
    """conv1's maps are pooled in windows of 3x3, every other of which overlaps, as in AlexNet."""

    def pool1(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 3, stride=2, padding=1)


@mutant("Net", law="flipping_images_and_kernels_preserves_logits", category=Category.LAYER_PROPERTIES)
class WindowsOneOff(Staged):
    """conv2's pooling windows begin at the second row and column; what is left over of the first is not taken."""

    def pool2(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps[..., 1:, 1:], 2, ceil_mode=True)


@mutant("Net", law="pooling_tie_sends_gradient_to_first_element", category=Category.COMPUTATION_MODEL)
class LastOfEquals(Staged):
    """The windows of conv1's maps are searched from their end, so that the last of equal pixels has the gradient."""

    def pool1(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps.flip((-2, -1)), 2).flip((-2, -1))
