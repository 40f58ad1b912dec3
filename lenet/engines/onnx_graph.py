"""
The network as an ONNX graph, which other runtimes execute.

https://onnx.ai/onnx/operators/, https://docs.pytorch.org/docs/stable/onnx_export.html
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnxscript  # noqa: F401  # torch.onnx.export needs it; if it is missing, fail here, before anything is built
import torch
from torch import Tensor, nn

from lenet.engines import Run, to_standard_layout
from lenet.engines.exported import export

StartSession = Callable[[bytes], Run]
"""Load a serialized ONNX graph into a runtime; returns its forward pass, for images in the standard layout."""


def export_onnx(net: nn.Module) -> onnx.ModelProto:
    """
    Export the network to ONNX with a dynamic batch size; each parameter is an initializer of the same name.

    The exporter does not optimize the graph: it would fold a weight's transpose into an initializer of another name,
    which could no longer be replaced. Runtimes optimize the graph themselves.
    """
    program = torch.onnx.export(export(net), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


class OnnxNetwork:
    """A network that is exported to ONNX once and executed by another runtime, with reloadable parameters."""

    def __init__(self, net: nn.Module, start_session: StartSession) -> None:
        self.model, self.start_session = export_onnx(net), start_session
        self.load(net)

    def load(self, net: nn.Module) -> None:
        """Copy the current parameters of this network, which must be of the same class, and start a new session."""
        parameters = dict(net.named_parameters())
        for initializer in self.model.graph.initializer:
            if initializer.name in parameters:
                values = parameters[initializer.name].detach().flatten()
                initializer.raw_data = values.view(torch.uint8).numpy().tobytes()
        self.run = self.start_session(self.model.SerializeToString())

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits, without an autograd graph: (N,1,32,32) -> (N,10)."""
        return self.run(to_standard_layout(images.detach()))
