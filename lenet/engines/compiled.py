"""
`torch.compile` with Inductor, in its modes, for batches of every size. Never a silent fallback: what cannot be compiled
whole raises.

https://docs.pytorch.org/docs/stable/generated/torch.compile.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lenet.engines import Engine, Run, eager, packed

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS: dict[str, dict[str, Any]] = {
    "compiled": {},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "max-autotune": {"mode": "max-autotune"},
    "compiled-deterministic": {},
    "frozen": {},
}
"""What each engine gives `torch.compile`, beside a dynamic batch and no leave to break the graph."""

GRAPHS = 32
"""
How often one network may be compiled. All laws together need ten of the twelve kinds of calls: with gradients for
nothing, the parameters, or the images too, of 0, 1, 2 to 15 (by oneDNN) and more images. What needs more never ends.
"""

NO_EMPTY_BACKWARD = ("forward",)
"""Of none, convolution_backward has other strides than Inductor asserts (as in pytorch/pytorch#171622)."""


@contextmanager
def never_eager() -> Iterator[None]:
    """What cannot be compiled again raises, and a graph may be walked twice, as PyTorch's may."""
    with (
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=GRAPHS),
        torch._functorch.config.patch(donated_buffer=False),
    ):
        yield


@contextmanager
def deterministic() -> Iterator[None]:
    """Never eager, and pooling's backward by PyTorch's own deterministic kernel, which Inductor otherwise replaces."""
    with eager.deterministic(), never_eager():
        yield


@contextmanager
def freezing() -> Iterator[None]:
    """Never eager, and parameters are constants of what is compiled meanwhile without gradients."""
    with never_eager(), torch._inductor.config.patch(freezing=True):
        yield


def whole(function: Function, **options: Any) -> Function:
    """The function as one compiled graph, without breaks, for batches of every size; apart from its earlier ones."""
    function.__code__ = function.__code__.replace()  # the code is where Dynamo keeps what it has compiled
    return cast(Function, torch.compile(function, fullgraph=True, dynamic=True, **options))


def program(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """One compiled graph of any network of one class and dtype; the parameters are its inputs."""

    def run(net: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = net(images)
        return logits

    return whole(run, **OPTIONS[name])


_programs: dict[Any, Callable[[nn.Module, Tensor], Tensor]] = {}
"""By engine, class of network and dtype."""


def compiled(net: nn.Module, name: str) -> Run:
    """
    The network, compiled for its class at the first call and wherever an input's kind is new.

    Images come to it packed, so that it need not be compiled once more for every layout. Raises where it cannot be
    compiled, or (in `never_eager`) has been compiled too often.
    """
    key = (name, type(net), next(net.parameters()).dtype)
    run = _programs[key] = _programs.get(key) or program(name)
    return lambda images: run(net, packed(images))


def frozen(net: nn.Module) -> Run:
    """The network compiled for inference alone, with its parameters as constants, which are folded and packed."""
    run = program("frozen")

    @torch.no_grad()
    def inferred(images: Tensor) -> Tensor:
        return run(net, packed(images))

    return inferred


def engine(name: str, **says: Any) -> Engine:
    """`torch.compile` with the options of this name."""
    return Engine(name, partial(compiled, name=name), empty=NO_EMPTY_BACKWARD, **{"context": never_eager} | says)


ENGINES = (
    engine("compiled"),
    engine("reduce-overhead", devices=("cuda",)),  # by CUDA graphs; on the CPU it is `compiled`
    engine("max-autotune"),
    engine("compiled-deterministic", context=deterministic),
    Engine("frozen", frozen, differentiable=False, copies=True, context=freezing),
)
