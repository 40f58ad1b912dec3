"""The clock of everything that is timed here."""

from __future__ import annotations

from time import perf_counter

import torch


def timer() -> float:
    """
    Seconds, once a GPU that is in use has done all that it was asked for.

    As `torch.utils.benchmark.timer`, whose import takes a quarter of a second and brings setuptools with it.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()
