"""
Slower variants of the reference for the gate to detect: subjects such as `benchmarks.slowdowns:Slower5`.

`Slower2`, `Slower3`, `Slower5` and `Slower10` add a computation that takes that many percent of the process's own
processor time, in every benchmark; each process measures at every call how long that is. `Slower0` measures too and
adds nothing, so it is the base that the others are compared with. `ExtraCopy`, `ExtraAllocation`, `ExtraDispatch`,
`LayoutConversion`, `CacheHostile`, `Synchronization`, `PythonLoop` and `OneThread` have one realistic fault each.
`ForeachSGD` and `ForLoopSGD` update with two implementations of `optim.SGD`, to be compared with each other.
"""

from __future__ import annotations

import warnings
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


def _before_forward(fault: Callable[[Tensor], Tensor], doc: str) -> Any:
    """Return a subject whose forward pass first applies a function to its images, which returns equal images."""

    class Net(lenet.Net):
        """The reference network, with a fault of speed."""

        def forward(self, images: Tensor) -> Tensor:
            """Return the logits: (N,1,32,32) -> (N,10)."""
            return super().forward(fault(images))

    return type("Faulty", (), {"Net": Net, "__doc__": doc})


def _copied(images: Tensor) -> Tensor:
    return images.clone(memory_format=torch.contiguous_format)


def _after_an_allocation(images: Tensor) -> Tensor:
    torch.empty(len(images), 6, 28, 28, device=images.device, dtype=images.dtype)
    return images


def _dispatched(images: Tensor) -> Tensor:
    return images.view_as(images)


def _transposed(images: Tensor) -> Tensor:
    return images.transpose(2, 3).contiguous().transpose(2, 3)


TABLE = torch.ones(2**18)
"""A megabyte, more than a core's first-level cache has."""


def _after_a_walk(images: Tensor) -> Tensor:
    TABLE[::16].sum()  # 4-byte numbers, one of each cache line of 64 bytes
    return images


def _inspected(images: Tensor) -> Tensor:
    if images.isnan().any():  # a GPU must finish before this is known
        warnings.warn("an image has a NaN", stacklevel=2)
    return images


def _after_a_loop(images: Tensor) -> Tensor:
    for image in images:
        if image.dim() != 3:
            raise ValueError("an image is not (1,32,32)")
    return images


ExtraCopy = _before_forward(_copied, "The images are copied needlessly.")
ExtraAllocation = _before_forward(_after_an_allocation, "Memory for the output of conv1 is allocated and not used.")
ExtraDispatch = _before_forward(_dispatched, "An operator is called that does nothing.")
LayoutConversion = _before_forward(_transposed, "The images are brought into a layout that the convolution undoes.")
CacheHostile = _before_forward(_after_a_walk, "A number of each cache line of a large table is read.")
Synchronization = _before_forward(_inspected, "The program waits for the device, to look for NaN.")
PythonLoop = _before_forward(_after_a_loop, "A loop in Python inspects each image.")


class OneThread:
    """PyTorch is set to one thread, which is fewer than it is started with."""

    class Net(lenet.Net):
        """The reference network, which changes the number of threads."""

        def __init__(self) -> None:
            super().__init__()
            torch.set_num_threads(1)


def _updated_by(options: dict[str, bool]) -> Any:
    def update(parameters: Iterable[nn.Parameter], lr: float) -> None:
        """Do one step of `optim.SGD` with these options."""
        torch.optim.SGD(parameters, lr=lr, **options).step()

    return type("Updated", (), {"sgd_update": staticmethod(update)})


ForeachSGD, ForLoopSGD = _updated_by({"foreach": True}), _updated_by({"foreach": False})
