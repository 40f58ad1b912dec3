"""Laws of derivatives taken in other ways, differences, twice, forward, per sample; of the network as a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lenet import oracle
from lenet.oracle import SHAPES, Array, Bounded
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients, assert_within_budget, ledger
from properties.stack import Stack, float64, gradients
from properties.strategies import cases

STEPS = (2.0**-10, 2.0**-16, 2.0**-22)
"""Steps of the differences, the largest first: rounding is divided by the step, but a small one turns few decisions."""

UNSUPPORTED = re.compile(
    "don't yet support saved tensor hooks|must override the setup_context staticmethod|memory_format. inside vmap"
)
"""How torch.func says that it does not transform checkpoints, a Function of old form, a change to channels_last."""

Parameters = dict[str, Tensor]


def smooth_cases() -> SearchStrategy[Case]:
    """Networks and images that are rarely at a kink."""
    return cases(("default", "sparse"), ("digits", "normal", "uniform"), (1, 2, 3))


def names() -> SearchStrategy[str]:
    """A parameter: along one alone, the loss is piecewise quadratic."""
    return st.sampled_from(list(SHAPES))


def direction(stack: Stack, name: str, seed: int) -> Tensor:
    """A direction for a parameter, as large as the parameter's default initialization."""
    inputs = int(np.prod(SHAPES[f"{name.split('.')[0]}.weight"][1:]))
    return stack.tensor(np.random.RandomState([seed, 9]).standard_normal(SHAPES[name]) / np.sqrt(inputs))


def loss_of(stack: Stack, case: Case, net: nn.Module, by_hand: bool = False) -> Callable[[Parameters], Tensor]:
    """The case's loss as a function of the parameters."""
    images, targets = stack.images(case), stack.targets(case)

    def loss(parameters: Parameters) -> Tensor:
        logits = functional_call(net, parameters, (images,))
        return (logits - targets).square().mean() if by_hand else F.mse_loss(logits, targets)

    return loss


def detached(net: nn.Module) -> Parameters:
    """The parameters, apart from the net."""
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def both_ends(stack: Stack, case: Case, name: str, along: Tensor) -> tuple[list[Parameters], float]:
    """
    The parameters a step to either side, and the step: the largest within which no ReLU or pooling window turns.

    Two points of one parameter with the same decisions have them all the way between, since what is decided is linear.
    Where every step turns one, the case says nothing and the ledger counts it.
    """
    parameters = detached(stack.net(case))
    for step in STEPS:
        ends = [parameters | {name: parameters[name] + sign * step * along} for sign in (1, -1)]
        plus, minus = (oracle.decisions(_arrays(end), float64(stack.images(case))) for end in ends)
        if all(np.array_equal(one, other) for one, other in zip(plus, minus, strict=True)):
            return ends, step
    ledger.unjudged = True
    return [], 0.0


def _arrays(parameters: Parameters) -> dict[str, Array]:
    return {name: float64(value) for name, value in parameters.items()}


@contextmanager
def transforming() -> Iterator[None]:
    """While this lasts, skip where torch.func says that it does not transform what the network is made of."""
    try:
        yield
    except RuntimeError as error:
        if not UNSUPPORTED.search(str(error)):
            raise
        pytest.skip(f"torch.func does not transform this network: {UNSUPPORTED.search(str(error))[0]}")


def needs_float64(stack: Stack) -> None:
    """Skip what only float64 has the digits for."""
    if stack.dtype is not torch.float64:
        pytest.skip("differences need the digits of float64")


@given(case=smooth_cases(), name=names(), seed=st.integers(0, 2**32 - 1))
def test_gradients_match_finite_differences(stack: Stack, case: Case, name: str, seed: int) -> None:
    """
    In float64 (f(p + h d) - f(p - h d)) / 2h is the gradient times d, d being a direction of any one parameter.

    The loss is quadratic where no decision turns, so that the central difference is exact but for the rounding of two
    losses. No oracle is asked for the derivative. Rejects: any gradient that is not the derivative of its own forward.
    """
    needs_float64(stack)
    net, exact = stack.net(case), stack.exact(case)
    ends, step = both_ends(stack, case, name, direction(stack, name, seed))
    stack.loss(net, case).backward()

    if ends:
        moved = (ends[0][name] - ends[1][name]) / (2 * step)
        losses = [loss_of(stack, case, net)(end) for end in ends]
        slope = (losses[0] - losses[1]) / (2 * step)
        want = float64((net.get_parameter(name).grad * moved).sum())
        rounding = exact.loss.budget / step + along(stack, exact.gradients[name], moved).budget
        assert_within_budget(slope, Bounded(want, rounding), "the difference quotient")


def along(stack: Stack, gradient: Bounded, moved: Tensor) -> Bounded:
    """A gradient times a direction: each element is within its budget, so their sum is within the sum of budgets."""
    weights = float64(moved)
    budget = np.sum(gradient.budget * np.abs(weights))
    reach = oracle.in_range(np.sum(np.abs(gradient.value * weights)), budget, stack.precision)
    return Bounded(np.sum(gradient.value * weights), reach.budget)


@given(case=smooth_cases(), name=names(), seed=st.integers(0, 2**32 - 1))
def test_hessian_vector_products_match_finite_differences(stack: Stack, case: Case, name: str, seed: int) -> None:
    """
    In float64 the Hessian times a direction, by backward through backward, is the difference quotient of the gradients.

    Of all ten parameters, along any one. Rejects: a backward pass that cannot be differentiated, or not rightly.
    """
    needs_float64(stack)
    net = stack.net(case)
    ends, step = both_ends(stack, case, name, direction(stack, name, seed))
    if not ends:
        return
    moved = (ends[0][name] - ends[1][name]) / (2 * step)

    product = hessian_product(stack, case, net, {name: moved})

    with transforming():
        slopes = [grad(loss_of(stack, case, net))(end) for end in ends]
    exact = stack.exact(case)
    for other, got in product.items():
        quotient = float64((slopes[0][other] - slopes[1][other]) / (2 * step))
        budget = exact.gradients[other].budget / step
        assert_within_budget(got, Bounded(quotient, budget), f"the product's {other}")


def hessian_product(stack: Stack, case: Case, net: nn.Module, moved: Parameters) -> Parameters:
    """The Hessian of the loss times a direction, reverse over reverse."""
    net.zero_grad()
    slopes = torch.autograd.grad(stack.loss(net, case), list(net.parameters()), create_graph=True)
    slope = dict(zip(SHAPES, slopes, strict=True))
    torch.stack([(slope[name] * part).sum() for name, part in moved.items()]).sum().backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in net.named_parameters()
    }


@pytest.mark.parametrize("by_hand", [False, True])
@given(case=smooth_cases(), name=names(), seed=st.integers(0, 2**32 - 1))
def test_forward_over_reverse_matches_reverse_over_reverse(
    stack: Stack, by_hand: bool, case: Case, name: str, seed: int
) -> None:
    """
    `torch.func.jvp` of the gradient is the Hessian product that backward through backward gives.

    Of `mse_loss`, and of the same written out. Both in float64, within what the difference quotients allow.
    Rejects: a forward mode that lacks a formula.
    """
    needs_float64(stack)
    net, exact, moved = stack.net(case), stack.exact(case), direction(stack, name, seed)
    parameters = detached(net)
    tangents = {other: torch.zeros_like(value) for other, value in parameters.items()} | {name: moved}

    with transforming():
        _, forward = jvp(grad(loss_of(stack, case, net, by_hand)), (parameters,), (tangents,))

    for other, want in hessian_product(stack, case, net, {name: moved}).items():
        budget = exact.gradients[other].budget / STEPS[0]
        assert_within_budget(forward[other], Bounded(float64(want), budget), f"the product's {other}")


@given(case=cases(batches=(1, 2, 3)), name=names(), seed=st.integers(0, 2**32 - 1))
def test_forward_mode_agrees_with_the_oracle(stack: Stack, case: Case, name: str, seed: int) -> None:
    """
    `torch.func.jvp` of the loss along any parameter is the oracle's gradient times the direction, within budget.

    Rejects: forward and reverse mode that differ, at ties and kinks too.
    """
    net, moved = stack.net(case), direction(stack, name, seed)
    parameters = detached(net)
    tangents = {other: torch.zeros_like(value) for other, value in parameters.items()} | {name: moved}

    with transforming():
        _, slope = jvp(loss_of(stack, case, net), (parameters,), (tangents,))

    assert_within_budget(slope, along(stack, stack.exact(case).gradients[name], moved), "the slope")


@given(case=cases(batches=(1, 2, 3)))
def test_per_sample_gradients_sum_to_batch_gradient(stack: Stack, case: Case) -> None:
    """
    `vmap(grad(...))` gives each image's own gradients, and their sum is that of the images' losses.

    Each within its budget. Rejects: samples that are mixed, a batched rule that is another than the plain one.
    """
    net, parameters = stack.net(case), detached(stack.net(case))

    def sample_loss(parameters: Parameters, image: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(functional_call(net, parameters, (image[None],)), target[None])

    images, targets = stack.images(case), stack.targets(case)
    with transforming():
        own = vmap(grad(sample_loss), (None, 0, 0))(parameters, images, targets)

    exact = [stack.solve(case, images[i : i + 1], targets[i : i + 1], oracle.mse) for i in range(case.batch)]
    for name, per_sample in own.items():
        for i, answer in enumerate(exact):
            assert_within_budget(per_sample[i], answer.gradients[name], f"image {i}'s {name}.grad")
        together = oracle.accumulated(exact, stack.precision)[name]
        assert_within_budget(per_sample.sum(dim=0), together, f"the sum of {name}.grad")


@given(case=cases())
def test_functional_call_matches_the_network(stack: Stack, case: Case) -> None:
    """
    `functional_call` with the net's own parameters gives the same logits and gradients, bit for bit, and no `.grad`.

    Rejects: a network that keeps numbers outside of its parameters.
    """
    net, blank = stack.net(case), stack.subject.Net().to(stack.device, stack.dtype)
    parameters = detached(net)

    with transforming():
        slopes = grad(loss_of(stack, case, blank))(parameters)
    logits = functional_call(blank, dict(net.named_parameters()), (stack.images(case),))

    assert_exact(logits, net(stack.images(case)), "logits")
    assert gradients(blank) == {}
    stack.loss(net, case).backward()
    for name, gradient in gradients(net).items():
        assert_exact(slopes[name], gradient, f"{name}.grad")


@given(case=cases(batches=(1, 2, 3)))
def test_autograd_grad_matches_backward(stack: Stack, case: Case) -> None:
    """
    `torch.autograd.grad` returns what `backward` would put into `.grad`, and puts nothing there.

    Rejects: hooks of a network's own that only one of the two meets.
    """
    net = stack.net(case)

    slopes = torch.autograd.grad(stack.loss(net, case), list(net.parameters()))

    assert gradients(net) == {}
    stack.loss(net, case).backward()
    for name, slope in zip(SHAPES, slopes, strict=True):
        assert_exact(slope, gradients(net)[name], f"{name}.grad")
    assert_gradients(net, stack.exact(case).gradients)
