"""Laws of NaN, infinity, overflow and subnormal numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from lenet.oracle import Array
from properties.case import LAYOUTS, Case
from properties.comparison import assert_exact, assert_same_bits
from properties.laws.networks import constant_images, feature_maps_or_skip
from properties.stack import Stack, lay_out
from properties.strategies import cases

KERNELS = pytest.mark.parametrize("kernels", ["default", "no oneDNN", "no oneDNN, no NNPACK", "no cuDNN"])
"""Judges a law with the kernels that PyTorch selects by default, and with those that replace disabled libraries."""

BATCHES_WITH_NNPACK = (2, 17, 1, 3)
"""Batch sizes below and above 16, from which PyTorch uses NNPACK if oneDNN is disabled."""

SPECIAL = (float("nan"), float("inf"), float("-inf"))
POSITIONS = st.sampled_from([0, 31, 1, 3, 4, 5, 27, 28]) | st.integers(0, 31)
"""The row or column of a pixel, mostly near the border, where fewer convolution windows contain it."""


@contextmanager
def using(stack: Stack, kernels: str) -> Iterator[None]:
    """
    Disable the libraries that `kernels` names within the block.

    Skips the law if the device does not use that library, or if an engine selects the kernels.
    """
    if stack.engine and kernels != "default":
        pytest.skip("not applicable: the engine selects the kernels")
    if kernels != "default" and ("cuDNN" in kernels) != (stack.device.type == "cuda"):
        pytest.skip(f"{kernels.split(', ')[0].removeprefix('no ')} is not used on {stack.device.type}")
    onednn, cudnn = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    with torch.backends.nnpack.flags(enabled=False) if "no NNPACK" in kernels else nullcontext():
        torch.backends.mkldnn.enabled = onednn and "no oneDNN" not in kernels
        torch.backends.cudnn.enabled = cudnn and "no cuDNN" not in kernels
        try:
            yield
        finally:
            torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled = onednn, cudnn


def independent_images() -> SearchStrategy[Case]:
    """Cases in which every image has its own memory, so that one can be changed without the others."""

    def without_sharing(case: Case) -> Case:
        return replace(case, layout="contiguous") if case.layout == "expanded" else case

    return cases(weights=("default",), batches=BATCHES_WITH_NNPACK).map(without_sharing)


def with_pixel(stack: Stack, case: Case, image: int, row: int, column: int, value: float) -> Tensor:
    """Return the case's images with one pixel of image `image % batch` set to the value."""
    images = stack.images(case)
    images[image % case.batch, 0, row, column] = value
    return images


def other_rows(tensor: Tensor, image: int) -> Tensor:
    """Return the tensor without row `image % len(tensor)`."""
    others = [i for i in range(len(tensor)) if i != image % len(tensor)]
    return tensor[others]


@pytest.mark.engine
@KERNELS
@example(case=Case(batch=3, layout="channels_last"), image=2, row=31, column=31)  # the last pixel, seldom drawn
@given(case=independent_images(), image=st.integers(0, 16), row=POSITIONS, column=POSITIONS)
def test_nan_pixel_makes_all_logits_of_its_image_nan(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int
) -> None:
    """
    A NaN in any pixel makes all ten logits of its image NaN.

    Every filter has a window that contains the pixel, and NaN times any number is NaN. The law holds for every position
    and every memory layout. Rejects: `nan_to_num`, a ReLU or pooling that drops NaN, a border that no window reads.
    """
    net, images = stack.net(case), with_pixel(stack, case, image, row, column, float("nan"))

    with using(stack, kernels):
        logits = net(images)

    row_of_image = logits[image % case.batch]
    assert_exact(row_of_image, torch.full_like(row_of_image, float("nan")), "the image's logits")


@pytest.mark.engine
@KERNELS
@given(
    case=independent_images(), image=st.integers(0, 16), row=POSITIONS, column=POSITIONS, value=st.sampled_from(SPECIAL)
)
def test_nonfinite_pixel_does_not_affect_other_images(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int, value: float
) -> None:
    """
    A NaN or infinite pixel leaves the logits of all other images bit-identical.

    Rejects: statistics over the batch, a mask that multiplies by zero, reading beyond the end of an image, as oneDNN
    does for bfloat16 matrices whose rows are not a multiple of 32 long (uxlfoundation/oneDNN#5717).
    """
    net = stack.net(case)

    with using(stack, kernels):
        want = net(stack.images(case))
        logits = net(with_pixel(stack, case, image, row, column, value))

    assert_same_bits(other_rows(logits, image), other_rows(want, image), "the other images' logits")


@KERNELS
@given(case=independent_images(), image=st.integers(0, 16), row=POSITIONS, column=POSITIONS)
def test_nan_spreads_exactly_over_its_receptive_field(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int
) -> None:
    """
    A NaN pixel makes exactly those elements of conv1's and conv2's outputs NaN whose receptive field contains it.

    For a pixel at (r, c) these are rows r-4 to r and columns c-4 to c of all conv1 maps, as far as they exist, and
    likewise, through pooling and the next 5x5 windows, of all conv2 maps. The law is skipped for a network that does
    not call conv1 and conv2 once per batch. Rejects: windows that are shifted or flipped, convolution by Fourier
    transform, which spreads NaN over a tile (pytorch/pytorch#157237), a kernel that is padded by a sixth column of
    zeros.
    """
    net, images = stack.net(case), with_pixel(stack, case, image, row, column, float("nan"))

    with using(stack, kernels):
        maps = feature_maps_or_skip(stack, net, images)

    conv1 = [windows_containing(range(i, i + 1), 28) for i in (row, column)]
    pooled = [range(outputs.start // 2, (outputs.stop - 1) // 2 + 1) for outputs in conv1]
    conv2 = [windows_containing(outputs, 10) for outputs in pooled]
    for name, (rows, columns) in {"conv1": conv1, "conv2": conv2}.items():
        field = torch.zeros(maps[name].shape, dtype=torch.bool)
        field[image % case.batch, :, rows.start : rows.stop, columns.start : columns.stop] = True
        assert_exact(maps[name].isnan().cpu(), field, f"the NaN mask of {name}'s output")


def windows_containing(positions: range, count: int) -> range:
    """Return which of `count` windows of width 5 and stride 1 contain at least one of the positions."""
    return range(max(positions.start - 4, 0), min(positions.stop, count))


@pytest.mark.engine
@KERNELS
@given(
    case=independent_images(), image=st.integers(0, 16), row=POSITIONS, column=POSITIONS, value=st.sampled_from(SPECIAL)
)
def test_nonfinite_pixel_does_not_affect_gradients_of_other_images(
    stack: Stack, kernels: str, case: Case, image: int, row: int, column: int, value: float
) -> None:
    """
    A NaN or infinite pixel leaves the gradient with respect to all other images bit-identical.

    Rejects: a gradient that is scaled by its norm over the batch or by the loss, sums that run across images.
    """
    net = stack.net(case)

    with using(stack, kernels):
        want = input_gradient(stack, net, stack.images(case), case)
        got = input_gradient(stack, net, with_pixel(stack, case, image, row, column, value), case)

    assert_same_bits(other_rows(got, image), other_rows(want, image), "the gradient of the other images")


def input_gradient(stack: Stack, net: nn.Module, images: Tensor, case: Case) -> Tensor:
    """Return the gradient of the mean squared error with respect to the images, (N,1,32,32)."""
    images = images.detach().requires_grad_()
    loss = F.mse_loss(net(images), stack.targets(case))
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient


@pytest.mark.engine
@KERNELS
@given(case=independent_images(), image=st.integers(0, 16), logit=st.integers(0, 9), value=st.sampled_from(SPECIAL))
def test_nonfinite_upstream_gradient_does_not_affect_other_images(
    stack: Stack, kernels: str, case: Case, image: int, logit: int, value: float
) -> None:
    """
    A NaN or infinite upstream gradient of one logit leaves the gradients of all other images bit-identical.

    The gradient of that logit's bias, a sum over the batch, becomes the same NaN or infinity; the other nine biases
    have the same gradients. Rejects: a gradient that is clipped or cleaned, sums that run across images or logits.
    """
    net, images = stack.net(case), stack.images(case).detach().requires_grad_()
    ones = stack.tensor(np.ones((case.batch, 10)))
    upstream = ones.clone()
    upstream[image % case.batch, logit] = value

    with using(stack, kernels):
        want, want_bias = torch.autograd.grad(net(images), [images, net.get_parameter("fc3.bias")], ones)
        got, bias = torch.autograd.grad(net(images), [images, net.get_parameter("fc3.bias")], upstream)

    assert_same_bits(other_rows(got, image), other_rows(want, image), "the gradient of the other images")
    want_bias[logit] = value
    assert_exact(bias, want_bias, "fc3.bias.grad")


def special_numbers(stack: Stack, shape: tuple[int, ...], share: float, seed: int) -> Array:
    """
    Return random numbers of this shape, rounded to the stack's dtype, about `share` of which are special.

    The special ones are NaN of either sign, infinities, zeros and subnormals; the others are normally distributed. -inf
    is the most frequent, so that some pooling windows contain nothing else.
    """
    random = np.random.RandomState([seed, 6])
    smallest = float(torch.finfo(stack.dtype).smallest_normal) * float(torch.finfo(stack.dtype).eps)
    special = random.choice([*SPECIAL, -np.nan, -np.inf, -np.inf, 0.0, -0.0, smallest, -smallest], shape)
    drawn = np.where(random.random_sample(shape) < share, special, random.standard_normal(shape))
    return torch.tensor(drawn).to(stack.dtype).double().numpy()


MAP_SHAPES = st.tuples(
    st.integers(1, 3), st.sampled_from([1, 6, 16, 33]), st.sampled_from([2, 4, 10, 28]), st.sampled_from([2, 6, 28])
)
"""Shapes (N,C,H,W) of feature maps: 1 channel, the 6 and 16 of LeNet, or more than a SIMD register; even sizes."""

SPECIAL_SHARES = st.sampled_from([0.0, 0.05, 0.5, 1.0])


@pytest.mark.parametrize("form", ["F.relu", "F.relu in place", "nn.ReLU"])
@given(shape=MAP_SHAPES, share=SPECIAL_SHARES, layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**32 - 1))
def test_relu_is_exact_for_nonfinite_values(
    stack: Stack, form: str, shape: tuple[int, ...], share: float, layout: str, seed: int
) -> None:
    """
    ReLU maps NaN to NaN, -inf to 0, inf to inf, and a positive subnormal number to itself.

    In every memory layout, with numbers of channels that SIMD code treats differently. Rejects: `where(x > 0, x, 0)`,
    which turns NaN into 0; `x * (x > 0)`, which turns -inf into NaN; a test of the sign bit, which the NaN of inf - inf
    has set on x86; flush-to-zero.
    """
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "F.relu": F.relu,
        "F.relu in place": lambda tensor: F.relu(tensor, inplace=True),
        "nn.ReLU": nn.ReLU(),
    }
    values = special_numbers(stack, shape, share, seed)

    got = forms[form](lay_out(stack.tensor(values), layout))

    assert_exact(got, stack.tensor(np.maximum(values, 0.0)), form)


@pytest.mark.parametrize("form", ["F.max_pool2d", "with indices", "nn.MaxPool2d"])
@given(shape=MAP_SHAPES, share=SPECIAL_SHARES, layout=st.sampled_from(LAYOUTS), seed=st.integers(0, 2**32 - 1))
def test_max_pooling_is_exact_for_nonfinite_values(
    stack: Stack, form: str, shape: tuple[int, ...], share: float, layout: str, seed: int
) -> None:
    """
    2x2 max pooling returns the maximum of each window, and NaN if the window contains NaN.

    The maximum of a window of -inf alone is -inf. In every memory layout, with numbers of channels that SIMD code
    treats differently. Rejects: a maximum that drops NaN at some position of the window, a maximum that starts at 0 or
    at the lowest finite number (pytorch/pytorch#109586).
    """
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "F.max_pool2d": lambda maps: F.max_pool2d(maps, 2),
        "with indices": lambda maps: F.max_pool2d(maps, 2, return_indices=True)[0],
        "nn.MaxPool2d": nn.MaxPool2d(2),
    }
    values = special_numbers(stack, shape, share, seed)
    images, channels, height, width = shape

    got = forms[form](lay_out(stack.tensor(values), layout))

    want = values.reshape(images, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    assert_exact(got, stack.tensor(want), form)


def pixel_network(stack: Stack, case: Case, exponent: int = 0) -> nn.Module:
    """Return a network with the case's one-hot weights that maps a constant image to logits pixel * 2**exponent."""
    net = stack.net(case)
    with torch.no_grad():
        net.get_parameter("fc3.weight").mul_(2.0**exponent)
    return net


@pytest.mark.engine
@KERNELS
@given(
    case=cases(weights=("one-hot",), batches=BATCHES_WITH_NNPACK),
    multiple=st.sampled_from([1, 2, 3, 64]) | st.integers(1, 64),
)
def test_subnormal_numbers_are_preserved(stack: Stack, kernels: str, case: Case, multiple: int) -> None:
    """
    A network whose weights are 0 or 1 maps images of a subnormal number to logits of the same number.

    The number is 1 to 64 times the smallest subnormal. Each filter and each unit copies one number, so nothing is
    rounded. Rejects: flush-to-zero and denormals-are-zero in any layer.
    """
    info, coarsening = torch.finfo(stack.dtype), stack.precision.coarsest_unit / stack.stored_precision.unit
    value = multiple * float(info.smallest_normal) * float(info.eps) * coarsening

    with using(stack, kernels):
        logits = pixel_network(stack, case)(constant_images(stack, case, value))

    assert_exact(logits, torch.full_like(logits, value), "logits")


def largest_number(stack: Stack) -> float:
    """Return the largest number within the stored and the claimed range that has as many bits as are claimed."""
    _, exponent = math.frexp(min(stack.stored_precision.largest, stack.precision.largest))
    return math.ldexp(1 - stack.precision.coarsest_unit, exponent)


@pytest.mark.engine
@KERNELS
@given(case=cases(weights=("one-hot",), batches=BATCHES_WITH_NNPACK), exponent=st.integers(1, 14))
def test_largest_number_is_preserved_and_next_overflows(stack: Stack, kernels: str, case: Case, exponent: int) -> None:
    """
    A logit of the largest finite number is exact, and a logit of the smallest power of two above it is inf.

    The weights are 0 or 1, and in the last layer 0 or a power of two, so nothing is rounded before. Rejects: clamping,
    saturation, an intermediate overflow, as in a Fourier transform or before a division by the number of terms.
    """
    largest = largest_number(stack)
    beyond = 2.0 ** (np.frexp(largest)[1] - exponent)  # times 2**exponent: the next power of two, which is out of range

    with using(stack, kernels):
        net = pixel_network(stack, case, exponent)
        logits = net(constant_images(stack, case, largest / 2**exponent))
        overflowed = net(constant_images(stack, case, beyond))

    assert_exact(logits, torch.full_like(logits, largest), "logits of the largest number")
    assert_exact(overflowed, torch.full_like(overflowed, float("inf")), "logits beyond the largest number")


@pytest.mark.engine
@given(case=cases(weights=("one-hot",), batches=(2, 1, 17)), exponent=st.integers(1, 14))
def test_overflowing_loss_is_infinite(stack: Stack, case: Case, exponent: int) -> None:
    """
    The mean squared error is inf if the logits are infinite or their squares overflow.

    Rejects: a loss that is expanded to x*x - 2xy + y*y, which is inf - inf = NaN; a loss that is clamped.
    """
    net, targets = pixel_network(stack, case, exponent), stack.targets(case)
    largest = largest_number(stack)
    limit = torch.tensor(float("inf"), device=stack.device, dtype=stack.dtype)

    infinite = F.mse_loss(net(constant_images(stack, case, largest)), targets)
    finite = F.mse_loss(net(constant_images(stack, case, largest / 2**exponent)), targets)

    assert_exact(infinite, limit, "the loss of infinite logits")
    assert_exact(finite, limit, "the loss of finite logits")
