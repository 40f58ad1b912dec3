"""
`torch.compile` with Inductor, in its modes. Never a silent fallback: what cannot be compiled whole raises.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run, packed


def compiled(net: nn.Module, **options: Any) -> Run:
    """
    The network as one compiled graph, without breaks; its parameters are inputs of the graph.

    Images come to it packed, so that it need not be compiled once more for every layout. Raises where it cannot
    be compiled, or has been more often than `torch._dynamo.config.recompile_limit` allows.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
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


ENGINES = (
    Engine("compiled", compiled),
    Engine("compiled-dynamic", partial(compiled, dynamic=True)),
    Engine("reduce-overhead", partial(compiled, dynamic=True, mode="reduce-overhead")),
    Engine("max-autotune", partial(compiled, dynamic=True, mode="max-autotune")),
    Engine("frozen", Frozen, differentiable=False, copies=True),
)
