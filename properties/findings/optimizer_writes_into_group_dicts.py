"""
An optimizer writes its default settings into the parameter group dictionaries passed to it

Severity: surprising
Reference: pytorch/pytorch#51794
Searched: "optimizer modifies param_groups dict passed in add_param_group setdefault mutates input", "optimizer
param_groups default lr overwritten reuse same params list of dicts two optimizers", "Optimizer constructor mutates list
of param group dicts, second optimizer gets lr of first" (2026-12-01)

Expected: The second optimizer has its own default, 0.5. Defaults are "used when a parameter group doesn't specify them"
(https://docs.pytorch.org/docs/stable/optim.html#torch.optim.Optimizer), and the caller's dictionaries specify no
learning rate.

Observed: The second optimizer has the learning rate 0.25, of the first one.

Cause: Optimizer.add_param_group in torch/optim/optimizer.py (2.13.0) completes the caller's dictionary by setdefault,
and keeps it as its own in param_groups, instead of a copy. Both optimizers then share the dictionary.
"""

import sys

import torch

groups = [{"params": [torch.nn.Parameter(torch.tensor(1.0))]}]
torch.optim.SGD(groups, lr=0.25)
observed = torch.optim.SGD(groups, lr=0.5).param_groups[0]["lr"]
print(f"observed: the second optimizer, made with lr=0.5 from the same groups, has the learning rate {observed}")
print("expected: 0.5")
sys.exit(observed == 0.25)
