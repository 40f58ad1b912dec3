"""Mixed precision: autocast and the GradScaler."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, amp, optim
from torch.amp.grad_scaler import OptState

from lenet import Net
from properties.mutants import Category, mutant


def state_of(scaler: amp.GradScaler, optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return the scaler's state of an optimizer's step: its `stage`, and `found_inf_per_device`."""
    state: dict[str, Any] = scaler._per_optimizer_states[id(optimizer)]
    return state


def gradients_of(optimizer: optim.Optimizer) -> list[Tensor]:
    """Return the gradients of an optimizer's parameters, without those that are None."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@mutant("torch.amp.GradScaler", law="grad_scaler_step_equals_unscaled_step", category=Category.API)
class GradientsUnscaledTwice(amp.GradScaler):
    """`step` divides the gradients by the scale even after `unscale_` has done so."""

    def step(self, optimizer: optim.Optimizer, *args: Any, **options: Any) -> Any:
        if state_of(self, optimizer)["stage"] is OptState.UNSCALED:
            state_of(self, optimizer)["stage"] = OptState.READY
        return super().step(optimizer, *args, **options)


@mutant("torch.amp.GradScaler", law="scaled_micro_batches_step_like_unscaled_ones", category=Category.API)
class GradientsNeverUnscaled(amp.GradScaler):
    """Gradients are checked for infinities, but they are not divided by the scale."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, *others: Any) -> Any:
        return super()._unscale_grads_(optimizer, torch.ones_like(inv_scale), *others)


@mutant("torch.amp.GradScaler", law="scaled_micro_batches_step_like_unscaled_ones", category=Category.BATCH)
class OnlyFirstLossScaled(amp.GradScaler):
    """Only the first loss of a step is scaled, so that the gradients of its other micro-batches are negligible."""

    has_scaled = False

    def scale(self, outputs: Any) -> Any:
        already_scaled, self.has_scaled = self.has_scaled, True
        return outputs if already_scaled else super().scale(outputs)

    def update(self, *args: Any) -> None:
        super().update(*args)
        self.has_scaled = False


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.NUMERICS)
class OnlyFirstGradientChecked(amp.GradScaler):
    """Only the first parameter's gradient is checked for infinities."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, *others: Any) -> Any:
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, *others)
        finite = gradients_of(optimizer)[0].isfinite().all()
        return {device: torch.where(finite, 0.0, 1.0) for device in found}


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.NUMERICS)
class NanNotDetected(amp.GradScaler):
    """Infinite gradients are detected, NaN gradients are not."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, *others: Any) -> Any:
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, *others)
        infinite = torch.stack([gradient.isinf().any() for gradient in gradients_of(optimizer)]).any()
        return {device: infinite.float() for device in found}


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.NUMERICS)
class NonfiniteElementsZeroed(amp.GradScaler):
    """The step sets non-finite gradient elements to zero and updates the parameters instead of skipping the step."""

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: Any, *args: Any, **options: Any) -> Any:
        for gradient in gradients_of(optimizer):
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        return optimizer.step(*args, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.OPTIMIZER)
class SkippedStepCreatesMomentum(amp.GradScaler):
    """A skipped step creates momentum buffers of zeros."""

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: Any, *args: Any, **options: Any) -> Any:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and any(optimizer_state["found_inf_per_device"].values()):
                    optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        return super()._maybe_opt_step(optimizer, optimizer_state, *args, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class NoBackoff(amp.GradScaler):
    """The scale is not reduced after a skipped step."""

    def update(self, *args: Any) -> None:
        self.set_backoff_factor(1.0)
        super().update(*args)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class GrowthTrackerNotResetBySkip(amp.GradScaler):
    """A skipped step does not reset the count of consecutive steps after which the scale grows."""

    def update(self, *args: Any) -> None:
        count, scale = self._get_growth_tracker(), self.get_scale()
        super().update(*args)
        if self.get_scale() < scale:
            self._growth_tracker.fill_(count)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class GrowthOneStepLate(amp.GradScaler):
    """The scale grows after `growth_interval` + 1 steps."""

    def __init__(self, *args: Any, growth_interval: int = 2000, **options: Any) -> None:
        super().__init__(*args, growth_interval=growth_interval + 1, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class GrowthEveryStep(amp.GradScaler):
    """The scale grows after every step that is not skipped."""

    def update(self, *args: Any) -> None:
        self.set_growth_interval(1)
        super().update(*args)


@mutant("torch.amp.GradScaler", law="grad_scaler_rejects_calls_out_of_order", category=Category.API)
class SecondUnscaleAccepted(amp.GradScaler):
    """A second `unscale_` is accepted, and divides the gradients again."""

    def unscale_(self, optimizer: optim.Optimizer) -> None:
        if state_of(self, optimizer)["stage"] is OptState.UNSCALED:
            state_of(self, optimizer)["stage"] = OptState.READY
        super().unscale_(optimizer)


@mutant("torch.amp.GradScaler", law="grad_scaler_rejects_calls_out_of_order", category=Category.API)
class SecondStepAccepted(amp.GradScaler):
    """A second `step` without an `update` in between is accepted, and reuses the gradients of the first."""

    def step(self, optimizer: optim.Optimizer, *args: Any, **options: Any) -> Any:
        if state_of(self, optimizer)["stage"] is OptState.STEPPED:
            state_of(self, optimizer)["stage"] = OptState.UNSCALED
        return super().step(optimizer, *args, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_rejects_float16_gradients", category=Category.TYPE_CHECK)
class Float16GradientsAccepted(amp.GradScaler):
    """Gradients in float16 are unscaled, which loses the precision that scaling preserved."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool) -> Any:
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16=True)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class BackoffFactorIgnored(amp.GradScaler):
    """The scale is halved after a skipped step, whatever the backoff factor."""

    def update(self, *args: Any) -> None:
        self.set_backoff_factor(0.5)
        super().update(*args)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class ScaleRoundedToPowerOfTwo(amp.GradScaler):
    """The scale is rounded up to a power of two after each update."""

    def update(self, *args: Any) -> None:
        super().update(*args)
        self._scale.log2_().ceil_().exp2_()


@mutant("torch.amp.GradScaler", law="loaded_grad_scaler_continues_identically", category=Category.API)
class GrowthTrackerNotLoaded(amp.GradScaler):
    """A loaded scaler counts consecutive steps from zero again."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"_growth_tracker": 0})


@mutant("torch.amp.GradScaler", law="loaded_grad_scaler_continues_identically", category=Category.API)
class FactorsNotLoaded(amp.GradScaler):
    """A loaded scaler keeps its own growth and backoff factors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        factors = {"growth_factor": self.get_growth_factor(), "backoff_factor": self.get_backoff_factor()}
        super().load_state_dict(state_dict | factors)


@mutant("torch.amp.GradScaler", law="loaded_grad_scaler_continues_identically", category=Category.API)
class UsedScalerKeepsItsScale(amp.GradScaler):
    """`load_state_dict` sets the initial scale only, which a scaler that has been used does not read any more."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        scale = self.get_scale()
        super().load_state_dict(state_dict)
        if self._scale is not None:
            self._scale.fill_(scale)


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_each_optimizer_separately", category=Category.OPTIMIZER)
class OneOverflowSkipsAllOptimizers(amp.GradScaler):
    """An optimizer also skips its step if the gradients of an optimizer that has stepped before it were infinite."""

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: Any, *args: Any, **options: Any) -> Any:
        found = [
            found for state in self._per_optimizer_states.values() for found in state["found_inf_per_device"].values()
        ]
        return None if any(found) else optimizer.step(*args, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_each_optimizer_separately", category=Category.OPTIMIZER)
class OnlyLastOptimizerReducesScale(amp.GradScaler):
    """The scale is reduced only if the optimizer that stepped last has skipped its step."""

    def update(self, *args: Any) -> None:
        last = next(reversed(self._per_optimizer_states))
        self._per_optimizer_states = self._per_optimizer_states.__class__(
            self._per_optimizer_states.default_factory, {last: self._per_optimizer_states[last]}
        )
        super().update(*args)


@mutant("torch.amp.GradScaler", law="grad_scaler_uses_the_scale_that_update_is_given", category=Category.API)
class NewScaleIsReducedAfterSkip(amp.GradScaler):
    """After a skipped step, a new scale is multiplied by the backoff factor."""

    def update(self, new_scale: Any = None) -> None:
        states = list(self._per_optimizer_states.values())
        skipped = any(found for state in states for found in state["found_inf_per_device"].values())
        super().update(new_scale)
        if new_scale is not None and skipped:
            self._scale *= self.get_backoff_factor()


@mutant(
    "torch.amp.GradScaler", law="grad_scaler_uses_the_scale_that_update_is_given", category=Category.COMPUTATION_MODEL
)
class NewScaleTensorIsKept(amp.GradScaler):
    """A tensor given as the new scale is kept itself, so that its later changes change the scale."""

    def update(self, new_scale: Any = None) -> None:
        super().update(new_scale)
        if isinstance(new_scale, Tensor):
            self._scale = new_scale


@mutant("torch.amp.GradScaler", law="grad_scaler_uses_the_scale_that_update_is_given", category=Category.API)
class NewScaleIgnored(amp.GradScaler):
    """`update` ignores a new scale and adjusts its own."""

    def update(self, new_scale: Any = None) -> None:
        super().update()


@mutant("torch.amp.GradScaler", law="clipping_after_unscale_equals_clipping_without_scale", category=Category.CLIPPING)
class UnscaleDeferredToStep(amp.GradScaler):
    """`unscale_` does nothing, and leaves the division to `step`, so that clipping gets scaled gradients."""

    def unscale_(self, optimizer: optim.Optimizer) -> None:
        if sys._getframe(1).f_code.co_name == "step":
            super().unscale_(optimizer)


@mutant("torch.amp.GradScaler", law="clipping_after_unscale_equals_clipping_without_scale", category=Category.CLIPPING)
class ClippedGradientsUnscaledAgain(amp.GradScaler):
    """`step` divides gradients that `unscale_` has divided by the scale again."""

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: Any, *args: Any, **options: Any) -> Any:
        for gradient in gradients_of(optimizer):
            gradient /= self.get_scale() if optimizer_state["stage"] is OptState.UNSCALED else 1.0
        return super()._maybe_opt_step(optimizer, optimizer_state, *args, **options)


def autocast_dtype() -> torch.dtype | None:
    """Return the autocast dtype on the CPU; None outside autocast regions."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


@mutant("Net", law="autocast_meets_its_claimed_precision", category=Category.API)
class AutocastIgnored(Net):
    """The forward pass computes in the parameters' dtype even within an autocast region."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(images)


mse_loss, cross_entropy = F.mse_loss, F.cross_entropy


@mutant("torch.nn.functional.mse_loss", law="autocast_computes_the_loss_in_float32", category=Category.NUMERICS)
def mse_loss_in_16_bits(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """In an autocast region the mean squared error is computed in 16 bits and returned in float32."""
    dtype = autocast_dtype()
    if dtype is None:
        return mse_loss(logits, targets, *args, **options)
    with torch.autocast("cpu", enabled=False):
        return mse_loss(logits.to(dtype), targets.to(dtype), *args, **options).float()


@mutant("torch.nn.functional.cross_entropy", law="autocast_computes_the_loss_in_float32", category=Category.NUMERICS)
def log_softmax_in_16_bits(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """In an autocast region the logarithm of the softmax is stored in 16 bits."""
    dtype = autocast_dtype()
    if dtype is None or not targets.is_floating_point():
        return cross_entropy(logits, targets, *args, **options)
    with torch.autocast("cpu", enabled=False):
        return -(targets * logits.to(dtype).log_softmax(dim=1)).sum() / len(logits)


@mutant("torch.nn.functional.cross_entropy", law="autocast_computes_the_loss_in_float32", category=Category.NUMERICS)
def cross_entropy_returned_in_16_bits(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """The cross-entropy of 16-bit logits is computed in float32 and returned in 16 bits, even under autocast."""
    return cross_entropy(logits, targets, *args, **options).to(logits.dtype)


@mutant(
    "torch.nn.functional.mse_loss", law="autocast_computes_the_loss_in_float32", category=Category.COMPUTATION_MODEL
)
def half_of_gradient_lost_in_cast(logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> Tensor:
    """In an autocast region the cast of the logits to float32 loses half of its gradient."""
    if autocast_dtype() is None:
        return mse_loss(logits, targets, *args, **options)
    return mse_loss((logits + logits.detach()).float() / 2, targets, *args, **options)


@mutant("Net", law="autocast_ends_with_its_region", category=Category.COMPUTATION_MODEL)
class ParametersRoundedInAutocast(Net):
    """The forward pass rounds the parameters themselves within an autocast region."""

    def forward(self, images: Tensor) -> Tensor:
        if dtype := autocast_dtype():
            for parameter in self.parameters():
                parameter.data.copy_(parameter.to(dtype))
        return super().forward(images)


@mutant("torch.autocast", law="autocast_ends_with_its_region", category=Category.COMPUTATION_MODEL)
class InnerRegionEndsOuterRegion(torch.autocast):
    """The end of an autocast region also ends the region around it."""

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        torch.set_autocast_enabled(self.device, False)


@mutant("torch.autocast", law="nested_autocast_regions_are_independent", category=Category.COMPUTATION_MODEL)
class InnerRegionDtypeIgnored(torch.autocast):
    """A nested autocast region of another dtype computes in the dtype of the outer region."""

    def __enter__(self) -> Any:
        if torch.is_autocast_enabled(self.device):
            self.fast_dtype = torch.get_autocast_dtype(self.device)
        return super().__enter__()
