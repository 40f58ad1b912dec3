"""Laws of the network's structure: shapes of inputs and outputs, parameters, initialization and feature maps."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

import lenet
from lenet.oracle import SHAPES, Array
from properties.case import Case
from properties.comparison import assert_exact, assert_same_bits
from properties.laws.networks import feature_maps_or_skip, skip_unless_reference
from properties.preconditions import EMPTY_BATCH, ONE_IMAGE, assert_met
from properties.stack import Stack, float64
from properties.strategies import cases

REPR = """\
Net(
  (conv1): Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1))
  (conv2): Conv2d(6, 16, kernel_size=(5, 5), stride=(1, 1))
  (fc1): Linear(in_features=400, out_features=120, bias=True)
  (fc2): Linear(in_features=120, out_features=84, bias=True)
  (fc3): Linear(in_features=84, out_features=10, bias=True)
)"""

NETWORKS = 10
"""
Number of new networks.

Ten give 60 initial values of conv1.bias, the smallest parameter: enough to reject zeros, whose distribution function
differs from the uniform one by up to 1/2.
"""

FALSE_ALARM = 1e-12
"""Probability, over seeds, that a correctly distributed parameter is rejected; the law itself uses one fixed seed."""


@pytest.mark.engine
@given(case=cases(batches=(1,)))
def test_logits_have_shape_dtype_and_device(stack: Stack, case: Case) -> None:
    """
    The logits of one image (1, 1, 32, 32) have shape (1, 10), the network's dtype and its device.

    Rejects: a missing batch dimension, an output that is cast to another dtype or left on another device.
    """
    logits = stack.logits(case)

    assert logits.shape == (1, 10), f"the logits have shape {tuple(logits.shape)}, expected (1, 10)"
    assert logits.dtype == stack.dtype, f"the logits are {logits.dtype}, expected {stack.dtype}"
    assert logits.device.type == stack.device.type, f"the logits are on {logits.device}, expected {stack.device}"


@pytest.mark.engine
@given(batch=st.sampled_from([0, 1, 2, 3, 7, 64]) | st.integers(0, 100), seed=st.integers(0, 2**32 - 1))
def test_batch_of_n_images_gives_n_rows_of_logits(stack: Stack, batch: int, seed: int) -> None:
    """
    A batch of N images gives logits of shape (N, 10), for every N.

    N includes 0 and odd numbers. Rejects: a fixed batch size, a dropped last row, a batch of one image that loses its
    batch dimension.
    """
    logits = stack.logits(Case(batch=batch, seed=seed))

    assert logits.shape == (batch, 10), f"the logits have shape {tuple(logits.shape)}, expected ({batch}, 10)"


def test_one_image_does_not_raise(stack: Stack) -> None:
    """
    The network loads the parameters of `lenet.Net` and runs one image, in every dtype and on every device.

    If it raises, laws that run it are not judged. Rejects: a network that supports only some dtypes or devices, a
    `load_state_dict` that raises.
    """
    assert_met(stack, ONE_IMAGE)


def test_empty_batch_does_not_raise(stack: Stack) -> None:
    """
    The network runs a batch of no images, forward and backward.

    If it raises, other laws draw no empty batch; if it does not, they judge the results. Rejects: `view(len(x), -1)`,
    in which no elements do not determine the size -1.
    """
    assert_met(stack, EMPTY_BATCH)


@given(case=cases())
def test_intermediate_shapes_match_the_tutorial(stack: Stack, case: Case) -> None:
    """
    Intermediate results have the tutorial's shapes: 6x28x28, 6x14x14, 16x10x10 and 400 features.

    conv1 gives 6x28x28, pooled to 6x14x14; conv2 gives 16x10x10, pooled to 16x5x5 and flattened to 400 features. The
    shapes are recorded where the network calls its submodules conv1, conv2 and fc1; the law skips a network that calls
    none of them. Rejects: padding, another stride, missing pooling if the next layer accepts the larger maps.
    """
    expected = {
        "output of conv1": (6, 28, 28),
        "input of conv2": (6, 14, 14),
        "output of conv2": (16, 10, 10),
        "input of fc1": (400,),
    }
    net = stack.net(case)
    recorded = record_inputs_and_outputs(net)

    net(stack.images(case))

    if not recorded:
        skip_unless_reference(stack, "this network does not call its submodules conv1, conv2 and fc1")
    for name in expected.keys() & recorded.keys():
        shape = tuple(recorded[name].shape[1:])
        assert shape == expected[name], f"the {name} has shape {shape} per image, expected {expected[name]}"


def record_inputs_and_outputs(net: nn.Module) -> dict[str, Tensor]:
    """Return a dict that forward hooks fill with the inputs and outputs of conv1, conv2 and fc1 in each pass."""
    recorded: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        (recorded[f"input of {name}"],) = (*args, *kwargs.values())
        recorded[f"output of {name}"] = output

    for name in ("conv1", "conv2", "fc1"):
        net.get_submodule(name).register_forward_hook(partial(record, name), with_kwargs=True)
    return recorded


def test_parameters_match_the_tutorial(stack: Stack) -> None:
    """
    `net.parameters()` yields the tutorial's ten parameters by name, order and shape, all of them trainable.

    They have 61,706 elements in total. Rejects: a frozen parameter, a buffer or plain tensor instead of a parameter,
    another order.
    """
    net = stack.subject.Net()

    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    count = sum(p.numel() for p in net.parameters())
    untrained = [name for name, p in net.named_parameters() if not (p.requires_grad and p.is_leaf)]
    assert shapes == SHAPES, f"the parameters' shapes are {shapes}, expected {SHAPES}"
    assert list(shapes) == list(SHAPES), f"the parameters' order is {list(shapes)}, expected {list(SHAPES)}"
    assert count == 61_706, f"the parameters have {count:,} elements, expected 61,706"
    assert not untrained, f"{', '.join(untrained)} must be nn.Parameters with requires_grad=True"


@torch.no_grad()
def test_parameters_do_not_overlap_in_memory(stack: Stack) -> None:
    """
    No two parameters overlap in memory: different numbers written to all of their elements can be read back.

    There are 61,706 elements. Rejects: tied parameters, one of which is a view of the other.
    """
    parameters = dict(stack.subject.Net().named_parameters())
    numbers = torch.arange(61_706.0).split([parameter.numel() for parameter in parameters.values()])
    written = [values.view_as(p).to(p) for values, p in zip(numbers, parameters.values(), strict=True)]

    for parameter, values in zip(parameters.values(), written, strict=True):
        parameter.copy_(values)

    for (name, parameter), values in zip(parameters.items(), written, strict=True):
        assert_same_bits(parameter, values, name)


def test_initialization_is_uniform_and_independent(stack: Stack) -> None:
    """
    New parameters are independent and uniform in +-1/sqrt(k), where k is the number of inputs of one unit.

    nn.Conv2d and nn.Linear initialize them so. No element is larger than the bound, and the empirical distribution of n
    elements is as close to the uniform distribution as the Dvoretzky-Kiefer-Wolfowitz inequality with Massart's
    constant (1990, Ann. Probab. 18(3)) allows: P(distance > d) <= 2 exp(-2 n d**2). No two networks start with the same
    values in any parameter. Rejects: zeros, constants, equal units, another width, a normal distribution, a random seed
    that the network sets.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [stack.subject.Net() for _ in range(NETWORKS)]

    for name in SHAPES:
        numbers = torch.stack([net.get_parameter(name).detach().flatten() for net in nets])  # NETWORKS,n
        fan_in = math.prod(SHAPES[f"{name.split('.')[0]}.weight"][1:])
        bound = float(torch.tensor(1 / math.sqrt(fan_in), dtype=numbers.dtype))
        largest = float(numbers.abs().max())
        assert largest <= bound, f"the largest initial element of {name} is {largest!r}, at most {bound!r} is expected"
        distance = distance_from_uniform((float64(numbers).ravel() / bound + 1) / 2)
        allowed = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * numbers.numel()))
        assert distance <= allowed, (
            f"the initial distribution of {name} is {distance:.3g} away from uniform, {allowed:.3g} is allowed"
        )
        different = len(numbers.unique(dim=0))
        assert different == NETWORKS, f"{name} has {different} different initial values in {NETWORKS} new networks"


def distance_from_uniform(numbers: Array) -> float:
    """Return the largest distance between the empirical distribution function of `numbers` and that of U(0, 1)."""
    ordered, count = np.sort(numbers), numbers.size
    return float(max((np.arange(1, count + 1) / count - ordered).max(), (ordered - np.arange(count) / count).max()))


def test_repr_matches_the_tutorial(stack: Stack) -> None:
    """
    `print(net)` prints the text that the tutorial shows.

    Skipped for every network except the reference network. Rejects: a layer that is renamed, added or has other
    arguments.
    """
    if stack.subject.Net is not lenet.Net:
        pytest.skip("the tutorial's text is only expected of the reference network")

    text = repr(stack.subject.Net())
    assert text == REPR, f"the network prints as\n{text}\nexpected\n{REPR}"


@given(case=cases())
def test_pooled_feature_maps_equal_next_layer_inputs(stack: Stack, case: Case) -> None:
    """
    The max-pooled feature maps of conv1 and conv2 are the inputs of conv2 and fc1 bit for bit.

    `lenet.feature_maps` returns conv1's 6 maps of 28x28 and conv2's 16 maps of 10x10 by name, without a graph. The law
    skips a network that does not call conv1, conv2 and fc1 once per batch. Rejects: a ReLU or pooling that is missing,
    of another kind, or in another place than after the convolution.
    """
    net = stack.net(case)
    recorded = record_inputs_and_outputs(net)

    maps = feature_maps_or_skip(stack, net, stack.images(case))

    if "input of fc1" not in recorded:
        skip_unless_reference(stack, "this network does not call its submodule fc1")
    shapes = {layer: tuple(map_.shape[1:]) for layer, map_ in maps.items()}
    expected = {"conv1": (6, 28, 28), "conv2": (16, 10, 10)}
    assert shapes == expected, f"the feature maps have shapes {shapes} per image, expected {expected}"
    assert not any(map_.requires_grad for map_ in maps.values()), "the feature maps require gradients"
    assert_exact(recorded["input of conv2"], max_pool2d(maps["conv1"], 2), "the input of conv2")
    assert_exact(recorded["input of fc1"], max_pool2d(maps["conv2"], 2).flatten(1), "the input of fc1")
