"""A network whose forward pass an engine executes: what the laws are given when an engine is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run

NOT_FOR_ENGINES = "not applicable: does not depend on the engine"
"""Why most laws are skipped when an engine is judged."""


class Borrowing(nn.Module):
    """A network with the parameters and submodules of another one, and a different forward pass."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = net._modules, net._parameters, net._buffers


@dataclass
class Loaded:
    """A forward pass that an engine has built, and the network whose parameters it computes with."""

    run: Run
    owner: Executed


_reloadable: dict[tuple[Any, ...], Loaded] = {}
"""Runs that can load other parameters, kept because compiling one for each of thousands of networks would take days."""


class Executed(Borrowing):
    """
    A network's parameters and submodules, with the forward pass executed by an engine.

    The engine builds it at the first call and again whenever a Parameter has been replaced, once for each batch size if
    the engine requires that. An engine that copies parameters reloads them after they have changed.

    A backward pass skips the law if the engine has none. A pass over an empty batch rejects the current example if the
    engine does not support it.
    """

    net: nn.Module

    def __init__(self, net: nn.Module, engine: Engine, subject: str) -> None:
        super().__init__(net)
        object.__setattr__(self, "net", net)  # not registered as a submodule
        self.engine, self.subject = engine, subject
        self.loaded: dict[int | None, Loaded] = {}  # by batch size; None if the engine accepts every size
        self.built_for: list[nn.Parameter] = []
        self.copied: list[Tensor] = []  # the values that the engine has copied

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N,10) of images (N,1,32,32)."""
        empty = isinstance(images, Tensor) and images.shape[:1] == (0,)
        if empty and "forward" not in self.engine.empty_batch:
            _reject_example()
        run = self._run(None if self.engine.dynamic_batch else len(images))
        if self.engine.differentiable:
            logits = run(images)
            return _stopped(logits, _reject_example) if empty and "backward" not in self.engine.empty_batch else logits
        with torch.no_grad():
            logits = run(images)
        return _stopped(logits, partial(_skip_law, self.engine.name), images, *self.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the network, too."""
        self.net.train(mode)
        return super().train(mode)

    def _run(self, batch: int | None) -> Run:
        """Return the forward pass for this batch size, with the network's current parameters."""
        parameters = list(self.net.parameters())
        if len(parameters) != len(self.built_for) or any(
            now is not then for now, then in zip(parameters, self.built_for, strict=True)
        ):
            self.built_for, self.loaded = parameters, {}
        changed = self.engine.copies_parameters and not all(map(torch.equal, parameters, self.copied))
        loaded = self.loaded.get(batch)
        if loaded is None or changed or loaded.owner is not self:
            with torch.inference_mode(False), torch.enable_grad():
                loaded = self._load(batch)
            self.loaded[batch] = loaded
            self.copied = [p.detach().clone() for p in parameters] if self.engine.copies_parameters else []
        return loaded.run

    def _load(self, batch: int | None) -> Loaded:
        """Load the network into a kept run if there is one, else build it."""
        first = self.built_for[0]
        key = (self.engine, self.subject, first.dtype, first.device, batch)
        loaded = _reloadable.get(key)
        if loaded is None:
            loaded = Loaded(self.engine.build(self.net), self)
            if hasattr(loaded.run, "load"):
                _reloadable[key] = loaded
        else:
            loaded.run.load(self.net)  # type: ignore[attr-defined]
            loaded.owner = self
        return loaded


def _stopped(logits: Tensor, stop: Callable[[], Any], *inputs: Tensor) -> Tensor:
    """Return the logits with a backward pass that calls `stop` before it reaches the inputs."""
    stopped: Tensor = _Stop.apply(logits, stop, *inputs)  # type: ignore[no-untyped-call]
    return stopped


class _Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, stop: Callable[[], Any], *inputs: Tensor) -> Tensor:
        ctx.stop = stop
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *logits_gradient: Tensor) -> Any:
        return ctx.stop()


# Imported when they are needed: processes that only time a network start a fifth faster without them.
def _reject_example() -> None:
    from hypothesis import reject

    reject()


def _skip_law(engine: str) -> None:
    import pytest

    pytest.skip(f"not applicable: {engine} has no backward pass")
