"""
Engines: ways to execute a network's forward pass, behind one contract.

`engine.build(net)` returns a callable that maps images (N,1,32,32) to logits (N,10), on the images' device and in their
dtype. An engine declares which devices and dtypes it supports and which precision it claims; the laws in `properties/`
verify the claim. `load` finds an engine by name, or a custom one as `module:function`. An engine's module is imported
only when that engine is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lenet.oracle import CLAIMS, PRECISIONS

Run: TypeAlias = Callable[[Tensor], Tensor]
"""A network's forward pass as an engine executes it: (N,1,32,32) -> (N,10)."""

ENGINES_BY_MODULE: dict[str, tuple[str, ...]] = {
    "eager": ("eager", "channels-last", "no-onednn", "vmap", "autocast", "tf32"),
    "compiled": ("compiled", "reduce-overhead", "max-autotune", "compiled-deterministic", "frozen"),
    "exported": ("exported", "aot-inductor"),
    "cuda_graphs": ("cuda-graphs",),
    "onnx_runtime": ("onnxruntime",),
    "openvino_cpu": ("openvino", "openvino-f32"),
    "jax_jit": ("jax",),
}
"""The names of the engines that each module of this package defines in its `ENGINES`."""

PEERS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "openvino-f32": "openvino", "jax": "jax"}
"""The engines that are not part of PyTorch, and the package that executes each. The extra `peers` installs them."""


PASSES = ("forward", "backward")
"""The passes that an engine executes."""


class EngineError(ValueError):
    """An engine that cannot be loaded or used. The message is one line: what was requested, and what is wrong."""


class Reloadable(Protocol):
    """A `Run` that can load other parameters of the same shapes, so that it need not be rebuilt for them."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits: (N,1,32,32) -> (N,10)."""

    def load(self, net: nn.Module) -> None:
        """Use the current parameters of `net`, a network of the same class as the one that this was built for."""


def dtype_claims(dtypes: Iterable[str] = PRECISIONS) -> Mapping[str, str]:
    """Return the claims of an engine that computes each of these dtypes in the precision of the same name."""
    return {dtype: dtype for dtype in dtypes}


@dataclass(frozen=True)
class Engine:
    """A way to execute a network's forward pass, and what it declares about itself."""

    name: str
    build: Callable[[nn.Module], Run]
    """Prepare a network; returns its forward pass."""
    claims: Mapping[str, str] = field(default_factory=dtype_claims, hash=False)
    """The supported dtypes of parameters and images, each mapped to the name of the precision claimed for it."""
    devices: tuple[str, ...] = ("cpu", "cuda")
    """The supported device types."""
    differentiable: bool = True
    """Whether a backward pass from the logits computes the gradients of the network's parameters and of the images."""
    copies_parameters: bool = False
    """Whether it computes with copies of the parameters, so that in-place changes take effect only after a reload."""
    dynamic_batch: bool = True
    """Whether one `Run` accepts every batch size. If False, it accepts only the batch size of its first call."""
    empty_batch: tuple[str, ...] = PASSES
    """The passes that support an empty batch."""
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    """Returns a context manager that must be active while it is built, called and differentiated."""

    def supports(self, device: str, dtype: str) -> bool:
        """Return whether it executes networks of this dtype on this device type."""
        return device in self.devices and dtype in self.claims


def to_standard_layout(images: Tensor) -> Tensor:
    """
    Return the images with the strides of a newly allocated tensor and not as a view; copies only where necessary.

    Compiled code guards on both properties. `Tensor.contiguous()` ensures neither: it returns a contiguous view
    unchanged, and it accepts any stride of a dimension of size 1, such as the channel.
    """
    _, channels, height, width = images.shape
    standard = images.stride() == (channels * height * width, height * width, width, 1) and images._base is None
    return images if standard else images.clone(memory_format=torch.contiguous_format)


ATTRIBUTES = ("claims", "devices", "differentiable", "copies_parameters", "dynamic_batch", "empty_batch", "context")
"""The fields of Engine that a custom engine function may set as attributes."""


def names() -> list[str]:
    """Return the names of all engines, in the order in which reports show them."""
    return [name for engines in ENGINES_BY_MODULE.values() for name in engines]


def load(spec: str) -> Engine:
    """
    Return the engine of this name, or a custom one: `module:name` of an Engine or of a function `build(net) -> run`.

    The attributes of a function that are named in `ATTRIBUTES` become the fields of its Engine. Raises EngineError if
    there is no such engine, or if a package that it needs is missing.
    """
    module, separator, name = spec.partition(":")
    if separator:
        return _load_custom(spec, module, name)
    for own_module, engines in ENGINES_BY_MODULE.items():
        if spec in engines:
            return _load_named(spec, own_module)
    raise EngineError(f"--engine {spec}: not one of {', '.join(names())}; give a custom engine as module:function")


def _load_named(name: str, module: str) -> Engine:
    try:
        engines: tuple[Engine, ...] = importlib.import_module(f"lenet.engines.{module}").ENGINES
    except ModuleNotFoundError as error:
        if name not in PEERS:
            raise
        missing = error.name or getattr(error.__cause__, "name", None)  # jax re-raises for jaxlib, without a name
        raise EngineError(
            f"--engine {name}: the package {missing} is missing; pip install 'lenet-properties[peers]' installs it"
        ) from None
    return next(engine for engine in engines if engine.name == name)


def _load_custom(spec: str, module: str, name: str) -> Engine:
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        own = error.name and f"{module}.".startswith(f"{error.name}.")  # not a package that the module imports
        problem = (
            f"no module named {error.name!r}; put its folder on PYTHONPATH" if own else f"ModuleNotFoundError: {error}"
        )
        raise EngineError(f"--engine {spec}: {problem}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module raises must not end the run as passed
        raise EngineError(f"--engine {spec}: {' '.join(f'{type(error).__name__}: {error}'.split())}") from error
    if isinstance(found, Engine):
        engine = found
    elif callable(found):
        engine = Engine(spec, found, **{name: getattr(found, name) for name in ATTRIBUTES if hasattr(found, name)})
    else:
        raise EngineError(f"--engine {spec}: is {type(found).__name__}, neither an Engine nor a function build(net)")
    for name, (is_valid, wanted) in DECLARED.items():
        if not is_valid(value := getattr(engine, name)):
            raise EngineError(f"--engine {spec}: {name} is {' '.join(repr(value).split())}, expected {wanted}")
    return engine


def _is_tuple_of(value: object, choices: Container[str] | None = None) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, str) and (choices is None or item in choices) for item in value
    )


def _is_claims(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and _is_tuple_of(tuple(value), PRECISIONS)
        and _is_tuple_of(tuple(value.values()), CLAIMS)
    )


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


DECLARED: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "name": (lambda value: isinstance(value, str) and bool(value), "a text"),
    "build": (callable, "a function build(net)"),
    "claims": (
        _is_claims,
        f"a mapping from some of the dtypes {', '.join(PRECISIONS)} to precisions, each one of {', '.join(CLAIMS)}",
    ),
    "devices": (lambda value: value != () and _is_tuple_of(value), 'a tuple of device types such as ("cpu",)'),
    "differentiable": (_is_bool, "True or False"),
    "copies_parameters": (_is_bool, "True or False"),
    "dynamic_batch": (_is_bool, "True or False"),
    "empty_batch": (lambda value: _is_tuple_of(value, PASSES), f"a tuple of some of {', '.join(PASSES)}"),
    "context": (callable, "a function that returns a context manager"),
}
"""For each field that a custom engine declares, whether a value is valid, and what is expected."""
