"""The layers: their number, sizes, strides, biases, weights and registration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from properties.mutants import Category, mutant
from properties.mutants.staged import Staged

# Sizes, kernels, strides, padding


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.LAYER_PROPERTIES)
class OneUnitFewer(Staged):
    """fc1 has 119 units: its last one does not count."""

    def relu3(self, units: Tensor) -> Tensor:
        return F.pad(F.relu(units)[:, :-1], (0, 1))


@mutant("Net", law="permuting_channels_and_units_preserves_logits", category=Category.LAYER_PROPERTIES)
class OneFilterFewer(Staged):
    """conv2 has 15 filters: its last map is empty."""

    def relu2(self, maps: Tensor) -> Tensor:
        return F.pad(F.relu(maps)[:, :-1], (0, 0, 0, 0, 0, 1))


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.LAYER_PROPERTIES)
class OneUnitMore(Staged):
    """fc3 takes an 85th unit, which is always 1: a second bias."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 1


class Conv(nn.Conv2d):
    """A convolution by another formula of its input, kernels and biases."""

    def __init__(self, *sizes: int, formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(*sizes)
        self.formula = formula

    def forward(self, maps: Tensor) -> Tensor:
        return self.formula(maps, self.weight, self.bias)


def centres_alone(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    return F.conv2d(maps[..., 1:-1, 1:-1], kernels[..., 1:-1, 1:-1], biases)


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.LAYER_PROPERTIES)
class KernelsOfThree(Staged):
    """conv1's kernels are 3x3: what its 5x5 have around their centre does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv(1, 6, 5, formula=centres_alone)


def in_two_groups(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    own = torch.cat([kernels[:8, :3], kernels[8:, 3:]])
    return F.conv2d(maps, own, biases, groups=2)


@mutant("Net", law="permuting_channels_and_units_preserves_logits", category=Category.LAYER_PROPERTIES)
class TwoGroups(Staged):
    """conv2 works in two groups: eight filters see the first three channels, and eight the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = Conv(6, 16, 5, formula=in_two_groups)


@mutant("Net", law="intermediate_shapes_match_the_tutorial", category=Category.LAYER_PROPERTIES)
class StrideForPooling(Staged):
    """conv1 takes every other place by a stride of two, and is not pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, stride=2)

    def pool1(self, maps: Tensor) -> Tensor:
        return maps


@mutant("Net", law="flipping_images_and_kernels_preserves_logits", category=Category.LAYER_PROPERTIES)
class PaddedOnOneSide(Staged):
    """conv1's images move by one pixel, to the right and down: zeros come in, and the last row and column are lost."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return super().forward(F.pad(images, (1, -1, 1, -1)))


@mutant("Net", law="shifting_images_shifts_feature_maps", category=Category.LAYER_PROPERTIES)
class DilatedKernels(Staged):
    """conv2's kernels have gaps, and its maps are padded for their sake, so that all shapes stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(6, 16, 5, dilation=2, padding=2)


# Layers


@mutant("Net", law="intermediate_shapes_match_the_tutorial", category=Category.LAYER)
class FirstPoolingMissing(Staged):
    """conv1's maps are not pooled; an adaptive pooling of conv2's hides that from fc1."""

    def pool1(self, maps: Tensor) -> Tensor:
        return maps

    def pool2(self, maps: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(maps, 5)


class Skipped(nn.Linear):
    """A layer that hands on the first of its inputs."""

    def forward(self, units: Tensor) -> Tensor:
        return units[:, : self.out_features]


@mutant("Net", law="graph_reaches_every_parameter_once", category=Category.LAYER)
class SecondLayerSkipped(Staged):
    """The first 84 of fc1's 120 units are taken for fc2's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = Skipped(120, 84)


@mutant("Net", law="one_image_gives_ten_logits", category=Category.TENSOR_SHAPE)
class LoneRowSqueezed(Staged):
    """The scores of one image come without their batch dimension."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze(0)


@mutant("Net", law="every_image_gives_ten_logits", category=Category.BATCH)
class OddRowDropped(Staged):
    """The last image of an odd batch has no scores, unless it is the only one."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits[: len(logits) - len(logits) % 2] if len(logits) > 1 else logits


# Biases


def without_biases(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    return F.conv2d(maps, kernels)


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.BIAS)
class FirstBiasMissing(Staged):
    """conv1's biases are not added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Conv(1, 6, 5, formula=without_biases)


def with_half_the_biases(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    return F.conv2d(maps, kernels, biases / 2)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.BIAS)
class HalfTheBiases(Staged):
    """conv2 adds half of its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = Conv(6, 16, 5, formula=with_half_the_biases)


@mutant("Net", law="feature_maps_match_the_next_layers_input", category=Category.BIAS)
class BiasAfterRelu(Staged):
    """conv2's biases are added to what its ReLU has left."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = Conv(6, 16, 5, formula=without_biases)

    def relu2(self, maps: Tensor) -> Tensor:
        return F.relu(maps) + self.conv2.bias[:, None, None]


# Initialisation


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALISATION)
class ZeroBiases(Staged):
    """New biases are zero, as in other frameworks."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALISATION)
class EqualUnits(Staged):
    """All units of a new fc1 have the same weights, and so learn the same."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.weight.data[:] = self.fc1.weight.data[0].clone()


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALISATION)
class HalfAsWide(Staged):
    """fc3's new weights are half as wide as they ought to be."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.weight.data /= 2


@mutant(
    "torch.nn.init.kaiming_uniform_", law="initialization_is_uniform_and_independent", category=Category.INITIALISATION
)
def kaiming_normal(tensor: Tensor, a: float = 0, **options: Any) -> Tensor:
    """New weights are normal, with the right standard deviation."""
    return nn.init.kaiming_normal_(tensor, a, **options)


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALISATION)
class AlwaysTheSameStart(Staged):
    """Every new network begins with the same numbers, of a seed that is fixed within."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__()


# Registration


@mutant("Net", law="parameters_do_not_overlap_in_memory", category=Category.MODEL_PROPERTIES)
class TiedBiases(Staged):
    """fc3's biases are the last ten of fc2's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.bias = nn.Parameter(self.fc2.bias.data[-10:])


@mutant("Net", law="parameters_match_the_tutorial", category=Category.MODEL_PROPERTIES)
class BiasFrozen(Staged):
    """conv1's biases are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.bias.requires_grad_(False)


@mutant("Net", law="parameters_match_the_tutorial", category=Category.MODEL_PROPERTIES)
class BiasInABuffer(Staged):
    """fc3's biases are a buffer: saved and loaded, but not trained."""

    def __init__(self) -> None:
        super().__init__()
        bias = self.fc3.bias.data
        del self.fc3.bias
        self.fc3.register_buffer("bias", bias)


class PlainBias(nn.Linear):
    """A layer whose biases are no Parameter, but a tensor that asks for a gradient; it is saved and loaded by hand."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        bias = self.bias.data
        del self.bias
        self.bias = bias.requires_grad_()

    def _save_to_state_dict(self, state: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(state, prefix, keep_vars)
        state[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.bias.data.copy_(state[f"{prefix}bias"])
        rest[-2].remove(f"{prefix}bias")  # of what was not expected


@mutant("Net", law="graph_reaches_every_parameter_once", category=Category.API)
class PlainTensorForParameter(Staged):
    """fc3's biases are a plain tensor: they get gradients, but no optimizer is given them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = PlainBias(84, 10)


@mutant("Net", law="parameters_match_the_tutorial", category=Category.MODEL_PROPERTIES)
class AnotherOrder(Staged):
    """The parameters come from the last layer to the first; those who pair them by their place mix them up."""

    def __init__(self) -> None:
        super().__init__()
        self._modules = dict(reversed(self._modules.items()))


@mutant("Net", law="assigned_parameter_is_registered", category=Category.API)
class AssignedAsAttributes(Staged):
    """What is assigned to a network that is built is a plain attribute, also where it is a Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "built" in vars(self) and isinstance(value, Tensor):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


@mutant("Net", law="to_dtype_converts_every_parameter", category=Category.API)
class NewParametersOnMove(Staged):
    """`to` makes new Parameters, so that an optimizer goes on with the old ones."""

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Staged:
        for layer in self.children():
            for name, parameter in layer.named_parameters():
                setattr(layer, name, nn.Parameter(function(parameter.data)))
        return self


class Immovable(nn.Linear):
    """A layer that stays where it is."""

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Immovable:
        return self


@mutant("Net", law="to_device_moves_every_parameter", category=Category.GPU)
class LastLayerStaysBehind(Staged):
    """`to` does not move fc3."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = Immovable(84, 10)


# What is printed


@mutant("torch.nn.Conv2d.extra_repr", law="repr_matches_the_tutorial", category=Category.API_CHANGE)
def stride_not_printed(layer: nn.Conv2d) -> str:
    """`print(net)` shows no strides."""
    return f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}"
