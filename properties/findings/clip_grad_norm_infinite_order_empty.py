"""
clip_grad_norm_ of infinite order raises if one gradient is empty; the other orders skip it

Severity: exception or crash
Reference: meta-pytorch/torchrec#3891
Searched: "clip_grad_norm_ inf norm empty gradient cannot compute the inf norm on an empty tensor linalg.vector_norm",
"_foreach_norm cannot compute the infinity norm on an empty tensor clip_grad_norm_ norm_type inf", "pytorch
_get_total_norm empty gradient tensor inf norm FSDP clip_grad_norm empty shard" (2026-12-01)

Expected: 3.0, the norm of the other gradient, as the orders 1, 2 and 3 give. The norm is computed "as if the norms of
the individual gradients were concatenated into a single vector"
(https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html). That vector is not empty.

Observed: RuntimeError "_foreach_norm cannot compute the infinity norm on an empty tensor because the operation does not
have an identity"; with `foreach=False` "linalg.vector_norm cannot compute the inf norm on an empty tensor because ...".

Cause: `_get_total_norm` in torch/nn/utils/clip_grad.py (2.13.0) computes the norm of each gradient first, an empty one
too. The maximum of an empty tensor is rejected by `torch.linalg.vector_norm` and, since pytorch/pytorch#173238, by
`torch._foreach_norm`. That is documented for these functions, but clipping should skip empty gradients.
"""

import sys

import torch
from torch.nn.utils import clip_grad_norm_

empty, other = torch.nn.Parameter(torch.zeros(0)), torch.nn.Parameter(torch.zeros(1))

observed = {}
for foreach in (False, True):
    for order in (1.0, 2.0, float("inf")):
        empty.grad, other.grad = torch.zeros(0), torch.full((1,), -3.0)
        try:
            observed[foreach, order] = str(clip_grad_norm_([empty, other], 3.0, order, foreach=foreach).item())
        except RuntimeError as error:
            if "empty tensor" not in str(error):
                raise
            observed[foreach, order] = f"RuntimeError: {error}"

for (foreach, order), norm in observed.items():
    print(f"observed with norm_type={order}, foreach={foreach}: {norm}")
print("expected: 3.0 with all of them")
sys.exit(any(norm != "3.0" for norm in observed.values()))
