"""Laws of `optim.SGD` with all its settings, in each of its forms: for-loop, foreach and fused."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn, optim

from lenet.engines.eager import deterministic
from lenet.training import SGD_FORMS
from lenet.update import SGD
from properties.case import Case
from properties.comparison import assert_exact, assert_rounded
from properties.stack import Stack, float64, lay_out
from properties.strategies import Placed, Vectors, cases, learning_rates, placed, settings, vectors

FORM = pytest.mark.parametrize("form", SGD_FORMS)
STEPS = 3


def with_momentum() -> st.SearchStrategy[SGD]:
    """Settings under which the optimizer keeps a state."""
    return settings().filter(lambda chosen: chosen.momentum > 0)


def optimizer_of(parameters: Any, chosen: SGD, form: str) -> optim.SGD:
    """`optim.SGD` with the chosen settings, in a form."""
    return optim.SGD(parameters, **asdict(chosen), **SGD_FORMS[form])


def parameters_of(stack: Stack, drawn: Vectors) -> list[nn.Parameter]:
    """The drawn vectors as parameters, still without gradients."""
    return [nn.Parameter(stack.tensor(value)) for value in drawn.parameters()]


def give_gradients(stack: Stack, parameters: list[nn.Parameter], drawn: Vectors, step: int) -> None:
    """Each parameter gets its own new gradient of this step."""
    for parameter, gradient in zip(parameters, drawn.gradients(step), strict=True):
        parameter.grad = stack.tensor(gradient)


def buffer_of(optimizer: optim.SGD, parameter: Tensor) -> Tensor | None:
    """The momentum buffer that the optimizer keeps of a parameter."""
    return optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None


def assert_step(stack: Stack, optimizer: optim.SGD, parameters: list[nn.Parameter], chosen: list[SGD]) -> None:
    """Take a step; every parameter and buffer is then what its settings make of what it was, within its roundings."""
    exact = []
    for parameter, own in zip(parameters, chosen, strict=True):
        assert parameter.grad is not None
        buffer = buffer_of(optimizer, parameter)
        numbers = [float64(part).copy() if part is not None else None for part in (parameter, parameter.grad, buffer)]
        exact.append(own.step(*numbers, stack.precision))

    optimizer.step()

    for i, (parameter, (after, velocity)) in enumerate(zip(parameters, exact, strict=True)):
        assert_rounded(parameter, after, f"parameter {i}")
        buffer = buffer_of(optimizer, parameter)
        if velocity is not None:
            assert buffer is not None, f"parameter {i} has no momentum buffer"
            assert_rounded(buffer, velocity, f"momentum buffer {i}")


@FORM
@given(drawn=vectors(), chosen=settings(), tensor=st.booleans())
def test_sgd_steps_match_the_formula(stack: Stack, form: str, drawn: Vectors, chosen: SGD, tensor: bool) -> None:
    """
    Each of three steps makes of parameter, gradient and buffer what the documented formula says, within its roundings.

    With momentum, dampening, decay, Nesterov, maximize; the learning rate as a number or as a tensor; parameters of
    1 to 48,000 elements. Rejects: dampening on the first step, decoupled decay, Nesterov's order, a shared buffer.
    """
    parameters = parameters_of(stack, drawn)
    optimizer = optimizer_of(parameters, chosen, form)
    if tensor:
        optimizer.param_groups[0]["lr"] = torch.tensor(chosen.lr, dtype=torch.float64)

    for step in range(STEPS):
        give_gradients(stack, parameters, drawn, step)
        assert_step(stack, optimizer, parameters, [chosen] * len(parameters))


@FORM
@given(drawn=vectors(at_least=2), first=settings(), second=settings())
def test_parameter_groups_use_their_own_settings(
    stack: Stack, form: str, drawn: Vectors, first: SGD, second: SGD
) -> None:
    """
    Parameters in two groups are updated each by the settings of its own group.

    Rejects: settings of the first, the last or the default group used for all.
    """
    parameters = parameters_of(stack, drawn)
    groups = [{"params": parameters[:1], **asdict(first)}, {"params": parameters[1:], **asdict(second)}]
    optimizer = optim.SGD(groups, **SGD_FORMS[form])

    for step in range(STEPS):
        give_gradients(stack, parameters, drawn, step)
        assert_step(stack, optimizer, parameters, [first] + [second] * (len(parameters) - 1))


@FORM
@given(drawn=vectors(), chosen=with_momentum(), lr=learning_rates())
def test_learning_rate_change_takes_effect_at_next_step(
    stack: Stack, form: str, drawn: Vectors, chosen: SGD, lr: float
) -> None:
    """
    A learning rate set in `param_groups` counts from the next step on, as schedulers need it.

    Rejects: a rate that is kept from the first step, or one that is mixed into the momentum buffer.
    """
    parameters = parameters_of(stack, drawn)
    optimizer = optimizer_of(parameters, chosen, form)

    for step, own in enumerate([chosen, replace(chosen, lr=lr)]):
        optimizer.param_groups[0]["lr"] = own.lr
        give_gradients(stack, parameters, drawn, step)
        assert_step(stack, optimizer, parameters, [own] * len(parameters))


@FORM
@given(drawn=vectors(at_least=2), chosen=settings())
def test_late_first_gradient_takes_a_first_step(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    A parameter that gets its first gradient at the second step takes a first step then; the others go on.

    Rejects: a buffer that begins at zero or is missing, a state made by a step that was skipped.
    """
    parameters = parameters_of(stack, drawn)
    optimizer = optimizer_of(parameters, chosen, form)
    early, late = parameters[1:], parameters[0]
    before = late.detach().clone()

    give_gradients(stack, parameters, drawn, 0)
    late.grad = None
    assert_step(stack, optimizer, early, [chosen] * len(early))
    assert_exact(late, before, "the parameter without gradient")
    assert buffer_of(optimizer, late) is None

    for step in range(1, STEPS):
        give_gradients(stack, parameters, drawn, step)
        assert_step(stack, optimizer, parameters, [chosen] * len(parameters))


@FORM
@given(drawn=vectors(at_least=2), chosen=with_momentum())
def test_missing_gradient_differs_from_zero_gradient(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    In motion, a parameter whose gradient is None stays as it is, and one whose gradient is zero moves on and decays.

    Rejects: a None treated as zero, a zero gradient skipped.
    """
    parameters = parameters_of(stack, drawn)
    optimizer = optimizer_of(parameters, chosen, form)
    give_gradients(stack, parameters, drawn, 0)
    optimizer.step()
    resting, moving = parameters[0], parameters[1:]
    velocity = buffer_of(optimizer, resting)
    assert velocity is not None
    before = [resting.detach().clone(), velocity.clone()]

    resting.grad = None
    for parameter in moving:
        parameter.grad = torch.zeros_like(parameter)
    assert_step(stack, optimizer, moving, [chosen] * len(moving))

    assert_exact(resting, before[0], "the parameter without gradient")
    assert_exact(velocity, before[1], "its momentum buffer")


@FORM
@given(drawn=vectors(), chosen=with_momentum())
def test_first_momentum_buffer_is_the_gradient(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    After the first step without decay the momentum buffer is the gradient bit for bit, undampened, in its own memory.

    Rejects: a first buffer that is dampened, or that is the gradient tensor itself.
    """
    parameters = parameters_of(stack, drawn)
    optimizer = optimizer_of(parameters, replace(chosen, weight_decay=0.0), form)
    give_gradients(stack, parameters, drawn, 0)
    kept = [-parameter.grad if chosen.maximize else parameter.grad.clone() for parameter in parameters]

    optimizer.step()

    for i, (parameter, gradient) in enumerate(zip(parameters, kept, strict=True)):
        buffer = buffer_of(optimizer, parameter)
        assert buffer is not None
        assert_exact(buffer, gradient, f"momentum buffer {i}")
        assert buffer.data_ptr() != parameter.grad.data_ptr()


@FORM
@given(drawn=vectors(), chosen=settings())
@example(drawn=Vectors(), chosen=SGD(lr=0.5, momentum=0.5, nesterov=True))  # neither decay nor sign has made a copy
def test_optimizer_step_leaves_gradients_unchanged(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    Whatever the settings, after three steps every `.grad` is the tensor that it was, bit for bit.

    Rejects: decay, momentum or a sign put into the gradient itself, so that a step without zero_grad counts it twice.
    """
    parameters = parameters_of(stack, drawn)
    optimizer = optimizer_of(parameters, chosen, form)

    for step in range(STEPS):
        give_gradients(stack, parameters, drawn, step)
        held = [(parameter.grad, parameter.grad.clone()) for parameter in parameters]
        optimizer.step()
        for i, (parameter, (grad, kept)) in enumerate(zip(parameters, held, strict=True)):
            assert parameter.grad is grad
            assert_exact(grad, kept, f"gradient {i} after step {step + 1}")


@FORM
@given(drawn=vectors(), chosen=settings())
def test_maximize_equals_minimize_with_negated_gradients(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    `maximize=True` gives bit for bit what `maximize=False` gives for the negative gradients.

    Rejects: maximize ignored, or applied to the decay too.
    """
    up, down = parameters_of(stack, drawn), parameters_of(stack, drawn)
    upward = optimizer_of(up, replace(chosen, maximize=True), form)
    downward = optimizer_of(down, replace(chosen, maximize=False), form)

    for step in range(STEPS):
        for parameters, optimizer in ((up, upward), (down, downward)):
            give_gradients(stack, parameters, drawn, step)
            if optimizer is downward:
                for parameter in parameters:
                    parameter.grad.neg_()
            optimizer.step()

    for i, (one, other) in enumerate(zip(up, down, strict=True)):
        assert_exact(one, other, f"parameter {i}")


@FORM
@given(case=placed(), chosen=settings())
def test_optimizer_step_is_right_in_any_memory_layout(stack: Stack, form: str, case: Placed, chosen: SGD) -> None:
    """
    Steps are right to their roundings in every memory layout of parameter, gradient and buffer, also one that changes.

    Contiguous, channels_last, transposed, strided and offset, each drawn by itself and anew for every step.
    Rejects: elements paired by their place in memory instead of by their index.
    """
    for parameter, optimizer, _ in placed_steps(stack, form, case, chosen):
        assert_step(stack, optimizer, [parameter], [chosen])


@FORM
@given(case=placed(), chosen=settings())
def test_optimizer_step_writes_only_its_parameter(stack: Stack, form: str, case: Placed, chosen: SGD) -> None:
    """
    Where parameter, gradient or buffer is a view of a larger tensor, the rest of that tensor stays as it was.

    Rejects: a kernel that runs through memory instead of through the view.
    """
    for _, optimizer, views in placed_steps(stack, form, case, chosen):
        frames = [view._base for view in views if view._base is not None]
        outside = [frame.isnan() for frame in frames]
        for frame, canaries in zip(frames, outside, strict=True):
            frame[canaries] = 1.0

        optimizer.step()

        for frame, canaries in zip(frames, outside, strict=True):
            assert (frame[canaries] == 1.0).all(), "an element outside of the view was written"


def placed_steps(
    stack: Stack, form: str, case: Placed, chosen: SGD
) -> Iterator[tuple[nn.Parameter, optim.SGD, list[Tensor]]]:
    """Before each step: the parameter, its optimizer, and the parameter, gradient and buffer, newly laid out."""
    parameter = nn.Parameter(stack.tensor(case.values(0)))
    optimizer = optimizer_of([parameter], chosen, form)
    for step, (of_parameter, of_gradient, of_buffer) in enumerate(case.layouts):
        views = [
            lay_out(parameter.detach(), of_parameter),
            lay_out(stack.tensor(case.values(step + 1)), of_gradient),
        ]
        parameter.grad = None
        parameter.data = views[0]
        parameter.grad = views[1]
        if (buffer := buffer_of(optimizer, parameter)) is not None:
            views.append(lay_out(buffer, of_buffer))
            optimizer.state[parameter]["momentum_buffer"] = views[-1]
        yield parameter, optimizer, views


@FORM
@given(drawn=vectors(), chosen=settings())
def test_loaded_optimizer_state_continues_bit_for_bit(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    An optimizer that loads another's saved `state_dict` goes on as the other does, bit for bit; its settings too.

    Saved before the first step, and after one. Rejects: a buffer lost, rounded or taken for a first one.
    """
    for before in (0, 1):
        parameters = parameters_of(stack, drawn)
        optimizer = optimizer_of(parameters, chosen, form)
        for step in range(before):
            give_gradients(stack, parameters, drawn, step)
            optimizer.step()
        twins = copy.deepcopy(parameters)
        restored = optim.SGD(twins, lr=1.0, **SGD_FORMS[form])
        restored.load_state_dict(through_a_file(optimizer.state_dict()))

        for step in range(before, before + 2):
            for own, stepping in ((parameters, optimizer), (twins, restored)):
                give_gradients(stack, own, drawn, step)
                stepping.step()

        for i, (one, other) in enumerate(zip(parameters, twins, strict=True)):
            assert_exact(other, one, f"parameter {i}")


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """The state as `torch.save` and `torch.load` leave it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@FORM
@given(drawn=vectors(), chosen=with_momentum())
def test_loaded_optimizer_state_is_independent(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    After `b.load_state_dict(a.state_dict())` a step of `a` leaves the state of `b` as it was.

    Rejects: buffers that two optimizers share.
    """
    parameters, others = parameters_of(stack, drawn), parameters_of(stack, drawn)
    optimizer, other = optimizer_of(parameters, chosen, form), optimizer_of(others, chosen, form)
    give_gradients(stack, parameters, drawn, 0)
    optimizer.step()

    other.load_state_dict(optimizer.state_dict())
    buffers = [buffer_of(other, parameter) for parameter in others]
    kept = [buffer.clone() for buffer in buffers if buffer is not None]
    give_gradients(stack, parameters, drawn, 1)
    optimizer.step()

    assert len(kept) == len(buffers)
    for i, (buffer, before) in enumerate(zip(buffers, kept, strict=True)):
        assert buffer is not None
        assert_exact(buffer, before, f"the other's momentum buffer {i}")


@given(chosen=settings(), other=settings())
def test_optimizer_leaves_given_group_dicts_unchanged(stack: Stack, chosen: SGD, other: SGD) -> None:
    """
    The dictionaries that describe an optimizer's groups are the caller's: a second optimizer takes its own defaults.

    Rejects: defaults of the first written into them, so that the second is given the first's learning rate.
    """
    groups = [{"params": parameters_of(stack, Vectors())}]

    optim.SGD(groups, **asdict(chosen))
    second = optim.SGD(groups, **asdict(other))

    assert [second.param_groups[0][name] for name in asdict(other)] == list(asdict(other).values())


@given(lr=learning_rates(), changed=learning_rates())
def test_groups_do_not_share_a_learning_rate_tensor(stack: Stack, lr: float, changed: float) -> None:
    """
    With one tensor as learning rate for all, changing it in one group, in place, leaves the other groups' as it was.

    Schedulers change it so. Rejects: one tensor that all groups share.
    """
    one, two = parameters_of(stack, Vectors(sizes=(1, 1)))
    optimizer = optim.SGD([{"params": [one]}, {"params": [two]}], lr=torch.tensor(lr, dtype=torch.float64))

    optimizer.param_groups[0]["lr"].fill_(changed)

    assert float(optimizer.param_groups[1]["lr"]) == lr


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
    Negative rates, and Nesterov's momentum without momentum or with dampening, raise ValueError.

    Rejects: a setting that is taken and then ignored.
    """
    parameters = parameters_of(stack, Vectors())

    with pytest.raises(ValueError, match=r"Invalid|Nesterov"):
        optim.SGD(parameters, **({"lr": 0.1} | invalid), **SGD_FORMS[form])


@FORM
@given(drawn=vectors(), chosen=settings())
def test_optimizer_step_reads_no_uninitialized_memory(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    Steps give the same bits when PyTorch fills all memory that it reserves with NaN.

    Rejects: a buffer that is read before it is written, and is right only where memory happens to be zero.
    """
    plain, poisoned = parameters_of(stack, drawn), parameters_of(stack, drawn)

    for parameters in (plain, poisoned):
        optimizer = optimizer_of(parameters, chosen, form)
        for step in range(STEPS):
            give_gradients(stack, parameters, drawn, step)
            with deterministic(parameters is poisoned, warn_only=True):
                optimizer.step()

    for i, (got, want) in enumerate(zip(poisoned, plain, strict=True)):
        assert_exact(got, want, f"parameter {i}")


@FORM
@given(case=cases(weights=("default",), batches=(1, 2)), chosen=settings(), to_none=st.booleans())
def test_closure_is_evaluated_once_and_its_loss_returned(
    stack: Stack, form: str, case: Case, chosen: SGD, to_none: bool
) -> None:
    """
    `step(closure)` calls the closure once, with gradients enabled, returns its loss, and steps by its gradients.

    Also under `no_grad`. Rejects: a step by the gradients from before, a closure under `no_grad`.
    """
    net = stack.net(case)
    optimizer, calls = optimizer_of(net.parameters(), chosen, form), []
    twin = copy.deepcopy(net)
    expected = stack.loss(twin, case)
    expected.backward()
    optimizer_of(twin.parameters(), chosen, form).step()

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=to_none)
        calls.append(stack.loss(net, case))
        calls[-1].backward()
        return calls[-1]

    with torch.no_grad():
        loss = optimizer.step(closure)

    assert len(calls) == 1
    assert loss is calls[0]
    assert_exact(loss, expected, "loss")
    for (name, parameter), right in zip(net.named_parameters(), twin.parameters(), strict=True):
        assert_exact(parameter, right, name)


@FORM
@given(drawn=vectors(), chosen=settings())
def test_backward_after_step_raises_or_uses_saved_values(stack: Stack, form: str, drawn: Vectors, chosen: SGD) -> None:
    """
    Backward through a graph that is older than a step raises RuntimeError, or gives the gradient as of before the step.

    Rejects: parameters changed behind autograd's back, so that saved weights are silently the new ones.
    """
    parameters = parameters_of(stack, drawn)
    optimizer = optimizer_of(parameters, chosen, form)
    factors = [torch.ones_like(parameter, requires_grad=True) for parameter in parameters]
    product = torch.stack([(p * f).sum() for p, f in zip(parameters, factors, strict=True)]).sum()
    before = [parameter.detach().clone() for parameter in parameters]

    give_gradients(stack, parameters, drawn, 0)
    optimizer.step()
    try:
        product.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return

    for i, (factor, old) in enumerate(zip(factors, before, strict=True)):
        assert_exact(factor.grad, old, f"the gradient that parameter {i} was saved for")
