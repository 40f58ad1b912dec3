"""Laws of the backward pass: the gradients' numbers, and the graph that they flow through."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from hypothesis import given
from torch import Tensor, nn

from properties.closeness import assert_within_budget
from properties.stack import Stack, gradients
from properties.strategies import Case, cases


@given(case=cases())
def test_gradients_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    After `loss.backward()` every parameter's `.grad` lies within the rounding budget of its exact value.

    Rejects: a gradient that is missing, scaled, transposed, or of a lower precision; a detached middle.
    """
    net = stack.net(case)

    stack.loss(net, case).backward()

    _assert_gradients(stack, case, net)


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
    _assert_gradients(stack, case, net)


@given(case=cases())
def test_the_graph_reaches_every_parameter_once(stack: Stack, case: Case) -> None:
    """
    From the loss's `.grad_fn`, `next_functions` lead to each of the ten parameters by one node, and to no other leaf.

    Rejects: a parameter that takes no part, one that is used under another identity, a leaf that is none of them.
    """
    net = stack.net(case)

    loss = stack.loss(net, case)

    leaves = Counter(id(leaf) for leaf in _leaves(loss.grad_fn))
    assert leaves == Counter(id(parameter) for parameter in net.parameters())


def _leaves(root: Any) -> list[Tensor]:
    """The leaves that the graph accumulates gradients into, once for each node that does."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return [node.variable for node in seen if hasattr(node, "variable")]


def _assert_gradients(stack: Stack, case: Case, net: nn.Module) -> None:
    got, exact = gradients(net), stack.exact(case).gradients
    assert got.keys() == exact.keys()
    for name in exact:
        assert_within_budget(got[name], exact[name], f"{name}.grad")
