"""`Stack`: the subject, engine, device and dtype that a law judges, and the tensors that it builds from a case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenet import oracle
from lenet.engines import Engine
from lenet.oracle import Answer, Array, Loss, Precision
from lenet.subject import Subject
from properties.case import Case
from properties.executed import Executed
from properties.ledger import current_ledger
from properties.preconditions import require


def float64(tensor: Tensor) -> Array:
    """Return the exact values of a tensor of any dtype on any device as a float64 array."""
    return tensor.detach().to("cpu", torch.float64).numpy()


def rounded(values: Array, dtype: torch.dtype) -> Tensor:
    """Return the values as a CPU tensor, rounded to a dtype."""
    return torch.tensor(values).to(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as `float32`."""
    return str(dtype).removeprefix("torch.")


def precision_of(dtype: torch.dtype) -> Precision:
    """Return the precision in which a dtype stores numbers."""
    return oracle.PRECISIONS[dtype_name(dtype)]


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """
    Return a copy of the tensor in another memory layout.

    `strided` and `offset` are views of a larger tensor, their `_base`, whose other elements are NaN. A read of these
    makes results NaN; a write to them shows in `_base`.
    """
    if layout == "channels_last":  # not by memory_format, which ignores the strides of a single channel
        return _packed(tensor.movedim(1, -1)).movedim(-1, 1) if tensor.dim() > 1 else _packed(tensor)
    if layout == "transposed":
        return _packed(tensor.permute(*reversed(range(tensor.dim())))).permute(*reversed(range(tensor.dim())))
    if layout == "strided":
        frame = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"))
        view = frame[..., 1::2]
    elif layout == "offset":
        frame = tensor.new_full((tensor.shape[0] + 2, *tensor.shape[1:]), float("nan"))
        view = frame[1:-1]
    else:
        return _packed(tensor)
    view.copy_(tensor)
    return view


def _packed(tensor: Tensor) -> Tensor:
    """Return a contiguous copy with default strides, also of dimensions of size 1."""
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True, repr=False)
class Stack:
    """A subject on a device in a dtype, with its own forward pass or with an engine's."""

    subject: Subject
    device: torch.device
    dtype: torch.dtype
    engine: Engine | None = None
    claim: str | None = None  # the precision at which the engine is judged, if not the one that it claims

    def __repr__(self) -> str:
        judged = "" if self.precision.name == dtype_name(self.dtype) else f", judged as {self.precision.name}"
        return f"{self.label} on {self.device} in {dtype_name(self.dtype)}{judged}"

    @property
    def label(self) -> str:
        """The subject's name, followed by the engine's: `lenet`, `lenet by compiled`."""
        return f"{self.subject.spec} by {self.engine.name}" if self.engine else self.subject.spec

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the stack in Hypothesis's counterexamples."""
        printer.text(repr(self))

    @property
    def stored_precision(self) -> Precision:
        """The precision of the dtype, in which parameters, images and logits are stored and updates are computed."""
        return precision_of(self.dtype)

    @property
    def precision(self) -> Precision:
        """The precision that the forward and backward passes claim: the engine's claim, else that of the dtype."""
        if self.engine is None:
            return self.stored_precision
        dtype = dtype_name(self.dtype)
        return oracle.claimed_precision(self.claim or self.engine.claims[dtype], dtype)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within this block, PyTorch has the subject's replacements and the engine's settings."""
        with self.subject.installed(), self.engine.context() if self.engine else nullcontext():
            yield

    def tensor(self, values: Array) -> Tensor:
        """Return the values rounded to the stack's dtype, on its device."""
        return rounded(values, self.dtype).to(self.device)

    def net(self, case: Case) -> nn.Module:
        """Return the subject's Net with the case's parameters, executed by the engine if there is one."""
        require(case)
        current_ledger().cases.add(case)
        net = self.subject.Net().to(self.device, self.dtype)
        net.load_state_dict(
            {name: value.to(self.device, copy=True) for name, value in _parameters(case, self.dtype).items()}
        )
        return Executed(net, self.engine, self.subject.spec) if self.engine else net

    def images(self, case: Case) -> Tensor:
        """Return the case's images (N,1,32,32) in the case's memory layout."""
        require(case)
        current_ledger().cases.add(case)
        if case.layout == "expanded" and case.batch:
            return self.tensor(case.pixels(self.stored_precision)[:1]).expand(case.batch, -1, -1, -1)
        return lay_out(self.tensor(case.pixels(self.stored_precision)), case.layout)

    def targets(self, case: Case) -> Tensor:
        """Return the case's targets (N,10)."""
        return self.tensor(case.target_values())

    def logits(self, case: Case) -> Tensor:
        """Return the logits (N,10) of the case's images."""
        logits: Tensor = self.net(case)(self.images(case))
        return logits

    def loss(self, net: nn.Module, case: Case) -> Tensor:
        """Return the mean squared error of the net on the case, a scalar with its graph."""
        return F.mse_loss(net(self.images(case)), self.targets(case))

    def exact(self, case: Case, repeats: int = 1, loss: Loss = oracle.mse, with_input_gradient: bool = False) -> Answer:
        """
        Return the oracle's answer for the case's inputs, rounded to the stack's dtype, at the stack's precision.

        The batch contains each image `repeats` times.
        """
        return _exact(case, self.dtype, self.precision, loss, repeats, with_input_gradient)

    def solve(
        self,
        case: Case,
        images: Tensor,
        targets: Tensor,
        loss: Loss,
        repeats: int = 1,
        with_input_gradient: bool = False,
    ) -> Answer:
        """Return the oracle's answer for the case's parameters with other images and targets."""
        return _solve(case, self.dtype, self.precision, images, targets, loss, repeats, with_input_gradient)


@lru_cache(maxsize=64)
def _parameters(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the case's parameters in a dtype. They are cached: copy them before writing."""
    return {name: rounded(value, dtype) for name, value in case.parameters(precision_of(dtype)).items()}


@lru_cache(maxsize=64)
def _exact(
    case: Case, dtype: torch.dtype, precision: Precision, loss: Loss, repeats: int, with_input_gradient: bool
) -> Answer:
    images, targets = rounded(case.pixels(precision_of(dtype)), dtype), rounded(case.target_values(), dtype)
    return _solve(case, dtype, precision, images, targets, loss, repeats, with_input_gradient)


def _solve(
    case: Case,
    dtype: torch.dtype,
    precision: Precision,
    images: Tensor,
    targets: Tensor,
    loss: Loss,
    repeats: int,
    with_input_gradient: bool,
) -> Answer:
    return oracle.solve(
        {name: float64(value) for name, value in _parameters(case, dtype).items()},
        float64(images),
        float64(targets),
        precision,
        seed=case.seed,
        repeats=repeats,
        loss=loss,
        with_input_gradient=with_input_gradient,
    )


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of the gradients of a net's parameters by name, except those that are None."""
    return {name: p.grad.detach().clone() for name, p in net.named_parameters() if p.grad is not None}
