"""Feature maps, operation counts and parameters of the network; the laws judge what it computes."""

import math
import re

import pytest
import torch
from torch import nn

from lenet import Net, feature_maps
from lenet.net import FORWARD_FLOPS, TRAINING_FLOPS
from lenet.oracle import SHAPES


@pytest.mark.parametrize("batch", [0, 1, 2, 4, 9, 25])
@pytest.mark.parametrize(
    "size", [*((n, n) for n in (31, 33, 34, 35, 36, 52, 72)), (32, 33), (33, 32), (16, 64), (32, 0), (0, 0)]
)
def test_images_of_any_other_size_raise(size: tuple[int, int], batch: int) -> None:
    images = torch.ones(batch, 1, *size)

    with pytest.raises(ValueError, match=re.escape(f"images must be (N, 1, 32, 32), not {tuple(images.shape)}")):
        Net()(images)


def test_unbatched_image_raises() -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 32, 32\), not \(1, 32, 32\)"):
        Net()(torch.ones(1, 32, 32))


def test_feature_maps_are_convolutions_after_relu() -> None:
    net, images = Net(), torch.randn(3, 1, 32, 32)

    maps = feature_maps(net, images)

    first = torch.relu(net.conv1(images))
    second = torch.relu(net.conv2(torch.max_pool2d(first, 2)))
    assert list(maps) == ["conv1", "conv2"]
    assert torch.equal(maps["conv1"], first)
    assert torch.equal(maps["conv2"], second)


def test_feature_maps_leave_no_hooks() -> None:
    net = Net()

    feature_maps(net, torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 32, 32\), not \(1, 1, 5, 5\)"):
        feature_maps(net, torch.zeros(1, 1, 5, 5))

    assert not any(module._forward_hooks for module in net.modules())


def test_feature_maps_of_unused_convolutions_raise() -> None:
    class Idle(Net):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    with pytest.raises(LookupError, match="Idle does not call its submodule conv1"):
        feature_maps(Idle(), torch.zeros(1, 1, 32, 32))


def test_flops_are_two_for_each_weight_at_each_position() -> None:
    positions = {"conv1": 28 * 28, "conv2": 10 * 10, "fc1": 1, "fc2": 1, "fc3": 1}
    products = {layer: n * math.prod(SHAPES[f"{layer}.weight"]) for layer, n in positions.items()}

    assert 2 * sum(products.values()) == FORWARD_FLOPS
    assert 3 * FORWARD_FLOPS - 2 * products["conv1"] == TRAINING_FLOPS


def test_parameters_are_61706_numbers() -> None:
    assert sum(p.numel() for p in Net().parameters()) == 61_706
    assert all(isinstance(p, nn.Parameter) for p in Net().parameters())
