"""
Slower variants of the reference, for the gate to find: subjects such as `benchmarks.slowdowns:By5`.

`By2`, `By3`, `By5` and `By10` add a computation of so many per cent of the arm's own time, whichever benchmark it is;
each process measures for itself how much that is. `By0` adds nothing, but does so in the same way (which takes some
8 microseconds): it is what they are to be compared with. `Copied` copies its images once more than it needs to.
`Foreach` and `ForLoop` update by `optim.SGD` in these forms: to be compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer

import lenet

ROUNDS = 25
"""Of a call and an added computation by turns, at least. Their ratio varies by a tenth: its median by a fortieth."""

WARM = 0.2
"""Seconds of rounds before those that count: the first calls of a process take up to half as long again."""

SPINS = 2000
"""Steps of the added computation in a round: some 30 microseconds, a tenth of the shortest call."""


def spin(steps: int) -> None:
    """The added computation: it takes a time that is proportional to the steps, and touches no memory."""
    for _ in range(steps):
        pass


class Slowed:
    """
    A call, and after it a computation that takes `share` of its time; nothing is added within another slowed call.

    How many steps that takes is measured at the second call of a size. `again` is the call as it can be repeated
    without any effect.
    """

    inside = False

    def __init__(self, share: float) -> None:
        self.share = share
        self.steps: dict[int, int | None] = {}

    def __call__(self, call: Callable[[], Any], again: Callable[[], Any], size: int) -> Any:
        """What the call gives."""
        if Slowed.inside:
            return call()
        Slowed.inside = True
        try:
            result = call()
            if size not in self.steps:
                self.steps[size] = None
            elif (steps := self.steps[size]) is None:
                self.steps[size] = self._measure(again)
            else:
                spin(steps)
            return result
        finally:
            Slowed.inside = False

    def _measure(self, again: Callable[[], Any]) -> int:
        ratios: list[float] = []
        begun, warm = timer(), 0
        while len(ratios) < warm + ROUNDS:
            times = [timer()]
            for call in (again, partial(spin, SPINS), partial(spin, SPINS)):
                call()
                times.append(timer())
            called, _, spun = np.diff(times)  # the first spin is still slow, from what the call left in the caches
            ratios.append(called / spun)
            if timer() - begun < WARM:
                warm = len(ratios)
        return round(self.share * median(ratios[warm:]) * SPINS)


def slowed_by(share: float) -> Any:
    """A subject whose forward pass, and whose training step, takes this share of its time longer."""
    by = Slowed(share)

    class Net(lenet.Net):
        """The reference, slowed."""

        def forward(self, images: Tensor) -> Tensor:
            """(N,1,32,32) -> (N,10)."""
            call = partial(super().forward, images)
            logits: Tensor = by(call, call, len(images))
            return logits

    def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
        """The reference's, slowed."""
        step = partial(lenet.train_step, net, images, targets)
        loss: Tensor = by(partial(step, lr), partial(step, 0.0), -len(images))
        return loss

    return type(f"By{round(100 * share)}", (), {"Net": Net, "train_step": staticmethod(train_step)})


By0, By2, By3, By5, By10 = (slowed_by(share) for share in (0.0, 0.02, 0.03, 0.05, 0.10))


class Copied:
    """The forward pass on a copy of the images, in another memory format and back."""

    class Net(lenet.Net):
        """The reference, of copied images."""

        def forward(self, images: Tensor) -> Tensor:
            """(N,1,32,32) -> (N,10)."""
            copied = images.clone(memory_format=torch.contiguous_format)
            return super().forward(copied)


def _updated_by(form: dict[str, bool]) -> Any:
    def update(parameters: Iterable[nn.Parameter], lr: float) -> None:
        """One step of `optim.SGD`."""
        torch.optim.SGD(parameters, lr=lr, **form).step()

    return type("Updated", (), {"sgd_update": staticmethod(update)})


Foreach, ForLoop = _updated_by({"foreach": True}), _updated_by({"foreach": False})
