"""A stack: the subject, engine, device and dtype that the laws judge, and what it makes of a case."""

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


def float64(tensor: Tensor) -> Array:
    """The numbers of a tensor of any dtype on any device, exactly."""
    return tensor.detach().to("cpu", torch.float64).numpy()


def rounded(values: Array, dtype: torch.dtype) -> Tensor:
    """The values rounded to a dtype."""
    return torch.tensor(values).to(dtype)


def name_of(dtype: torch.dtype) -> str:
    """The dtype's name, such as float32."""
    return str(dtype).removeprefix("torch.")


def precision_of(dtype: torch.dtype) -> Precision:
    """What a dtype claims."""
    return oracle.PRECISIONS[name_of(dtype)]


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """
    The same numbers in another memory layout.

    `strided` and `offset` are views of a larger tensor, their `_base`, whose other elements are NaN: who reads them
    is found out by what follows, and who writes them by looking.
    """
    if layout == "channels_last":  # by hand, since PyTorch calls one channel both contiguous and channels_last
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
    """A contiguous copy, also of one that already counts as contiguous because a dimension's size is 1."""
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True, repr=False)
class Stack:
    """A subject on a device in a dtype, run as it is or by an engine."""

    subject: Subject
    device: torch.device
    dtype: torch.dtype
    engine: Engine | None = None
    claim: str | None = None  # the precision to judge the engine by, where that is not the one that it claims itself

    def __repr__(self) -> str:
        judged = "" if self.precision.name == name_of(self.dtype) else f", judged as {self.precision.name}"
        return f"{self.who} on {self.device} in {name_of(self.dtype)}{judged}"

    @property
    def who(self) -> str:
        """The subject, and the engine that runs it."""
        return f"{self.subject.spec} by {self.engine.name}" if self.engine else self.subject.spec

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How Hypothesis prints a stack in a counterexample."""
        printer.text(repr(self))

    @property
    def stored(self) -> Precision:
        """That of the numbers which go in and come out: what an update has, whoever runs the network."""
        return precision_of(self.dtype)

    @property
    def precision(self) -> Precision:
        """The precision that this stack claims: its dtype's, where its engine claims no other."""
        if self.engine is None:
            return self.stored
        return oracle.claimed(self.claim or self.engine.claims[name_of(self.dtype)], name_of(self.dtype))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts, what the subject replaces is replaced, and what the engine wants to be set is set."""
        with self.subject.installed(), self.engine.context() if self.engine else nullcontext():
            yield

    def tensor(self, values: Array) -> Tensor:
        """The values rounded to this stack's dtype, on its device."""
        return rounded(values, self.dtype).to(self.device)

    def net(self, case: Case) -> nn.Module:
        """The subject's Net with the case's parameters, run by the engine if there is one."""
        net = self.subject.Net().to(self.device, self.dtype)
        net.load_state_dict(
            {name: value.to(self.device, copy=True) for name, value in _parameters(case, self.dtype).items()}
        )
        return Executed(net, self.engine, self.subject.spec) if self.engine else net

    def images(self, case: Case) -> Tensor:
        """The case's images (N,1,32,32) in its memory layout."""
        if case.layout == "expanded" and case.batch:
            return self.tensor(case.pixels(self.stored)[:1]).expand(case.batch, -1, -1, -1)
        return lay_out(self.tensor(case.pixels(self.stored)), case.layout)

    def targets(self, case: Case) -> Tensor:
        """The case's targets (N,10)."""
        return self.tensor(case.goals())

    def logits(self, case: Case) -> Tensor:
        """(N,10)."""
        logits: Tensor = self.net(case)(self.images(case))
        return logits

    def loss(self, net: nn.Module, case: Case) -> Tensor:
        """The mean squared error of the net on the case, with its graph."""
        return F.mse_loss(net(self.images(case)), self.targets(case))

    def exact(self, case: Case, repeats: int = 1, loss: Loss = oracle.mse, by_images: bool = False) -> Answer:
        """
        The oracle's answer to the case as this stack sees it (inputs rounded to its dtype), with its budget.

        With `repeats`, to a batch in which each of the case's images occurs that often.
        """
        return _exact(case, self.dtype, self.precision, loss, repeats, by_images)

    def solve(
        self, case: Case, images: Tensor, targets: Tensor, loss: Loss, repeats: int = 1, by_images: bool = False
    ) -> Answer:
        """The oracle's answer to other images and targets, with the case's parameters."""
        return _solve(case, self.dtype, self.precision, images, targets, loss, repeats, by_images)


@lru_cache(maxsize=64)
def _parameters(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """The case's parameters in a dtype, not to be written to."""
    return {name: rounded(value, dtype) for name, value in case.parameters(precision_of(dtype)).items()}


@lru_cache(maxsize=64)
def _exact(case: Case, dtype: torch.dtype, precision: Precision, loss: Loss, repeats: int, by_images: bool) -> Answer:
    images, targets = rounded(case.pixels(precision_of(dtype)), dtype), rounded(case.goals(), dtype)
    return _solve(case, dtype, precision, images, targets, loss, repeats, by_images)


def _solve(
    case: Case,
    dtype: torch.dtype,
    precision: Precision,
    images: Tensor,
    targets: Tensor,
    loss: Loss,
    repeats: int,
    by_images: bool,
) -> Answer:
    return oracle.solve(
        {name: float64(value) for name, value in _parameters(case, dtype).items()},
        float64(images),
        float64(targets),
        precision,
        seed=case.seed,
        repeats=repeats,
        loss=loss,
        by_images=by_images,
    )


def gradients(net: nn.Module) -> dict[str, Tensor]:
    """The gradients of a net's parameters by name; those that are None are left out."""
    return {name: p.grad.detach().clone() for name, p in net.named_parameters() if p.grad is not None}
