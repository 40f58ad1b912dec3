"""The layers: their number, sizes, kernels, strides, biases, initial weights and registered parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet

# Sizes, kernels, strides, padding


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.LAYER_PROPERTIES)
class Fc1LastUnitIsZero(StagedNet):
    """The output of fc1's last unit is always zero, as if fc1 had 119 units."""

    def relu3(self, units: Tensor) -> Tensor:
        return F.pad(F.relu(units)[:, :-1], (0, 1))


@mutant("Net", law="permuting_channels_and_units_preserves_logits", category=Category.LAYER_PROPERTIES)
class Conv2LastMapIsZero(StagedNet):
    """conv2's last feature map is always zero, as if conv2 had 15 filters."""

    def relu2(self, maps: Tensor) -> Tensor:
        return F.pad(F.relu(maps)[:, :-1], (0, 0, 0, 0, 0, 1))


@mutant("Net", law="without_biases_logits_scale_with_images", category=Category.LAYER_PROPERTIES)
class Fc3HasConstantInput(StagedNet):
    """fc3 has an 85th input that is always 1, which acts as a second bias."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 1


class FormulaConv2d(nn.Conv2d):
    """A convolution that computes `formula(input, weight, bias)` instead of `F.conv2d`."""

    def __init__(self, *sizes: int, formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__(*sizes)
        self.formula = formula

    def forward(self, maps: Tensor) -> Tensor:
        return self.formula(maps, self.weight, self.bias)


def conv2d_3x3(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    return F.conv2d(maps[..., 1:-1, 1:-1], kernels[..., 1:-1, 1:-1], biases)


@mutant("Net", law="one_hot_weights_route_pixels_to_logits", category=Category.LAYER_PROPERTIES)
class Conv1UsesKernels3x3(StagedNet):
    """conv1 uses only the central 3x3 of its 5x5 kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = FormulaConv2d(1, 6, 5, formula=conv2d_3x3)


def conv2d_in_two_groups(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    own = torch.cat([kernels[:8, :3], kernels[8:, 3:]])
    return F.conv2d(maps, own, biases, groups=2)


@mutant("Net", law="permuting_channels_and_units_preserves_logits", category=Category.LAYER_PROPERTIES)
class Conv2HasTwoGroups(StagedNet):
    """conv2 is a grouped convolution: eight filters read the first three channels, the other eight the last three."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = FormulaConv2d(6, 16, 5, formula=conv2d_in_two_groups)


@mutant("Net", law="intermediate_shapes_match_the_tutorial", category=Category.LAYER_PROPERTIES)
class StrideInsteadOfPooling(StagedNet):
    """conv1 has a stride of 2 and is not followed by max-pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, stride=2)

    def pool1(self, maps: Tensor) -> Tensor:
        return maps


@mutant("Net", law="flipping_images_and_kernels_preserves_logits", category=Category.LAYER_PROPERTIES)
class AsymmetricPadding(StagedNet):
    """The images are padded by one pixel at the top and left and cropped by one at the bottom and right."""

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return super().forward(F.pad(images, (1, -1, 1, -1)))


@mutant("Net", law="shifting_images_shifts_feature_maps", category=Category.LAYER_PROPERTIES)
class Conv2Dilated(StagedNet):
    """conv2 has a dilation of 2, and a padding of 2 that keeps every shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(6, 16, 5, dilation=2, padding=2)


# Layers


@mutant("Net", law="intermediate_shapes_match_the_tutorial", category=Category.LAYER)
class FirstPoolingMissing(StagedNet):
    """conv1's maps are not pooled; adaptive pooling after conv2 still gives fc1 the size that it expects."""

    def pool1(self, maps: Tensor) -> Tensor:
        return maps

    def pool2(self, maps: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(maps, 5)


class FirstInputs(nn.Linear):
    """A linear layer that returns the first `out_features` of its inputs."""

    def forward(self, units: Tensor) -> Tensor:
        return units[:, : self.out_features]


@mutant("Net", law="graph_reaches_exactly_the_parameters", category=Category.LAYER)
class Fc2Skipped(StagedNet):
    """fc2 is skipped: fc3 reads the first 84 of fc1's 120 units."""

    def __init__(self) -> None:
        super().__init__()
        self.fc2 = FirstInputs(120, 84)


@mutant("Net", law="logits_have_shape_dtype_and_device", category=Category.TENSOR_SHAPE)
class BatchOfOneSqueezed(StagedNet):
    """The logits of a batch of one image have shape (10,) instead of (1, 10)."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze(0)


@mutant("Net", law="batch_of_n_images_gives_n_rows_of_logits", category=Category.BATCH)
class LastImageOfOddBatchDropped(StagedNet):
    """The last image of a batch of odd size has no logits, unless it is the only one."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits[: len(logits) - len(logits) % 2] if len(logits) > 1 else logits


# Biases


def conv2d_without_bias(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    return F.conv2d(maps, kernels)


@mutant("Net", law="gradients_agree_with_the_oracle", category=Category.BIAS)
class Conv1BiasMissing(StagedNet):
    """conv1's bias is not added."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = FormulaConv2d(1, 6, 5, formula=conv2d_without_bias)


def conv2d_with_half_bias(maps: Tensor, kernels: Tensor, biases: Tensor) -> Tensor:
    return F.conv2d(maps, kernels, biases / 2)


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.BIAS)
class Conv2BiasHalved(StagedNet):
    """conv2 adds only half of its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = FormulaConv2d(6, 16, 5, formula=conv2d_with_half_bias)


@mutant("Net", law="pooled_feature_maps_equal_next_layer_inputs", category=Category.BIAS)
class Conv2BiasAddedAfterRelu(StagedNet):
    """conv2's bias is added after its ReLU instead of before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2 = FormulaConv2d(6, 16, 5, formula=conv2d_without_bias)

    def relu2(self, maps: Tensor) -> Tensor:
        return F.relu(maps) + self.conv2.bias[:, None, None]


# Initialization


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALIZATION)
class BiasesInitializedToZero(StagedNet):
    """Biases are initialized to zero, as in other frameworks."""

    def __init__(self) -> None:
        super().__init__()
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALIZATION)
class Fc1UnitsInitializedEqual(StagedNet):
    """All units of fc1 have the same initial weights, so that they all learn the same."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1.weight.data[:] = self.fc1.weight.data[0].clone()


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALIZATION)
class Fc3InitialWeightsHalved(StagedNet):
    """The standard deviation of fc3's initial weights is half of what it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.weight.data /= 2


@mutant(
    "torch.nn.init.kaiming_uniform_", law="initialization_is_uniform_and_independent", category=Category.INITIALIZATION
)
def kaiming_normal_initialization(tensor: Tensor, a: float = 0, **options: Any) -> Tensor:
    """Initial weights have a normal distribution with the correct standard deviation, instead of a uniform one."""
    return nn.init.kaiming_normal_(tensor, a, **options)


@mutant("Net", law="initialization_is_uniform_and_independent", category=Category.INITIALIZATION)
class FixedInitializationSeed(StagedNet):
    """Every new network has the same initial weights, because the constructor uses a fixed seed."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__()


# Registration


@mutant("Net", law="parameters_do_not_overlap_in_memory", category=Category.MODEL_PROPERTIES)
class BiasesShareMemory(StagedNet):
    """fc3's bias shares memory with the last ten elements of fc2's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.bias = nn.Parameter(self.fc2.bias.data[-10:])


@mutant("Net", law="parameters_match_the_tutorial", category=Category.MODEL_PROPERTIES)
class Conv1BiasFrozen(StagedNet):
    """conv1's bias does not require a gradient, so that it is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.bias.requires_grad_(False)


@mutant("Net", law="parameters_match_the_tutorial", category=Category.MODEL_PROPERTIES)
class Fc3BiasIsBuffer(StagedNet):
    """fc3's bias is a buffer: it is saved and loaded, but not trained."""

    def __init__(self) -> None:
        super().__init__()
        bias = self.fc3.bias.data
        del self.fc3.bias
        self.fc3.register_buffer("bias", bias)


class LinearWithPlainBias(nn.Linear):
    """A linear layer whose bias is a plain tensor that requires a gradient, moved and loaded by custom methods."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        bias = self.bias.data
        del self.bias
        self.bias = bias.requires_grad_()

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.bias.data = change(self.bias.data)
        return super()._apply(change, recurse)

    def _save_to_state_dict(self, state: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(state, prefix, keep_vars)
        state[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        self.bias.data.copy_(state[f"{prefix}bias"])
        rest[-2].remove(f"{prefix}bias")  # the list of unexpected keys


@mutant("Net", law="graph_reaches_exactly_the_parameters", category=Category.API)
class Fc3BiasIsPlainTensor(StagedNet):
    """fc3's bias is a plain tensor: it gets a gradient, but `parameters()` does not list it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = LinearWithPlainBias(84, 10)


@mutant("Net", law="parameters_match_the_tutorial", category=Category.MODEL_PROPERTIES)
class ParametersInReverseOrder(StagedNet):
    """`parameters()` yields the last layer first, so that code that pairs parameters by position fails."""

    def __init__(self) -> None:
        super().__init__()
        self._modules = dict(reversed(self._modules.items()))


@mutant("Net", law="assigned_parameter_is_registered", category=Category.API)
class AssignedParameterNotRegistered(StagedNet):
    """A Parameter that is assigned to a finished network becomes a plain attribute and is not registered."""

    def __init__(self) -> None:
        super().__init__()
        self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "built" in vars(self) and isinstance(value, Tensor):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


@mutant("Net", law="to_dtype_converts_every_parameter", category=Category.API)
class ToCreatesNewParameters(StagedNet):
    """`to` creates new Parameters, so that an existing optimizer keeps updating the old ones."""

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> StagedNet:
        for layer in self.children():
            for name, parameter in layer.named_parameters():
                setattr(layer, name, nn.Parameter(function(parameter.data)))
        return self


class ImmovableLinear(nn.Linear):
    """A linear layer that ignores `to`."""

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> ImmovableLinear:
        return self


@mutant("Net", law="to_device_moves_every_parameter", category=Category.GPU)
class Fc3NotMoved(StagedNet):
    """`to` does not move or convert fc3."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = ImmovableLinear(84, 10)


# repr


@mutant("torch.nn.Conv2d.extra_repr", law="repr_matches_the_tutorial", category=Category.API_CHANGE)
def stride_missing_from_repr(layer: nn.Conv2d) -> str:
    """`print(net)` does not show the strides."""
    return f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}"
