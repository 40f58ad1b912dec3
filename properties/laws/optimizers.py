"""Parameters, gradients and optimizers that more than one file of laws uses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from torch import Tensor, nn, optim

from lenet.exact_sgd import SGD
from lenet.training import SGD_FORMS
from properties.stack import Stack
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
