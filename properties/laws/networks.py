"""Cases, networks and images that more than one file of laws uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest
import torch
from hypothesis import assume
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

import lenet
from lenet import oracle
from lenet.oracle import SHAPES
from properties.case import Case
from properties.ledger import current_ledger
from properties.stack import Stack, gradients, lay_out
from properties.strategies import cases

INTEGER_WEIGHTS = ("integers", "pairs", "one-hot")
"""Recipes whose weights are -1, 0 and 1, from the densest to the sparsest."""

STALE_GRAPH = re.compile("modified by an inplace operation|view of its base has been modified inplace")
"""Autograd's error messages when a saved tensor, or the base of a saved view, has changed since the forward pass."""

BATCH_OF_17 = Case(images="integers", targets="normal", batch=17, seed=17)
BATCH_OF_33 = Case(weights="integers", images="ties", batch=33, seed=33)
"""
Explicit examples of the laws about numbers, since random ones seldom have so many images.

One image more than powers of two at which kernels select another algorithm, or begin another block. All images differ.
"""


def skip_unless_reference(stack: Stack, reason: str) -> NoReturn:
    """
    Skip the law for the reason, which lies in the subject; the reference network fails instead.

    The reference is known to be judged by every law, so a skip would hide a fault: of the reference, or of the law.
    """
    __tracebackhide__ = True
    if stack.subject.spec == "lenet":
        raise AssertionError(f"the reference network must not be skipped: {reason}")
    pytest.skip(reason)


@contextmanager
def expect_error(error: type[Exception], message: str, what: str) -> Iterator[None]:
    """Assert that the block raises this error with a matching message; `what` describes the block."""
    __tracebackhide__ = True
    try:
        yield
    except error as raised:
        if re.search(message, str(raised)):
            return
        raise AssertionError(f"{what} raised {raised!r}, expected a message that matches {message!r}") from raised
    pytest.fail(f"DID NOT RAISE {error.__name__}: {what}")


def ordinary_cases() -> SearchStrategy[Case]:
    """Cases with 1 to 3 images whose numbers stay well within the range of every dtype."""
    return cases(("default", "sparse", "constant"), ("digits", "normal", "uniform", "checkerboard"), (1, 2, 3))


def with_exact_sums(stack: Stack, case: Case) -> Case:
    """
    Return the integer case, with sparser weights if necessary, so that the stack computes every sum exactly.

    Every partial sum is then an integer that the claimed precision holds, with two bits to spare: one for halves, one
    for the sum of a parameter and its gradient. An example for which even one-hot weights are too dense is discarded.
    """
    for weights in INTEGER_WEIGHTS[INTEGER_WEIGHTS.index(case.weights) :]:
        sparser = replace(case, weights=weights)
        if 4 * stack.exact(sparser, loss=oracle.dot).largest_sum_of_squares <= 1 / stack.precision.coarsest_unit:
            current_ledger().choices["weights"] = weights
            return sparser
    assume(False)
    raise AssertionError("unreachable")


def with_exact_scaling(stack: Stack, case: Case) -> Case:
    """
    Return a case whose results stay exact when they are multiplied by a moderate power of two.

    The given case, except in float16: its subnormals begin at 2**-14, so the case is replaced by one of integers.
    """
    if stack.dtype is not torch.float16:
        return case
    return with_exact_sums(stack, replace(case, weights="pairs", images="integers", targets="integers"))


def cross_entropy_targets(stack: Stack, case: Case, kind: str) -> tuple[Case, Tensor]:
    """
    Return the case and its targets for `F.cross_entropy`.

    With `kind="indices"` the targets are class indices (N,), and those of the returned case are one-hot. With
    `kind="weights"` they are the case's own targets (N,10): arbitrary weights of the classes, also negative.
    """
    if kind == "weights":
        return case, stack.targets(case)
    case = replace(case, targets="one-hot")
    return case, stack.targets(case).argmax(dim=1)


def all_gradients(net: nn.Module) -> dict[str, Tensor]:
    """Return copies of the gradients of the ten parameters by name; raises AssertionError if one is missing."""
    __tracebackhide__ = True
    got = gradients(net)
    missing = [name for name in SHAPES if name not in got]
    assert not missing, f"{', '.join(missing)}: `.grad` is None, expected a gradient of all ten parameters"
    return got


def backward(stack: Stack, net: nn.Module, case: Case) -> dict[str, Tensor]:
    """Run one backward pass of the case's loss; return copies of the ten accumulated gradients by name."""
    __tracebackhide__ = True
    stack.loss(net, case).backward()
    return all_gradients(net)


def gradient_of(images: Tensor) -> Tensor:
    """Return the images' `.grad`; raises AssertionError if the backward pass has not computed it."""
    __tracebackhide__ = True
    assert images.grad is not None, "images.grad is None: the backward pass computes no input gradient"
    return images.grad


def constant_images(stack: Stack, case: Case, value: float) -> Tensor:
    """Return images (N,1,32,32) in the case's batch size and layout whose pixels all equal `value`."""
    images = stack.tensor(np.full((case.batch, 1, 32, 32), value))
    return images[:1].expand_as(images) if case.layout == "expanded" else lay_out(images, case.layout)


def new_network(stack: Stack) -> nn.Module:
    """Return a new Net of the subject on the stack's device and in its dtype, with the parameters it initializes."""
    return stack.subject.Net().to(stack.device, stack.dtype)


def feature_maps_or_skip(stack: Stack, net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return `lenet.feature_maps`; skip the law if the subject does not call conv1 and conv2 once per batch."""
    try:
        maps = lenet.feature_maps(net, images)
    except LookupError as error:
        skip_unless_reference(stack, str(error))
    if any(len(map_) != len(images) for map_ in maps.values()):
        skip_unless_reference(stack, "this network does not call its submodules once for the entire batch")
    return maps


def source_blocks(case: Case) -> list[tuple[int, int]]:
    """
    Return, for each logit of a network with one-hot weights, the block of 4x4 pixels whose maximum the logit is.

    A block is given by its first row and column, found by following the positions of the ones backward from the logits:
    logit k copies a unit of fc2, and that a unit of fc1, and that feature 25 c + 5 y + x, which is the maximum of rows
    2y, 2y+1 and columns 2x, 2x+1 of conv2's map c. Its filter copies conv1's map b at offset (v, u), which is again the
    maximum of two rows and two columns. The filter of map b copies the pixel at offset (t, s).
    """
    positions = {
        name: weight.reshape(len(weight), -1).argmax(axis=1)
        for name, weight in case.parameters(oracle.PRECISIONS["float64"]).items()
        if name.endswith("weight")
    }
    blocks = []
    for unit in positions["fc3.weight"]:
        feature = positions["fc1.weight"][positions["fc2.weight"][unit]]
        c, y, x = np.unravel_index(feature, (16, 5, 5))
        b, v, u = np.unravel_index(positions["conv2.weight"][c], (6, 5, 5))
        t, s = np.unravel_index(positions["conv1.weight"][b], (5, 5))
        blocks.append((int(4 * y + 2 * v + t), int(4 * x + 2 * u + s)))
    return blocks
