"""Laws that hold bit for bit: integer arithmetic, one-hot weights, powers of two and counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet import oracle
from lenet.oracle import SHAPES, Array
from properties.case import Case
from properties.comparison import assert_exact, assert_same_bits
from properties.laws.exact_network import (
    assert_whole_results,
    network_of,
    one_hot_parameters,
    results,
    whole_numbers,
)
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
from properties.strategies import batch_sizes, cases


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


SHARE = st.sampled_from((0.25, 0.5, 0.75))
"""The share of a precision's bits that pixels get; upstream gradients get the rest."""


@pytest.mark.engine
@example(batch=31, share=0.5, seed=0)
@example(batch=65, share=0.25, seed=0)
@example(batch=129, share=0.75, seed=0)
@given(batch=batch_sizes(), share=SHARE, seed=st.integers(0, 2**32 - 1))
def test_batches_of_any_size_are_exact(stack: Stack, batch: int, share: float, seed: int) -> None:
    """
    For every batch size from 1 to 300, logits and gradients of positive integers are exact in all images.

    The weights are one-hot, and pixels and upstream gradients (N,10) are so large that the sums need up to all bits of
    the claimed precision. All images differ. The sums are judged where the precision holds all integers up to them: in
    16 bits, some over large batches are not. Rejects: a fault at some batch sizes only, such as a last incomplete block
    that is dropped; gradients of large batches in a narrower type.
    """
    parameters = one_hot_parameters(seed)
    images, upstream = whole_numbers(stack, seed, batch, share)

    assert_whole_results(stack, network_of(stack, parameters), parameters, images, upstream)


@pytest.mark.engine
def test_results_are_exact_with_any_number_of_threads(stack: Stack) -> None:
    """
    With one thread and with one for each core, but two at least, logits and gradients of positive integers are exact.

    67 images: 315,168 outputs of conv1 are enough for several threads, and no number of threads divides them evenly.
    Rejects: a block of the batch that only one thread adds to a gradient, a remainder that no thread computes.
    """
    parameters = one_hot_parameters(seed=0)
    images, upstream = whole_numbers(stack, seed=0, batch=67, share=0.5)

    for threads in (1, max(2, os.cpu_count() or 1)):
        torch.set_num_threads(threads)  # restored after the law
        assert_whole_results(stack, network_of(stack, parameters), parameters, images, upstream)


CARRIERS = ("images", "upstream", *SHAPES)
PAIRS = [pair for pair in combinations(CARRIERS, 2) if not (pair[0] == "images" and pair[1].endswith("bias"))]
"""The tensors of which two have numbers with all bits. With pixels and a bias, rounding could select other pixels."""


@pytest.mark.engine
@example(pair=("images", "upstream"), logit=0, seed=0)
@example(pair=("conv1.weight", "conv2.weight"), logit=0, seed=0)
@example(pair=("fc1.weight", "fc2.weight"), logit=0, seed=0)
@example(pair=("fc3.weight", "conv1.bias"), logit=0, seed=0)
@example(pair=("conv2.bias", "fc1.bias"), logit=0, seed=0)
@example(pair=("fc2.bias", "fc3.bias"), logit=0, seed=0)
@given(pair=st.sampled_from(PAIRS), logit=st.integers(0, 9), seed=st.integers(0, 2**32 - 1))
def test_every_bit_of_two_factors_counts(stack: Stack, pair: tuple[str, str], logit: int, seed: int) -> None:
    """
    The product or sum of two numbers with all bits of the precision is rounded once, to nearest.

    Two of these tensors have random significands: images, upstream gradient, weights and biases of the five layers. The
    other weights are one-hot, so that every sum has a single term that is not zero, or one and a bias. Nothing depends
    on the order of sums or on the width of intermediate results. If the engine claims to round operands (TF32), the
    numbers have half of its bits, so that products are exact. Rejects: operands rounded to fewer bits in any layer,
    also in the backward pass only; results that are truncated.
    """
    parameters, images, upstream = factors(stack, pair, logit, seed)
    exact = results(parameters, images, upstream)
    net, pixels = network_of(stack, parameters), stack.tensor(images).requires_grad_()

    logits = net(pixels)
    logits.backward(stack.tensor(upstream))

    assert_exact(logits, stack.tensor(exact.logits), "logits")
    assert_exact(gradient_of(pixels), stack.tensor(exact.images), "images.grad")
    for name, gradient in all_gradients(net).items():
        assert_exact(gradient, stack.tensor(exact.gradients[name]), f"{name}.grad")


def factors(stack: Stack, pair: tuple[str, str], logit: int, seed: int) -> tuple[dict[str, Array], Array, Array]:
    """
    Return parameters, two images and upstream gradients, of which the pair has numbers with all bits, the rest 0 and 1.

    The first image has no upstream gradient, the second only that of one logit.
    """
    random, unit = np.random.RandomState([seed, 11]), stack.precision.coarsest_unit
    bits = -int(np.log2(unit)) // (2 if stack.precision.operand_unit else 1)

    def significands(shape: tuple[int, ...], below: float = 2.0) -> Array:
        """Return random odd multiples of the last bit, from 1 to `below`."""
        return (random.randint(2 ** (bits - 1), int(below * 2 ** (bits - 1)), shape) | 1) / 2.0 ** (bits - 1)

    parameters = one_hot_parameters(seed)
    for name in parameters.keys() & set(pair):
        is_bias = name.endswith("bias")
        parameters[name] = significands(SHAPES[name]) * (1.0 if is_bias else parameters[name])
    images = np.full((2, 1, 32, 32), 0.0 if any(name.endswith("bias") for name in pair) else 1.0)
    if "images" in pair:  # the pixels of a pooling window differ by more than any rounding
        exponents = np.tile(random.permutation(16).reshape(4, 4) - 8, (8, 8))
        images = significands((2, 1, 32, 32), below=1.5) * 2.0**exponents
    upstream = np.zeros((2, 10))
    upstream[1, logit] = significands(()) if "upstream" in pair else 1.0
    return parameters, images, upstream


@pytest.mark.engine
@example(layer="fc1", share=1.0, seed=0)
@given(
    layer=st.sampled_from(("conv1", "conv2", "fc1", "fc2", "fc3")),
    share=st.sampled_from((1.0, 0.5, 0.0)),
    seed=st.integers(0, 2**32 - 1),
)
def test_long_sums_are_exact(stack: Stack, layer: str, share: float, seed: int) -> None:
    """
    Sums over all inputs of a layer are exact if the accumulator holds them, and are rounded once when they are stored.

    Nine of ten weights of one layer are 1, those of the others one-hot, and the pixels positive integers. In float32
    and float64 the sums need up to all bits, and the gradients of positive integers are exact as well. The 16-bit
    precisions accumulate in float32: the sums are exact there, and logits are rounded to nearest once. On CUDA, PyTorch
    reduces in 16 bits unless it is told not to, as it is here. Rejects: an accumulator that is narrower than claimed,
    operands rounded to TF32 or split into parts, sums that are truncated.
    """
    random, parameters = np.random.RandomState([seed, 12]), one_hot_parameters(seed)
    parameters[f"{layer}.weight"] = np.float64(random.random_sample(SHAPES[f"{layer}.weight"]) < 0.9)
    terms = int(np.prod(SHAPES[f"{layer}.weight"][1:]))
    net = network_of(stack, parameters)
    if stack.precision.sum_precision and not stack.precision.operand_unit:
        largest = min(1 / stack.precision.unit, stack.precision.largest / terms)
        images = random.randint(1, int(largest) + 1, (4, 1, 32, 32)).astype(np.float64)
        with without_reductions_in_16_bits():
            logits = net(stack.tensor(images))
        assert_exact(logits, stack.tensor(results(parameters, images, np.zeros((4, 10))).logits), "logits")
    else:
        images, upstream = whole_numbers(stack, seed, 1, share, terms)
        assert_whole_results(stack, net, parameters, images, upstream)


@contextmanager
def without_reductions_in_16_bits() -> Iterator[None]:
    """
    Within this block, matrix products of 16-bit numbers on CUDA add up in float32 only.

    See "Reduced Precision Reduction" in https://docs.pytorch.org/docs/stable/notes/cuda.html.
    """
    products = torch.backends.cuda.matmul
    before = products.allow_fp16_reduced_precision_reduction, products.allow_bf16_reduced_precision_reduction
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        products.allow_fp16_reduced_precision_reduction, products.allow_bf16_reduced_precision_reduction = before
