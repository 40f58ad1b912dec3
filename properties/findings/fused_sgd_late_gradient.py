import sys

import torch


def late_parameter(fused: bool) -> float | str:
    first, late = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    optimizer = torch.optim.SGD([first, late], lr=0.5, momentum=0.5, fused=fused)
    first.grad = torch.tensor(1.0)
    optimizer.step()
    late.grad = torch.tensor(1.0)
    try:
        optimizer.step()
    except TypeError as error:
        if "NoneType" not in str(error):
            raise
        return f"TypeError: {error}"
    return late.item()


observed, expected = late_parameter(fused=True), late_parameter(fused=False)
print(f"fused:    the parameter after its first gradient, in the second step: {observed}")
print(f"for-loop: the parameter after its first gradient, in the second step: {expected}")
sys.exit(isinstance(observed, str))
