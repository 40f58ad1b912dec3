import sys

import torch


def gradient_after_step(foreach: bool) -> float:
    parameter = torch.nn.Parameter(torch.tensor(1.0))
    parameter.grad = torch.tensor(1.0)
    torch.optim.SGD([parameter], lr=0.5, momentum=0.5, nesterov=True, foreach=foreach).step()
    return parameter.grad.item()


observed, expected = gradient_after_step(foreach=True), gradient_after_step(foreach=False)
print(f"foreach:  the gradient, 1.0 before the step, is {observed} after it")
print(f"for-loop: the gradient, 1.0 before the step, is {expected} after it")
sys.exit(observed != expected)
