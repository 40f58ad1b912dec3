"""Laws of accumulation: `backward` adds to `.grad`, and `zero_grad` resets it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lenet import oracle
from lenet.oracle import SHAPES
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients, assert_same_bits
from properties.laws.networks import all_gradients, backward, expect_error
from properties.stack import Stack
from properties.strategies import cases


@pytest.mark.engine
@given(first=cases(), second=cases())
def test_second_backward_adds_exactly(stack: Stack, first: Case, second: Case) -> None:
    """
    A backward pass on one batch and then one on another leave the sum of both gradients in `.grad` bit for bit.

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
        assert_same_bits(both[name], g1[name] + g2[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases())
def test_backward_twice_through_retained_graph_doubles_gradients(stack: Stack, case: Case) -> None:
    """
    Two backward passes through one graph, with `retain_graph=True`, give twice the gradients bit for bit.

    Rejects: saved tensors that the first pass changes.
    """
    net = stack.net(case)
    loss = stack.loss(net, case)

    loss.backward(retain_graph=True)
    once = all_gradients(net)
    loss.backward()

    for name, gradient in all_gradients(net).items():
        assert_same_bits(gradient, 2 * once[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases(batches=(2, 3, 5, 8, 17)), size=st.integers(1, 8))
def test_micro_batch_gradients_accumulate_to_batch_gradients(stack: Stack, case: Case, size: int) -> None:
    """
    Backward on micro-batches, each loss weighted by its share of the images, gives the batch's gradients.

    The gradients of the micro-batches are within their budgets, and their sum within its roundings. Rejects: a lost
    last micro-batch, a weight of 1/k for micro-batches of unequal size, no weight at all.
    """
    net, loss = stack.net(case), nn.MSELoss()

    exact = []
    for images, targets in zip(stack.images(case).split(size), stack.targets(case).split(size), strict=True):
        share = len(images) / case.batch
        (loss(net(images), targets) * share).backward()
        exact.append(stack.solve(case, images, targets, oracle.scaled(oracle.mse, share)))

    assert_gradients(net, oracle.accumulated_gradients(exact, stack.precision))


@given(case=cases(), to_none=st.booleans(), frozen=st.sampled_from(["", *SHAPES]))
def test_zero_grad_discards_earlier_gradients(stack: Stack, case: Case, to_none: bool, frozen: str) -> None:
    """
    `net.zero_grad()` sets every `.grad` to None, or with `set_to_none=False` to zeros, discarding earlier gradients.

    The next backward pass then gives its own gradient alone. This includes a parameter that is frozen when `zero_grad`
    is called. Rejects: a gradient that survives.
    """
    net = stack.net(case)
    before = backward(stack, net, case)

    frozen_parameters = [net.get_parameter(frozen).requires_grad_(False)] if frozen else []
    net.zero_grad(set_to_none=to_none)
    for parameter in frozen_parameters:
        parameter.requires_grad_()
    zeroed = {name: parameter.grad for name, parameter in net.named_parameters()}
    if to_none:
        assert len(zeroed) == 10, f"the network has {len(zeroed)} parameters, expected 10"
        kept = [name for name, grad in zeroed.items() if grad is not None]
        assert not kept, f"`.grad` of {', '.join(kept)} is not None after zero_grad()"
    else:
        kept = [name for name, grad in zeroed.items() if grad is None or grad.any()]
        assert not kept, f"`.grad` of {', '.join(kept)} is not zero after zero_grad(set_to_none=False)"

    after = backward(stack, net, case)
    for name in before:  # 0 + -0 is 0, so a gradient that is added to zeros may change the sign of its own zeros
        assert_equal = assert_same_bits if to_none else assert_exact
        assert_equal(after[name], before[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases())
def test_no_gradient_accumulates_under_no_grad(stack: Stack, case: Case) -> None:
    """
    Under `torch.no_grad()` no graph is recorded, `backward` raises, and every `.grad` stays unchanged.

    Rejects: a network that enables gradients itself.
    """
    net = stack.net(case)
    before = backward(stack, net, case)

    with torch.no_grad():
        logits = net(stack.images(case))
        loss = F.mse_loss(logits, stack.targets(case))
    for name, result in {"logits": logits, "loss": loss}.items():
        assert result.grad_fn is None, f"{name}.grad_fn is {result.grad_fn}, expected None"
        assert not result.requires_grad, f"{name}.requires_grad is True, expected False"
    with expect_error(RuntimeError, "does not require grad", "backward from a loss under no_grad"):
        loss.backward()

    for name, gradient in all_gradients(net).items():
        assert_same_bits(gradient, before[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases())
def test_backward_through_freed_graph_raises(stack: Stack, case: Case) -> None:
    """
    A second backward through a graph that was not retained raises RuntimeError.

    The sum of the logits saves no tensors, so the error comes from tensors that the network saved and the first pass
    freed. Parameters that the second pass reaches before them may have received their gradient a second time. Rejects:
    a second pass that uses freed tensors.
    """
    net = stack.net(case)
    total = net(stack.images(case)).sum()
    total.backward()
    before = all_gradients(net)

    with expect_error(RuntimeError, "second time", "a second backward pass through the same graph"):
        total.backward()

    for name, gradient in all_gradients(net).items():
        added_again = not torch.equal(gradient, before[name])
        assert_same_bits(gradient, (1 + added_again) * before[name], f"{name}.grad")


@pytest.mark.engine
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_gradients_accumulate_in_place(stack: Stack, case: Case, seed: int) -> None:
    """
    A later backward adds into the existing `.grad` tensor: it stays the same object with the same memory.

    Rejects: a `.grad` that is replaced, so that views of it and references in an optimizer become stale.
    """
    net = stack.net(case)
    backward(stack, net, case)
    tensors = {name: parameter.grad for name, parameter in net.named_parameters()}
    addresses = {name: grad.data_ptr() for name, grad in tensors.items()}

    backward(stack, net, replace(case, seed=seed))

    replaced = [name for name, grad in tensors.items() if net.get_parameter(name).grad is not grad]
    assert not replaced, f"`.grad` of {', '.join(replaced)} is another tensor than before"
    moved = [name for name, grad in tensors.items() if grad.data_ptr() != addresses[name]]
    assert not moved, f"`.grad` of {', '.join(moved)} is at another memory address than before"
