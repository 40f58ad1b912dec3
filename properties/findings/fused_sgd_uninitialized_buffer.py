"""
optim.SGD(fused=True) keeps an uninitialized momentum buffer if a GradScaler skips its first step

Severity: silent wrong numbers
Reference: LibreYOLO/libreyolo#771
Searched: "fused SGD GradScaler found_inf first step momentum buffer uninitialized empty_like is_first_step NaN", "never
fuse SGD overflow momentum corrupt GradScaler _step_supports_amp_scaling", "SGD fused momentum_buffer None", "_fused_sgd
is_first_step all momentum_buffer_list None" (2026-12-01); the report, of another project, has the symptom on CUDA and
suspects that the kernel writes the buffer in the skipped step; no report to PyTorch found

Expected: The skipped step leaves no state, and the next one is the first: the parameter becomes 0.5.
https://docs.pytorch.org/docs/stable/amp.html#torch.amp.GradScaler.step documents that with infinite gradients the step
"is skipped to avoid corrupting the params". The for-loop and foreach implementations comply.

Observed: The parameter is nan, if uninitialized memory is filled with NaN, as here. Otherwise the step depends on what
the memory held before.

Cause: _fused_sgd in torch/optim/sgd.py (2.13.0) makes the momentum buffers by torch.empty_like, for the kernel to write
in the first step. If a gradient is infinite, the kernel returns at once (_fused_sgd_kernel_cpu_ in
aten/src/ATen/native/FusedSGD.cpp, pytorch/pytorch at 0b16077). SGD.step stores the buffers all the same, and the next
step, no longer the first, reads them.
"""

import sys

import torch

torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN


def parameter_after_skipped_step(fused: bool) -> float:
    """Return the parameter after a skipped step and one by a gradient of 1."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5, momentum=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for gradient in (float("inf"), 1.0):  # GradScaler skips the first step
        optimizer.zero_grad()
        scaler.scale((parameter * gradient).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    return parameter.item()


observed, expected = parameter_after_skipped_step(fused=True), parameter_after_skipped_step(fused=False)
print(f"fused:    the parameter is {observed} after the step that follows the skipped one")
print(f"for-loop: the parameter is {expected} after the step that follows the skipped one")
sys.exit(observed != expected)
