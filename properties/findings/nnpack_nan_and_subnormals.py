"""
Without oneDNN, convolutions of 16 or more images (by NNPACK) spread NaN and lose subnormal numbers

Severity: silent wrong numbers
Reference: pytorch/pytorch#157237
Searched: "NNPACK convolution NaN spreads FFT tile batch size 16 mkldnn disabled", "_nnpack_spatial_convolution wrong
NaN Inf output numerical difference mkldnn.enabled False", "pytorch 157237 NNPACK" (2026-12-01)

Expected: An element of the output is NaN if and only if its window contains the NaN, as in the formula of
https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html. oneDNN and PyTorch's own kernel (15 images) do so.
A filter that copies one pixel copies a subnormal one as well. PyTorch's notes allow overflow of intermediate results
(https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html) and undefined results of non-finite inputs only for
torch.linalg. torch.set_flush_denormal is off.

Observed: With torch 2.13.0+cpu, a NaN in the corner of one image is in 1 window, and 144 elements become NaN with 16
images, 1 with 15. Of 12,544 copies of a subnormal pixel, 12,544 are 0 with 16 images; with 15, 0 of 11,760 are.

Cause: ConvParams::use_nnpack in aten/src/ATen/native/Convolution.cpp (undated copy of main) selects NNPACK for float32
if oneDNN is disabled, from 16 images on. nnp_convolution_output of NNPACK (70a77f4, src/convolution-output.c) selects a
Fourier transform of 8x8 or 16x16 tiles for every filter but 3x3: each output of a tile depends on all its inputs, so
NaN fills the tile, and the products of transformed subnormals underflow.
"""

import sys

import torch
from torch.nn.functional import conv2d

if not torch.backends.nnpack.is_available():
    print("This machine cannot show it: NNPACK is not available (it needs AVX2 or NEON).")
    sys.exit(77)

torch.backends.mkldnn.enabled = False
copy_first_pixel = torch.zeros(1, 1, 5, 5)
copy_first_pixel[0, 0, 0, 0] = 1
nans, zeros = {}, {}
for batch in (15, 16):
    images = torch.zeros(batch, 1, 32, 32)
    images[0, 0, 0, 0] = float("nan")
    nans[batch] = int(conv2d(images, torch.ones(1, 1, 5, 5)).isnan().sum())
    images = torch.full((batch, 1, 32, 32), 2.0**-149)
    zeros[batch] = int((conv2d(images, copy_first_pixel) == 0).sum())

print(
    f"observed: 16 images: {nans[16]} NaN, {zeros[16]:,} subnormals lost; 15 images: {nans[15]} NaN, {zeros[15]} lost"
)
print("expected: 1 NaN, no subnormal number lost, for every batch size")
sys.exit(nans[16] != 1 or zeros[16] != 0)
