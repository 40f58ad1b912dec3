"""
OpenVINO on the CPU: as it comes, and told to compute in float32.

Its plugin computes networks of float32 in bfloat16 where the processor has instructions for that, unless it is told
otherwise: https://docs.openvino.ai/2026/openvino-workflow/running-inference/optimize-inference/precision-control.html
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import openvino
import torch
from openvino import Type
from torch import Tensor

from lenet.engines import Engine, Run, same
from lenet.engines.onnx_graph import Ported

TYPES = {torch.float32: Type.f32, torch.bfloat16: Type.bf16, torch.float16: Type.f16}
CORE = openvino.Core()
CHOSEN = CORE.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
"""What the plugin computes float32 in by itself: `f32`, or `bf16` on a processor that has it."""


def shared(tensor: Tensor) -> openvino.Tensor:
    """The same memory, as OpenVINO sees it; NumPy, which has no bfloat16, is given the bytes alone."""
    return openvino.Tensor(tensor.view(torch.uint8).numpy(), list(tensor.shape), TYPES[tensor.dtype])


def compiled(graph: bytes, properties: Mapping[str, str]) -> Run:
    """
    The graph as OpenVINO's CPU plugin compiles it, on as many threads as PyTorch has.

    An empty batch is refused here. OpenVINO's MaxPool refuses it too, but not every graph passes that on, and none
    recovers: the next batches, of the size that there was before, are refused as well, or answered wrongly.
    """
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = CORE.compile_model(CORE.read_model(graph), "CPU", {**threads, **properties}).create_infer_request()

    def run(images: Tensor) -> Tensor:
        if not len(images):
            raise ValueError("OpenVINO takes no empty batch")
        logits = images.new_empty(len(images), 10)
        request.set_input_tensor(shared(images))
        request.set_output_tensor(shared(logits))
        request.infer()
        return logits

    return run


def engine(name: str, precision: str, **properties: str) -> Engine:
    """
    OpenVINO with these properties, which computes float32 in this precision.

    It computes bfloat16 in bfloat16, and float16 in the wider of float16 and that precision: where that is bfloat16,
    float16 has no name for what it then is, and is not taken.
    """
    return Engine(
        name,
        partial(Ported, start=partial(compiled, properties=properties)),
        claims={"float32": precision, **same(("bfloat16",) if precision == "bfloat16" else ("bfloat16", "float16"))},
        devices=("cpu",),
        differentiable=False,
        copies=True,
        empty=(),
    )


ENGINES = (
    engine("openvino", {"f32": "float32", "bf16": "bfloat16"}[CHOSEN]),
    engine("openvino-f32", "float32", INFERENCE_PRECISION_HINT="f32"),
)
