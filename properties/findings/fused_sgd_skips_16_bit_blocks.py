import sys

import torch


def parameter_and_buffer(fused: bool) -> tuple[list[float], list[float]]:
    parameter = torch.nn.Parameter(torch.zeros(65, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.5, fused=fused)
    for _ in range(2):
        parameter.grad = torch.tensor([1.0, 2.0], dtype=torch.bfloat16).repeat(33)[:65]
        optimizer.step()
    shown = [0, 1, 64]  # 64 elements fill SIMD blocks of any width, and the last one is the remainder
    return parameter[shown].tolist(), optimizer.state[parameter]["momentum_buffer"][shown].tolist()


observed, expected = parameter_and_buffer(fused=True), parameter_and_buffer(fused=False)
print("fused:    elements 0, 1 and 64 of the parameter are %s, of its momentum buffer %s" % observed)
print("for-loop: elements 0, 1 and 64 of the parameter are %s, of its momentum buffer %s" % expected)
sys.exit(observed != expected)
