"""
Convolutions and linear layers in bfloat16 flush subnormals to zero, some at certain batch sizes only

Severity: surprising
Reference: no report found
Searched: "oneDNN bfloat16 denormals flushed to zero vdpbf16ps AVX512_BF16 subnormal", "pytorch bfloat16 CPU linear conv
subnormal denormal flush to zero mkldnn batch size dependent", "set_flush_denormal False bfloat16 matmul CPU returns
zero for subnormal oneDNN AMX tdpbf16ps" (2026-12-01). The same instruction flushes in JuliaMath/BFloat16s.jl#125 and
llvm/llvm-project#221052; uxlfoundation/oneDNN#649 discusses Intel's definition of bfloat16, which treats subnormal
inputs as zero.

Expected: Subnormal numbers are kept unless torch.set_flush_denormal(True) is called
(https://docs.pytorch.org/docs/stable/generated/torch.set_flush_denormal.html; the default is False), as in float32, and
in bfloat16 without AVX512_BF16. https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html says that bfloat16
products flush on AMD Instinct MI200, but nothing of CPUs. At least it should not depend on the number of rows.

Observed: In the runs of 2026-11-23 and 2026-11-28 (AMD EPYC) and 2026-11-26 (Intel Xeon), all with AVX512_BF16 and
torch 2.13.0+cpu, a network that copies the smallest subnormal pixel, 2**-133, to its logits returns 0. (Without
AVX512_BF16 the same calls lose none; this script has not run on a machine with it.)

Cause: oneDNN multiplies by the instructions VDPBF16PS and TDPBF16PS, which treat subnormal inputs and results as zero
and ignore the processor's flags (Intel's manual). Both PyTorch and oneDNN choose kernels by shape, and those that
convert to float32 first keep subnormals. (That choice was not read in the source.)
"""

import sys

import torch

if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
    print("This machine cannot show it: it needs a CPU with AVX512_BF16.")
    sys.exit(77)

smallest = 2.0**-133
copy_pixel = torch.zeros(6, 1, 5, 5, dtype=torch.bfloat16)
copy_pixel[:, 0, 0, 0] = 1
copy_features = torch.eye(120, 400, dtype=torch.bfloat16)
lost = {}
for batch in (1, 2, 17):
    images = torch.full((batch, 1, 32, 32), smallest, dtype=torch.bfloat16)
    features = torch.full((batch, 400), smallest, dtype=torch.bfloat16)
    maps, rows = torch.nn.functional.conv2d(images, copy_pixel), torch.nn.functional.linear(features, copy_features)
    lost[batch] = [f"{float((result == 0).float().mean()):.0%}" for result in (maps, rows)]

print(f"observed: zeros among copies of {smallest:.1e} by conv2d and linear, by batch size: {lost}")
print("expected: 0% for all")
sys.exit(any(shares != ["0%", "0%"] for shares in lost.values()))
