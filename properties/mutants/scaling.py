"""Training in 16 bits: autocast and the GradScaler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, amp, optim
from torch.amp.grad_scaler import OptState

from lenet import Net
from properties.mutants import Category, mutant


def state_of(scaler: amp.GradScaler, optimizer: optim.Optimizer) -> dict[str, Any]:
    """What a scaler knows of an optimizer's step: its `stage`, and whether infinities were found."""
    state: dict[str, Any] = scaler._per_optimizer_states[id(optimizer)]
    return state


def gradients_of(optimizer: optim.Optimizer) -> list[Tensor]:
    """The gradients that an optimizer is to step by."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@mutant("torch.amp.GradScaler", law="grad_scaler_step_equals_unscaled_step", category=Category.API)
class UnscaledTwice(amp.GradScaler):
    """The step divides by the scale also where `unscale_` has done so."""

    def step(self, optimizer: optim.Optimizer, *args: Any, **options: Any) -> Any:
        if state_of(self, optimizer)["stage"] is OptState.UNSCALED:
            state_of(self, optimizer)["stage"] = OptState.READY
        return super().step(optimizer, *args, **options)


@mutant("torch.amp.GradScaler", law="scaled_micro_batches_step_like_unscaled_ones", category=Category.API)
class NeverUnscaled(amp.GradScaler):
    """Gradients are looked at for infinities, and stay scaled."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, *others: Any) -> Any:
        return super()._unscale_grads_(optimizer, torch.ones_like(inv_scale), *others)


@mutant("torch.amp.GradScaler", law="scaled_micro_batches_step_like_unscaled_ones", category=Category.BATCH)
class OnlyTheFirstLossScaled(amp.GradScaler):
    """Of the losses of one step only the first is scaled; those of its further micro-batches vanish beside it."""

    scaled = False

    def scale(self, outputs: Any) -> Any:
        scaled, self.scaled = self.scaled, True
        return outputs if scaled else super().scale(outputs)

    def update(self, *args: Any) -> None:
        super().update(*args)
        self.scaled = False


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.NUMERICS)
class FirstGradientAloneLookedAt(amp.GradScaler):
    """Only the first parameter's gradient is looked at for infinities."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, *others: Any) -> Any:
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, *others)
        finite = gradients_of(optimizer)[0].isfinite().all()
        return {device: torch.where(finite, 0.0, 1.0) for device in found}


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.NUMERICS)
class NanNotSeen(amp.GradScaler):
    """Infinite gradients are noticed, NaN is not."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, *others: Any) -> Any:
        found = super()._unscale_grads_(optimizer, inv_scale, found_inf, *others)
        infinite = torch.stack([gradient.isinf().any() for gradient in gradients_of(optimizer)]).any()
        return {device: infinite.float() for device in found}


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.NUMERICS)
class SkippedInPart(amp.GradScaler):
    """Where a gradient is infinite, only that element is left out, and the step taken."""

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: Any, *args: Any, **options: Any) -> Any:
        for gradient in gradients_of(optimizer):
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        return optimizer.step(*args, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_skips_step_with_nonfinite_gradients", category=Category.OPTIMISER)
class StateOfASkippedStep(amp.GradScaler):
    """A skipped step begins a momentum of zero."""

    def _maybe_opt_step(self, optimizer: Any, optimizer_state: Any, *args: Any, **options: Any) -> Any:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if group["momentum"] and any(optimizer_state["found_inf_per_device"].values()):
                    optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        return super()._maybe_opt_step(optimizer, optimizer_state, *args, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class NoBackoff(amp.GradScaler):
    """The scale stays as it is after a skipped step."""

    def update(self, *args: Any) -> None:
        self.set_backoff_factor(1.0)
        super().update(*args)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class CountKeptByASkip(amp.GradScaler):
    """A skipped step does not end the row of those that were taken."""

    def update(self, *args: Any) -> None:
        taken, scale = self._get_growth_tracker(), self.get_scale()
        super().update(*args)
        if self.get_scale() < scale:
            self._growth_tracker.fill_(taken)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class GrowthOneStepLate(amp.GradScaler):
    """The scale grows after one step more than `growth_interval`."""

    def __init__(self, *args: Any, growth_interval: int = 2000, **options: Any) -> None:
        super().__init__(*args, growth_interval=growth_interval + 1, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_grows_and_backs_off_as_documented", category=Category.NUMERICS)
class GrowthEveryStep(amp.GradScaler):
    """The scale grows after each step that is taken."""

    def update(self, *args: Any) -> None:
        self.set_growth_interval(1)
        super().update(*args)


@mutant("torch.amp.GradScaler", law="grad_scaler_rejects_calls_out_of_order", category=Category.API)
class UnscalingTwiceTaken(amp.GradScaler):
    """A second `unscale_` is taken, and divides once more."""

    def unscale_(self, optimizer: optim.Optimizer) -> None:
        if state_of(self, optimizer)["stage"] is OptState.UNSCALED:
            state_of(self, optimizer)["stage"] = OptState.READY
        super().unscale_(optimizer)


@mutant("torch.amp.GradScaler", law="grad_scaler_rejects_calls_out_of_order", category=Category.API)
class SteppingTwiceTaken(amp.GradScaler):
    """A second step without an update between is taken, by the gradients of the first."""

    def step(self, optimizer: optim.Optimizer, *args: Any, **options: Any) -> Any:
        if state_of(self, optimizer)["stage"] is OptState.STEPPED:
            state_of(self, optimizer)["stage"] = OptState.UNSCALED
        return super().step(optimizer, *args, **options)


@mutant("torch.amp.GradScaler", law="grad_scaler_rejects_float16_gradients", category=Category.TYPE_CHECK)
class Float16Taken(amp.GradScaler):
    """Gradients in float16 are unscaled, and lose what the scale has saved."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool) -> Any:
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, allow_fp16=True)


def lower_precision() -> torch.dtype | None:
    """What autocast lowers to; None outside of its regions."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


@mutant("Net", law="autocast_meets_its_claimed_precision", category=Category.API)
class AutocastIgnored(Net):
    """The forward pass computes in the parameters' dtype inside of an autocast region too."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(images)


@mutant("Net", law="autocast_ends_with_its_region", category=Category.COMPUTATION_MODEL)
class ParametersLowered(Net):
    """In an autocast region the parameters themselves are rounded."""

    def forward(self, images: Tensor) -> Tensor:
        if lower := lower_precision():
            for parameter in self.parameters():
                parameter.data.copy_(parameter.to(lower))
        return super().forward(images)


@mutant("torch.autocast", law="autocast_ends_with_its_region", category=Category.COMPUTATION_MODEL)
class OuterRegionEnded(torch.autocast):
    """The end of an autocast region is the end of the one around it, too."""

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        torch.set_autocast_enabled(self.device, False)


@mutant("torch.autocast", law="nested_autocast_regions_are_independent", category=Category.COMPUTATION_MODEL)
class OuterRegionRules(torch.autocast):
    """A region of another dtype within a region computes in the dtype of the outer one."""

    def __enter__(self) -> Any:
        if torch.is_autocast_enabled(self.device):
            self.fast_dtype = torch.get_autocast_dtype(self.device)
        return super().__enter__()
