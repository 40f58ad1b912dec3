"""Laws of other derivatives: finite differences, second order, forward mode, per sample, and of functional calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lenet import oracle
from lenet.oracle import SHAPES, Array, Budgeted
from properties.case import Case
from properties.comparison import assert_gradients, assert_same_bits, assert_within_budget
from properties.laws.exact_network import assert_integers, network_of, one_hot_parameters, results, whole_numbers
from properties.laws.networks import all_gradients, backward, new_network, skip_unless_reference
from properties.ledger import current_ledger
from properties.stack import Stack, float64, gradients
from properties.strategies import cases

STEP_SIZES = (2.0**-10, 2.0**-16, 2.0**-22)
"""Steps of the finite differences, largest first: large ones amplify rounding less, small ones flip fewer decisions."""

FACTORS = [name for name in SHAPES if name.endswith("weight")]

UNSUPPORTED = re.compile(
    "don't yet support saved tensor hooks|must override the setup_context staticmethod|memory_format. inside vmap"
)
"""torch.func's errors for checkpoints, Functions without setup_context, and changes to channels_last inside vmap."""

Parameters = dict[str, Tensor]


def smooth_cases() -> SearchStrategy[Case]:
    """Cases with 1 to 3 images that are rarely at a kink or a tie."""
    return cases(("default", "sparse"), ("digits", "normal", "uniform"), (1, 2, 3))


def parameter_names() -> SearchStrategy[str]:
    """Names of single parameters, along each of which the loss is piecewise quadratic."""
    return st.sampled_from(list(SHAPES))


def random_direction(stack: Stack, name: str, seed: int) -> Tensor:
    """Return a random direction for the parameter, scaled by 1/sqrt(fan_in) like its default initialization."""
    fan_in = int(np.prod(SHAPES[f"{name.split('.')[0]}.weight"][1:]))
    return stack.tensor(np.random.RandomState([seed, 9]).standard_normal(SHAPES[name]) / np.sqrt(fan_in))


def direction_of_gradient(stack: Stack, gradient: Budgeted) -> Tensor:
    """Return the direction of the gradient, scaled so that its largest element is 1 or -1 (0 if all are)."""
    largest = np.max(np.abs(gradient.value)) or 1.0
    return stack.tensor(gradient.value / largest)


def loss_function(stack: Stack, case: Case, net: nn.Module, by_hand: bool = False) -> Callable[[Parameters], Tensor]:
    """Return the case's loss as a function of the parameters, by `F.mse_loss` or written out (`by_hand`)."""
    images, targets = stack.images(case), stack.targets(case)

    def loss(parameters: Parameters) -> Tensor:
        logits = functional_call(net, parameters, (images,))
        return (logits - targets).square().mean() if by_hand else F.mse_loss(logits, targets)

    return loss


def detached_parameters(net: nn.Module) -> Parameters:
    """Return the network's parameters by name, detached from the graph."""
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def points_on_both_sides(stack: Stack, case: Case, name: str, tangent: Tensor) -> tuple[list[Parameters], float]:
    """
    Return the parameters one step along `tangent` in either direction, and the size of the step.

    The step is the largest of STEP_SIZES for which all ReLU and pooling decisions are the same at both points. They are
    then the same at all points between, because each decision depends on a linear function of the parameter that moves.
    If every step flips a decision, the example is counted as unjudged in the ledger and the result is ([], 0.0).
    """
    parameters = detached_parameters(stack.net(case))
    for step in STEP_SIZES:
        points = [parameters | {name: parameters[name] + sign * step * tangent} for sign in (1, -1)]
        first, second = (oracle.decisions(_arrays(point), float64(stack.images(case))) for point in points)
        if all(np.array_equal(one, other) for one, other in zip(first, second, strict=True)):
            current_ledger().choices["step"] = step
            return points, step
    current_ledger().has_unjudged = True
    return [], 0.0


def _arrays(parameters: Parameters) -> dict[str, Array]:
    return {name: float64(value) for name, value in parameters.items()}


@contextmanager
def skip_if_unsupported(stack: Stack) -> Iterator[None]:
    """Skip the law if the block raises because torch.func does not support a part of the subject's network."""
    try:
        yield
    except RuntimeError as error:
        if not UNSUPPORTED.search(str(error)):
            raise
        skip_unless_reference(stack, f"torch.func does not support this network: {error}")


def skip_unless_float64(stack: Stack) -> None:
    """Skip the law except in float64, the only dtype that is precise enough for finite differences."""
    if stack.dtype is not torch.float64:
        pytest.skip("finite differences need the precision of float64")


@given(case=smooth_cases(), name=parameter_names(), seed=st.integers(0, 2**32 - 1))
def test_gradients_match_finite_differences(stack: Stack, case: Case, name: str, seed: int) -> None:
    """
    In float64, gradients match central differences of the loss along a direction of any one parameter.

    (f(p + h d) - f(p - h d)) / 2h equals the gradient times d. The loss is quadratic in one parameter as long as no
    decision flips, so the only error of the central difference is the rounding of the two losses. The oracle's
    derivative is not used, only its budget. Rejects: any gradient that is not the derivative of its own forward pass.
    """
    skip_unless_float64(stack)
    net, exact = stack.net(case), stack.exact(case)
    points, step = points_on_both_sides(stack, case, name, random_direction(stack, name, seed))
    gradient = backward(stack, net, case)[name]

    if points:
        tangent = (points[0][name] - points[1][name]) / (2 * step)
        losses = [loss_function(stack, case, net)(point) for point in points]
        quotient = (losses[0] - losses[1]) / (2 * step)
        derivative = float64((gradient * tangent).sum())
        budget = exact.loss.budget / step + directional_derivative(stack, exact.gradients[name], tangent).budget
        assert_within_budget(quotient, Budgeted(derivative, budget), "the finite difference")


def directional_derivative(stack: Stack, gradient: Budgeted, tangent: Tensor, at_random: bool = True) -> Budgeted:
    """
    Return the directional derivative: the gradient times the tangent, summed over all elements.

    If the tangent is drawn at random, it is independent of the gradient's errors. So their products with it have random
    signs and add up like the root of the sum of squares, even if all errors have one cause. Otherwise, their magnitudes
    may add up. The budget is infinite where the sum of all products' magnitudes may be out of range.
    """
    weights = float64(tangent)
    largest_budget = np.sum(gradient.budget * np.abs(weights))
    budget = np.sqrt(np.sum((gradient.budget * weights) ** 2)) if at_random else largest_budget
    largest_sum = oracle.budgeted(np.sum(np.abs(gradient.value * weights)), largest_budget, stack.precision)
    return Budgeted(np.sum(gradient.value * weights), np.where(np.isinf(largest_sum.budget), np.inf, budget))


@given(case=smooth_cases(), name=parameter_names(), seed=st.integers(0, 2**32 - 1))
def test_hessian_vector_products_match_finite_differences(stack: Stack, case: Case, name: str, seed: int) -> None:
    """
    In float64, Hessian-vector products by double backward match central differences of the gradients.

    The direction lies in any one parameter; the products are compared for all ten. Rejects: a backward pass that cannot
    be differentiated, or whose derivative is wrong.
    """
    skip_unless_float64(stack)
    net = stack.net(case)
    points, step = points_on_both_sides(stack, case, name, random_direction(stack, name, seed))
    if not points:
        return
    tangent = (points[0][name] - points[1][name]) / (2 * step)

    product = hessian_vector_product(stack, case, net, {name: tangent})

    with skip_if_unsupported(stack):
        gradients_at = [grad(loss_function(stack, case, net))(point) for point in points]
    inputs = float64(stack.images(case)), float64(stack.targets(case))
    exact = [oracle.solve(_arrays(point), *inputs, stack.precision, seed=case.seed).gradients for point in points]
    for other, got in product.items():
        quotient = float64((gradients_at[0][other] - gradients_at[1][other]) / (2 * step))
        budget = (exact[0][other].budget + exact[1][other].budget) / (2 * step)
        assert_within_budget(got, Budgeted(quotient, budget), f"the Hessian-vector product for {other}")


def hessian_vector_product(stack: Stack, case: Case, net: nn.Module, tangent: Parameters) -> Parameters:
    """Return the product of the loss's Hessian and the tangent, by parameter, by double backward."""
    net.zero_grad()
    values = torch.autograd.grad(stack.loss(net, case), list(net.parameters()), create_graph=True)
    by_name = dict(zip(SHAPES, values, strict=True))
    torch.stack([(by_name[name] * part).sum() for name, part in tangent.items()]).sum().backward()
    return all_gradients(net)


@pytest.mark.parametrize("by_hand", [False, True])
@given(case=smooth_cases(), name=parameter_names(), seed=st.integers(0, 2**32 - 1))
def test_forward_over_reverse_matches_reverse_over_reverse(
    stack: Stack, by_hand: bool, case: Case, name: str, seed: int
) -> None:
    """
    `torch.func.jvp` of the gradient gives the same Hessian-vector product as double backward.

    For `mse_loss` and for the same loss written out, in float64, within the tolerance that the finite differences have.
    Rejects: a missing or wrong formula for forward mode.
    """
    skip_unless_float64(stack)
    net, exact, tangent = stack.net(case), stack.exact(case), random_direction(stack, name, seed)
    parameters = detached_parameters(net)
    tangents = {other: torch.zeros_like(value) for other, value in parameters.items()} | {name: tangent}

    with skip_if_unsupported(stack):
        _, forward = jvp(grad(loss_function(stack, case, net, by_hand)), (parameters,), (tangents,))

    for other, expected in hessian_vector_product(stack, case, net, {name: tangent}).items():
        budget = exact.gradients[other].budget / STEP_SIZES[0]
        budgeted = Budgeted(float64(expected), budget)
        assert_within_budget(forward[other], budgeted, f"the Hessian-vector product for {other}")


@example(case=Case(), name="fc3.bias", seed=3)  # a derivative that is large compared with its budget
@example(case=Case(), name="fc1.weight", seed=None)
@given(case=cases(batches=(1, 2, 3)), name=parameter_names(), seed=st.none() | st.integers(0, 2**32 - 1))
def test_forward_mode_agrees_with_the_oracle(stack: Stack, case: Case, name: str, seed: int | None) -> None:
    """
    `torch.func.jvp` of the loss equals the oracle's gradient times the tangent, within the rounding budget.

    Along a direction of any one parameter: a random one, or that of the gradient, in which the derivative is largest.
    Rejects: forward and reverse mode that differ, also at ties and kinks; an operation without a forward derivative.
    """
    gradient, net = stack.exact(case).gradients[name], stack.net(case)
    tangent = direction_of_gradient(stack, gradient) if seed is None else random_direction(stack, name, seed)
    parameters = detached_parameters(net)
    tangents = {other: torch.zeros_like(value) for other, value in parameters.items()} | {name: tangent}

    with skip_if_unsupported(stack):
        _, derivative = jvp(loss_function(stack, case, net), (parameters,), (tangents,))

    exact = directional_derivative(stack, gradient, tangent, at_random=seed is not None)
    assert_within_budget(derivative, exact, "the directional derivative")


@given(case=cases(batches=(1, 2, 3)))
def test_per_sample_gradients_sum_to_batch_gradient(stack: Stack, case: Case) -> None:
    """
    `vmap(grad(...))` gives each image's own gradients, which sum to the gradient of the summed losses.

    All are within the rounding budget. Rejects: samples that are mixed, a batching rule that differs from the
    operation.
    """
    net, parameters = stack.net(case), detached_parameters(stack.net(case))

    def sample_loss(parameters: Parameters, image: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(functional_call(net, parameters, (image[None],)), target[None])

    images, targets = stack.images(case), stack.targets(case)
    with skip_if_unsupported(stack):
        gradients_by_name = vmap(grad(sample_loss), (None, 0, 0))(parameters, images, targets)

    exact = [stack.solve(case, images[i : i + 1], targets[i : i + 1], oracle.mse) for i in range(case.batch)]
    for name, per_sample in gradients_by_name.items():
        for i, answer in enumerate(exact):
            assert_within_budget(per_sample[i], answer.gradients[name], f"{name}.grad of image {i}")
        exact_sum = oracle.accumulated_gradients(exact, stack.precision)[name]
        assert_within_budget(per_sample.sum(dim=0), exact_sum, f"the sum of {name}.grad")


@given(case=cases())
def test_functional_call_matches_the_network(stack: Stack, case: Case) -> None:
    """
    `functional_call` with the network's parameters gives its logits and gradients bit for bit.

    It sets no `.grad`. Rejects: a network that keeps values outside its parameters.
    """
    net, other = stack.net(case), new_network(stack)
    parameters = detached_parameters(net)

    with skip_if_unsupported(stack):
        functional_gradients = grad(loss_function(stack, case, other))(parameters)
    logits = functional_call(other, dict(net.named_parameters()), (stack.images(case),))

    assert_same_bits(logits, net(stack.images(case)), "logits")
    assert not gradients(other), f"functional_call has set `.grad` of {', '.join(gradients(other))}"
    for name, gradient in backward(stack, net, case).items():
        assert_same_bits(functional_gradients[name], gradient, f"{name}.grad")


@given(case=cases(batches=(1, 2, 3)))
def test_autograd_grad_matches_backward(stack: Stack, case: Case) -> None:
    """
    `torch.autograd.grad` returns the gradients that `backward` writes into `.grad`, and leaves `.grad` unchanged.

    Rejects: hooks of the network that run in only one of the two calls.
    """
    net = stack.net(case)

    returned = torch.autograd.grad(stack.loss(net, case), list(net.parameters()))

    assert not gradients(net), f"torch.autograd.grad has set `.grad` of {', '.join(gradients(net))}"
    written = backward(stack, net, case)
    for (name, _), gradient in zip(net.named_parameters(), returned, strict=True):
        assert_same_bits(gradient, written[name], f"the gradient of {name}")
    assert_gradients(net, stack.exact(case).gradients)


@example(factor="images", seed=0)
@given(factor=st.sampled_from(["images", *FACTORS]), seed=st.integers(0, 2**32 - 1))
def test_second_derivatives_are_exact(stack: Stack, factor: str, seed: int) -> None:
    """
    Double backward gives exact second derivatives in every dtype, by any layer's weight or by the images.

    Without biases, sum(upstream * logits) is a product of its five weights and the images (N,1,32,32), as long as no
    decision flips. So the derivative of one factor's gradient, times that factor, is the gradient of each other factor,
    and 0 for its own (Euler's theorem on homogeneous functions). A bias has such a derivative if it precedes the
    factor, and otherwise 0. The numbers are integers: nothing is rounded. Rejects: a backward pass that is detached or
    cannot be differentiated in some dtype, or whose derivative is wrong.
    """
    parameters = one_hot_parameters(seed)
    images, upstream = whole_numbers(stack, seed, batch=2, share=0.5)
    exact, net, pixels = results(parameters, images, upstream), network_of(stack, parameters), stack.tensor(images)
    leaves = dict(net.named_parameters()) | {"images": pixels.requires_grad_()}

    logits = net(pixels)
    (first,) = torch.autograd.grad(logits, leaves[factor], stack.tensor(upstream), create_graph=True)
    assert first.requires_grad, f"the gradient of {factor} has no graph: it cannot be differentiated again"
    second = torch.autograd.grad(first, leaves.values(), leaves[factor].detach(), materialize_grads=True)

    names = ["images", *SHAPES]
    for name, got in zip(leaves, second, strict=True):
        constant = name == factor or (name.endswith("bias") and names.index(name) > names.index(factor))
        value = exact.images if name == "images" else exact.gradients[name]
        assert_integers(stack, got, 0 * value if constant else value, f"{factor}'s second derivative by {name}")
