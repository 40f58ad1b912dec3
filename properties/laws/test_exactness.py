"""Laws that hold bit for bit: integers in any order of summation, chosen pixels, powers of two, counts in bulk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet import oracle
from lenet.oracle import SHAPES
from properties.case import Case
from properties.comparison import assert_exact
from properties.stack import Stack, float64, gradients
from properties.strategies import cases

INTEGERS = ("integers", "pairs", "one-hot")
"""Recipes for weights of -1, 0 and 1, the densest first."""


def integer_cases() -> st.SearchStrategy[Case]:
    """Weights, images and targets that are integers."""
    drawn = cases(weights=INTEGERS, images=("integers", "one-hot"), batches=(1, 2, 0, 3))
    return drawn.map(lambda case: replace(case, targets="one-hot" if case.targets == "one-hot" else "integers"))


def summable(stack: Stack, case: Case) -> Case:
    """
    The case, with weights sparse enough for every partial sum to be an integer that the dtype holds exactly.

    With two bits to spare, for halves and for the sum of a parameter and its gradient.
    """
    for weights in INTEGERS[INTEGERS.index(case.weights) :]:
        sparser = replace(case, weights=weights)
        if 4 * stack.exact(sparser, loss=oracle.dot).largest <= 1 / stack.precision.coarsest:
            return sparser
    assume(False)
    raise AssertionError("unreachable")


@pytest.mark.engine
@given(case=integer_cases())
def test_integer_logits_and_gradients_are_exact(stack: Stack, case: Case) -> None:
    """
    Where all partial sums are small integers, logits and gradients equal the oracle's bit for bit.

    In any order of summation, at any blocking, in any dtype; the gradients are those of sum(targets * logits).
    Rejects: an algorithm that transforms its operands (Winograd, FFT), a lower precision, one misplaced element.
    """
    case = summable(stack, case)
    exact = stack.exact(case, loss=oracle.dot, by_images=True)
    net, images = stack.net(case), stack.images(case).requires_grad_()

    logits = net(images)
    (logits * stack.targets(case)).sum().backward()

    assert_exact(logits, stack.tensor(exact.logits.value), "logits")
    assert exact.by_images is not None
    assert_exact(images.grad, stack.tensor(exact.by_images.value), "images.grad")
    for name, gradient in gradients(net).items():
        assert_exact(gradient, stack.tensor(exact.gradients[name].value), f"{name}.grad")


@given(case=integer_cases(), lr=st.sampled_from([1.0, 0.5]))
def test_integer_updates_are_exact(stack: Stack, case: Case, lr: float) -> None:
    """
    Where parameters and gradients are small integers, the update of the whole network by hand is exact.

    Rejects: an update that rounds where it need not, or leaves out an element.
    """
    case = summable(stack, case)
    exact = stack.exact(case, loss=oracle.dot).gradients
    net = stack.net(case)
    before = {name: float64(parameter).copy() for name, parameter in net.named_parameters()}
    (net(stack.images(case)) * stack.targets(case)).sum().backward()

    stack.subject.sgd_update(net.parameters(), lr)

    for name, parameter in net.named_parameters():
        assert_exact(parameter, stack.tensor(before[name] - lr * exact[name].value), name)


def mosaic(seed: int, batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Integers from 0 to 255, (N,1,32,32), of which no two in any 4x4 block are equal: residues modulo 16 tile it."""
    random = np.random.RandomState([seed, 7])
    residues = np.tile(random.permutation(16).reshape(4, 4), (8, 8))
    return residues + 16.0 * random.randint(0, 16, (batch, 1, 32, 32))


def chains(case: Case) -> list[tuple[int, int]]:
    """
    For each logit, the first row and column of the 4x4 pixels that it is the largest of, read off one-hot weights.

    Logit k takes unit j of fc2, that takes unit i of fc1, that takes number 25 c + 5 y + x of the flattened maps, which
    is the largest of rows 2y, 2y+1 and columns 2x, 2x+1 of conv2's map c; its filter takes map b at (v, u), which is
    the largest of two rows and columns of conv1's map b; and its filter takes the pixel at (t, s).
    """
    taken = {
        name: weight.reshape(len(weight), -1).argmax(axis=1)
        for name, weight in case.parameters(oracle.PRECISIONS["float64"]).items()
        if name.endswith("weight")
    }
    blocks = []
    for unit in taken["fc3.weight"]:
        flat = taken["fc1.weight"][taken["fc2.weight"][unit]]
        c, y, x = np.unravel_index(flat, (16, 5, 5))
        b, v, u = np.unravel_index(taken["conv2.weight"][c], (6, 5, 5))
        t, s = np.unravel_index(taken["conv1.weight"][b], (5, 5))
        blocks.append((int(4 * y + 2 * v + t), int(4 * x + 2 * u + s)))
    return blocks


@pytest.mark.engine
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 3))
def test_one_hot_weights_route_pixels_to_logits(stack: Stack, seed: int, batch: int) -> None:
    """
    One-hot filters and selection matrices carry the largest of 4x4 chosen pixels to each logit, and nothing else.

    Which pixels follows from the indices alone, by no arithmetic. Rejects: channels, rows, columns, kernels or the
    flattened blocks in another order, a kernel that is flipped, a padding, a shift by one.
    """
    case, images = Case(weights="one-hot", seed=seed), mosaic(seed, batch)
    want = [[image[0, r : r + 4, c : c + 4].max() for r, c in chains(case)] for image in images]

    logits = stack.net(case)(stack.tensor(images))

    assert_exact(logits, stack.tensor(np.array(want)), "logits")


@pytest.mark.engine
@given(seed=st.integers(0, 2**32 - 1), logit=st.integers(0, 9))
def test_one_hot_weights_route_gradients_to_pixels(stack: Stack, seed: int, logit: int) -> None:
    """
    Through one-hot weights the gradient of a logit by the image is 1 at the pixel that it is, and 0 everywhere else.

    Rejects: a backward pass that gives the gradient to a neighbour, to another channel, or to all of a window.
    """
    case, image = Case(weights="one-hot", seed=seed), mosaic(seed, 1)
    row, column = chains(case)[logit]
    block = image[0, 0, row : row + 4, column : column + 4]
    down, right = np.unravel_index(block.argmax(), block.shape)
    images = stack.tensor(image).requires_grad_()

    stack.net(case)(images)[0, logit].backward()

    want = torch.zeros_like(images)
    want[0, 0, row + int(down), column + int(right)] = 1
    assert_exact(images.grad, want, "images.grad")


def scalable(stack: Stack, case: Case) -> Case:
    """The case; in float16, whose subnormals begin at 2**-14, with integers, so that scaling it stays exact."""
    if stack.dtype is not torch.float16:
        return case
    return summable(stack, replace(case, weights="pairs", images="integers", targets="integers"))


def ordinary_cases() -> st.SearchStrategy[Case]:
    """Cases whose numbers stay well within the dtype's range."""
    return cases(("default", "sparse", "constant"), ("digits", "normal", "uniform", "checkerboard"), (1, 2, 3))


@torch.no_grad()
def scale(net: nn.Module, name: str, exponent: int) -> None:
    """Multiply a parameter by a power of two."""
    net.get_parameter(name).mul_(2.0**exponent)


@pytest.mark.engine
@given(case=ordinary_cases(), exponents=st.tuples(*[st.integers(-16, 16)] * 4))
def test_power_of_two_scaling_between_layers_preserves_logits(
    stack: Stack, case: Case, exponents: tuple[int, int, int, int]
) -> None:
    """
    What each layer gives times a 2**k of its own, and the next layer's weights times 2**-k: the logits stay the same.

    Bit for bit, since ReLU and max-pooling are homogeneous; in float16 with a fourth of the exponents, which its range
    bears. Rejects: saturation, ReLU6, smooth activations, an offset that is added where it does not belong.
    """
    case = scalable(stack, case)
    net = stack.net(case)
    before = net(stack.images(case))
    share = 4 if stack.dtype is torch.float16 else 1

    into = 0
    for layer, out in zip(("conv1", "conv2", "fc1", "fc2", "fc3"), (*exponents, 0), strict=True):
        scale(net, f"{layer}.weight", out // share - into)
        scale(net, f"{layer}.bias", out // share)
        into = out // share

    assert_exact(net(stack.images(case)), before, "logits")


@pytest.mark.engine
@given(case=ordinary_cases(), exponent=st.integers(-4, 4))
def test_without_biases_logits_scale_with_images(stack: Stack, case: Case, exponent: int) -> None:
    """
    With zero biases f(2**k x) is 2**k f(x), bit for bit.

    Rejects: normalization of the input, an activation that is not homogeneous, a hidden bias.
    """
    case = scalable(stack, case)
    net, images = stack.net(case), stack.images(case)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()

    logits = net(images)
    scaled = net(images * 2.0**exponent)

    assert_exact(scaled, logits * 2.0**exponent, "logits")


@pytest.mark.engine
@pytest.mark.parametrize("batch", [600, 4096])
def test_large_batch_counts_are_exact(stack: Stack, batch: int) -> None:
    """
    Over a batch of ones, every gradient of the logits' sum is a count of images, exactly where the dtype holds it.

    At 600 and 4,096 images; in float64, whose counts no batch exhausts, at 600. Rejects: an accumulator that is
    too narrow and stands still at 256 or 2,048, a batch that is cut or counted twice.
    """
    if stack.dtype is torch.float64 and batch > 600:
        pytest.skip("no batch that fits in memory exhausts the counts of float64")
    case = Case(weights="one-hot")
    arguments = (case.parameters(stack.precision), np.ones((1, 1, 32, 32)), np.ones((1, 10)), stack.precision)
    once = oracle.solve(*arguments, loss=oracle.dot).gradients
    net = stack.net(case)

    net(ones(stack, batch)).sum().backward()

    for name in SHAPES:
        counts = batch * once[name].value
        held = float64(stack.tensor(counts)) == counts
        got = float64(net.get_parameter(name).grad)
        assert_exact(stack.tensor(got[held]), stack.tensor(counts[held]), f"{name}.grad, where it can be held,")


def ones(stack: Stack, batch: int) -> Tensor:
    """White images."""
    return torch.ones(batch, 1, 32, 32, device=stack.device, dtype=stack.dtype)
