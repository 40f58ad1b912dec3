"""Learning-rate schedules, gradient clipping and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from properties.mutants import Category, mutant
from properties.mutants.update import with_gradients

STEP, LAMBDA, COSINE = (f"{name}_follows_its_formula" for name in ("step_lr", "lambda_lr", "cosine_annealing"))
CYCLE, RESUMED = "one_cycle_reaches_its_documented_rates", "resumed_schedule_continues_exactly"
SCHEDULE = "torch.optim.lr_scheduler"


@mutant(f"{SCHEDULE}.StepLR", law=STEP, category=Category.LEARNING_RATE)
class DecayOneStepLate(StepLR):
    """The learning rate decays one step late: the step count is compared before it is increased."""

    def get_lr(self) -> list[Any]:
        self.last_epoch -= 1
        try:
            return super().get_lr()
        finally:
            self.last_epoch += 1


@mutant(f"{SCHEDULE}.StepLR", law=STEP, category=Category.LEARNING_RATE)
class FirstGroupDecaysOnly(StepLR):
    """Only the first parameter group decays."""

    def get_lr(self) -> list[Any]:
        return [*super().get_lr()[:1], *(group["lr"] for group in self.optimizer.param_groups[1:])]


@mutant(f"{SCHEDULE}.LambdaLR", law=LAMBDA, category=Category.LEARNING_RATE)
class FactorsMultiplied(LambdaLR):
    """The factor multiplies the present learning rate, not the initial one, as in `MultiplicativeLR`."""

    def get_lr(self) -> list[Any]:
        pairs = zip(self.optimizer.param_groups, self.lr_lambdas, strict=True)
        return [group["lr"] * factor(self.last_epoch) for group, factor in pairs]


@mutant(f"{SCHEDULE}.LambdaLR", law=LAMBDA, category=Category.LEARNING_RATE)
class FirstFunctionUsedForAll(LambdaLR):
    """The function of the first group is used for all groups."""

    def get_lr(self) -> list[Any]:
        return [lr * self.lr_lambdas[0](self.last_epoch) for lr in self.base_lrs]


@mutant(f"{SCHEDULE}.CosineAnnealingLR", law=COSINE, category=Category.LEARNING_RATE)
class CosineOfHalfAPeriod(CosineAnnealingLR):
    """T_max is taken for the whole period of the cosine, so that the rate rises again from T_max / 2 on."""

    def __init__(self, optimizer: optim.Optimizer, period: int, *args: Any, **options: Any) -> None:
        super().__init__(optimizer, period / 2, *args, **options)  # type: ignore[arg-type]


@mutant(f"{SCHEDULE}.CosineAnnealingLR", law=COSINE, category=Category.LEARNING_RATE)
class MinimumIgnored(CosineAnnealingLR):
    """`eta_min` is accepted, but the rate falls to 0."""

    def __init__(self, optimizer: optim.Optimizer, period: int, minimum: float = 0.0) -> None:
        super().__init__(optimizer, period, 0.0)


@mutant(f"{SCHEDULE}.CosineAnnealingLR", law=COSINE, category=Category.LEARNING_RATE)
class RestartAfterPeriod(CosineAnnealingLR):
    """After T_max steps the rate starts again at its initial value, as in `CosineAnnealingWarmRestarts`."""

    def get_lr(self) -> list[Any]:
        angle = math.pi * (self.last_epoch % (self.T_max + 1)) / self.T_max
        return [self.eta_min + (lr - self.eta_min) * (1 + math.cos(angle)) / 2 for lr in self.base_lrs]


@mutant(f"{SCHEDULE}.OneCycleLR", law=CYCLE, category=Category.LEARNING_RATE)
class PeakOneStepEarly(OneCycleLR):
    """The rate rises for one step less than `pct_start` says."""

    def __init__(self, optimizer: optim.Optimizer, *args: Any, total_steps: int, **options: Any) -> None:
        options["pct_start"] = options.get("pct_start", 0.3) - 1 / total_steps
        super().__init__(optimizer, *args, total_steps=total_steps, **options)


@mutant(f"{SCHEDULE}.OneCycleLR", law=CYCLE, category=Category.LEARNING_RATE)
class FinalRateFromPeak(OneCycleLR):
    """The last rate is the highest, not the first, divided by `final_div_factor`."""

    def __init__(self, optimizer: optim.Optimizer, *args: Any, **options: Any) -> None:
        options["final_div_factor"] = options.get("final_div_factor", 1e4) / options.get("div_factor", 25.0)
        super().__init__(optimizer, *args, **options)


@mutant(f"{SCHEDULE}.OneCycleLR", law=CYCLE, category=Category.OPTIMIZER)
class MomentumNotCycled(OneCycleLR):
    """The momentum keeps the value that it has at the start."""

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            group["momentum"] = group["max_momentum"]


@mutant(f"{SCHEDULE}.StepLR", law=RESUMED, category=Category.PROCESS)
class StepCountNotLoaded(StepLR):
    """The number of steps taken is not loaded, so that a resumed schedule begins again."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "last_epoch"})


@mutant(f"{SCHEDULE}.StepLR", law=RESUMED, category=Category.PROCESS)
class StepTakenOnLoad(StepLR):
    """Loading a state takes one step more, as the scheduler's constructor does."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.last_epoch += 1


NORM, VALUE = "clip_grad_norm_scales_by_the_total_norm", "clip_grad_value_clips_each_element"
NONFINITE = "nonfinite_total_norm_is_returned_or_raises"
clip_grad_norm_, clip_grad_value_ = nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_


@mutant("torch.nn.utils.clip_grad_norm_", law=NORM, category=Category.CLIPPING)
def gradients_clipped_one_by_one(
    parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0, **options: Any
) -> Tensor:
    """Each gradient is clipped by its own norm, which changes the direction; the total norm is returned."""
    parameters = list(parameters)
    total = nn.utils.get_total_norm([gradient for _, gradient in with_gradients(parameters)], norm_type)
    for parameter in parameters:
        clip_grad_norm_(parameter, max_norm, norm_type, **options)
    return total


@mutant("torch.nn.utils.clip_grad_norm_", law=NORM, category=Category.CLIPPING)
def norm_after_clipping_returned(parameters: Iterable[nn.Parameter], *args: Any, **options: Any) -> Tensor:
    """The norm after clipping is returned, not the one before."""
    parameters = list(parameters)
    clip_grad_norm_(parameters, *args, **options)
    return clip_grad_norm_(parameters, math.inf, *args[1:], **options)


@mutant("torch.nn.utils.clip_grad_norm_", law=NORM, category=Category.CLIPPING)
@torch.no_grad()
def gradients_scaled_up(
    parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0, **options: Any
) -> Tensor:
    """Gradients with a norm below the limit are scaled up to it."""
    gradients = [gradient for _, gradient in with_gradients(parameters)]
    total = nn.utils.get_total_norm(gradients, norm_type)
    for gradient in gradients:
        gradient.mul_(max_norm / (total + 1e-6))
    return total


@mutant("torch.nn.utils.clip_grad_norm_", law=NORM, category=Category.CLIPPING)
def order_of_norm_ignored(
    parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2.0, **options: Any
) -> Tensor:
    """`norm_type` is accepted, but the norm of order 2 is used."""
    return clip_grad_norm_(parameters, max_norm, 2.0, **options)


@mutant("torch.nn.utils.clip_grad_norm_", law=NONFINITE, category=Category.CLIPPING)
def only_nan_raises(
    parameters: Iterable[nn.Parameter], *args: Any, error_if_nonfinite: bool = False, **options: Any
) -> Tensor:
    """With `error_if_nonfinite`, NaN raises an error, but an infinite norm does not."""
    total = clip_grad_norm_(parameters, *args, **options)
    if error_if_nonfinite and total.isnan():
        raise RuntimeError("the total norm is NaN")
    return total


@mutant("torch.nn.utils.clip_grad_norm_", law=NONFINITE, category=Category.NUMERICS)
def nonfinite_elements_not_counted(parameters: Iterable[nn.Parameter], *args: Any, **options: Any) -> Tensor:
    """Elements that are not finite are set to 0 before the norm is computed."""
    parameters = list(parameters)
    for _, gradient in with_gradients(parameters):
        gradient.nan_to_num_(0.0, 0.0, 0.0)
    return clip_grad_norm_(parameters, *args, **options)


@mutant("torch.nn.utils.clip_grad_value_", law=VALUE, category=Category.CLIPPING)
@torch.no_grad()
def upper_limit_only(parameters: Iterable[nn.Parameter], clip_value: float, foreach: bool | None = None) -> None:
    """Only elements above the limit are clipped, not those below minus the limit."""
    for _, gradient in with_gradients(parameters):
        gradient.clamp_(max=clip_value)


@mutant("torch.nn.utils.clip_grad_value_", law=VALUE, category=Category.CLIPPING)
@torch.no_grad()
def gradient_scaled_to_limit(
    parameters: Iterable[nn.Parameter], clip_value: float, foreach: bool | None = None
) -> None:
    """A gradient with an element beyond the limit is scaled as a whole."""
    for _, gradient in with_gradients(parameters):
        gradient.mul_((clip_value / gradient.abs().max()).clamp(max=1.0))


@mutant("torch.nn.utils.clip_grad_norm_", law="clipping_without_gradients_does_nothing", category=Category.CLIPPING)
def missing_gradients_created(parameters: Iterable[nn.Parameter], *args: Any, **options: Any) -> Tensor:
    """A parameter without a gradient gets a gradient of zeros."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return clip_grad_norm_(parameters, *args, **options)


AVERAGE = "averaged_model_follows_its_formula"
MODEL = "torch.optim.swa_utils.AveragedModel"


@mutant("torch.optim.swa_utils.get_ema_multi_avg_fn", law=AVERAGE, category=Category.PROCESS)
def weights_of_average_swapped(decay: float = 0.999) -> Callable[..., None]:
    """The average is weighted by `1 - decay`, and the new parameters by `decay`."""
    return get_ema_multi_avg_fn(1 - decay)


@mutant(
    "torch.optim.swa_utils.get_ema_avg_fn", law="exponential_average_of_integers_is_exact", category=Category.PROCESS
)
def decay_warmed_up(decay: float = 0.999) -> Callable[..., Tensor]:
    """The decay is at most `(1 + n) / (10 + n)` after n updates, as in TensorFlow with `num_updates`."""
    return lambda average, new, n: get_ema_avg_fn(min(decay, float((1 + n) / (10 + n))))(average, new, n)


@mutant(
    "torch.optim.swa_utils.get_ema_multi_avg_fn",
    law="exponential_average_of_integers_is_exact",
    category=Category.NUMERICS,
)
def last_incomplete_block_not_averaged(decay: float = 0.999) -> Callable[..., None]:
    """Only full blocks of eight elements of a parameter are averaged."""

    def average(averages: list[Tensor], parameters: list[Tensor], _: Any) -> None:
        for own, new in zip(averages, parameters, strict=True):
            full = own.numel() // 8 * 8
            own.view(-1)[:full].lerp_(new.view(-1)[:full], 1 - decay)

    return average


@mutant(MODEL, law=AVERAGE, category=Category.COMPUTATION_MODEL)
class AverageSharesParameters(AveragedModel):
    """The averaged model is the network itself, not a copy."""

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.module = model


@mutant(MODEL, law=AVERAGE, category=Category.PROCESS)
class FirstUpdateAverages(AveragedModel):
    """The first update averages with the parameters from before training, instead of copying."""

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        self.n_averaged += 1


@mutant(MODEL, law="saved_average_continues_bit_for_bit", category=Category.PROCESS)
class UpdateCountNotSaved(AveragedModel):
    """The count of updates is not loaded, so that the next update copies the parameters."""

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        return super().load_state_dict({**state_dict, "n_averaged": torch.tensor(0)}, *args, **options)


@mutant(MODEL, law="averaged_model_computes_with_its_averages", category=Category.COMPUTATION_MODEL)
class ForwardOfTrainedNetwork(AveragedModel):
    """The forward pass is that of the network that is trained."""

    def update_parameters(self, model: nn.Module) -> None:
        super().update_parameters(model)
        self.trained = [model]  # in a list, so that it is not a submodule

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.trained[0](*args, **options)
