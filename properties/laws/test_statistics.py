"""Laws about many numbers at once: their typical error and their mean error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenet import oracle
from lenet.oracle import Array, Budgeted
from properties.case import Case
from properties.comparison import assert_mean_errors_are_zero, assert_typical_errors
from properties.laws.networks import gradient_of
from properties.stack import Stack, float64, gradients


@pytest.mark.engine
@settings(max_examples=1)  # an example is a sample of 8 networks
@given(seed=st.integers(0, 2**32 - 33))
def test_typical_errors_are_small(stack: Stack, seed: int) -> None:
    """
    The root mean square of `error / budget` over a sample of 8 networks is at most 1/4, for each tensor.

    A single number may be 8 budgets off, since errors can add up by chance; the typical one is not. The tensors are the
    logits, the gradients of all parameters and of the images. Rejects: in float32, operands of one layer that are
    rounded to 18 bits, or weights that are off by 1e-6, which no single number shows; in 16 bits, truncated sums.
    """
    errors = sample(stack, seed, cases=8, with_input_gradient=True)

    assert_typical_errors(errors)


@pytest.mark.engine
@settings(max_examples=1)  # an example is a sample of 24 networks
@given(seed=st.integers(0, 2**32 - 33))
def test_errors_have_no_bias_toward_zero(stack: Stack, seed: int) -> None:
    """
    The mean of `error / budget`, counted positive away from zero, is 0 within its standard error, for each tensor.

    PyTorch's kernels round to nearest, the default of IEEE 754, so that results become smaller as often as larger. The
    standard error is that of the mean over 24 networks. The tensors are the logits and the gradients of fc2 and fc3: in
    those before them, undecided ReLUs and pooling windows move gradients from one element to another. Rejects: results
    or sums that are truncated instead of rounded.
    """
    errors = sample(stack, seed, cases=24)

    assert_mean_errors_are_zero({n: values for n, values in errors.items() if n.startswith(("logits", "fc2", "fc3"))})


def sample(stack: Stack, seed: int, cases: int, with_input_gradient: bool = False) -> dict[str, Array]:
    """
    Return the errors of networks with two images each, in budgets by tensor, (cases,elements), positive if away from 0.

    The networks are the independent observations: errors within one have common causes. The loss is the dot product of
    the logits with normal numbers, so that no gradient is subnormal in float16. An engine that has no backward pass is
    judged by its logits alone.
    """
    errors: dict[str, list[Array]] = {}
    for i in range(cases):
        case = Case("default", "digits" if i % 2 else "normal", "normal", 2, seed=seed + i)
        exact = stack.exact(case, loss=oracle.dot, with_input_gradient=with_input_gradient)
        net, images = stack.net(case), stack.images(case).requires_grad_(with_input_gradient)
        logits = net(images)
        got, expected = {"logits": logits}, {"logits": exact.logits} | exact.gradients
        if stack.engine is None or stack.engine.differentiable:
            (logits * stack.targets(case)).sum().backward()
            got |= gradients(net)
            if exact.input_gradient is not None:
                got["images.grad"], expected["images.grad"] = gradient_of(images), exact.input_gradient
        for name, numbers in got.items():
            errors.setdefault(name, []).append(_signed_ratio(float64(numbers), expected[name]).ravel())
    return {name: np.stack(rows) for name, rows in errors.items()}


def _signed_ratio(got: Array, exact: Budgeted) -> Array:
    with np.errstate(invalid="ignore"):
        return np.copysign(exact.ratio(got), (got - exact.value) * np.sign(exact.value))
