"""Laws of the update: weight = weight - learning rate * gradient, by hand and by `optim.SGD` in each of its forms."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import nn, optim

from lenet import oracle
from lenet.training import SGD_FORMS
from lenet.update import SGD
from properties.case import Case
from properties.comparison import assert_exact, assert_rounded, assert_within_budget
from properties.stack import Stack, float64, gradients
from properties.strategies import Vectors, cases, learning_rates, powers_of_two, vectors

FORM = pytest.mark.parametrize("form", SGD_FORMS)
STEPS = 5


def digit_cases() -> SearchStrategy[Case]:
    """Batches of real digits, and networks that they do not drive out of the dtype's range."""
    return cases(weights=("default", "sparse"), images=("digits",), batches=(8, 3))


def parameters_of(stack: Stack, drawn: Vectors) -> list[nn.Parameter]:
    """The drawn vectors as parameters, each with the gradient that was drawn with it."""
    parameters = []
    for value, gradient in zip(drawn.parameters(), drawn.gradients(), strict=True):
        parameter = nn.Parameter(stack.tensor(value))
        parameter.grad = stack.tensor(gradient)
        parameters.append(parameter)
    return parameters


def exact_rate(stack: Stack, lr: float) -> float:
    """A power of two of which every product is exact: in float16, whose subnormals gradients do reach, 1 alone."""
    return 1.0 if stack.dtype is torch.float16 else lr


def assert_step(stack: Stack, before: list[nn.Parameter], after: list[nn.Parameter], lr: float) -> None:
    """Each parameter is, within its roundings, what it was less lr times its gradient."""
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old.grad is not None
        assert_rounded(new, SGD(lr).step(float64(old), float64(old.grad), None, stack.precision)[0], f"parameter {i}")


@given(drawn=vectors(), lr=learning_rates())
def test_manual_update_matches_the_formula(stack: Stack, drawn: Vectors, lr: float) -> None:
    """
    `sgd_update` makes every element weight - lr * gradient, within the three roundings that this takes.

    Parameters of 1 to 48,000 elements, below, at and above SIMD widths. Rejects: another sign, lr squared or doubled, a
    hidden decay, full blocks or tails left out, a lower precision.
    """
    before, after = parameters_of(stack, drawn), parameters_of(stack, drawn)

    stack.subject.sgd_update(after, lr)

    assert_step(stack, before, after, lr)


@FORM
@given(drawn=vectors(), lr=learning_rates())
def test_optimizer_update_matches_the_formula(stack: Stack, form: str, drawn: Vectors, lr: float) -> None:
    """
    `optim.SGD`, for-loop, foreach and fused, makes every element weight - lr * gradient within the same roundings.

    Rejects: pytorch/pytorch#191763, where fused left every full SIMD block of bfloat16 and float16 as it was.
    """
    before, after = parameters_of(stack, drawn), parameters_of(stack, drawn)

    optim.SGD(after, lr=lr, **SGD_FORMS[form]).step()

    assert_step(stack, before, after, lr)


@FORM
@given(drawn=vectors(), lr=powers_of_two())
def test_manual_and_optimizer_updates_agree_at_powers_of_two(
    stack: Stack, form: str, drawn: Vectors, lr: float
) -> None:
    """
    At a learning rate of 2**-k the product is exact and one rounding is left: both updates give the same bits.

    Rejects: an update that rounds once more than it must.
    """
    lr = exact_rate(stack, lr)
    by_hand, by_optimizer = parameters_of(stack, drawn), parameters_of(stack, drawn)

    stack.subject.sgd_update(by_hand, lr)
    optim.SGD(by_optimizer, lr=lr, **SGD_FORMS[form]).step()

    for i, (manual, optimized) in enumerate(zip(by_hand, by_optimizer, strict=True)):
        assert_exact(optimized, manual, f"parameter {i}")


@FORM
@given(case=digit_cases(), lr=powers_of_two())
def test_manual_and_optimizer_training_agree_at_powers_of_two(stack: Stack, form: str, case: Case, lr: float) -> None:
    """
    Two networks trained on real digits at a learning rate of 2**-k, one by hand and one by `optim.SGD`, stay the same.

    Bit for bit in every parameter after every step. Rejects: state that one of them keeps from step to step.
    """
    net = stack.net(case)
    twin = copy.deepcopy(net)
    lr = exact_rate(stack, lr)
    optimizer = optim.SGD(twin.parameters(), lr=lr, **SGD_FORMS[form])

    for step in range(STEPS):
        net.zero_grad()
        stack.loss(net, case).backward()
        stack.subject.sgd_update(net.parameters(), lr)
        optimizer.zero_grad()
        stack.loss(twin, case).backward()
        optimizer.step()
        for (name, manual), optimized in zip(net.named_parameters(), twin.parameters(), strict=True):
            assert_exact(optimized, manual, f"{name} after step {step + 1}")


@FORM
@given(case=digit_cases(), lr=learning_rates())
def test_every_training_update_matches_the_formula(stack: Stack, form: str, case: Case, lr: float) -> None:
    """
    On real digits every step by hand and every step by `optim.SGD` is weight - lr * gradient within its roundings.

    The Net's own ten parameters, at any learning rate. Rejects: what goes wrong at these sizes or after some steps.
    """
    net = stack.net(case)
    for _ in range(STEPS):
        net.zero_grad()
        stack.loss(net, case).backward()
        before = {name: float64(p).copy() for name, p in net.named_parameters()}
        slope = {name: float64(gradient) for name, gradient in gradients(net).items()}
        twin = copy.deepcopy(net)
        for parameter, original in zip(twin.parameters(), net.parameters(), strict=True):
            parameter.grad = original.grad
        optim.SGD(twin.parameters(), lr=lr, **SGD_FORMS[form]).step()
        stack.subject.sgd_update(net.parameters(), lr)
        for name, old in before.items():
            for who, new in (("by hand", net), (form, twin)):
                exact, _ = SGD(lr).step(old, slope[name], None, stack.precision)
                assert_rounded(new.get_parameter(name), exact, f"{name} {who}")


@pytest.mark.parametrize("form", ["manual", *SGD_FORMS])
@given(drawn=vectors(), lr=learning_rates())
def test_update_leaves_gradients_unchanged(stack: Stack, form: str, drawn: Vectors, lr: float) -> None:
    """
    After an update every `.grad` is the tensor that it was, bit for bit; parameters keep their memory.

    Rejects: gradients scaled or cleared by the step, parameters replaced instead of changed.
    """
    parameters = parameters_of(stack, drawn)
    grads, memory = [p.grad for p in parameters], [p.data_ptr() for p in parameters]
    copies = [grad.clone() for grad in grads if grad is not None]

    if form == "manual":
        stack.subject.sgd_update(parameters, lr)
    else:
        optim.SGD(parameters, lr=lr, **SGD_FORMS[form]).step()

    for i, (parameter, grad, kept) in enumerate(zip(parameters, grads, copies, strict=True)):
        assert parameter.grad is grad
        assert grad is not None
        assert_exact(grad, kept, f"gradient {i}")
    assert [p.data_ptr() for p in parameters] == memory


@pytest.mark.parametrize("form", ["manual", *SGD_FORMS])
@given(drawn=vectors(), lr=learning_rates(), which=st.sets(st.integers(0, 4), min_size=1))
def test_parameter_without_gradient_is_skipped(
    stack: Stack, form: str, drawn: Vectors, lr: float, which: set[int]
) -> None:
    """
    Where `.grad` is None the parameter stays as it is, and the others are updated all the same.

    Rejects: an error, a stop at the first None, an update with what is not there.
    """
    before, after = parameters_of(stack, drawn), parameters_of(stack, drawn)
    without = {i % len(after) for i in which}
    for i in without:
        after[i].grad = None

    if form == "manual":
        stack.subject.sgd_update(after, lr)
    else:
        optim.SGD(after, lr=lr, **SGD_FORMS[form]).step()

    for i in without:
        assert after[i].grad is None
        assert_exact(after[i], before[i], f"parameter {i}")
    others = [i for i in range(len(after)) if i not in without]
    assert_step(stack, [before[i] for i in others], [after[i] for i in others], lr)


@pytest.mark.engine
@given(case=cases(), earlier=cases(), lr=learning_rates())
def test_training_step_agrees_with_the_oracle(stack: Stack, case: Case, earlier: Case, lr: float) -> None:
    """
    `train_step` returns the loss before its update, detached, and leaves every parameter at weight - lr * gradient.

    Also after a backward on an earlier batch, whose gradients it forgets. All within budget. Rejects: zero_grad missing
    or late, two backwards, an update before backward, a frozen parameter, the loss after the update.
    """
    net, answer = stack.net(case), stack.exact(case)
    before = {name: float64(p).copy() for name, p in net.named_parameters()}
    stack.loss(net, earlier).backward()

    loss = stack.subject.train_step(net, stack.images(case), stack.targets(case), lr)

    assert not loss.requires_grad
    assert_within_budget(loss, answer.loss, "loss")
    for name, exact in oracle.updated(before, answer, lr, stack.stored).items():
        assert_within_budget(net.get_parameter(name), exact, name)
