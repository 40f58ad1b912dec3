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


def logits_of(parameters: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Return the logits: (N,1,32,32) -> (N,10)."""
    c1 = jax.nn.relu(conv(parameters, "conv1", images))  # N,6,28,28
    c3 = jax.nn.relu(conv(parameters, "conv2", max_pool(c1)))  # N,16,10,10
    flat = max_pool(c3).reshape(-1, 400)  # N,400
    f5 = jax.nn.relu(linear(parameters, "fc1", flat))  # N,120
    f6 = jax.nn.relu(linear(parameters, "fc2", f5))  # N,84
    return linear(parameters, "fc3", f6)


def conv(parameters: Mapping[str, jax.Array], name: str, maps: jax.Array) -> jax.Array:
    """Apply the named 5x5 convolution: (N,C,H,W) -> (N,D,H-4,W-4)."""
    products = lax.conv(maps, parameters[f"{name}.weight"], (1, 1), "VALID")
    return add_bias(products, parameters[f"{name}.bias"][:, None, None])


def max_pool(maps: jax.Array) -> jax.Array:
    """Return the maximum of each 2x2 window: (N,C,H,W) -> (N,C,H/2,W/2)."""
    return lax.reduce_window(maps, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def linear(parameters: Mapping[str, jax.Array], name: str, rows: jax.Array) -> jax.Array:
    """Apply the named linear layer: (N,K) -> (N,M)."""
    return add_bias(lax.dot(rows, parameters[f"{name}.weight"].T), parameters[f"{name}.bias"])


def add_bias(products: jax.Array, bias: jax.Array) -> jax.Array:
    """
    Return products + bias, added in float32 or wider, in the dtype of the products.

    The bias's gradient is a sum over all elements that the bias was added to. JAX accumulates that sum in the dtype of
    the addition, which would otherwise be the dtype of the bias.
    """
    wide = jnp.promote_types(products.dtype, jnp.float32)
    return (products.astype(wide) + bias.astype(wide)).astype(products.dtype)


def gradients_of(
    parameters: Mapping[str, jax.Array], images: jax.Array, logits_gradient: jax.Array
) -> tuple[Mapping[str, jax.Array], jax.Array]:
    """Return the gradients of the parameters and of the images (N,1,32,32), given the gradient of the logits (N,10)."""
    parameter_gradients, images_gradient = jax.vjp(logits_of, parameters, images)[1](logits_gradient)
    return parameter_gradients, images_gradient


# JAX compiles each once for every dtype and batch size.
forward, backward = jax.jit(logits_of), jax.jit(gradients_of)


def to_jax(tensor: Tensor) -> jax.Array:
    """Return the tensor as a JAX array, on the same memory if XLA supports its layout."""
    return jax.dlpack.from_dlpack(tensor.detach().contiguous())


def to_torch(array: jax.Array) -> Tensor:
    """Return the array as a tensor on the same memory; waits until JAX has computed it."""
    return from_dlpack(array.block_until_ready())


@contextmanager
def full_precision() -> Iterator[None]:
    """Enable float64, and keep XLA from rounding the operands of products on any hardware."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


class _Forward(torch.autograd.Function):
    """JAX's forward and backward pass as an autograd function."""

    @staticmethod
    def forward(ctx: Any, names: Sequence[str], images: Tensor, *parameters: Tensor) -> Tensor:
        ctx.names = names
        ctx.save_for_backward(images, *parameters)
        with full_precision():
            return to_torch(forward(dict(zip(names, map(to_jax, parameters), strict=True)), to_jax(images)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, logits_gradient: Tensor) -> Any:
        with full_precision():
            images, *parameters = map(to_jax, ctx.saved_tensors)
            by_name, images_gradient = backward(
                dict(zip(ctx.names, parameters, strict=True)), images, to_jax(logits_gradient)
            )
            return None, to_torch(images_gradient), *(to_torch(by_name[name]) for name in ctx.names)


def build_jax(net: nn.Module) -> Run:
    """
    Return the tutorial's network in JAX with the parameters of `net`, which it finds by name; ignores `net.forward`.

    The returned function raises ValueError for images that are not (N,1,32,32).
    """

    def run(images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 32, 32):
            raise ValueError(f"images must be (N, 1, 32, 32), not {tuple(images.shape)}")
        names, parameters = zip(*net.named_parameters(), strict=True)
        logits: Tensor = _Forward.apply(names, images, *parameters)  # type: ignore[no-untyped-call]
        return logits

    return run


ENGINES = (Engine("jax", build_jax, devices=("cpu",)),)
