"""
Without AVX512, OpenVINO rounds to bfloat16 toward zero wherever the last bit that is left is 0

Severity: silent wrong numbers
Reference: openvinotoolkit/openvino#37104
Searched: "openvino bfloat16 round_to_nearest_even wrong rounding toward zero intel_cpu bfloat16.hpp", "openvino Convert
f32 to bf16 truncates instead of round to nearest even CPU plugin reference", "openvinotoolkit/openvino pull 37104
bfloat16 rounding review" (2026-12-01). #37104 is a merged change of the GPU plugin that copies the same formula; a
reviewer doubts it and asks for a test, which is left to a later change.

Expected: The nearest bfloat16 number, the even one of two that are equally near: the function is named
round_to_nearest_even, and OpenVINO's kernels for AVX512, PyTorch, JAX and ml_dtypes round so.

Observed: OpenVINO 2026.4.1 on a CPU without AVX512 rounds 24,928 of 100,003 normally distributed numbers to the next
smaller bfloat16 number, all toward zero, half of those that had to be rounded away from zero. For example, 0.40015721
becomes 0.3984375 instead of 0.400390625, which is 7 times as near.

Cause: round_to_nearest_even in src/plugins/intel_cpu/src/utils/bfloat16.hpp and, for constants, in
src/core/include/openvino/core/type/bfloat16.hpp (00262ea and 0058f25) adds half a unit, 0x8000, only if the last bit
that is kept is 1. It must add 0x7FFF plus that bit. The results of 2026.4.1 agree with this formula for all 100,003
numbers.
"""

import sys

import numpy as np
import openvino
from openvino import opset13

if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
    print("This machine cannot show it: it needs a CPU for which OpenVINO has no bfloat16 kernels (no AVX512).")
    sys.exit(77)

numbers = opset13.parameter([-1], openvino.Type.f32)
model = openvino.Model([opset13.result(opset13.convert(numbers, "bf16"))], [numbers])
round_by_openvino = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

values = np.random.RandomState(0).standard_normal(100_003).astype(np.float32)
bits = values.view(np.uint32)
nearest = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
got = round_by_openvino(values)[0].view(np.uint16)
wrong = got != nearest
first = int(wrong.argmax())
got_first, nearest_first = (
    np.uint32(number << 16).view(np.float32) for number in map(int, (got[first], nearest[first]))
)

print(f"observed: {wrong.sum():,} of {len(values):,} are not the nearest; {values[first]} becomes {got_first}")
print(f"expected: 0; {values[first]} becomes {nearest_first}")
sys.exit(bool(wrong.any()))
