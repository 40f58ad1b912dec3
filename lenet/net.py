"""
The reference network: the LeNet of PyTorch's "Neural Networks" tutorial.

https://docs.pytorch.org/tutorials/beginner/blitz/neural_networks_tutorial.html, after LeCun, Bottou, Bengio & Haffner
1998, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), figure 2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORWARD_FLOPS = 833_040
"""Floating-point operations of one image's forward pass: two for each multiply-add in the five layers' products."""

TRAINING_FLOPS = 2_263_920
"""
The same for a forward and a backward pass.

The backward pass costs two forward passes, one for the gradients with respect to the weights and one for those with
respect to the layers' inputs; conv1 needs none with respect to its input.
"""


class Net(nn.Module):
    """LeNet with ten logits for each 32x32 image, without softmax: (N, 1, 32, 32) -> (N, 10). 61,706 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """
        Return the logits, (N, 1, 32, 32) -> (N, 10). Raises ValueError for images of any other shape.

        Without the check, images of 33 to 35 pixels would be accepted, and pooling would discard their last pixels.
        """
        if images.shape[1:] != (1, 32, 32):
            raise ValueError(f"images must be (N, 1, 32, 32), not {tuple(images.shape)}")
        # The paper's names: C for convolution, S for subsampling, F for fully connected.
        c1 = F.relu(self.conv1(images))  # N,6,28,28
        s2 = F.max_pool2d(c1, 2)  # N,6,14,14
        c3 = F.relu(self.conv2(s2))  # N,16,10,10
        s4 = F.max_pool2d(c3, 2)  # N,16,5,5
        flat = torch.flatten(s4, 1)  # N,400
        f5 = F.relu(self.fc1(flat))  # N,120
        f6 = F.relu(self.fc2(f5))  # N,84
        logits: Tensor = self.fc3(f6)  # N,10
        return logits


def feature_maps(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """
    Return the outputs of conv1 (N,6,28,28) and conv2 (N,16,10,10) after their ReLU, by layer name.

    Forward hooks on the submodules `conv1` and `conv2` read the maps while `net` runs without a graph. Raises
    LookupError if its forward pass does not call them.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        maps[name] = F.relu(output)

    names = ("conv1", "conv2")
    hooks = [net.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in names if name not in maps]:
        raise LookupError(f"the forward pass of {type(net).__name__} does not call its submodule {missing[0]}")
    return maps
