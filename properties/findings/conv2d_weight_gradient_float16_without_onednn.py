"""
Without oneDNN, conv2d's weight gradient accumulates over the batch in float16 and saturates at 2,048

Severity: silent wrong numbers
Reference: no report found
Searched: "conv2d weight gradient float16 CPU accumulates precision saturates 2048 slow_conv2d_backward_weight", "conv2d
backward bfloat16 CPU weight gradient wrong large batch precision accumulation bfloat16 slow_conv2d",
"slow_conv2d_backward_weight gemm beta=1 per-sample accumulation reduced precision bfloat16 grad_weight", "mkldnn
disabled bfloat16 convolution backward inaccurate weight grad CPU without AVX512" (2026-12-01); pytorch/pytorch#68048
was the same fault of the bias gradient, fixed since, and ROCm/rocm-libraries#5859 that of MIOpen's weight gradient

Expected: 4,096, the sum of 4,096 images' contributions of 1, which float16 holds exactly. The bias gradient of the same
layer is the same sum here, and is 4,096. "Half-precision GEMM operations are typically done with intermediate
accumulations (reduction) in single-precision for numerical accuracy"
(https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html). oneDNN, which PyTorch uses for float16 where it is
enabled, documents float32 accumulators
(https://uxlfoundation.github.io/oneDNN/dev_guide_attributes_accumulation_mode.html).

Observed: The weight gradient is 2048.0, the bias gradient 4096.0. From 2,048 on, neighbouring numbers are 2 apart in
float16, so that 2,049 is rounded to even, back to 2,048.

Cause: `slow_conv2d_backward_weight_out_cpu_template` in aten/src/ATen/native/ConvolutionMM2d.cpp (read in a copy newer
than 2.1) calls one matrix product per image, with beta=1, into the float16 weight gradient. Each product may accumulate
in float32, but the sum over the images is rounded to float16 after each of them: one image of 4,096 pixels gives
4096.0, but 4,096 images of one pixel give 2048.0. PyTorch uses it wherever oneDNN is switched off (`use_mkldnn` in
aten/src/ATen/native/Convolution.cpp).
"""

import sys

import torch

torch.backends.mkldnn.enabled = False
convolution = torch.nn.Conv2d(1, 1, kernel_size=1, dtype=torch.float16)
images = torch.ones(4096, 1, 1, 1, dtype=torch.float16)

convolution(images).sum().backward()

weight_gradient, bias_gradient = convolution.weight.grad.item(), convolution.bias.grad.item()
print(f"observed: the weight gradient is {weight_gradient}; the bias gradient, the same sum, is {bias_gradient}")
print(f"expected: both are {images.numel()}")
sys.exit(weight_gradient != images.numel())
