"""
optim.SGD(fused=True) updates parameters unnoticed by autograd: older graphs silently use new values

Severity: silent wrong numbers
Reference: no report found
Searched: "fused optimizer does not bump version counter _fused_sgd_ autograd in-place saved tensor", "fused Adam step
backward after optimizer step no modified by an inplace operation error", "torch._fused_adam_ version counter
parameter._version", "foreach inplace ops increment_version" (2026-12-01); pytorch/pytorch#53796, fixed by #93901, is
the same bug of the foreach functions

Expected: Backward raises RuntimeError, since a tensor that it needs was modified in place, as with the for-loop and
foreach implementations. https://docs.pytorch.org/docs/stable/autograd.html#in-place-correctness-checks promises:
without an error, "you can be sure that the computed gradients are correct". The increment is "done automatically by
PyTorch functions" (https://docs.pytorch.org/docs/stable/generated/torch.autograd.graph.increment_version.html).

Observed: Backward from before the step gives 0.5, the weight after the step, instead of an error or the saved weight 1.

Cause: torch._fused_sgd_ does not increment the version counters of the parameters. gen_inplace_or_view_type.py in
torchgen (2.13.0) generates increment_version for an operator's return values, and _fused_sgd_ returns nothing
(native_functions.yaml). The CPU kernel, FusedSGDKernel.cpp (pytorch/pytorch at 7c1ac7f), writes through data pointers.
"""

import sys

import torch


def input_gradient(fused: bool) -> float | str:
    """Return the gradient that uses the saved weight, computed after a step, or the error."""
    weight, x = torch.nn.Parameter(torch.tensor(1.0)), torch.tensor(1.0, requires_grad=True)
    product = weight * x  # saves the weight, which is 1, for the gradient of x
    weight.grad = torch.tensor(1.0)
    torch.optim.SGD([weight], lr=0.5, fused=fused).step()
    try:
        product.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return "RuntimeError: modified by an inplace operation"
    return x.grad.item()


observed, expected = input_gradient(fused=True), input_gradient(fused=False)
print(f"fused:    backward from before the step gives {observed}; the weight was 1.0 then and is 0.5 now")
print(f"for-loop: backward from before the step gives {expected}")
sys.exit(observed == 0.5)
