"""Laws of what is no number, or hardly one: NaN, infinity, overflow, subnormals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

import lenet
from lenet.oracle import Array
from properties.case import LAYOUTS, Case
from properties.comparison import assert_exact
from properties.stack import Stack, lay_out
from properties.strategies import cases

KERNELS = pytest.mark.parametrize("kernels", ["default", "no oneDNN", "no oneDNN, no NNPACK", "no cuDNN"])
"""Whose kernels compute: those that PyTorch chooses, or what it falls back on; NNPACK's begin at 16 images."""

BATCHES = (2, 17, 1, 3)
SPECIAL = (float("nan"), float("inf"), float("-inf"))
EDGES = st.sampled_from([0, 31, 1, 3, 4, 5, 27, 28]) | st.integers(0, 31)
"""A row or column of a pixel: the rims, where the number of windows that see it changes, and any other."""


@contextmanager
def using(stack: Stack, kernels: str) -> Iterator[None]:
    """With these kernels; skips where the device has none such, and where an engine has chosen its own."""
    if stack.engine and kernels != "default":
        pytest.skip("not applicable: an engine has kernels of its own")
    if kernels != "default" and ("cuDNN" in kernels) != (stack.device.type == "cuda"):
        pytest.skip(f"there is {kernels.split(', ')[0]} on {stack.device.type} to begin with")
    onednn, cudnn = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    with torch.backends.nnpack.flags(enabled=False) if "no NNPACK" in kernels else nullcontext():
        torch.backends.mkldnn.enabled = onednn and "no oneDNN" not in kernels
        torch.backends.cudnn.enabled = cudnn and "no cuDNN" not in kernels
        try:
            yield
        finally:
            torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = onednn, cudnn


def separate(weights: tuple[str, ...] = ("default",)) -> SearchStrategy[Case]:
    """Cases in which each image has memory of its own, so that one of them can be changed alone."""

    def own(case: Case) -> Case:
        return replace(case, layout="contiguous") if case.layout == "expanded" else case

    return cases(weights=weights, batches=BATCHES).map(own)


def spoilt(stack: Stack, case: Case, image: int, row: int, column: int, value: float) -> Tensor:
    """The case's images, with one pixel of one of them replaced."""
    images = stack.images(case)
    images[image % case.batch, 0, row, column] = value
    return images


def others(tensor: Tensor, image: int) -> Tensor:
    """All rows but the image's."""
    keep = [i for i in range(len(tensor)) if i != image % len(tensor)]
    return tensor[keep]


@pytest.mark.engine
@KERNELS
@given(case=separate(), image=st.integers(0, 16), row=EDGES, column=EDGES)
def test_nan_pixel_makes_all_logits_of_its_image_nan(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int
) -> None:
    """
    One pixel that is NaN makes all ten scores of its image NaN, wherever it lies, in every memory layout.

    Every pixel is in a window of every filter, and NaN times anything is NaN. Rejects: `nan_to_num`, a ReLU or pooling
    that drops NaN, a border that no window reads.
    """
    net, images = stack.net(case), spoilt(stack, case, image, row, column, float("nan"))

    with using(stack, kernels):
        logits = net(images)

    mine = logits[image % case.batch]
    assert_exact(mine, torch.full_like(mine, float("nan")), "the image's logits")


@pytest.mark.engine
@KERNELS
@given(case=separate(), image=st.integers(0, 16), row=EDGES, column=EDGES, value=st.sampled_from(SPECIAL))
def test_nonfinite_pixel_does_not_affect_other_images(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int, value: float
) -> None:
    """
    One pixel that is NaN or infinite leaves the scores of all other images bit for bit as they would be without it.

    Rejects: statistics over the batch, a mask that multiplies by zero, reading beyond an image's end, as of matrices in
    bfloat16 whose rows are no multiple of 32 (uxlfoundation/oneDNN#5717).
    """
    net = stack.net(case)

    with using(stack, kernels):
        want = net(stack.images(case))
        logits = net(spoilt(stack, case, image, row, column, value))

    assert_exact(others(logits, image), others(want, image), "the other images' logits")


@KERNELS
@given(case=separate(), image=st.integers(0, 16), row=EDGES, column=EDGES)
def test_nan_spreads_exactly_over_its_receptive_field(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int
) -> None:
    """
    NaN at one pixel appears in conv1's and conv2's maps where a 5x5 window has read it, in all maps, and nowhere else.

    At (r, c) that is rows r-4 to r and columns c-4 to c of conv1's maps, as far as there are such, and through the
    pooling the same of conv2's. Not applicable to a network that does not call conv1 and conv2 once for the batch.
    Rejects: windows that are shifted or flipped; convolution by Fourier transform, which smears NaN over a tile
    (pytorch/pytorch#157237); weights of zero for a sixth column.
    """
    net, images = stack.net(case), spoilt(stack, case, image, row, column, float("nan"))

    with using(stack, kernels):
        maps = feature_maps(net, images)

    first = [windows(range(at, at + 1), 28) for at in (row, column)]
    second = [windows(range(reach.start // 2, (reach.stop - 1) // 2 + 1), 10) for reach in first]
    for name, (rows, columns) in {"conv1": first, "conv2": second}.items():
        field = torch.zeros(maps[name].shape, dtype=torch.bool)
        field[image % case.batch, :, rows.start : rows.stop, columns.start : columns.stop] = True
        assert_exact(maps[name].isnan().cpu(), field, f"whether {name}'s map is NaN")


def feature_maps(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The network's feature maps; skips where it does not have them in the tutorial's way."""
    try:
        maps = lenet.feature_maps(net, images)
    except LookupError as error:
        pytest.skip(str(error))
    if any(len(map_) != len(images) for map_ in maps.values()):
        pytest.skip("this network does not call its submodules once for the whole batch")
    return maps


def windows(read: range, size: int) -> range:
    """Which of a row of 5-wide windows, as many as `size`, read one of these positions."""
    return range(max(read.start - 4, 0), min(read.stop, size))


@pytest.mark.engine
@KERNELS
@given(case=separate(), image=st.integers(0, 16), row=EDGES, column=EDGES, value=st.sampled_from(SPECIAL))
def test_nonfinite_pixel_does_not_affect_other_images_gradients(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int, value: float
) -> None:
    """
    One pixel that is NaN or infinite leaves the loss's gradient by all other images bit for bit as it would be.

    Rejects: a gradient that is scaled by the batch's norm or by the loss, sums that run across images.
    """
    net = stack.net(case)

    with using(stack, kernels):
        want = by_images(stack, net, stack.images(case), case)
        got = by_images(stack, net, spoilt(stack, case, image, row, column, value), case)

    assert_exact(others(got, image), others(want, image), "the gradient by the other images")


def by_images(stack: Stack, net: nn.Module, images: Tensor, case: Case) -> Tensor:
    """The gradient of the mean squared error by the images."""
    images = images.detach().requires_grad_()
    loss = F.mse_loss(net(images), stack.targets(case))
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient


@pytest.mark.engine
@KERNELS
@given(case=separate(), image=st.integers(0, 16), score=st.integers(0, 9), value=st.sampled_from(SPECIAL))
def test_nonfinite_upstream_gradient_does_not_affect_other_images(
    stack: Stack, kernels: str, case: Case, image: int, score: int, value: float
) -> None:
    """
    Backward from a gradient that is NaN or infinite in one score leaves the gradient by all other images as it was.

    That score's own bias, whose gradient is the sum over the batch, gets what was put in; the other nine keep theirs.
    Rejects: a gradient that is clipped or cleaned, sums that run across images or scores.
    """
    net, images = stack.net(case), stack.images(case).detach().requires_grad_()
    ones = stack.tensor(np.ones((case.batch, 10)))
    upstream = ones.clone()
    upstream[image % case.batch, score] = value

    with using(stack, kernels):
        want, want_bias = torch.autograd.grad(net(images), [images, net.get_parameter("fc3.bias")], ones)
        got, bias = torch.autograd.grad(net(images), [images, net.get_parameter("fc3.bias")], upstream)

    assert_exact(others(got, image), others(want, image), "the gradient by the other images")
    want_bias[score] = value
    assert_exact(bias, want_bias, "fc3.bias.grad")


def numbers(stack: Stack, shape: tuple[int, ...], share: float, seed: int) -> Array:
    """
    Normal numbers, of which about `share` are NaN of either sign, an infinity, a zero or a subnormal, rounded.

    -inf is the most frequent, so that there are pooling windows of nothing else.
    """
    random = np.random.RandomState([seed, 6])
    least = float(torch.finfo(stack.dtype).smallest_normal) * float(torch.finfo(stack.dtype).eps)
    special = random.choice([*SPECIAL, -np.nan, -np.inf, -np.inf, 0.0, -0.0, least, -least], shape)
    drawn = np.where(random.random_sample(shape) < share, special, random.standard_normal(shape))
    return torch.tensor(drawn).to(stack.dtype).double().numpy()


MAPS = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 6, 16, 33]), st.sampled_from([2, 4, 10, 28]), st.sampled_from([2, 6, 28])
)
"""Shapes of feature maps: a channel, the Net's own, and more than a SIMD register holds; the sizes are even."""
SHARES = st.sampled_from([0.0, 0.05, 0.5, 1.0])


@pytest.mark.parametrize("form", ["F.relu", "F.relu in place", "nn.ReLU"])
@given(shape=MAPS, share=SHARES, layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**32 - 1))
def test_relu_propagates_nonfinite_values(
    stack: Stack, form: str, shape: tuple[int, ...], share: float, layout: str, seed: int
) -> None:
    """
    ReLU is max(x, 0) of every number: NaN of NaN, 0 of -inf, inf of inf, and a positive subnormal stays.

    In every layout, with as many channels as SIMD code treats differently. Rejects: `where(x > 0, x, 0)`, which turns
    NaN into 0; `x * (x > 0)`, which turns -inf into NaN; the sign bit, which inf - inf has on x86; flush-to-zero.
    """
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "F.relu": F.relu,
        "F.relu in place": lambda tensor: F.relu(tensor, inplace=True),
        "nn.ReLU": nn.ReLU(),
    }
    values = numbers(stack, shape, share, seed)

    got = forms[form](lay_out(stack.tensor(values), layout))

    assert_exact(got, stack.tensor(np.maximum(values, 0.0)), form)


@pytest.mark.parametrize("form", ["F.max_pool2d", "with indices", "nn.MaxPool2d"])
@given(shape=MAPS, share=SHARES, layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**32 - 1))
def test_max_pooling_propagates_nonfinite_values(
    stack: Stack, form: str, shape: tuple[int, ...], share: float, layout: str, seed: int
) -> None:
    """
    2x2 max-pooling gives each window's largest number; NaN where there is one in it, wherever; -inf where all are.

    In every layout, with as many channels as SIMD code treats differently. Rejects: a maximum that loses NaN depending
    on its place, one that begins at 0 or at the lowest finite number (pytorch/pytorch#109586).
    """
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "F.max_pool2d": lambda maps: F.max_pool2d(maps, 2),
        "with indices": lambda maps: F.max_pool2d(maps, 2, return_indices=True)[0],
        "nn.MaxPool2d": nn.MaxPool2d(2),
    }
    values = numbers(stack, shape, share, seed)
    images, channels, height, width = shape

    got = forms[form](lay_out(stack.tensor(values), layout))

    want = values.reshape(images, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    assert_exact(got, stack.tensor(want), form)


def constant(stack: Stack, case: Case, value: float) -> Tensor:
    """The case's images, all of whose pixels are this number, in its layout."""
    full = stack.tensor(np.full((case.batch, 1, 32, 32), value))
    return full[:1].expand_as(full) if case.layout == "expanded" else lay_out(full, case.layout)


def carrier(stack: Stack, case: Case, exponent: int = 0) -> nn.Module:
    """A network that makes each score a pixel of a constant image times 2**exponent, without any rounding."""
    net = stack.net(case)
    with torch.no_grad():
        net.get_parameter("fc3.weight").mul_(2.0**exponent)
    return net


@pytest.mark.engine
@KERNELS
@given(case=cases(weights=("one-hot",), batches=BATCHES), multiple=st.sampled_from([1, 2, 3, 64]) | st.integers(1, 64))
def test_subnormal_numbers_are_preserved(stack: Stack, kernels: str, case: Case, multiple: int) -> None:
    """
    A pixel of 1 to 64 times the smallest subnormal comes out of weights that are 0 or 1 as the same number.

    Each filter and each unit takes one number as it is; nothing is rounded. Rejects: flush-to-zero, or subnormals
    taken as zero, in any layer.
    """
    info, coarser = torch.finfo(stack.dtype), stack.precision.coarsest / stack.stored.unit
    value = multiple * float(info.smallest_normal) * float(info.eps) * coarser

    with using(stack, kernels):
        logits = carrier(stack, case)(constant(stack, case, value))

    assert_exact(logits, torch.full_like(logits, value), "logits")


def largest_number(stack: Stack) -> float:
    """The largest that is stored, in as many bits as are claimed."""
    _, exponent = math.frexp(min(stack.stored.largest, stack.precision.largest))
    return math.ldexp(1 - stack.precision.coarsest, exponent)


@pytest.mark.engine
@KERNELS
@given(case=cases(weights=("one-hot",), batches=BATCHES), exponent=st.integers(1, 14))
def test_largest_number_is_preserved_and_next_overflows(stack: Stack, kernels: str, case: Case, exponent: int) -> None:
    """
    A score of exactly the largest number is that number; one that is larger by its last bit's worth is inf.

    From weights that are 0 or 1, in the last layer 0 or a power of two, so that nothing is rounded before. Rejects: a
    clamp, saturation, an overflow on the way, as of a Fourier transform or a division by the number of terms.
    """
    largest = largest_number(stack)
    beyond = 2.0 ** (np.frexp(largest)[1] - exponent)  # the next power of two, which is no longer in range

    with using(stack, kernels):
        net = carrier(stack, case, exponent)
        logits = net(constant(stack, case, largest / 2**exponent))
        overflown = net(constant(stack, case, beyond))

    assert_exact(logits, torch.full_like(logits, largest), "logits of the largest number")
    assert_exact(overflown, torch.full_like(overflown, float("inf")), "logits beyond it")


@pytest.mark.engine
@given(case=cases(weights=("one-hot",), batches=(2, 1, 17)), exponent=st.integers(1, 14))
def test_overflowing_loss_is_infinite(stack: Stack, case: Case, exponent: int) -> None:
    """
    The mean squared error is inf, not NaN, where the scores are infinite, or finite with a square that is not.

    Rejects: a loss expanded to x*x - 2xy + y*y, which is inf - inf; a loss that is clamped.
    """
    net, targets = carrier(stack, case, exponent), stack.targets(case)
    largest = largest_number(stack)
    limit = torch.tensor(float("inf"), device=stack.device, dtype=stack.dtype)

    infinite = F.mse_loss(net(constant(stack, case, largest)), targets)
    finite = F.mse_loss(net(constant(stack, case, largest / 2**exponent)), targets)

    assert_exact(infinite, limit, "the loss of infinite scores")
    assert_exact(finite, limit, "the loss of the largest scores")
