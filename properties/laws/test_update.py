"""Laws of the update `weight - lr * gradient`, by `sgd_update` and by each implementation of `optim.SGD`."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import nn, optim

from lenet import oracle
from lenet.exact_sgd import SGD
from lenet.training import SGD_FORMS
from properties.case import Case
from properties.comparison import assert_exact, assert_rounded, assert_same_bits, assert_within_budget
from properties.laws.networks import BATCH_OF_17, BATCH_OF_33, backward
from properties.laws.optimizers import FORM, give_gradients, parameters_of
from properties.stack import Stack, float64
from properties.strategies import Vectors, cases, learning_rates, powers_of_two, vectors

MANUAL_OR_FORM = pytest.mark.parametrize("form", ["manual", *SGD_FORMS])
"""Judges a law with `sgd_update` and with every implementation of `optim.SGD`."""

TRAINING_STEPS = 5


def digit_cases() -> SearchStrategy[Case]:
    """Batches of 8 or 3 real digits, and weights with which training stays within every dtype's range."""
    return cases(weights=("default", "sparse"), images=("digits",), batches=(8, 3))


def parameters_with_gradients(stack: Stack, vectors: Vectors) -> list[nn.Parameter]:
    """Return the drawn vectors as parameters, each with its drawn gradient."""
    parameters = parameters_of(stack, vectors)
    give_gradients(stack, parameters, vectors)
    return parameters


def exact_learning_rate(stack: Stack, lr: float) -> float:
    """
    Return a learning rate by which every product is exact: `lr`, a power of two, or 1 in float16.

    In float16 a smaller one would make products subnormal, and so round them.
    """
    return 1.0 if stack.dtype is torch.float16 else lr


def update(stack: Stack, form: str, parameters: list[nn.Parameter], lr: float) -> None:
    """Update the parameters by `sgd_update` if the form is "manual", otherwise by `optim.SGD` in this form."""
    if form == "manual":
        stack.subject.sgd_update(parameters, lr)
    else:
        optim.SGD(parameters, lr=lr, **SGD_FORMS[form]).step()


def assert_updated(stack: Stack, before: list[nn.Parameter], after: list[nn.Parameter], lr: float) -> None:
    """Assert that every parameter `after` is the one `before` minus lr times its gradient, within three roundings."""
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old.grad is not None, f"parameter {i} has no gradient"
        assert_rounded(new, SGD(lr).step(float64(old), float64(old.grad), None, stack.precision)[0], f"parameter {i}")


@given(vectors=vectors(), lr=learning_rates())
def test_manual_update_matches_the_formula(stack: Stack, vectors: Vectors, lr: float) -> None:
    """
    `sgd_update` sets every element to `weight - lr * gradient`, within three roundings.

    These are the roundings of the learning rate, the product and the difference. The parameters have 1 to 48,000
    elements, below, at and above SIMD widths. Rejects: a wrong sign, a squared or doubled learning rate, a hidden
    weight decay, full SIMD blocks or tails that are left out, a lower precision.
    """
    before, after = parameters_with_gradients(stack, vectors), parameters_with_gradients(stack, vectors)

    stack.subject.sgd_update(after, lr)

    assert_updated(stack, before, after, lr)


@FORM
@given(vectors=vectors(), lr=learning_rates())
def test_optimizer_update_matches_the_formula(stack: Stack, form: str, vectors: Vectors, lr: float) -> None:
    """
    `optim.SGD` sets every element to `weight - lr * gradient`, within three roundings.

    Rejects: pytorch/pytorch#191763, where the fused implementation skipped every full SIMD block of bfloat16 and
    float16 parameters.
    """
    before, after = parameters_with_gradients(stack, vectors), parameters_with_gradients(stack, vectors)

    optim.SGD(after, lr=lr, **SGD_FORMS[form]).step()

    assert_updated(stack, before, after, lr)


@FORM
@given(vectors=vectors(), lr=powers_of_two())
def test_manual_and_optimizer_updates_agree_at_powers_of_two(
    stack: Stack, form: str, vectors: Vectors, lr: float
) -> None:
    """
    At a learning rate of 2**-k, `sgd_update` and `optim.SGD` give bit-identical parameters.

    The product lr * gradient is exact at such a rate, so that only the difference is rounded. Rejects: an update that
    rounds more often than necessary.
    """
    lr = exact_learning_rate(stack, lr)
    manual, optimized = parameters_with_gradients(stack, vectors), parameters_with_gradients(stack, vectors)

    stack.subject.sgd_update(manual, lr)
    optim.SGD(optimized, lr=lr, **SGD_FORMS[form]).step()

    for i, (got, want) in enumerate(zip(optimized, manual, strict=True)):
        assert_exact(got, want, f"parameter {i}")


@FORM
@given(case=digit_cases(), lr=powers_of_two())
def test_manual_and_optimizer_training_agree_at_powers_of_two(stack: Stack, form: str, case: Case, lr: float) -> None:
    """
    At a learning rate of 2**-k, training by `sgd_update` and by `optim.SGD` gives bit-identical parameters.

    Two copies of a network are trained on real digits and compared after each of five steps. Rejects: an update that
    keeps state from one step to the next.
    """
    net = stack.net(case)
    net_copy = copy.deepcopy(net)
    lr = exact_learning_rate(stack, lr)
    optimizer = optim.SGD(net_copy.parameters(), lr=lr, **SGD_FORMS[form])

    for step in range(TRAINING_STEPS):
        net.zero_grad()
        stack.loss(net, case).backward()
        stack.subject.sgd_update(net.parameters(), lr)
        optimizer.zero_grad()
        stack.loss(net_copy, case).backward()
        optimizer.step()
        for (name, manual), optimized in zip(net.named_parameters(), net_copy.parameters(), strict=True):
            assert_exact(optimized, manual, f"{name} after step {step + 1}")


@FORM
@given(case=digit_cases(), lr=learning_rates())
def test_every_training_update_matches_the_formula(stack: Stack, form: str, case: Case, lr: float) -> None:
    """
    In training on digits, every update sets the parameters to `weight - lr * gradient`, within three roundings.

    Each of five updates of the Net's ten parameters is made by `sgd_update` and, on a copy, by `optim.SGD`, at any
    learning rate. Rejects: a fault that occurs only at these sizes or only after some steps.
    """
    net = stack.net(case)
    for _ in range(TRAINING_STEPS):
        net.zero_grad()
        grads = {name: float64(gradient) for name, gradient in backward(stack, net, case).items()}
        before = {name: float64(p).copy() for name, p in net.named_parameters()}
        net_copy = copy.deepcopy(net)
        for parameter, original in zip(net_copy.parameters(), net.parameters(), strict=True):
            parameter.grad = original.grad
        optim.SGD(net_copy.parameters(), lr=lr, **SGD_FORMS[form]).step()
        stack.subject.sgd_update(net.parameters(), lr)
        for name, old in before.items():
            for update_name, updated in (("sgd_update", net), (f"optim.SGD, {form}", net_copy)):
                exact, _ = SGD(lr).step(old, grads[name], None, stack.precision)
                assert_rounded(updated.get_parameter(name), exact, f"{name} after {update_name}")


@MANUAL_OR_FORM
@given(vectors=vectors(), lr=learning_rates())
def test_update_leaves_gradients_unchanged(stack: Stack, form: str, vectors: Vectors, lr: float) -> None:
    """
    An update leaves every `.grad` the same tensor with the same bits and moves no parameter in memory.

    Rejects: gradients that the update scales or clears, parameters that it replaces instead of changing in place.
    """
    parameters = parameters_with_gradients(stack, vectors)
    grads, addresses = [p.grad for p in parameters], [p.data_ptr() for p in parameters]
    copies = [grad.clone() for grad in grads]

    update(stack, form, parameters, lr)

    for i, (parameter, grad, before) in enumerate(zip(parameters, grads, copies, strict=True)):
        assert parameter.grad is grad, f"the `.grad` of parameter {i} is another tensor than before"
        assert_same_bits(grad, before, f"gradient {i}")
    moved = [i for i, p in enumerate(parameters) if p.data_ptr() != addresses[i]]
    assert not moved, f"parameters {moved} are at another memory address than before"


@MANUAL_OR_FORM
@given(vectors=vectors(at_least=2), lr=learning_rates(), skipped=st.sets(st.integers(0, 4), min_size=1))
def test_parameter_without_gradient_is_skipped(
    stack: Stack, form: str, vectors: Vectors, lr: float, skipped: set[int]
) -> None:
    """
    An update leaves parameters whose `.grad` is None unchanged and updates the others, of which there is at least one.

    Rejects: an update that raises for None, stops at the first None, or replaces None by a gradient of zeros.
    """
    before, after = parameters_with_gradients(stack, vectors), parameters_with_gradients(stack, vectors)
    without = {i % (len(after) - 1) for i in skipped}  # not the last one
    for i in without:
        after[i].grad = None

    update(stack, form, after, lr)

    for i in without:
        assert after[i].grad is None, f"the update has set the `.grad` of parameter {i}"
        assert_same_bits(after[i], before[i], f"parameter {i}")
    others = [i for i in range(len(after)) if i not in without]
    assert_updated(stack, [before[i] for i in others], [after[i] for i in others], lr)


@pytest.mark.engine
@example(case=Case(), earlier=Case(seed=1), lr=0.5)
@example(case=BATCH_OF_17, earlier=Case(), lr=0.5)
@example(case=BATCH_OF_33, earlier=Case(), lr=0.5)
@given(case=cases(), earlier=cases(), lr=learning_rates())
def test_training_step_agrees_with_the_oracle(stack: Stack, case: Case, earlier: Case, lr: float) -> None:
    """
    `train_step` returns the detached loss before its update and sets each parameter to `weight - lr * gradient`.

    Loss and parameters are within budget of the oracle's. The network has gradients from an earlier batch, which the
    step must discard. Rejects: `zero_grad` that is missing or late, two backward passes, an update before backward, a
    frozen parameter, the loss after the update.
    """
    net = stack.net(case)
    stack.loss(net, earlier).backward()

    assert_training_step(stack, net, case, lr)


@pytest.mark.engine
def test_training_step_is_correct_with_any_number_of_threads(stack: Stack) -> None:
    """
    With one thread and with one for each core, but two at least, `train_step` agrees with the oracle.

    Loss and parameters are within budget. The 37,632 outputs of conv1 and the 48,000 weights of fc1 are enough for
    several threads. Rejects: a gradient or an update to which only one thread contributes.
    """
    case = Case(batch=8)
    for threads in (1, max(2, os.cpu_count() or 1)):
        torch.set_num_threads(threads)  # restored after the law
        assert_training_step(stack, stack.net(case), case, lr=0.5)


def assert_training_step(stack: Stack, net: nn.Module, case: Case, lr: float) -> None:
    """Take a training step; assert that the loss and the parameters are within budget of the oracle's."""
    __tracebackhide__ = True
    answer, before = stack.exact(case), {name: float64(p).copy() for name, p in net.named_parameters()}

    loss = stack.subject.train_step(net, stack.images(case), stack.targets(case), lr)

    assert not loss.requires_grad, "the returned loss is not detached"
    assert_within_budget(loss, answer.loss, "loss")
    for name, exact in oracle.updated_parameters(before, answer, lr, stack.stored_precision).items():
        assert_within_budget(net.get_parameter(name), exact, name)
