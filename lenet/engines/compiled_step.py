"""
The complete training step as one compiled graph: forward, loss, backward and update.

This is a subject that defines `train_step` only. `pytest properties/laws --subject lenet.engines.compiled_step` judges
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lenet
from lenet.engines import to_standard_layout
from lenet.engines.compiled import compile_fullgraph, deterministic

Parameters = dict[str, Tensor]
Step = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Parameters, Tensor]]
"""(net, images, targets, lr) -> (gradients by name, loss); updates the parameters in place."""

_steps: dict[Any, Step] = {}
"""The compiled steps by class of network and dtype."""


def _compile_step() -> Step:
    def step(net: nn.Module, images: Tensor, targets: Tensor, lr: Tensor) -> tuple[Parameters, Tensor]:
        parameters: Parameters = dict(net.named_parameters())

        def loss_of(values: Parameters) -> Tensor:
            return F.mse_loss(torch.func.functional_call(net, values, (images,)), targets)

        gradients, loss = torch.func.grad_and_value(loss_of)(parameters)
        for name, parameter in parameters.items():
            parameter.sub_(lr * gradients[name])
        return gradients, loss

    return compile_fullgraph(step)


def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """
    Take one SGD step on the mean squared error; returns the loss before the step, detached.

    Leaves the gradients in `.grad`, like `lenet.train_step`. An empty batch is passed to `lenet.train_step`, since its
    loss (a mean of no elements) cannot be compiled. Raises ValueError if the targets are not (N,10), and the compiler's
    error if the step does not compile to one graph.
    """
    if not len(images):
        return lenet.train_step(net, images, targets, lr)
    if targets.shape != (len(images), 10):
        raise ValueError(f"targets of {len(images)} images are ({len(images)}, 10), not {tuple(targets.shape)}")
    key = (type(net), images.dtype)
    step = _steps[key] = _steps.get(key) or _compile_step()
    with deterministic(), torch.no_grad():  # torch.func computes the gradients
        gradients, loss = step(net, to_standard_layout(images), targets, torch.tensor(lr, dtype=torch.float64))
    for name, parameter in net.named_parameters():
        parameter.grad = gradients[name]
    return loss
