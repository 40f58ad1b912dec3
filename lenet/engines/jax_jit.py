"""
The tutorial's network in JAX, compiled by XLA, with JAX's own backward pass.

https://docs.jax.dev/en/latest/jax.lax.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import torch
from jax import lax
from jax import numpy as jnp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.dlpack import from_dlpack

from lenet.engines import Engine, Run


def scores(parameters: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """The logits: (N,1,32,32) -> (N,10)."""
    c1 = jax.nn.relu(convolved(parameters, "conv1", images))  # N,6,28,28
    c3 = jax.nn.relu(convolved(parameters, "conv2", pooled(c1)))  # N,16,10,10
    flat = pooled(c3).reshape(-1, 400)  # N,400
    f5 = jax.nn.relu(linear(parameters, "fc1", flat))  # N,120
    f6 = jax.nn.relu(linear(parameters, "fc2", f5))  # N,84
    return linear(parameters, "fc3", f6)


def convolved(parameters: Mapping[str, jax.Array], name: str, maps: jax.Array) -> jax.Array:
    """The layer's 5x5 filters on maps: (N,C,H,W) -> (N,D,H-4,W-4)."""
    products = lax.conv(maps, parameters[f"{name}.weight"], (1, 1), "VALID")
    return biased(products, parameters[f"{name}.bias"][:, None, None])


def pooled(maps: jax.Array) -> jax.Array:
    """The largest of each 2x2 window: (N,C,H,W) -> (N,C,H/2,W/2)."""
    return lax.reduce_window(maps, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def linear(parameters: Mapping[str, jax.Array], name: str, rows: jax.Array) -> jax.Array:
    """The layer's products and biases: (N,K) -> (N,M)."""
    return biased(lax.dot(rows, parameters[f"{name}.weight"].T), parameters[f"{name}.bias"])


def biased(products: jax.Array, bias: jax.Array) -> jax.Array:
    """
    The sum of both, added in float32 at least.

    The bias's gradient is a sum over all that it is added to, which JAX would add up in as few bits as the bias has.
    """
    wide = jnp.promote_types(products.dtype, jnp.float32)
    return (products.astype(wide) + bias.astype(wide)).astype(products.dtype)


def gradients(
    parameters: Mapping[str, jax.Array], images: jax.Array, by_scores: jax.Array
) -> tuple[Mapping[str, jax.Array], jax.Array]:
    """The gradients by the parameters and by the images (N,1,32,32), given that by the logits (N,10)."""
    by_parameters, by_images = jax.vjp(scores, parameters, images)[1](by_scores)
    return by_parameters, by_images


# Compiled once for each dtype and batch size.
forward, backward = jax.jit(scores), jax.jit(gradients)


def to_jax(tensor: Tensor) -> jax.Array:
    """The same numbers, in the same memory where XLA can take it."""
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def to_torch(array: jax.Array) -> Tensor:
    """The same numbers, once they have all been computed."""
    return from_dlpack(array.block_until_ready())


@contextmanager
def as_wide_as_given() -> Iterator[None]:
    """Compute float64 in float64, and round no operand before it is multiplied, on whatever hardware."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


class _Scores(torch.autograd.Function):
    """The logits, with JAX's backward pass as theirs."""

    @staticmethod
    def forward(ctx: Any, names: Sequence[str], images: Tensor, *parameters: Tensor) -> Tensor:
        ctx.names = names
        ctx.save_for_backward(images, *parameters)
        with as_wide_as_given():
            return to_torch(forward(dict(zip(names, map(to_jax, parameters), strict=True)), to_jax(images)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_scores: Tensor) -> Any:
        with as_wide_as_given():
            images, *parameters = map(to_jax, ctx.saved_tensors)
            by_name, by_images = backward(dict(zip(ctx.names, parameters, strict=True)), images, to_jax(by_scores))
            return None, to_torch(by_images), *(to_torch(by_name[name]) for name in ctx.names)


def build(net: nn.Module) -> Run:
    """
    The tutorial's network with this one's parameters, of which it takes the names and nothing else.

    Raises ValueError for images that are not (N,1,32,32).
    """

    def run(images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 32, 32):
            raise ValueError(f"images are (N, 1, 32, 32), not {tuple(images.shape)}")
        names, parameters = zip(*net.named_parameters(), strict=True)
        logits: Tensor = _Scores.apply(names, images, *parameters)  # type: ignore[no-untyped-call]
        return logits

    return run


ENGINES = (Engine("jax", build, devices=("cpu",)),)
