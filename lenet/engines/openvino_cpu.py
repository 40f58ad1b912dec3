"""
OpenVINO on the CPU: with its default precision, and with the precision hint float32.

By default, the CPU plugin executes float32 networks in bfloat16 on processors with bfloat16 instructions:
https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import openvino
import torch
from openvino import Type
from torch import Tensor

from lenet.engines import Engine, Run, dtype_claims
from lenet.engines.onnx_graph import OnnxNetwork

TYPES = {torch.float32: Type.f32, torch.bfloat16: Type.bf16, torch.float16: Type.f16}
CORE = openvino.Core()
DEFAULT_PRECISION = CORE.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
"""The precision in which the plugin executes float32 networks by default: `f32` or `bf16`."""


def share_memory(tensor: Tensor) -> openvino.Tensor:
    """Return an OpenVINO tensor on the same memory; by way of its bytes, since NumPy has no bfloat16."""
    return openvino.Tensor(tensor.view(torch.uint8).numpy(), list(tensor.shape), TYPES[tensor.dtype])


def start_session(graph: bytes, properties: Mapping[str, str]) -> Run:
    """
    Compile the graph with OpenVINO's CPU plugin, with PyTorch's thread count.

    The returned function raises ValueError for an empty batch. OpenVINO's MaxPool raises too, but not every graph
    propagates its error, and none recovers from it: later batches of the earlier size raise as well, or get wrong
    logits.
    """
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = CORE.compile_model(CORE.read_model(graph), "CPU", {**threads, **properties}).create_infer_request()

    def run(images: Tensor) -> Tensor:
        if not len(images):
            raise ValueError("OpenVINO supports no empty batch")
        logits = images.new_empty(len(images), 10)
        request.set_input_tensor(share_memory(images))
        request.set_output_tensor(share_memory(logits))
        request.infer()
        return logits

    return run


def openvino_engine(name: str, precision: str, **properties: str) -> Engine:
    """
    Return an engine that runs OpenVINO with these properties, which make it execute float32 in `precision`.

    It executes bfloat16 in bfloat16, and float16 in the wider of float16 and `precision`. If that is bfloat16, float16
    is not supported: no named precision describes the result.
    """
    return Engine(
        name,
        partial(OnnxNetwork, start_session=partial(start_session, properties=properties)),
        claims={
            "float32": precision,
            **dtype_claims(("bfloat16",) if precision == "bfloat16" else ("bfloat16", "float16")),
        },
        devices=("cpu",),
        differentiable=False,
        copies_parameters=True,
        empty_batch=(),
    )


ENGINES = (
    openvino_engine("openvino", {"f32": "float32", "bf16": "bfloat16"}[DEFAULT_PRECISION]),
    openvino_engine("openvino-f32", "float32", INFERENCE_PRECISION_HINT="f32"),
)
