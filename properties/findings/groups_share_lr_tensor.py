"""
All parameter groups of an optimizer share the tensor passed as the learning rate

Severity: silent wrong numbers
Reference: no report found
Searched: "tensor lr shared between param groups optimizer same tensor object scheduler in-place fill_", "optimizer
defaults tensor lr aliasing multiple param groups share learning rate tensor add_param_group", "LambdaLR multiple param
groups tensor lr all groups same learning rate", "add_param_group defaults lr Tensor clone each group" (2026-12-01);
pytorch/pytorch#163098 and #163103 are about tensors that a scheduler shares with a group

Expected: The groups have the learning rates 0.5 and 0.125. LambdaLR takes a list of functions, "one for each group"
(https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.LambdaLR.html), and a learning rate may be a
tensor (https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html). With the number 0.5 the rates are correct.

Observed: LambdaLR with the factors 1 and 0.25 sets both groups' learning rates to 0.125.

Cause: Optimizer.add_param_group in torch/optim/optimizer.py (2.13.0) gives all groups the same tensor, by
setdefault(name, default). Schedulers change a tensor in place (_update_param_group_val in torch/optim/lr_scheduler.py),
so that the last group's rate is that of all.
"""

import sys

import torch


def scheduled(lr: float | torch.Tensor) -> list[float]:
    """Return the groups' learning rates after LambdaLR has set them."""
    first, second = (torch.nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=lr)
    torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda epoch: 1.0, lambda epoch: 0.25])
    return [float(group["lr"]) for group in optimizer.param_groups]


observed, expected = scheduled(torch.tensor(0.5)), scheduled(0.5)
print(f"lr=torch.tensor(0.5): LambdaLR with the factors 1 and 0.25 sets the groups' learning rates to {observed}")
print(f"lr=0.5:               LambdaLR with the factors 1 and 0.25 sets the groups' learning rates to {expected}")
sys.exit(observed != expected)
