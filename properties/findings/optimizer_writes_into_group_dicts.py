import sys

import torch

groups = [{"params": [torch.nn.Parameter(torch.tensor(1.0))]}]
torch.optim.SGD(groups, lr=0.25)
observed = torch.optim.SGD(groups, lr=0.5).param_groups[0]["lr"]
print(f"observed: the second optimizer, made with lr=0.5 from the same groups, has the learning rate {observed}")
print("expected: 0.5")
sys.exit(observed == 0.25)
