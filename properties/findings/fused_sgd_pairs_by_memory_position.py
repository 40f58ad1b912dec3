"""
optim.SGD(fused=True) pairs elements by memory position if parameter and gradient layouts differ

Severity: silent wrong numbers
Reference: no report found
Searched: "fused SGD CPU non-contiguous parameter gradient different strides wrong update", "fused Adam CPU
channels_last gradient layout mismatch", "fused_sgd_kernel grad_contiguous unused variable", "torch.optim.SGD fused True
CPU transposed parameter gradient elements permuted", "fused optimizer wrong results non-contiguous gradient strides
CPU" (2026-12-01); pytorch/pytorch#106951 and #110758 are about the exception that CUDA raises instead

Expected: Each element is updated by its own gradient. The layouts may differ:
https://docs.pytorch.org/docs/stable/autograd.html#manual-gradient-layouts documents that a gradient tensor that was
assigned before backward keeps its strides. PyTorch then warns: "This is not an error, but may impair performance". The
for-loop and foreach implementations update by index.

Observed: The parameter is [[-1.0, -4.0, -2.0], [-5.0, -3.0, -6.0]] after a step by the gradient [[1, 2, 3], [4, 5, 6]].

Cause: fused_sgd_kernel in aten/src/ATen/native/cpu/FusedSGDKernel.cpp (pytorch/pytorch at 7c1ac7f) makes a contiguous
copy of the gradient but does not use it. sgd_fused_step_impl then takes the data pointers of parameter, gradient and
momentum buffer, and pairs their first numel() elements in memory order, without a check of the strides. The CUDA kernel
checks them and raises.
"""

import sys

import torch


def updated(fused: bool) -> list[list[float]]:
    """Return the parameter after a step by a gradient of other strides."""
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    parameter.grad = torch.zeros(3, 2).t()  # strides (1, 2), those of the parameter are (3, 1)
    (parameter * torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])).sum().backward()
    torch.optim.SGD([parameter], lr=1.0, fused=fused).step()
    return parameter.tolist()


observed, expected = updated(fused=True), updated(fused=False)
print(f"fused:    the parameter is {observed} after the step")
print(f"for-loop: the parameter is {expected} after the step")
sys.exit(observed != expected)
