"""
Forward-over-reverse differentiation of mse_loss raises "ZeroTensors are immutable"

Severity: exception or crash
Reference: pytorch/pytorch#123996
Searched: "ZeroTensors are immutable mse_loss forward over reverse jvp grad", "ZeroTensors are immutable
mse_loss_backward jvp hessian torch.func jacfwd", "RuntimeError for hessian vector product with jvp mse_loss
ZeroTensors" (2026-12-01); also reported as pytorch/pytorch#112013

Expected: The Hessian-vector product that the same loss written out gives. PyTorch's tutorial computes such products by
`jvp(grad(f), ...)`, forward over reverse (https://docs.pytorch.org/tutorials/intermediate/jacobians_hessians.html), and
`reduction="sum"` works.

Observed: RuntimeError "ZeroTensors are immutable. Please use the materialized zero tensor obtained using .clone() if
you want a mutable tensor." The loss written out gives [2.0, 2.0].

Cause: `mse_loss_double_backward` in torch/csrc/autograd/FunctionsManual.cpp (as quoted in pytorch/pytorch#197723, an
open fix, from the main branch) divides by the number of elements in place if the reduction is "mean". A target without
a tangent makes the argument a ZeroTensor, and such tensors reject in-place operations.
"""

import sys

import torch
from torch.func import grad, jvp
from torch.nn.functional import mse_loss

x, target, tangent = torch.ones(2), torch.zeros(2), torch.full((2,), 2.0)

_, expected = jvp(grad(lambda x: ((x - target) ** 2).mean()), (x,), (tangent,))
try:
    observed = str(jvp(grad(lambda x: mse_loss(x, target)), (x,), (tangent,))[1].tolist())
except RuntimeError as error:
    if "ZeroTensors are immutable" not in str(error):
        raise
    observed = f"RuntimeError: {error}"
print(f"observed: {observed}")
print(f"expected: {expected.tolist()}")
sys.exit(observed != str(expected.tolist()))
