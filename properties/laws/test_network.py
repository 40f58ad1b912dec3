"""Laws of the network's shape: what goes in, what comes out, and what lies between."""

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
from properties.comparison import assert_exact
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
"""New networks to look at: of so many times six biases zeros, 1/2 from the uniform distribution, are not allowed."""

FALSE_ALARM = 1e-12
"""How probable it may be that a parameter of right distribution is rejected; with the seed fixed, always or never."""


@pytest.mark.engine
@given(case=cases(batches=(1,)))
def test_one_image_gives_ten_logits(stack: Stack, case: Case) -> None:
    """
    One 1x1x32x32 image gives 1x10 scores, in the dtype and on the device of the network.

    Rejects: a missing batch dimension, an output that is cast or left on another device.
    """
    logits = stack.logits(case)

    assert logits.shape == (1, 10)
    assert logits.dtype == stack.dtype
    assert logits.device.type == stack.device.type


@pytest.mark.engine
@given(batch=st.sampled_from([0, 1, 2, 3, 7, 64]) | st.integers(0, 100), seed=st.integers(0, 2**32 - 1))
def test_every_image_gives_ten_logits(stack: Stack, batch: int, seed: int) -> None:
    """
    N images give N rows of ten scores, for every N, none and odd numbers included.

    Rejects: a fixed batch size, a last row dropped, a batch of one that loses its dimension.
    """
    logits = stack.logits(Case(batch=batch, seed=seed))

    assert logits.shape == (batch, 10)


@given(case=cases())
def test_intermediate_shapes_match_the_tutorial(stack: Stack, case: Case) -> None:
    """
    The stages are 6x28x28, pooled to 6x14x14, 16x10x10, and pooled to 16x5x5 = 400 flattened features.

    Read off where the network calls its submodules conv1, conv2 and fc1; not applicable to one that does not.
    Rejects: padding, another stride, pooling left out where the next layer would still accept its input.
    """
    right = {
        "out of conv1": (6, 28, 28),
        "into conv2": (6, 14, 14),
        "out of conv2": (16, 10, 10),
        "into fc1": (400,),
    }
    net = stack.net(case)
    seen = observe(net)

    net(stack.images(case))

    if not seen:
        pytest.skip("this network does not call its submodules conv1, conv2 and fc1")
    for stage in right.keys() & seen.keys():
        assert tuple(seen[stage].shape[1:]) == right[stage], stage


def observe(net: nn.Module) -> dict[str, Tensor]:
    """What goes into and comes out of conv1, conv2 and fc1, filled in as the network calls them."""
    seen: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, inputs: Any, named: dict[str, Any], output: Tensor) -> None:
        (seen[f"into {name}"],) = (*inputs, *named.values())
        seen[f"out of {name}"] = output

    for name in ("conv1", "conv2", "fc1"):
        net.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True)
    return seen


def test_parameters_match_the_tutorial(stack: Stack) -> None:
    """
    `net.parameters()` are ten, by name, order and shape: 61,706 numbers, each of which is trained.

    Rejects: a frozen parameter, a buffer or plain tensor in its place, another order.
    """
    net = stack.subject.Net()

    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == SHAPES
    assert [name for name, _ in net.named_parameters()] == list(SHAPES)
    assert sum(p.numel() for p in net.parameters()) == 61_706
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())


@torch.no_grad()
def test_parameters_do_not_overlap_in_memory(stack: Stack) -> None:
    """
    61,706 numbers, written one parameter after the other, can all be read again.

    Rejects: tied parameters, of which one is a view of the other.
    """
    parameters = dict(stack.subject.Net().named_parameters())
    numbers = torch.arange(61_706.0).split([parameter.numel() for parameter in parameters.values()])
    written = [part.view_as(p).to(p) for part, p in zip(numbers, parameters.values(), strict=True)]

    for parameter, part in zip(parameters.values(), written, strict=True):
        parameter.copy_(part)

    for (name, parameter), part in zip(parameters.items(), written, strict=True):
        assert_exact(parameter, part, name)


def test_initialization_is_uniform_and_independent(stack: Stack) -> None:
    """
    A new network's weights and biases are uniform in +-1/sqrt(inputs of a unit), as nn.Conv2d and nn.Linear begin.

    No number is beyond that, and the share of those below x is nowhere further from its right value than the
    inequality of Dvoretzky, Kiefer and Wolfowitz says of n numbers with Massart's constant (1990, Ann. Probab. 18(3)),
    P(distance > d) <= 2 exp(-2 n d**2). No two networks begin with the same parameter.
    Rejects: zeros, constants, equal units, another width, a normal distribution, a seed of the network's own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [stack.subject.Net() for _ in range(NETWORKS)]

    for name in SHAPES:
        numbers = torch.stack([net.get_parameter(name).detach().flatten() for net in nets])  # NETWORKS,n
        inputs = math.prod(SHAPES[f"{name.split('.')[0]}.weight"][1:])
        bound = float(torch.tensor(1 / math.sqrt(inputs), dtype=numbers.dtype))
        largest = float(numbers.abs().max())
        assert largest <= bound, f"{name} begins with {largest!r}, which is beyond {bound!r}"
        distance = distance_from_uniform((float64(numbers).ravel() / bound + 1) / 2)
        allowed = math.sqrt(math.log(2 / FALSE_ALARM) / (2 * numbers.numel()))
        assert distance <= allowed, f"{name} begins {distance:.3g} from the uniform distribution, {allowed:.3g} allowed"
        assert len(numbers.unique(dim=0)) == NETWORKS, f"{name} begins the same in two networks"


def distance_from_uniform(numbers: Array) -> float:
    """The largest distance between the numbers' distribution function and that of the uniform one from 0 to 1."""
    ordered, count = np.sort(numbers), numbers.size
    return float(max((np.arange(1, count + 1) / count - ordered).max(), (ordered - np.arange(count) / count).max()))


def test_repr_matches_the_tutorial(stack: Stack) -> None:
    """
    `print(net)` shows what the tutorial shows. Applicable to the reference network alone.

    Rejects: a layer renamed, added or given other arguments.
    """
    if stack.subject.Net is not lenet.Net:
        pytest.skip("another network may print otherwise")

    assert repr(stack.subject.Net()) == REPR


@given(case=cases())
def test_feature_maps_match_the_next_layers_input(stack: Stack, case: Case) -> None:
    """
    `feature_maps` gives conv1's 6 maps of 28x28 and conv2's 16 of 10x10 by name, with no graph.

    Pooled, they are bit for bit what conv2 and fc1 are given. Not applicable to a network that does not call these once
    for the batch. Rejects: a ReLU or pooling that is missing, of another kind, or elsewhere than after the convolution.
    """
    net = stack.net(case)
    seen = observe(net)
    try:
        maps = lenet.feature_maps(net, stack.images(case))
    except LookupError as error:
        pytest.skip(str(error))

    if any(map_.shape[0] != case.batch for map_ in maps.values()) or "into fc1" not in seen:
        pytest.skip("this network does not call its submodules once for the whole batch")
    assert tuple(maps["conv1"].shape) == (case.batch, 6, 28, 28)
    assert tuple(maps["conv2"].shape) == (case.batch, 16, 10, 10)
    assert not any(map_.requires_grad for map_ in maps.values())
    assert_exact(seen["into conv2"], max_pool2d(maps["conv1"], 2), "what conv2 is given")
    assert_exact(seen["into fc1"], max_pool2d(maps["conv2"], 2).flatten(1), "what fc1 is given")
