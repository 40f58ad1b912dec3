"""The settings of PyTorch that a process has only once. A network that changes them must not affect later examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def flushes_subnormals() -> bool:
    """Whether this thread replaces subnormal results by zero."""
    tiny = torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float32)
    return bool(tiny / 2 == 0)


@contextmanager
def restored_settings() -> Iterator[None]:
    """After this block, all settings are as before it, whatever the block has changed."""
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    deterministic, flushed = torch.get_deterministic_debug_mode(), flushes_subnormals()
    onednn, cudnn = torch.backends.mkldnn.enabled, (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark)
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:  # to set it is slow
            torch.set_num_threads(threads)
        if torch.get_deterministic_debug_mode() != deterministic:  # so is this
            torch.set_deterministic_debug_mode(deterministic)
        torch.set_flush_denormal(flushed)
        torch.backends.mkldnn.enabled = onednn
        torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark = cudnn
