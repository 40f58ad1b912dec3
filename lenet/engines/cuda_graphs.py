"""
CUDA graphs: the forward pass recorded once for a batch size, and then launched whole.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run

WARM_UP = 3
"""Calls before recording, in which libraries choose their kernels and get their memory, as PyTorch's notes do."""


def captured(net: nn.Module) -> Run:
    """The network's forward pass as a graph of the batch size of its first call; parameters are read where they lie."""
    graph = torch.cuda.CUDAGraph()
    recorded: list[Tensor] = []  # the images and logits that the graph reads and writes

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        if not recorded:
            recorded.extend(_record(graph, net, images))
        read, written = recorded
        if images.shape != read.shape:
            raise ValueError(f"this graph was recorded for images {tuple(read.shape)}, not {tuple(images.shape)}")
        read.copy_(images)
        graph.replay()
        return written.clone()

    return run


def _record(graph: torch.cuda.CUDAGraph, net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    read = images.clone(memory_format=torch.contiguous_format)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            net(read)
    torch.cuda.current_stream().wait_stream(beside)
    with torch.cuda.graph(graph):
        written: Tensor = net(read)
    return read, written


ENGINES = (Engine("cuda-graphs", captured, devices=("cuda",), differentiable=False, any_batch=False, empty=()),)
