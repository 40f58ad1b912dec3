"""The clock of all benchmarks."""

from __future__ import annotations

from time import perf_counter

import torch


def timer() -> float:
    """
    Return the time in seconds, after all work queued on a GPU is complete.

    It is equivalent to `torch.utils.benchmark.timer`, whose import takes a quarter of a second and loads setuptools.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()
