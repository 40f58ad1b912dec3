"""
Slower variants of the reference for the gate to detect: subjects such as `benchmarks.slowdowns:Slower5`.

`Slower2`, `Slower3`, `Slower5` and `Slower10` add a computation that takes that many percent of the process's own
processor time, in every benchmark; each process measures at every call how long that is. `Slower0` measures too and
adds nothing, so it is the base that the others are compared with. `ExtraCopy` makes one unnecessary copy of its images.
`ForeachSGD` and `ForLoopSGD` update with two implementations of `optim.SGD`, to be compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from time import thread_time
from typing import Any

import torch
from torch import Tensor, nn

import lenet


class Slowed:
    """
    Calls a function and then computes for `share` of the time taken. A call inside another such call adds nothing.

    The time taken is all processor time of the thread since the last added computation ended, so what happens before
    and after the call is slowed as well. Waiting for other processes does not count.
    """

    active = False

    def __init__(self, share: float) -> None:
        self.share = share
        self.ended = thread_time()

    def __call__(self, call: Callable[[], Any]) -> Any:
        """Return the result of the call, after the added computation."""
        if Slowed.active:
            return call()
        Slowed.active = True
        try:
            result = call()
            now = thread_time()
            end = now + self.share * (now - self.ended)
            while now < end:
                now = thread_time()
            self.ended = now
            return result
        finally:
            Slowed.active = False


def slowed_by(share: float) -> Any:
    """Return a subject whose forward pass and training step take this share of their time longer."""
    slowed = Slowed(share)

    class Net(lenet.Net):
        """The reference network, slowed."""

        def forward(self, images: Tensor) -> Tensor:
            """Return the logits: (N,1,32,32) -> (N,10)."""
            logits: Tensor = slowed(partial(super().forward, images))
            return logits

    def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
        """Do the reference's training step, slowed."""
        loss: Tensor = slowed(partial(lenet.train_step, net, images, targets, lr))
        return loss

    return type(f"Slower{round(100 * share)}", (), {"Net": Net, "train_step": staticmethod(train_step)})


Slower0, Slower2, Slower3, Slower5, Slower10 = (slowed_by(share) for share in (0.0, 0.02, 0.03, 0.05, 0.10))


class ExtraCopy:
    """The forward pass makes one unnecessary copy of the images."""

    class Net(lenet.Net):
        """The reference network, which copies its images first."""

        def forward(self, images: Tensor) -> Tensor:
            """Return the logits: (N,1,32,32) -> (N,10)."""
            copied = images.clone(memory_format=torch.contiguous_format)
            return super().forward(copied)


def _updated_by(options: dict[str, bool]) -> Any:
    def update(parameters: Iterable[nn.Parameter], lr: float) -> None:
        """Do one step of `optim.SGD` with these options."""
        torch.optim.SGD(parameters, lr=lr, **options).step()

    return type("Updated", (), {"sgd_update": staticmethod(update)})


ForeachSGD, ForLoopSGD = _updated_by({"foreach": True}), _updated_by({"foreach": False})
