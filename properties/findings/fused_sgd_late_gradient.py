"""
optim.SGD(fused=True) with momentum raises if a parameter gets its first gradient after the first step

Severity: exception or crash
Reference: no report found
Searched: "SGD fused momentum_buffer None TypeError expected Tensor got NoneType late gradient parameter", "fused
optimizer frozen parameter unfrozen later momentum buffer None", "_fused_sgd is_first_step all momentum_buffer_list None
some parameters no grad", "torch optim SGD fused=True momentum TypeError NoneType" (2026-12-01)

Expected: A parameter without a gradient is skipped
(https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html). With its first gradient it takes
its first step, after which its momentum buffer is that gradient
(https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html). The for-loop and foreach implementations do so,
and the parameter becomes 0.5.

Observed: The second step raises "TypeError: expected Tensor as element 1 in argument 2, but got NoneType".

Cause: _fused_sgd in torch/optim/sgd.py (2.13.0) creates momentum buffers only if all parameters of the group lack one.
If some have one, it passes None to torch._fused_sgd_, whose is_first_step is one flag for all parameters.
"""

import sys

import torch


def late_parameter(fused: bool) -> float | str:
    """Return the parameter after its first gradient, in the second step, or the error."""
    first, late = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    optimizer = torch.optim.SGD([first, late], lr=0.5, momentum=0.5, fused=fused)
    first.grad = torch.tensor(1.0)
    optimizer.step()
    late.grad = torch.tensor(1.0)
    try:
        optimizer.step()
    except TypeError as error:
        if "NoneType" not in str(error):
            raise
        return f"TypeError: {error}"
    return late.item()


observed, expected = late_parameter(fused=True), late_parameter(fused=False)
print(f"fused:    the parameter after its first gradient, in the second step: {observed}")
print(f"for-loop: the parameter after its first gradient, in the second step: {expected}")
sys.exit(isinstance(observed, str))
