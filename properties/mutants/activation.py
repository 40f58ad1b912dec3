"""The activations and the pooling between the layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lenet import Net
from properties.mutants import Category, mutant


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class SecondReluMissing(Net):
    """conv2's maps are pooled without their ReLU."""

    def forward(self, images: Tensor) -> Tensor:
        maps = F.max_pool2d(F.relu(self.conv1(images)), 2)
        maps = F.max_pool2d(self.conv2(maps), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.flatten(maps, 1))))))
