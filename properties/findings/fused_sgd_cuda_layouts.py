"""
optim.SGD(fused=True) on CUDA raises an internal error if parameter and gradient layouts differ

Severity: exception or crash
Reference: no report found
Searched: "optim.SGD fused=True check_fast_path_restrictions INTERNAL ASSERT channels_last gradient", "fused optimizer
CUDA strides mismatch parameter gradient memory format error", "_fused_sgd_ Expected
at::native::check_fast_path_restrictions to be true, but got false" (2026-12-01). Similar: pytorch/pytorch#106951 and
pytorch/pytorch#126585 (optim.Adam(fused=True)).

Expected: The step that foreach=True and the for-loop take, or an error that names the layouts. A gradient may have its
own layout: https://docs.pytorch.org/docs/stable/autograd.html#manual-gradient-layouts says how to choose it, and
https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html states no condition on layouts for fused=True.

Observed: In the run of 2026-11-26 (NVIDIA H200, torch 2.11.0+cu130) the fused step raises a RuntimeError that "Expected
at::native::check_fast_path_restrictions(...) to be true, but got false"; the foreach step agrees with the formula. (Not
run with 2.13.0: no GPU. On the CPU the fused step pairs the wrong elements, without an error.)

Cause: _fused_sgd_kernel_cuda_ in aten/src/ATen/native/cuda/FusedSgdKernel.cu (undated copy of main) checks, without a
message, check_fast_path_restrictions of ForeachUtils.h, which demands equal strides; _fused_sgd in torch/optim/sgd.py
(2.13.0) calls it for any tensors. The foreach kernels test can_use_fast_route and otherwise take the slow path.
"""

import sys

import torch

if not torch.cuda.is_available():
    print("This machine cannot show it: it needs CUDA.")
    sys.exit(77)

outcomes = {}
for form in ("foreach", "fused"):
    weight = torch.nn.Parameter(torch.ones(4, 3, 5, 5, device="cuda"))
    weight.grad = torch.ones(4, 3, 5, 5, device="cuda").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([weight], lr=0.5, **{form: True})
    try:
        optimizer.step()
        outcomes[form] = f"parameters of {weight.unique().tolist()}"
    except RuntimeError as error:
        outcomes[form] = str(error).splitlines()[0]

print(f"observed: fused: {outcomes['fused']}; foreach: {outcomes['foreach']}")
print("expected: parameters of [0.5] by both")
sys.exit("check_fast_path_restrictions" in outcomes["fused"])
