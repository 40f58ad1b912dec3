"""
GradScaler.step accepts a closure passed by position and then steps with scaled gradients

Severity: silent wrong numbers
Reference: no report found
Searched: "GradScaler.step closure positional argument not rejected scaled gradients", "Closure use is not currently
supported if GradScaler is enabled args closure LBFGS", "GradScaler closure optimizer.step args silently scaled
gradients not unscaled SGD closure AMP" (2026-12-01)

Expected: The same RuntimeError that a closure passed by name raises, "Closure use is not currently supported if
GradScaler is enabled". `GradScaler.step` documents that closures are not supported and, just above, that it forwards
`*args` to `optimizer.step` (https://docs.pytorch.org/docs/stable/amp.html#torch.amp.GradScaler.step). The check's
author wanted it "to at least detect it and bail out" (review of pytorch/pytorch#26512). All of PyTorch's optimizers
document `optimizer.step(closure)`, by position, as the usual form (https://docs.pytorch.org/docs/stable/optim.html).

Observed: No error. The parameter is -8.0 after one step of SGD with learning rate 1 and gradient 1, where the scale is
8: the step uses the scaled gradient that the closure computes.

Cause: `GradScaler.step` in torch/amp/grad_scaler.py (2.13.0) looks for a closure only in `kwargs`, not in `args`. It
unscales the gradients, then calls `optimizer.step(*args, **kwargs)`, which calls the closure. The closure computes new,
scaled gradients, and nothing divides them by the scale or checks them for infinities.
"""

import sys

import torch

parameter = torch.nn.Parameter(torch.zeros(1))
optimizer = torch.optim.SGD([parameter], lr=1.0)
scaler = torch.amp.GradScaler("cpu", init_scale=8.0)


def closure() -> torch.Tensor:
    """Compute the scaled gradient of the parameter, whose true gradient is 1."""
    optimizer.zero_grad()
    loss = parameter.sum()
    scaler.scale(loss).backward()
    return loss


closure()
try:
    scaler.step(optimizer, closure)
    observed = f"no error; the parameter is {parameter.item()}"
except RuntimeError as error:
    if "Closure" not in str(error):
        raise
    observed = str(error)
print(f"observed: {observed}")
print("expected: an error that closures are not supported, or a parameter of -1.0")
sys.exit(observed.startswith("no error") and parameter.item() != -1.0)
