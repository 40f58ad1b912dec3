"""
Without oneDNN, convolutions of 16 or more images use a Fourier transform, which is never exact

Severity: surprising
Reference: pytorch/pytorch#157237
Searched: "NNPACK conv2d inaccurate results Fourier transform integers not exact pytorch", "NNPACK convolution NaN
spreads FFT tile batch size 16 mkldnn disabled", "_nnpack_spatial_convolution wrong output numerical difference"
(2026-12-01)

Expected: A filter with a single 1 copies a pixel of each window, and rounds nothing. oneDNN and PyTorch's own kernel
(15 images) do so. https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html promises no bitwise identical
results, but only because floating-point operations are rounded and not associative: a sum of x * 1 and zeros is x in
every order.

Observed: With torch 2.13.0+cpu and 16 images, 6,335 of 12,544 copies of the integers 0 to 9 are inexact, by up to
1.2e-06; with 15 images none. The error grows with the largest pixel of the tile: if one pixel is 1e8, others are wrong
by up to 3.

Cause: ConvParams::use_nnpack in aten/src/ATen/native/Convolution.cpp (undated copy of main) selects NNPACK for float32
if oneDNN is disabled, from 16 images on, and _nnpack_spatial_convolution leaves the algorithm to NNPACK.
nnp_convolution_output of NNPACK (70a77f4, src/convolution-output.c) then selects a Fourier transform of 8x8 or 16x16
tiles for every filter but 3x3. Its error is relative to the largest number of the tile, not to that of the window.
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
pixels = torch.arange(16 * 32 * 32).reshape(16, 1, 32, 32).remainder(10).float()
errors = {n: (conv2d(pixels[:n], copy_first_pixel) - pixels[:n, :, :28, :28]).abs() for n in (15, 16)}
inexact = {n: int((error > 0).sum()) for n, error in errors.items()}
pixels[0, 0, 0, 0] = 1e8
error_beside_large = (conv2d(pixels, copy_first_pixel) - pixels[:, :, :28, :28]).abs().flatten()[1:].max()

print(
    f"observed: {inexact[16]:,} of {errors[16].numel():,} copied integers are inexact with 16 images (by up to "
    f"{errors[16].max():.1e}; in the tile of 1e8: {error_beside_large:.0f}), {inexact[15]} with 15"
)
print("expected: every copy is exact, for every batch size")
sys.exit(inexact[16] > 0)
