"""
The whole training step as one compiled graph: forward, loss, backward and update. A subject: `train_step` alone.

`pytest properties -m law --subject lenet.engines.compiled_step` judges it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lenet
from lenet.engines import packed
from lenet.engines.compiled import deterministic, whole

Parameters = dict[str, Tensor]

_programs: dict[Any, Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Parameters, Tensor]]] = {}
"""By class of network and dtype."""


def _program() -> Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Parameters, Tensor]]:
    def step(net: nn.Module, images: Tensor, targets: Tensor, lr: Tensor) -> tuple[Parameters, Tensor]:
        parameters: Parameters = dict(net.named_parameters())

        def loss(own: Parameters) -> Tensor:
            return F.mse_loss(torch.func.functional_call(net, own, (images,)), targets)

        gradients, value = torch.func.grad_and_value(loss)(parameters)
        for name, parameter in parameters.items():
            parameter.sub_(lr * gradients[name])
        return gradients, value

    return whole(step)


def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
    """
    Forward, mean squared error, backward, update by hand; returns the loss before it, detached.

    The gradients are left in `.grad`, as `lenet.train_step` leaves them. An empty batch, whose loss cannot be compiled
    (it divides by none), takes that step. Raises where the step cannot be compiled.
    """
    if not len(images):
        return lenet.train_step(net, images, targets, lr)
    if targets.shape != (len(images), 10):
        raise ValueError(f"targets of {len(images)} images are ({len(images)}, 10), not {tuple(targets.shape)}")
    key = (type(net), images.dtype)
    step = _programs[key] = _programs.get(key) or _program()
    with deterministic(), torch.no_grad():  # whose gradients are torch.func's
        gradients, loss = step(net, packed(images), targets, torch.tensor(lr, dtype=torch.float64))
    for name, parameter in net.named_parameters():
        parameter.grad = gradients[name]
    return loss
