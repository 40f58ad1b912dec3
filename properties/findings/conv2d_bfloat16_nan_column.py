"""
conv2d of one channel in bfloat16 spreads NaN and infinity one column beyond their receptive field

Severity: silent wrong numbers
Reference: no report found
Searched: "oneDNN bf16 convolution NaN reads beyond kernel width padded input channel 1 first convolution
avx512_core_bf16", "pytorch conv2d bfloat16 CPU NaN leaks neighbouring column mkldnn brgconv", "jit_avx512_core_bf16
convolution first conv safe_overstep garbage word NaN Inf times zero weight" (2026-12-01). uxlfoundation/oneDNN#5717 is
the same mistake in matrix products.

Expected: NaN exactly where a 5x5 window contains the pixel, by the formula of
https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html: 6 elements, one in each output map. So it is in
float32, without oneDNN, and on a CPU without AVX512_BF16.

Observed: In the runs of 2026-11-26 (Intel Xeon with AMX) and 2026-11-28 (AMD EPYC with AVX512_BF16), both torch
2.13.0+cpu, NaN in the last pixel of a row also reaches the elements of column 26, whose windows end at column 30: 12
elements. (Without AVX512_BF16 the same call gives 6; this script has not run on a machine with it.)

Cause: jit_avx512_core_bf16_fwd_kernel_vmm_t::compute_loop in src/cpu/x64/jit_avx512_core_bf16_conv_kernel.cpp (oneDNN
3.12.0, which torch 2.13.0 contains, and 3.14.0) multiplies pairs of channels. With one channel the pair's other half is
the next pixel of the row, with a weight of 0. Its comment assumes that this pixel is neither NaN nor infinite, since
both times 0 are NaN. (Read only: ONEDNN_VERBOSE=1 shows which kernel a machine uses.)
"""

import sys

import torch

if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
    print("This machine cannot show it: it needs a CPU with AVX512_BF16.")
    sys.exit(77)

images = torch.zeros(2, 1, 32, 32, dtype=torch.bfloat16)
images[0, 0, 0, 31] = float("nan")
maps = torch.nn.functional.conv2d(images, torch.ones(6, 1, 5, 5, dtype=torch.bfloat16))
columns = maps.isnan().nonzero()[:, 3].unique().tolist()

print(f"observed: {int(maps.isnan().sum())} elements are NaN, in the output columns {columns}")
print("expected: 6 elements, in the output column [27], whose windows alone contain column 31")
sys.exit(columns != [27])
