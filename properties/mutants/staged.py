"""LeNet's forward pass in stages, for mutants and twins that change one stage or its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lenet import Net


def with_altered_gradient(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the same values; in the backward pass, `change` is applied to their gradient."""
    same = tensor.view_as(tensor)
    if same.requires_grad:
        same.register_hook(change)
    return same


class StagedNet(Net):
    """`lenet.Net` with one method for each stage of the forward pass, which a subclass can override."""

    def relu1(self, maps: Tensor) -> Tensor:
        return F.relu(maps)  # N,6,28,28

    def pool1(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 2)  # N,6,14,14

    def relu2(self, maps: Tensor) -> Tensor:
        return F.relu(maps)  # N,16,10,10

    def pool2(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, 2)  # N,16,5,5

    def flatten(self, maps: Tensor) -> Tensor:
        return torch.flatten(maps, 1)  # N,400

    def relu3(self, units: Tensor) -> Tensor:
        return F.relu(units)  # N,120

    def relu4(self, units: Tensor) -> Tensor:
        return F.relu(units)  # N,84

    def check(self, images: Tensor) -> None:
        if images.shape[1:] != (1, 32, 32):
            raise ValueError(f"images must be (N, 1, 32, 32), not {tuple(images.shape)}")

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        units = self.relu3(self.fc1(self.flatten(maps)))
        return self.fc3(self.relu4(self.fc2(units)))
