"""The update by hand, weight = weight - learning rate * gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from properties.mutants import Category, mutant

BLOCK = 8
"""Elements that a SIMD instruction takes at once."""


def with_gradient(parameters: Iterable[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Those that are to be updated, each with its gradient."""
    return ((parameter, parameter.grad) for parameter in parameters if parameter.grad is not None)


def in_memory(tensor: Tensor) -> Tensor:
    """A view (n,) of the n places of memory that follow upon a tensor's first element."""
    return tensor.as_strided((tensor.numel(),), (1,))


def places(tensor: Tensor) -> Tensor:
    """The number of each element, in the order of their indices."""
    return torch.arange(tensor.numel()).view(tensor.shape)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.OPTIMISER)
@torch.no_grad()
def sign_wrong(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update climbs: it adds the gradient."""
    for parameter, gradient in with_gradient(parameters):
        parameter.add_(lr * gradient)


@mutant("sgd_update", law="training_step_agrees_with_the_oracle", category=Category.LEARNING_RATE)
@torch.no_grad()
def rate_squared(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is multiplied in twice."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * gradient, alpha=lr)


@mutant("sgd_update", law="integer_updates_are_exact", category=Category.LEARNING_RATE)
@torch.no_grad()
def rate_doubled(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A factor of two, as from the derivative of a square that the loss has taken already."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(2 * lr * gradient)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def gradient_rounded(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Gradients are rounded to bfloat16 on their way into the update."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * gradient.bfloat16().to(gradient.dtype))


@mutant("sgd_update", law="every_training_update_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def rate_in_float16(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is kept as a tensor in float16, where 0.1 is 0.09998."""
    rate = torch.tensor(lr, dtype=torch.float16).item()
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(rate * gradient)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.NUMERICS, dtype="float64")
@torch.no_grad()
def rate_in_float32(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is a tensor of the default dtype, float32, also where parameters are in float64."""
    rate = torch.tensor(lr).item()
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(rate * gradient)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.REGULARISATION)
@torch.no_grad()
def hidden_decay(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A weight decay that nobody has asked for, 5e-4 as in many recipes."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * (gradient + 5e-4 * parameter))


@mutant("sgd_update", law="manual_and_optimizer_training_agree_at_powers_of_two", category=Category.OPTIMISER)
@torch.no_grad()
def hidden_momentum(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A momentum that nobody has asked for: from a parameter's second step on, its last one is taken again in part."""
    for parameter, gradient in with_gradient(parameters):
        parameter.velocity = gradient + 0.5 * getattr(parameter, "velocity", torch.zeros_like(gradient))
        parameter.sub_(lr * parameter.velocity)


@mutant("sgd_update", law="update_leaves_gradients_unchanged", category=Category.API)
@torch.no_grad()
def gradients_cleared(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update clears each gradient when it has taken it."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * gradient)
        parameter.grad = None


@mutant("sgd_update", law="update_leaves_gradients_unchanged", category=Category.COMPUTATION_MODEL)
@torch.no_grad()
def gradients_scaled(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The learning rate is multiplied into the gradients themselves."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(gradient.mul_(lr))


@mutant("sgd_update", law="update_leaves_gradients_unchanged", category=Category.COMPUTATION_MODEL)
@torch.no_grad()
def memory_replaced(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A parameter is given new memory; who holds a view of the old, keeps the old numbers."""
    for parameter, gradient in with_gradient(parameters):
        parameter.data = parameter - lr * gradient


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.UPSTREAM)
@torch.no_grad()
def full_blocks_left(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Full SIMD blocks stay as they were, and only the rest after them is updated, as in pytorch/pytorch#191763."""
    for parameter, gradient in with_gradient(parameters):
        rest = parameter.numel() // BLOCK * BLOCK
        parameter.sub_(lr * gradient.where(places(gradient) >= rest, 0))


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def tails_left(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """What is left after the full SIMD blocks of a parameter stays as it was."""
    for parameter, gradient in with_gradient(parameters):
        full = parameter.numel() // BLOCK * BLOCK
        parameter.sub_(lr * gradient.where(places(gradient) < full, 0))


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.NUMERICS)
@torch.no_grad()
def sizes_in_16_bits(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A count of elements in a signed 16-bit integer: what comes after the first 32,767 stays as it was."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * gradient.where(places(gradient) < 2**15 - 1, 0))


@mutant("sgd_update", law="every_training_update_matches_the_formula", category=Category.BIAS)
@torch.no_grad()
def biases_left(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Weights are updated and biases are not."""
    for parameter, gradient in with_gradient(parameters):
        if parameter.dim() > 1:
            parameter.sub_(lr * gradient)


@mutant("sgd_update", law="integer_updates_are_exact", category=Category.TENSOR_SHAPE)
@torch.no_grad()
def last_filter_left(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Off by one: the last filter of each convolution stays as it was."""
    for parameter, gradient in with_gradient(parameters):
        count = len(parameter) - (parameter.dim() == 4)
        parameter[:count].sub_(lr * gradient[:count])


@mutant("sgd_update", law="parameter_without_gradient_is_skipped", category=Category.PROCESS)
@torch.no_grad()
def stop_at_the_first_none(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The update ends at the first parameter that has no gradient."""
    for parameter in parameters:
        if parameter.grad is None:
            return
        parameter.sub_(lr * parameter.grad)


@mutant("sgd_update", law="parameter_without_gradient_is_skipped", category=Category.API)
@torch.no_grad()
def missing_gradients_made(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A parameter that has no gradient is given one of zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.sub_(lr * parameter.grad)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.PROCESS)
@torch.no_grad()
def only_the_first(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The loop ends after its first parameter."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * gradient)
        return


@mutant("sgd_update", law="every_training_update_matches_the_formula", category=Category.API)
@torch.no_grad()
def generator_begun(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """A look whether there is anything to do takes the first parameter out of the generator that is given."""
    if all(parameter.grad is None for parameter in parameters):
        return
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * gradient)


@mutant("sgd_update", law="manual_update_matches_the_formula", category=Category.CLIPPING)
@torch.no_grad()
def gradients_clipped(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Gradients beyond 1 are clipped, which nobody has asked for."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * gradient.clamp(-1, 1))


@mutant("sgd_update", law="manual_and_optimizer_updates_agree_at_powers_of_two", category=Category.NUMERICS)
@torch.no_grad()
def two_half_steps(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """The step is taken in two halves, and so rounded once more."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr / 2 * gradient).sub_(lr / 2 * gradient)


@mutant("sgd_update", law="any_memory_layout_gives_right_results", category=Category.UNALIGNED_TENSOR)
@torch.no_grad()
def paired_by_place(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Elements of a gradient are taken in the order of their places in memory, whatever its strides."""
    for parameter, gradient in with_gradient(parameters):
        parameter.sub_(lr * in_memory(gradient).view(parameter.shape))


@mutant("sgd_update", law="any_memory_layout_gives_right_results", category=Category.UNALIGNED_TENSOR)
@torch.no_grad()
def written_beside(parameters: Iterable[nn.Parameter], lr: float) -> None:
    """Every parameter is taken for a contiguous one; between the elements of a view, what is not its own is written."""
    for parameter, gradient in with_gradient(parameters):
        in_memory(parameter).view(parameter.shape).sub_(lr * gradient)
