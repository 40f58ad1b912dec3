"""
cross_entropy in float16 is infinite if the sum of the losses overflows before it is divided

Severity: silent wrong numbers
Reference: pytorch/pytorch#85791
Searched: "cross_entropy float16 CPU inf mean reduction overflow sum before division", "nll_loss half overflow mean
reduction accumulate float16 inf large batch", "nll_loss CPU half bfloat16 reduction mean accumulates in scalar_t
nll_loss_out_frame cascade sum overflow inf" (2026-12-01)

Expected: 2.30, the mean of 32,768 equal losses of log(10), which is also what `reduction="none"` and `mean()` give in
float16. `mean` accumulates in float32 since pytorch/pytorch#91597 was fixed, so does `mse_loss`, and PyTorch's CUDA
kernel for (N, C) inputs accumulates in float32 (`nll_loss_forward_reduce_cuda_kernel_2d` in
aten/src/ATen/native/cuda/Loss.cu). PyTorch warns that "when inputs contain large values such that intermediate results
may overflow the range of the used datatype, the end result may overflow too"
(https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html#extremal-values), but these inputs are zeros; only
the batch is large.

Observed: inf, without a warning. In bfloat16, which does not overflow, the mean of these losses is 2.265625, 1.6% too
small.

Cause: `nll_loss_out_frame` in aten/src/ATen/native/LossNLL.cpp (read at commit 0321fa7 of the main branch) keeps its
partial sums (`loss_partial_sums`) in the input's dtype and divides their sum by the total weight only at the end.
32,768 losses of 2.3 sum to 75,450, and float16 ends at 65,504. The report shows the same for (N, C, L) inputs on CUDA;
its fix, pytorch/pytorch#166232, is in this file.
"""

import sys

import torch
from torch.nn.functional import cross_entropy

logits, targets = torch.zeros(32_768, 10), torch.zeros(32_768, dtype=torch.long)

observed = cross_entropy(logits.half(), targets)
expected = cross_entropy(logits.half(), targets, reduction="none").mean()
print(f"observed: {observed.item()}; in bfloat16 {cross_entropy(logits.bfloat16(), targets).item()}")
print(f"expected: {expected.item()}, the mean of the losses; in float32 {cross_entropy(logits, targets).item()}")
sys.exit(bool(observed.isinf()))
