"""
clip_grad_value_ raises an internal error if no parameter has a gradient; clip_grad_norm_ returns 0

Severity: exception or crash
Reference: xingyizhou/UniDet#24
Searched: "clip_grad_value_ no gradients RuntimeError nested_tensorlist _group_tensors_by_device_and_dtype empty list",
"pytorch clip_grad_value_ empty grads nested_tensorlist[0].size() > 0 fix early return",
"torch.nn.utils.clip_grad_value_ parameters all grad None should be no-op regression 2.1" (2026-12-01); also reported as
MatteoSalvatori/INCE#6

Expected: Nothing happens, as with `clip_grad_norm_`, which returns 0 for parameters without gradients. Both functions
skip parameters whose `grad` is None, and the documentation does not demand any gradient
(https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_value_.html).

Observed: RuntimeError "Expected !nested_tensorlist[0].empty() to be true, but got false.  (Could this error message be
improved?  If so, please report an enhancement request to PyTorch.)"; `clip_grad_norm_` returns 0.0.

Cause: `clip_grad_value_` in torch/nn/utils/clip_grad.py (2.13.0) passes its list of gradients, here an empty one, to
`_group_tensors_by_device_and_dtype`, whose C++ implementation (aten/src/ATen/native/ForeachUtils.h) checks that it is
not empty. `_get_total_norm` and `_clip_grads_with_norm_` in the same file return before that if the list is empty.
"""

import sys

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

parameter = torch.nn.Parameter(torch.ones(1))

total_norm = clip_grad_norm_([parameter], 1.0)
try:
    clip_grad_value_([parameter], 1.0)
    observed = "no error"
except RuntimeError as error:
    if "nested_tensorlist" not in str(error):
        raise
    observed = f"RuntimeError: {error}"
print(f"observed: clip_grad_value_: {observed}")
print(f"expected: no error, as by clip_grad_norm_, which returns {total_norm.item()}")
sys.exit(observed != "no error")
