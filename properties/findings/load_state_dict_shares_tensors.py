import sys

import torch


def optimizer_of(parameter: torch.nn.Parameter) -> torch.optim.SGD:
    return torch.optim.SGD([parameter], lr=0.5, momentum=0.5)


first, second = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
optimizer, other = optimizer_of(first), optimizer_of(second)
first.grad = torch.tensor(1.0)
optimizer.step()
other.load_state_dict(optimizer.state_dict())
before = other.state[second]["momentum_buffer"].item()
optimizer.step()  # of the first optimizer alone
observed = other.state[second]["momentum_buffer"].item()
print(f"observed: the second optimizer's momentum buffer is {observed} after a step of the first optimizer")
print(f"expected: {before}, as loaded")
sys.exit(observed != before)
