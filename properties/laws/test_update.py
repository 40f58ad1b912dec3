"""Laws of the update `weight - lr * gradient`, by `sgd_update` and by each implementation of `optim.SGD`."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn, optim

from lenet import oracle
from lenet.exact_sgd import SGD
from lenet.training import SGD_FORMS
from properties.case import Case
from properties.comparison import assert_exact, assert_rounded, assert_same_bits, assert_within_budget
from properties.laws.networks import BATCH_OF_17, BATCH_OF_33, backward
from properties.laws.optimizers import (
    DTYPES,
    FORM,
    flat,
    give_gradients,
    in_dtypes,
    parameters_of,
    placed_parameters,
    unchanged_outside,
    with_roundings,
)
from properties.stack import Stack, float64, precision_of
from properties.strategies import Placed, Vectors, cases, learning_rates, many_vectors, placed, powers_of_two, vectors

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


def assert_updated(before: list[nn.Parameter], after: list[nn.Parameter], lr: float) -> None:
    """
    Assert that every parameter `after` is the one `before` minus lr times its gradient, within three roundings.

    Each is judged in its own dtype.
    """
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old.grad is not None, f"parameter {i} has no gradient"
        precision = precision_of(old.dtype)
        assert_rounded(new, SGD(lr).step(float64(old), float64(old.grad), None, precision)[0], f"parameter {i}")


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

    assert_updated(before, after, lr)


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

    assert_updated(before, after, lr)


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
            exact, _ = SGD(lr).step(old, grads[name], None, stack.precision)
            for update_name, updated in (("sgd_update", net), (f"optim.SGD, {form}", net_copy)):
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
    assert_updated([before[i] for i in others], [after[i] for i in others], lr)


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


@example(batch=7, image=6, lr=0.5)
@example(batch=13, image=12, lr=0.5)
@example(batch=21, image=20, lr=0.5)
@example(batch=37, image=36, lr=0.5)
@hypothesis_settings(
    max_examples=4
)  # besides the four explicit ones; the fault is one of few batch sizes, not of numbers
@given(batch=st.integers(1, 40), image=st.integers(0, 39), lr=st.sampled_from([0.1, 0.5, 1.0]))
def test_every_image_has_the_same_weight_in_training_step(stack: Stack, batch: int, image: int, lr: float) -> None:
    """
    A training step on N images moves fc3's bias by `lr * 2 / 10N` times the error of each, for every N.

    All parameters are 0, and so are the targets of all images but one: this image alone has an error, 8 in each logit.
    Nothing but fc3's bias moves, and the loss is 64 / N. At most eight operations are rounded: 10N, 2 / 10N, its
    product with the error, a micro-batch's share, its product, the learning rate, its product, the difference. Rejects:
    micro-batches of unequal sizes whose means are averaged (huggingface/transformers#34191), batch sizes that are
    rounded up, images that are left out.
    """
    case = Case(weights="zero", batch=batch)
    net, images, targets = stack.net(case), stack.images(case), torch.zeros_like(stack.targets(case))
    targets[image % batch] = 8.0

    loss = stack.subject.train_step(net, images, targets, lr)

    assert_rounded(loss, with_roundings(np.asarray(64.0 / batch), 8, stack.precision), "loss")
    for name, parameter in net.named_parameters():
        moved = lr * 16.0 / (10 * batch) if name == "fc3.bias" else 0.0
        assert_rounded(parameter, with_roundings(np.full(parameter.shape, moved), 8, stack.precision), name)


@given(placed=placed(), lr=learning_rates())
def test_manual_update_is_correct_in_any_memory_layout(stack: Stack, placed: Placed, lr: float) -> None:
    """
    `sgd_update` is correct for any memory layouts of the parameter and of its gradient, which may differ.

    Each of the two has its own layout (contiguous, channels_last, transposed, strided or offset), which changes from
    step to step. Rejects: elements that are paired by their position in memory instead of by their index.
    """
    for parameter, _ in placed_parameters(stack, placed):
        before = copy.deepcopy(parameter)
        before.grad = parameter.grad
        stack.subject.sgd_update([parameter], lr)
        assert_updated([before], [parameter], lr)


@given(placed=placed(), lr=learning_rates())
def test_manual_update_writes_only_its_parameter(stack: Stack, placed: Placed, lr: float) -> None:
    """
    If a parameter or its gradient is a view, `sgd_update` leaves the rest of the underlying tensor unchanged.

    Rejects: a kernel that iterates over memory instead of over the view.
    """
    for parameter, views in placed_parameters(stack, placed):
        with unchanged_outside(views):
            stack.subject.sgd_update([parameter], lr)


def slices(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return a vector that contains the vectors, each between two ones, and its slices that are these vectors."""
    one = tensors[0].new_ones(1)
    buffer = torch.cat([one, *(part for tensor in tensors for part in (tensor.detach(), one))])
    return buffer, list(buffer.split([1, *(size for tensor in tensors for size in (len(tensor), 1))])[1::2])


@MANUAL_OR_FORM
@hypothesis_settings(max_examples=5)  # in each of four implementations; addresses matter here, not numbers
@given(vectors=vectors(), lr=learning_rates())
def test_update_of_slices_writes_only_them(stack: Stack, form: str, vectors: Vectors, lr: float) -> None:
    """
    An update of parameters that are slices of one buffer, at any address, is correct and leaves the rest unchanged.

    The gradients are slices of another buffer, which does not change. Flat buffers hold the parameters of several
    layers at once in distributed training. Rejects: a SIMD block that is written beyond the end of a parameter, an
    update that takes addresses for aligned.
    """
    before = parameters_with_gradients(stack, vectors)
    buffer, parts = slices(list(before))
    gradients, gradient_parts = slices([p.grad for p in before])
    after = [nn.Parameter(part) for part in parts]
    for parameter, gradient in zip(after, gradient_parts, strict=True):
        parameter.grad = gradient
    gradients_before = gradients.clone()

    update(stack, form, after, lr)

    assert_updated(before, after, lr)
    assert_same_bits(gradients, gradients_before, "the gradients' buffer")
    between = torch.cat([buffer[:1], *(buffer[p.storage_offset() + len(p)].view(1) for p in after)])
    assert_same_bits(between, torch.ones_like(between), "the elements between the parameters")


@hypothesis_settings(max_examples=3)  # each example has 111 to 128 tensors and over 66,000 elements
@given(vectors=many_vectors(), lr=learning_rates())
def test_manual_update_of_many_and_large_parameters_matches_the_formula(
    stack: Stack, vectors: Vectors, lr: float
) -> None:
    """
    `sgd_update` updates every one of more than 110 parameters, empty ones and one of over 65,536 elements included.

    They are given by a generator. Rejects: tensors or elements beyond the limit of a multi-tensor kernel that are left
    out, an empty parameter that ends the loop or shifts the gradients of those that follow it.
    """
    before, after = parameters_with_gradients(stack, vectors), parameters_with_gradients(stack, vectors)

    stack.subject.sgd_update(iter(after), lr)

    old, gradients = flat(before), flat([p.grad for p in before])
    exact = SGD(lr).step(old, gradients, None, stack.precision)[0]
    assert_rounded(torch.from_numpy(flat(after)), exact, "all parameters")


@given(
    vectors=vectors(at_least=3), dtypes=st.lists(st.sampled_from(DTYPES), min_size=2, max_size=4), lr=learning_rates()
)
def test_manual_update_of_mixed_dtypes_matches_the_formula(
    stack: Stack, vectors: Vectors, dtypes: list[torch.dtype], lr: float
) -> None:
    """
    `sgd_update` updates each parameter in its own dtype if one list contains parameters of several dtypes.

    As a network does whose normalization layers stay in float32. Rejects: gradients or a learning rate in the dtype of
    the first parameter, parameters of another dtype that are left out.
    """
    before, after = (in_dtypes(parameters_with_gradients(stack, vectors), [*dtypes, stack.dtype]) for _ in range(2))

    stack.subject.sgd_update(after, lr)

    assert_updated(before, after, lr)


@MANUAL_OR_FORM
@hypothesis_settings(max_examples=5)  # in each of four implementations
@given(
    vectors=vectors(),
    lr=learning_rates(),
    position=st.integers(0, 2**16),
    value=st.sampled_from([float("inf"), float("-inf"), float("nan")]),
)
def test_nonfinite_gradient_reaches_its_own_element_only(
    stack: Stack, form: str, vectors: Vectors, lr: float, position: int, value: float
) -> None:
    """
    If one element of a gradient is infinite or NaN, so is this element of the parameter; all others follow the formula.

    `weight - lr * inf` is -inf. Rejects: a step, a parameter or an element that is skipped silently, NaN that is
    replaced by a number, an infinity that is clipped, a sum over the gradient that spreads NaN.
    """
    before, after = parameters_with_gradients(stack, vectors), parameters_with_gradients(stack, vectors)
    index = position % len(after)
    at = position % len(after[index])
    after[index].grad[at] = value
    before[index].grad[at] = 0.0

    update(stack, form, after, lr)

    with torch.no_grad():
        got = after[index].clone()
        expected = got.clone()
        expected[at] = -value
        assert_exact(got, expected, f"parameter {index}")
        after[index][at] = before[index][at]  # judged above
    assert_updated(before, after, lr)
