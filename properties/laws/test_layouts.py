"""Laws of memory: where parameters and images lie, and in which order, changes no answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet import oracle
from lenet.oracle import SHAPES
from lenet.update import SGD
from properties.case import LAYOUTS, Case
from properties.comparison import assert_gradients, assert_rounded, assert_within_budget
from properties.stack import Stack, float64, lay_out
from properties.strategies import cases, learning_rates

FEW = (1, 2, 3)


def spread_out(net: nn.Module, layouts: tuple[str, ...]) -> list[Tensor]:
    """Lay each parameter out in its own way; returns the larger tensors that some of them are now views of."""
    frames = []
    for parameter, layout in zip(net.parameters(), layouts, strict=True):
        view = lay_out(parameter.detach(), layout)
        parameter.data = view
        if view._base is not None:
            frames.append(view._base)
    return frames


@example(case=Case(batch=2), layouts=("channels_last",) * len(SHAPES), with_gradient=False, lr=0.5)
@given(
    case=cases(batches=FEW),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * len(SHAPES)),
    with_gradient=st.booleans(),
    lr=learning_rates(),
)
def test_any_memory_layout_gives_right_results(
    stack: Stack, case: Case, layouts: tuple[str, ...], with_gradient: bool, lr: float
) -> None:
    """
    Parameters and images each in its own layout: logits, gradients and update are right all the same.

    Contiguous, channels_last, transposed, strided, offset, the images expanded too, with and without a gradient of
    their own; and nothing beside a parameter is written. Rejects: a kernel that takes one layout for another.
    """
    net, exact = stack.net(case), stack.exact(case)
    frames = spread_out(net, layouts)
    canaries = [frame.isnan() for frame in frames]

    logits = net(stack.images(case).requires_grad_(with_gradient))
    nn.functional.mse_loss(logits, stack.targets(case)).backward()
    before = {name: (float64(p).copy(), float64(p.grad).copy()) for name, p in net.named_parameters()}
    stack.subject.sgd_update(net.parameters(), lr)

    assert_within_budget(logits, exact.logits, "logits")
    for name, (value, gradient) in before.items():
        assert_within_budget(torch.from_numpy(gradient), exact.gradients[name], f"{name}.grad")
        assert_rounded(net.get_parameter(name), SGD(lr).step(value, gradient, None, stack.precision)[0], name)
    for frame, outside in zip(frames, canaries, strict=True):
        assert torch.equal(frame.isnan(), outside), "an element beside a parameter was written"


@given(case=cases(batches=FEW), formats=st.lists(st.sampled_from(["contiguous", "channels_last"]), max_size=3))
def test_memory_format_may_change_between_passes(stack: Stack, case: Case, formats: list[str]) -> None:
    """
    `net.to(memory_format=...)` between passes, once or more, leaves logits and gradients within budget.

    Single-channel weights are in both layouts at once (pytorch/pytorch#82060). Rejects: gradients that keep the old
    layout and are added to by place, not by index.
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
def test_upstream_gradient_may_have_any_memory_layout(stack: Stack, case: Case, upstream: str) -> None:
    """
    `logits.backward(gradient)` is right for a gradient that is expanded from one number, strided or transposed.

    `sum().backward()` hands the first kind on; beside that number there is NaN here. Rejects: a backward pass that
    reads its input as if contiguous.
    """
    net = stack.net(case)
    if upstream == "expanded":
        frame = lay_out(stack.tensor(np.ones((1, 1))), "offset")._base
        gradient = frame[1:2].expand(case.batch, 10)
    else:
        gradient = lay_out(stack.targets(case), upstream)
    exact = stack.solve(case, stack.images(case), gradient, oracle.dot)

    net(stack.images(case)).backward(gradient)

    assert_gradients(net, exact.gradients)
