"""
max_pool2d of channels_last float64 maps of one channel and one window reads a misaligned address

Severity: exception or crash
Reference: no report found
Searched: "max_pool2d CUDA misaligned address channels_last double", "max_pool_forward_nhwc shared memory misaligned
address float64", "CUDA error: misaligned address MaxPool2d channels last one channel" (2026-12-01)

Expected: The maximum, 4.0, as for the same map with default strides, in float32, or on the CPU.
https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html excludes neither a dtype nor a layout.

Observed: In the run of 2026-11-26 (NVIDIA H200, torch 2.11.0+cu130) "CUDA error: misaligned address", after which the
process cannot use the GPU any more. Of 720 combinations of shape and layout, the three with one channel, 2x2 pixels and
this layout failed. (Not run with 2.13.0: no GPU.)

Cause: max_pool_forward_nhwc in aten/src/ATen/native/cuda/DilatedMaxPool2d.cu (f4c7f4b, the newest version at hand)
divides its shared memory into kernel_size_C * block size integers of 32 bits and, directly after them, as many values.
With one channel and one window that product is 1: the values start at byte 4, and a float64 must be aligned to 8 bytes.
Every other block size is a power of two, and thus even.
"""

import sys

import torch

if not torch.cuda.is_available():
    print("This machine cannot show it: it needs CUDA.")
    sys.exit(77)

map_nhwc = torch.arange(1.0, 5.0, device="cuda", dtype=torch.float64).reshape(1, 2, 2, 1)
try:
    outcome = str(torch.nn.functional.max_pool2d(map_nhwc.permute(0, 3, 1, 2), 2).item())
except RuntimeError as error:
    if "misaligned address" not in str(error):
        raise
    outcome = str(error).splitlines()[0]

print(f"observed: {outcome}")
print("expected: 4.0")
sys.exit("misaligned address" in outcome)
