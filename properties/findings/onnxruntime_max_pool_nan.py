"""
ONNX Runtime's MaxPool propagates NaN only from the last position of a window

Severity: silent wrong numbers
Reference: no report found
Searched: "onnxruntime MaxPool NaN not propagated CPU", "MlasMaximumFloat32x4 NaN MlasPool maxps", "max pooling drops
NaN depends on position in window, differs from PyTorch and ONNX reference" (2026-12-01). Similar, of other operators:
microsoft/onnxruntime#10514 (ReduceMax, open), microsoft/onnxruntime#21492 (Max and Min, fixed).

Expected: NaN wherever a window contains NaN, as in torch.nn.MaxPool2d, from which such a graph is exported, numpy.max,
and ONNX Runtime's own Max since microsoft/onnxruntime#21492. https://onnx.ai/onnx/operators/onnx__MaxPool.html defines
the result as the maximum of the window and does not mention NaN; a result that depends on the position of the NaN is
neither a maximum that propagates NaN nor one that ignores it. (ONNX's ReferenceEvaluator also depends on the position:
it propagates NaN from the first one.)

Observed: ONNX Runtime 1.32.0 on the CPU returns 0, 0, 0, nan for a 2x2 window of zeros with NaN at position 0, 1, 2, 3,
in maps of 4x4. At the right border of maps whose width is no multiple of 4 (2x2 or 10x10), position 1 propagates too,
or instead.

Cause: MlasPool2DVectorKernel in onnxruntime/core/mlas/lib/pooling.cpp (02e93ec) reduces with MlasMaximumFloat32x4,
which is _mm_max_ps(reduction, value) on x86: that instruction returns its second operand if either is NaN, so the next
number of the window replaces a NaN. The scalar code for the rest of a row has std::max, which returns its first
argument instead.
"""

import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

shapes = {"x": [4, 1, 4, 4], "y": [4, 1, 2, 2]}
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
pool = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
graph = helper.make_graph([pool], "pooling", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

maps = np.zeros((4, 1, 4, 4), np.float32)
for position in range(4):
    maps[position, 0, position // 2, position % 2] = np.nan
maxima = session.run(None, {"x": maps})[0][:, 0, 0, 0]

print(f"observed: the maxima of windows with NaN at position 0, 1, 2, 3 are {maxima}")
print("expected: [nan nan nan nan]")
sys.exit(not np.isnan(maxima).all())
