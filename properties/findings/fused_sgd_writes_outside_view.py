"""
optim.SGD(fused=True) writes to memory outside a parameter that is a strided view

Severity: silent wrong numbers
Reference: no report found
Searched: "fused SGD writes outside tensor view non-dense parameter slice memory corruption CPU fused optimizer", "fused
optimizer parameter is a strided view of a larger tensor, step overwrites neighbouring elements", "fused SGD CPU
non-contiguous parameter gradient different strides wrong update" (2026-12-01)

Expected: The step changes the elements of the parameter, every second one of the tensor, and no other. The for-loop and
foreach implementations do so. Parameters need not be dense:
https://docs.pytorch.org/docs/stable/autograd.html#default-gradient-layouts documents the gradient's layout if they are
not.

Observed: The step changes the memory from zeros to [-1.0, -1.0, -1.0, 0.0, 0.0, 0.0]: element 1 is not in the
parameter, and element 4, which is, keeps its value.

Cause: sgd_fused_step_impl in aten/src/ATen/native/cpu/FusedSGDKernel.cpp (pytorch/pytorch at 7c1ac7f) reads and writes
the numel() elements from the parameter's data pointer on as if the parameter were dense, without a check of its
strides.
"""

import sys

import torch


def memory_after_step(fused: bool) -> list[float]:
    """Return a tensor after a step on every second element."""
    memory = torch.zeros(6)
    parameter = torch.nn.Parameter(memory[::2])
    parameter.sum().backward()
    torch.optim.SGD([parameter], lr=1.0, fused=fused).step()
    return memory.tolist()


observed, expected = memory_after_step(fused=True), memory_after_step(fused=False)
print(f"fused:    the step on every second element changes the memory from zeros to {observed}")
print(f"for-loop: the step on every second element changes the memory from zeros to {expected}")
sys.exit(observed != expected)
