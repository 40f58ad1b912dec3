import sys

import torch


def updated(fused: bool) -> list[list[float]]:
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    loss = (parameter.t() * torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).sum()
    (parameter.grad,) = torch.autograd.grad(loss, parameter)  # strides (1, 2), those of the parameter are (3, 1)
    torch.optim.SGD([parameter], lr=1.0, fused=fused).step()
    return parameter.tolist()


observed, expected = updated(fused=True), updated(fused=False)
print(f"fused:    the parameter is {observed} after the step")
print(f"for-loop: the parameter is {expected} after the step")
sys.exit(observed != expected)
