"""Laws of memory layout: results do not depend on the strides and offsets of parameters, images and gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet import oracle
from lenet.exact_sgd import SGD
from lenet.oracle import SHAPES
from properties.case import LAYOUTS, Case
from properties.comparison import assert_gradients, assert_rounded, assert_within_budget
from properties.laws.networks import all_gradients
from properties.preconditions import require
from properties.stack import Stack, float64, lay_out
from properties.strategies import cases, learning_rates

FEW = (1, 2, 3)
"""Batch sizes of laws that do not depend on the batch size."""


def lay_out_parameters(net: nn.Module, layouts: tuple[str, ...]) -> list[Tensor]:
    """Give each parameter its own memory layout; return the larger tensors that some parameters are now views of."""
    bases = []
    for parameter, layout in zip(net.parameters(), layouts, strict=True):
        view = lay_out(parameter.detach(), layout)
        parameter.data = view
        if view._base is not None:
            bases.append(view._base)
    return bases


@example(case=Case(batch=2), layouts=("channels_last",) * len(SHAPES), with_gradient=False, lr=0.5)
@given(
    case=cases(batches=FEW),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * len(SHAPES)),
    with_gradient=st.booleans(),
    lr=learning_rates(),
)
def test_results_are_correct_in_any_memory_layout(
    stack: Stack, case: Case, layouts: tuple[str, ...], with_gradient: bool, lr: float
) -> None:
    """
    Logits, gradients and the update are correct in any memory layout of the parameters and the images.

    Each parameter has its own layout: contiguous, channels_last, transposed, strided or offset. The images can also be
    expanded, and require a gradient or not. No element next to a parameter in memory is written. Parameters have only
    layouts in which the network accepts images. Rejects: a kernel that mistakes one layout for another.
    """
    for layout in layouts:
        require(replace(case, layout=layout))
    net, exact = stack.net(case), stack.exact(case)
    bases = lay_out_parameters(net, layouts)
    outside = [base.isnan() for base in bases]  # masks of the elements next to the parameters

    logits = net(stack.images(case).requires_grad_(with_gradient))
    nn.functional.mse_loss(logits, stack.targets(case)).backward()
    before = {
        name: (float64(net.get_parameter(name)).copy(), float64(gradient))
        for name, gradient in all_gradients(net).items()
    }
    stack.subject.sgd_update(net.parameters(), lr)

    assert_within_budget(logits, exact.logits, "logits")
    for name, (value, gradient) in before.items():
        assert_within_budget(torch.from_numpy(gradient), exact.gradients[name], f"{name}.grad")
        assert_rounded(net.get_parameter(name), SGD(lr).step(value, gradient, None, stack.precision)[0], name)
    for base, mask in zip(bases, outside, strict=True):
        assert torch.equal(base.isnan(), mask), "an element next to a parameter in memory was written"


@given(case=cases(batches=FEW), formats=st.lists(st.sampled_from(["contiguous", "channels_last"]), max_size=3))
def test_results_are_correct_after_memory_format_changes(stack: Stack, case: Case, formats: list[str]) -> None:
    """
    `net.to(memory_format=...)` between passes leaves logits and gradients within the rounding budget.

    The format changes up to three times. Weights with a single channel are in both formats at once
    (pytorch/pytorch#82060). Rejects: gradients that keep the old layout and are accumulated by memory position instead
    of by index.
    """
    net, exact = stack.net(case), stack.exact(case)
    stack.loss(net, case).backward()

    for name in formats:
        net.to(memory_format=torch.channels_last if name == "channels_last" else torch.contiguous_format)
        net.zero_grad(set_to_none=False)
        stack.loss(net, case).backward()

    assert_within_budget(net(stack.images(case)), exact.logits, "logits")
    assert_gradients(net, exact.gradients)


@pytest.mark.engine
@pytest.mark.parametrize("upstream", ["expanded", "strided", "transposed"])
@given(case=cases(weights=("default", "sparse", "integers"), batches=FEW))
def test_backward_is_correct_for_any_upstream_gradient_layout(stack: Stack, case: Case, upstream: str) -> None:
    """
    `logits.backward(gradient)` is correct for an expanded, strided or transposed gradient.

    `sum().backward()` passes an expanded gradient; here the memory around its single element is NaN. Rejects: a
    backward pass that reads its upstream gradient as if it were contiguous.
    """
    net = stack.net(case)
    if upstream == "expanded":
        base = lay_out(stack.tensor(np.ones((1, 1))), "offset")._base
        gradient = base[1:2].expand(case.batch, 10)
    else:
        gradient = lay_out(stack.targets(case), upstream)
    exact = stack.solve(case, stack.images(case), gradient, oracle.dot)

    net(stack.images(case)).backward(gradient)

    assert_gradients(net, exact.gradients)
