"""`torch.optim.SGD`: momentum, dampening, weight decay, parameter groups and state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from properties.mutants import Category, mutant
from properties.mutants.update import SIMD_WIDTH, as_if_contiguous, flat_indices

Group = dict[str, Any]


class StagedSGD(optim.SGD):
    """
    `torch.optim.SGD` as documented, with a method for each stage that a mutant can override.

    It ignores `foreach` and `fused`: one implementation serves all three forms, so it has none of their known issues.
    """

    def __init__(self, params: Any, *args: Any, foreach: Any = None, fused: Any = None, **options: Any) -> None:
        super().__init__(params, *args, foreach=False, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.evaluate_closure(closure) if closure else None
        for group in self.groups():
            for parameter in group["params"]:
                if (gradient := self.gradient(parameter, group)) is not None:
                    self.update(parameter, gradient, group)
        return loss

    def evaluate_closure(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            return closure()

    def groups(self) -> list[Group]:
        return self.param_groups

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad

    def update(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> None:
        gradient = self.effective_gradient(parameter, gradient, group)
        direction = self.apply_momentum(parameter, gradient, group) if group["momentum"] else gradient
        self.apply_step(parameter, direction, group)

    def effective_gradient(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return self.add_weight_decay(parameter, -gradient if group["maximize"] else gradient, group)

    def add_weight_decay(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return gradient.add(parameter, alpha=group["weight_decay"]) if group["weight_decay"] else gradient

    def apply_momentum(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        state = self.state[parameter]
        if (buffer := state.get("momentum_buffer")) is None:
            buffer = state["momentum_buffer"] = self.first_buffer(gradient, group)
        else:
            buffer.mul_(group["momentum"]).add_(gradient, alpha=1 - group["dampening"])
        return self.nesterov_direction(gradient, buffer, group) if group["nesterov"] else buffer

    def first_buffer(self, gradient: Tensor, group: Group) -> Tensor:
        return gradient.clone()

    def nesterov_direction(self, gradient: Tensor, buffer: Tensor, group: Group) -> Tensor:
        return gradient.add(buffer, alpha=group["momentum"])

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        parameter.add_(direction, alpha=-float(group["lr"]))


@mutant("torch.optim.SGD", law="optimizer_update_matches_the_formula", category=Category.UPSTREAM)
class FullSimdBlocksSkipped(StagedSGD):
    """Only the remainder after the last full SIMD block is updated, as in pytorch/pytorch#191763."""

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        full = parameter.numel() // SIMD_WIDTH * SIMD_WIDTH
        super().apply_step(parameter, direction.where(flat_indices(direction) >= full, 0), group)


@mutant("torch.optim.SGD", law="first_momentum_buffer_is_the_gradient", category=Category.OPTIMIZER)
class FirstGradientDampened(StagedSGD):
    """The momentum buffer is initialized to zero, so that the first gradient is dampened too."""

    def first_buffer(self, gradient: Tensor, group: Group) -> Tensor:
        return (1 - group["dampening"]) * gradient


@mutant("torch.optim.SGD", law="first_momentum_buffer_is_the_gradient", category=Category.COMPUTATION_MODEL)
class FirstMomentumBufferAliasesGradient(StagedSGD):
    """The first momentum buffer is the gradient tensor itself, not a copy."""

    def first_buffer(self, gradient: Tensor, group: Group) -> Tensor:
        return gradient


@mutant("torch.optim.SGD", law="optimizer_step_reads_no_uninitialized_memory", category=Category.NUMERICS)
class UninitializedMomentumBuffer(StagedSGD):
    """The first momentum buffer is uninitialized memory multiplied by zero, which stays NaN where it was NaN."""

    def first_buffer(self, gradient: Tensor, group: Group) -> Tensor:
        return torch.empty_like(gradient).mul_(0).add_(gradient)


@mutant("torch.optim.SGD", law="late_first_gradient_is_treated_as_first_step", category=Category.OPTIMIZER)
class LateFirstGradientDampened(StagedSGD):
    """A gradient that first arrives at a later step of the optimizer is dampened, as if its buffer were zero."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.has_state = bool(self.state)
        return super().step(closure)

    def first_buffer(self, gradient: Tensor, group: Group) -> Tensor:
        return (1 - group["dampening"]) * gradient if self.has_state else gradient.clone()


@mutant("torch.optim.SGD", law="late_first_gradient_is_treated_as_first_step", category=Category.OPTIMIZER)
class MomentumBufferWithoutGradient(StagedSGD):
    """A parameter without a gradient is not updated, but it gets a momentum buffer of zeros."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        if parameter.grad is None and group["momentum"]:
            self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        return parameter.grad


@mutant("torch.optim.SGD", law="missing_gradient_differs_from_zero_gradient", category=Category.OPTIMIZER)
class MissingGradientTreatedAsZero(StagedSGD):
    """A parameter that has a momentum buffer is updated without a gradient, as if the gradient were zero."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        missing = parameter.grad is None and parameter in self.state
        return torch.zeros_like(parameter) if missing else parameter.grad


@mutant("torch.optim.SGD", law="missing_gradient_differs_from_zero_gradient", category=Category.OPTIMIZER)
class ZeroGradientTreatedAsMissing(StagedSGD):
    """A parameter whose gradient is zero is skipped, despite its momentum or weight decay."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad if parameter.grad is not None and parameter.grad.any() else None


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.REGULARIZATION)
class WeightDecayDecoupled(StagedSGD):
    """Weight decay is applied to the parameters directly, as in AdamW, and does not enter the momentum."""

    def add_weight_decay(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return gradient

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        parameter.mul_(1 - float(group["lr"]) * group["weight_decay"])
        super().apply_step(parameter, direction, group)


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.REGULARIZATION)
class BiasesNotDecayed(StagedSGD):
    """One-dimensional parameters are not decayed, as in many recipes, although SGD has no such option."""

    def add_weight_decay(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return super().add_weight_decay(parameter, gradient, group) if parameter.dim() > 1 else gradient


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.REGULARIZATION)
class WeightDecayDoubled(StagedSGD):
    """The weight decay is twice as large, as if the penalty were not divided by two."""

    def add_weight_decay(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return gradient.add(parameter, alpha=2 * group["weight_decay"])


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.OPTIMIZER)
class NesterovIgnored(StagedSGD):
    """`nesterov=True` is accepted, but plain momentum is used."""

    def nesterov_direction(self, gradient: Tensor, buffer: Tensor, group: Group) -> Tensor:
        return buffer


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.OPTIMIZER)
class NesterovTermsSwapped(StagedSGD):
    """The Nesterov step adds momentum * gradient to the buffer, not momentum * buffer to the gradient."""

    def nesterov_direction(self, gradient: Tensor, buffer: Tensor, group: Group) -> Tensor:
        return buffer.add(gradient, alpha=group["momentum"])


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.OPTIMIZER)
class MomentumBufferSharedByShape(StagedSGD):
    """Momentum buffers are looked up by shape, so that two parameters of one shape share a buffer."""

    def apply_momentum(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        for other, state in list(self.state.items()):
            if other.shape == parameter.shape:
                self.state[parameter] = state
        return super().apply_momentum(parameter, gradient, group)


@mutant(
    "torch.optim.SGD",
    law="sgd_steps_match_the_formula",
    category=Category.NUMERICS,
)
class MomentumBufferInBfloat16(StagedSGD):
    """Momentum buffers are rounded to bfloat16 to save memory."""

    def apply_momentum(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        direction = super().apply_momentum(parameter, gradient, group).clone()
        buffer = self.state[parameter]["momentum_buffer"]
        buffer.copy_(buffer.bfloat16())
        return direction


@mutant("torch.optim.SGD", law="learning_rate_change_takes_effect_at_next_step", category=Category.LEARNING_RATE)
class LearningRateInMomentumBuffer(StagedSGD):
    """The buffer accumulates steps, not gradients, as in Sutskever et al. 2013, and so keeps old learning rates."""

    def apply_momentum(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return super().apply_momentum(parameter, gradient * float(group["lr"]), group)

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        super().apply_step(parameter, direction, group | {"lr": 1.0} if group["momentum"] else group)


@mutant("torch.optim.SGD", law="learning_rate_change_takes_effect_at_next_step", category=Category.LEARNING_RATE)
class LearningRateChangesIgnored(StagedSGD):
    """The learning rate of the first step is used for all steps."""

    def groups(self) -> list[Group]:
        self.rates = getattr(self, "rates", [group["lr"] for group in self.param_groups])
        return [group | {"lr": lr} for group, lr in zip(self.param_groups, self.rates, strict=True)]


@mutant("torch.optim.SGD", law="parameter_groups_use_their_own_settings", category=Category.OPTIMIZER)
class FirstGroupSettingsUsedForAll(StagedSGD):
    """All parameter groups are updated with the settings of the first group."""

    def groups(self) -> list[Group]:
        return [self.param_groups[0] | {"params": group["params"]} for group in self.param_groups]


@mutant("torch.optim.SGD", law="maximize_equals_minimize_with_negated_gradients", category=Category.OPTIMIZER)
class MaximizeIgnored(StagedSGD):
    """`maximize=True` is accepted, but the loss is minimized."""

    def effective_gradient(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return self.add_weight_decay(parameter, gradient, group)


@mutant("torch.optim.SGD", law="maximize_equals_minimize_with_negated_gradients", category=Category.REGULARIZATION)
class MaximizeNegatesWeightDecay(StagedSGD):
    """`maximize=True` negates the weight decay too, so that weights grow."""

    def effective_gradient(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        gradient = self.add_weight_decay(parameter, gradient, group)
        return -gradient if group["maximize"] else gradient


@mutant("torch.optim.SGD", law="optimizer_step_leaves_gradients_unchanged", category=Category.UPSTREAM)
class WeightDecayAddedToGradInPlace(StagedSGD):
    """The weight decay is added to the gradient in place, as in PyTorch up to 1.4."""

    def add_weight_decay(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return gradient.add_(parameter, alpha=group["weight_decay"])


@mutant("torch.optim.SGD", law="optimizer_step_leaves_gradients_unchanged", category=Category.UPSTREAM)
class NesterovMomentumAddedToGradInPlace(StagedSGD):
    """Nesterov momentum is added to the gradient in place, as in the foreach implementation of PyTorch 2.13."""

    def nesterov_direction(self, gradient: Tensor, buffer: Tensor, group: Group) -> Tensor:
        return gradient.add_(buffer, alpha=group["momentum"])


@mutant("torch.optim.SGD", law="backward_after_step_raises_or_uses_saved_values", category=Category.UPSTREAM)
class UpdateBypassesVersionCounter(StagedSGD):
    """Parameters are updated through `.data`, so that autograd does not detect the change, as in PyTorch up to 1.4."""

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        super().apply_step(parameter.data, direction, group)


@mutant("torch.optim.SGD", law="optimizer_step_is_correct_in_any_memory_layout", category=Category.UPSTREAM)
class GradientReadAsContiguous(StagedSGD):
    """Gradients are read in memory order, as in the fused implementation of PyTorch 2.13."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad if parameter.grad is None else as_if_contiguous(parameter.grad).view(parameter.shape)


@mutant("torch.optim.SGD", law="optimizer_step_writes_only_its_parameter", category=Category.UPSTREAM)
class MemoryBetweenElementsOverwritten(StagedSGD):
    """The update writes memory between a strided parameter's elements, as PyTorch 2.13's fused implementation does."""

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        before = as_if_contiguous(parameter.detach()).clone()
        super().apply_step(parameter, direction, group)
        updated = parameter.clone()
        as_if_contiguous(parameter).copy_(before.sub_(1))
        parameter.copy_(updated)


@mutant("torch.optim.SGD", law="loaded_optimizer_state_continues_bit_for_bit", category=Category.PROCESS)
class MomentumLostOnLoad(StagedSGD):
    """Loading a state restores the settings but not the momentum buffers."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"state": {}})


@mutant(
    "torch.optim.SGD",
    law="loaded_optimizer_state_continues_bit_for_bit",
    category=Category.NUMERICS,
    unseen={"bfloat16": "nothing is rounded"},
)
class MomentumSavedInBfloat16(StagedSGD):
    """Momentum buffers are saved in bfloat16."""

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        saved["state"] = {i: {"momentum_buffer": s["momentum_buffer"].bfloat16()} for i, s in saved["state"].items()}
        return saved


@mutant("torch.optim.SGD", law="loaded_optimizer_state_continues_bit_for_bit", category=Category.PROCESS)
class SettingsNotLoaded(StagedSGD):
    """Loading a state restores the momentum buffers but not the settings of the parameter groups."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        settings = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, kept in zip(self.param_groups, settings, strict=True):
            group.update(kept)


@mutant("torch.optim.SGD", law="loaded_optimizer_state_is_independent", category=Category.COMPUTATION_MODEL)
class LoadCopiesOnlyFirstBuffer(StagedSGD):
    """Loading a state copies only the first momentum buffer: two optimizers share the others."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in list(self.state.values())[:1]:
            state["momentum_buffer"] = state["momentum_buffer"].clone()


@mutant("torch.optim.SGD", law="optimizer_leaves_given_group_dicts_unchanged", category=Category.COMPUTATION_MODEL)
class LearningRateWrittenToGivenDicts(StagedSGD):
    """The default learning rate is written into the dictionaries in which the caller defines parameter groups."""

    def __init__(self, params: Any, lr: Any = 1e-3, *args: Any, **options: Any) -> None:
        params = list(params)
        for group in params:
            if isinstance(group, dict):
                group.setdefault("lr", lr)
        super().__init__([dict(group) if isinstance(group, dict) else group for group in params], lr, *args, **options)


@mutant("torch.optim.SGD", law="groups_do_not_share_a_learning_rate_tensor", category=Category.NUMERICS)
class LearningRateTensorCastToFloat32(StagedSGD):
    """A tensor learning rate is copied for each parameter group, but cast to float32."""

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].float().clone()


@mutant("torch.optim.SGD", law="invalid_optimizer_settings_raise", category=Category.TYPE_CHECK)
class InvalidNesterovAccepted(StagedSGD):
    """`nesterov=True` without momentum, or with dampening, is accepted and ignored."""

    def __init__(self, params: Any, *args: Any, nesterov: bool = False, **options: Any) -> None:
        valid = options.get("momentum", 0) > 0 and not options.get("dampening", 0)
        super().__init__(params, *args, nesterov=nesterov and valid, **options)


@mutant("torch.optim.SGD", law="invalid_optimizer_settings_raise", category=Category.TYPE_CHECK)
class NegativeWeightDecayAccepted(StagedSGD):
    """A negative weight decay is accepted and treated as zero."""

    def __init__(self, params: Any, *args: Any, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(params, *args, weight_decay=max(weight_decay, 0.0), **options)


@mutant("torch.optim.SGD", law="closure_is_evaluated_once_and_its_loss_returned", category=Category.API)
class ClosureCalledTwice(StagedSGD):
    """The closure is called once for its gradients and once for its loss."""

    def evaluate_closure(self, closure: Callable[[], Any]) -> Any:
        super().evaluate_closure(closure)
        return super().evaluate_closure(closure)


@mutant("torch.optim.SGD", law="closure_is_evaluated_once_and_its_loss_returned", category=Category.API)
class ClosureLossNotReturned(StagedSGD):
    """`step` does not return the closure's loss."""

    def evaluate_closure(self, closure: Callable[[], Any]) -> Any:
        super().evaluate_closure(closure)


@mutant("torch.optim.SGD", law="closure_is_evaluated_once_and_its_loss_returned", category=Category.API)
class ClosureCalledAfterStep(StagedSGD):
    """The closure is called after the update, which therefore uses the previous gradients."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        super().step()
        return self.evaluate_closure(closure) if closure else None


@mutant("torch.optim.SGD", law="many_and_large_parameters_step_by_the_formula", category=Category.NUMERICS)
class TensorsAfterThe110thLeftOut(StagedSGD):
    """At most 110 tensors of a group are updated, as many as one launch of a multi-tensor kernel takes."""

    def groups(self) -> list[Group]:
        return [group | {"params": group["params"][:110]} for group in self.param_groups]


@mutant("torch.optim.SGD", law="many_and_large_parameters_step_by_the_formula", category=Category.NUMERICS)
class OnlyFirstChunkUpdated(StagedSGD):
    """Only the first 65,536 elements of a parameter are updated, the chunk of a multi-tensor kernel."""

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        super().apply_step(parameter, direction.where(flat_indices(direction) < 2**16, 0), group)


MIXED = "parameters_of_mixed_dtypes_and_devices_step_by_the_formula"


@mutant("torch.optim.SGD", law=MIXED, category=Category.NUMERICS)
class GradientsInDtypeOfFirstParameter(StagedSGD):
    """Gradients and momentum buffers have the dtype of the group's first parameter."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad if parameter.grad is None else parameter.grad.to(group["params"][0].dtype)


@mutant("torch.optim.SGD", law=MIXED, category=Category.PROCESS)
class OtherDtypesLeftOut(StagedSGD):
    """Only parameters that have the dtype of the group's first parameter are updated."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad if parameter.dtype == group["params"][0].dtype else None


LONG_LIVED = "long_lived_optimizer_steps_by_the_formula"


@mutant("torch.optim.SGD", law=LONG_LIVED, category=Category.OPTIMIZER)
class MomentumDecaysWhileFrozen(StagedSGD):
    """The momentum buffer of a parameter without a gradient is multiplied by the momentum in each step."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        if parameter.grad is None and parameter in self.state:
            self.state[parameter]["momentum_buffer"].mul_(group["momentum"])
        return parameter.grad


@mutant("torch.optim.SGD", law=LONG_LIVED, category=Category.OPTIMIZER)
class MomentumDroppedWhenFrozen(StagedSGD):
    """A parameter that is frozen loses its momentum buffer, to save memory."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        if not parameter.requires_grad:
            self.state.pop(parameter, None)
        return parameter.grad


@mutant("torch.optim.SGD", law=LONG_LIVED, category=Category.OPTIMIZER)
class FrozenParametersForgotten(StagedSGD):
    """A parameter that is frozen when a step is taken is never updated again."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        self.forgotten = getattr(self, "forgotten", set())
        if not parameter.requires_grad:
            self.forgotten.add(parameter)
        return None if parameter in self.forgotten else parameter.grad


@mutant("torch.optim.SGD", law=LONG_LIVED, category=Category.OPTIMIZER)
class AddedGroupTakesFirstSettings(StagedSGD):
    """A group that is added later gets the settings of the first group instead of its own."""

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group((self.param_groups[0] if self.param_groups else {}) | {"params": param_group["params"]})


@mutant("torch.optim.SGD", law=LONG_LIVED, category=Category.PROCESS)
class LoadingReversesMomentumBuffers(StagedSGD):
    """Loading a state assigns the momentum buffers of one shape in reverse order."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        states = [self.state[p] for group in self.param_groups for p in group["params"] if p in self.state]
        for state, other in zip(states, states[::-1][: len(states) // 2], strict=False):
            if state["momentum_buffer"].shape == other["momentum_buffer"].shape:
                state["momentum_buffer"], other["momentum_buffer"] = other["momentum_buffer"], state["momentum_buffer"]


@mutant("torch.optim.SGD", law="optimizer_trains_a_network_that_has_loaded_a_state", category=Category.OPTIMIZER)
class MomentumBuffersFoundByAddress(StagedSGD):
    """A momentum buffer belongs to a memory address: after its parameter has moved, it starts again."""

    def apply_momentum(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        self.addresses = getattr(self, "addresses", {})
        if self.addresses.setdefault(parameter, parameter.data_ptr()) != parameter.data_ptr():
            self.state[parameter].pop("momentum_buffer", None)
        self.addresses[parameter] = parameter.data_ptr()
        return super().apply_momentum(parameter, gradient, group)


load_state_dict = nn.Module.load_state_dict


@mutant(
    "torch.nn.Module.load_state_dict",
    law="optimizer_trains_a_network_that_has_loaded_a_state",
    category=Category.COMPUTATION_MODEL,
)
def loaded_parameters_are_new(self: nn.Module, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
    """Loading makes new parameters, also with `assign=False`, so that an optimizer trains tensors of no network."""
    return load_state_dict(self, state_dict, strict, assign=True)


convert = nn.Module.to


@mutant(
    "torch.nn.Module.to",
    law="optimizer_trains_a_network_that_has_another_dtype",
    category=Category.COMPUTATION_MODEL,
)
def converted_parameters_are_new(self: nn.Module, *args: Any, **options: Any) -> nn.Module:
    """Conversion makes new parameters, so that an optimizer that was made before trains tensors of no network."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return convert(self, *args, **options)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@mutant("torch.optim.SGD", law="optimizer_trains_a_network_that_has_another_dtype", category=Category.NUMERICS)
class MomentumOfOtherDtypeReset(StagedSGD):
    """A momentum buffer whose dtype is not its gradient's is replaced by zeros, without a message."""

    def apply_momentum(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        buffer = self.state[parameter].get("momentum_buffer")
        if buffer is not None and buffer.dtype != gradient.dtype:
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        return super().apply_momentum(parameter, gradient, group)


@mutant("torch.optim.SGD", law="compiled_step_uses_the_current_learning_rate", category=Category.LEARNING_RATE)
class LearningRateConstantInGraph(StagedSGD):
    """A compiled step contains the learning rate with which the optimizer was made."""

    def apply_step(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        compiling = torch.compiler.is_compiling()
        super().apply_step(parameter, direction, group | {"lr": self.defaults["lr"]} if compiling else group)
