import sys

import torch


def input_gradient(fused: bool) -> float | str:
    weight, x = torch.nn.Parameter(torch.tensor(1.0)), torch.tensor(1.0, requires_grad=True)
    product = weight * x  # saves the weight, which is 1, for the gradient of x
    weight.grad = torch.tensor(1.0)
    torch.optim.SGD([weight], lr=0.5, fused=fused).step()
    try:
        product.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return "RuntimeError: modified by an inplace operation"
    return x.grad.item()


observed, expected = input_gradient(fused=True), input_gradient(fused=False)
print(f"fused:    backward from before the step gives {observed}; the weight was 1.0 then and is 0.5 now")
print(f"for-loop: backward from before the step gives {expected}")
sys.exit(observed == 0.5)
