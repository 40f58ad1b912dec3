"""Laws that hold bit for bit: integer arithmetic, one-hot weights, powers of two and counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet import oracle
from properties.case import Case
from properties.comparison import assert_exact, assert_same_bits
from properties.laws.networks import (
    INTEGER_WEIGHTS,
    all_gradients,
    gradient_of,
    ordinary_cases,
    source_blocks,
    with_exact_scaling,
    with_exact_sums,
)
from properties.stack import Stack, float64
from properties.strategies import cases


def integer_cases() -> st.SearchStrategy[Case]:
    """Cases whose weights, images and targets are integers."""
    drawn = cases(weights=INTEGER_WEIGHTS, images=("integers", "one-hot"), batches=(1, 2, 0, 3))
    return drawn.map(lambda case: replace(case, targets="one-hot" if case.targets == "one-hot" else "integers"))


@pytest.mark.engine
@given(case=integer_cases())
def test_integer_logits_and_gradients_are_exact(stack: Stack, case: Case) -> None:
    """
    When all partial sums are small integers, logits and gradients equal the oracle's bit for bit.

    The gradients are those of sum(targets * logits). Both are exact in every dtype, for every order of summation and
    every blocking. Rejects: an algorithm that transforms its operands (Winograd, FFT), a lower precision, one misplaced
    element.
    """
    case = with_exact_sums(stack, case)
    exact = stack.exact(case, loss=oracle.dot, with_input_gradient=True)
    net, images = stack.net(case), stack.images(case).requires_grad_()

    logits = net(images)
    (logits * stack.targets(case)).sum().backward()

    assert_exact(logits, stack.tensor(exact.logits.value), "logits")
    assert exact.input_gradient is not None, "the oracle computed no input gradient"
    assert_exact(gradient_of(images), stack.tensor(exact.input_gradient.value), "images.grad")
    for name, gradient in all_gradients(net).items():
        assert_exact(gradient, stack.tensor(exact.gradients[name].value), f"{name}.grad")


@example(case=Case(weights="integers", images="integers", targets="integers", batch=3, seed=2), lr=1.0)  # above 256
@given(case=integer_cases(), lr=st.sampled_from([1.0, 0.5]))
def test_integer_updates_are_exact(stack: Stack, case: Case, lr: float) -> None:
    """
    When parameters and gradients are small integers, `sgd_update` updates all parameters exactly.

    Rejects: an update that rounds unnecessarily or omits an element.
    """
    case = with_exact_sums(stack, case)
    exact = stack.exact(case, loss=oracle.dot).gradients
    net = stack.net(case)
    before = {name: float64(parameter).copy() for name, parameter in net.named_parameters()}
    (net(stack.images(case)) * stack.targets(case)).sum().backward()

    stack.subject.sgd_update(net.parameters(), lr)

    for name, parameter in net.named_parameters():
        assert_exact(parameter, stack.tensor(before[name] - lr * exact[name].value), name)


def images_without_ties(seed: int, batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """
    Return images (N,1,32,32) of integers from 0 to 255 in which no two pixels of any 4x4 block are equal.

    The pixels modulo 16 are a random 4x4 arrangement of 0 to 15, tiled over each image.
    """
    random = np.random.RandomState([seed, 7])
    residues = np.tile(random.permutation(16).reshape(4, 4), (8, 8))
    return residues + 16.0 * random.randint(0, 16, (batch, 1, 32, 32))


@pytest.mark.engine
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 3))
def test_one_hot_weights_route_pixels_to_logits(stack: Stack, seed: int, batch: int) -> None:
    """
    With one-hot weights, each logit is the maximum of a known block of 4x4 pixels.

    The positions of the ones determine the block without any arithmetic. Rejects: channels, rows, columns, kernels or
    flattened blocks in another order, a flipped kernel, padding, a shift by one.
    """
    case, images = Case(weights="one-hot", seed=seed), images_without_ties(seed, batch)
    expected = [[image[0, r : r + 4, c : c + 4].max() for r, c in source_blocks(case)] for image in images]

    logits = stack.net(case)(stack.tensor(images))

    assert_exact(logits, stack.tensor(np.array(expected)), "logits")


@pytest.mark.engine
@given(seed=st.integers(0, 2**32 - 1), logit=st.integers(0, 9))
def test_one_hot_weights_route_gradients_to_pixels(stack: Stack, seed: int, logit: int) -> None:
    """
    With one-hot weights, a logit's input gradient is 1 at the pixel that the logit equals and 0 elsewhere.

    Rejects: a backward pass that sends the gradient to a neighboring pixel, to another channel, or to all of a window.
    """
    case, image = Case(weights="one-hot", seed=seed), images_without_ties(seed, 1)
    row, column = source_blocks(case)[logit]
    block = image[0, 0, row : row + 4, column : column + 4]
    down, right = np.unravel_index(block.argmax(), block.shape)
    images = stack.tensor(image).requires_grad_()

    stack.net(case)(images)[0, logit].backward()

    expected = torch.zeros_like(images)
    expected[0, 0, row + int(down), column + int(right)] = 1
    assert_exact(gradient_of(images), expected, "images.grad")


@torch.no_grad()
def scale(net: nn.Module, name: str, exponent: int) -> None:
    """Multiply a parameter by 2**exponent in place."""
    net.get_parameter(name).mul_(2.0**exponent)


@pytest.mark.engine
@given(case=ordinary_cases(), exponents=st.tuples(*[st.integers(-16, 16)] * 4))
def test_power_of_two_scaling_between_layers_preserves_logits(
    stack: Stack, case: Case, exponents: tuple[int, int, int, int]
) -> None:
    """
    Scaling a layer's output by 2**k and the next layer's weights by 2**-k leaves the logits unchanged.

    Bit for bit, with a separate k for each layer, because ReLU and max-pooling are homogeneous. In float16 each k is
    divided by four, so that all values stay in range. Rejects: saturation, ReLU6, smooth activations, a misplaced
    offset.
    """
    case = with_exact_scaling(stack, case)
    net = stack.net(case)
    before = net(stack.images(case))
    divisor = 4 if stack.dtype is torch.float16 else 1

    input_exponent = 0
    for layer, exponent in zip(("conv1", "conv2", "fc1", "fc2", "fc3"), (*exponents, 0), strict=True):
        output_exponent = exponent // divisor
        scale(net, f"{layer}.weight", output_exponent - input_exponent)
        scale(net, f"{layer}.bias", output_exponent)
        input_exponent = output_exponent

    assert_same_bits(net(stack.images(case)), before, "logits")


@pytest.mark.engine
@given(case=ordinary_cases(), exponent=st.integers(-4, 4))
def test_without_biases_logits_scale_with_images(stack: Stack, case: Case, exponent: int) -> None:
    """
    If all biases are zero, scaling the images by 2**k scales the logits by 2**k, bit for bit.

    Rejects: normalization of the input, an activation that is not homogeneous, a hidden bias.
    """
    case = with_exact_scaling(stack, case)
    net, images = stack.net(case), stack.images(case)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()

    logits = net(images)
    scaled = net(images * 2.0**exponent)

    assert_same_bits(scaled, logits * 2.0**exponent, "logits")


@pytest.mark.engine
@pytest.mark.parametrize("batch", [600, 4096])
def test_large_batch_counts_are_exact(stack: Stack, batch: int) -> None:
    """
    With one-hot weights and pixels that are all 1, every gradient of the summed logits is an exact count.

    The counts are multiples of the batch size, 600 or 4,096. They are judged where the dtype holds them exactly.
    Rejects: an accumulator that is too narrow and saturates at 256 or 2,048, a batch that is truncated or counted
    twice.
    """
    case = Case(weights="one-hot")
    one_image = (case.parameters(stack.precision), np.ones((1, 1, 32, 32)), np.ones((1, 10)), stack.precision)
    exact = oracle.solve(*one_image, loss=oracle.dot).gradients
    net = stack.net(case)

    net(ones(stack, batch)).sum().backward()

    for name, gradient in all_gradients(net).items():
        counts = batch * exact[name].value
        inexact = np.abs(float64(stack.tensor(counts)) - counts) > 0
        expected = torch.where(torch.tensor(inexact, device=stack.device), gradient, stack.tensor(counts))
        assert_exact(gradient, expected, f"{name}.grad (its representable counts)")


def ones(stack: Stack, batch: int) -> Tensor:
    """Return images (N,1,32,32) whose pixels are all 1."""
    return torch.ones(batch, 1, 32, 32, device=stack.device, dtype=stack.dtype)
