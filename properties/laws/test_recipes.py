"""Laws of what training recipes add to an optimizer: learning-rate schedules, gradient clipping, averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from lenet.exact_sgd import ExactWithBound
from lenet.oracle import PRECISIONS, Array
from properties.case import Case
from properties.comparison import assert_exact, assert_rounded, assert_same_bits
from properties.laws.networks import expect_error
from properties.laws.optimizers import parameters_of, saved_and_loaded, with_roundings
from properties.stack import Stack, float64
from properties.strategies import Vectors, cases, learning_rates, short_vectors

FLOAT64 = PRECISIONS["float64"]
"""The precision of learning rates: Python's numbers, and tensors that the laws make."""

LAST_STEP = 12
"""Steps of a schedule that are judged."""

# Learning-rate schedules.

Rates = tuple[float, float]


def rates() -> st.SearchStrategy[Rates]:
    """Draw the learning rates of two parameter groups."""
    return st.tuples(learning_rates(), learning_rates())


def skip_unless_float32(stack: Stack) -> None:
    """Skip the law in other dtypes than float32: learning rates are numbers or float64 tensors."""
    if stack.dtype is not torch.float32:
        pytest.skip("learning rates do not depend on the dtype of the parameters; float32 is judged")


def two_groups(stack: Stack, lrs: Rates, as_tensors: bool = False) -> optim.SGD:
    """Return an optimizer of two groups with these learning rates, which are numbers or float64 tensors."""
    parameters = parameters_of(stack, Vectors(sizes=(1, 1)))
    groups = [
        {"params": [parameter], "lr": torch.tensor(lr, dtype=torch.float64) if as_tensors else lr}
        for parameter, lr in zip(parameters, lrs, strict=True)
    ]
    return optim.SGD(groups, momentum=0.9)


def rates_of(optimizer: optim.SGD) -> list[float]:
    """Return the learning rates of the groups."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def follow(optimizer: optim.SGD, scheduler: Any, steps: int) -> Tensor:
    """Return the learning rates now and after each step of the optimizer and the scheduler: (steps + 1, groups)."""
    followed = [rates_of(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        followed.append(rates_of(optimizer))
        last = [float(lr) for lr in scheduler.get_last_lr()]
        assert last == followed[-1], f"get_last_lr() is {last}, but the groups have {followed[-1]}"
    return torch.tensor(followed, dtype=torch.float64)


@given(
    lrs=rates(),
    as_tensors=st.booleans(),
    step_size=st.integers(1, 5),
    gamma=st.sampled_from([0.1, 0.5]) | st.floats(0.1, 0.9),
)
def test_step_lr_follows_its_formula(stack: Stack, lrs: Rates, as_tensors: bool, step_size: int, gamma: float) -> None:
    """
    After t steps of `StepLR`, each group's learning rate is its initial one times `gamma ** (t // step_size)`.

    Up to the rounding of each product. Rejects: a decay one step early or late, the rate of one group used for all, a
    tensor that is multiplied twice.
    """
    skip_unless_float32(stack)
    optimizer = two_groups(stack, lrs, as_tensors)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size, gamma)

    followed = follow(optimizer, scheduler, LAST_STEP)

    decays = np.arange(LAST_STEP + 1) // step_size
    exact = np.outer(gamma**decays, lrs)
    assert_rounded(followed, with_roundings(exact, int(decays[-1]) + 1, FLOAT64), "learning rate")


@given(
    lrs=rates(),
    as_tensors=st.booleans(),
    factors=st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 2.0)), min_size=2, max_size=6),
)
def test_lambda_lr_follows_its_formula(
    stack: Stack, lrs: Rates, as_tensors: bool, factors: list[tuple[float, float]]
) -> None:
    """
    After t steps of `LambdaLR`, each group's learning rate is its initial one times its own function of t.

    Up to the rounding of the product, and also after a factor of 0. Rejects: factors that are multiplied together, as
    `MultiplicativeLR` does, a function of the first group used for all, a step count that starts at one.
    """
    skip_unless_float32(stack)
    optimizer = two_groups(stack, lrs, as_tensors)
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, [lambda t: factors[t][0], lambda t: factors[t][1]])

    followed = follow(optimizer, scheduler, len(factors) - 1)

    assert_rounded(followed, with_roundings(np.array(factors) * np.array(lrs), 1, FLOAT64), "learning rate")


@given(
    lrs=rates(),
    as_tensors=st.booleans(),
    period=st.integers(2, LAST_STEP),
    minimum=st.sampled_from([0.0, 0.001]) | st.floats(0.0, 0.1),
)
def test_cosine_annealing_follows_its_formula(
    stack: Stack, lrs: Rates, as_tensors: bool, period: int, minimum: float
) -> None:
    """
    After t steps of `CosineAnnealingLR`, a learning rate is `eta_min + (lr - eta_min) (1 + cos(pi t / T_max)) / 2`.

    Also after T_max, where it rises again: PyTorch documents a recursion without restarts. Up to the roundings of
    recursion or formula. Rejects: a period of half or twice T_max, a minimum that is ignored, a restart.
    """
    skip_unless_float32(stack)
    optimizer = two_groups(stack, lrs, as_tensors)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, period, minimum)

    followed = follow(optimizer, scheduler, LAST_STEP)

    for group, lr in enumerate(lrs):
        assert_rounded(followed[:, group], cosine_annealing(lr, minimum, period), f"learning rate of group {group}")


def cosine_annealing(lr: float, minimum: float, period: int) -> ExactWithBound:
    """
    Return the cosine-annealed learning rates, with a bound on the roundings of the recursion, which has the most.

    With a(t) = 1 + cos(pi t / T), a step multiplies the distance from the minimum by a(t) / a(t-1). The angle, at most
    pi t / T <= 6 pi for t <= 12, has three roundings, the cosine and the sum one each: a(t) is off by at most
    3 * 6 pi + 3 < 60 units. Quotient, product, difference and sum round four times more. The bound is doubled for the
    error of the formula itself.
    """
    times = np.arange(LAST_STEP + 1)
    factors = 1 + np.cos(np.pi * times / period)
    distance, error = lr - minimum, [0.0]
    for before, after in pairwise(factors):
        ratio = after / before if before > 1e-9 else 1.0  # at t = T + 1 a rate is computed from the first one
        new = 60 * abs(distance) * (1 + ratio) + 4 * (abs(distance) + minimum)
        error.append(error[-1] * ratio + new * FLOAT64.unit)
    rates = minimum + distance * factors / 2
    return ExactWithBound(
        rates, np.zeros_like(rates), 2 * np.array(error) + 4 * FLOAT64.unit * (abs(distance) + minimum)
    )


@given(
    peak_lrs=rates(),
    total=st.sampled_from([8, 16]),  # powers of two, so that pct_start * total is exact
    rising=st.integers(3, 6),
    strategy=st.sampled_from(["cos", "linear"]),
    factors=st.tuples(st.sampled_from([25.0, 10.0]), st.sampled_from([1e4, 10.0])),
    momenta=st.sampled_from([(0.85, 0.95), (0.5, 0.9)]),
)
def test_one_cycle_reaches_its_documented_rates(
    stack: Stack, peak_lrs: Rates, total: int, rising: int, strategy: str, factors: Rates, momenta: Rates
) -> None:
    """
    `OneCycleLR` starts at `max_lr / div_factor`, rises to `max_lr`, and ends at the initial rate / `final_div_factor`.

    It rises for `pct_start * total_steps` steps, the first included, and falls until the last one. The momentum falls
    from `max_momentum` to `base_momentum` meanwhile, and rises again. At most six roundings. Rejects: a peak that is
    missed, early or late, a last step above the minimum, `div_factor` used for the final rate, momentum that is not
    cycled, or rises with the rate.
    """
    skip_unless_float32(stack)
    optimizer = two_groups(stack, peak_lrs)
    scheduler = optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=list(peak_lrs),
        total_steps=total,
        pct_start=rising / total,
        anneal_strategy=strategy,
        base_momentum=momenta[0],
        max_momentum=momenta[1],
        div_factor=factors[0],
        final_div_factor=factors[1],
    )

    followed, momentum = [rates_of(optimizer)], [optimizer.param_groups[0]["momentum"]]
    for _ in range(total - 1):
        optimizer.step()
        scheduler.step()
        followed.append(rates_of(optimizer))
        momentum.append(optimizer.param_groups[0]["momentum"])

    peaks, top = np.array(peak_lrs), rising - 1
    named = np.stack([peaks / factors[0], peaks, peaks / factors[0] / factors[1]])
    got = torch.tensor([followed[0], followed[top], followed[-1]], dtype=torch.float64)
    assert_rounded(got, with_roundings(named, 6, FLOAT64, size=peaks), "first, highest and last learning rate")
    cycled = torch.tensor([momentum[0], momentum[top], momentum[-1]], dtype=torch.float64)
    expected = np.array([momenta[1], momenta[0], momenta[1]])
    assert_rounded(cycled, with_roundings(expected, 6, FLOAT64), "first, lowest and last momentum")
    steps = np.diff(np.array(followed), axis=0)
    assert (steps[:top] > 0).all(), f"the learning rates do not rise for {top} steps: {followed}"
    assert (steps[top:] < 0).all(), f"the learning rates do not fall after {top} steps: {followed}"
    assert (np.diff(momentum)[:top] < 0).all(), f"the momentum does not fall for {top} steps: {momentum}"
    assert (np.diff(momentum)[top:] > 0).all(), f"the momentum does not rise after {top} steps: {momentum}"


SCHEDULERS: dict[str, Callable[[optim.SGD], Any]] = {
    "StepLR": lambda optimizer: optim.lr_scheduler.StepLR(optimizer, 3, 0.7),
    "LambdaLR": lambda optimizer: optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)),
    "CosineAnnealingLR": lambda optimizer: optim.lr_scheduler.CosineAnnealingLR(optimizer, 7, 0.001),
    "OneCycleLR": lambda optimizer: optim.lr_scheduler.OneCycleLR(optimizer, [0.5, 1.0], total_steps=LAST_STEP + 1),
}
"""Schedules with which an interrupted training is resumed."""


@given(name=st.sampled_from([*SCHEDULERS]), lrs=rates(), done=st.integers(0, LAST_STEP))
def test_resumed_schedule_continues_exactly(stack: Stack, name: str, lrs: Rates, done: int) -> None:
    """
    A scheduler and an optimizer that load the saved states of others continue with the same learning rates, exactly.

    The new optimizer has other rates until then; the scheduler is made before the optimizer's state is loaded, as
    documented. Rejects: a schedule that starts again, that skips or repeats a step, or that takes the rate at which it
    is resumed for the initial one.
    """
    skip_unless_float32(stack)
    optimizer = two_groups(stack, lrs)
    scheduler = SCHEDULERS[name](optimizer)
    follow(optimizer, scheduler, done)
    resumed = two_groups(stack, (2.0, 3.0))
    resumed_scheduler = SCHEDULERS[name](resumed)

    resumed_scheduler.load_state_dict(saved_and_loaded(scheduler.state_dict()))
    resumed.load_state_dict(saved_and_loaded(optimizer.state_dict()))

    expected = follow(optimizer, scheduler, LAST_STEP - done)
    assert_same_bits(follow(resumed, resumed_scheduler, LAST_STEP - done), expected, "learning rates after resuming")


# Gradient clipping.

FOREACH = pytest.mark.parametrize("foreach", [False, True], ids=["for-loop", "foreach"])
"""Judges a law with both implementations of clipping."""

PYTHAGOREAN = ((3, 4), (1, 2, 2), (2, 3, 6), (1, 4, 8), (2, 4, 5, 6))
"""Integers whose squares add up to a square: norms of gradients with an exact total norm."""


def clipped(stack: Stack, gradients: list[Array | None]) -> list[nn.Parameter]:
    """Return parameters that have these gradients, or none."""
    parameters = []
    for gradient in gradients:
        parameters.append(nn.Parameter(stack.tensor(np.zeros(1 if gradient is None else gradient.shape))))
        parameters[-1].grad = None if gradient is None else stack.tensor(gradient)
    return parameters


@FOREACH
@given(
    norms=st.sampled_from(PYTHAGOREAN),
    exponent=st.integers(-4, 4),
    norm_type=st.sampled_from([2.0, 1.0, math.inf]),
    fraction=st.sampled_from([0.25, 0.5, 0.75, 2.0]),
    missing=st.integers(0, 3),
    empty=st.booleans(),
    seed=st.integers(0, 99),
)
def test_clip_grad_norm_scales_by_the_total_norm(
    stack: Stack,
    foreach: bool,
    norms: tuple[int, ...],
    exponent: int,
    norm_type: float,
    fraction: float,
    missing: int,
    empty: bool,
    seed: int,
) -> None:
    """
    `clip_grad_norm_` returns the norm of all gradients as one vector and scales them by `max_norm / (norm + 1e-6)`.

    Where that is more than 1 their bits stay unchanged. Norms of order 1, 2 and infinity. The gradients are +-2**k, n*n
    of them in a gradient of norm n, so that the total norm is exact. One parameter has no gradient and gets none, and
    one may be empty. The sum, the quotient, the limit and the product are rounded. Rejects: each gradient clipped by
    its own norm, the norm after clipping returned, gradients that are scaled up, the norm of another order.
    """
    random = np.random.RandomState(seed)
    gradients: list[Array | None] = [random.choice([-1.0, 1.0], n * n) * 2.0**exponent for n in norms]
    gradients[missing:missing] = [None, np.zeros(0)] if empty else [None]
    parameters = clipped(stack, gradients)
    counts = {1.0: sum(n * n for n in norms), 2.0: math.isqrt(sum(n * n for n in norms)), math.inf: 1}
    total = counts[norm_type] * 2.0**exponent

    got = nn.utils.clip_grad_norm_(parameters, fraction * total, norm_type, foreach=foreach)

    assert_exact(got, stack.tensor(np.asarray(total)), "total norm")
    for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            assert parameter.grad is None, f"clipping has given parameter {i} a gradient"
        elif fraction > 1:
            assert_same_bits(parameter.grad, stack.tensor(gradient), f"gradient {i}")
        else:
            exact = gradient * (fraction * total / (total + 1e-6))
            assert_rounded(parameter.grad, with_roundings(exact, 4, stack.precision), f"gradient {i}")


@FOREACH
@given(vectors=short_vectors(), position=st.integers(0, 99), value=st.sampled_from([math.inf, -math.inf, math.nan]))
def test_nonfinite_total_norm_is_returned_or_raises(
    stack: Stack, foreach: bool, vectors: Vectors, position: int, value: float
) -> None:
    """
    If a gradient has NaN or an infinity, `clip_grad_norm_` returns it as norm; with `error_if_nonfinite` it raises.

    The error is a RuntimeError, as documented. Rejects: a norm that ignores what is not finite, an option that is
    ignored or that sees NaN alone.
    """
    gradients = vectors.gradients()
    gradient = gradients[position % len(gradients)]
    gradient[position % len(gradient)] = value

    total = nn.utils.clip_grad_norm_(clipped(stack, [*gradients]), 1.0, foreach=foreach)

    assert_exact(total, stack.tensor(np.asarray(abs(value))), "total norm")
    with expect_error(RuntimeError, "", "clip_grad_norm_ with error_if_nonfinite=True"):
        nn.utils.clip_grad_norm_(clipped(stack, [*gradients]), 1.0, error_if_nonfinite=True, foreach=foreach)


@FOREACH
@given(vectors=short_vectors(), missing=st.booleans(), limit=st.sampled_from([0.25, 1.0, 4.0]), infinite=st.booleans())
def test_clip_grad_value_clips_each_element(
    stack: Stack, foreach: bool, vectors: Vectors, missing: bool, limit: float, infinite: bool
) -> None:
    """
    `clip_grad_value_` sets elements above the limit to it, and those below minus the limit to that.

    All others keep their bits. Infinite elements are clipped too. Rejects: a limit on one side only, a gradient that is
    scaled as a whole, elements within the limit that change.
    """
    gradients: list[Array | None] = [*vectors.gradients(), *([None] * missing)]
    if infinite:
        gradients[0][0] = -math.inf
    parameters = clipped(stack, gradients)
    before = [copy.deepcopy(parameter.grad) for parameter in parameters]

    nn.utils.clip_grad_value_(parameters, limit, foreach=foreach)

    for i, (parameter, gradient) in enumerate(zip(parameters, before, strict=True)):
        if gradient is None:
            assert parameter.grad is None, f"clipping has given parameter {i} a gradient"
        else:
            expected = gradient.where(gradient.abs() <= limit, gradient.sign() * limit)
            assert_same_bits(parameter.grad, expected, f"gradient {i}")


@pytest.mark.parametrize("function", ["clip_grad_norm_", "clip_grad_value_"])
@FOREACH
def test_clipping_without_gradients_does_nothing(stack: Stack, foreach: bool, function: str) -> None:
    """
    If no parameter has a gradient, clipping changes nothing; the total norm is 0.

    As in the first step of a network whose parameters are frozen. Rejects: an error, gradients of zeros.
    """
    parameters = clipped(stack, [None, None])

    total = getattr(nn.utils, function)(parameters, 1.0, foreach=foreach)

    assert all(parameter.grad is None for parameter in parameters), "clipping has created a gradient"
    if function == "clip_grad_norm_":
        assert float(total) == 0.0, f"the total norm of no gradients is {float(total)}"


# Averaged weights.

AVERAGES: dict[str, Callable[[float], dict[str, Any]]] = {
    "exponential": lambda decay: {"multi_avg_fn": optim.swa_utils.get_ema_multi_avg_fn(decay)},
    "exponential, one by one": lambda decay: {"avg_fn": optim.swa_utils.get_ema_avg_fn(decay)},
    "equal": lambda decay: {},
}
"""Arguments of `AveragedModel`, by kind of average."""


@torch.no_grad()
def set_parameters(net: nn.ParameterList, values: list[Tensor]) -> None:
    """Copy the values to the parameters, in place, as training changes them."""
    for parameter, value in zip(net, values, strict=True):
        parameter.copy_(value)


@given(
    average=st.sampled_from([*AVERAGES]),
    vectors=short_vectors(),
    decay=st.sampled_from([0.5, 0.9, 0.999]) | st.floats(0.1, 0.99),
)
def test_averaged_model_follows_its_formula(stack: Stack, average: str, vectors: Vectors, decay: float) -> None:
    """
    `AveragedModel` copies the first parameters; an update makes its own `decay * average + (1 - decay) * parameter`.

    Without an averaging function, the decay of update n + 1 is n / (n + 1), so that all have equal weight. At most five
    roundings, of numbers no larger than the average and the share of the new parameter. The parameters themselves stay
    unchanged. Rejects: weights that are swapped, an average that starts at zero or at the parameters from before
    training, an average that shares memory with the network.
    """
    net = nn.ParameterList(parameters_of(stack, vectors))
    averaged = optim.swa_utils.AveragedModel(net, **AVERAGES[average](decay))

    for step in range(4):
        before = [float64(parameter).copy() for parameter in averaged.module]
        values = [stack.tensor(values) for values in vectors.gradients(step)]
        set_parameters(net, values)
        averaged.update_parameters(net)
        own_decay = step / (step + 1) if average == "equal" else decay
        for i, (parameter, old, value) in enumerate(zip(averaged.module, before, values, strict=True)):
            what = f"average {i} after update {step + 1}"
            assert_same_bits(net[i], value, f"parameter {i} after update {step + 1}")
            if step == 0:
                assert_same_bits(parameter, value, what)
                continue
            new, size = float64(value), np.abs(old) + (1 - own_decay) * np.abs(float64(value))
            exact = own_decay * old + (1 - own_decay) * new
            assert_rounded(parameter, with_roundings(exact, 5, stack.precision, size), what)
    assert int(averaged.n_averaged) == 4, f"n_averaged is {int(averaged.n_averaged)} after four updates"


@pytest.mark.parametrize("average", [name for name in AVERAGES if name != "equal"])
@given(size=st.sampled_from([7, 33]), decay=st.sampled_from([0.25, 0.5, 0.75]), seed=st.integers(0, 2**32 - 1))
def test_exponential_average_of_integers_is_exact(
    stack: Stack, average: str, size: int, decay: float, seed: int
) -> None:
    """
    Averages of multiples of 16 up to 64, with a decay of 1/4, 1/2 or 3/4, are exact in every dtype.

    All numbers in two updates after the first are integers of at most eight bits. Rejects: a decay that is rounded, an
    average kept in a narrower type, an update of some elements only.
    """
    random = np.random.RandomState(seed)
    first, second, third = (16.0 * random.randint(-4, 5, size) for _ in range(3))
    net = nn.ParameterList([nn.Parameter(stack.tensor(first))])
    averaged = optim.swa_utils.AveragedModel(net, **AVERAGES[average](decay))

    for values in (first, second, third):
        set_parameters(net, [stack.tensor(values)])
        averaged.update_parameters(net)

    expected = decay * (decay * first + (1 - decay) * second) + (1 - decay) * third
    assert_exact(averaged.module[0], stack.tensor(expected), "average")


@given(average=st.sampled_from([*AVERAGES]), vectors=short_vectors(), done=st.integers(0, 3))
def test_saved_average_continues_bit_for_bit(stack: Stack, average: str, vectors: Vectors, done: int) -> None:
    """
    An `AveragedModel` that loads the saved state of another one continues with the same averages, bit for bit.

    Rejects: a count of updates that is not saved, after which the next update copies the parameters.
    """
    net = nn.ParameterList(parameters_of(stack, vectors))
    averaged = optim.swa_utils.AveragedModel(net, **AVERAGES[average](0.9))
    for step in range(done):
        set_parameters(net, [stack.tensor(values) for values in vectors.gradients(step)])
        averaged.update_parameters(net)
    other = nn.ParameterList(parameters_of(stack, replace(vectors, seed=1)))
    resumed = optim.swa_utils.AveragedModel(other, **AVERAGES[average](0.9))

    resumed.load_state_dict(saved_and_loaded(averaged.state_dict()))

    for step in range(done, done + 2):
        set_parameters(net, [stack.tensor(values) for values in vectors.gradients(step)])
        averaged.update_parameters(net)
        resumed.update_parameters(net)
    for i, (got, want) in enumerate(zip(resumed.module, averaged.module, strict=True)):
        assert_same_bits(got, want, f"average {i} after resuming")


@hypothesis_settings(max_examples=4)  # each has four networks; the cases matter little
@given(case=cases(batches=(1, 2, 3)), other=cases(batches=(1,)))
def test_averaged_model_computes_with_its_averages(stack: Stack, case: Case, other: Case) -> None:
    """
    The logits of an `AveragedModel` are those of a network that has the averaged parameters, bit for bit.

    The network that is trained has other parameters and keeps them. Rejects: a forward pass with the parameters that
    are trained, averages that are computed when they are read, by other numbers.
    """
    net = stack.net(case)
    averaged = optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    net.load_state_dict(stack.net(other).state_dict())
    averaged.update_parameters(net)
    expected = stack.net(case)
    expected.load_state_dict(averaged.module.state_dict())

    with torch.no_grad():
        logits = averaged(stack.images(case))

        assert_same_bits(logits, expected(stack.images(case)), "logits")
        assert_same_bits(net(stack.images(case)), stack.net(other)(stack.images(case)), "logits of the trained network")
