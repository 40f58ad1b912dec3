"""`optim.SGD`: momentum, dampening, decay, groups, state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from properties.mutants import Category, mutant
from properties.mutants.update import BLOCK, in_memory, places

Group = dict[str, Any]


class StagedSGD(optim.SGD):
    """
    `optim.SGD` as its documentation has it, each of whose stages is a method that a mutant can define anew.

    One implementation for all forms, which so has none of the issues that are known of one of them.
    """

    def __init__(self, params: Any, *args: Any, foreach: Any = None, fused: Any = None, **options: Any) -> None:
        super().__init__(params, *args, foreach=False, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.evaluate(closure) if closure else None
        for group in self.groups():
            for parameter in group["params"]:
                if (gradient := self.gradient(parameter, group)) is not None:
                    self.update(parameter, gradient, group)
        return loss

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            return closure()

    def groups(self) -> list[Group]:
        return self.param_groups

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad

    def update(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> None:
        slope = self.slope(parameter, gradient, group)
        self.move(parameter, self.accelerated(parameter, slope, group) if group["momentum"] else slope, group)

    def slope(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return self.decayed(parameter, -gradient if group["maximize"] else gradient, group)

    def decayed(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        return slope.add(parameter, alpha=group["weight_decay"]) if group["weight_decay"] else slope

    def accelerated(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        state = self.state[parameter]
        if (velocity := state.get("momentum_buffer")) is None:
            velocity = state["momentum_buffer"] = self.first(slope, group)
        else:
            velocity.mul_(group["momentum"]).add_(slope, alpha=1 - group["dampening"])
        return self.ahead(slope, velocity, group) if group["nesterov"] else velocity

    def first(self, slope: Tensor, group: Group) -> Tensor:
        return slope.clone()

    def ahead(self, slope: Tensor, velocity: Tensor, group: Group) -> Tensor:
        return slope.add(velocity, alpha=group["momentum"])

    def move(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        parameter.add_(direction, alpha=-float(group["lr"]))


@mutant("torch.optim.SGD", law="optimizer_update_matches_the_formula", category=Category.UPSTREAM)
class FullBlocksLeft(StagedSGD):
    """Full SIMD blocks stay as they were, and only the rest after them is updated, as in pytorch/pytorch#191763."""

    def move(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        rest = parameter.numel() // BLOCK * BLOCK
        super().move(parameter, direction.where(places(direction) >= rest, 0), group)


@mutant("torch.optim.SGD", law="first_momentum_buffer_is_the_gradient", category=Category.OPTIMISER)
class FirstStepDampened(StagedSGD):
    """The momentum buffer begins at zero, and so its first gradient is dampened too."""

    def first(self, slope: Tensor, group: Group) -> Tensor:
        return (1 - group["dampening"]) * slope


@mutant("torch.optim.SGD", law="first_momentum_buffer_is_the_gradient", category=Category.COMPUTATION_MODEL)
class FirstBufferIsTheGradient(StagedSGD):
    """The first momentum buffer is the gradient's own tensor, not a copy."""

    def first(self, slope: Tensor, group: Group) -> Tensor:
        return slope


@mutant("torch.optim.SGD", law="optimizer_step_reads_no_uninitialized_memory", category=Category.NUMERICS)
class EmptyTimesZero(StagedSGD):
    """The first momentum buffer is memory that nobody has written, times zero: NaN if it was NaN."""

    def first(self, slope: Tensor, group: Group) -> Tensor:
        return torch.empty_like(slope).mul_(0).add_(slope)


@mutant("torch.optim.SGD", law="late_first_gradient_takes_a_first_step", category=Category.OPTIMISER)
class FirstStepOfTheOptimizer(StagedSGD):
    """A first step is the optimizer's, not the parameter's: whose gradient comes late begins with a buffer of zero."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self.begun = bool(self.state)
        return super().step(closure)

    def first(self, slope: Tensor, group: Group) -> Tensor:
        return (1 - group["dampening"]) * slope if self.begun else slope.clone()


@mutant("torch.optim.SGD", law="late_first_gradient_takes_a_first_step", category=Category.OPTIMISER)
class StateWithoutStep(StagedSGD):
    """A parameter without gradient is not moved, but has a momentum buffer from then on."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        if parameter.grad is None and group["momentum"]:
            self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        return parameter.grad


@mutant("torch.optim.SGD", law="missing_gradient_differs_from_zero_gradient", category=Category.OPTIMISER)
class MissingTakenForZero(StagedSGD):
    """A parameter that is in motion moves on where it has no gradient, as if that were zero."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        missing = parameter.grad is None and parameter in self.state
        return torch.zeros_like(parameter) if missing else parameter.grad


@mutant("torch.optim.SGD", law="missing_gradient_differs_from_zero_gradient", category=Category.OPTIMISER)
class ZeroTakenForMissing(StagedSGD):
    """A parameter whose gradient is zero is left out, though it is in motion or decays."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad if parameter.grad is not None and parameter.grad.any() else None


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.REGULARISATION)
class DecayDecoupled(StagedSGD):
    """Parameters decay by themselves, as in AdamW, and their decay has no momentum."""

    def decayed(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        return slope

    def move(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        parameter.mul_(1 - float(group["lr"]) * group["weight_decay"])
        super().move(parameter, direction, group)


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.REGULARISATION)
class BiasesNotDecayed(StagedSGD):
    """Parameters of one dimension do not decay, which is a custom of recipes and no setting of SGD's."""

    def decayed(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        return super().decayed(parameter, slope, group) if parameter.dim() > 1 else slope


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.REGULARISATION)
class DecayDoubled(StagedSGD):
    """The decay is taken for the factor of the squared weights, without the half before them: it is twice as large."""

    def decayed(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        return slope.add(parameter, alpha=2 * group["weight_decay"])


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.OPTIMISER)
class NesterovIgnored(StagedSGD):
    """`nesterov=True` is taken, and plain momentum used."""

    def ahead(self, slope: Tensor, velocity: Tensor, group: Group) -> Tensor:
        return velocity


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.OPTIMISER)
class NesterovOutOfOrder(StagedSGD):
    """Nesterov's step looks ahead from the momentum buffer instead of from the gradient."""

    def ahead(self, slope: Tensor, velocity: Tensor, group: Group) -> Tensor:
        return velocity.add(slope, alpha=group["momentum"])


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.OPTIMISER)
class BufferShared(StagedSGD):
    """Momentum buffers are found by the shape of their parameter: two of one shape share theirs."""

    def accelerated(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        for other, state in list(self.state.items()):
            if other.shape == parameter.shape:
                self.state[parameter] = state
        return super().accelerated(parameter, slope, group)


@mutant("torch.optim.SGD", law="sgd_steps_match_the_formula", category=Category.NUMERICS)
class BufferInBfloat16(StagedSGD):
    """To save memory, momentum buffers are kept with the precision of bfloat16."""

    def accelerated(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        direction = super().accelerated(parameter, slope, group).clone()
        buffer = self.state[parameter]["momentum_buffer"]
        buffer.copy_(buffer.bfloat16())
        return direction


@mutant("torch.optim.SGD", law="learning_rate_change_takes_effect_at_next_step", category=Category.LEARNING_RATE)
class RateInTheBuffer(StagedSGD):
    """The momentum buffer is of steps instead of gradients, as in Sutskever et al. 2013: it remembers older rates."""

    def accelerated(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        return super().accelerated(parameter, slope * float(group["lr"]), group)

    def move(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        super().move(parameter, direction, group | {"lr": 1.0} if group["momentum"] else group)


@mutant("torch.optim.SGD", law="learning_rate_change_takes_effect_at_next_step", category=Category.LEARNING_RATE)
class RateKept(StagedSGD):
    """The learning rate of the first step is kept for all."""

    def groups(self) -> list[Group]:
        self.rates = getattr(self, "rates", [group["lr"] for group in self.param_groups])
        return [group | {"lr": lr} for group, lr in zip(self.param_groups, self.rates, strict=True)]


@mutant("torch.optim.SGD", law="parameter_groups_use_their_own_settings", category=Category.OPTIMISER)
class SettingsOfTheFirstGroup(StagedSGD):
    """All groups are updated by the settings of the first."""

    def groups(self) -> list[Group]:
        return [self.param_groups[0] | {"params": group["params"]} for group in self.param_groups]


@mutant("torch.optim.SGD", law="maximize_equals_minimize_with_negated_gradients", category=Category.OPTIMISER)
class MaximizeIgnored(StagedSGD):
    """`maximize=True` is taken, and the loss minimised."""

    def slope(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        return self.decayed(parameter, gradient, group)


@mutant("torch.optim.SGD", law="maximize_equals_minimize_with_negated_gradients", category=Category.REGULARISATION)
class DecayMaximized(StagedSGD):
    """`maximize=True` turns the decay around too: weights grow."""

    def slope(self, parameter: nn.Parameter, gradient: Tensor, group: Group) -> Tensor:
        slope = self.decayed(parameter, gradient, group)
        return -slope if group["maximize"] else slope


@mutant("torch.optim.SGD", law="optimizer_step_leaves_gradients_unchanged", category=Category.UPSTREAM)
class DecayInTheGradient(StagedSGD):
    """The decay is added to the gradient itself, as PyTorch did up to 1.4."""

    def decayed(self, parameter: nn.Parameter, slope: Tensor, group: Group) -> Tensor:
        return slope.add_(parameter, alpha=group["weight_decay"])


@mutant("torch.optim.SGD", law="optimizer_step_leaves_gradients_unchanged", category=Category.UPSTREAM)
class MomentumInTheGradient(StagedSGD):
    """Nesterov's momentum is added to the gradient itself, as the foreach form of PyTorch 2.13 does."""

    def ahead(self, slope: Tensor, velocity: Tensor, group: Group) -> Tensor:
        return slope.add_(velocity, alpha=group["momentum"])


@mutant("torch.optim.SGD", law="backward_after_step_raises_or_uses_saved_values", category=Category.UPSTREAM)
class UnseenByAutograd(StagedSGD):
    """Parameters are changed through `.data`, unseen by older graphs, as PyTorch did up to 1.4."""

    def move(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        super().move(parameter.data, direction, group)


@mutant("torch.optim.SGD", law="optimizer_step_is_right_in_any_memory_layout", category=Category.UPSTREAM)
class PairedByPlace(StagedSGD):
    """Gradients are read in the order of their places in memory, as the fused form of PyTorch 2.13 does."""

    def gradient(self, parameter: nn.Parameter, group: Group) -> Tensor | None:
        return parameter.grad if parameter.grad is None else in_memory(parameter.grad).view(parameter.shape)


@mutant("torch.optim.SGD", law="optimizer_step_writes_only_its_parameter", category=Category.UPSTREAM)
class WrittenBeside(StagedSGD):
    """What lies between the elements of a strided parameter is written, as the fused form of PyTorch 2.13 does."""

    def move(self, parameter: Tensor, direction: Tensor, group: Group) -> None:
        before = in_memory(parameter.detach()).clone()
        super().move(parameter, direction, group)
        own = parameter.clone()
        in_memory(parameter).copy_(before.sub_(1))
        parameter.copy_(own)


@mutant("torch.optim.SGD", law="loaded_optimizer_state_continues_bit_for_bit", category=Category.PROCESS)
class BuffersLost(StagedSGD):
    """Loading restores the settings and forgets the momentum."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"state": {}})


@mutant("torch.optim.SGD", law="loaded_optimizer_state_continues_bit_for_bit", category=Category.NUMERICS)
class BuffersRounded(StagedSGD):
    """Momentum buffers are saved in bfloat16."""

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        saved["state"] = {i: {"momentum_buffer": s["momentum_buffer"].bfloat16()} for i, s in saved["state"].items()}
        return saved


@mutant("torch.optim.SGD", law="loaded_optimizer_state_continues_bit_for_bit", category=Category.PROCESS)
class SettingsNotLoaded(StagedSGD):
    """Loading restores the momentum and keeps the settings that the optimizer was made with."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kept = [{name: value for name, value in group.items() if name != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, kept, strict=True):
            group.update(own)


@mutant("torch.optim.SGD", law="loaded_optimizer_state_is_independent", category=Category.COMPUTATION_MODEL)
class OneBufferCopied(StagedSGD):
    """Loading copies the first momentum buffer; the others belong to two optimizers from then on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in list(self.state.values())[:1]:
            state["momentum_buffer"] = state["momentum_buffer"].clone()


@mutant("torch.optim.SGD", law="optimizer_leaves_given_group_dicts_unchanged", category=Category.COMPUTATION_MODEL)
class RateWrittenIntoGroups(StagedSGD):
    """The default learning rate is written into the dictionaries that a caller describes groups by."""

    def __init__(self, params: Any, lr: Any = 1e-3, *args: Any, **options: Any) -> None:
        params = list(params)
        for group in params:
            if isinstance(group, dict):
                group.setdefault("lr", lr)
        super().__init__([dict(group) if isinstance(group, dict) else group for group in params], lr, *args, **options)


@mutant("torch.optim.SGD", law="groups_do_not_share_a_learning_rate_tensor", category=Category.NUMERICS)
class RateTensorInFloat32(StagedSGD):
    """Each group is given its own copy of a learning rate that is a tensor, but in float32."""

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].float().clone()


@mutant("torch.optim.SGD", law="invalid_optimizer_settings_raise", category=Category.TYPE_CHECK)
class NesterovWithoutMomentum(StagedSGD):
    """`nesterov=True` without momentum, or with dampening, is taken and ignored."""

    def __init__(self, params: Any, *args: Any, nesterov: bool = False, **options: Any) -> None:
        possible = options.get("momentum", 0) > 0 and not options.get("dampening", 0)
        super().__init__(params, *args, nesterov=nesterov and possible, **options)


@mutant("torch.optim.SGD", law="invalid_optimizer_settings_raise", category=Category.TYPE_CHECK)
class NegativeDecay(StagedSGD):
    """A negative weight decay is taken for none."""

    def __init__(self, params: Any, *args: Any, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(params, *args, weight_decay=max(weight_decay, 0.0), **options)


@mutant("torch.optim.SGD", law="closure_is_evaluated_once_and_its_loss_returned", category=Category.API)
class ClosureTwice(StagedSGD):
    """The closure is called once for its gradients, and once more for its loss."""

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        super().evaluate(closure)
        return super().evaluate(closure)


@mutant("torch.optim.SGD", law="closure_is_evaluated_once_and_its_loss_returned", category=Category.API)
class LossNotReturned(StagedSGD):
    """A step returns nothing, also where a closure has given it a loss."""

    def evaluate(self, closure: Callable[[], Any]) -> Any:
        super().evaluate(closure)


@mutant("torch.optim.SGD", law="closure_is_evaluated_once_and_its_loss_returned", category=Category.API)
class ClosureAfterTheStep(StagedSGD):
    """The closure is called after the step, which so takes the gradients from before."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        super().step()
        return self.evaluate(closure) if closure else None
