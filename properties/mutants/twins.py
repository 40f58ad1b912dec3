"""Correct variants that look different."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lenet import Net
from properties.mutants import twin


@twin("Net")
class ReluAfterPooling(Net):
    """The maximum of a window is rectified, instead of each of its elements."""

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 32, 32):
            raise ValueError(f"images are (N, 1, 32, 32), not {tuple(images.shape)}")
        maps = F.relu(F.max_pool2d(self.conv1(images), 2))
        maps = F.relu(F.max_pool2d(self.conv2(maps), 2))
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.flatten(maps, 1))))))
