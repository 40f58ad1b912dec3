"""
The parts of a training step, by timestamps within the step, so that they add up to it.

A part begins where something observable happens: the network is called and returns, the backward pass is called and
returns. So any subject's step is divided, whatever it does in between. On a GPU, the timestamps are CUDA events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

PARTS = {
    "zero gradients": "before the network is called",
    "forward": "the network's call",
    "loss": "until the backward pass is called",
    "backward": "the call of `backward`",
    "update": "until the step returns",
}
"""The parts of a step in their order, and what each is."""

BACKWARD = ("backward", "grad")
"""The functions of `torch.autograd` that run a backward pass; `Tensor.backward` calls the first."""


class DividedStep:
    """
    A training step that takes a timestamp whenever one of its parts begins: call it in place of the step.

    Only calls within `observed` are divided.
    """

    def __init__(self, step: Callable[[], Tensor], net: nn.Module, device: torch.device) -> None:
        self.step, self.net = step, net
        self.now = _recorded_event if device.type == "cuda" else perf_counter
        self.stamps: list[list[tuple[str, Any]]] = []
        """For each call, the parts in the order in which they began, and when; the last has an empty name."""

    def __call__(self) -> Tensor:
        """Take a step and return its loss."""
        self.stamps.append([])
        self._begin("zero gradients")
        loss = self.step()
        self._begin("")
        return loss

    def _begin(self, part: str) -> None:
        self.stamps[-1].append((part, self.now()))

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Within this block, calls of the network and of the backward pass are observed."""
        hooks = [
            self.net.register_forward_pre_hook(lambda *_: self._begin("forward")),
            self.net.register_forward_hook(lambda *_: self._begin("loss")),
        ]
        observed: dict[str, Any] = {name: self._observed_backward(getattr(torch.autograd, name)) for name in BACKWARD}
        try:
            with mock.patch.multiple(torch.autograd, **observed):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _observed_backward(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def observed(*arguments: Any, **options: Any) -> Any:
            self._begin("backward")
            result = function(*arguments, **options)
            self._begin("update")
            return result

        return observed

    def parts(self, calls: int, seconds: float) -> dict[str, float]:
        """
        Divide `seconds` in the proportion that the parts have in the last `calls` calls; the sum is `seconds`.

        Of these calls, those outside the quartiles of their time are left out. Returns nothing if a part was not
        observed in all of them. On a GPU, its queued work must be complete.
        """
        divided = [_seconds(stamps) for stamps in self.stamps[-calls:]]
        if any(parts.keys() != PARTS.keys() for parts in divided):
            return {}
        times = np.array([[parts[name] for name in PARTS] for parts in divided])
        order = np.argsort(times.sum(axis=1))
        middle = times[order[len(order) // 4 : len(order) - len(order) // 4]].sum(axis=0)
        return dict(zip(PARTS, (seconds * middle / middle.sum()).tolist(), strict=True))


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(stamps: list[tuple[str, Any]]) -> dict[str, float]:
    """Return the seconds of each part of a step; a part that began several times has the sum."""
    seconds: dict[str, float] = {}
    for (part, start), (_, end) in pairwise(stamps):
        taken = end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3
        seconds[part] = seconds.get(part, 0.0) + taken
    return seconds
