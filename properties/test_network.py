"""Laws of the network's shape: what goes in, what comes out, and what lies between."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

import lenet
from lenet.oracle import SHAPES
from properties.closeness import assert_exact
from properties.stack import Stack
from properties.strategies import Case, cases

REPR = """\
Net(
  (conv1): Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1))
  (conv2): Conv2d(6, 16, kernel_size=(5, 5), stride=(1, 1))
  (fc1): Linear(in_features=400, out_features=120, bias=True)
  (fc2): Linear(in_features=120, out_features=84, bias=True)
  (fc3): Linear(in_features=84, out_features=10, bias=True)
)"""


@given(case=cases(batches=(1,)))
def test_one_image_gives_ten_scores(stack: Stack, case: Case) -> None:
    """
    One 1x1x32x32 image gives 1x10 scores, in the dtype and on the device of the network.

    Rejects: a missing batch dimension, an output that is cast or left on another device.
    """
    logits = stack.logits(case)

    assert logits.shape == (1, 10)
    assert logits.dtype == stack.dtype
    assert logits.device.type == stack.device.type


@given(batch=st.sampled_from([0, 1, 2, 3, 7, 64]) | st.integers(0, 100), seed=st.integers(0, 2**32 - 1))
def test_each_image_gives_ten_scores(stack: Stack, batch: int, seed: int) -> None:
    """
    N images give N rows of ten scores, for every N, none and odd numbers included.

    Rejects: a fixed batch size, a last row dropped, `view(-1, 400)`.
    """
    logits = stack.logits(Case(batch=batch, seed=seed))

    assert logits.shape == (batch, 10)


@given(case=cases())
def test_stages_have_the_tutorials_shapes(stack: Stack, case: Case) -> None:
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


def test_parameters_are_the_tutorials_ten(stack: Stack) -> None:
    """
    `net.parameters()` are ten, by name, order and shape: 61,706 numbers, each of which is trained.

    Rejects: a frozen or tied parameter, another order.
    """
    net = stack.subject.Net()

    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == SHAPES
    assert [name for name, _ in net.named_parameters()] == list(SHAPES)
    assert sum(p.numel() for p in net.parameters()) == 61_706
    assert all(p.requires_grad and p.is_leaf for p in net.parameters())
    assert len({p.data_ptr() for p in net.parameters()}) == 10


def test_repr_is_the_tutorials(stack: Stack) -> None:
    """
    `print(net)` shows what the tutorial shows. Applicable to the reference network alone.

    Rejects: a layer renamed, added or given other arguments.
    """
    if stack.subject.Net is not lenet.Net:
        pytest.skip("another network may print otherwise")

    assert repr(stack.subject.Net()) == REPR


@given(case=cases())
def test_feature_maps_are_what_the_next_layer_is_given(stack: Stack, case: Case) -> None:
    """
    `feature_maps` gives conv1's 6 maps of 28x28 and conv2's 16 of 10x10 by name, with no graph.

    Pooled, they are bit for bit what conv2 and fc1 are given. Not applicable to a network that does not call these.
    Rejects: a ReLU or pooling that is missing, of another kind, or in another place than after the convolution.
    """
    net = stack.net(case)
    seen = observe(net)
    try:
        maps = lenet.feature_maps(net, stack.images(case))
    except LookupError as error:
        pytest.skip(str(error))

    assert tuple(maps["conv1"].shape) == (case.batch, 6, 28, 28)
    assert tuple(maps["conv2"].shape) == (case.batch, 16, 10, 10)
    assert not any(map_.requires_grad for map_ in maps.values())
    if seen.get("into conv2", maps["conv1"]).shape[0] != case.batch or "into fc1" not in seen:
        pytest.skip("this network does not call its submodules once for the whole batch")
    assert_exact(seen["into conv2"], max_pool2d(maps["conv1"], 2), "what conv2 is given")
    assert_exact(seen["into fc1"], max_pool2d(maps["conv2"], 2).flatten(1), "what fc1 is given")
