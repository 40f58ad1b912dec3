"""
optim.SGD(foreach=True, nesterov=True) adds the momentum to the gradients in place

Severity: silent wrong numbers
Reference: no report found
Searched: "SGD foreach nesterov modifies gradients in place _multi_tensor_sgd _foreach_add_ device_grads", "p.grad
changed after optimizer.step nesterov foreach CUDA default", "gradients modified in place by optimizer.step foreach
optimizer p.grad differs gradient accumulation" (2026-12-01)

Expected: The gradient is still 1 after the step, as with the for-loop and fused implementations.
https://github.com/pytorch/pytorch/pull/92706, "Do NOT inplace modify gradients", demands this of the foreach
implementations, and assumes that SGD already complies. On CUDA foreach is the default.

Observed: The gradient, 1.0 before the step, is 1.5 after it. Code that reads it later, or accumulates into it, gets
wrong gradients.

Cause: _multi_tensor_sgd in torch/optim/sgd.py (2.13.0) adds the momentum by torch._foreach_add_ to device_grads. Only
maximize and weight_decay replace this list by new tensors before; without them it holds the parameters' own gradients.
"""

import sys

import torch


def gradient_after_step(foreach: bool) -> float:
    """Return the gradient, 1 before the step, after a step with Nesterov momentum."""
    parameter = torch.nn.Parameter(torch.tensor(1.0))
    parameter.grad = torch.tensor(1.0)
    torch.optim.SGD([parameter], lr=0.5, momentum=0.5, nesterov=True, foreach=foreach).step()
    return parameter.grad.item()


observed, expected = gradient_after_step(foreach=True), gradient_after_step(foreach=False)
print(f"foreach:  the gradient, 1.0 before the step, is {observed} after it")
print(f"for-loop: the gradient, 1.0 before the step, is {expected} after it")
sys.exit(observed != expected)
