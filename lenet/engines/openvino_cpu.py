"""
OpenVINO on the CPU: as it comes, and told to compute in float32.

Its plugin computes networks of float32 in bfloat16 where the processor has instructions for that, unless it is told
otherwise: https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from __future__ import annotations

from functools import partial

import openvino
import torch
from openvino import Type
from torch import Tensor

from lenet.engines import Engine, Run
from lenet.engines.onnx_graph import Ported

TYPES = {torch.float32: Type.f32, torch.bfloat16: Type.bf16, torch.float16: Type.f16}
CORE = openvino.Core()
CHOSEN = CORE.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
"""What the plugin computes float32 in by itself: `f32`, or `bf16` on a processor that has it."""


def shared(tensor: Tensor) -> openvino.Tensor:
    """The same memory, as OpenVINO sees it; NumPy, which has no bfloat16, is given the bytes alone."""
    return openvino.Tensor(tensor.view(torch.uint8).numpy(), list(tensor.shape), TYPES[tensor.dtype])


def compiled(graph: bytes, **properties: str) -> Run:
    """
    The graph as OpenVINO's CPU plugin compiles it, on as many threads as PyTorch has.

    It is not asked about an empty batch: its MaxPool refuses one, which goes unsaid where another branch of the graph
    is computed beside it, and what it answers afterwards is wrong, for batches of every size.
    """
    properties = {"INFERENCE_NUM_THREADS": str(torch.get_num_threads())} | properties
    request = CORE.compile_model(CORE.read_model(graph), "CPU", properties).create_infer_request()

    def run(images: Tensor) -> Tensor:
        logits = images.new_empty(len(images), 10)
        if images.shape == (0, 1, 32, 32):
            return logits
        request.set_input_tensor(shared(images))
        request.set_output_tensor(shared(logits))
        request.infer()
        return logits

    return run


def claims(precision: str) -> dict[str, str]:
    """What networks of 16 and of 32 bits are computed in, given what those of 32 are."""
    return {"float32": precision, "bfloat16": "bfloat16", "float16": "float16" if precision == "float32" else precision}


ENGINES = (
    Engine(
        "openvino",
        partial(Ported, start=compiled),
        claims=claims({"f32": "float32", "bf16": "bfloat16"}[CHOSEN]),
        devices=("cpu",),
        differentiable=False,
        copies=True,
    ),
    Engine(
        "openvino-f32",
        partial(Ported, start=partial(compiled, INFERENCE_PRECISION_HINT="f32")),
        claims=claims("float32"),
        devices=("cpu",),
        differentiable=False,
        copies=True,
    ),
)
