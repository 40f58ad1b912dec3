import sys

import torch


def scheduled(lr: float | torch.Tensor) -> list[float]:
    first, second = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=lr)
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda epoch: 1.0, lambda epoch: 0.25])
    return [float(group["lr"]) for group in optimizer.param_groups]


observed, expected = scheduled(torch.tensor(0.5)), scheduled(0.5)
print(f"lr=torch.tensor(0.5): LambdaLR with the factors 1 and 0.25 sets the groups' learning rates to {observed}")
print(f"lr=0.5:               LambdaLR with the factors 1 and 0.25 sets the groups' learning rates to {expected}")
sys.exit(observed != expected)
