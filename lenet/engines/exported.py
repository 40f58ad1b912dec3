"""
`torch.export`: the exported graph itself, and AOTInductor's compiled package of it.

https://docs.pytorch.org/docs/stable/export.html, https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lenet.engines import Engine, to_standard_layout

CHECK_INPUTS = {"AOTI_RUNTIME_CHECK_INPUTS": "1"}
"""Environment of a package's first call. Without it, a package reads out of bounds for images of another shape."""


def example_images(net: nn.Module) -> Tensor:
    """Return four black images (4,1,32,32) on the network's device and in its dtype."""
    parameter = next(net.parameters())
    return torch.zeros(4, 1, 32, 32, device=parameter.device, dtype=parameter.dtype)


def export(net: nn.Module) -> ExportedProgram:
    """Export the network's graph with a dynamic batch size, 0 included."""
    return torch.export.export(net, (example_images(net),), dynamic_shapes=({0: Dim("batch", min=0)},))


class ExportedGraph:
    """The exported graph, which computes with the network's own parameters."""

    def __init__(self, net: nn.Module) -> None:
        self.module = export(net).module()

    def load(self, net: nn.Module) -> None:
        """Use the parameters of this network, the same objects; it must be of the same class."""
        self.module.load_state_dict(dict(net.named_parameters()), assign=True)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits: (N,1,32,32) -> (N,10)."""
        logits: Tensor = self.module(images)
        return logits


def without_inlined_constants() -> AbstractContextManager[object]:
    """
    Keep every parameter replaceable in a package.

    Inductor inlines constants of at most eight elements, such as conv1's bias, as literals, which `load` could not
    replace.
    """
    return mock.patch("torch._inductor.graph.GraphLowering.can_inline_constant", staticmethod(lambda constant: False))


@contextmanager
def without_batch_bounds() -> Iterator[None]:
    """
    Compile a package that accepts every batch size, not only 2 to 15.

    The export declares `Dim("batch", min=0)`, but a package would check two bounds: 2, because PyTorch specializes
    sizes 0 and 1; and 15, because tracing a convolution compares the batch size with 16 to choose between oneDNN and
    NNPACK. The package makes that choice again when it runs.
    """
    with (
        torch._inductor.config.patch({"aot_inductor.check_lowerbound": False}),
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.nnpack.flags(enabled=False),
    ):
        yield


class CompiledPackage:
    """AOTInductor's package: the exported graph compiled ahead of time to machine code, with constant parameters."""

    def __init__(self, net: nn.Module) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.dict(os.environ, CHECK_INPUTS),
            without_batch_bounds(),
            without_inlined_constants(),
        ):
            package = torch._inductor.aoti_compile_and_package(export(net), package_path=str(Path(folder) / "net.pt2"))
            self.model = torch._inductor.aoti_load_package(package)
            self(example_images(net))  # a package reads CHECK_INPUTS at its first call

    def load(self, net: nn.Module) -> None:
        """Copy the current parameters of this network, which must be of the same class."""
        self.model.load_constants({name: p.detach() for name, p in net.named_parameters()}, check_full_update=True)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits, without an autograd graph: (N,1,32,32) -> (N,10)."""
        logits: Tensor = self.model(to_standard_layout(images))
        return logits


ENGINES = (
    Engine("exported", ExportedGraph),
    Engine("aot-inductor", CompiledPackage, differentiable=False, copies_parameters=True),
)
