"""
Networks whose convolutions and linear layers compute with fewer bits than their dtype has, in both passes.

They are correct but for the bits: every product of matrices is computed in float64, and what is rounded there is the
fault. `properties.sensitivity` searches for the largest number of bits at which a law rejects them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from lenet.subject import Subject

FLOAT64_BITS = 53
"""Significant bits of float64."""

KINDS = {
    "operands": "the operands of every matrix product are rounded to b significant bits, to nearest",
    "sums": "every matrix product is summed in up to 32 parts, and each partial sum is rounded to b bits, to nearest",
    "stores": "every result is truncated to b bits, toward zero, when it is stored in the dtype",
}
"""What is computed with fewer bits, in the forward and in the backward pass."""

PARTS = 32
"""A sum of more terms has several in each part, so that a sum of thousands is cheap to compute."""


def round_to_nearest(values: Tensor, bits: int) -> Tensor:
    """Round float64 numbers to this number of significant bits, ties away from zero; infinity and NaN stay."""
    dropped = FLOAT64_BITS - bits
    return _without_last_bits(values, dropped, 1 << (dropped - 1)) if dropped else values


def truncate(values: Tensor, bits: int) -> Tensor:
    """Truncate float64 numbers toward zero to this number of significant bits; infinity and NaN stay."""
    return _without_last_bits(values, FLOAT64_BITS - bits, 0)


def _without_last_bits(values: Tensor, dropped: int, added: int) -> Tensor:
    return ((values.contiguous().view(torch.int64) + added) & -(1 << dropped)).view(torch.float64)


@dataclass(frozen=True)
class Fault:
    """One of `KINDS` with its number of bits; all 53 bits of float64 are no fault."""

    kind: str
    bits: int

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b in float64, (m,k) @ (k,n) -> (m,n)."""
        if self.kind == "operands":
            return round_to_nearest(a, self.bits) @ round_to_nearest(b, self.bits)
        if self.kind != "sums" or not a.shape[1]:
            return a @ b
        size = -(-a.shape[1] // PARTS)
        total = torch.zeros((), dtype=torch.float64)
        for left, right in zip(a.split(size, dim=1), b.split(size, dim=0), strict=True):
            total = round_to_nearest(total + left @ right, self.bits)
        return total

    def stored(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Return float64 values as they are stored in the dtype."""
        return (truncate(values, self.bits) if self.kind == "stores" else values).to(dtype)


class _Product(Function):
    """A product of matrices with a fault, which the products of its derivatives have too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, fault: Fault) -> Tensor:
        return fault.product(a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Fault], output: Tensor) -> None:
        *operands, ctx.fault = inputs
        ctx.save_for_backward(*operands)
        ctx.save_for_forward(*operands)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (a, b), (delta,) = ctx.saved_tensors, deltas
        by_a = _product(delta, b.mT, ctx.fault) if ctx.needs_input_grad[0] else None
        by_b = _product(a.mT, delta, ctx.fault) if ctx.needs_input_grad[1] else None
        return by_a, by_b, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        a, b = ctx.saved_tensors
        return _product(tangents[0], b, ctx.fault) + _product(a, tangents[1], ctx.fault)


class _Cast(Function):
    """A conversion from or to float64; of its result and of its gradient, the one in the dtype is stored."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, dtype: torch.dtype, fault: Fault, stores: bool) -> Tensor:
        return fault.stored(values, dtype) if stores else values.to(dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype, Fault, bool], output: Tensor) -> None:
        values, _, ctx.fault, ctx.stores = inputs
        ctx.dtype = values.dtype
        ctx.target = output.dtype

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor, None, None, None]:
        return _cast(deltas[0], ctx.dtype, ctx.fault, not ctx.stores), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _cast(tangents[0], ctx.target, ctx.fault, ctx.stores)


def _product(a: Tensor, b: Tensor, fault: Fault) -> Tensor:
    result: Tensor = _Product.apply(a, b, fault)  # type: ignore[no-untyped-call]
    return result


def _cast(values: Tensor, dtype: torch.dtype, fault: Fault, stores: bool) -> Tensor:
    result: Tensor = _Cast.apply(values, dtype, fault, stores)  # type: ignore[no-untyped-call]
    return result


def linear(fault: Fault, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `F.linear` with the fault, (N,I) and (O,I) -> (N,O)."""
    x, w, b = (_cast(tensor, torch.float64, fault, stores=False) for tensor in (inputs, weight, bias))
    return _cast(_product(x, w.mT, fault) + b, inputs.dtype, fault, stores=True)


def conv2d(fault: Fault, inputs: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
    """Return `F.conv2d` with the fault, of stride 1 and without padding, (N,C,H,W) and (O,C,5,5) -> (N,O,H-4,W-4)."""
    x, w, b = (_cast(tensor, torch.float64, fault, stores=False) for tensor in (inputs, weight, bias))
    batch, _, height, width = x.shape
    rows = F.unfold(x, 5).mT.reshape(-1, w[0].numel())  # N*(H-4)*(W-4),25*C
    maps = (_product(rows, w.flatten(1).mT, fault) + b).reshape(batch, height - 4, width - 4, len(w))
    return _cast(maps.permute(0, 3, 1, 2).contiguous(), inputs.dtype, fault, stores=True)


def with_fault(subject: Subject, fault: Fault) -> Subject:
    """Return the subject with faulty layers."""
    layers = {
        "torch.nn.functional.conv2d": partial(conv2d, fault),
        "torch.nn.functional.linear": partial(linear, fault),
    }
    return replace(subject, spec=f"{subject.spec} with {fault.kind} of {fault.bits} bits", replaces=layers)
