"""
torch.compile may read max pooling's gradient before it is written: the layer before gets no gradient

Severity: silent wrong numbers
Reference: pytorch/pytorch#185509
Searched: "torch.compile inductor CPU max_pool2d backward gradient read before written fusion wrong gradient zero",
"Silent incorrect gradients with interpolate, conv2d, max_pool2d and torch.where root cause fix merged cpp backend",
"inductor cpp backend wrong gradient indirect scatter store then read in same fused kernel loop, StarDep
fusable_read_and_write mutation scheduler fix 2026" (2026-12-01); the last finds the fix, pytorch/pytorch#185873

Expected: The gradient of eager execution, up to rounding. torch.compile optimizes a function, not what it computes
(https://docs.pytorch.org/docs/stable/generated/torch.compile.html); PyTorch labels the report "module: correctness
(silent)".

Observed: The convolution's weight gets the gradient 0.0 in all elements; its largest element is 70.6 in eager
execution. The whole gradient passes through max pooling here, because `torch.where` selects it everywhere. Which
networks are affected depends on how Inductor fuses loops, and so on the processor.

Cause: `SchedulerNode.recompute_size_and_body` in torch/_inductor/scheduler.py (2.13.0) extracts a node's reads and
writes again, but applies `mutation_renames` only if the node has artificial dependencies. Without them, the node that
reads the gradient (`torch.where`'s backward) depends on the buffer of zeros instead of the same buffer after the
scatter of max pooling's backward, and is scheduled before the scatter. pytorch/pytorch#185873 applies the renames
always; with that change to 2.13.0 this script exits with 0.
"""

import os
import shutil
import sys

import torch
from torch.nn.functional import conv2d, max_pool2d


def pooled(images: torch.Tensor, weight: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Return a convolution's maxima over 3x3 windows, or its own values where `keep` is true."""
    maps = conv2d(images, weight, padding=1)
    return torch.where(keep, maps, max_pool2d(maps, kernel_size=3, stride=1, padding=1))


if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
    print("This needs a C++ compiler.")
    sys.exit(77)
torch.manual_seed(0)
images, keep = torch.randn(2, 3, 6, 7), torch.zeros(2, 4, 6, 7, dtype=torch.bool)
weight = torch.randn(4, 3, 3, 3, requires_grad=True)

(expected,) = torch.autograd.grad(pooled(images, weight, keep).sum(), weight)
(observed,) = torch.autograd.grad(torch.compile(pooled)(images, weight, keep).sum(), weight)
print(f"observed: the compiled function's largest gradient element is {observed.abs().max().item():.1f}")
print(f"expected: {expected.abs().max().item():.1f}, as in eager execution")
sys.exit(not observed.any())
