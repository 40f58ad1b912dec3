"""PyTorch as it comes, operator by operator, and with what one can set about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run


def eager(net: nn.Module) -> Run:
    """The network itself."""
    return net


def channels_last(net: nn.Module) -> Run:
    """The network, whose parameters are laid out anew, and its images in channels_last order."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which it documents
    return lambda images: net(images.contiguous(memory_format=torch.channels_last))


def vmap(net: nn.Module) -> Run:
    """The network on one image after the other, as `torch.func.vmap` makes a batch of it."""
    one_by_one = torch.func.vmap(lambda image: net(image[None])[0])
    return lambda images: one_by_one(images)


def autocast(net: nn.Module) -> Run:
    """Layers in bfloat16, as `torch.autocast` chooses; the parameters and the logits stay as wide as they are."""

    def run(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = net(images)
            return logits.to(images.dtype)

    return run


def without_onednn() -> AbstractContextManager[object]:
    """PyTorch's own convolutions and products on the CPU."""
    return torch.backends.mkldnn.flags(enabled=False)


@contextmanager
def with_tf32() -> Iterator[None]:
    """The operands of convolutions and products rounded to 11 bits, as NVIDIA's tensor cores take them."""
    parts: Any = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "tf32"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


@contextmanager
def deterministic(poisoned: bool = False, warn_only: bool = False) -> Iterator[None]:
    """PyTorch's deterministic algorithms; memory that nobody has written yet is NaN if `poisoned`."""
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    utilities: Any = torch.utils.deterministic
    fill = utilities.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    utilities.fill_uninitialized_memory = poisoned
    try:
        yield
    finally:
        utilities.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def compute_as_claimed() -> None:
    """Have float32 computed as float32: by default cuDNN's convolutions round their operands to TF32."""
    if torch.cuda.is_available():
        if hasattr(torch.backends.cudnn, "conv"):
            torch.backends.cudnn.conv.fp32_precision = "ieee"
            torch.backends.cuda.matmul.fp32_precision = "ieee"
        else:  # before torch 2.9
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False


ENGINES = (
    Engine("eager", eager),
    Engine("channels-last", channels_last),
    Engine("no-onednn", eager, devices=("cpu",), context=without_onednn),
    Engine("vmap", vmap, empty=()),  # of none, conv2d's batching rule makes (0, 0, 10)
    Engine("autocast", autocast, claims={"float32": "bfloat16"}),
    Engine("tf32", eager, claims={"float32": "tf32"}, devices=("cuda",), context=with_tf32),
)
