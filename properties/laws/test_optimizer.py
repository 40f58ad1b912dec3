"""Laws of `optim.SGD` with every combination of its settings, in each implementation: for-loop, foreach and fused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from lenet.engines.eager import deterministic_algorithms
from lenet.exact_sgd import SGD
from lenet.training import SGD_FORMS
from properties.case import Case
from properties.comparison import assert_rounded, assert_same_bits
from properties.laws.networks import expect_error
from properties.laws.optimizers import (
    DTYPES,
    FORM,
    assert_step,
    assert_stepped,
    buffer_of,
    copy_state,
    exact_step,
    flat,
    give_gradients,
    in_dtypes,
    optimizer_of,
    parameters_of,
    placed_parameters,
    saved_and_loaded,
    unchanged_outside,
)
from properties.stack import Stack, float64, lay_out
from properties.strategies import (
    Placed,
    Vectors,
    cases,
    learning_rates,
    many_vectors,
    placed,
    settings,
    short_vectors,
    vectors,
)

OPTIMIZER_STEPS = 3


FORMS = st.sampled_from([*SGD_FORMS])
"""Draws an implementation, for laws about what is updated and when, which cost too much if judged with each."""


def momentum_settings() -> st.SearchStrategy[SGD]:
    """Settings with momentum, for which the optimizer keeps a buffer per parameter."""
    return settings().filter(lambda sgd: sgd.momentum > 0)


@FORM
@given(vectors=vectors(), sgd=settings(), lr_as_tensor=st.booleans())
def test_sgd_steps_match_the_formula(stack: Stack, form: str, vectors: Vectors, sgd: SGD, lr_as_tensor: bool) -> None:
    """
    Three steps of `optim.SGD` update parameters and momentum buffers as documented, within their roundings.

    With momentum, dampening, weight decay, Nesterov momentum and maximize, a learning rate that is a number or a
    tensor, and parameters of 1 to 48,000 elements. Rejects: dampening on the first step, decoupled weight decay, a
    wrong order of operations in Nesterov momentum, a buffer that two parameters share.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, sgd, form)
    if lr_as_tensor:
        optimizer.param_groups[0]["lr"] = torch.tensor(sgd.lr, dtype=torch.float64)

    for step in range(OPTIMIZER_STEPS):
        give_gradients(stack, parameters, vectors, step)
        assert_step(optimizer, parameters, [sgd] * len(parameters))


@FORM
@given(vectors=vectors(at_least=2), first=settings(), second=settings())
def test_parameter_groups_use_their_own_settings(
    stack: Stack, form: str, vectors: Vectors, first: SGD, second: SGD
) -> None:
    """
    Each of two parameter groups is updated by its own settings.

    Rejects: settings of the first group, of the last group or of the defaults that are used for all groups.
    """
    parameters = parameters_of(stack, vectors)
    groups = [{"params": parameters[:1], **asdict(first)}, {"params": parameters[1:], **asdict(second)}]
    optimizer = optim.SGD(groups, **SGD_FORMS[form])

    for step in range(OPTIMIZER_STEPS):
        give_gradients(stack, parameters, vectors, step)
        assert_step(optimizer, parameters, [first] + [second] * (len(parameters) - 1))


@FORM
@given(vectors=vectors(), sgd=momentum_settings(), lr=learning_rates())
def test_learning_rate_change_takes_effect_at_next_step(
    stack: Stack, form: str, vectors: Vectors, sgd: SGD, lr: float
) -> None:
    """
    A learning rate that is set in `param_groups`, as schedulers do, is used from the next step on.

    Rejects: a learning rate that is kept from the first step, or that is included in the momentum buffer.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, sgd, form)

    for step, current in enumerate([sgd, replace(sgd, lr=lr)]):
        optimizer.param_groups[0]["lr"] = current.lr
        give_gradients(stack, parameters, vectors, step)
        assert_step(optimizer, parameters, [current] * len(parameters))


@FORM
@given(vectors=vectors(at_least=2), sgd=settings())
def test_late_first_gradient_is_treated_as_first_step(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    A parameter whose first gradient arrives at the second step takes its first step then.

    It is unchanged and has no momentum buffer before; the other parameters are updated in every step. Rejects: a buffer
    that starts at zero or is missing, a state that a skipped step creates.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, sgd, form)
    late, others = parameters[0], parameters[1:]
    before = late.detach().clone()

    give_gradients(stack, parameters, vectors, 0)
    late.grad = None
    assert_step(optimizer, others, [sgd] * len(others))
    assert_same_bits(late, before, "the parameter without gradient")
    assert buffer_of(optimizer, late) is None, "the parameter without gradient has a momentum buffer"

    for step in range(1, OPTIMIZER_STEPS):
        give_gradients(stack, parameters, vectors, step)
        assert_step(optimizer, parameters, [sgd] * len(parameters))


@FORM
@given(vectors=vectors(at_least=2), sgd=momentum_settings())
def test_missing_gradient_differs_from_zero_gradient(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    With momentum, a gradient of None leaves a parameter unchanged, and a gradient of zero still updates it.

    A parameter with a zero gradient moves by its momentum buffer and its weight decay. Rejects: None treated as zero, a
    zero gradient that is skipped.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, sgd, form)
    give_gradients(stack, parameters, vectors, 0)
    optimizer.step()
    without_gradient, with_zero_gradient = parameters[0], parameters[1:]
    buffer = buffer_of(optimizer, without_gradient)
    assert buffer is not None, "a parameter has no momentum buffer after its first step"
    before = [without_gradient.detach().clone(), buffer.clone()]

    without_gradient.grad = None
    for parameter in with_zero_gradient:
        parameter.grad = torch.zeros_like(parameter)
    assert_step(optimizer, with_zero_gradient, [sgd] * len(with_zero_gradient))

    assert_same_bits(without_gradient, before[0], "the parameter without gradient")
    assert_same_bits(buffer, before[1], "the momentum buffer of the parameter without gradient")


@FORM
@given(vectors=vectors(), sgd=momentum_settings())
def test_first_momentum_buffer_is_the_gradient(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    Without weight decay, the first momentum buffer is a bit-identical copy of the gradient.

    With `maximize` it is a copy of the negated gradient. Rejects: a first buffer that is dampened, or that is the
    gradient tensor itself.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, replace(sgd, weight_decay=0.0), form)
    give_gradients(stack, parameters, vectors, 0)
    expected = [-parameter.grad if sgd.maximize else parameter.grad.clone() for parameter in parameters]

    optimizer.step()

    for i, (parameter, gradient) in enumerate(zip(parameters, expected, strict=True)):
        buffer = buffer_of(optimizer, parameter)
        assert buffer is not None, f"parameter {i} has no momentum buffer"
        assert_same_bits(buffer, gradient, f"momentum buffer {i}")
        assert buffer.data_ptr() != parameter.grad.data_ptr(), f"momentum buffer {i} shares memory with the gradient"


@FORM
@given(vectors=vectors(), sgd=settings())
@example(vectors=Vectors(), sgd=SGD(lr=0.5, momentum=0.5, nesterov=True))  # no decay or sign makes a copy first
def test_optimizer_step_leaves_gradients_unchanged(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    After each of three optimizer steps every `.grad` is the same tensor with the same bits.

    Rejects: weight decay, momentum or a sign that is written into the gradient, so that a step without `zero_grad`
    counts it twice.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, sgd, form)

    for step in range(OPTIMIZER_STEPS):
        give_gradients(stack, parameters, vectors, step)
        before = [(parameter.grad, parameter.grad.clone()) for parameter in parameters]
        optimizer.step()
        for i, (parameter, (grad, values)) in enumerate(zip(parameters, before, strict=True)):
            assert parameter.grad is grad, f"the `.grad` of parameter {i} is another tensor after step {step + 1}"
            assert_same_bits(grad, values, f"gradient {i} after step {step + 1}")


@FORM
@given(vectors=vectors(), sgd=settings())
def test_maximize_equals_minimize_with_negated_gradients(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    A step of `optim.SGD(maximize=True)` equals one of `maximize=False` with negated gradients, within its roundings.

    Not bit for bit: a compiler may fuse a multiplication and an addition in one of the two and not in the other.
    Rejects: `maximize` that is ignored, or that also negates the weight decay.
    """
    maximized, minimized = parameters_of(stack, vectors), parameters_of(stack, vectors)
    maximizer = optimizer_of(maximized, replace(sgd, maximize=True), form)
    minimizer = optimizer_of(minimized, replace(sgd, maximize=False), form)

    for step in range(OPTIMIZER_STEPS):
        give_gradients(stack, maximized, vectors, step)
        give_gradients(stack, minimized, vectors, step)
        exact = exact_step(maximizer, maximized, [replace(sgd, maximize=True)] * len(maximized))
        for parameter in minimized:
            parameter.grad.neg_()

        maximizer.step()
        minimizer.step()

        assert_stepped(maximizer, maximized, exact)
        assert_stepped(minimizer, minimized, exact)
        copy_state(maximizer, maximized, minimizer, minimized)


@FORM
@given(placed=placed(), sgd=settings())
def test_optimizer_step_is_correct_in_any_memory_layout(stack: Stack, form: str, placed: Placed, sgd: SGD) -> None:
    """
    Optimizer steps are correct for any memory layout of the parameter, its gradient and its buffer.

    Each of the three has its own layout (contiguous, channels_last, transposed, strided or offset), which changes from
    step to step. Rejects: elements that are paired by their position in memory instead of by their index.
    """
    for parameter, optimizer, _ in steps_in_layouts(stack, form, placed, sgd):
        assert_step(optimizer, [parameter], [sgd])


@FORM
@given(placed=placed(), sgd=settings())
def test_optimizer_step_writes_only_its_parameter(stack: Stack, form: str, placed: Placed, sgd: SGD) -> None:
    """
    If a parameter, gradient or buffer is a view, a step leaves the rest of the underlying tensor unchanged.

    Rejects: a kernel that iterates over memory instead of over the view.
    """
    for _, optimizer, views in steps_in_layouts(stack, form, placed, sgd):
        with unchanged_outside(views):
            optimizer.step()


def steps_in_layouts(
    stack: Stack, form: str, placed: Placed, sgd: SGD
) -> Iterator[tuple[nn.Parameter, optim.SGD, list[Tensor]]]:
    """
    Yield, before each step, the parameter, its optimizer, and the tensors that the step uses in their drawn layouts.

    These tensors are the parameter's values, its gradient and, from the second step on, its momentum buffer if it has
    one. The caller takes the step.
    """
    optimizer = None
    for (parameter, views), (_, _, buffer_layout) in zip(placed_parameters(stack, placed), placed.layouts, strict=True):
        optimizer = optimizer or optimizer_of([parameter], sgd, form)
        if (buffer := buffer_of(optimizer, parameter)) is not None:
            views.append(lay_out(buffer, buffer_layout))
            optimizer.state[parameter]["momentum_buffer"] = views[-1]
        yield parameter, optimizer, views


@FORM
@hypothesis_settings(max_examples=2)  # each example has 111 to 128 tensors and over 66,000 elements
@given(vectors=many_vectors(), sgd=settings())
def test_many_and_large_parameters_step_by_the_formula(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    `optim.SGD` updates each of more than 110 parameters, empty ones and one of more than 65,536 elements included.

    Two steps, and the momentum buffers too. Rejects: tensors or elements beyond the limit of a multi-tensor kernel that
    are left out, an empty parameter that shifts the gradients or buffers of those that follow it.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, sgd, form)
    large = int(np.argmax(vectors.sizes))
    small = [parameter for i, parameter in enumerate(parameters) if i != large]

    for step in range(2):
        give_gradients(stack, parameters, vectors, step)
        buffers = [buffer for parameter in small if (buffer := buffer_of(optimizer, parameter)) is not None]
        gradients = flat([parameter.grad for parameter in small])
        exact, _ = sgd.step(flat(small), gradients, flat(buffers) if buffers else None, stack.precision)
        assert_step(optimizer, parameters[large : large + 1], [sgd])
        assert_rounded(torch.from_numpy(flat(small)), exact, f"the other parameters after step {step + 1}")


@given(
    form=FORMS,
    vectors=short_vectors(at_least=3),
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    sgd=settings(),
)
def test_parameters_of_mixed_dtypes_and_devices_step_by_the_formula(
    stack: Stack, form: str, vectors: Vectors, dtypes: list[torch.dtype], sgd: SGD
) -> None:
    """
    `optim.SGD` updates each parameter in its own dtype and on its own device if one group contains several of them.

    On a GPU every third parameter is on the CPU. Rejects: gradients or buffers in the dtype of the first parameter,
    parameters of another dtype or device that are left out or paired with the gradients of others.
    """
    parameters = in_dtypes(parameters_of(stack, vectors), [*dtypes, stack.dtype])
    parameters = [nn.Parameter(p.detach().cpu()) if i % 3 == 2 else p for i, p in enumerate(parameters)]
    optimizer = optimizer_of(parameters, sgd, form)

    for step in range(OPTIMIZER_STEPS):
        for parameter, gradient in zip(parameters, vectors.gradients(step), strict=True):
            parameter.grad = torch.from_numpy(gradient).to(parameter.device, parameter.dtype)
        assert_step(optimizer, parameters, [sgd] * len(parameters))


@given(
    form=FORMS,
    vectors=short_vectors(at_least=3),
    sgd=momentum_settings(),
    added=momentum_settings(),
    events=st.permutations(["freeze", "add group", "load own state", "unfreeze"]),
)
def test_long_lived_optimizer_steps_by_the_formula(
    stack: Stack, form: str, vectors: Vectors, sgd: SGD, added: SGD, events: list[str]
) -> None:
    """
    An optimizer follows its formula while parameters are frozen, unfrozen and added, and its state saved and loaded.

    These happen in any order, with a step after each. A frozen parameter has no gradient, so it and its momentum buffer
    stay unchanged until it is unfrozen, as the documentation of `zero_grad` says of gradients that are None. The
    last parameter is added in a group of its own, as the documentation of `add_param_group` describes for fine-tuning.
    Rejects: a buffer that is lost, reset or decays while its parameter is frozen, a new group that takes the settings
    or the buffers of the first, state that is loaded in another order.
    """
    parameters = parameters_of(stack, vectors)
    frozen, new = parameters[0], parameters[-1]
    optimizer, sgds = optimizer_of(parameters[:-1], sgd, form), [sgd] * (len(parameters) - 1)
    give_gradients(stack, parameters, vectors)
    assert_step(optimizer, parameters[:-1], sgds)

    for step, event in enumerate(events, 1):
        before = [copy.deepcopy(buffer_of(optimizer, parameter)) for parameter in parameters]
        if event == "add group":
            optimizer.add_param_group({"params": [new], **asdict(added)})
            sgds.append(added)
        elif event == "load own state":
            optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
        else:
            frozen.requires_grad_(event == "unfreeze")
        give_gradients(stack, parameters, vectors, step)
        assert_buffers(optimizer, parameters, before, f"after event {step}, {event}")
        if frozen.requires_grad:
            assert_step(optimizer, parameters[: len(sgds)], sgds)
        else:
            frozen.grad, values = None, frozen.detach().clone()
            assert_step(optimizer, parameters[1 : len(sgds)], sgds[1:])
            assert_same_bits(frozen, values, f"the frozen parameter after step {step + 1}")
            assert_buffers(optimizer, [frozen], before[:1], f"of the frozen parameter after step {step + 1}")


def assert_buffers(
    optimizer: optim.SGD, parameters: list[nn.Parameter], expected: list[Tensor | None], when: str
) -> None:
    """Assert that each parameter has its expected momentum buffer, bit for bit, or none."""
    for i, (parameter, want) in enumerate(zip(parameters, expected, strict=True)):
        got = buffer_of(optimizer, parameter)
        assert (got is None) == (want is None), f"momentum buffer {i} {when} is {got}, expected {want}"
        if got is not None and want is not None:
            assert_same_bits(got, want, f"momentum buffer {i} {when}")


@contextmanager
def swapped_on_conversion(enabled: bool) -> Iterator[None]:
    """Within this block, conversions and loading swap a module's parameters, if enabled."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(enabled)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@given(
    loading=st.sampled_from([(False, False), (False, True), (True, True)]),
    form=FORMS,
    vectors=short_vectors(),
    sgd=momentum_settings(),
    seed=st.integers(0, 99),
)
def test_optimizer_trains_a_network_that_has_loaded_a_state(
    stack: Stack, loading: tuple[bool, bool], form: str, vectors: Vectors, sgd: SGD, seed: int
) -> None:
    """
    After `net.load_state_dict`, an optimizer made before trains the loaded parameters and keeps its momentum buffers.

    The documentation makes one exception: with `assign=True` the optimizer must be made afterwards, unless
    `torch.__future__.set_swap_module_params_on_conversion` is set. So without the setting no law judges `assign=True`.
    Rejects: parameters that are replaced by new ones, so that the optimizer silently trains tensors of no network.
    """
    assign, swap = loading
    net = nn.ParameterList(parameters_of(stack, vectors))
    optimizer, sgds = optimizer_of(net.parameters(), sgd, form), [sgd] * len(net)
    give_gradients(stack, [*net], vectors)
    assert_step(optimizer, [*net], sgds)
    buffers = [copy.deepcopy(buffer_of(optimizer, parameter)) for parameter in net]
    loaded = {str(i): p.detach() for i, p in enumerate(parameters_of(stack, replace(vectors, seed=seed)))}

    with swapped_on_conversion(swap):
        net.load_state_dict(copy.deepcopy(loaded), assign=assign)

    give_gradients(stack, [*net], vectors, 1)
    for name, parameter in net.named_parameters():
        assert_same_bits(parameter, loaded[name], f"parameter {name} after loading")
    assert_buffers(optimizer, [*net], buffers, "after loading")
    assert_step(optimizer, [*net], sgds)


@given(
    swap=st.booleans(),
    form=FORMS,
    vectors=short_vectors(),
    sgd=settings(),
    dtype=st.sampled_from(DTYPES),
    steps_before=st.integers(0, 1),
)
def test_optimizer_trains_a_network_that_has_another_dtype(
    stack: Stack, swap: bool, form: str, vectors: Vectors, sgd: SGD, dtype: torch.dtype, steps_before: int
) -> None:
    """
    After `net.to(dtype)`, an optimizer made before trains the converted parameters by its formula, with its momentum.

    PyTorch documents that conversions change the parameters in place or, if
    `torch.__future__.set_swap_module_params_on_conversion` is set, swap them. It does not say that momentum buffers are
    converted: if there are any, the step may raise RuntimeError instead, or compute in either of the two dtypes.
    Rejects: parameters that are replaced by new ones, momentum that is lost, a buffer read as if of the new dtype.
    """
    net = nn.ParameterList(parameters_of(stack, vectors))
    optimizer = optimizer_of(net.parameters(), sgd, form)
    for step in range(steps_before):
        give_gradients(stack, [*net], vectors, step)
        assert_step(optimizer, [*net], [sgd] * len(net))

    with swapped_on_conversion(swap):
        net.to(dtype)

    assert {parameter.dtype for parameter in net} == {dtype}, f"a parameter is not {dtype} after conversion"
    converted = replace(stack, dtype=dtype)
    give_gradients(converted, [*net], vectors, steps_before)
    coarser = max(stack, converted, key=lambda judged: judged.precision.unit)
    finest = max(stack.precision.underflow, converted.precision.underflow)
    precision = replace(coarser.precision, underflow=finest)
    exact = [
        sgd.step(float64(p).copy(), float64(p.grad), None if b is None else float64(b).copy(), precision)
        for p in net
        for b in [buffer_of(optimizer, p)]
    ]
    try:
        optimizer.step()
    except RuntimeError:
        if not (steps_before and sgd.momentum and dtype != stack.dtype):
            raise
    else:
        assert_stepped(optimizer, [*net], exact)


def test_compiled_step_uses_the_current_learning_rate(stack: Stack) -> None:
    """
    `torch.compile(optimizer.step)` follows the formula in each of five steps, each with another learning rate.

    The rate is set as schedulers set it: a new number three times, then a tensor that is changed in place. The
    implementation is the default one, and the backend `eager`, since the question is what Dynamo takes for constant.
    Rejects: a learning rate, a momentum or a step count of the first call that the graph contains.
    """
    if stack.dtype is not torch.float32:
        pytest.skip("what Dynamo takes for constant does not depend on the dtype; float32 is judged")
    vectors, sgd = Vectors(sizes=(1, 7), seed=1), SGD(lr=0.5, momentum=0.9, weight_decay=0.01)
    parameters = parameters_of(stack, vectors)
    optimizer = optim.SGD(parameters, **asdict(sgd))
    group = optimizer.param_groups[0]
    torch._dynamo.reset()  # after a number of graphs of one function, Dynamo would compile no more
    step_compiled = torch.compile(optimizer.step, backend="eager")

    for step, lr in enumerate([0.5, 0.1, 0.01, 0.3, 0.7]):
        if step < 3:
            group["lr"] = lr
        elif step == 3:
            group["lr"] = torch.tensor(lr, dtype=torch.float64)
        else:
            group["lr"].fill_(lr)
        give_gradients(stack, parameters, vectors, step)
        exact = exact_step(optimizer, parameters, [replace(sgd, lr=lr)] * len(parameters))
        step_compiled()
        assert_stepped(optimizer, parameters, exact)


@FORM
@given(vectors=vectors(), sgd=settings())
def test_loaded_optimizer_state_continues_bit_for_bit(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    An optimizer that loads another one's saved `state_dict` takes the same steps, bit for bit.

    The state is saved before the first step and after one step, and the settings are loaded with it. Rejects: a buffer
    that is lost, rounded or treated as a first one.
    """
    for steps_before in (0, 1):
        parameters = parameters_of(stack, vectors)
        optimizer = optimizer_of(parameters, sgd, form)
        for step in range(steps_before):
            give_gradients(stack, parameters, vectors, step)
            optimizer.step()
        copies = copy.deepcopy(parameters)
        restored = optim.SGD(copies, lr=1.0, **SGD_FORMS[form])
        restored.load_state_dict(saved_and_loaded(optimizer.state_dict()))

        for step in range(steps_before, steps_before + 2):
            for updated, updater in ((parameters, optimizer), (copies, restored)):
                give_gradients(stack, updated, vectors, step)
                updater.step()

        for i, (want, got) in enumerate(zip(parameters, copies, strict=True)):
            assert_same_bits(got, want, f"parameter {i}")


@FORM
@given(vectors=vectors(), sgd=momentum_settings())
def test_loaded_optimizer_state_is_independent(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    After `b.load_state_dict(a.state_dict())`, a step of `a` leaves the state of `b` unchanged.

    Rejects: momentum buffers that two optimizers share.
    """
    parameters, others = parameters_of(stack, vectors), parameters_of(stack, vectors)
    optimizer, other = optimizer_of(parameters, sgd, form), optimizer_of(others, sgd, form)
    give_gradients(stack, parameters, vectors, 0)
    optimizer.step()

    other.load_state_dict(optimizer.state_dict())
    buffers = [buffer_of(other, parameter) for parameter in others]
    assert all(buffer is not None for buffer in buffers), "a parameter has no momentum buffer after the state is loaded"
    copies = [buffer.clone() for buffer in buffers]
    give_gradients(stack, parameters, vectors, 1)
    optimizer.step()

    for i, (buffer, before) in enumerate(zip(buffers, copies, strict=True)):
        assert_same_bits(buffer, before, f"momentum buffer {i} of the other optimizer")


@given(sgd=settings(), other=settings())
def test_optimizer_leaves_given_group_dicts_unchanged(stack: Stack, sgd: SGD, other: SGD) -> None:
    """
    An optimizer does not write its defaults into the parameter group dictionaries that it is given.

    A second optimizer made from the same dictionaries therefore has its own defaults. Rejects: defaults of the first,
    such as its learning rate, that the second one takes from the dictionaries.
    """
    groups = [{"params": parameters_of(stack, Vectors())}]

    optim.SGD(groups, **asdict(sgd))
    second = optim.SGD(groups, **asdict(other))

    got = {name: second.param_groups[0][name] for name in asdict(other)}
    assert got == asdict(other), f"the second optimizer has the settings {got}, expected {asdict(other)}"


@given(lr=learning_rates(), new_lr=learning_rates())
def test_groups_do_not_share_a_learning_rate_tensor(stack: Stack, lr: float, new_lr: float) -> None:
    """
    An in-place change of one group's learning rate tensor leaves the learning rates of other groups unchanged.

    One tensor is given as the learning rate of all groups; schedulers change it in place. Rejects: one tensor that all
    groups share.
    """
    first, second = parameters_of(stack, Vectors(sizes=(1, 1)))
    optimizer = optim.SGD([{"params": [first]}, {"params": [second]}], lr=torch.tensor(lr, dtype=torch.float64))

    optimizer.param_groups[0]["lr"].fill_(new_lr)

    other_lr = float(optimizer.param_groups[1]["lr"])
    assert other_lr == lr, f"the learning rate of the other group is {other_lr}, expected {lr}"


@pytest.mark.parametrize(
    "invalid",
    [
        {"lr": -0.1},
        {"momentum": -0.1},
        {"weight_decay": -0.1},
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
    ],
    ids=str,
)
@FORM
def test_invalid_optimizer_settings_raise(stack: Stack, form: str, invalid: dict[str, Any]) -> None:
    """
    A negative setting of `optim.SGD` raises ValueError, and so does Nesterov without momentum or with dampening.

    Rejects: a setting that is accepted and then ignored.
    """
    parameters = parameters_of(stack, Vectors())

    with expect_error(ValueError, "Invalid|Nesterov", f"optim.SGD with {invalid}"):
        optim.SGD(parameters, **({"lr": 0.1} | invalid), **SGD_FORMS[form])


@FORM
@given(vectors=vectors(), sgd=settings())
def test_optimizer_step_reads_no_uninitialized_memory(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    Optimizer steps give the same bits when PyTorch fills all uninitialized memory with NaN.

    Rejects: a buffer that is read before it is written, and is correct only if memory happens to be zero.
    """
    plain, poisoned = parameters_of(stack, vectors), parameters_of(stack, vectors)

    for parameters in (plain, poisoned):
        optimizer = optimizer_of(parameters, sgd, form)
        for step in range(OPTIMIZER_STEPS):
            give_gradients(stack, parameters, vectors, step)
            with deterministic_algorithms(parameters is poisoned, warn_only=True):
                optimizer.step()

    for i, (got, want) in enumerate(zip(poisoned, plain, strict=True)):
        assert_same_bits(got, want, f"parameter {i}")


@FORM
@given(case=cases(weights=("default",), batches=(1, 2)), sgd=settings(), to_none=st.booleans())
def test_closure_is_evaluated_once_and_its_loss_returned(
    stack: Stack, form: str, case: Case, sgd: SGD, to_none: bool
) -> None:
    """
    `optimizer.step(closure)` calls the closure once, returns its loss and steps by the gradients it computes.

    Gradients are enabled within the closure even if `step` is called under `no_grad`. Rejects: a step by the gradients
    from before the closure, a closure that runs under `no_grad`.
    """
    net = stack.net(case)
    optimizer, losses = optimizer_of(net.parameters(), sgd, form), []
    net_copy = copy.deepcopy(net)
    expected_loss = stack.loss(net_copy, case)
    expected_loss.backward()
    optimizer_of(net_copy.parameters(), sgd, form).step()

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=to_none)
        losses.append(stack.loss(net, case))
        losses[-1].backward()
        return losses[-1]

    with torch.no_grad():
        loss = optimizer.step(closure)

    assert len(losses) == 1, f"the closure was called {len(losses)} times"
    assert loss is losses[0], "`step` did not return the closure's loss"
    assert_same_bits(loss, expected_loss, "loss")
    for (name, parameter), expected in zip(net.named_parameters(), net_copy.parameters(), strict=True):
        assert_same_bits(parameter, expected, name)


@FORM
@given(vectors=vectors(), sgd=settings())
def test_backward_after_step_raises_or_uses_saved_values(stack: Stack, form: str, vectors: Vectors, sgd: SGD) -> None:
    """
    Backward through a graph from before a step raises RuntimeError or uses the parameters from before the step.

    If it raises, the gradients that it has already computed use them, too. Rejects: a step that changes parameters
    without autograd's knowledge, so that backward silently uses the new ones.
    """
    parameters = parameters_of(stack, vectors)
    optimizer = optimizer_of(parameters, sgd, form)
    factors = [torch.ones_like(parameter, requires_grad=True) for parameter in parameters]
    product = torch.stack([(p * f).sum() for p, f in zip(parameters, factors, strict=True)]).sum()
    before = [parameter.detach().clone() for parameter in parameters]

    give_gradients(stack, parameters, vectors, 0)
    optimizer.step()
    raised = False
    try:
        product.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raised = True

    for i, (factor, old) in enumerate(zip(factors, before, strict=True)):
        what = f"the gradient that uses the saved parameter {i}"
        if factor.grad is not None:
            assert_same_bits(factor.grad, old, what)
        else:
            assert raised, f"{what} is None, and no error was raised"
