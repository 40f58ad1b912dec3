"""
Slower variants of the reference, for the gate to find: subjects such as `benchmarks.slowdowns:By5`.

`By2`, `By3`, `By5` and `By10` add a computation of so many per cent of the arm's own time, whichever benchmark it is;
each process measures for itself, at every call, how much that is. `By0` measures too, and adds nothing: it is what they
are to be compared with. `Copied` copies its images once more than it needs to.
`Foreach` and `ForLoop` update by `optim.SGD` in these forms: to be compared with each other.
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
    A call, and after it a computation that takes `share` of its time; nothing is added within another such call.

    Its time is all that the thread has computed since the last such computation ended, so that what leads to the call
    and what follows it are slowed as well. It is processor time: a wait for other processes is no time of the arm's.
    """

    inside = False

    def __init__(self, share: float) -> None:
        self.share = share
        self.ended = thread_time()

    def __call__(self, call: Callable[[], Any]) -> Any:
        """What the call gives."""
        if Slowed.inside:
            return call()
        Slowed.inside = True
        try:
            result = call()
            now = thread_time()
            end = now + self.share * (now - self.ended)
            while now < end:
                now = thread_time()
            self.ended = now
            return result
        finally:
            Slowed.inside = False


def slowed_by(share: float) -> Any:
    """A subject whose forward pass, and whose training step, takes this share of its time longer."""
    by = Slowed(share)

    class Net(lenet.Net):
        """The reference, slowed."""

        def forward(self, images: Tensor) -> Tensor:
            """(N,1,32,32) -> (N,10)."""
            logits: Tensor = by(partial(super().forward, images))
            return logits

    def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
        """The reference's, slowed."""
        loss: Tensor = by(partial(lenet.train_step, net, images, targets, lr))
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
