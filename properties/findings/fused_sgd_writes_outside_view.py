import sys

import torch


def memory_after_step(fused: bool) -> list[float]:
    memory = torch.zeros(6)
    parameter = torch.nn.Parameter(memory[::2])
    parameter.sum().backward()
    torch.optim.SGD([parameter], lr=1.0, fused=fused).step()
    return memory.tolist()


observed, expected = memory_after_step(fused=True), memory_after_step(fused=False)
print(f"fused:    the step on every second element changes the memory from zeros to {observed}")
print(f"for-loop: the step on every second element changes the memory from zeros to {expected}")
sys.exit(observed != expected)
