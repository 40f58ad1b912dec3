"""Laws of the backward pass: the gradients' numbers, and the graph that they flow through."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import given
from torch import Tensor

import lenet
from properties.closeness import assert_gradients
from properties.stack import Stack
from properties.strategies import Case, cases


@given(case=cases())
def test_gradients_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    After `loss.backward()` every parameter's `.grad` lies within the rounding budget of its exact value.

    Rejects: a gradient that is missing, scaled, transposed, or of a lower precision; a detached middle.
    """
    net = stack.net(case)

    stack.loss(net, case).backward()

    assert_gradients(net, stack.exact(case).gradients)


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
def test_a_custom_function_joins_the_graph(stack: Stack, case: Case) -> None:
    """
    An `autograd.Function` of one's own is a node of the graph, and its backward leads to the oracle's gradients.

    Rejects: a Function whose backward is not called, or called with another gradient than the one that reaches it.
    """
    net = stack.net(case)

    loss = MeanSquaredError.apply(net(stack.images(case)), stack.targets(case))
    loss.backward()

    assert type(loss.grad_fn).__name__ == "MeanSquaredErrorBackward"
    assert_gradients(net, stack.exact(case).gradients)


@given(case=cases())
def test_the_graph_reaches_every_parameter_once(stack: Stack, case: Case) -> None:
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
