"""Laws of symmetry: permuting, splitting, repeating, replacing, flipping and shifting."""

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

from lenet.oracle import Budgeted
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients, assert_same_bits, assert_within_budget
from properties.laws.networks import (
    BATCH_OF_17,
    INTEGER_WEIGHTS,
    feature_maps_or_skip,
    gradient_of,
    with_exact_sums,
)
from properties.stack import Stack
from properties.strategies import cases

SEVERAL = (2, 3, 5, 8)
"""Batch sizes with more than one image."""


def rows(budgeted: Budgeted, index: np.ndarray[tuple[int], np.dtype[np.int64]] | list[int] | slice) -> Budgeted:
    """Return the given rows of an exact tensor with their budgets."""
    return Budgeted(budgeted.value[index], budgeted.budget[index])


@pytest.mark.engine
@example(case=BATCH_OF_17, seed=0)
@given(case=cases(batches=SEVERAL), seed=st.integers(0, 2**32 - 1))
def test_permuting_images_permutes_logits(stack: Stack, case: Case, seed: int) -> None:
    """
    Permuting the images permutes the logits in the same way and preserves the gradients of the mean loss.

    The logits and gradients are within the rounding budget. Rejects: state that carries over from one image to the
    next, normalization over the batch.
    """
    index = np.random.RandomState([seed, 10]).permutation(case.batch)
    net, exact = stack.net(case), stack.exact(case)

    logits = net(stack.images(case)[index])
    nn.functional.mse_loss(logits, stack.targets(case)[index]).backward()

    assert_within_budget(logits, rows(exact.logits, index), "logits")
    assert_gradients(net, exact.gradients)


@pytest.mark.engine
@given(case=cases(batches=SEVERAL), size=st.integers(1, 4))
def test_splitting_the_batch_preserves_logits(stack: Stack, case: Case, size: int) -> None:
    """
    The logits of a batch are the concatenated logits of its parts, wherever it is split.

    The logits are within the rounding budget. Rejects: a result that depends on the batch size or on its parity.
    """
    net, exact = stack.net(case), stack.exact(case)

    parts = [net(part) for part in stack.images(case).split(size)]

    assert_within_budget(torch.cat(parts), exact.logits, "logits")


@pytest.mark.engine
@example(case=Case(weights="huge", images="huge", seed=1452), times=2)  # in range, although its partial sums are not
@example(case=Case(images="integers", batch=3), times=6)  # 18 images
@given(case=cases(batches=(1, 2, 3)), times=st.integers(2, 5))
def test_repeated_images_repeat_logits(stack: Stack, case: Case, times: int) -> None:
    """
    Repeating the batch repeats the logits and preserves the gradients of the mean loss.

    The logits and gradients are within the rounding budget. Rejects: a sum instead of a mean, a dropped duplicate.
    """
    net, exact = stack.net(case), stack.exact(case, repeats=times)

    logits = net(stack.images(case).repeat(times, 1, 1, 1))
    nn.functional.mse_loss(logits, stack.targets(case).repeat(times, 1)).backward()

    assert_within_budget(logits, rows(exact.logits, list(range(case.batch)) * times), "logits")
    assert_gradients(net, exact.gradients)


@pytest.mark.engine
@given(case=cases(batches=SEVERAL), other=cases(batches=(1,)), index=st.integers(0, 7))
def test_logits_depend_only_on_their_own_image(stack: Stack, case: Case, other: Case, index: int) -> None:
    """
    Replacing one image of a batch leaves the logits of all other images bit-identical.

    Rejects: batch normalization, leakage from one image to the next.
    """
    index %= case.batch
    net, images = stack.net(case), stack.images(replace(case, layout="contiguous"))
    before = net(images)

    images[index] = stack.images(replace(other, layout="contiguous"))[0]
    after = net(images)

    others = [i for i in range(case.batch) if i != index]
    assert_same_bits(after[others], before[others], "the logits of the other images")


@pytest.mark.engine
@given(case=cases(batches=SEVERAL), index=st.integers(0, 7))
def test_input_gradient_is_zero_for_other_images(stack: Stack, case: Case, index: int) -> None:
    """
    The gradient of one image's logits with respect to every other image is exactly zero.

    Rejects: a backward pass that spreads over the batch.
    """
    index %= case.batch
    net, images = stack.net(case), stack.images(replace(case, layout="contiguous")).requires_grad_()

    net(images)[index].sum().backward()

    others = [i for i in range(case.batch) if i != index]
    gradient = gradient_of(images)[others]
    assert_exact(gradient, torch.zeros_like(gradient), "the gradient of the other images")


@pytest.mark.engine
@given(case=cases(batches=(1, 2, 3)), seed=st.integers(0, 2**32 - 1))
def test_permuting_channels_and_units_preserves_logits(stack: Stack, case: Case, seed: int) -> None:
    """
    Permuting filters and units together with the next layer's weights preserves the logits.

    The gradients are permuted in the same way as their parameters; all are within the rounding budget. Rejects: a
    filter, channel or unit that is treated differently from the others.
    """
    net, exact = stack.net(case), stack.exact(case)
    permutations = random_permutations(np.random.RandomState([seed, 8]))
    for name, permute in permutations.items():
        parameter = net.get_parameter(name)
        parameter.data = permute(parameter.data)

    loss = stack.loss(net, case)
    loss.backward()

    assert_within_budget(net(stack.images(case)), exact.logits, "logits")
    assert_within_budget(loss, exact.loss, "loss")
    assert_gradients(
        net, {name: permuted_budget(exact.gradients[name], permutations[name]) for name in exact.gradients}
    )


Permutation = Callable[[Tensor], Tensor]


def permuted_budget(budgeted: Budgeted, permute: Permutation) -> Budgeted:
    """Return the exact tensor and its budget with their elements permuted."""
    value, budget = (permute(torch.from_numpy(part)).numpy() for part in (budgeted.value, budgeted.budget))
    return Budgeted(value, budget)


def random_permutations(generator: np.random.RandomState) -> dict[str, Permutation]:
    """Return a permutation for each parameter that reorders all filters and units, except the logits."""
    conv1, conv2 = generator.permutation(6), generator.permutation(16)
    fc1, fc2 = generator.permutation(120), generator.permutation(84)
    features = (25 * conv2[:, None] + np.arange(25)).ravel()  # each of conv2's maps is flattened to 25 features
    unchanged = slice(None)
    orders = {
        "conv1": (conv1, unchanged),
        "conv2": (conv2, conv1),
        "fc1": (fc1, features),
        "fc2": (fc2, fc1),
        "fc3": (unchanged, fc2),
    }
    permutations: dict[str, Permutation] = {}
    for layer, (outputs, inputs) in orders.items():
        permutations[f"{layer}.weight"] = partial(permuted, outputs=outputs, inputs=inputs)
        permutations[f"{layer}.bias"] = partial(permuted, outputs=outputs)
    return permutations


def permuted(parameter: Tensor, outputs: Any, inputs: Any = None) -> Tensor:
    """Return the weight or bias with its outputs and inputs permuted."""
    return parameter[outputs] if inputs is None else parameter[outputs][:, inputs].contiguous()


@pytest.mark.engine
@given(case=cases(batches=(1, 2, 3)), axes=st.sampled_from([(-1,), (-2,), (-2, -1)]))
def test_flipping_images_and_kernels_preserves_logits(stack: Stack, case: Case, axes: tuple[int, ...]) -> None:
    """
    Flipping the images, all kernels and the 5x5 blocks of fc1's weights together preserves the logits.

    The logits are within the rounding budget. The pooling windows cover the same pixels before and after the flip,
    because 28 and 10 are even. Rejects: padding on one side, windows that start at the other end, rows and columns
    interchanged.
    """
    net, exact = stack.net(case), stack.exact(case)
    for name in ("conv1.weight", "conv2.weight"):
        parameter = net.get_parameter(name)
        parameter.data = parameter.data.flip(axes)
    weight = net.get_parameter("fc1.weight")
    weight.data = weight.data.view(120, 16, 5, 5).flip(axes).reshape(120, 400)

    logits = net(stack.images(case).flip(axes))

    assert_within_budget(logits, exact.logits, "logits")


def integer_image_cases() -> SearchStrategy[Case]:
    """Cases with integer weights and images, whose feature maps are exact."""
    return cases(INTEGER_WEIGHTS, ("integers",), (1, 2))


@given(case=integer_image_cases(), down=st.integers(-2, 2), right=st.integers(-2, 2))
def test_shifting_images_shifts_feature_maps(stack: Stack, case: Case, down: int, right: int) -> None:
    """
    Shifting the images by 4k pixels shifts conv1's feature maps by 4k and conv2's by 2k.

    Bit for bit where both maps show the same part of the images, with integer weights. Rejects: a stride, a pooling
    window or padding other than the tutorial's.
    """
    net, images = stack.net(with_exact_sums(stack, case)), stack.images(case)
    shifted = torch.roll(images, (4 * down, 4 * right), (-2, -1))

    maps, shifted_maps = feature_maps_or_skip(stack, net, images), feature_maps_or_skip(stack, net, shifted)

    for layer, step in (("conv1", 4), ("conv2", 2)):
        assert_exact(
            overlap(shifted_maps[layer], step * down, step * right),
            overlap(maps[layer], -step * down, -step * right),
            f"the feature maps of {layer}",
        )


def overlap(maps: Tensor, down: int, right: int) -> Tensor:
    """Return the part of the maps that stays inside when they are shifted; the rest wraps around to the other side."""
    height, width = maps.shape[-2:]
    return maps[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
