"""
A GradScaler never increases its scale again after its growth interval is set below its count of steps

Severity: silent wrong numbers
Reference: no report found
Searched: "GradScaler set_growth_interval smaller than growth tracker scale never grows", "_amp_update_scale_
growth_tracker == growth_interval equality check never increases", "GradScaler growth_interval changed during training
_growth_tracker exceeds interval scale stuck" (2026-12-01)

Expected: If `growth_interval` unskipped iterations occurred consecutively, `GradScaler.update` multiplies the scale by
`growth_factor`, and `set_growth_interval` sets a new interval
(https://docs.pytorch.org/docs/stable/amp.html#torch.amp.GradScaler). After three unskipped iterations and an interval
that is set to 2, the next iterations double the scale every second time at the latest, as with an interval that is 2
from the start. The documentation of `set_growth_interval` names no restriction.

Observed: The scale after 20 more unskipped iterations is 1.0, its initial value; with an interval that is 2 from the
start, it is 1024.0 after 20 iterations. Only a skipped step, which sets the count to 0, ends this.

Cause: `_amp_update_scale_cpu_kernel` in aten/src/ATen/native/cpu/AmpGradScalerKernels.cpp (read at commit 174170e of
the main branch) increments the count of consecutive steps and compares it with the interval by `==`. A count that is
already at or above the new interval is never equal to it again, and it is reset only in that branch or by a skipped
step. `>=` would suffice. `set_growth_interval` (torch/amp/grad_scaler.py, 2.13.0) does not reset the count either.
"""

import sys

import torch


def scale_after(earlier_steps: int, earlier_interval: int) -> float:
    """Return the scale after 20 unskipped steps with growth interval 2 that follow some with another interval."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=earlier_interval)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for step in range(earlier_steps + 20):
        if step == earlier_steps:
            scaler.set_growth_interval(2)
        scaler.scale(parameter.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return scaler.get_scale()


shortened, constant = scale_after(earlier_steps=3, earlier_interval=4), scale_after(earlier_steps=0, earlier_interval=2)
print(f"observed: the scale is {shortened} after 3 steps with growth interval 4 and 20 steps with growth interval 2")
print(f"expected: at least {constant}, as after 20 steps with growth interval 2 alone")
sys.exit(shortened < constant)
