"""Laws of symmetry: what may be exchanged, split, flipped or shifted, and what then changes with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from lenet.oracle import Bounded
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients, assert_within_budget
from properties.laws.test_exactness import summable
from properties.laws.test_nonfinite import feature_maps
from properties.stack import Stack
from properties.strategies import cases

SEVERAL = (2, 3, 5, 8)


def rows(bounded: Bounded, index: np.ndarray[tuple[int], np.dtype[np.int64]] | list[int] | slice) -> Bounded:
    """Some rows of an exact tensor."""
    return Bounded(bounded.value[index], bounded.budget[index])


@pytest.mark.engine
@given(case=cases(batches=SEVERAL), order=st.randoms(use_true_random=False))
def test_permuting_images_permutes_logits(stack: Stack, case: Case, order: np.random.RandomState) -> None:
    """
    Images in another order give the same rows of scores in that order, and the same gradients of the mean loss.

    Rejects: state that goes from one image to the next, a batch that is normalized.
    """
    index = list(range(case.batch))
    order.shuffle(index)
    net, exact = stack.net(case), stack.exact(case)

    logits = net(stack.images(case)[index])
    nn.functional.mse_loss(logits, stack.targets(case)[index]).backward()

    assert_within_budget(logits, rows(exact.logits, index), "logits")
    assert_gradients(net, exact.gradients)


@pytest.mark.engine
@given(case=cases(batches=SEVERAL), size=st.integers(1, 4))
def test_splitting_the_batch_preserves_logits(stack: Stack, case: Case, size: int) -> None:
    """
    The rows of a batch are those of its parts, split anywhere; those of parts, concatenated, are those of the batch.

    Rejects: an answer that depends on the batch's size, or on whether it is even.
    """
    net, exact = stack.net(case), stack.exact(case)

    parts = [net(part) for part in stack.images(case).split(size)]

    assert_within_budget(torch.cat(parts), exact.logits, "logits")


@pytest.mark.engine
@example(case=Case(weights="huge", images="huge", seed=1452), times=2)  # in range, with partial sums that are not
@given(case=cases(batches=(1, 2, 3)), times=st.integers(2, 5))
def test_repeated_images_repeat_logits(stack: Stack, case: Case, times: int) -> None:
    """
    A batch repeated whole gives its rows repeated, and the same mean gradients.

    Rejects: a sum for a mean, a duplicate that is dropped.
    """
    net, exact = stack.net(case), stack.exact(case, repeats=times)

    logits = net(stack.images(case).repeat(times, 1, 1, 1))
    nn.functional.mse_loss(logits, stack.targets(case).repeat(times, 1)).backward()

    assert_within_budget(logits, rows(exact.logits, list(range(case.batch)) * times), "logits")
    assert_gradients(net, exact.gradients)


@pytest.mark.engine
@given(case=cases(batches=SEVERAL), other=cases(batches=(1,)), which=st.integers(0, 7))
def test_logits_depend_only_on_their_own_image(stack: Stack, case: Case, other: Case, which: int) -> None:
    """
    Another image in one place of the batch leaves all other rows bit for bit as they were.

    Rejects: batch normalization, a leak from one image to the next.
    """
    which %= case.batch
    net, images = stack.net(case), stack.images(replace(case, layout="contiguous"))
    before = net(images)

    images[which] = stack.images(replace(other, layout="contiguous"))[0]
    after = net(images)

    others = [i for i in range(case.batch) if i != which]
    assert_exact(after[others], before[others], "the other rows")


@pytest.mark.engine
@given(case=cases(batches=SEVERAL), which=st.integers(0, 7))
def test_input_gradient_is_zero_for_other_images(stack: Stack, case: Case, which: int) -> None:
    """
    The gradient of one row's scores by the other images is exactly zero.

    Rejects: a backward pass that spreads over the batch.
    """
    which %= case.batch
    net, images = stack.net(case), stack.images(replace(case, layout="contiguous")).requires_grad_()

    net(images)[which].sum().backward()

    others = [i for i in range(case.batch) if i != which]
    assert_exact(images.grad[others], torch.zeros_like(images.grad[others]), "the other images' gradient")


@pytest.mark.engine
@given(case=cases(batches=(1, 2, 3)), seed=st.integers(0, 2**32 - 1))
def test_permuting_channels_and_units_preserves_logits(stack: Stack, case: Case, seed: int) -> None:
    """
    Filters and units in another order, with the next layer's weights in the same order, give the same scores.

    The gradients come in the new order. Rejects: a filter, channel or unit that is treated unlike the others.
    """
    net, exact = stack.net(case), stack.exact(case)
    moves = relabelling(np.random.RandomState([seed, 8]))
    for name, move in moves.items():
        parameter = net.get_parameter(name)
        parameter.data = move(parameter.data)

    loss = stack.loss(net, case)
    loss.backward()

    assert_within_budget(net(stack.images(case)), exact.logits, "logits")
    assert_within_budget(loss, exact.loss, "loss")
    for name, gradient in exact.gradients.items():
        value, budget = (moves[name](torch.from_numpy(part)).numpy() for part in (gradient.value, gradient.budget))
        assert_within_budget(net.get_parameter(name).grad, Bounded(value, budget), f"{name}.grad")


Move = Callable[[Tensor], Tensor]


def relabelling(random: np.random.RandomState) -> dict[str, Move]:
    """What to do with each parameter when all filters and units are shuffled; the logits keep their places."""
    filters, maps = random.permutation(6), random.permutation(16)
    fives, sixes = random.permutation(120), random.permutation(84)
    flat = (25 * maps[:, None] + np.arange(25)).ravel()  # each map is 25 of the flattened features
    kept = slice(None)
    places = {
        "conv1": (filters, kept),
        "conv2": (maps, filters),
        "fc1": (fives, flat),
        "fc2": (sixes, fives),
        "fc3": (kept, sixes),
    }
    moves: dict[str, Move] = {}
    for layer, (outputs, inputs) in places.items():
        moves[f"{layer}.weight"] = partial(reordered, outputs=outputs, inputs=inputs)
        moves[f"{layer}.bias"] = partial(reordered, outputs=outputs)
    return moves


def reordered(parameter: Tensor, outputs: Any, inputs: Any = None) -> Tensor:
    """A weight or bias with its outputs and inputs in another order."""
    return parameter[outputs] if inputs is None else parameter[outputs][:, inputs].contiguous()


@pytest.mark.engine
@given(case=cases(batches=(1, 2, 3)), axes=st.sampled_from([(-1,), (-2,), (-2, -1)]))
def test_flipping_images_and_kernels_preserves_logits(stack: Stack, case: Case, axes: tuple[int, ...]) -> None:
    """
    Images flipped, all kernels flipped and the flattened 5x5 blocks flipped: the scores stay the same.

    Since 28 and 10 are even, the pooling windows fall on the same pixels. Rejects: padding on one side, windows that
    begin at the other end, rows taken for columns.
    """
    net, exact = stack.net(case), stack.exact(case)
    for name in ("conv1.weight", "conv2.weight"):
        parameter = net.get_parameter(name)
        parameter.data = parameter.data.flip(axes)
    weight = net.get_parameter("fc1.weight")
    weight.data = weight.data.view(120, 16, 5, 5).flip(axes).reshape(120, 400)

    logits = net(stack.images(case).flip(axes))

    assert_within_budget(logits, exact.logits, "logits")


def image_cases() -> SearchStrategy[Case]:
    """Integer networks and images, of which every feature map is exact."""
    return cases(("integers", "pairs", "one-hot"), ("integers",), (1, 2))


@given(case=image_cases(), down=st.integers(-2, 2), right=st.integers(-2, 2))
def test_shifting_images_shifts_feature_maps(stack: Stack, case: Case, down: int, right: int) -> None:
    """
    An image shifted by four pixels has the first maps shifted by four and the second by two, by one once pooled.

    Bit for bit where both show the same part, with integer weights. Rejects: a stride, a pooling window or a padding
    other than the tutorial's.
    """
    net, images = stack.net(summable(stack, case)), stack.images(case)
    shifted = torch.roll(images, (4 * down, 4 * right), (-2, -1))
    here, there = feature_maps(net, images), feature_maps(net, shifted)

    for layer, step in (("conv1", 4), ("conv2", 2)):
        assert_exact(
            overlap(there[layer], step * down, step * right),
            overlap(here[layer], -step * down, -step * right),
            f"the maps of {layer}",
        )


def overlap(maps: Tensor, down: int, right: int) -> Tensor:
    """The part of the maps that a shift by so much leaves inside; the rest came from the other end of the image."""
    height, width = maps.shape[-2:]
    return maps[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
