"""Parameters, gradients and optimizers that more than one file of laws uses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from lenet.exact_sgd import SGD, ExactWithBound
from lenet.training import SGD_FORMS
from properties.comparison import assert_rounded
from properties.stack import Stack, float64
from properties.strategies import Vectors

FORM = pytest.mark.parametrize("form", SGD_FORMS)
"""Judges a law with every implementation of `optim.SGD`: for-loop, foreach and fused."""


def parameters_of(stack: Stack, vectors: Vectors) -> list[nn.Parameter]:
    """Return the drawn vectors as parameters in the stack's dtype on its device, without gradients."""
    return [nn.Parameter(stack.tensor(values)) for values in vectors.parameters()]


def give_gradients(stack: Stack, parameters: list[nn.Parameter], vectors: Vectors, step: int = 0) -> None:
    """Set each parameter's `.grad` to a new tensor that holds its drawn gradient of this step."""
    for parameter, gradient in zip(parameters, vectors.gradients(step), strict=True):
        parameter.grad = stack.tensor(gradient)


def optimizer_of(parameters: Any, sgd: SGD, form: str) -> optim.SGD:
    """Return an `optim.SGD` with these settings in the implementation `form`, a key of `SGD_FORMS`."""
    return optim.SGD(parameters, **asdict(sgd), **SGD_FORMS[form])


def buffer_of(optimizer: optim.SGD, parameter: Tensor) -> Tensor | None:
    """Return the parameter's momentum buffer, or None if the optimizer has none for it."""
    return optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None


def exact_step(
    stack: Stack, optimizer: optim.SGD, parameters: list[nn.Parameter], sgd: list[SGD]
) -> list[tuple[ExactWithBound, ExactWithBound | None]]:
    """
    Return each parameter and momentum buffer after the optimizer's next step, exactly and with a bound.

    `sgd` holds the settings of each parameter. The step is not taken.
    """
    exact = []
    for parameter, own in zip(parameters, sgd, strict=True):
        assert parameter.grad is not None, "a parameter has no gradient before the step"
        buffer = buffer_of(optimizer, parameter)
        old_buffer = None if buffer is None else float64(buffer).copy()
        exact.append(own.step(float64(parameter).copy(), float64(parameter.grad).copy(), old_buffer, stack.precision))
    return exact


def assert_stepped(
    optimizer: optim.SGD,
    parameters: list[nn.Parameter],
    exact: list[tuple[ExactWithBound, ExactWithBound | None]],
) -> None:
    """Assert that every parameter and momentum buffer has its exact value, within the roundings of a step."""
    for i, (parameter, (updated, velocity)) in enumerate(zip(parameters, exact, strict=True)):
        assert_rounded(parameter, updated, f"parameter {i}")
        if velocity is not None:
            buffer = buffer_of(optimizer, parameter)
            assert buffer is not None, f"parameter {i} has no momentum buffer"
            assert_rounded(buffer, velocity, f"momentum buffer {i}")


def assert_step(stack: Stack, optimizer: optim.SGD, parameters: list[nn.Parameter], sgd: list[SGD]) -> None:
    """
    Take a step, then assert that every parameter and momentum buffer has its documented value, within its roundings.

    `sgd` holds the settings of each parameter.
    """
    exact = exact_step(stack, optimizer, parameters, sgd)
    optimizer.step()
    assert_stepped(optimizer, parameters, exact)


@torch.no_grad()
def copy_state(
    optimizer: optim.SGD, parameters: list[nn.Parameter], other: optim.SGD, others: list[nn.Parameter]
) -> None:
    """Copy the values of the parameters and of their momentum buffers to those of the other optimizer."""
    for parameter, copy in zip(parameters, others, strict=True):
        copy.copy_(parameter)
        buffer, other_buffer = buffer_of(optimizer, parameter), buffer_of(other, copy)
        if buffer is not None and other_buffer is not None:
            other_buffer.copy_(buffer)
