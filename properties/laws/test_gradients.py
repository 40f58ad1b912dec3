"""Laws of the backward pass: the values of the gradients and the graph that computes them."""

from __future__ import annotations

import traceback
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils import checkpoint

import lenet
from lenet import oracle
from lenet.oracle import SHAPES, Budgeted
from properties.case import LAYOUTS, Case
from properties.comparison import assert_exact, assert_gradients, assert_same_bits, assert_within_budget
from properties.laws.exact_network import (
    assert_integers,
    assert_whole_results,
    network_of,
    one_hot_parameters,
    results,
    whole_numbers,
)
from properties.laws.losses import UNEQUAL_LOGITS, cross_entropy_of, labelled_cases
from properties.laws.networks import (
    BATCH_OF_17,
    BATCH_OF_33,
    STALE_GRAPH,
    all_gradients,
    backward,
    cross_entropy_targets,
    gradient_of,
    ordinary_cases,
    skip_unless_reference,
    source_blocks,
    with_exact_scaling,
)
from properties.stack import Stack, gradients
from properties.strategies import LossOptions, cases, loss_options


@pytest.mark.engine
@example(case=Case())
@example(case=BATCH_OF_17)
@example(case=BATCH_OF_33)
@given(case=cases())
def test_gradients_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    After `loss.backward()`, every parameter's gradient is within the rounding budget of its exact value.

    Rejects: a gradient that is missing, scaled, transposed or of a lower precision; a graph that is detached in the
    middle.
    """
    net = stack.net(case)

    stack.loss(net, case).backward()

    assert_gradients(net, stack.exact(case).gradients)


@pytest.mark.engine
@pytest.mark.parametrize("targets", ["indices", "weights"])
@example(case=Case())
@example(case=BATCH_OF_17)
@example(case=Case(weights="integers", images="huge", batch=2, seed=10865))  # two logits tie in bfloat16
@given(case=cases())
def test_cross_entropy_gradients_agree_with_the_oracle(stack: Stack, targets: str, case: Case) -> None:
    """
    The gradients of the cross-entropy are within the rounding budget of their exact values.

    With respect to the logits the exact gradient is (s * softmax - targets) / N, where s is the sum of an image's
    targets; class indices count as one-hot targets. Rejects: an additional softmax before the loss, a gradient that is
    not divided by N.
    """
    case, loss_targets = cross_entropy_targets(stack, case, targets)
    net = stack.net(case)

    F.cross_entropy(net(stack.images(case)), loss_targets).backward()

    assert_gradients(net, stack.exact(case, loss=oracle.cross_entropy).gradients)


@example(case=UNEQUAL_LOGITS, options=LossOptions(weighted=True))
@example(case=UNEQUAL_LOGITS, options=LossOptions("weights", "none", weighted=True, label_smoothing=0.1))
@given(case=labelled_cases(), options=loss_options())
def test_cross_entropy_options_have_the_gradients_of_their_formulas(
    stack: Stack, case: Case, options: LossOptions
) -> None:
    """
    With class weights, label smoothing, ignored images and each reduction, every gradient is within its budget.

    What is not reduced is summed before the backward pass. With respect to the logits the exact gradient is that of the
    formula in `test_cross_entropy_options_follow_their_formulas`; that of an ignored image is 0. Rejects: an ignored
    image that has a gradient, a gradient of the mean that is divided by N, a gradient without the weights.
    """
    net, loss = stack.net(case), cross_entropy_of(stack, case, options)

    loss(net(stack.images(case))).sum().backward()

    exact = stack.solve(case, stack.images(case), torch.from_numpy(loss.weights), loss.exact)
    assert_gradients(net, exact.gradients)


@pytest.mark.engine
@example(case=Case())
@example(case=BATCH_OF_17)
@example(case=BATCH_OF_33)
@given(case=cases())
def test_input_gradients_agree_with_the_oracle(stack: Stack, case: Case) -> None:
    """
    The gradient of the loss with respect to every pixel is within the rounding budget of its exact value.

    This holds in every memory layout of the images. Rejects: a convolution whose input gradient does not match its
    weight gradient.
    """
    images, exact = stack.images(case).requires_grad_(), stack.exact(case, with_input_gradient=True).input_gradient
    assert exact is not None, "the oracle computed no input gradient"

    F.mse_loss(stack.net(case)(images), stack.targets(case)).backward()

    assert_within_budget(gradient_of(images), exact, "images.grad")


class MeanSquaredError(torch.autograd.Function):
    """The tutorial's loss as a custom `autograd.Function` with its own backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return ((logits - targets) ** 2).mean()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        return upstream[0] * 2 * (logits - targets) / max(1, logits.numel()), None


@example(case=Case())
@example(case=BATCH_OF_17)
@given(case=cases())
def test_custom_autograd_function_joins_the_graph(stack: Stack, case: Case) -> None:
    """
    A custom `autograd.Function` becomes a node of the graph, and its backward leads to the oracle's gradients.

    The loss is halved before backward, so that the Function receives 1/2 as its upstream gradient instead of the 1 that
    backward starts with. Rejects: a Function whose backward is not called, or receives another upstream gradient.
    """
    net = stack.net(case)

    loss = MeanSquaredError.apply(net(stack.images(case)), stack.targets(case))
    (loss / 2).backward()

    node = type(loss.grad_fn).__name__
    assert node == "MeanSquaredErrorBackward", f"the loss's grad_fn is a {node}, expected MeanSquaredErrorBackward"
    half = oracle.scaled(oracle.mse, 0.5)
    assert_gradients(net, stack.solve(case, stack.images(case), stack.targets(case), half).gradients)


@given(case=cases())
def test_graph_reaches_exactly_the_parameters(stack: Stack, case: Case) -> None:
    """
    From the loss's `grad_fn`, `next_functions` lead to each of the ten parameters and to no other leaf.

    A leaf is a tensor that requires a gradient and that no operation has computed, such as a parameter. The graph of
    the reference network has exactly one edge to each parameter; another network can have several edges to a parameter
    that it uses in several places. Rejects: an unused parameter, another tensor in place of a parameter, an additional
    leaf.
    """
    net = stack.net(case)

    loss = stack.loss(net, case)

    edges = _edges_to_leaves(loss.grad_fn)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    unused = [name for leaf, name in names.items() if leaf not in edges]
    assert not unused, f"the graph does not lead to {', '.join(unused)}"
    others = len(edges.keys() - names.keys())
    assert not others, f"the graph leads to {others} leaves that are not parameters of the network"
    if stack.subject.Net is lenet.Net:
        counts = {name: edges[leaf] for leaf, name in names.items()}
        assert set(counts.values()) == {1}, f"the numbers of edges to the parameters are {counts}, expected 1 each"


def _edges_to_leaves(root: Any) -> Counter[int]:
    """Return how many edges of the graph lead to each leaf, by the leaf's id."""
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
@example(first=Case(batch=3), second=Case(batch=3, seed=1))
@given(first=cases(), second=cases())
def test_gradient_of_sum_is_sum_of_gradients(stack: Stack, first: Case, second: Case) -> None:
    """
    A backward pass from the sum of two losses gives the sum of their gradients bit for bit.

    If the network uses a parameter in several places, its gradient is within the rounding budget, because the graph
    determines the order of its terms. Rejects: a backward pass that uses values of the latest forward pass instead of
    its own, a parameter that gets the gradient of only one of the losses.
    """
    net = stack.net(first)
    separate = []
    for case in (first, second):
        separate.append(backward(stack, net, case))
        net.zero_grad()

    loss = stack.loss(net, first) + stack.loss(net, second)
    edges = _edges_to_leaves(loss.grad_fn)
    loss.backward()

    used_once = {name for name, parameter in net.named_parameters() if edges[id(parameter)] == 2}  # once per loss
    exact = {} if len(used_once) == len(SHAPES) else sum_of_gradients(stack, first, second)
    for name, gradient in all_gradients(net).items():
        if name in used_once:
            assert_same_bits(gradient, separate[0][name] + separate[1][name], f"{name}.grad")
        else:
            assert_within_budget(gradient, exact[name], f"{name}.grad")


def sum_of_gradients(stack: Stack, first: Case, second: Case) -> dict[str, Budgeted]:
    """Return the exact sum of the gradients of both cases' losses, computed by the first case's network."""
    other = stack.solve(first, stack.images(second), stack.targets(second), oracle.mse)
    return oracle.accumulated_gradients([stack.exact(first), other], stack.precision)


@pytest.mark.engine
@given(case=ordinary_cases(), name=st.sampled_from(list(SHAPES)))
def test_backward_after_parameter_change_raises_or_uses_saved_values(stack: Stack, case: Case, name: str) -> None:
    """
    Backward after an in-place parameter change raises, or gives the gradient at the values before the change.

    If it raises, the gradients that it has already computed are also those before the change. A network that calls
    `torch.utils.checkpoint` recomputes layers with the new values. PyTorch documents that its gradients may be wrong if
    the recomputation differs from the forward pass; where they are, the law is skipped. Rejects: an `autograd.Function`
    whose backward pass reads weights that it has not saved by `save_for_backward`.
    """
    net = stack.net(case)
    loss = stack.loss(net, case)
    loss.backward(retain_graph=True)
    before = all_gradients(net)
    net.zero_grad()

    with torch.no_grad():
        net.get_parameter(name).mul_(-0.5).add_(1)
    try:
        loss.backward()
        got = all_gradients(net)
    except RuntimeError as error:
        if not STALE_GRAPH.search(str(error)):
            raise
        got = gradients(net)

    if any(not torch.equal(got[other], before[other]) for other in got) and recomputes_layers(net, stack.images(case)):
        skip_unless_reference(stack, "this network recomputes layers by torch.utils.checkpoint")
    for other, gradient in got.items():
        assert_exact(gradient, before[other], f"{other}.grad")


def recomputes_layers(net: nn.Module, images: Tensor) -> bool:
    """
    Whether the forward pass calls `torch.utils.checkpoint.checkpoint` with `use_reentrant=False`.

    Its hooks on saved tensors raise an error within `disable_saved_tensors_hooks`.
    """
    try:
        with disable_saved_tensors_hooks("the forward pass has hooks on saved tensors"):
            net(images)
    except RuntimeError as error:
        return any(frame.filename == checkpoint.__file__ for frame in traceback.extract_tb(error.__traceback__))
    return False


@pytest.mark.engine
@given(case=ordinary_cases(), exponent=st.integers(-4, 4))
def test_gradient_of_scaled_loss_is_scaled(stack: Stack, case: Case, exponent: int) -> None:
    """
    Backward of 2**k times the loss gives 2**k times its gradients bit for bit.

    A GradScaler relies on this. Rejects: clipping, normalization, any other nonlinear operation in the backward pass.
    """
    case = with_exact_scaling(stack, case)
    net = stack.net(case)
    (net(stack.images(case)) * stack.targets(case)).sum().backward()
    unscaled = all_gradients(net)
    net.zero_grad()

    ((net(stack.images(case)) * stack.targets(case)).sum() * 2.0**exponent).backward()

    for name, gradient in all_gradients(net).items():
        assert_same_bits(gradient, unscaled[name] * 2.0**exponent, f"{name}.grad")


@pytest.mark.engine
@given(seed=st.integers(0, 2**32 - 1), logit=st.integers(0, 9), layout=st.sampled_from(LAYOUTS))
def test_pooling_tie_sends_gradient_to_first_element(stack: Stack, seed: int, logit: int, layout: str) -> None:
    """
    If all elements of a pooling window are equal, the gradient goes to the first in row-major order.

    This is what `max_pool2d` does in every memory layout. Rejects: a gradient that is shared among equal elements, or
    goes to the last.
    """
    case = Case(weights="one-hot", images="zero", seed=seed, layout=layout)
    images = (stack.images(case) + 1).requires_grad_()
    row, column = source_blocks(case)[logit]

    stack.net(case)(images)[0, logit].backward()

    expected = torch.zeros_like(images)
    expected[0, 0, row, column] = 1
    assert_exact(gradient_of(images), expected, "images.grad")


@pytest.mark.engine
@given(case=cases(weights=("constant",)), layer=st.sampled_from(["fc2", "fc1", "conv2", "conv1"]))
def test_relu_gradient_at_zero_is_zero(stack: Stack, case: Case, layer: str) -> None:
    """
    ReLU's derivative at exactly 0 is 0: a layer whose outputs are all 0 passes no gradient back.

    0 is the subgradient of minimum norm; see "Gradients for non-differentiable functions" in
    https://docs.pytorch.org/docs/stable/notes/autograd.html. The units of the layers after it are positive and pass a
    gradient back to it. Rejects: a derivative of 1 or 1/2 at zero in any of the four ReLUs.
    """
    net = stack.net(case)
    with torch.no_grad():
        for name in ("weight", "bias"):
            net.get_parameter(f"{layer}.{name}").zero_()

    net(stack.images(case)).sum().backward()

    blocked = list(SHAPES)[: list(SHAPES).index(f"{layer}.bias") + 1]
    for name, gradient in all_gradients(net).items():
        if name in blocked:
            assert_exact(gradient, torch.zeros_like(gradient), f"{name}.grad")
        elif name.endswith("bias"):
            assert (gradient > 0).all() or not case.batch, (
                f"{name}.grad has the element {float(gradient.min())}, expected > 0"
            )


@given(case=ordinary_cases())
def test_checkpointing_changes_no_bit(stack: Stack, case: Case) -> None:
    """
    A network called by `torch.utils.checkpoint` has the same logits and gradients, bit for bit.

    With `use_reentrant=False`: the backward pass computes the forward pass again instead of keeping its results.
    https://docs.pytorch.org/docs/stable/checkpoint.html Rejects: a recomputation from other images, images that get no
    gradient.
    """
    net, plain = stack.net(case), stack.net(case)
    images, plain_images = stack.images(case).requires_grad_(), stack.images(case).requires_grad_()
    expected = plain(plain_images)
    F.mse_loss(expected, stack.targets(case)).backward()

    logits = torch.utils.checkpoint.checkpoint(net, images, use_reentrant=False)
    F.mse_loss(logits, stack.targets(case)).backward()

    assert_same_bits(logits, expected, "logits")
    assert_same_bits(gradient_of(images), gradient_of(plain_images), "images.grad")
    without = all_gradients(plain)
    for name, gradient in all_gradients(net).items():
        assert_same_bits(gradient, without[name], f"{name}.grad")


@given(case=ordinary_cases(), seed=st.integers(0, 2**32 - 1))
def test_checkpoint_recomputes_with_the_same_random_numbers(stack: Stack, case: Case, seed: int) -> None:
    """
    A checkpointed function that drops pixels at random drops the same ones when the backward pass computes it again.

    So it has the gradients that it has without a checkpoint, although random numbers are drawn between the passes, and
    the random state after the backward pass is that from before it. This is the default, `preserve_rng_state=True`.
    Rejects: other random numbers in the recomputation, a random state that it leaves behind.
    """
    net, results = stack.net(case), []

    def dropped(images: Tensor) -> Tensor:
        logits: Tensor = net(F.dropout(images, 0.5))
        return logits

    with torch.random.fork_rng([stack.device] if stack.device.type == "cuda" else []):
        for checkpointed in (False, True):
            torch.manual_seed(seed)
            images = stack.images(case).requires_grad_()
            run = partial(torch.utils.checkpoint.checkpoint, dropped, use_reentrant=False) if checkpointed else dropped
            loss = run(images).square().sum()
            torch.rand(100, device=stack.device)
            before = random_state(stack)
            loss.backward()
            assert torch.equal(random_state(stack), before), "the backward pass has changed the random state"
            results.append({"images.grad": gradient_of(images)} | all_gradients(net))
            net.zero_grad()

    for name, gradient in results[1].items():
        assert_same_bits(gradient, results[0][name], name)


def random_state(stack: Stack) -> Tensor:
    """Return the random state of the stack's device."""
    return torch.cuda.get_rng_state(stack.device) if stack.device.type == "cuda" else torch.get_rng_state()


@example(frozen=set(), images_too=True, seed=0)
@example(frozen={"conv1.weight", "conv1.bias"}, images_too=True, seed=0)
@example(frozen=set(SHAPES), images_too=True, seed=0)
@example(frozen=set(SHAPES), images_too=False, seed=0)
@given(frozen=st.sets(st.sampled_from(list(SHAPES))), images_too=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_frozen_parameters_change_no_other_gradient(
    stack: Stack, frozen: set[str], images_too: bool, seed: int
) -> None:
    """
    Frozen parameters get no gradient; the gradients of all others and of the images stay exact.

    Any of the ten parameters are frozen by `requires_grad_(False)`, and the images require a gradient or not. The
    weights are one-hot, and pixels and upstream gradients positive integers. After `requires_grad_(True)`, all
    gradients are exact. Rejects: an image gradient that stops when conv1 is frozen, a gradient that is computed only
    together with another.
    """
    parameters = one_hot_parameters(seed)
    images, upstream = whole_numbers(stack, seed, batch=2, share=0.5)
    exact, net, pixels = results(parameters, images, upstream), network_of(stack, parameters), stack.tensor(images)
    pixels.requires_grad_(images_too)
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)

    logits = net(pixels)
    if frozen == SHAPES.keys() and not images_too:
        assert not logits.requires_grad, "the logits require a gradient, but neither the images nor any parameter does"
    else:
        logits.backward(stack.tensor(upstream))

    got = gradients(net)
    assert got.keys() == SHAPES.keys() - frozen, f"{', '.join(got) or 'nothing'} has a gradient; frozen: {frozen}"
    for name, gradient in got.items():
        assert_integers(stack, gradient, exact.gradients[name], f"{name}.grad")
    if images_too:
        assert_integers(stack, gradient_of(pixels), exact.images, "images.grad")
    net.requires_grad_()
    assert_whole_results(stack, net, parameters, images, upstream)
