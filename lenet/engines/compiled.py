"""
`torch.compile` with Inductor, in its modes, with a dynamic batch size.

There is no silent fallback to eager execution: a network that does not compile to one graph raises.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run, to_standard_layout
from lenet.engines.eager import deterministic_algorithms

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: dict[str, dict[str, Any]] = {
    "compiled": {},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "max-autotune": {"mode": "max-autotune"},
    "compiled-deterministic": {},
    "frozen": {},
}
"""The options that each engine passes to `torch.compile`, in addition to `fullgraph=True` and `dynamic=True`."""

USING_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""The engines whose results on a GPU are memory that their next call overwrites, as PyTorch documents."""

RECOMPILE_LIMIT = 32
"""
How often one network may be compiled.

All laws together need ten of the twelve kinds of calls: gradients for nothing, for the parameters, or for the images
too; and 0, 1, 2 to 15 (by oneDNN) or more images. A network that needs more compilations recompiles without end.
"""

NO_EMPTY_BACKWARD = ("forward",)
"""An empty batch's convolution_backward has other strides than Inductor asserts (as in pytorch/pytorch#171622)."""


@contextmanager
def without_fallback() -> Iterator[None]:
    """Raise at the recompile limit instead of falling back to eager, and let backward run twice through one graph."""
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=RECOMPILE_LIMIT),
        torch._functorch.config.patch(donated_buffer=False),
    ):
        yield


@contextmanager
def deterministic() -> Iterator[None]:
    """
    Use PyTorch's deterministic algorithms, without a fallback to eager.

    Inductor then leaves the backward pass of max pooling to PyTorch's own kernel.
    """
    with deterministic_algorithms(), without_fallback():
        yield


@contextmanager
def freezing() -> Iterator[None]:
    """Compile inference graphs with the parameters as constants, without a fallback to eager."""
    with without_fallback(), torch._inductor.config.patch(freezing=True):
        yield


def compile_fullgraph(function: Function, **options: Any) -> Function:
    """
    Compile a function to one graph, without graph breaks and with dynamic shapes.

    Each call compiles independently of earlier calls with the same function: Dynamo caches by code object, and this
    one is replaced by a copy.
    """
    function.__code__ = function.__code__.replace()
    return cast(Function, torch.compile(function, fullgraph=True, dynamic=True, **options))


def compile_forward(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """Compile the forward pass `(net, images) -> logits` with the named engine's options; parameters are inputs."""

    def forward(net: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = net(images)
        return logits

    return compile_fullgraph(forward, **OPTIONS[name])


_forwards: dict[Any, Callable[[nn.Module, Tensor], Tensor]] = {}
"""The compiled forward passes by engine, class of network and dtype."""


def build_compiled(net: nn.Module, name: str) -> Run:
    """
    Return the network compiled with the options of the engine `name`.

    It is compiled at the first call, and again for each new kind of input. Networks of one class and dtype share their
    compiled code. Images are converted to the standard layout first, so that other layouts cause no recompilation.
    Logits in the memory of a CUDA graph are copied, as the error message of PyTorch advises.
    Raises if the network does not compile to one graph, or (within `without_fallback`) at the recompile limit.
    """
    key = (name, type(net), next(net.parameters()).dtype)
    forward = _forwards[key] = _forwards.get(key) or compile_forward(name)

    def run(images: Tensor) -> Tensor:
        if name not in USING_CUDA_GRAPHS or images.device.type != "cuda":
            return forward(net, to_standard_layout(images))
        torch.compiler.cudagraph_mark_step_begin()
        return forward(net, to_standard_layout(images)).clone()

    return run


def build_frozen(net: nn.Module) -> Run:
    """Return the network compiled for inference only, with its parameters folded and packed as constants."""
    forward = compile_forward("frozen")

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        return forward(net, to_standard_layout(images))

    return run


def compiled_engine(name: str, **fields: Any) -> Engine:
    """Return the `torch.compile` engine of this name; `fields` override the defaults of its Engine."""
    build = partial(build_compiled, name=name)
    return Engine(name, build, empty_batch=NO_EMPTY_BACKWARD, **{"context": without_fallback} | fields)


ENGINES = (
    compiled_engine("compiled"),
    compiled_engine("reduce-overhead", devices=("cuda",)),  # uses CUDA graphs; on the CPU it equals `compiled`
    compiled_engine("max-autotune"),
    compiled_engine("compiled-deterministic", context=deterministic),
    Engine("frozen", build_frozen, differentiable=False, copies_parameters=True, context=freezing),
)
