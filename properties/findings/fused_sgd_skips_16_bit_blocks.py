"""
optim.SGD(fused=True) leaves full SIMD blocks of 16-bit parameters unchanged and corrupts their momentum buffers

Severity: silent wrong numbers
Reference: pytorch/pytorch#191763
Searched: "fused SGD bfloat16 CPU parameters not updated FusedSGDKernel vectorized", "fused SGD CPU non-contiguous
parameter gradient different strides wrong update", "torch.optim.SGD fused True CPU transposed parameter gradient
elements permuted update wrong elements" (2026-12-01)

Expected: After two steps with momentum 0.5, gradients of 1 or 2 and a learning rate of 1, parameters of -2.5 or -5 and
momentum buffers of 1.5 or 3, by the formula of https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html,
which lists bfloat16 and float16 as supported by fused. The for-loop and foreach implementations give these numbers.

Observed: Elements 0, 1 and 64 of the parameter are [0.0, 0.0, -2.5], of its momentum buffer [2.0, 3.0, 1.5].
Element 64, outside of full SIMD blocks, is correct.

Cause: The overload of sgd_math for 16-bit types in aten/src/ATen/native/cpu/FusedSGDKernel.cpp (pytorch/pytorch at
7c1ac7f). The loop over SIMD blocks computes the step, but neither subtracts it from the parameter nor stores that. From
the second step on, it loads the momentum buffer as float32, so that two 16-bit numbers are read as one. Fixed by
pytorch/pytorch#192545.
"""

import sys

import torch


def parameter_and_buffer(fused: bool) -> tuple[list[float], list[float]]:
    """Return elements 0, 1 and 64 of the parameter and of its momentum buffer after two steps."""
    parameter = torch.nn.Parameter(torch.zeros(65, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.5, fused=fused)
    for _ in range(2):
        parameter.grad = torch.tensor([1.0, 2.0], dtype=torch.bfloat16).repeat(33)[:65]
        optimizer.step()
    shown = [0, 1, 64]  # 64 elements fill SIMD blocks of any width, and the last one is the remainder
    return parameter[shown].tolist(), optimizer.state[parameter]["momentum_buffer"][shown].tolist()


observed, expected = parameter_and_buffer(fused=True), parameter_and_buffer(fused=False)
print("fused:    elements 0, 1 and 64 of the parameter are {}, of its momentum buffer {}".format(*observed))
print("for-loop: elements 0, 1 and 64 of the parameter are {}, of its momentum buffer {}".format(*expected))
sys.exit(observed != expected)
