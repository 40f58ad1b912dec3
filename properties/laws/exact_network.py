"""
The network in float64 NumPy, for laws whose parameters and images make every sum exact.

A second computation of what `lenet.oracle` computes, without budgets: one image takes about a millisecond, so that
batches of hundreds are judged in all their rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from lenet.oracle import PRECISIONS, Array
from properties.case import Case
from properties.comparison import assert_exact
from properties.laws.networks import all_gradients, gradient_of
from properties.stack import Stack


@dataclass(frozen=True)
class Results:
    """The logits (N,10), and the gradients of sum(upstream * logits) by parameter and with respect to the images."""

    logits: Array
    gradients: dict[str, Array]
    images: Array


def results(parameters: Mapping[str, Array], images: Array, upstream: Array) -> Results:
    """Return the network's results for images (N,1,32,32) and upstream gradients (N,10) of the logits."""
    w = {name.removesuffix(".weight"): values for name, values in parameters.items() if name.endswith("weight")}
    b = {name.removesuffix(".bias"): values for name, values in parameters.items() if name.endswith("bias")}
    pixels = images.transpose(0, 2, 3, 1)  # channels last
    s2, selected2 = _relu_and_pool(_convolution(pixels, w["conv1"]) + b["conv1"])  # N,14,14,6
    s4, selected4 = _relu_and_pool(_convolution(s2, w["conv2"]) + b["conv2"])  # N,5,5,16
    flat = s4.transpose(0, 3, 1, 2).reshape(-1, 400)
    f5 = np.maximum(flat @ w["fc1"].T + b["fc1"], 0)
    f6 = np.maximum(f5 @ w["fc2"].T + b["fc2"], 0)
    logits = f6 @ w["fc3"].T + b["fc3"]

    d6 = upstream @ w["fc3"] * (f6 > 0)
    d5 = d6 @ w["fc2"] * (f5 > 0)
    d4 = (d5 @ w["fc1"]).reshape(-1, 16, 5, 5).transpose(0, 2, 3, 1)
    d3 = _to_selected(d4, selected4)  # N,10,10,16
    d2 = _convolution_input_gradient(d3, w["conv2"])
    d1 = _to_selected(d2, selected2)  # N,28,28,6
    deltas = {"conv1": (d1, pixels), "conv2": (d3, s2), "fc1": (d5, flat), "fc2": (d6, f5), "fc3": (upstream, f6)}
    gradients = {}
    for layer, (delta, inputs) in deltas.items():
        convolves = layer.startswith("conv")
        gradients[f"{layer}.weight"] = _convolution_weight_gradient(delta, inputs) if convolves else delta.T @ inputs
        gradients[f"{layer}.bias"] = delta.reshape(-1, delta.shape[-1]).sum(axis=0)
    return Results(logits, gradients, _convolution_input_gradient(d1, w["conv1"]).transpose(0, 3, 1, 2))


def _convolution(maps: Array, weight: Array) -> Array:
    """(N,h+4,h+4,C) -> (N,h,h,O)."""
    h = maps.shape[1] - 4
    out = np.zeros((len(maps), h, h, len(weight)))
    for i, j in _used_offsets(weight):
        out += maps[:, i : i + h, j : j + h] @ weight[:, :, i, j].T
    return out


def _convolution_input_gradient(delta: Array, weight: Array) -> Array:
    """(N,h,h,O) -> (N,h+4,h+4,C)."""
    n, h, _, _ = delta.shape
    out = np.zeros((n, h + 4, h + 4, weight.shape[1]))
    for i, j in _used_offsets(weight):
        out[:, i : i + h, j : j + h] += delta @ weight[:, :, i, j]
    return out


def _convolution_weight_gradient(delta: Array, maps: Array) -> Array:
    """(N,h,h,O), (N,h+4,h+4,C) -> (O,C,5,5)."""
    used = np.nonzero(delta.any(axis=-1))
    patches = sliding_window_view(maps, (5, 5), axis=(1, 2))[used]  # K,C,5,5
    return np.tensordot(delta[used], patches, axes=(0, 0))


def _used_offsets(weight: Array) -> list[tuple[int, int]]:
    """Return the rows and columns of the kernels that have a weight other than zero."""
    return [(int(i), int(j)) for i, j in np.argwhere(weight.any(axis=(0, 1)))]


def _relu_and_pool(maps: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return the maximum of zero and each window, (N,2h,2h,C) -> (N,h,h,C), and the selected pixels (N,h,h,C,4)."""
    n, size, _, channels = maps.shape
    windows = maps.reshape(n, size // 2, 2, size // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    windows = windows.reshape(n, size // 2, size // 2, channels, 4)
    first = windows.argmax(axis=-1)[..., None] == np.arange(4)
    return np.maximum(windows.max(axis=-1), 0), first & (windows > 0)


def _to_selected(gradient: Array, selected: NDArray[np.bool_]) -> Array:
    """Return the gradient with respect to the maps that were pooled, (N,h,h,C) -> (N,2h,2h,C)."""
    n, h, _, channels, _ = selected.shape
    windows = (gradient[..., None] * selected).reshape(n, h, h, channels, 2, 2)
    return windows.transpose(0, 1, 4, 2, 5, 3).reshape(n, 2 * h, 2 * h, channels)


def one_hot_parameters(seed: int) -> dict[str, Array]:
    """Return weights that are 1 for one input of each unit, else 0, and biases of 0: every unit copies an input."""
    return Case(weights="one-hot", seed=seed).parameters(PRECISIONS["float64"])


def network_of(stack: Stack, parameters: Mapping[str, Array]) -> nn.Module:
    """Return a network of the subject, executed by the engine if there is one, with these parameters."""
    net = stack.net(Case())
    net.load_state_dict({name: stack.tensor(values) for name, values in parameters.items()})
    return net


def whole_numbers(stack: Stack, seed: int, batch: int, share: float, terms: int = 1) -> tuple[Array, Array]:
    """
    Return images (N,1,32,32) of positive integers, and upstream gradients (N,10), one positive integer in each row.

    Each is as large as it can be if sums of `terms` products of both over the batch are to be exact in the precision
    that the stack claims. The pixels get this share of the bits, and the upstream gradients the rest.
    """
    random, largest = np.random.RandomState([seed, 10]), 1 / stack.precision.coarsest_unit / (batch * terms)
    largest_pixel = max(3, int(largest**share))  # with 3 at least, images differ
    images = random.randint(1, largest_pixel + 1, (batch, 1, 32, 32))
    upstream = np.zeros((batch, 10))
    upstream[range(batch), random.randint(0, 10, batch)] = random.randint(
        1, max(1, int(largest / largest_pixel)) + 1, batch
    )
    return images.astype(np.float64), upstream


def assert_integers(stack: Stack, got: Tensor, exact: Array, what: str) -> None:
    """
    Assert that sums of positive integers are exact, where the claimed precision holds all integers up to the sum.

    It then holds every partial sum, in any order.
    """
    __tracebackhide__ = True
    representable = torch.tensor(exact <= 1 / stack.precision.coarsest_unit, device=got.device)
    assert_exact(got, torch.where(representable, stack.tensor(exact), got), what)


def assert_whole_results(
    stack: Stack, net: nn.Module, parameters: Mapping[str, Array], images: Array, upstream: Array
) -> None:
    """Assert that the logits and all gradients of a network of positive integers are exact."""
    __tracebackhide__ = True
    exact, pixels = results(parameters, images, upstream), stack.tensor(images).requires_grad_()
    net.zero_grad()

    logits = net(pixels)
    logits.backward(stack.tensor(upstream))

    assert_integers(stack, logits, exact.logits, "logits")
    assert_integers(stack, gradient_of(pixels), exact.images, "images.grad")
    for name, gradient in all_gradients(net).items():
        assert_integers(stack, gradient, exact.gradients[name], f"{name}.grad")
