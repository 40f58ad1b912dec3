import sys

import torch

torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN


def parameter_after_skipped_step(fused: bool) -> float:
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
