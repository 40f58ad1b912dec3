"""
Ways to run a network, behind one contract: `engine.build(net)` is a callable, images (N,1,32,32) -> logits (N,10).

The logits are on the images' device and in their dtype. An engine says what it takes and which precision it claims;
the laws in `properties/` judge the claim. `load` finds one by name, or a user's own as `module:function`. Nothing is
imported before it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lenet.oracle import PRECISIONS

Run: TypeAlias = Callable[[Tensor], Tensor]
"""(N,1,32,32) -> (N,10)."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "eager": ("eager", "channels-last", "no-onednn", "vmap", "autocast", "tf32"),
    "compiled": ("compiled", "reduce-overhead", "max-autotune", "compiled-deterministic", "frozen"),
    "exported": ("exported", "aot-inductor"),
    "cuda_graphs": ("cuda-graphs",),
    "onnx_runtime": ("onnxruntime",),
    "openvino_cpu": ("openvino", "openvino-f32"),
    "jax_jit": ("jax",),
}
"""The engines by name, and the modules here that have them as `ENGINES`."""

PEERS = ("onnxruntime", "openvino", "openvino-f32", "jax")
"""The engines that are not PyTorch's: their packages are the extra `peers`."""


class EngineError(ValueError):
    """An engine that cannot be had; the message is one line that says what was asked for and what was found."""


class Reloadable(Protocol):
    """A Run that need not be built anew for other parameters of the same shapes."""

    def __call__(self, images: Tensor) -> Tensor:
        """(N,1,32,32) -> (N,10)."""

    def load(self, net: nn.Module) -> None:
        """Run this network of the same class, with the parameters that it has now."""


def same(dtypes: Iterable[str] = PRECISIONS) -> Mapping[str, str]:
    """In each of these dtypes the precision that it is named after."""
    return {dtype: dtype for dtype in dtypes}


@dataclass(frozen=True)
class Engine:
    """A way to run a network, and what it says of itself."""

    name: str
    build: Callable[[nn.Module], Run]
    claims: Mapping[str, str] = field(default_factory=same, hash=False)
    """The dtypes of network and images that it takes, each with the name of the precision that it then has."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    differentiable: bool = True
    """Whether the logits have a graph, through which a backward pass reaches the network's own parameters."""
    copies: bool = False
    """Whether it computes with copies of the parameters, so that what is changed in place does not count by itself."""
    any_batch: bool = True
    """Whether one Run takes batches of every size; else of that of its first call."""
    empty: tuple[str, ...] = ("forward", "backward")
    """The passes that it can make of a batch of no images."""
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    """What must be set while it runs, and while its backward pass does."""

    def takes(self, device: str, dtype: str) -> bool:
        """Whether it runs networks of this dtype on this type of device."""
        return device in self.devices and dtype in self.claims


def packed(images: Tensor) -> Tensor:
    """
    The images as a tensor of their own with the strides that a new one has; copied only where they are not.

    `contiguous()` leaves a view a view and the strides of one channel as they are: compiled code guards both.
    """
    _, channels, height, width = images.shape
    new = images.stride() == (channels * height * width, height * width, width, 1) and images._base is None
    return images if new else images.clone(memory_format=torch.contiguous_format)


ATTRIBUTES = ("claims", "devices", "differentiable", "copies", "any_batch", "empty", "context")
"""What a user's own function may say of itself, as attributes of these names."""


def names() -> list[str]:
    """The names of all engines, in the order in which reports show them."""
    return [name for engines in FAMILIES.values() for name in engines]


def load(spec: str) -> Engine:
    """
    The engine of this name, or a user's own: `module:name` of an Engine, or of a function `build(net) -> run`.

    A function may have attributes of the names of an Engine's fields. Raises EngineError where there is none, or where
    a package that it needs is missing.
    """
    module, separator, name = spec.partition(":")
    if separator:
        return _own(spec, module, name)
    for family, engines in FAMILIES.items():
        if spec in engines:
            return _find(spec, family)
    raise EngineError(f"--engine {spec}: not one of {', '.join(names())}; one's own is given as module:function")


def _find(name: str, family: str) -> Engine:
    try:
        engines: tuple[Engine, ...] = importlib.import_module(f"lenet.engines.{family}").ENGINES
    except ModuleNotFoundError as error:
        if name not in PEERS:
            raise
        missing = error.name or getattr(error.__cause__, "name", None)  # jax says so itself of jaxlib, in its own words
        raise EngineError(
            f"--engine {name}: the package {missing} is missing; pip install 'lenet-properties[peers]' installs it"
        ) from None
    return next(engine for engine in engines if engine.name == name)


def _own(spec: str, module: str, name: str) -> Engine:
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise EngineError(f"--engine {spec}: {' '.join(f'{type(error).__name__}: {error}'.split())}") from error
    if isinstance(found, Engine):
        return found
    if not callable(found):
        raise EngineError(f"--engine {spec}: is {type(found).__name__}, neither an Engine nor a function build(net)")
    return Engine(spec, found, **{said: getattr(found, said) for said in ATTRIBUTES if hasattr(found, said)})
