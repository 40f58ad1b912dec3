"""The manual update, parameter = parameter - learning rate * gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from properties.mutants import Category, mutant

SIMD_WIDTH = 8
"""Elements that one SIMD instruction processes."""


def with_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Return the parameters that have a gradient, each with its gradient."""
    return ((parameter, parameter.grad) for parameter in parameters if parameter.grad is not None)


def as_if_contiguous(tensor: Tensor) -> Tensor:
    """Return the memory that a contiguous tensor of n elements would occupy, from the first element: a view (n,)."""
    return tensor.as_strided((tensor.numel(),), (1,))


def flat_indices(tensor: Tensor) -> Tensor:
    """Return the row-major index of each element, in the tensor's shape."""
    return torch.arange(tensor.numel()).view(tensor.shape)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.OPTIMIZER)
@torch.no_grad()
def gradient_ascent(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update adds the scaled gradient instead of subtracting it."""
    for parameter, gradient in with_gradients(parameters):
        parameter.add_(lr * gradient)


@mutant("sgd_update", law="training_step_agrees_with_the_oracle", category=Category.LEARNING_RATE)
@torch.no_grad()
def learning_rate_squared(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The gradient is multiplied by the learning rate twice."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient, alpha=lr)


@mutant("sgd_update", law="integer_updates_are_exact", category=Category.LEARNING_RATE)
@torch.no_grad()
def learning_rate_doubled(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The step is twice as large, as if the derivative of the squared error were applied again in the update."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(2 * lr * gradient)


@mutant(
    "sgd_update",
    law="manual_update_matches_the_formula",
    category=Category.NUMERICS,
    unseen={"bfloat16": "nothing is rounded"},
)
@torch.no_grad()
def gradients_rounded_to_bfloat16(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Gradients are rounded to bfloat16 before the update."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient.bfloat16().to(gradient.dtype))


@mutant(
    "sgd_update",
    law="every_training_update_matches_the_formula",
    category=Category.NUMERICS,
)
@torch.no_grad()
def learning_rate_in_float16(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is stored as a float16 tensor, which rounds 0.1 to 0.09998."""
    rate = torch.tensor(lr, dtype=torch.float16).item()
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(rate * gradient)


@mutant(
    "sgd_update",
    law="manual_update_matches_the_formula",
    category=Category.NUMERICS,
    dtype="float64",
)
@torch.no_grad()
def learning_rate_in_float32(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is a tensor of the default dtype, float32, even if the parameters are float64."""
    rate = torch.tensor(lr).item()
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(rate * gradient)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.REGULARIZATION)
@torch.no_grad()
def unrequested_weight_decay(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update adds a weight decay of 5e-4, as many recipes do, although none was requested."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * (gradient + 5e-4 * parameter))


@mutant("sgd_update", law="manual_and_optimizer_training_agree_at_powers_of_two", category=Category.OPTIMIZER)
@torch.no_grad()
def unrequested_momentum(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """From a parameter's second step on, the update adds a momentum of 0.5 that was not requested."""
    for parameter, gradient in with_gradients(parameters):
        parameter.velocity = gradient + 0.5 * getattr(parameter, "velocity", torch.zeros_like(gradient))
        parameter.sub_(lr * parameter.velocity)


@mutant("sgd_update", law="update_leaves_gradients_unchanged", category=Category.API)
@torch.no_grad()
def gradients_cleared_by_update(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update sets each gradient to None after using it."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient)
        parameter.grad = None


@mutant("sgd_update", law="update_leaves_gradients_unchanged", category=Category.COMPUTATION_MODEL)
@torch.no_grad()
def gradients_scaled_in_place(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The gradients are multiplied by the learning rate in place."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(gradient.mul_(lr))


@mutant("sgd_update", law="update_leaves_gradients_unchanged", category=Category.COMPUTATION_MODEL)
@torch.no_grad()
def parameter_memory_replaced(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update gives each parameter new memory, so that existing views keep the old values."""
    for parameter, gradient in with_gradients(parameters):
        parameter.data = parameter - lr * gradient


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.UPSTREAM)
@torch.no_grad()
def full_simd_blocks_skipped(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Only the remainder after the last full SIMD block is updated, as in pytorch/pytorch#191763."""
    for parameter, gradient in with_gradients(parameters):
        full = parameter.numel() // SIMD_WIDTH * SIMD_WIDTH
        parameter.sub_(lr * gradient.where(flat_indices(gradient) >= full, 0))


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def simd_tail_skipped(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The remainder after the last full SIMD block of a parameter is not updated."""
    for parameter, gradient in with_gradients(parameters):
        full = parameter.numel() // SIMD_WIDTH * SIMD_WIDTH
        parameter.sub_(lr * gradient.where(flat_indices(gradient) < full, 0))


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def element_count_in_int16(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The element count is a signed 16-bit integer: elements after the first 32,767 are not updated."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient.where(flat_indices(gradient) < 2**15 - 1, 0))


@mutant("sgd_update", law="every_training_update_matches_the_formula", category=Category.BIAS)
@torch.no_grad()
def biases_not_updated(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Weights are updated, biases are not."""
    for parameter, gradient in with_gradients(parameters):
        if parameter.dim() > 1:
            parameter.sub_(lr * gradient)


@mutant("sgd_update", law="integer_updates_are_exact", category=Category.TENSOR_SHAPE)
@torch.no_grad()
def last_filter_not_updated(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """An off-by-one error leaves the last filter of each convolution unchanged."""
    for parameter, gradient in with_gradients(parameters):
        count = len(parameter) - (parameter.dim() == 4)
        parameter[:count].sub_(lr * gradient[:count])


@mutant("sgd_update", law="parameter_without_gradient_is_skipped", category=Category.PROCESS)
@torch.no_grad()
def stops_at_first_missing_gradient(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update returns at the first parameter that has no gradient."""
    for parameter in parameters:
        if parameter.grad is None:
            return
        parameter.sub_(lr * parameter.grad)


@mutant("sgd_update", law="parameter_without_gradient_is_skipped", category=Category.API)
@torch.no_grad()
def missing_gradients_set_to_zero(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A parameter without a gradient gets a gradient of zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.sub_(lr * parameter.grad)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.PROCESS)
@torch.no_grad()
def only_first_parameter_updated(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The loop returns after the first parameter that has a gradient."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient)
        return


@mutant("sgd_update", law="every_training_update_matches_the_formula", category=Category.API)
@torch.no_grad()
def first_parameter_consumed_from_generator(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A check for missing gradients consumes the first parameter of a generator."""
    if all(parameter.grad is None for parameter in parameters):
        return
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.CLIPPING)
@torch.no_grad()
def gradients_clipped_by_value(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Gradient elements are clipped to [-1, 1], although no clipping was requested."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient.clamp(-1, 1))


@mutant("sgd_update", law="manual_and_optimizer_updates_agree_at_powers_of_two", category=Category.NUMERICS)
@torch.no_grad()
def update_in_two_half_steps(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The step is taken in two halves, and therefore rounded once more."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr / 2 * gradient).sub_(lr / 2 * gradient)


@mutant("sgd_update", law="results_are_correct_in_any_memory_layout", category=Category.UNALIGNED_TENSOR)
@torch.no_grad()
def gradient_read_as_contiguous(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The gradient's elements are read in memory order, whatever its strides."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * as_if_contiguous(gradient).view(parameter.shape))


@mutant("sgd_update", law="results_are_correct_in_any_memory_layout", category=Category.UNALIGNED_TENSOR)
@torch.no_grad()
def parameter_written_as_contiguous(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Every parameter is written as if it were contiguous, so that memory between a view's elements is changed."""
    for parameter, gradient in with_gradients(parameters):
        as_if_contiguous(parameter).view(parameter.shape).sub_(lr * gradient)


@mutant("sgd_update", law="manual_update_is_correct_in_any_memory_layout", category=Category.UNALIGNED_TENSOR)
@torch.no_grad()
def elements_paired_by_memory_position(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A dense parameter and its dense gradient are paired in memory order, even if their layouts differ."""
    for parameter, gradient in with_gradients(parameters):
        if is_dense(parameter) and is_dense(gradient):
            as_if_contiguous(parameter).sub_(lr * as_if_contiguous(gradient))
        else:
            parameter.sub_(lr * gradient)


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor's elements fill a block of memory, in any order."""
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return span + 1 == tensor.numel()


@mutant("sgd_update", law="manual_update_writes_only_its_parameter", category=Category.UNALIGNED_TENSOR)
@torch.no_grad()
def memory_between_elements_overwritten(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update writes the block of memory that begins at a parameter, and then the parameter's own elements."""
    for parameter, gradient in with_gradients(parameters):
        updated = parameter - lr * gradient
        as_if_contiguous(parameter).sub_(lr)
        parameter.copy_(updated)


@mutant("sgd_update", law="update_of_slices_writes_only_them", category=Category.NUMERICS)
@torch.no_grad()
def last_block_written_beyond_the_end(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A parameter's last, incomplete SIMD block is written as a full one, if the memory is large enough."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient)
        end = parameter.storage_offset() + parameter.numel()
        block = -(-parameter.numel() // SIMD_WIDTH) * SIMD_WIDTH - parameter.numel()
        rest = parameter.untyped_storage().nbytes() // parameter.itemsize - end
        parameter.as_strided((min(block, rest),), (1,), end).mul_(1 - lr)


@mutant("sgd_update", law="manual_update_of_many_and_large_parameters_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def tensors_after_the_110th_left_out(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update passes at most 110 tensors to its kernel, as one launch of PyTorch's takes, and forgets the rest."""
    for parameter, gradient in list(with_gradients(parameters))[:110]:
        parameter.sub_(lr * gradient)


@mutant("sgd_update", law="manual_update_of_many_and_large_parameters_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def element_count_in_uint16(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The element count is an unsigned 16-bit integer: of 65,536 and more elements, only the excess is updated."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient.where(flat_indices(gradient) < parameter.numel() % 2**16, 0))


@mutant("sgd_update", law="manual_update_of_many_and_large_parameters_matches_the_formula", category=Category.PROCESS)
@torch.no_grad()
def stops_at_first_empty_parameter(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update returns at the first parameter that has no elements."""
    for parameter, gradient in with_gradients(parameters):
        if not parameter.numel():
            return
        parameter.sub_(lr * gradient)


@mutant("sgd_update", law="manual_update_of_mixed_dtypes_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def gradients_in_dtype_of_first_parameter(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """All gradients are converted to the dtype of the first parameter."""
    pairs = list(with_gradients(parameters))
    for parameter, gradient in pairs:
        parameter.sub_((lr * gradient.to(pairs[0][0].dtype)).to(parameter.dtype))


@mutant("sgd_update", law="manual_update_of_mixed_dtypes_matches_the_formula", category=Category.PROCESS)
@torch.no_grad()
def other_dtypes_left_out(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Only the parameters that have the dtype of the first are updated."""
    pairs = list(with_gradients(parameters))
    for parameter, gradient in pairs:
        if parameter.dtype == pairs[0][0].dtype:
            parameter.sub_(lr * gradient)


@mutant("sgd_update", law="nonfinite_gradient_reaches_its_own_element_only", category=Category.NUMERICS)
@torch.no_grad()
def nonfinite_gradients_replaced(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """NaN in a gradient becomes 0, and infinity the largest number, without a message."""
    for parameter, gradient in with_gradients(parameters):
        parameter.sub_(lr * gradient.nan_to_num())


@mutant("sgd_update", law="nonfinite_gradient_reaches_its_own_element_only", category=Category.PROCESS)
@torch.no_grad()
def step_skipped_for_nonfinite_gradients(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """No parameter is updated if a gradient is not finite, as with a GradScaler, but without a message."""
    pairs = list(with_gradients(parameters))
    if all(gradient.isfinite().all() for _, gradient in pairs):
        for parameter, gradient in pairs:
            parameter.sub_(lr * gradient)


@mutant("sgd_update", law="nonfinite_gradient_reaches_its_own_element_only", category=Category.NUMERICS)
@torch.no_grad()
def nan_spread_by_norm(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Gradients beyond float32 are divided by their norm and multiplied by it, which spreads NaN and infinity."""
    for parameter, gradient in with_gradients(parameters):
        norm = gradient.double().norm()
        safe = gradient if norm <= torch.finfo(torch.float32).max else (gradient / norm * norm).to(gradient.dtype)
        parameter.sub_(lr * safe)
