"""Correct variants that look different: no law is to reject them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from properties.mutants import twin
from properties.mutants.staged import Staged


@twin("Net")
class ReluAfterPooling(Staged):
    """The maximum of a window is rectified, instead of each of its elements."""

    def relu1(self, maps: Tensor) -> Tensor:
        return maps

    def pool1(self, maps: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(maps, 2))

    def relu2(self, maps: Tensor) -> Tensor:
        return maps

    def pool2(self, maps: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(maps, 2))
