"""
`torch.compile` with Inductor, in its modes. Never a silent fallback: what cannot be compiled whole raises.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run, packed

GRAPHS = 32
"""How often one network may be compiled: for gradients by nothing, parameters, or images too, and by batch size."""


@contextmanager
def never_eager() -> Iterator[None]:
    """What cannot be compiled again raises, and a graph may be walked twice, as PyTorch's may."""
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=GRAPHS),
        torch._functorch.config.patch(donated_buffer=False),
    ):
        yield


def compiled(net: nn.Module, **options: Any) -> Run:
    """
    The network as one compiled graph, without breaks; its parameters are inputs of the graph.

    Images come to it packed, so that it need not be compiled once more for every layout. Raises where it cannot be
    compiled, or (in `never_eager`) has been compiled too often.
    """
    run = torch.compile(net, fullgraph=True, **options)
    return lambda images: run(packed(images))


class Frozen:
    """The network compiled for inference alone, with its parameters as constants that are folded and packed."""

    def __init__(self, net: nn.Module) -> None:
        self.run = compiled(net, dynamic=True, options={"freezing": True})

    def __call__(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10), without a graph."""
        with torch.no_grad():
            return self.run(images)


NO_EMPTY_BACKWARD = ("forward",)
"""Inductor's check of convolution_backward's strides fails on a gradient that eager PyTorch gives as a zero view."""


def engine(name: str, **options: Any) -> Engine:
    """`torch.compile` with these options."""
    return Engine(name, partial(compiled, **options), empty=NO_EMPTY_BACKWARD, context=never_eager)


ENGINES = (
    engine("compiled"),
    engine("compiled-dynamic", dynamic=True),
    engine("reduce-overhead", dynamic=True, mode="reduce-overhead"),
    engine("max-autotune", dynamic=True, mode="max-autotune"),
    Engine("frozen", Frozen, differentiable=False, copies=True, context=never_eager),
)
