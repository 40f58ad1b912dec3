"""
The network as an ONNX graph, which other runtimes take.

https://onnx.ai/onnx/operators/, https://docs.pytorch.org/docs/stable/onnx_export.html
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnxscript  # noqa: F401  # torch.onnx.export needs it: that it is missing is to be said before anything is built
import torch
from torch import Tensor, nn

from lenet.engines import Run, packed
from lenet.engines.exported import export

Start = Callable[[bytes], Run]
"""From a serialized graph to what runs it: packed images (N,1,32,32) -> logits (N,10)."""


def graph(net: nn.Module) -> onnx.ModelProto:
    """
    The network for batches of every size; its parameters are initializers of their own names.

    Not optimized, which is the runtime's part: what is folded here, such as a weight's transpose, has lost its name.
    """
    program = torch.onnx.export(export(net), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


class Ported:
    """The network's ONNX graph, exported once, as another runtime runs it with the parameters that were loaded last."""

    def __init__(self, net: nn.Module, start: Start) -> None:
        self.graph, self.start = graph(net), start
        self.load(net)

    def load(self, net: nn.Module) -> None:
        """Take the parameters that this network of the same class has now."""
        parameters = dict(net.named_parameters())
        for initializer in self.graph.graph.initializer:
            if initializer.name in parameters:
                values = parameters[initializer.name].detach().flatten()
                initializer.raw_data = values.view(torch.uint8).numpy().tobytes()
        self.run = self.start(self.graph.SerializeToString())

    def __call__(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10), without a graph."""
        return self.run(packed(images.detach()))
