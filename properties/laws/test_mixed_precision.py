"""Laws of training in 16 bits: autocast at the precision that it claims, and the GradScaler's steps."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, amp, nn, optim

from lenet import oracle
from lenet.engines.eager import deterministic
from lenet.oracle import Answer
from lenet.training import SGD_FORMS
from lenet.update import SGD
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients, assert_within_budget
from properties.laws.test_nonfinite import constant
from properties.laws.test_optimizer import buffer_of, give_gradients, optimizer_of, parameters_of
from properties.stack import Stack, float64, gradients, precision_of
from properties.strategies import Vectors, cases, settings, vectors

FORM = pytest.mark.parametrize("form", SGD_FORMS)
LOWER = pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
SCALE = 2.0**10


def needs_float32(stack: Stack) -> None:
    """Skip what autocast does not touch."""
    if stack.dtype is not torch.float32:
        pytest.skip("autocast lowers float32 alone")


def lowered(stack: Stack, case: Case, lower: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, Answer]:
    """The net, images and targets in float32, and the oracle's answer to them with the operands rounded to `lower`."""
    precision = precision_of(lower)
    parameters = {name: stack.tensor(value) for name, value in case.parameters(precision).items()}
    images, targets = stack.tensor(case.pixels(precision)), stack.targets(case)
    net = stack.net(case)
    net.load_state_dict(parameters)
    rounded = {name: float64(value.to(lower)) for name, value in parameters.items()}
    exact = oracle.solve(rounded, float64(images.to(lower)), float64(targets), precision, seed=case.seed)
    return net, images, targets, exact


@LOWER
@given(case=cases(batches=(1, 2, 3, 0)))
def test_autocast_meets_its_claimed_precision(stack: Stack, lower: torch.dtype, case: Case) -> None:
    """
    Under autocast to a 16-bit dtype the logits, and the gradients of parameters kept in float32, lie within its budget.

    Parameters and gradients stay in float32. The logits are in that dtype where the network calls its submodule fc3;
    computed in another way they may be wider. Rejects: sums in 16 bits, operands rounded further than claimed, a
    gradient that is lowered for good.
    """
    needs_float32(stack)
    net, images, targets, exact = lowered(stack, case, lower)
    by_fc3: list[Any] = []
    net.get_submodule("fc3").register_forward_hook(lambda *called: by_fc3.append(called))

    with torch.autocast(stack.device.type, dtype=lower):
        logits = net(images)
        loss = F.mse_loss(logits.float(), targets)
    loss.backward()

    assert logits.dtype == lower or not by_fc3
    assert {parameter.grad.dtype for parameter in net.parameters()} == {torch.float32}
    assert_within_budget(logits, exact.logits, "logits")
    assert_gradients(net, exact.gradients)


@LOWER
@given(
    case=cases(weights=("one-hot",), batches=(1, 2)),
    place=st.sampled_from(["images", "conv1", "conv2", "fc1", "fc2", "fc3"]),
    fraction=st.floats(0, 1, exclude_max=True),
)
def test_autocast_preserves_representable_values(
    stack: Stack, lower: torch.dtype, case: Case, place: str, fraction: float
) -> None:
    """
    Under autocast a number that the 16-bit dtype holds, in the images or in a layer's weights, comes out as it is.

    All else is 0 or 1, so that nothing is rounded. Rejects: operands or results that are rounded to fewer bits, as
    float16 by way of bfloat16.
    """
    needs_float32(stack)
    value = float(torch.tensor(1 + fraction).to(lower))
    net, images = stack.net(case), constant(stack, case, value if place == "images" else 1.0)
    if place != "images":
        with torch.no_grad():
            net.get_parameter(f"{place}.weight").mul_(value)

    with torch.autocast(stack.device.type, dtype=lower):
        logits = net(images)

    assert_exact(logits, torch.full_like(logits, value), "logits")


@LOWER
@given(case=cases(batches=(1, 2)))
def test_autocast_ends_with_its_region(stack: Stack, lower: torch.dtype, case: Case) -> None:
    """
    After an autocast region, and in one that is disabled within it, the network computes in its own dtype again.

    Bit for bit as if there had been none; and when the disabled one has ended, the one around it goes on. Rejects:
    parameters lowered in place, casts kept beyond the region, the end of one region that is the end of all.
    """
    needs_float32(stack)
    net, images = stack.net(case), stack.images(case)
    plain = net(images)

    with torch.autocast(stack.device.type, dtype=lower):
        around = net(images)
        with torch.autocast(stack.device.type, enabled=False):
            inside = net(images)
        again = net(images)
    after = net(images)

    assert_exact(inside, plain, "logits in a disabled region")
    assert_exact(again, around, "logits after a disabled region, in the one around it")
    assert_exact(after, plain, "logits after the region")


@given(case=cases(batches=(1, 2)), outer=st.booleans())
def test_nested_autocast_regions_are_independent(stack: Stack, case: Case, outer: bool) -> None:
    """
    A region of another 16-bit dtype within a region gives bit for bit what it gives alone.

    Rejects: a cast of the outer region's that is used in the inner one.
    """
    needs_float32(stack)
    net, images = stack.net(case), stack.images(case)
    dtypes = (torch.bfloat16, torch.float16) if outer else (torch.float16, torch.bfloat16)
    with torch.autocast(stack.device.type, dtype=dtypes[1]):
        alone = net(images)

    with torch.autocast(stack.device.type, dtype=dtypes[0]):
        net(images)
        with torch.autocast(stack.device.type, dtype=dtypes[1]):
            within = net(images)

    assert_exact(within, alone, "logits")


def scaler_of(stack: Stack, **options: float) -> amp.GradScaler:
    """A GradScaler of scale SCALE, ready to step."""
    scaler = amp.GradScaler(stack.device.type, init_scale=SCALE, **options)
    scaler.scale(torch.zeros((), device=stack.device))
    return scaler


def refuses_float16(stack: Stack) -> None:
    """Skip where PyTorch has gradients unscaled in float32 alone."""
    if stack.dtype is torch.float16:
        pytest.skip("a GradScaler unscales no float16 gradients, as it says itself")


def scale_gradients(parameters: list[nn.Parameter], scaler: amp.GradScaler) -> None:
    """What backward of a scaled loss would have left."""
    for parameter in parameters:
        parameter.grad.mul_(scaler.get_scale())


@FORM
@given(drawn=vectors(), chosen=settings(), unscale=st.booleans())
def test_grad_scaler_step_equals_unscaled_step(
    stack: Stack, form: str, drawn: Vectors, chosen: SGD, unscale: bool
) -> None:
    """
    `scaler.step` on gradients of a scaled loss updates as `optimizer.step` on those of the loss itself, bit for bit.

    Whether `unscale_` was called before or not; the scale is a power of two. Rejects: gradients unscaled twice or not
    at all, a decay that is scaled too.
    """
    refuses_float16(stack)
    plain, scaled = parameters_of(stack, drawn), parameters_of(stack, drawn)
    optimizer, other = optimizer_of(plain, chosen, form), optimizer_of(scaled, chosen, form)
    scaler = scaler_of(stack)

    for step in range(2):
        give_gradients(stack, plain, drawn, step)
        optimizer.step()
        give_gradients(stack, scaled, drawn, step)
        scale_gradients(scaled, scaler)
        if unscale:
            scaler.unscale_(other)
        scaler.step(other)
        scaler.update()

    assert scaler.get_scale() == SCALE
    for i, (got, want) in enumerate(zip(scaled, plain, strict=True)):
        assert_exact(got, want, f"parameter {i}")


@FORM
@given(
    drawn=vectors(),
    chosen=settings(),
    which=st.integers(0, 2**16),
    spoilt=st.sampled_from([float("inf"), float("-inf"), float("nan")]),
)
def test_grad_scaler_skips_step_with_nonfinite_gradients(
    stack: Stack, form: str, drawn: Vectors, chosen: SGD, which: int, spoilt: float
) -> None:
    """
    Where any gradient is infinite or NaN, a scaler's step changes no parameter, and the scale is halved.

    The step after it is then a first step: nothing is left of the skipped one, not even in memory that PyTorch fills
    with NaN. Rejects: a gradient that is not looked at, a state that a skipped step begins.
    """
    refuses_float16(stack)
    plain, scaled = parameters_of(stack, drawn), parameters_of(stack, drawn)
    optimizer, other = optimizer_of(plain, chosen, form), optimizer_of(scaled, chosen, form)
    scaler = scaler_of(stack)
    give_gradients(stack, scaled, drawn, 0)
    of_one = scaled[which % len(scaled)].grad
    of_one[which % len(of_one)] = spoilt

    with deterministic(True, warn_only=True):
        scaler.step(other)
        scaler.update()
    assert scaler.get_scale() == SCALE / 2
    for i, (got, want) in enumerate(zip(scaled, plain, strict=True)):
        assert_exact(got, want, f"parameter {i} after a skipped step")

    give_gradients(stack, plain, drawn, 1)
    optimizer.step()
    give_gradients(stack, scaled, drawn, 1)
    scale_gradients(scaled, scaler)
    scaler.step(other)

    for i, (got, want) in enumerate(zip(scaled, plain, strict=True)):
        assert_exact(got, want, f"parameter {i} after the step that followed")
        if chosen.momentum:
            assert_exact(buffer_of(other, got), buffer_of(optimizer, want), f"its momentum buffer {i}")


@given(
    steps=st.lists(st.booleans(), min_size=1, max_size=12),
    interval=st.integers(1, 4),
    changed=st.none() | st.integers(1, 4),
)
def test_grad_scaler_grows_and_backs_off_as_documented(
    stack: Stack, steps: list[bool], interval: int, changed: int | None
) -> None:
    """
    The scale doubles after `growth_interval` steps in a row that were taken, and halves after each that was skipped.

    Also when the interval is changed on the way. Rejects: a count that a skipped step leaves as it was, or one that
    runs past an interval that was made shorter.
    """
    refuses_float16(stack)
    (parameter,) = parameters_of(stack, Vectors())
    optimizer = optim.SGD([parameter], lr=0.0)
    scaler = scaler_of(stack, growth_interval=interval)

    scale, taken = SCALE, 0
    for step, finite in enumerate(steps):
        if changed is not None and step == len(steps) // 2:
            scaler.set_growth_interval(changed)
            interval = changed
        parameter.grad = torch.full_like(parameter, 1.0 if finite else float("inf"))
        scaler.step(optimizer)
        scaler.update()
        taken = taken + 1 if finite else 0
        scale = scale if finite else scale / 2
        if taken >= interval:
            scale, taken = scale * 2, 0
        assert scaler.get_scale() == scale, f"after step {step + 1}"


def unscale_twice(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """The second call would divide once more."""
    scaler.unscale_(optimizer)
    scaler.unscale_(optimizer)


def step_twice(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """The scale may have to change between two steps."""
    scaler.step(optimizer)
    scaler.step(optimizer)


def unscale_after_step(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """The step has unscaled already."""
    scaler.step(optimizer)
    scaler.unscale_(optimizer)


def closure_by_position(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """The closure's new gradients would not be unscaled."""
    scaler.step(optimizer, lambda: 0.0)


def closure_by_name(scaler: amp.GradScaler, optimizer: optim.SGD) -> None:
    """The same, said otherwise."""
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
    Unscaling or stepping twice, unscaling after the step, and a closure raise RuntimeError, as documented.

    Rejects: gradients divided by the scale twice, or not at all.
    """
    refuses_float16(stack)
    (parameter,) = parameters_of(stack, Vectors())
    parameter.grad = torch.ones_like(parameter)

    with pytest.raises(RuntimeError):
        MISUSES[misuse](scaler_of(stack), optim.SGD([parameter], lr=0.1))


@pytest.mark.parametrize("form", ["for-loop", "foreach"])
def test_grad_scaler_rejects_float16_gradients(stack: Stack, form: str) -> None:
    """
    Gradients in float16 raise ValueError: unscaled in float16 they would lose what the scale has saved.

    The fused form unscales within its step and may take them. Rejects: a scaler that loses them silently.
    """
    (parameter,) = parameters_of(stack, Vectors())
    parameter.data = parameter.data.half()
    parameter.grad = torch.ones_like(parameter)
    optimizer = optim.SGD([parameter], lr=0.1, **SGD_FORMS[form])

    with pytest.raises(ValueError, match="FP16"):
        scaler_of(stack).step(optimizer)


@given(case=cases(weights=("default", "sparse"), images=("digits", "normal"), batches=(2, 3)), chosen=settings())
def test_scaled_micro_batches_step_like_unscaled_ones(stack: Stack, case: Case, chosen: SGD) -> None:
    """
    Gradients of scaled losses accumulated over micro-batches, each weighted by its share, step as without a scale.

    Bit for bit, the scale being a power of two. Rejects: unscaling between micro-batches, shares that are scaled away.
    """
    refuses_float16(stack)
    net = stack.net(case)
    twin = copy.deepcopy(net)
    scaler, optimizer = scaler_of(stack), optim.SGD(twin.parameters(), **asdict(chosen))

    for images, targets in zip(stack.images(case).split(1), stack.targets(case).split(1), strict=True):
        (F.mse_loss(net(images), targets) / case.batch).backward()
        scaler.scale(F.mse_loss(twin(images), targets) / case.batch).backward()
    scaler.unscale_(optimizer)

    for name, gradient in gradients(twin).items():
        assert_exact(gradient, net.get_parameter(name).grad, f"{name}.grad")
    optim.SGD(net.parameters(), **asdict(chosen)).step()
    scaler.step(optimizer)
    for name, parameter in twin.named_parameters():
        assert_exact(parameter, net.get_parameter(name), name)
