"""The activations and the pooling between the layers."""

from __future__ import annotations

from torch import Tensor

from properties.mutants import Category, mutant
from properties.mutants.staged import Staged


@mutant("Net", law="logits_agree_with_the_oracle", category=Category.ACTIVATION)
class SecondReluMissing(Staged):
    """conv2's maps are pooled without their ReLU."""

    def relu2(self, maps: Tensor) -> Tensor:
        return maps
