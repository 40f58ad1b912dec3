"""Side effects and hidden state of a pass or a step; copies, pickles and state_dicts of a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from mmap import MAP_SHARED
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lenet import sgd_update, train_step
from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet

# Side effects of a forward pass or a training step


@mutant("Net", law="forward_leaves_images_and_parameters_unchanged", category=Category.INPUT)
class InputOverwritten(StagedNet):
    """The forward pass overwrites the images with zeros, like a donated buffer."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images.clone())
        for image in images:
            image.data.zero_()
        return logits


@mutant("Net", law="forward_leaves_images_and_parameters_unchanged", category=Category.REGULARIZATION)
class WeightsClippedInForward(StagedNet):
    """Every forward pass clips the parameters to [-0.1, 0.1], as the training of another network requires."""

    def forward(self, images: Tensor) -> Tensor:
        for parameter in self.parameters():
            parameter.data.clamp_(-0.1, 0.1)
        return super().forward(images)


@mutant("Net", law="forward_leaves_images_and_parameters_unchanged", category=Category.API)
class GradientsClearedInForward(StagedNet):
    """Every forward pass clears the gradients."""

    def forward(self, images: Tensor) -> Tensor:
        self.zero_grad()
        return super().forward(images)


@mutant("Net", law="forward_leaves_global_state_unchanged", category=Category.API)
class UnusedRandomNumberDrawn(StagedNet):
    """The forward pass draws a random number and does not use it."""

    def forward(self, images: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(images)


@mutant("Net", law="forward_leaves_global_state_unchanged", category=Category.UPSTREAM)
class FlushToZeroNotReset(StagedNet):
    """The forward pass enables flush-to-zero for subnormal numbers and leaves it on, as in pytorch/pytorch#126848."""

    def forward(self, images: Tensor) -> Tensor:
        torch.set_flush_denormal(True)
        return super().forward(images)


@mutant(
    "Net",
    law="forward_leaves_global_state_unchanged",
    category=Category.API,
    dtype="float64",
    unseen={"float32": "it is the default dtype already"},
)
class DefaultDtypeChanged(StagedNet):
    """The forward pass sets the default dtype to that of the images."""

    def forward(self, images: Tensor) -> Tensor:
        torch.set_default_dtype(images.dtype)
        return super().forward(images)


@mutant("train_step", law="training_step_changes_only_the_network", category=Category.PROCESS)
def step_resets_seed(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Every training step sets the same random seed."""
    torch.manual_seed(0)
    return train_step(net, images, targets, lr)


@mutant("train_step", law="training_step_changes_only_the_network", category=Category.LABELS)
def targets_smoothed_in_place(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The training step smooths the caller's targets in place, for the next epoch."""
    loss = train_step(net, images, targets, lr)
    targets.mul_(0.9).add_(0.01)
    return loss


@mutant("train_step", law="training_step_changes_only_the_network", category=Category.PROCESS)
def step_leaves_eval_mode(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The training step leaves the network in eval mode."""
    loss = train_step(net, images, targets, lr)
    net.eval()
    return loss


@mutant("sgd_update", law="training_step_changes_only_the_network", category=Category.API)
def grad_mode_not_restored(parameters: Any, lr: float) -> None:
    """The update disables gradients globally and does not enable them again."""
    torch.set_grad_enabled(False)
    sgd_update(parameters, lr)


@mutant("sgd_update", law="training_step_changes_only_the_network", category=Category.API)
def update_freezes_parameters(parameters: Any, lr: float) -> None:
    """The update sets `requires_grad=False` on the parameters, instead of using `torch.no_grad()`, and leaves it so."""
    for parameter in parameters:
        parameter.requires_grad_(False)
        sgd_update([parameter], lr)


# Randomness, train and eval mode


@mutant("Net", law="same_call_gives_same_bits", category=Category.API)
class DropoutAlwaysOn(StagedNet):
    """Dropout is also active in eval mode, because `F.dropout` is called without `training=self.training`."""

    def relu4(self, units: Tensor) -> Tensor:
        return F.dropout(F.relu(units), 0.5)


@mutant("Net", law="train_and_eval_modes_agree", category=Category.REGULARIZATION)
class DropoutInTraining(StagedNet):
    """fc2's output has dropout in train mode; the tutorial's network has none."""

    def relu4(self, units: Tensor) -> Tensor:
        return F.dropout(F.relu(units), 0.5, self.training)


@mutant("Net", law="train_and_eval_modes_agree", category=Category.ACTIVATION)
class SoftmaxInEvalMode(StagedNet):
    """In eval mode the network returns probabilities instead of logits."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.training else logits.softmax(1)


@mutant("Net", law="train_and_eval_modes_agree", category=Category.LAYER)
class BatchNormWithRunningStatistics(StagedNet):
    """conv1's output is batch-normalized, with batch statistics in train mode and running statistics in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6), persistent=False)
        self.register_buffer("variance", torch.ones(6), persistent=False)

    def relu1(self, maps: Tensor) -> Tensor:
        return F.relu(F.batch_norm(maps, self.mean, self.variance, training=self.training))


@mutant("Net", law="logits_depend_only_on_their_own_image", category=Category.LAYER)
class BatchNormWithBatchStatistics(StagedNet):
    """conv1's output is batch-normalized with batch statistics in both modes."""

    def relu1(self, maps: Tensor) -> Tensor:
        return F.relu(F.batch_norm(maps, None, None, training=True))


# Dependence between the images of a batch


@mutant("Net", law="splitting_the_batch_preserves_logits", category=Category.BATCH)
class BatchMeanSubtracted(StagedNet):
    """The mean image of the batch is subtracted from each image if the batch has more than one."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0) if len(images) > 1 else images)


@mutant("Net", law="permuting_images_permutes_logits", category=Category.BATCH)
class PreviousActivationsAdded(StagedNet):
    """1/64 of the previous image's last hidden activations is added to those of each image."""

    def relu4(self, units: Tensor) -> Tensor:
        units = F.relu(units)
        return torch.cat([units[:1], units[1:] + units[:-1] / 64])


@mutant("Net", law="input_gradient_is_zero_for_other_images", category=Category.BATCH)
class InputGradientsMixedAcrossBatch(StagedNet):
    """Half of each image's gradient is averaged over the batch; logits and parameter gradients are correct."""

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images.clone()
            images.register_hook(lambda gradient: gradient / 2 + gradient.mean(0) / 2)
        return super().forward(images)


# Dependence on earlier calls


@mutant("Net", law="same_call_gives_same_bits", category=Category.MODEL_PROPERTIES)
class CallCountAddedToLogits(StagedNet):
    """The number of earlier calls is added to the logits."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images) + self.calls
        self.calls += 1
        return logits


@mutant("Net", law="image_changes_take_effect_immediately", category=Category.COMPUTATION_MODEL)
class LogitsCachedByTensor(StagedNet):
    """Without gradients, logits are cached by image tensor and weights: pixels changed in place have no effect."""

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(images)
        weights = [(id(p), p._version, p.data_ptr()) for p in self.parameters()]
        cached = getattr(self, "cached", None)
        if cached is None or cached[0] is not images or cached[1] != weights:
            self.cached = cached = images, weights, super().forward(images)
        return cached[2].clone()


class WithCachedLogits(StagedNet):
    """Without gradients, logits are cached for the images that `key` identifies, while the weights stay the same."""

    cached: tuple[Any, Tensor] | None = None

    def key(self, images: Tensor) -> Any:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(images)
        weights = [(id(p), p._version, p.data_ptr()) for p in self.parameters()]
        key = self.key(images), images.shape, weights
        if self.cached is None or self.cached[0] != key:
            self.cached = key, super().forward(images)
        return self.cached[1].clone()


@mutant("Net", law="reused_memory_of_images_is_read_again", category=Category.COMPUTATION_MODEL)
class LogitsCachedByAddressAndVersion(WithCachedLogits):
    """Without gradients, logits are cached by the images' address and version: later images may have the same."""

    def key(self, images: Tensor) -> Any:
        return images.data_ptr(), images._version


@mutant("Net", law="reused_memory_of_images_is_read_again", category=Category.COMPUTATION_MODEL, dtype="bfloat16")
class LogitsCachedById(WithCachedLogits):
    """Without gradients, logits are cached by the `id` and version of the images: later ones may have the same."""

    def key(self, images: Tensor) -> Any:
        return id(images), images._version


@mutant("Net", law="reused_memory_of_images_is_read_again", category=Category.COMPUTATION_MODEL, dtype="float16")
class LogitsCachedByAddress(WithCachedLogits):
    """Without gradients, logits are cached by the images' address."""

    def key(self, images: Tensor) -> Any:
        return images.data_ptr()


class WithParameterCopies(StagedNet):
    """Compute with copies of the parameters where `uses_copies` is true; copy again when `cache_key` changes."""

    copies: tuple[Any, dict[str, Tensor]] | None = None

    def uses_copies(self, images: Tensor) -> bool:
        return not torch.is_grad_enabled()

    def copy(self, parameter: Tensor) -> Tensor:
        return parameter.detach().clone()

    def cache_key(self) -> Any:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if not self.uses_copies(images):
            return super().forward(images)
        key = self.cache_key()
        if self.copies is None or self.copies[0] != key:
            self.copies = key, {name: self.copy(parameter) for name, parameter in self.named_parameters()}
        return functional_call(META_NET, self.copies[1], (images,))


with torch.device("meta"):
    META_NET = StagedNet()  # functional_call gives it parameters


@mutant("Net", law="weight_changes_take_effect_immediately", category=Category.COMPUTATION_MODEL)
class PackedWeightsNotRefreshed(WithParameterCopies):
    """Passes without gradients always use the weights of the first such pass."""

    def cache_key(self) -> Any:
        return None


@mutant("Net", law="weights_in_other_or_reused_memory_take_effect", category=Category.COMPUTATION_MODEL)
class WeightsCopiedByAddressAndVersion(WithParameterCopies):
    """Without gradients, copies of the weights are used until an address or a version counter changes."""

    def cache_key(self) -> Any:
        return [(parameter.data_ptr(), parameter._version) for parameter in self.parameters()]


@mutant(
    "Net", law="weights_in_other_or_reused_memory_take_effect", category=Category.COMPUTATION_MODEL, dtype="float64"
)
class WeightsCopiedByIdAndVersion(WithParameterCopies):
    """Without gradients, copies of the weights are used until a Parameter is replaced or a version counter changes."""

    def cache_key(self) -> Any:
        return [(id(parameter), parameter._version) for parameter in self.parameters()]


@mutant(
    "Net", law="weights_in_other_or_reused_memory_take_effect", category=Category.COMPUTATION_MODEL, dtype="bfloat16"
)
class WeightsCopiedByAddress(WithParameterCopies):
    """Without gradients, copies of the weights are used until an address changes."""

    def cache_key(self) -> Any:
        return [parameter.data_ptr() for parameter in self.parameters()]


@mutant(
    "Net",
    law="same_call_gives_same_bits",
    category=Category.NUMERICS,
    unseen={"bfloat16": "both orders, summed in float32, round to the same bfloat16"},
)
class SumsReversedUnderNoGrad(WithParameterCopies):
    """Passes without gradients sum fc2's products in reverse order: equally accurate, but with different last bits."""

    def copy(self, parameter: Tensor) -> Tensor:
        if any(parameter is own for own in self.fc1.parameters()):
            return parameter.detach().flip(0)
        return parameter.detach().flip(1) if parameter is self.fc2.weight else parameter.detach()

    def cache_key(self) -> Any:
        return object()


class WithAutocastCopies(WithParameterCopies):
    """Compute with copies in the autocast dtype within an autocast region, which leaves float64 as it is."""

    def uses_copies(self, images: Tensor) -> bool:
        return torch.is_autocast_enabled(images.device.type)

    def copy(self, parameter: Tensor) -> Tensor:
        region = torch.get_autocast_dtype(parameter.device.type)
        return parameter.to(torch.float64 if parameter.dtype is torch.float64 else region, copy=True)


@mutant("Net", law="weight_changes_take_effect_within_autocast", category=Category.COMPUTATION_MODEL)
class AutocastCacheKeyedByName(WithAutocastCopies):
    """Autocast's cached casts are keyed by parameter name, and stay valid when the Parameter is replaced."""

    def cache_key(self) -> Any:
        return torch.is_grad_enabled()


@mutant("Net", law="no_grad_pass_does_not_affect_later_autocast_pass", category=Category.UPSTREAM)
class AutocastCacheIgnoresGradMode(WithAutocastCopies):
    """A cast that was cached without a graph is reused in a pass that needs gradients, as in pytorch/pytorch#112583."""

    def cache_key(self) -> Any:
        return [(id(parameter), parameter._version, parameter.data_ptr()) for parameter in self.parameters()]


@mutant(
    "torch.clear_autocast_cache",
    law="autocast_cache_ends_with_its_region",
    category=Category.UPSTREAM,
    unseen=dict.fromkeys(("float64", "bfloat16", "float16"), "autocast caches casts of float32 only"),
)
def autocast_cache_not_cleared() -> None:
    """The cached casts of an autocast region are not cleared when it ends."""


@mutant(
    "torch.set_autocast_cache_enabled",
    law="weight_changes_take_effect_within_autocast",
    category=Category.UPSTREAM,
    unseen=dict.fromkeys(("float64", "bfloat16", "float16"), "autocast caches casts of float32 only"),
)
def autocast_cache_enabled_ignored(enabled: bool) -> None:
    """An autocast region ignores `cache_enabled` and always caches casts."""


_last_steps: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()


@mutant("train_step", law="training_resumes_bit_for_bit", category=Category.OPTIMIZER)
def momentum_outside_state_dict(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Half of the previous step is added to each step; it is kept outside the network and its state_dict."""
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss = train_step(net, images, targets, lr)
    with torch.no_grad():
        for parameter, last in zip(net.parameters(), _last_steps.get(net, []), strict=False):
            parameter.add_(last / 2)
        _last_steps[net] = [now.detach() - then for now, then in zip(net.parameters(), before, strict=True)]
    return loss


_steps: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@mutant("train_step", law="training_resumes_bit_for_bit", category=Category.LEARNING_RATE)
def schedule_outside_state_dict(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The learning rate drops to a tenth after three steps; a network that is loaded from a file counts from zero."""
    _steps[net] = _steps.get(net, 0) + 1
    return train_step(net, images, targets, lr if _steps[net] <= 3 else lr / 10)


# Dependence between networks, copies and files


@mutant("Net", law="networks_share_no_state", category=Category.MODEL_PROPERTIES)
class BiasSharedAcrossNetworks(StagedNet):
    """All networks that exist at the same time share one fc3 bias."""

    shared: ClassVar[WeakValueDictionary[str, nn.Parameter]] = WeakValueDictionary()

    def __init__(self) -> None:
        super().__init__()
        self.fc3.bias = self.shared.setdefault("fc3.bias", self.fc3.bias)


@mutant("Net", law="functional_call_matches_the_network", category=Category.MODEL_PROPERTIES)
class RandomOffsetOutsideStateDict(StagedNet):
    """The constructor draws a random offset that is added to the logits and is missing from the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = float(torch.rand(()))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.offset


@mutant("Net", law="functional_call_matches_the_network", category=Category.MODEL_PROPERTIES)
class ParametersBoundAtConstruction(StagedNet):
    """fc3 always computes with the Parameters that it had at construction."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.forward = partial(F.linear, weight=self.fc3.weight, bias=self.fc3.bias)


@mutant("Net", law="copies_share_no_memory", category=Category.MODEL_PROPERTIES)
class CopyUsesOriginalLayer(StagedNet):
    """fc3's forward function is a closure over the layer, so that a deep copy uses the original's parameters."""

    def __init__(self) -> None:
        super().__init__()
        layer = self.fc3
        layer.forward = lambda units: F.linear(units, layer.weight, layer.bias)


@mutant("Net", law="copies_share_no_memory", category=Category.MODEL_PROPERTIES)
class DeepcopyIsShallow(StagedNet):
    """A deep copy shares its Parameters with the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)


@mutant("Net", law="copies_share_no_memory", category=Category.API)
class LoadAlwaysAssigns(StagedNet):
    """`load_state_dict` assigns the given tensors even with `assign=False`."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict, assign=True)


@mutant("Net", law="load_with_assign_uses_the_given_tensors", category=Category.API)
class LoadIgnoresAssign(StagedNet):
    """`load_state_dict` copies the given tensors even with `assign=True`."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict)


@mutant("Net", law="copies_are_bit_identical", category=Category.NUMERICS, unseen={"float16": "nothing is rounded"})
class PickleRoundsToFloat16(StagedNet):
    """Unpickling and deep copying round the parameters to float16."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for parameter in self.parameters():
            parameter.data.copy_(parameter.data.half())


@mutant("Net", law="copies_are_bit_identical", category=Category.NUMERICS, unseen={"float16": "nothing is rounded"})
class StateDictRoundsToFloat16(StagedNet):
    """The tensors of the state_dict are rounded to float16, as for a smaller file."""

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return {name: value.half() for name, value in super().state_dict(*args, **options).items()}


@mutant("Net", law="state_dict_shares_memory_with_parameters", category=Category.API)
class StateDictCopies(StagedNet):
    """The tensors of the state_dict are copies, which do not change with later training."""

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return {name: value.clone() for name, value in super().state_dict(*args, **options).items()}


load = torch.load


@mutant("torch.load", law="load_runs_no_code_by_default", category=Category.API_CHANGE)
def load_runs_code(file: Any, *args: Any, weights_only: bool = False, **options: Any) -> Any:
    """`torch.load` runs the code in a file unless `weights_only=True` is given, as before PyTorch 2.6."""
    return load(file, *args, weights_only=weights_only, **options)


@mutant("torch.load", law="loaded_tensors_are_bit_identical_at_any_location", category=Category.GPU)
def load_ignores_location(file: Any, map_location: Any = None, **options: Any) -> Any:
    """`torch.load` ignores `map_location`."""
    return load(file, **options)


@mutant("torch.load", law="loaded_tensors_are_bit_identical_at_any_location", category=Category.API)
def mapped_tensors_lose_last_element(file: Any, *args: Any, mmap: bool = False, **options: Any) -> Any:
    """The last element of each tensor that is mapped from a file is zero, as if the file were one element short."""
    content = load(file, *args, mmap=mmap, **options)
    for tensor in content.values() if mmap else ():
        tensor.view(-1)[-1] = 0
    return content


@mutant("torch.load", law="training_leaves_a_mapped_file_unchanged", category=Category.COMPUTATION_MODEL)
def mapped_file_is_shared(file: Any, *args: Any, mmap: bool = False, **options: Any) -> Any:
    """What is written to tensors that are mapped from a file is written to the file (MAP_SHARED)."""
    with torch.serialization.set_default_mmap_options(MAP_SHARED):
        return load(file, *args, mmap=mmap, **options)


# Graphs and memory


@mutant("Net", law="graph_reaches_exactly_the_parameters", category=Category.COMPUTATION_MODEL)
class FeaturesDetached(StagedNet):
    """The features are detached from the graph, so that the convolutions get no gradient."""

    def flatten(self, maps: Tensor) -> Tensor:
        return torch.flatten(maps, 1).detach()


@mutant("Net", law="no_graph_is_recorded_under_no_grad_or_inference_mode", category=Category.COMPUTATION_MODEL)
class InferenceTensorsUnderNoGrad(StagedNet):
    """Under `no_grad` the logits are inference tensors, which cannot be used in a later graph."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode(not torch.is_grad_enabled()):
            return super().forward(images)


@mutant("Net", law="uninitialized_memory_is_not_read", category=Category.COMPUTATION_MODEL)
class UninitializedWorkspaceRead(StagedNet):
    """The logits include the content of a large uninitialized workspace, which is zero only in fresh memory."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        workspace = torch.empty(WORKSPACE_SIZE, dtype=images.dtype, device=images.device)
        return logits + workspace[:10]


WORKSPACE_SIZE = 2**24
"""Elements of the workspace, 64 MiB in float32: above the 32 MiB up to which the C library reuses freed memory."""


# Leaks

_losses: list[Tensor] = []


@mutant("train_step", law="training_leaks_no_memory", category=Category.COMPUTATION_MODEL)
def losses_kept_with_graphs(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Every step's loss is kept in a list together with its graph."""
    net.zero_grad()
    loss = F.mse_loss(net(images), targets)
    _losses.append(loss)
    loss.backward()
    sgd_update(net.parameters(), lr)
    return loss.detach()


@mutant("Net", law="training_leaks_no_memory", category=Category.COMPUTATION_MODEL, dtype="float64")
class LogitsKept(StagedNet):
    """Every pass keeps its logits in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.history.append(logits.detach())
        return logits


@mutant("Net", law="training_leaks_no_memory", category=Category.API, dtype="bfloat16")
class HookAddedInEveryPass(StagedNet):
    """Every pass adds a hook to fc3, which does nothing and is never removed."""

    def forward(self, images: Tensor) -> Tensor:
        self.fc3.register_forward_hook(do_nothing)
        return super().forward(images)


def do_nothing(*_: Any) -> None:
    """Return None, which leaves a hooked value as it is."""


@mutant("Net", law="training_leaks_no_memory", category=Category.COMPUTATION_MODEL, dtype="float16")
class PackedWeightsKept(StagedNet):
    """fc2's weight is copied for each of its versions, and all copies are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.packed: dict[int, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        weight = self.fc2.weight
        self.packed.setdefault(weight._version, weight.detach().clone())
        return super().forward(images)
