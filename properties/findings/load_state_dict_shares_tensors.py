"""
Optimizer.load_state_dict does not copy the state's tensors: both optimizers then share them

Severity: surprising
Reference: pytorch/pytorch#196083
Searched: "Optimizer load_state_dict does not copy tensors aliasing state shared between optimizers",
"Optimizer.load_state_dict alias tensors triage comment maintainers documentation deepcopy by design",
"torch.optim.Optimizer.load_state_dict state_dict references copy shallow tensors" (2026-12-01)

Expected: A step of one optimizer does not change the state of another one, as after Module.load_state_dict, which
copies values. https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.load_state_dict.html does not say
that the tensors are shared.

Observed: The second optimizer's momentum buffer, 1.0 when loaded, is 1.5 after a step of the first optimizer.

Cause: Optimizer._process_value_according_to_param_policy in torch/optim/optimizer.py (2.13.0) converts each tensor by
Tensor.to, which returns the tensor itself if dtype and device agree, although the docstring of _cast in load_state_dict
says "Make a deep copy of value". The deep copy was removed on purpose, to save memory, by pytorch/pytorch#106082.
"""

import sys

import torch


def optimizer_of(parameter: torch.nn.Parameter) -> torch.optim.SGD:
    """Return an optimizer with momentum."""
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
