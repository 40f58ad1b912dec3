"""
`torch.export`, as the graph that it gives and as AOTInductor's compiled package of it.

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

from lenet.engines import Engine, packed

CHECKED = {"AOTI_RUNTIME_CHECK_INPUTS": "1"}
"""Without it a compiled package reads whatever memory an image of another shape or layout has."""


def black(net: nn.Module) -> Tensor:
    """A batch of four images that the network takes."""
    parameter = next(net.parameters())
    return torch.zeros(4, 1, 32, 32, device=parameter.device, dtype=parameter.dtype)


def export(net: nn.Module) -> ExportedProgram:
    """The network's graph, for batches of every size."""
    return torch.export.export(net, (black(net),), dynamic_shapes=({0: Dim("batch", min=0)},))


class Exported:
    """The exported graph, which computes with the network's own parameters."""

    def __init__(self, net: nn.Module) -> None:
        self.run = export(net).module()

    def load(self, net: nn.Module) -> None:
        """Compute with the parameters of this network of the same class, the same objects."""
        self.run.load_state_dict(dict(net.named_parameters()), assign=True)

    def __call__(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10)."""
        logits: Tensor = self.run(images)
        return logits


def loadable() -> AbstractContextManager[object]:
    """Keep constants of at most eight numbers, as conv1's bias, from becoming literals that `load` cannot replace."""
    return mock.patch("torch._inductor.graph.GraphLowering.can_inline_constant", staticmethod(lambda constant: False))


@contextmanager
def any_batch() -> Iterator[None]:
    """
    Keep a package from checking that a batch has 2 to 15 images, as `Dim("batch", min=0)` does not ask of it.

    From 2 since sizes 0 and 1 are taken for special, to 15 since PyTorch, when it traces a convolution, compares the
    batch with 16 to choose between oneDNN and NNPACK. Which of them runs is decided again when the package does.
    """
    with (
        torch._inductor.config.patch({"aot_inductor.check_lowerbound": False}),
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.nnpack.flags(enabled=False),
    ):
        yield


class Packaged:
    """The exported graph compiled ahead of time to a package of machine code, with the parameters as its constants."""

    def __init__(self, net: nn.Module) -> None:
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CHECKED), any_batch(), loadable():
            package = torch._inductor.aoti_compile_and_package(export(net), package_path=str(Path(folder) / "net.pt2"))
            self.run = torch._inductor.aoti_load_package(package)
            self(black(net))  # a package looks whether it is to check at its first call

    def load(self, net: nn.Module) -> None:
        """Take the parameters that this network of the same class has now."""
        self.run.load_constants({name: p.detach() for name, p in net.named_parameters()}, check_full_update=True)

    def __call__(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10), without a graph."""
        logits: Tensor = self.run(packed(images))
        return logits


ENGINES = (
    Engine("exported", Exported),
    Engine("aot-inductor", Packaged, differentiable=False, copies=True),
)
