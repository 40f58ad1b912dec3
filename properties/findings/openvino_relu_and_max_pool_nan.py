"""
OpenVINO's ReLU turns NaN into 0, and its MaxPool (#35935) turns it into the lowest number

Severity: silent wrong numbers
Reference: openvinotoolkit/openvino#35649
Searched: "OpenVINO CPU Relu NaN returns 0", "OpenVINO CPU returns -FLT_MAX for ONNX MaxPool on all-NaN window",
"openvino 35649" (2026-12-01). Both #35649 (Relu) and #35935 (MaxPool) are open.

Expected: NaN in, NaN out, as in PyTorch, ONNX Runtime's Relu and ONNX's ReferenceEvaluator. OpenVINO defines ReLU as
max(0, x) and MaxPool as the maximum of the window; neither can make a finite number of NaN alone.
https://docs.openvino.ai/2025/documentation/openvino-ir-format/operation-sets/operation-specs/activation/relu-1.html

Observed: OpenVINO 2026.4.1 on the CPU, precision hint f32: ReLU of NaN is 0.0. MaxPool of a window of four NaN is
-3.4028235e+38, and of one NaN among 1, 2 and 3 it is 3.0.

Cause: The CPU plugin uses kernels of oneDNN (read: 3.14.0, 3f27bec). relu_zero_ns_compute_vector_fwd in
src/cpu/x64/injectors/jit_uni_eltwise_injector.cpp computes maxps(x, 0), and maxps returns its second operand, 0, if x
is NaN. max_step_fwd in src/cpu/x64/jit_uni_pool_kernel.cpp starts at the lowest finite number and replaces it only by
numbers that are greater, which NaN is not.
"""

import sys

import numpy as np
import openvino
from openvino import opset13

maps = opset13.parameter([2, 1, 2, 2], openvino.Type.f32)
pooled = opset13.max_pool(maps, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
model = openvino.Model([opset13.result(opset13.relu(maps)), opset13.result(pooled)], [maps])
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

nan = float("nan")
results = compiled(np.array([nan, nan, nan, nan, nan, 1, 2, 3], np.float32).reshape(2, 1, 2, 2))
relu, maxima = results[0].ravel()[:5], results[1].ravel()

print(f"observed: ReLU of NaN is {relu}; the maxima of (NaN, NaN, NaN, NaN) and (NaN, 1, 2, 3) are {maxima}")
print("expected: NaN everywhere")
sys.exit(not (np.isnan(relu).all() and np.isnan(maxima).all()))
