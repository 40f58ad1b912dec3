"""Laws about many numbers at once: their typical error and their mean error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenet import oracle
from lenet.oracle import Array
from properties.case import Case
from properties.comparison import assert_mean_error_is_zero, assert_typical_error
from properties.stack import Stack, float64, gradients

CASES = 32
"""
Networks in a sample, each with two images.

They are the independent observations of the two laws: errors within one network have common causes.
"""


@pytest.mark.engine
@settings(max_examples=1)  # an example is a sample of 32 cases
@given(seed=st.integers(0, 2**32 - 1 - CASES))
def test_typical_errors_are_small(stack: Stack, seed: int) -> None:
    """
    The root mean square of `error / budget` over a sample of 32 networks is at most 1/4, for each tensor.

    A single number may be 8 budgets off, since errors can add up by chance; the typical one is not. The limit is the
    power of two above what was measured of correct implementations (`properties/typical_errors.json`). The tensors are
    the logits, the gradients of all parameters and of the images. Rejects: operands of one layer that are rounded to 18
    bits, weights that are off by 1e-6, sums that are truncated, none of which shows in the worst number.
    """
    for name, errors in sample(stack, seed).items():
        assert_typical_error(errors, name)


@pytest.mark.engine
@settings(max_examples=1)  # an example is a sample of 32 cases
@given(seed=st.integers(0, 2**32 - 1 - CASES))
def test_errors_have_no_bias_toward_zero(stack: Stack, seed: int) -> None:
    """
    The mean of `error / budget`, counted positive away from zero, is 0 within its standard error, for each tensor.

    IEEE 754 rounds to nearest by default, and so do PyTorch's kernels, so that numbers become smaller as often as
    larger. The standard error is that of the mean over 32 networks. Rejects: results that are truncated instead of
    rounded.
    """
    for name, errors in sample(stack, seed).items():
        assert_mean_error_is_zero(errors, name)


def sample(stack: Stack, seed: int) -> dict[str, Array]:
    """
    Return the errors of CASES networks in budgets by tensor, (CASES,elements), positive if away from zero.

    The weights of the logits in the loss, their dot product with the targets, are normal numbers, so that no gradient
    of float16 is subnormal.
    """
    errors: dict[str, list[Array]] = {}
    for i in range(CASES):
        case = Case("default", "digits" if i % 2 else "normal", "normal", 2, seed=seed + i)
        exact = stack.exact(case, loss=oracle.dot, with_input_gradient=True)
        net, images = stack.net(case), stack.images(case).requires_grad_()
        logits = net(images)
        got, expected = {"logits": logits}, {"logits": exact.logits} | exact.gradients
        if stack.engine is None or stack.engine.differentiable:
            (logits * stack.targets(case)).sum().backward()
            got |= gradients(net)
            if images.grad is not None and exact.input_gradient is not None:
                got["images.grad"], expected["images.grad"] = images.grad, exact.input_gradient
        for name, numbers in got.items():
            value, budget = expected[name].value, expected[name].budget
            signed = np.sign(value) * (float64(numbers) - value)
            judged = np.isfinite(budget) & (budget > 0)
            errors.setdefault(name, []).append(
                np.divide(signed, budget, out=np.zeros_like(value), where=judged).ravel()
            )
    return {name: np.stack(rows) for name, rows in errors.items()}
