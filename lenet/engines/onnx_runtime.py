"""
ONNX Runtime on the CPU. Its convolutions take no float64 and no bfloat16.

https://onnxruntime.ai/docs/performance/tune-performance/threading.html
"""

from __future__ import annotations

from functools import partial

import onnxruntime
import torch
from torch import Tensor

from lenet.engines import Engine, Run, same
from lenet.engines.onnx_graph import Ported


def session(graph: bytes) -> Run:
    """The graph as ONNX Runtime's CPU provider runs it, on as many threads as PyTorch has; they sleep between calls."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    started = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = started.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return run


ENGINES = (
    Engine(
        "onnxruntime",
        partial(Ported, start=session),
        claims=same(("float32", "float16")),
        devices=("cpu",),
        differentiable=False,
        copies=True,
    ),
)
