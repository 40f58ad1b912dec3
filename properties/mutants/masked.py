"""
A second fault behind a known issue of PyTorch: in the same examples, but with another symptom.

Each is judged by a law that a known issue makes fail, in a dtype in which the issue occurs. The law forgives the
symptoms of the issue (`properties/symptoms.py`), and must still reject what is beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, amp, nn, optim

from properties.mutants import Category, mutant
from properties.mutants.staged import StagedNet, with_altered_gradient

SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def parameters_of(optimizer: optim.Optimizer) -> list[Tensor]:
    """Return the optimizer's parameters that have a gradient."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter for parameter in parameters if parameter.grad is not None]


def is_fused(optimizer: optim.Optimizer) -> bool:
    """Whether the optimizer is of the fused form."""
    return bool(optimizer.param_groups[0]["fused"])


@mutant("torch.optim.SGD", "optimizer_update_matches_the_formula", Category.UPSTREAM, dtype="bfloat16")
class FusedStepHalvesFullBlocks(optim.SGD):
    """The fused step halves the 16-bit parameters in full SIMD blocks, where the known issue leaves them unchanged."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if is_fused(self):
            for parameter in parameters_of(self):
                parameter.detach().view(-1)[: parameter.numel() // 16 * 16].mul_(0.5)
        return result


@mutant("torch.optim.SGD", "sgd_steps_match_the_formula", Category.UPSTREAM, dtype="bfloat16")
class FusedStepSkipsTheRemainderToo(optim.SGD):
    """The fused step also leaves the elements after the last full SIMD block unchanged."""

    def step(self, closure: Any = None) -> Any:
        before = [parameter.detach().clone() for parameter in parameters_of(self)]
        result = super().step(closure)
        if is_fused(self):
            for parameter, old in zip(parameters_of(self), before, strict=True):
                parameter.detach().copy_(old)
        return result


@mutant("torch.optim.SGD", "optimizer_step_is_correct_in_any_memory_layout", Category.UPSTREAM)
class FusedStepOverflowsAcrossLayouts(optim.SGD):
    """The fused step makes a parameter infinite if its gradient has another layout, instead of pairing it wrongly."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if is_fused(self):
            for parameter in parameters_of(self):
                if parameter.stride() != parameter.grad.stride():
                    parameter.detach().fill_(float("inf"))
        return result


@mutant("torch.optim.SGD", "backward_after_step_raises_or_uses_saved_values", Category.UPSTREAM)
class FusedStepMakesOlderGraphsInfinite(optim.SGD):
    """After a fused step, older graphs compute infinite gradients, neither with the old nor with the new parameters."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if is_fused(self):
            for parameter in parameters_of(self):
                parameter.data.fill_(float("inf"))  # unnoticed by autograd
        return result


@mutant("torch.optim.SGD", "late_first_gradient_is_treated_as_first_step", Category.UPSTREAM)
class FusedMomentumSkipsLateParameters(optim.SGD):
    """With momentum, a fused step leaves parameters unchanged at their late first gradient, instead of raising."""

    def step(self, closure: Any = None) -> Any:
        late = [p for p in parameters_of(self) if not self.state[p]] if any(self.state.values()) else []
        gradients = [parameter.grad for parameter in late]
        if not is_fused(self) or not late:
            return super().step(closure)
        for parameter in late:
            parameter.grad = None
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        result = super().step(closure)
        for parameter, gradient in zip(late, gradients, strict=True):
            parameter.grad = gradient
        return result


@mutant("torch.optim.SGD", "optimizer_step_leaves_gradients_unchanged", Category.UPSTREAM)
class ForeachNesterovZeroesGradients(optim.SGD):
    """The foreach step with Nesterov momentum sets the gradients to zero, besides adding the momentum to them."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if self.param_groups[0]["foreach"] and self.param_groups[0]["nesterov"]:
            for parameter in parameters_of(self):
                parameter.grad.zero_()
        return result


@mutant("torch.optim.SGD", "loaded_optimizer_state_is_independent", Category.UPSTREAM)
class StepMakesLoadedBuffersInfinite(optim.SGD):
    """A step makes momentum buffers infinite that were loaded from a state, where the known issue shares them."""

    def state_dict(self) -> Any:
        self.was_saved = True
        return super().state_dict()

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        if getattr(self, "was_saved", False):
            for state in self.state.values():
                state["momentum_buffer"].fill_(float("inf"))
        return result


@mutant("torch.optim.SGD", "optimizer_leaves_given_group_dicts_unchanged", Category.API)
class OptimizerFromUsedGroupsDoublesItsRate(optim.SGD):
    """An optimizer made from group dictionaries that another has used doubles the learning rate given to it."""

    def __init__(self, params: Any, lr: float = 1e-3, **options: Any) -> None:
        groups = list(params)
        used = isinstance(groups[0], dict) and "lr" in groups[0]
        super().__init__(groups, lr=lr, **options)
        if used:
            self.param_groups[0].update(options, lr=2 * lr)


@mutant("torch.optim.SGD", "groups_do_not_share_a_learning_rate_tensor", Category.LEARNING_RATE)
class LearningRateOfOtherGroupsIsNan(optim.SGD):
    """A tensor given as learning rate becomes NaN in all groups but the first, instead of being shared."""

    def __init__(self, params: Any, lr: Any = 1e-3, **options: Any) -> None:
        super().__init__(params, lr=lr, **options)
        if isinstance(lr, Tensor):
            for group in self.param_groups[1:]:
                group["lr"] = torch.full_like(lr, float("nan"))


@mutant("torch.optim.SGD", "grad_scaler_skips_step_with_nonfinite_gradients", Category.UPSTREAM)
class SkippedFusedStepHalvesParameters(optim.SGD):
    """A fused step that a GradScaler skips halves the parameters, besides keeping an uninitialized buffer."""

    def step(self, closure: Any = None) -> Any:
        skipped = getattr(self, "found_inf", None) is not None and float(self.found_inf) > 0
        result = super().step(closure)
        if is_fused(self) and skipped:
            for parameter in parameters_of(self):
                parameter.detach().mul_(0.5)
        return result


@mutant("torch.amp.GradScaler", "grad_scaler_grows_and_backs_off_as_documented", Category.API)
class ScaleGrowsAfterIntervalChange(amp.GradScaler):
    """After its growth interval is changed, a GradScaler doubles its scale at every step, instead of never again."""

    def set_growth_interval(self, new_interval: int) -> None:
        super().set_growth_interval(new_interval)
        self.was_changed = True

    def update(self, new_scale: Any = None) -> None:
        super().update(new_scale)
        if getattr(self, "was_changed", False):
            self._scale.mul_(2)


@mutant("Net", "nested_autocast_regions_are_independent", Category.API)
class NestedAutocastGivesZeros(StagedNet):
    """In a float16 autocast region within a bfloat16 one, the logits are zero, where the known issue is an error."""

    def forward(self, images: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(images)
        region = torch.get_autocast_dtype("cpu")
        nested, self.outer = getattr(self, "outer", region) is torch.bfloat16 and region is torch.float16, region
        with torch.autocast("cpu", enabled=False):
            logits = super().forward(images).to(region)
        return torch.zeros_like(logits) if nested else logits


@mutant("Net", "large_batch_counts_are_exact", Category.NUMERICS, dtype="float16")
class GradientDoubledForLargeBatches(StagedNet):
    """conv2's weight gradient is doubled from 1,000 images on, where the known issue makes it too small."""

    def relu2(self, maps: Tensor) -> Tensor:
        factor = 2.0 if len(maps) >= 1000 else 1.0
        return super().relu2(with_altered_gradient(maps, lambda gradient: gradient * factor))


@mutant("Net", "nan_spreads_exactly_over_its_receptive_field", Category.UPSTREAM, dtype="bfloat16")
class NanSpreadsOverRowsToo(StagedNet):
    """In bfloat16, conv1 also spreads NaN one row beyond its receptive field, besides one column."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.register_forward_hook(lambda module, inputs, maps: with_nan_below(maps))


def with_nan_below(maps: Tensor) -> Tensor:
    """Return the maps with NaN also below every NaN."""
    below = F.pad(maps.isnan()[:, :, :-1], (0, 0, 1, 0))
    return maps.masked_fill(below, float("nan"))


@mutant("Net", "nonfinite_pixel_does_not_affect_other_images", Category.UPSTREAM, dtype="bfloat16")
class RowBeforeNanIsShifted(StagedNet):
    """The logits of the image before one with NaN are changed, but finite, where the known issue makes them NaN."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        has_nan = images.flatten(1).isnan().any(dim=1)
        return logits + has_nan.roll(-1)[:, None].to(logits.dtype)


@mutant("Net", "subnormal_numbers_are_preserved", Category.NUMERICS, dtype="bfloat16")
class SubnormalLogitsAreInfinite(StagedNet):
    """Images of subnormal numbers give infinite logits, where the known issue makes them zero."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        is_tiny = (images.abs() < torch.finfo(images.dtype).smallest_normal).all()
        return logits.masked_fill(is_tiny & (images != 0).any(), float("inf"))


@mutant("Net", "nan_spreads_exactly_over_its_receptive_field", Category.UPSTREAM)
class NanSpreadsToTheNextImage(StagedNet):
    """From 16 images on, NaN in the maps of an image also appears in those of the next image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1.register_forward_hook(lambda module, inputs, maps: with_nan_in_next_image(maps))


def with_nan_in_next_image(maps: Tensor) -> Tensor:
    """Return the maps with NaN also one image later, if there are at least 16 images."""
    return maps.masked_fill(maps.isnan().roll(1, 0), float("nan")) if len(maps) >= 16 else maps


cross_entropy = F.cross_entropy


@mutant(
    "torch.nn.functional.cross_entropy",
    "mean_loss_of_repeated_rows_equals_loss_of_one_row",
    Category.LOSS,
    "float16",
    unseen=dict.fromkeys(("float32", "float64", "bfloat16"), "the sum of the losses does not overflow"),
)
def overflowing_cross_entropy_is_zero(inputs: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The loss is zero where the sum of the losses overflows, instead of infinite as by the known issue."""
    loss = cross_entropy(inputs, target, **options)
    return torch.where(loss.isinf(), torch.zeros_like(loss), loss)


clip_grad_norm_, clip_grad_value_ = nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_


@mutant("torch.nn.utils.clip_grad_value_", "clipping_without_gradients_does_nothing", Category.CLIPPING)
def missing_gradients_become_zeros(parameters: Iterable[nn.Parameter], *args: Any, **options: Any) -> None:
    """If no parameter has a gradient, each is given one of zeros, where the known issue raises an error."""
    parameters = list(parameters)
    if all(parameter.grad is None for parameter in parameters):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    clip_grad_value_(parameters, *args, **options)


@mutant("torch.nn.utils.clip_grad_norm_", "clip_grad_norm_scales_by_the_total_norm", Category.CLIPPING)
def norm_with_an_empty_gradient_is_zero(
    parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0, **options: Any
) -> Tensor:
    """The norm of infinite order is zero if one gradient is empty, where the known issue raises an error."""
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if norm_type == float("inf") and any(gradient.numel() == 0 for gradient in gradients):
        return torch.zeros((), dtype=gradients[0].dtype)
    return clip_grad_norm_(parameters, max_norm, norm_type, **options)
