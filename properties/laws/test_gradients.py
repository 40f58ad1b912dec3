"""Laws of the backward pass: the gradients' numbers, and the graph that they flow through."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lenet
from lenet import oracle
from lenet.oracle import SHAPES, Bounded
from properties.case import LAYOUTS, Case
from properties.comparison import assert_exact, assert_gradients, assert_within_budget
from properties.laws.test_exactness import chains, ordinary_cases, scalable
from properties.laws.test_forward import entropy_targets
from properties.stack import Stack, gradients
from properties.strategies import cases


@pytest.mark.engine
@given(case=cases())
def test_gradients_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    After `loss.backward()` every parameter's `.grad` lies within the rounding budget of its exact value.

    Rejects: a gradient that is missing, scaled, transposed, or of a lower precision; a detached middle.
    """
    net = stack.net(case)

    stack.loss(net, case).backward()

    assert_gradients(net, stack.exact(case).gradients)


@pytest.mark.engine
@pytest.mark.parametrize("targets", ["indices", "probabilities"])
@given(case=cases())
def test_cross_entropy_gradients_agree_with_the_oracle(stack: Stack, targets: str, case: Case) -> None:
    """
    The gradients of the cross-entropy, (softmax - targets) / N at the logits, lie within budget.

    Rejects: a softmax before the loss that takes its own, a gradient that is not divided by N.
    """
    case, goals = entropy_targets(stack, case, targets)
    net = stack.net(case)

    F.cross_entropy(net(stack.images(case)), goals).backward()

    assert_gradients(net, stack.exact(case, loss=oracle.cross_entropy).gradients)


@pytest.mark.engine
@given(case=cases())
def test_input_gradients_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    The gradient of the loss by every pixel lies within its budget, in every memory layout of the images.

    Rejects: a convolution whose backward pass by its input is another than the one by its weights.
    """
    images, exact = stack.images(case).requires_grad_(), stack.exact(case, by_images=True).by_images
    assert exact is not None

    F.mse_loss(stack.net(case)(images), stack.targets(case)).backward()

    assert_within_budget(images.grad, exact, "images.grad")


STALE = re.compile("modified by an inplace operation|view of its base has been modified inplace")
"""How autograd refuses a graph whose parameters have changed: what it has saved, or a view of several of it."""


class MeanSquaredError(torch.autograd.Function):
    """The loss of the tutorial as a user would write it: a forward, and a backward that autograd calls."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return ((logits - targets) ** 2).mean()

    @staticmethod
    def backward(ctx: Any, *by_loss: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        return by_loss[0] * 2 * (logits - targets) / max(1, logits.numel()), None


@given(case=cases())
def test_custom_autograd_function_joins_the_graph(stack: Stack, case: Case) -> None:
    """
    An `autograd.Function` of one's own is a node of the graph, and its backward leads to the oracle's gradients.

    It is half of the loss that is derived, so that 1/2 reaches the Function, not the 1 that backward begins with.
    Rejects: a Function whose backward is not called, or called with another gradient than the one that reaches it.
    """
    net = stack.net(case)

    loss = MeanSquaredError.apply(net(stack.images(case)), stack.targets(case))
    (loss / 2).backward()

    assert type(loss.grad_fn).__name__ == "MeanSquaredErrorBackward"
    half = oracle.scaled(oracle.mse, 0.5)
    assert_gradients(net, stack.solve(case, stack.images(case), stack.targets(case), half).gradients)


@given(case=cases())
def test_graph_reaches_every_parameter_once(stack: Stack, case: Case) -> None:
    """
    From the loss's `.grad_fn`, `next_functions` lead to each of the ten parameters, and to no other leaf.

    By one node each, and in the reference network by one edge each; another may use a parameter in several places.
    Rejects: a parameter that takes no part, or under another identity; a leaf that is none of them.
    """
    net = stack.net(case)

    loss = stack.loss(net, case)

    edges = _edges_to_leaves(loss.grad_fn)
    assert edges.keys() == {id(parameter) for parameter in net.parameters()}
    if stack.subject.Net is lenet.Net:
        assert set(edges.values()) == {1}


def _edges_to_leaves(root: Any) -> Counter[int]:
    """How many edges of the graph lead to each leaf, by the leaf's id."""
    nodes, seen, edges = [root], {root}, Counter[int]()
    while nodes:
        for following, _ in nodes.pop().next_functions:
            if following is None:
                continue
            if hasattr(following, "variable"):
                edges[id(following.variable)] += 1
            elif following not in seen:
                seen.add(following)
                nodes.append(following)
    return edges


@pytest.mark.engine
@given(first=cases(), second=cases())
def test_gradient_of_sum_is_sum_of_gradients(stack: Stack, first: Case, second: Case) -> None:
    """
    Backward of the sum of two losses gives g1 + g2 bit for bit, g1 and g2 being those of each alone.

    Within budget where a network uses a parameter in several places, whose parts are added up in the graph's order.
    Rejects: a graph that is walked twice where two paths meet.
    """
    net = stack.net(first)
    alone = []
    for case in (first, second):
        stack.loss(net, case).backward()
        alone.append(gradients(net))
        net.zero_grad()

    loss = stack.loss(net, first) + stack.loss(net, second)
    edges = _edges_to_leaves(loss.grad_fn)
    loss.backward()

    once = {name for name, parameter in net.named_parameters() if edges[id(parameter)] == 2}  # in each of the two
    exact = {} if len(once) == len(SHAPES) else sum_of_gradients(stack, first, second)
    for name, gradient in gradients(net).items():
        if name in once:
            assert_exact(gradient, alone[0][name] + alone[1][name], f"{name}.grad")
        else:
            assert_within_budget(gradient, exact[name], f"{name}.grad")


def sum_of_gradients(stack: Stack, first: Case, second: Case) -> dict[str, Bounded]:
    """The exact gradients of both cases' losses, by the first one's network, added up."""
    other = stack.solve(first, stack.images(second), stack.targets(second), oracle.mse)
    return oracle.accumulated([stack.exact(first), other], stack.precision)


@pytest.mark.engine
@given(case=ordinary_cases(), name=st.sampled_from(list(SHAPES)))
def test_backward_after_parameter_change_raises_or_uses_saved_values(stack: Stack, case: Case, name: str) -> None:
    """
    Backward through a graph that is older than a change of one parameter raises, or gives the gradient as of before.

    Rejects: layers that are computed anew for the backward pass, with weights that are no longer the forward pass's.
    """
    net = stack.net(case)
    loss = stack.loss(net, case)
    loss.backward(retain_graph=True)
    before = gradients(net)
    net.zero_grad()

    with torch.no_grad():
        net.get_parameter(name).mul_(-0.5).add_(1)
    try:
        loss.backward()
    except RuntimeError as error:
        if not STALE.search(str(error)):
            raise
        return

    for own, gradient in gradients(net).items():
        assert_exact(gradient, before[own], f"{own}.grad")


@pytest.mark.engine
@given(case=ordinary_cases(), exponent=st.integers(-4, 4))
def test_gradient_of_scaled_loss_is_scaled(stack: Stack, case: Case, exponent: int) -> None:
    """
    Backward of 2**k times the loss gives 2**k g bit for bit: what a GradScaler relies on.

    Rejects: clipping, normalization, anything in the backward pass that is not linear.
    """
    case = scalable(stack, case)
    net = stack.net(case)
    (net(stack.images(case)) * stack.targets(case)).sum().backward()
    once = gradients(net)
    net.zero_grad()

    ((net(stack.images(case)) * stack.targets(case)).sum() * 2.0**exponent).backward()

    for name, gradient in gradients(net).items():
        assert_exact(gradient, once[name] * 2.0**exponent, f"{name}.grad")


@pytest.mark.engine
@given(seed=st.integers(0, 2**32 - 1), logit=st.integers(0, 9), layout=st.sampled_from(LAYOUTS))
def test_pooling_tie_sends_gradient_to_first_element(stack: Stack, seed: int, logit: int, layout: str) -> None:
    """
    Where all candidates of the pooling windows are equal, the gradient goes to the first in row-major order.

    So `max_pool2d` does, in every memory layout. Rejects: a gradient that is shared among equals, or goes to the last.
    """
    case = Case(weights="one-hot", images="zero", seed=seed, layout=layout)
    images = (stack.images(case) + 1).requires_grad_()
    row, column = chains(case)[logit]

    stack.net(case)(images)[0, logit].backward()

    want = torch.zeros_like(images)
    want[0, 0, row, column] = 1
    assert_exact(images.grad, want, "images.grad")


@pytest.mark.engine
@given(case=cases(weights=("constant",)), layer=st.sampled_from(["fc2", "fc1", "conv2", "conv1"]))
def test_relu_gradient_at_zero_is_zero(stack: Stack, case: Case, layer: str) -> None:
    """
    At exactly 0 the derivative of ReLU is 0, the subgradient of least norm: a layer of zeros has no gradient.

    Nor have those before it, though those after it are positive and hand a gradient on to it.
    https://docs.pytorch.org/docs/stable/notes/autograd.html, "Gradients for non-differentiable functions".
    Rejects: a derivative of 1 or 1/2 at zero, in any of the four.
    """
    net = stack.net(case)
    with torch.no_grad():
        for name in ("weight", "bias"):
            net.get_parameter(f"{layer}.{name}").zero_()

    net(stack.images(case)).sum().backward()

    stopped = list(SHAPES)[: list(SHAPES).index(f"{layer}.bias") + 1]
    for name, gradient in gradients(net).items():
        if name in stopped:
            assert_exact(gradient, torch.zeros_like(gradient), f"{name}.grad")
        elif name.endswith("bias"):
            assert (gradient > 0).all() or not case.batch, f"the gradient does not come to {name}"
