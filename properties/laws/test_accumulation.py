"""Laws of accumulation: `.backward()` adds to `.grad`, and `zero_grad` ends that."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet import oracle
from lenet.oracle import SHAPES
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients
from properties.stack import Stack, gradients
from properties.strategies import cases


def backward(stack: Stack, net: nn.Module, case: Case) -> dict[str, Tensor]:
    """The gradients after one more backward pass."""
    stack.loss(net, case).backward()
    return gradients(net)


@pytest.mark.engine
@given(first=cases(), second=cases())
def test_second_backward_adds_exactly(stack: Stack, first: Case, second: Case) -> None:
    """
    After backward on one batch and then on another, `.grad` is g1 + g2 bit for bit.

    Rejects: overwriting, averaging, a first gradient that is lost or counted twice.
    """
    net = stack.net(first)
    g1 = backward(stack, net, first)
    net.zero_grad()
    g2 = backward(stack, net, second)
    net.zero_grad()

    backward(stack, net, first)
    both = backward(stack, net, second)

    for name in both:
        assert_exact(both[name], g1[name] + g2[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases())
def test_backward_twice_through_retained_graph_doubles_gradients(stack: Stack, case: Case) -> None:
    """
    Two backward passes through one graph, kept with `retain_graph=True`, give 2 g bit for bit.

    Rejects: saved tensors that the first pass changes.
    """
    net = stack.net(case)
    loss = stack.loss(net, case)

    loss.backward(retain_graph=True)
    once = gradients(net)
    loss.backward()

    for name, gradient in gradients(net).items():
        assert_exact(gradient, 2 * once[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases(batches=(2, 3, 5, 8, 17)), size=st.integers(1, 8))
def test_micro_batch_gradients_accumulate_to_batch_gradients(stack: Stack, case: Case, size: int) -> None:
    """
    Backward on micro-batches, each loss weighted by its share of the images, gives the whole batch's gradients.

    Each within its budget, and their sum within its roundings. Rejects: a last micro-batch lost, a weight of 1/k for
    unequal sizes or none.
    """
    net, loss = stack.net(case), nn.MSELoss()

    exact = []
    for images, targets in zip(stack.images(case).split(size), stack.targets(case).split(size), strict=True):
        share = len(images) / case.batch
        (loss(net(images), targets) * share).backward()
        exact.append(stack.solve(case, images, targets, oracle.scaled(oracle.mse, share)))

    assert_gradients(net, oracle.accumulated(exact, stack.precision))


@given(case=cases(), to_none=st.booleans(), frozen=st.sampled_from(["", *SHAPES]))
def test_zero_grad_discards_earlier_gradients(stack: Stack, case: Case, to_none: bool, frozen: str) -> None:
    """
    `zero_grad` sets every `.grad` to None, or to zeros when asked to; the next backward gives the gradient alone.

    Also that of a parameter which is frozen meanwhile. Rejects: a gradient that survives.
    """
    net = stack.net(case)
    before = backward(stack, net, case)

    meanwhile = [net.get_parameter(frozen).requires_grad_(False)] if frozen else []
    net.zero_grad(set_to_none=to_none)
    for parameter in meanwhile:
        parameter.requires_grad_()
    zeroed = [parameter.grad for parameter in net.parameters()]
    if to_none:
        assert zeroed == [None] * 10
    else:
        assert all(grad is not None and not grad.any() for grad in zeroed)

    after = backward(stack, net, case)
    for name in before:
        assert_exact(after[name], before[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases())
def test_no_gradient_accumulates_under_no_grad(stack: Stack, case: Case) -> None:
    """
    Under `torch.no_grad()` the forward pass leaves no graph, `.backward()` raises, and every `.grad` stays as it was.

    Rejects: a graph that is recorded all the same.
    """
    net = stack.net(case)
    before = backward(stack, net, case)

    with torch.no_grad():
        logits = net(stack.images(case))
        loss = F.mse_loss(logits, stack.targets(case))
    for made in (logits, loss):
        assert made.grad_fn is None
        assert not made.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()

    for name, gradient in gradients(net).items():
        assert_exact(gradient, before[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases())
def test_backward_through_freed_graph_raises(stack: Stack, case: Case) -> None:
    """
    A second backward through a graph that was not retained raises RuntimeError.

    Until it comes to what was freed it may add the same gradient again. From the sum of the logits, which itself keeps
    nothing, so that it is the network's own graph that is freed. Rejects: a pass over freed buffers.
    """
    net = stack.net(case)
    total = net(stack.images(case)).sum()
    total.backward()
    before = gradients(net)

    with pytest.raises(RuntimeError, match="second time"):
        total.backward()

    for name, gradient in gradients(net).items():
        added = not torch.equal(gradient, before[name])
        assert_exact(gradient, (1 + added) * before[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_gradients_accumulate_in_place(stack: Stack, case: Case, seed: int) -> None:
    """
    A later backward adds into the tensor that `.grad` already is: same object, same memory, for all who hold it.

    Rejects: a `.grad` that is replaced, so that views of it and an optimizer's references go stale.
    """
    net = stack.net(case)
    backward(stack, net, case)
    held = [parameter.grad for parameter in net.parameters()]
    memory = [grad.data_ptr() for grad in held if grad is not None]

    backward(stack, net, replace(case, seed=seed))

    now = [parameter.grad for parameter in net.parameters()]
    assert all(grad is old for grad, old in zip(now, held, strict=True))
    assert [grad.data_ptr() for grad in now if grad is not None] == memory
