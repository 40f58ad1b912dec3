"""
ONNX Runtime on the CPU. Its convolutions support neither float64 nor bfloat16.

https://onnxruntime.ai/docs/performance/tune-performance/threading.html
"""

from __future__ import annotations

from functools import partial

import onnxruntime
import torch
from torch import Tensor

from lenet.engines import Engine, Run, dtype_claims
from lenet.engines.onnx_graph import OnnxNetwork


def start_session(graph: bytes) -> Run:
    """Load the graph into ONNX Runtime's CPU provider, with PyTorch's thread count."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


ENGINES = (
    Engine(
        "onnxruntime",
        partial(OnnxNetwork, start_session=start_session),
        claims=dtype_claims(("float32", "float16")),
        devices=("cpu",),
        differentiable=False,
        copies_parameters=True,
    ),
)
