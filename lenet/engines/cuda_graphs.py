"""
CUDA graphs: the forward pass is captured once for a batch size and then launched as a whole.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import gc

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run

WARMUP_CALLS = 3
"""Calls before the capture, in which libraries choose kernels and allocate memory, as in PyTorch's CUDA notes."""


def build_cuda_graph(net: nn.Module) -> Run:
    """
    Return the forward pass as a CUDA graph, captured at the first call for its batch size.

    The graph reads the network's own parameters. Other batch sizes raise ValueError.
    """
    graph = torch.cuda.CUDAGraph()
    buffers: list[Tensor] = []  # the images that the graph reads and the logits that it writes

    @torch.inference_mode(False)  # a buffer made in inference mode could not be written outside it
    @torch.no_grad()
    def replay(images: Tensor) -> Tensor:
        if not buffers:
            buffers.extend(_capture(graph, net, images))
        static_images, static_logits = buffers
        if images.shape != static_images.shape:
            raise ValueError(
                f"this graph was captured for images {tuple(static_images.shape)}, not {tuple(images.shape)}"
            )
        static_images.copy_(images)
        graph.replay()
        return static_logits

    return lambda images: replay(images).clone()


def _capture(graph: torch.cuda.CUDAGraph, net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    static_images = images.clone(memory_format=torch.contiguous_format)
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(WARMUP_CALLS):
            net(static_images)
    torch.cuda.current_stream().wait_stream(side_stream)
    collecting = gc.isenabled()
    gc.disable()  # if an older graph were freed during the capture, the capture would fail
    try:
        with torch.cuda.graph(graph):
            static_logits: Tensor = net(static_images)
    finally:
        if collecting:
            gc.enable()
    return static_images, static_logits


ENGINES = (
    Engine(
        "cuda-graphs",
        build_cuda_graph,
        devices=("cuda",),
        differentiable=False,
        dynamic_batch=False,
        empty_batch=(),
    ),
)
