"""Laws of mixed-precision training: `torch.autocast` and `torch.amp.GradScaler`."""

from __future__ import annotations

import copy
import io
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
from lenet.oracle import Answer, Loss
from lenet.training import SGD_FORMS
from properties.case import Case
from properties.comparison import assert_exact, assert_gradients, assert_same_bits, assert_within_budget
from properties.laws.networks import BATCH_OF_17, all_gradients, constant_images, expect_error, ordinary_cases
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
from properties.strategies import Vectors, cases, learning_rates, settings, vectors

AUTOCAST_DTYPE = pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
SCALE = 2.0**10


def skip_unless_float32(stack: Stack) -> None:
    """Skip the law in other dtypes, which autocast does not change."""
    if stack.dtype is not torch.float32:
        pytest.skip("autocast casts float32 only")


def under_autocast(
    stack: Stack, case: Case, autocast_dtype: torch.dtype, loss: Loss = oracle.mse
) -> tuple[nn.Module, Tensor, Tensor, Answer]:
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
    exact = oracle.solve(rounded, float64(images.to(autocast_dtype)), float64(targets), precision, case.seed, loss=loss)
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
@given(loss=st.sampled_from(["mse", "cross-entropy"]), case=ordinary_cases())
def test_autocast_computes_the_loss_in_float32(
    stack: Stack, loss: str, autocast_dtype: torch.dtype, case: Case
) -> None:
    """
    In an autocast region `F.mse_loss` and `F.cross_entropy` compute in float32, also from 16-bit logits.

    PyTorch lists both among the operations that autocast to float32: https://docs.pytorch.org/docs/stable/amp.html. The
    loss is within float32's budget of the exact loss of the very logits that it gets, and the gradients are within the
    budget of the network's 16-bit dtype. Rejects: a loss that is computed in 16 bits, or returned in them.
    """
    skip_unless_float32(stack)
    exact_loss = oracle.mse if loss == "mse" else oracle.cross_entropy
    net, images, targets, exact = under_autocast(stack, case, autocast_dtype, exact_loss)

    with torch.autocast(stack.device.type, dtype=autocast_dtype):
        logits = net(images)
        got = F.mse_loss(logits, targets) if loss == "mse" else F.cross_entropy(logits, targets)
    got.backward()

    assert got.dtype == torch.float32, f"the loss is {got.dtype}, expected torch.float32"
    assert_within_budget(got, oracle.loss(float64(logits), float64(targets), stack.precision, exact_loss), "loss")
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
        exact = exact_step(optimizer, plain, [sgd] * len(plain))
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
    exact = exact_step(optimizer, plain, [sgd] * len(plain))
    give_gradients(stack, scaled, vectors, 1)
    scale_gradients(scaled, scaler)
    scaler.step(other)

    assert_stepped(other, scaled, exact)


@given(
    steps=st.lists(st.booleans(), min_size=1, max_size=12),
    interval=st.integers(1, 4),
    new_interval=st.none() | st.integers(1, 4),
    growth=st.sampled_from([2.0, 1.5]),
    backoff=st.sampled_from([0.5, 0.75]),
)
def test_grad_scaler_grows_and_backs_off_as_documented(
    stack: Stack, steps: list[bool], interval: int, new_interval: int | None, growth: float, backoff: float
) -> None:
    """
    A GradScaler's scale grows after `growth_interval` consecutive steps and is reduced after a skipped step.

    By the factors that it is given; float32 holds the products of up to twelve factors 3/2 and 3/4 exactly. A skipped
    step restarts the count. The interval may change between two steps. Rejects: a factor that is not used, a count that
    a skipped step does not reset, a count that has passed an interval that was shortened and never reaches it.
    """
    skip_if_not_unscaled(stack)
    (parameter,) = parameters_of(stack, Vectors())
    optimizer = optim.SGD([parameter], lr=0.0)
    scaler = scaler_of(stack, growth_interval=interval, growth_factor=growth, backoff_factor=backoff)

    scale, consecutive = SCALE, 0
    for step, finite in enumerate(steps):
        if new_interval is not None and step == len(steps) // 2:
            scaler.set_growth_interval(new_interval)
            interval = new_interval
        parameter.grad = torch.full_like(parameter, 1.0 if finite else float("inf"))
        scaler.step(optimizer)
        scaler.update()
        consecutive = consecutive + 1 if finite else 0
        scale = scale if finite else scale * backoff
        if consecutive >= interval:
            scale, consecutive = scale * growth, 0
        assert scaler.get_scale() == scale, f"the scale after step {step + 1} is {scaler.get_scale()}, not {scale}"


def scales_after(scaler: amp.GradScaler, parameter: nn.Parameter, steps: list[bool]) -> list[float]:
    """Return the scale after each of these steps, whose gradient is finite or not."""
    optimizer, scales = optim.SGD([parameter], lr=0.0), []
    for finite in steps:
        parameter.grad = torch.full_like(parameter, 1.0 if finite else float("inf"))
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


STEPS = st.lists(st.booleans(), min_size=1, max_size=6)
"""Steps of a GradScaler, with finite gradients or not."""


@example(before=[False, True], after=[True, False], interval=2, used=False)
@example(before=[False, True], after=[True, False], interval=2, used=True)
@given(before=STEPS, after=STEPS, interval=st.integers(1, 4), used=st.booleans())
def test_loaded_grad_scaler_continues_identically(
    stack: Stack, before: list[bool], after: list[bool], interval: int, used: bool
) -> None:
    """
    A GradScaler that loads another one's saved `state_dict` continues with the same scales.

    The state is the scale, both factors, the interval and the count of consecutive steps. The scaler that loads it has
    the default settings before, and it may have been used. Rejects: a count that starts again, a factor that is not
    loaded, a scale that is loaded only before the first use.
    """
    skip_if_not_unscaled(stack)
    (parameter,) = parameters_of(stack, Vectors())
    scaler = scaler_of(stack, growth_interval=interval, growth_factor=1.5, backoff_factor=0.75)
    other = scaler_of(stack) if used else amp.GradScaler(stack.device.type)
    scales_after(scaler, parameter, before)

    file = io.BytesIO()
    torch.save(scaler.state_dict(), file)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    other.scale(torch.zeros((), device=stack.device))

    assert other.get_scale() == scaler.get_scale(), f"the scale is {other.get_scale()}, not {scaler.get_scale()}"
    continued, expected = scales_after(other, parameter, after), scales_after(scaler, parameter, after)
    assert continued == expected, f"the next scales are {continued}, expected {expected}"


@FORM
@example(overflowing=(True, False), seed=0, lr=0.5, unscale=False)
@example(overflowing=(False, True), seed=0, lr=0.5, unscale=False)
@given(
    overflowing=st.sampled_from([(True, False), (False, True)]),
    seed=st.integers(0, 2**32 - 1),
    lr=learning_rates(),
    unscale=st.booleans(),
)
def test_grad_scaler_skips_each_optimizer_separately(
    stack: Stack, form: str, overflowing: tuple[bool, bool], seed: int, lr: float, unscale: bool
) -> None:
    """
    Of two optimizers, the one whose gradients overflow skips its step, the other one steps, and the scale halves.

    See "Working with Multiple Models, Losses, and Optimizers" in
    https://docs.pytorch.org/docs/stable/notes/amp_examples.html. Rejects: one skipped step that skips all, a scale that
    only the last optimizer's gradients reduce.
    """
    skip_if_not_unscaled(stack)
    scaler, results = scaler_of(stack), []

    for i, overflows in enumerate(overflowing):
        vectors = Vectors((7, 1), seed=seed ^ i)
        parameters = parameters_of(stack, vectors)
        optimizer, before = optimizer_of(parameters, SGD(lr), form), parameters_of(stack, vectors)
        give_gradients(stack, parameters, vectors)
        exact = exact_step(optimizer, parameters, [SGD(lr)] * 2)
        scale_gradients(parameters, scaler)
        if overflows:
            parameters[-1].grad[0] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
        results.append((overflows, optimizer, parameters, before, exact))
    for _, optimizer, *_ in results:
        scaler.step(optimizer)
    scaler.update()

    assert scaler.get_scale() == SCALE / 2, f"the scale is {scaler.get_scale()}, expected {SCALE / 2}"
    for overflows, optimizer, parameters, before, exact in results:
        if not overflows:
            assert_stepped(optimizer, parameters, exact)
            continue
        for got, want in zip(parameters, before, strict=True):
            assert_same_bits(got, want, "parameter of the optimizer whose gradients overflow")


@given(exponent=st.integers(-4, 14), as_tensor=st.booleans(), finite=st.booleans())
def test_grad_scaler_uses_the_scale_that_update_is_given(
    stack: Stack, exponent: int, as_tensor: bool, finite: bool
) -> None:
    """
    `GradScaler.update(new_scale)` sets the scale to a number, or to the present value of a tensor.

    Whether or not the step before was skipped; the next step scales and unscales by it. "If new_scale was a tensor,
    later in-place changes to that tensor will not further affect the scale": https://docs.pytorch.org/docs/stable/amp.html
    Rejects: a factor that is applied to the new scale, a tensor that is kept.
    """
    skip_if_not_unscaled(stack)
    (parameter,), scaler, new_scale = parameters_of(stack, Vectors()), scaler_of(stack), 2.0**exponent
    given = torch.full((), new_scale, device=stack.device)
    optimizer, before = optim.SGD([parameter], lr=1.0), parameter.detach().clone()

    parameter.grad = torch.full_like(parameter, 0.0 if finite else float("inf"))
    scaler.step(optimizer)
    scaler.update(given if as_tensor else new_scale)
    given.zero_()
    scaled = scaler.scale(torch.ones((), device=stack.device))
    parameter.grad = torch.full_like(parameter, new_scale)
    scaler.step(optimizer)

    assert_exact(scaled, torch.full_like(scaled, new_scale), "one, scaled")
    assert_exact(parameter, before - 1, "parameter after a step with the gradient 1")


@given(vectors=vectors(), lr=learning_rates(), max_norm=st.sampled_from([0.5, 4.0]))
def test_clipping_after_unscale_equals_clipping_without_scale(
    stack: Stack, vectors: Vectors, lr: float, max_norm: float
) -> None:
    """
    After `scaler.unscale_(optimizer)`, the gradients and their norm are those without a scale, and are clipped alike.

    Bit for bit, because the scale is a power of two; the step then does not unscale again. As in "Gradient clipping" of
    https://docs.pytorch.org/docs/stable/notes/amp_examples.html. Rejects: an `unscale_` that only `step` carries out,
    gradients that are left out.
    """
    skip_if_not_unscaled(stack)
    plain, scaled = parameters_of(stack, vectors), parameters_of(stack, vectors)
    optimizer, other = optim.SGD(plain, lr=lr), optim.SGD(scaled, lr=lr)
    scaler, max_norm = scaler_of(stack), max_norm * 2.0**vectors.exponent
    give_gradients(stack, plain, vectors)
    give_gradients(stack, scaled, vectors)
    scale_gradients(scaled, scaler)

    scaler.unscale_(other)
    norms = [nn.utils.clip_grad_norm_(parameters, max_norm) for parameters in (plain, scaled)]
    clipped = [parameter.grad.clone() for parameter in scaled]
    optimizer.step()
    scaler.step(other)

    assert_same_bits(norms[1], norms[0], "norm of the unscaled gradients")
    for i, (got, want) in enumerate(zip(scaled, plain, strict=True)):
        assert_same_bits(clipped[i], want.grad, f"clipped gradient {i}")
        assert_same_bits(got, want, f"parameter {i}")


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
