"""Laws of hooks: functions that a module calls before and after its forward pass and its backward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from properties.case import Case
from properties.comparison import assert_same_bits
from properties.laws.networks import all_gradients, gradient_of, ordinary_cases, with_exact_scaling
from properties.stack import Stack

SEEDS = st.integers(0, 2**32 - 1)


def backward_of(stack: Stack, net: nn.Module, case: Case) -> tuple[Tensor, Tensor]:
    """
    Run the backward pass of sum(targets * logits); return the logits and the images, both with their `.grad`.

    The images are contiguous. Backward hooks make a view of them, which may have another stride in the channel's
    dimension of size 1, and other kernels for it, whose results are rounded differently.
    """
    images = stack.images(replace(case, layout="contiguous")).requires_grad_()
    logits = net(images)
    logits.retain_grad()
    (logits * stack.targets(case)).sum().backward()
    return logits, images


@given(case=ordinary_cases())
def test_full_backward_hooks_receive_the_gradients(stack: Stack, case: Case) -> None:
    """
    Backward hooks of the network receive the gradients with respect to its logits and its images, and change none.

    `register_full_backward_pre_hook` gives the first before the network's backward pass, `register_full_backward_hook`
    both after it, bit for bit those that a network without hooks has. See "Backward Hooks execution" in
    https://docs.pytorch.org/docs/stable/notes/autograd.html. Rejects: a hook that is not called, gradients that are
    exchanged or scaled.
    """
    net, plain, received = stack.net(case), stack.net(case), {}
    net.register_full_backward_pre_hook(lambda module, outputs: received.update(before=outputs))
    net.register_full_backward_hook(lambda module, inputs, outputs: received.update(inputs=inputs, outputs=outputs))
    logits, images = backward_of(stack, plain, case)

    _, hooked_images = backward_of(stack, net, case)

    assert received.keys() == {"before", "inputs", "outputs"}, f"the hooks received {', '.join(received) or 'nothing'}"
    assert_same_bits(received["before"][0], gradient_of(logits), "gradient of the logits in the hook before")
    assert_same_bits(received["outputs"][0], gradient_of(logits), "gradient of the logits in the hook after")
    assert_same_bits(received["inputs"][0], gradient_of(images), "gradient of the images in the hook after")
    assert_same_bits(gradient_of(hooked_images), gradient_of(images), "images.grad")
    unhooked = all_gradients(plain)
    for name, gradient in all_gradients(net).items():
        assert_same_bits(gradient, unhooked[name], f"{name}.grad")


@given(case=ordinary_cases())
def test_gradients_that_backward_hooks_return_are_used(stack: Stack, case: Case) -> None:
    """
    What a backward hook returns replaces the gradient: before the pass that of the logits, after it that of the images.

    The first doubles the gradients of all parameters, the second changes the sign of the images' gradient alone, both
    bit for bit. Rejects: a returned gradient that is ignored, or used for the parameters too.
    """
    case = with_exact_scaling(stack, case)
    net, plain = stack.net(case), stack.net(case)
    net.register_full_backward_pre_hook(lambda module, outputs: (2 * outputs[0],))
    net.register_full_backward_hook(lambda module, inputs, outputs: (-inputs[0],))
    _, images = backward_of(stack, plain, case)

    _, hooked_images = backward_of(stack, net, case)

    assert_same_bits(gradient_of(hooked_images), -2 * gradient_of(images), "images.grad")
    unhooked = all_gradients(plain)
    for name, gradient in all_gradients(net).items():
        assert_same_bits(gradient, 2 * unhooked[name], f"{name}.grad")


@example(case=Case(), seed=1)
@given(case=ordinary_cases(), seed=SEEDS)
def test_values_that_forward_hooks_return_are_used(stack: Stack, case: Case, seed: int) -> None:
    """
    What a forward pre-hook returns replaces the images, and what a forward hook returns replaces the logits.

    The forward hook receives the replaced images and their logits, bit for bit. Rejects: a returned value that is
    ignored, a hook that receives the original images.
    """
    net, other, received = stack.net(case), stack.images(replace(case, seed=seed)), []
    expected = net(other)
    net.register_forward_pre_hook(lambda module, inputs: (other,))
    net.register_forward_hook(lambda module, inputs, logits: (received.extend([inputs[0], logits]), -logits)[1])

    logits = net(stack.images(case))

    assert len(received) == 2, "the forward hook was not called once"
    assert_same_bits(received[0], other, "images that the forward hook receives")
    assert_same_bits(received[1], expected, "logits that the forward hook receives")
    assert_same_bits(logits, -expected, "logits")


HOOKS = ("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook")


@example(kind="forward_pre_hook", prepended=[False, True, False], removed={1})
@example(kind="forward_hook", prepended=[False, True, False], removed={1})
@example(kind="full_backward_pre_hook", prepended=[False, True, False], removed={1})
@example(kind="full_backward_hook", prepended=[False, True, False], removed={1})
@given(
    kind=st.sampled_from(HOOKS),
    prepended=st.lists(st.booleans(), min_size=2, max_size=4),
    removed=st.sets(st.integers(0, 3)),
)
def test_hooks_run_in_order_until_removed(stack: Stack, kind: str, prepended: list[bool], removed: set[int]) -> None:
    """
    Hooks run in the order in which they were registered, those with `prepend=True` first, until they are removed.

    Each runs once in a pass, and no more after `handle.remove()`. Rejects: another order, a hook that cannot be
    removed, a handle that removes another hook.
    """
    case, called, expected = Case(), [], list[int]()
    net = stack.net(case)
    register: Any = getattr(net, f"register_{kind}")

    handles = []
    for number, prepend in enumerate(prepended):
        handles.append(register(lambda *_, number=number: called.append(number), prepend=prepend))
        expected.insert(0 if prepend else number, number)
    backward_of(stack, net, case)
    assert called == expected, f"the hooks ran in the order {called}, expected {expected}"

    for number in removed & set(range(len(handles))):
        handles[number].remove()
    called.clear()
    backward_of(stack, net, case)
    kept = [number for number in expected if number not in removed]
    assert called == kept, f"after the removal of {removed} the hooks ran in the order {called}, expected {kept}"
