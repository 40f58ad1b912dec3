"""Laws of mixed-precision training: `torch.autocast` and `torch.amp.GradScaler`."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, amp, nn, optim

from lenet import oracle
from lenet.engines.eager import deterministic_algorithms
from lenet.exact_sgd import SGD
from lenet.oracle import Answer
from lenet.training import SGD_FORMS
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients, assert_same_bits, assert_within_budget
from properties.laws.networks import BATCH_OF_17, all_gradients, constant_images, expect_error
from properties.laws.optimizers import (
    FORM,
    assert_stepped,
    copy_state,
    exact_step,
    give_gradients,
    optimizer_of,
    parameters_of,
)
from properties.stack import Stack, dtype_name, float64, precision_of
from properties.strategies import Vectors, cases, settings, vectors

AUTOCAST_DTYPE = pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
SCALE = 2.0**10


def skip_unless_float32(stack: Stack) -> None:
    """Skip the law in other dtypes, which autocast does not change."""
    if stack.dtype is not torch.float32:
        pytest.skip("autocast casts float32 only")


def under_autocast(stack: Stack, case: Case, autocast_dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, Answer]:
    """
    Return a network, images and targets in float32, and the oracle's answer for autocast to a 16-bit dtype.

    The oracle computes on parameters and images that are rounded to `autocast_dtype`, with the budget of its precision.
    """
    precision = precision_of(autocast_dtype)
    parameters = {name: stack.tensor(value) for name, value in case.parameters(precision).items()}
    images, targets = stack.tensor(case.pixels(precision)), stack.targets(case)
    net = stack.net(case)
    net.load_state_dict(parameters)
    rounded = {name: float64(value.to(autocast_dtype)) for name, value in parameters.items()}
    exact = oracle.solve(rounded, float64(images.to(autocast_dtype)), float64(targets), precision, seed=case.seed)
    return net, images, targets, exact


@AUTOCAST_DTYPE
@example(case=Case())
@example(case=BATCH_OF_17)
@example(case=Case(weights="integers", images="huge", batch=2, seed=161137))  # partial sums overflow in float16
@given(case=cases(batches=(1, 2, 3, 0)))
def test_autocast_meets_its_claimed_precision(stack: Stack, autocast_dtype: torch.dtype, case: Case) -> None:
    """
    Under autocast to a 16-bit dtype, logits and gradients are within the budget of that dtype.

    Parameters and gradients are float32. The logits have the 16-bit dtype if the network calls its submodule fc3; a
    network that computes them in another way may keep them wider. Rejects: sums in 16 bits, operands that are rounded
    to fewer bits than claimed, a gradient that stays in 16 bits.
    """
    skip_unless_float32(stack)
    net, images, targets, exact = under_autocast(stack, case, autocast_dtype)
    fc3_calls: list[Any] = []
    net.get_submodule("fc3").register_forward_hook(lambda *call: fc3_calls.append(call))

    with torch.autocast(stack.device.type, dtype=autocast_dtype):
        logits = net(images)
        loss = F.mse_loss(logits.float(), targets)
    loss.backward()

    assert logits.dtype == autocast_dtype or not fc3_calls, f"the logits are {logits.dtype}"
    wrong = {name: gradient.dtype for name, gradient in all_gradients(net).items() if gradient.dtype != torch.float32}
    assert not wrong, f"the gradients' dtypes are {wrong}, expected torch.float32"
    assert_within_budget(logits, exact.logits, "logits")
    assert_gradients(net, exact.gradients)


@AUTOCAST_DTYPE
@given(
    case=cases(weights=("one-hot",), batches=(1, 2)),
    place=st.sampled_from(["images", "conv1", "conv2", "fc1", "fc2", "fc3"]),
    fraction=st.floats(0, 1, exclude_max=True),
)
def test_autocast_preserves_representable_values(
    stack: Stack, autocast_dtype: torch.dtype, case: Case, place: str, fraction: float
) -> None:
    """
    Under autocast, a pixel or weight that the 16-bit dtype represents exactly is not rounded.

    The value is in the images or in the weights of one layer, and all other numbers are 0 or 1, so the logits equal the
    value. Rejects: operands or results that are rounded to fewer bits, such as float16 that is converted via bfloat16.
    """
    skip_unless_float32(stack)
    value = float(torch.tensor(1 + fraction).to(autocast_dtype))
    net, images = stack.net(case), constant_images(stack, case, value if place == "images" else 1.0)
    if place != "images":
        with torch.no_grad():
            net.get_parameter(f"{place}.weight").mul_(value)

    with torch.autocast(stack.device.type, dtype=autocast_dtype):
        logits = net(images)

    assert_exact(logits, torch.full_like(logits, value), "logits")


@AUTOCAST_DTYPE
@given(case=cases(batches=(1, 2)))
def test_autocast_ends_with_its_region(stack: Stack, autocast_dtype: torch.dtype, case: Case) -> None:
    """
    After an autocast region, and in a disabled region within it, the network computes as without autocast.

    The logits are bit-identical, and after the disabled region the enclosing one is in effect again. Rejects:
    parameters that are cast in place, casts that are cached beyond the region, an inner region whose end also ends the
    outer one.
    """
    skip_unless_float32(stack)
    net, images = stack.net(case), stack.images(case)
    plain = net(images)

    with torch.autocast(stack.device.type, dtype=autocast_dtype):
        outer = net(images)
        with torch.autocast(stack.device.type, enabled=False):
            disabled = net(images)
        resumed = net(images)
    after = net(images)

    assert_same_bits(disabled, plain, "logits in the disabled region")
    assert_same_bits(resumed, outer, "logits in the outer region after the disabled one")
    assert_same_bits(after, plain, "logits after the region")


@given(case=cases(batches=(1, 2)), outer_bfloat16=st.booleans())
def test_nested_autocast_regions_are_independent(stack: Stack, case: Case, outer_bfloat16: bool) -> None:
    """
    An autocast region within a region of another 16-bit dtype gives the same bits as on its own.

    Rejects: a cast to the outer region's dtype that is reused in the inner region.
    """
    skip_unless_float32(stack)
    net, images = stack.net(case), stack.images(case)
    outer, inner = (torch.bfloat16, torch.float16) if outer_bfloat16 else (torch.float16, torch.bfloat16)
    with torch.autocast(stack.device.type, dtype=inner):
        alone = net(images)

    with torch.autocast(stack.device.type, dtype=outer):
        net(images)
        with torch.autocast(stack.device.type, dtype=inner):
            nested = net(images)

    assert_same_bits(nested, alone, "logits in the inner region")


def scaler_of(stack: Stack, **options: float) -> amp.GradScaler:
    """Return a GradScaler with the initial scale SCALE that is ready to step."""
    scaler = amp.GradScaler(stack.device.type, init_scale=SCALE, **options)
    scaler.scale(torch.zeros((), device=stack.device))
    return scaler


def skip_if_not_unscaled(stack: Stack) -> None:
    """Skip the law where a GradScaler rejects the gradients: float16, and on CUDA bfloat16 (pytorch/pytorch#127176)."""
    if stack.dtype is torch.float16:
        pytest.skip("a GradScaler does not unscale float16 gradients")
    (parameter,) = parameters_of(stack, Vectors())
    parameter.grad = torch.ones_like(parameter)
    try:
        scaler_of(stack).unscale_(optim.SGD([parameter], lr=0.1))
    except NotImplementedError:
        pytest.skip(f"a GradScaler does not unscale {dtype_name(stack.dtype)} gradients on {stack.device.type}")


def scale_gradients(parameters: list[nn.Parameter], scaler: amp.GradScaler) -> None:
    """Multiply the gradients by the scale, as if the loss had been scaled before backward."""
    for parameter in parameters:
        parameter.grad.mul_(scaler.get_scale())


@FORM
@given(vectors=vectors(), sgd=settings(), unscale=st.booleans())
def test_grad_scaler_step_equals_unscaled_step(
    stack: Stack, form: str, vectors: Vectors, sgd: SGD, unscale: bool
) -> None:
    """
    `GradScaler.step` with scaled gradients equals `optimizer.step` with unscaled gradients, within its roundings.

    The scale is a power of two, so that scaling rounds nothing, and `unscale_` is called before the step or not.
    Rejects: gradients that are unscaled twice or not at all, a weight decay that is scaled.
    """
    skip_if_not_unscaled(stack)
    plain, scaled = parameters_of(stack, vectors), parameters_of(stack, vectors)
    optimizer, other = optimizer_of(plain, sgd, form), optimizer_of(scaled, sgd, form)
    scaler = scaler_of(stack)

    for step in range(2):
        give_gradients(stack, plain, vectors, step)
        exact = exact_step(stack, optimizer, plain, [sgd] * len(plain))
        optimizer.step()
        give_gradients(stack, scaled, vectors, step)
        scale_gradients(scaled, scaler)
        if unscale:
            scaler.unscale_(other)
        scaler.step(other)
        scaler.update()
        assert_stepped(optimizer, plain, exact)
        assert_stepped(other, scaled, exact)
        copy_state(optimizer, plain, other, scaled)

    assert scaler.get_scale() == SCALE, f"the scale is {scaler.get_scale()} after finite gradients, expected {SCALE}"


@FORM
@given(
    vectors=vectors(),
    sgd=settings(),
    position=st.integers(0, 2**16),
    nonfinite=st.sampled_from([float("inf"), float("-inf"), float("nan")]),
)
def test_grad_scaler_skips_step_with_nonfinite_gradients(
    stack: Stack, form: str, vectors: Vectors, sgd: SGD, position: int, nonfinite: float
) -> None:
    """
    `GradScaler.step` changes no parameter if any gradient is infinite or NaN, and halves the scale.

    The following step is then the optimizer's first: the skipped step leaves no state, not even a buffer in
    uninitialized memory, which PyTorch fills with NaN here. Rejects: a gradient that is not checked, a state that a
    skipped step creates.
    """
    skip_if_not_unscaled(stack)
    plain, scaled = parameters_of(stack, vectors), parameters_of(stack, vectors)
    optimizer, other = optimizer_of(plain, sgd, form), optimizer_of(scaled, sgd, form)
    scaler = scaler_of(stack)
    give_gradients(stack, scaled, vectors, 0)
    gradient = scaled[position % len(scaled)].grad
    gradient[position % len(gradient)] = nonfinite

    with deterministic_algorithms(True, warn_only=True):
        scaler.step(other)
        scaler.update()
    assert scaler.get_scale() == SCALE / 2, f"the scale after the skipped step is {scaler.get_scale()}"
    for i, (got, want) in enumerate(zip(scaled, plain, strict=True)):
        assert_same_bits(got, want, f"parameter {i} after the skipped step")

    give_gradients(stack, plain, vectors, 1)
    exact = exact_step(stack, optimizer, plain, [sgd] * len(plain))
    give_gradients(stack, scaled, vectors, 1)
    scale_gradients(scaled, scaler)
    scaler.step(other)

    assert_stepped(other, scaled, exact)


@given(
    steps=st.lists(st.booleans(), min_size=1, max_size=12),
    interval=st.integers(1, 4),
    new_interval=st.none() | st.integers(1, 4),
)
def test_grad_scaler_grows_and_backs_off_as_documented(
    stack: Stack, steps: list[bool], interval: int, new_interval: int | None
) -> None:
    """
    A GradScaler's scale doubles after `growth_interval` consecutive steps and halves after a skipped step.

    A skipped step restarts the count. The interval may change between two steps. Rejects: a count that a skipped step
    does not reset, a count that has passed an interval that was shortened and never reaches it.
    """
    skip_if_not_unscaled(stack)
    (parameter,) = parameters_of(stack, Vectors())
    optimizer = optim.SGD([parameter], lr=0.0)
    scaler = scaler_of(stack, growth_interval=interval)

    scale, consecutive = SCALE, 0
    for step, finite in enumerate(steps):
        if new_interval is not None and step == len(steps) // 2:
            scaler.set_growth_interval(new_interval)
            interval = new_interval
        parameter.grad = torch.full_like(parameter, 1.0 if finite else float("inf"))
        scaler.step(optimizer)
        scaler.update()
        consecutive = consecutive + 1 if finite else 0
        scale = scale if finite else scale / 2
        if consecutive >= interval:
            scale, consecutive = scale * 2, 0
        assert scaler.get_scale() == scale, f"the scale after step {step + 1} is {scaler.get_scale()}, not {scale}"


def unscale_twice(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """Unscale twice; the second call would divide the gradients by the scale again."""
    scaler.unscale_(optimizer)
    scaler.unscale_(optimizer)


def step_twice(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """Step twice without `scaler.update()`, which must adjust the scale between two steps."""
    scaler.step(optimizer)
    scaler.step(optimizer)


def unscale_after_step(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """Unscale after the step, which has already unscaled the gradients."""
    scaler.step(optimizer)
    scaler.unscale_(optimizer)


def closure_by_position(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """Step with a closure, whose new gradients would not be unscaled."""
    scaler.step(optimizer, lambda: 0.0)


def closure_by_name(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """Step with a closure that is passed as a keyword argument."""
    scaler.step(optimizer, closure=lambda: 0.0)


MISUSES = {
    "unscale twice": unscale_twice,
    "step twice": step_twice,
    "unscale after step": unscale_after_step,
    "closure by position": closure_by_position,
    "closure by name": closure_by_name,
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_grad_scaler_rejects_calls_out_of_order(stack: Stack, misuse: str) -> None:
    """
    A GradScaler raises RuntimeError if it unscales or steps twice, unscales after a step, or gets a closure.

    These are documented errors. Rejects: gradients that are divided by the scale twice or not at all.
    """
    skip_if_not_unscaled(stack)
    (parameter,) = parameters_of(stack, Vectors())
    parameter.grad = torch.ones_like(parameter)

    with expect_error(RuntimeError, "", f"a GradScaler's {misuse}"):
        MISUSES[misuse](scaler_of(stack), optim.SGD([parameter], lr=0.1))


@pytest.mark.parametrize("form", ["for-loop", "foreach"])
def test_grad_scaler_rejects_float16_gradients(stack: Stack, form: str) -> None:
    """
    `GradScaler.step` raises ValueError for float16 gradients, which could underflow when they are unscaled.

    The fused implementation is exempt because it unscales within its step. Rejects: a scaler that silently loses
    gradients.
    """
    (parameter,) = parameters_of(stack, Vectors())
    parameter.data = parameter.data.half()
    parameter.grad = torch.ones_like(parameter)
    optimizer = optim.SGD([parameter], lr=0.1, **SGD_FORMS[form])

    with expect_error(ValueError, "FP16", "a step with float16 gradients"):
        scaler_of(stack).step(optimizer)


@given(case=cases(weights=("default", "sparse"), images=("digits", "normal"), batches=(2, 3)), sgd=settings())
def test_scaled_micro_batches_step_like_unscaled_ones(stack: Stack, case: Case, sgd: SGD) -> None:
    """
    Accumulated gradients of scaled micro-batch losses give the same step as those of unscaled losses.

    Each micro-batch loss is weighted by its share of the batch. Gradients and parameters are bit-identical, because the
    scale is a power of two. Rejects: unscaling between micro-batches, weights that are lost by the scaling.
    """
    skip_if_not_unscaled(stack)
    net = stack.net(case)
    net_copy = copy.deepcopy(net)
    scaler, optimizer = scaler_of(stack), optim.SGD(net_copy.parameters(), **asdict(sgd))

    for images, targets in zip(stack.images(case).split(1), stack.targets(case).split(1), strict=True):
        (F.mse_loss(net(images), targets) / case.batch).backward()
        scaler.scale(F.mse_loss(net_copy(images), targets) / case.batch).backward()
    scaler.unscale_(optimizer)

    unscaled = all_gradients(net)
    for name, gradient in all_gradients(net_copy).items():
        assert_same_bits(gradient, unscaled[name], f"{name}.grad")
    optim.SGD(net.parameters(), **asdict(sgd)).step()
    scaler.step(optimizer)
    for name, parameter in net_copy.named_parameters():
        assert_same_bits(parameter, net.get_parameter(name), name)
