"""Mixed precision: autocast and the GradScaler."""

from __future__ import annotations

from typing import Any

import torch
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


def autocast_dtype() -> torch.dtype | None:
    """Return the autocast dtype on the CPU; None outside autocast regions."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


@mutant("Net", law="autocast_meets_its_claimed_precision", category=Category.API)
class AutocastIgnored(Net):
    """The forward pass computes in the parameters' dtype even within an autocast region."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(images)


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
