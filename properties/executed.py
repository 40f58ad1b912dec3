"""A network whose forward pass an engine runs: what the laws are given of an engine in the place of a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run

NOT_ABOUT_RUNNING = "not applicable: is not about how a network is run"
"""Why most laws judge no engine."""

_runs: dict[tuple[Any, ...], Run] = {}
"""What can be loaded anew: to compile for each of thousands of networks would take days."""

_loaded: dict[int, Executed] = {}
"""Who has loaded each of these last, by its id."""


class Borrowing(nn.Module):
    """A network of the parameters and submodules of another, whose forward pass is computed in another way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = net._modules, net._parameters, net._buffers


class Executed(Borrowing):
    """
    The parameters and submodules of a network, and an engine that computes its forward pass.

    Built at the first call and whenever the network has other Parameters; of each batch size where the engine wants
    that. An engine that holds copies is given them anew once they have changed. Where it has no backward pass, a law
    that asks for one does not apply to it; a pass that it cannot make of an empty batch is no example.
    """

    net: nn.Module

    def __init__(self, net: nn.Module, engine: Engine, subject: str) -> None:
        super().__init__(net)
        object.__setattr__(self, "net", net)  # which is no submodule of this one
        self.engine, self.subject = engine, subject
        self.own: dict[int | None, Run] = {}  # by batch size, where the engine wants one for each
        self.parts: list[nn.Parameter] = []  # for which it was built
        self.numbers: list[Tensor] = []  # of which an engine holds copies

    def forward(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10)."""
        empty = isinstance(images, Tensor) and images.shape[:1] == (0,)
        if empty and "forward" not in self.engine.empty:
            _no_example()
        run = self._run(None if self.engine.any_batch else len(images))
        if self.engine.differentiable:
            logits = run(images)
            return _stopped(logits, _no_example) if empty and "backward" not in self.engine.empty else logits
        with torch.no_grad():
            logits = run(images)
        return _stopped(logits, partial(_no_backward, self.engine.name), images, *self.parameters())

    def train(self, mode: bool = True) -> Self:
        """Also of the network itself."""
        self.net.train(mode)
        return super().train(mode)

    def _run(self, batch: int | None) -> Run:
        parts = list(self.net.parameters())
        if len(parts) != len(self.parts) or any(now is not then for now, then in zip(parts, self.parts, strict=True)):
            self.parts, self.own = parts, {}
        changed = self.engine.copies and not all(map(torch.equal, parts, self.numbers))
        run = self.own.get(batch)
        if run is None or changed or _loaded.get(id(run), self) is not self:
            with torch.inference_mode(False), torch.enable_grad():
                run = self._anew(batch)
            self.own[batch] = run
            self.numbers = [part.detach().clone() for part in parts] if self.engine.copies else []
        return run

    def _anew(self, batch: int | None) -> Run:
        part = self.parts[0]
        key = (self.engine, self.subject, part.dtype, part.device, batch)
        run = _runs.get(key)
        if run is None:
            run = self.engine.build(self.net)
        else:
            run.load(self.net)  # type: ignore[attr-defined]
        if hasattr(run, "load"):
            _runs[key], _loaded[id(run)] = run, self
        return run


def _stopped(logits: Tensor, stop: Callable[[], Any], *inputs: Tensor) -> Tensor:
    """The logits, from which a backward pass to the inputs comes to `stop`."""
    stopped: Tensor = _Stop.apply(logits, stop, *inputs)  # type: ignore[no-untyped-call]
    return stopped


class _Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, stop: Callable[[], Any], *inputs: Tensor) -> Tensor:
        ctx.stop = stop
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *by_logits: Tensor) -> Any:
        return ctx.stop()


# What a law is ended by is imported then: the processes that only time a network start a fifth sooner without it.
def _no_example() -> None:
    from hypothesis import reject

    reject()


def _no_backward(engine: str) -> None:
    import pytest

    pytest.skip(f"not applicable: {engine} has no backward pass")
