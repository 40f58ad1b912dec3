"""A network whose forward pass an engine runs: what the laws are given of an engine in the place of a network."""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run

_runs: dict[tuple[Any, ...], Run] = {}
"""What engines have built that can be loaded anew: to compile for each of thousands of networks would take days."""

_loaded: dict[int, Executed] = {}
"""Whose parameters each of these has, by its id."""


class Executed(nn.Module):
    """
    The parameters and submodules of a network, and an engine that computes its forward pass.

    Built at the first call, of each batch size where the engine wants that; an engine that holds copies of the
    parameters is given them anew once they have changed. Where the engine has no backward pass, a law that asks for
    one does not apply to it.
    """

    net: nn.Module

    def __init__(self, net: nn.Module, engine: Engine, subject: str) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = net._modules, net._parameters, net._buffers
        object.__setattr__(self, "net", net)  # which is no submodule of this one
        self.engine, self.subject = engine, subject
        self.own: dict[int | None, Run] = {}  # by batch size, where the engine wants one for each
        self.state: list[Tensor] = []  # of which an engine holds copies

    def forward(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10)."""
        batch = None if self.engine.any_batch else len(images)
        run = self._copied(batch) if self.engine.copies else self._built(batch)
        if self.engine.differentiable:
            return run(images)
        with torch.no_grad():
            logits = run(images)
        if not torch.is_grad_enabled():
            return logits
        joined: Tensor = _ForwardOnly.apply(logits, self.engine.name, *self.parameters())
        return joined

    def train(self, mode: bool = True) -> Self:
        """Also of the network itself."""
        self.net.train(mode)
        return super().train(mode)

    def _built(self, batch: int | None) -> Run:
        if batch not in self.own:
            self.own[batch] = self.engine.build(self.net)
        return self.own[batch]

    def _copied(self, batch: int | None) -> Run:
        parameters = [parameter.detach() for parameter in self.net.parameters()]
        key = (self.engine, self.subject, parameters[0].dtype, parameters[0].device, batch)
        run = _runs.get(key)
        if run and _loaded[id(run)] is self and all(map(torch.equal, parameters, self.state)):
            return run
        if run and hasattr(run, "load"):
            run.load(self.net)
        else:
            _runs[key] = run = self.engine.build(self.net)
        _loaded[id(run)] = self
        self.state = [parameter.clone() for parameter in parameters]
        return run


class _ForwardOnly(torch.autograd.Function):
    """The logits of an engine without a backward pass: a law that comes back to here does not apply to it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, engine: str, *parameters: Tensor) -> Tensor:
        ctx.engine = engine
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *by_logits: Tensor) -> Any:
        pytest.skip(f"not applicable: {ctx.engine} has no backward pass")
