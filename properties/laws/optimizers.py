"""Parameters, gradients and optimizers that more than one file of laws uses."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from lenet.exact_sgd import SGD, ExactWithBound
from lenet.oracle import PRECISIONS, Array, Precision
from lenet.training import SGD_FORMS
from properties.comparison import assert_rounded
from properties.stack import Stack, float64, lay_out, precision_of
from properties.strategies import Placed, Vectors

FORM = pytest.mark.parametrize("form", SGD_FORMS)
"""Judges a law with every implementation of `optim.SGD`: for-loop, foreach and fused."""

DTYPES = tuple(getattr(torch, name) for name in PRECISIONS)
"""All dtypes that are judged."""


def parameters_of(stack: Stack, vectors: Vectors) -> list[nn.Parameter]:
    """Return the drawn vectors as parameters in the stack's dtype on its device, without gradients."""
    return [nn.Parameter(stack.tensor(values)) for values in vectors.parameters()]


def give_gradients(stack: Stack, parameters: list[nn.Parameter], vectors: Vectors, step: int = 0) -> None:
    """Set each parameter's `.grad` to a new tensor that holds its drawn gradient of this step."""
    for parameter, gradient in zip(parameters, vectors.gradients(step), strict=True):
        parameter.grad = stack.tensor(gradient)


def in_dtypes(parameters: list[nn.Parameter], dtypes: list[torch.dtype]) -> list[nn.Parameter]:
    """Return the parameters and their gradients converted to these dtypes, which repeat."""
    converted = []
    for parameter, dtype in zip(parameters, cycle(dtypes), strict=False):
        converted.append(nn.Parameter(parameter.detach().to(dtype)))
        converted[-1].grad = None if parameter.grad is None else parameter.grad.to(dtype)
    return converted


def optimizer_of(parameters: Any, sgd: SGD, form: str) -> optim.SGD:
    """Return an `optim.SGD` with these settings in the implementation `form`, a key of `SGD_FORMS`."""
    return optim.SGD(parameters, **asdict(sgd), **SGD_FORMS[form])


def buffer_of(optimizer: optim.SGD, parameter: Tensor) -> Tensor | None:
    """Return the parameter's momentum buffer, or None if the optimizer has none for it."""
    return optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None


def exact_step(
    optimizer: optim.SGD, parameters: list[nn.Parameter], sgd: list[SGD]
) -> list[tuple[ExactWithBound, ExactWithBound | None]]:
    """
    Return each parameter and momentum buffer after the optimizer's next step, exactly and with a bound.

    `sgd` holds the settings of each parameter, which is computed in its own dtype. The step is not taken.
    """
    exact = []
    for parameter, own in zip(parameters, sgd, strict=True):
        assert parameter.grad is not None, "a parameter has no gradient before the step"
        buffer = buffer_of(optimizer, parameter)
        old_buffer = None if buffer is None else float64(buffer).copy()
        precision = precision_of(parameter.dtype)
        exact.append(own.step(float64(parameter).copy(), float64(parameter.grad).copy(), old_buffer, precision))
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


def assert_step(optimizer: optim.SGD, parameters: list[nn.Parameter], sgd: list[SGD]) -> None:
    """
    Take a step, then assert that every parameter and momentum buffer has its documented value, within its roundings.

    `sgd` holds the settings of each parameter.
    """
    exact = exact_step(optimizer, parameters, sgd)
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


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state after `torch.save` and `torch.load`."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def placed_parameters(stack: Stack, placed: Placed) -> Iterator[tuple[nn.Parameter, list[Tensor]]]:
    """
    Yield a parameter once for each step, with a new gradient, and the two tensors in their drawn layouts.

    These are the parameter's values and its gradient. The caller takes the step.
    """
    parameter = nn.Parameter(stack.tensor(placed.values(0)))
    for step, (parameter_layout, gradient_layout, _) in enumerate(placed.layouts):
        views = [
            lay_out(parameter.detach(), parameter_layout),
            lay_out(stack.tensor(placed.values(step + 1)), gradient_layout),
        ]
        parameter.grad = None
        parameter.data = views[0]
        parameter.grad = views[1]
        yield parameter, views


@contextmanager
def unchanged_outside(views: Sequence[Tensor]) -> Iterator[None]:
    """Assert that the block leaves the rest of the tensors that these are views of unchanged."""
    outside = []  # each underlying tensor, with a mask of its elements next to the view
    for view in views:
        if (base := view._base) is not None:
            mask = torch.ones_like(base, dtype=torch.bool)
            mask.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
            base[mask] = 1.0
            outside.append((base, mask))
    yield
    for base, mask in outside:
        assert (base[mask] == 1.0).all(), "the step wrote an element outside of the view"


def flat(tensors: Sequence[Tensor]) -> Array:
    """Return the elements of all tensors as one float64 vector."""
    return np.concatenate([float64(tensor).ravel() for tensor in tensors])


def with_roundings(exact: Array, count: int, precision: Precision, size: Array | None = None) -> ExactWithBound:
    """
    Return numbers computed in float64, with a bound on `count` roundings of operands of at most this size.

    Their error is at most n u / (1 - n u) (Higham 2002, lemma 3.1). The numbers have been rounded themselves, in
    float64.
    """
    error = count * (precision.unit + PRECISIONS["float64"].unit)
    bound = error / (1 - error) * np.abs(exact if size is None else size) + count * precision.underflow
    return ExactWithBound(exact, np.zeros_like(exact), np.broadcast_to(bound, exact.shape))
