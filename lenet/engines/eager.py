"""PyTorch's eager execution, operator by operator, and the settings that change how it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run


def build_eager(net: nn.Module) -> Run:
    """Return the network itself."""
    return net


def build_channels_last(net: nn.Module) -> Run:
    """Return the network with channels_last images; converts its parameters to channels_last in place."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # documented, but not in the stubs
    return lambda images: net(images.contiguous(memory_format=torch.channels_last))


def build_vmap(net: nn.Module) -> Run:
    """Return the network on a single image, vectorized over the batch by `torch.func.vmap`."""
    vectorized = torch.func.vmap(lambda image: net(image[None])[0])
    return lambda images: vectorized(images)


def build_autocast(net: nn.Module) -> Run:
    """Return the network under bfloat16 autocast; parameters and logits keep the dtype of the images."""

    def run(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = net(images)
            return logits.to(images.dtype)

    return run


def without_onednn() -> AbstractContextManager[object]:
    """Use PyTorch's native CPU kernels for convolutions and matrix products, not oneDNN's."""
    return torch.backends.mkldnn.flags(enabled=False)


# By `allow_tf32`, not by `fp32_precision`, which since torch 2.9 can do the same: after it is set, reading `allow_tf32`
# raises (pytorch/pytorch#179445), and torch.export reads it.
TF32_SETTINGS: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
"""What has a setting `allow_tf32`: cuDNN's convolutions, and matrix products."""


@contextmanager
def with_tf32() -> Iterator[None]:
    """Round the operands of convolutions and matrix products to TF32 (11 significant bits) on NVIDIA's tensor cores."""
    before = [settings.allow_tf32 for settings in TF32_SETTINGS]
    try:
        for settings in TF32_SETTINGS:
            settings.allow_tf32 = True
        yield
    finally:
        for settings, allowed in zip(TF32_SETTINGS, before, strict=True):
            settings.allow_tf32 = allowed


@contextmanager
def deterministic_algorithms(fill_uninitialized_memory: bool = False, warn_only: bool = False) -> Iterator[None]:
    """Use PyTorch's deterministic algorithms; optionally fill uninitialized memory with NaN."""
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    utilities: Any = torch.utils.deterministic
    fill = utilities.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    utilities.fill_uninitialized_memory = fill_uninitialized_memory
    try:
        yield
    finally:
        utilities.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def disable_tf32() -> None:
    """Disable TF32 on CUDA for this process: by default, cuDNN's convolutions round float32 operands to TF32."""
    for settings in TF32_SETTINGS:
        settings.allow_tf32 = False


ENGINES = (
    Engine("eager", build_eager),
    Engine("channels-last", build_channels_last),
    Engine("no-onednn", build_eager, devices=("cpu",), context=without_onednn),
    Engine("vmap", build_vmap, empty_batch=()),  # conv2d's batching rule returns (0, 0, 10) for an empty batch
    Engine("autocast", build_autocast, claims={"float32": "bfloat16"}),
    Engine("tf32", build_eager, claims={"float32": "tf32"}, devices=("cuda",), context=with_tf32),
)
