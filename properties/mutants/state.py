"""What a network keeps from one call to the next, reads beside its input, or leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lenet import sgd_update, train_step
from properties.mutants import Category, mutant
from properties.mutants.staged import Staged

# What a pass does beside its answer


@mutant("Net", law="forward_leaves_images_and_parameters_unchanged", category=Category.INPUT)
class InputGivenAway(Staged):
    """The images are zeroed once they are scored, as a buffer is that was donated."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images.clone())
        for image in images:
            image.data.zero_()
        return logits


@mutant("Net", law="forward_leaves_images_and_parameters_unchanged", category=Category.REGULARISATION)
class WeightsClipped(Staged):
    """Every pass clips the weights to [-0.1, 0.1] first, which belongs into the training of another network."""

    def forward(self, images: Tensor) -> Tensor:
        for parameter in self.parameters():
            parameter.data.clamp_(-0.1, 0.1)
        return super().forward(images)


@mutant("Net", law="forward_leaves_images_and_parameters_unchanged", category=Category.API)
class GradientsClearedByThePass(Staged):
    """Every pass clears the gradients that are there."""

    def forward(self, images: Tensor) -> Tensor:
        self.zero_grad()
        return super().forward(images)


@mutant("Net", law="forward_leaves_global_state_unchanged", category=Category.API)
class RandomNumberDrawn(Staged):
    """A pass draws a random number and does nothing with it."""

    def forward(self, images: Tensor) -> Tensor:
        torch.rand(1)
        return super().forward(images)


@mutant("Net", law="forward_leaves_global_state_unchanged", category=Category.UPSTREAM)
class FlushToZeroLeftOn(Staged):
    """A pass has subnormal numbers flushed to zero, and leaves it at that, as in pytorch/pytorch#126848."""

    def forward(self, images: Tensor) -> Tensor:
        torch.set_flush_denormal(True)
        return super().forward(images)


@mutant("Net", law="forward_leaves_global_state_unchanged", category=Category.API, dtype="float64")
class DefaultDtypeSet(Staged):
    """The images' dtype becomes the default of everything that comes after."""

    def forward(self, images: Tensor) -> Tensor:
        torch.set_default_dtype(images.dtype)
        return super().forward(images)


@mutant("train_step", law="training_step_changes_only_the_network", category=Category.PROCESS)
def step_seeds(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Every step begins with the same seed, so that nothing random is random any more."""
    torch.manual_seed(0)
    return train_step(net, images, targets, lr)


@mutant("train_step", law="training_step_changes_only_the_network", category=Category.LABELS)
def targets_smoothed_in_place(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """The targets are smoothed for the next epoch, in the caller's own memory."""
    loss = train_step(net, images, targets, lr)
    targets.mul_(0.9).add_(0.01)
    return loss


@mutant("train_step", law="training_step_changes_only_the_network", category=Category.PROCESS)
def step_ends_in_evaluation(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """After the step the network is in evaluation mode."""
    loss = train_step(net, images, targets, lr)
    net.eval()
    return loss


@mutant("sgd_update", law="training_step_changes_only_the_network", category=Category.API)
def grad_mode_left_off(parameters: Any, lr: float) -> None:
    """Gradients are switched off for the update, and not on again."""
    torch.set_grad_enabled(False)
    sgd_update(parameters, lr)


@mutant("sgd_update", law="training_step_changes_only_the_network", category=Category.API)
def parameters_frozen_by_the_update(parameters: Any, lr: float) -> None:
    """The update has its parameters require no gradient, instead of recording none, and leaves them so."""
    for parameter in parameters:
        parameter.requires_grad_(False)
        sgd_update([parameter], lr)


# Randomness, and modes


@mutant("Net", law="same_call_gives_same_bits", category=Category.API)
class DropoutAlwaysOn(Staged):
    """Units are dropped in evaluation too: `F.dropout` is not told the mode, and its default is to train."""

    def relu4(self, units: Tensor) -> Tensor:
        return F.dropout(F.relu(units), 0.5)


@mutant("Net", law="train_and_eval_mode_agree", category=Category.REGULARISATION)
class DropoutInTraining(Staged):
    """Units are dropped in training, where the tutorial's network drops none."""

    def relu4(self, units: Tensor) -> Tensor:
        return F.dropout(F.relu(units), 0.5, self.training)


@mutant("Net", law="train_and_eval_mode_agree", category=Category.ACTIVATION)
class SoftmaxInEvaluation(Staged):
    """In evaluation mode the network gives probabilities instead of scores."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if self.training else logits.softmax(1)


@mutant("Net", law="train_and_eval_mode_agree", category=Category.LAYER)
class BatchNormRunning(Staged):
    """The first maps are normalised: in training by the batch, in evaluation by a running average."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6), persistent=False)
        self.register_buffer("variance", torch.ones(6), persistent=False)

    def relu1(self, maps: Tensor) -> Tensor:
        return F.relu(F.batch_norm(maps, self.mean, self.variance, training=self.training))


@mutant("Net", law="logits_depend_only_on_their_own_image", category=Category.LAYER)
class BatchNormByBatch(Staged):
    """The first maps are normalised by the mean and the variance of their batch, in every mode."""

    def relu1(self, maps: Tensor) -> Tensor:
        return F.relu(F.batch_norm(maps, None, None, training=True))


# Between the images of a batch


@mutant("Net", law="splitting_the_batch_preserves_logits", category=Category.BATCH)
class BatchMeanSubtracted(Staged):
    """The mean image of a batch is subtracted from each of several images."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0) if len(images) > 1 else images)


@mutant("Net", law="permuting_images_permutes_logits", category=Category.BATCH)
class PreviousRowAdded(Staged):
    """A small part of the units that the image before had is added to each image's."""

    def relu4(self, units: Tensor) -> Tensor:
        units = F.relu(units)
        return torch.cat([units[:1], units[1:] + units[:-1] / 64])


@mutant("Net", law="input_gradient_is_zero_for_other_images", category=Category.BATCH)
class ImageGradientsMixed(Staged):
    """Half of each image's gradient is spread over the batch; the scores and the weights' gradients are right."""

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad:
            images = images.clone()
            images.register_hook(lambda slope: slope / 2 + slope.mean(0) / 2)
        return super().forward(images)


# From one call to the next


@mutant("Net", law="same_call_gives_same_bits", category=Category.MODEL_PROPERTIES)
class CallsCounted(Staged):
    """Every call adds the number of calls before it to the scores."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images) + self.calls
        self.calls += 1
        return logits


@mutant("Net", law="image_changes_take_effect_immediately", category=Category.COMPUTATION_MODEL)
class AnswerKeptForTheTensor(Staged):
    """The same tensor with other pixels has the scores of the former pixels, as long as no weight has changed."""

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(images)
        weights = [(id(p), p._version, p.data_ptr()) for p in self.parameters()]
        kept = getattr(self, "kept", None)
        if kept is None or kept[0] is not images or kept[1] != weights:
            self.kept = kept = images, weights, super().forward(images)
        return kept[2].clone()


class Copying(Staged):
    """Where `applies` says so, computes with copies of the parameters, made anew when `mark` changes."""

    copies: tuple[Any, dict[str, Tensor]] | None = None

    def applies(self, images: Tensor) -> bool:
        return not torch.is_grad_enabled()

    def copy(self, parameter: Tensor) -> Tensor:
        return parameter.detach().clone()

    def mark(self) -> Any:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if not self.applies(images):
            return super().forward(images)
        mark = self.mark()
        if self.copies is None or self.copies[0] != mark:
            self.copies = mark, {name: self.copy(parameter) for name, parameter in self.named_parameters()}
        return functional_call(BLANK, self.copies[1], (images,))


with torch.device("meta"):
    BLANK = Staged()  # its parameters are always given


@mutant("Net", law="weight_changes_take_effect_immediately", category=Category.COMPUTATION_MODEL)
class WeightsPackedOnce(Copying):
    """Passes without gradients compute for ever with the weights that the first of them found."""

    def mark(self) -> Any:
        return None


@mutant("Net", law="same_call_gives_same_bits", category=Category.NUMERICS)
class OtherSumsWithoutGraph(Copying):
    """Passes without gradients sum fc2's products from the other end: as good, but not the same bits."""

    def copy(self, parameter: Tensor) -> Tensor:
        if any(parameter is own for own in self.fc1.parameters()):
            return parameter.detach().flip(0)
        return parameter.detach().flip(1) if parameter is self.fc2.weight else parameter.detach()

    def mark(self) -> Any:
        return object()


class Casting(Copying):
    """Copies within autocast, in its dtype."""

    def applies(self, images: Tensor) -> bool:
        return torch.is_autocast_enabled(images.device.type)

    def copy(self, parameter: Tensor) -> Tensor:
        return parameter.to(torch.get_autocast_dtype(parameter.device.type))


@mutant("Net", law="weight_changes_take_effect_within_autocast", category=Category.COMPUTATION_MODEL)
class CastKeptByName(Casting):
    """Autocast's casts of the weights are kept by name, and stay when another Parameter takes the name."""

    def mark(self) -> Any:
        return torch.is_grad_enabled()


@mutant("Net", law="no_grad_pass_does_not_affect_later_autocast_pass", category=Category.UPSTREAM)
class CastKeptWithoutItsGraph(Casting):
    """A cast that was made without a graph serves a pass with one, as in pytorch/pytorch#112583."""

    def mark(self) -> Any:
        return [(id(parameter), parameter._version, parameter.data_ptr()) for parameter in self.parameters()]


@mutant("torch.clear_autocast_cache", law="autocast_cache_ends_with_its_region", category=Category.UPSTREAM)
def autocast_cache_not_cleared() -> None:
    """The casts of an autocast region outlive it."""


@mutant(
    "torch.set_autocast_cache_enabled", law="weight_changes_take_effect_within_autocast", category=Category.UPSTREAM
)
def autocast_cache_not_switched(enabled: bool) -> None:
    """`cache_enabled` of an autocast region is ignored: casts are always kept."""


_momenta: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()


@mutant("train_step", law="training_resumes_bit_for_bit", category=Category.OPTIMISER)
def momentum_hidden(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """Half of the last step is taken again, which is kept beside the network, where no state_dict holds it."""
    before = [parameter.detach().clone() for parameter in net.parameters()]
    loss = train_step(net, images, targets, lr)
    with torch.no_grad():
        for parameter, last in zip(net.parameters(), _momenta.get(net, []), strict=False):
            parameter.add_(last / 2)
        _momenta[net] = [now.detach() - then for now, then in zip(net.parameters(), before, strict=True)]
    return loss


_steps: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@mutant("train_step", law="training_resumes_bit_for_bit", category=Category.LEARNING_RATE)
def schedule_hidden(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """After three steps the learning rate is a tenth; a network that is loaded from a file begins to count anew."""
    _steps[net] = _steps.get(net, 0) + 1
    return train_step(net, images, targets, lr if _steps[net] <= 3 else lr / 10)


# Between networks, copies and files


@mutant("Net", law="networks_share_no_state", category=Category.MODEL_PROPERTIES)
class BiasSharedByNetworks(Staged):
    """A network's last bias is that of a network which is there already."""

    shared: ClassVar[WeakValueDictionary[str, nn.Parameter]] = WeakValueDictionary()

    def __init__(self) -> None:
        super().__init__()
        self.fc3.bias = self.shared.setdefault("fc3.bias", self.fc3.bias)


@mutant("Net", law="functional_call_matches_the_network", category=Category.MODEL_PROPERTIES)
class OffsetDrawnAtConstruction(Staged):
    """A random offset of the scores is drawn when the network is made, and is in no state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = float(torch.rand(()))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.offset


@mutant("Net", law="functional_call_matches_the_network", category=Category.MODEL_PROPERTIES)
class ParametersBoundAtConstruction(Staged):
    """fc3 computes with the Parameters that it had when the network was made, whatever it has now."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3.forward = partial(F.linear, weight=self.fc3.weight, bias=self.fc3.bias)


@mutant("Net", law="copies_share_no_memory", category=Category.MODEL_PROPERTIES)
class ClosureKeptByTheCopy(Staged):
    """fc3 computes by a function that has the layer in its closure, and so a deep copy's by the original's layer."""

    def __init__(self) -> None:
        super().__init__()
        layer = self.fc3
        layer.forward = lambda units: F.linear(units, layer.weight, layer.bias)


@mutant("Net", law="copies_share_no_memory", category=Category.MODEL_PROPERTIES)
class DeepcopyShallow(Staged):
    """A deep copy has the original's Parameters."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)


@mutant("Net", law="copies_share_no_memory", category=Category.API)
class StateAlwaysAssigned(Staged):
    """`load_state_dict` takes the given tensors themselves, also where it is to copy them."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict, assign=True)


@mutant("Net", law="load_with_assign_uses_the_given_tensors", category=Category.API)
class AssignIgnored(Staged):
    """`load_state_dict` copies, also where it is to take the given tensors themselves."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict)


@mutant("Net", law="copies_are_bit_identical", category=Category.NUMERICS)
class PickledInLowerPrecision(Staged):
    """What comes out of a pickle or a deep copy has been float16 in between."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for parameter in self.parameters():
            parameter.data.copy_(parameter.data.half())


@mutant("Net", law="copies_are_bit_identical", category=Category.NUMERICS)
class StateInLowerPrecision(Staged):
    """The state_dict's tensors are float16, as in a file that is to be small."""

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return {name: value.half() for name, value in super().state_dict(*args, **options).items()}


@mutant("Net", law="state_dict_shares_memory_with_parameters", category=Category.API)
class StateCopied(Staged):
    """The state_dict's tensors are copies, which training leaves behind."""

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:
        return {name: value.clone() for name, value in super().state_dict(*args, **options).items()}


# Graphs and memory


@mutant("Net", law="graph_reaches_every_parameter_once", category=Category.COMPUTATION_MODEL)
class DetachedInTheMiddle(Staged):
    """The features are detached from the convolutions, which then learn nothing."""

    def flatten(self, maps: Tensor) -> Tensor:
        return torch.flatten(maps, 1).detach()


@mutant("Net", law="no_graph_is_recorded_without_gradients", category=Category.COMPUTATION_MODEL)
class InferenceTensorsUnderNoGrad(Staged):
    """Under `no_grad` the scores are inference tensors, which no later graph can take."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.inference_mode(not torch.is_grad_enabled()):
            return super().forward(images)


@mutant("Net", law="uninitialized_memory_is_not_read", category=Category.COMPUTATION_MODEL)
class WorkspaceNotCleared(Staged):
    """Sums begin with what a large new workspace holds, which is zero only as long as it is fresh from the system."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        workspace = torch.empty(FRESH, dtype=images.dtype, device=images.device)
        return logits + workspace[:10]


FRESH = 2**24
"""Numbers that make 64 MiB in float32: more than the 32 MiB up to which the C library keeps memory to give it again."""
