"""Laws of purity: what a forward pass, a copy and a file leave as it was."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet.engines.eager import deterministic
from properties.case import Case
from properties.comparison import assert_exact
from properties.stack import Stack, gradients
from properties.strategies import cases, learning_rates

FEW = (2, 1, 3)  # images, where the number of them does not matter


def contents(net: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and of every gradient, by name."""
    return parameters(net) | {f"{name}.grad": gradient for name, gradient in gradients(net).items()}


def parameters(net: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter, by name."""
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def assert_contents(net: nn.Module, want: dict[str, Tensor]) -> None:
    """Every parameter and every gradient is bit for bit what it was."""
    now = contents(net)
    assert now.keys() == want.keys()
    for name, value in want.items():
        assert_exact(now[name], value, name)


def whole(tensor: Tensor) -> Tensor:
    """The tensor, or the larger one that it is a view of."""
    return tensor if tensor._base is None else tensor._base


def empty(stack: Stack) -> nn.Module:
    """A new Net of the subject, with whatever parameters it begins with."""
    return stack.subject.Net().to(stack.device, stack.dtype)


def global_state(stack: Stack) -> dict[str, Any]:
    """What a process has but once, by name."""
    tiny = torch.full((100_000,), torch.finfo(torch.float32).tiny, device=stack.device)  # enough for every thread
    return {
        "torch's random numbers": bytes(torch.get_rng_state().numpy()),
        "the GPU's random numbers": stack.device.type == "cuda" and bytes(torch.cuda.get_rng_state().numpy()),
        "NumPy's random numbers": pickle.dumps(np.random.get_state()),
        "Python's random numbers": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "the grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "the deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the number of threads": torch.get_num_threads(),
        "oneDNN's and cuDNN's flags": (
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
        ),
        "what becomes of subnormal numbers": bool((tiny / 2 != 0).all()),
    }


@contextmanager
def global_state_unchanged(stack: Stack) -> Iterator[None]:
    """Nothing that a process has but once is other at the end; what would harm later laws is then put right."""
    before = global_state(stack)
    yield
    now = global_state(stack)
    changed = [name for name, value in before.items() if now[name] != value]
    if changed:
        torch.set_default_dtype(before["the default dtype"])
        torch.set_grad_enabled(before["the grad mode"][0])
        torch.use_deterministic_algorithms(before["the deterministic mode"])
        torch.set_num_threads(before["the number of threads"])
        torch.backends.mkldnn.enabled, *_, torch.backends.cudnn.benchmark = before["oneDNN's and cuDNN's flags"]
        torch.set_flush_denormal(False)
    assert not changed, f"{', '.join(changed)} changed"


@pytest.mark.engine
@given(case=cases())
def test_forward_leaves_images_and_parameters_unchanged(stack: Stack, case: Case) -> None:
    """
    After a forward pass the images, the parameters and their gradients are bit for bit what they were.

    So is what lies around the images, where they are a view of a larger tensor, and `.grad` is the same tensor.
    Rejects: an activation in place on the input, weights that are normalised or clamped on the way, a cleared gradient.
    """
    net, images = stack.net(case), stack.images(case)
    given = parameters(net)
    stack.loss(net, case).backward()
    pixels, before, grads = whole(images).clone(), contents(net) | given, [p.grad for p in net.parameters()]

    net(images)

    assert_exact(whole(images), pixels, "images")
    assert_contents(net, before)
    assert all(p.grad is grad for p, grad in zip(net.parameters(), grads, strict=True))


@pytest.mark.engine
@given(case=cases(batches=FEW), training=st.booleans(), grad=st.booleans())
def test_forward_leaves_global_state_unchanged(stack: Stack, case: Case, training: bool, grad: bool) -> None:
    """
    A forward pass draws no random number and changes no setting of the process, nor the network's training flag.

    Random numbers of torch, the GPU, NumPy and Python; default dtype, grad mode, deterministic mode, threads, oneDNN
    and cuDNN; whether subnormal numbers are kept. Rejects: dropout, a seed that is set, flush-to-zero left on by a
    kernel (pytorch/pytorch#126848), a grad mode that is not restored.
    """
    net, images = stack.net(case).train(training), stack.images(case)

    with torch.set_grad_enabled(grad), global_state_unchanged(stack):
        net(images)

    assert all(module.training is training for module in net.modules())


@pytest.mark.engine
@given(case=cases(batches=FEW), lr=learning_rates())
def test_training_step_changes_only_the_network(stack: Stack, case: Case, lr: float) -> None:
    """
    After a training step images and targets are bit for bit what they were, and no setting of the process has changed.

    The network's training flag and what its parameters require stay too. Rejects: an update inside `no_grad` that is
    not left, targets that are scaled in place, a step that shuffles or seeds.
    """
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)
    pixels, goals = whole(images).clone(), targets.clone()

    with global_state_unchanged(stack):
        stack.subject.train_step(net, images, targets, lr)

    assert_exact(whole(images), pixels, "images")
    assert_exact(targets, goals, "targets")
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.engine
@given(case=cases())
def test_same_call_gives_same_bits(stack: Stack, case: Case) -> None:
    """
    The same network on the same images gives the same scores bit for bit: again, without a graph, and again after that.

    Under `no_grad` and under `inference_mode` too, but for an engine, which may compile another graph for inference.
    Rejects: randomness, a counter, a running average, another kernel for inference than for training.
    """
    net, images = stack.net(case), stack.images(case)

    first = net(images)
    second = net(images)
    with torch.no_grad():
        without_graph = net(images)
    with torch.inference_mode():
        inferred = net(images)
    last = net(images)

    assert_exact(second, first, "the second call's logits")
    assert_exact(last, first, "the last call's logits")
    if stack.engine is None:
        assert_exact(without_graph, first, "logits under no_grad")
        assert_exact(inferred, first, "logits under inference_mode")


@pytest.mark.engine
@given(case=cases())
def test_train_and_eval_mode_agree(stack: Stack, case: Case) -> None:
    """
    After `net.eval()` scores and gradients are bit for bit those after `net.train()`: LeNet behaves the same in both.

    Rejects: dropout, a softmax or a skipped layer in one of the modes.
    """
    trained, evaluated = stack.net(case).train(), stack.net(case).eval()

    logits, same = trained(stack.images(case)), evaluated(stack.images(case))
    stack.loss(trained, case).backward()
    stack.loss(evaluated, case).backward()

    assert_exact(same, logits, "logits after eval()")
    assert_contents(evaluated, contents(trained))


@pytest.mark.engine
@given(case=cases(batches=FEW), lr=learning_rates())
def test_networks_share_no_state(stack: Stack, case: Case, lr: float) -> None:
    """
    Training one network, or overwriting its parameters, leaves another one's parameters, gradients and scores.

    Rejects: parameters, buffers or caches that belong to the class, a `Net()` that returns the same object twice.
    """
    net, other = stack.net(case), stack.net(case)
    stack.loss(other, case).backward()
    before, logits = contents(other), other(stack.images(case))

    stack.subject.train_step(net, stack.images(case), stack.targets(case), lr)
    overwrite(net)

    assert_contents(other, before)
    assert_exact(other(stack.images(case)), logits, "the other network's logits")


def overwrite(net: nn.Module) -> None:
    """Put other numbers into every parameter, in place."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-0.5).add_(1)


@pytest.mark.engine
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@given(case=cases(batches=(2, 1, 0)))
def test_no_graph_is_recorded_without_gradients(stack: Stack, mode: Callable[[], Any], case: Case) -> None:
    """
    Under `torch.no_grad()` and `torch.inference_mode()` the scores require no gradient and have no history.

    The same call outside of them has both; and under `no_grad` they are ordinary tensors, which a later graph can take.
    Rejects: a graph that is recorded all the same and keeps its memory, inference tensors that leak.
    """
    net, images = stack.net(case), stack.images(case)

    with mode():
        without = net(images)
    logits = net(images)

    assert not without.requires_grad
    assert without.grad_fn is None
    assert without.is_inference() is (mode is torch.inference_mode)
    assert logits.requires_grad
    assert logits.grad_fn is not None


def pickled(stack: Stack, net: nn.Module) -> nn.Module:
    """The network after pickling; skips where its class cannot be pickled."""
    try:
        content = pickle.dumps(net)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        pytest.skip(f"this network cannot be pickled: {error}")
    copied: nn.Module = pickle.loads(content)
    return copied


def filed(stack: Stack, net: nn.Module) -> nn.Module:
    """A new network with the parameters of a file that the old one's were saved to."""
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    copied = empty(stack)
    copied.load_state_dict(torch.load(file, weights_only=True))
    return copied


def loaded(stack: Stack, net: nn.Module) -> nn.Module:
    """A new network with the old one's state_dict."""
    copied = empty(stack)
    copied.load_state_dict(net.state_dict())
    return copied


COPIES: dict[str, Callable[[Stack, nn.Module], nn.Module]] = {
    "deepcopy": lambda stack, net: copy.deepcopy(net),
    "pickle": pickled,
    "file": filed,
    "load_state_dict": loaded,
}
COPIED = pytest.mark.parametrize("way", COPIES)


@COPIED
@given(case=cases(batches=FEW))
def test_copies_are_bit_identical(stack: Stack, way: str, case: Case) -> None:
    """
    A copy has every parameter bit for bit, in the same dtype and trainable, and gives the same scores bit for bit.

    By `copy.deepcopy`, pickle, `torch.save` and `torch.load`, and `load_state_dict`. Rejects: a lower precision on the
    way, a lost or swapped entry, state that a copy leaves behind.
    """
    net = stack.net(case)

    copied = COPIES[way](stack, net)

    assert_contents(copied, contents(net))
    assert all(parameter.requires_grad for parameter in copied.parameters())
    assert_exact(copied(stack.images(case)), net(stack.images(case)), "the copy's logits")


@COPIED
@given(case=cases(batches=FEW))
def test_copies_share_no_memory(stack: Stack, way: str, case: Case) -> None:
    """
    Overwriting a copy leaves the original's parameters and scores bit for bit; overwriting the original, the copy's.

    Rejects: a copy that shares a tensor, a layer or a function bound to the original.
    """
    net, images = stack.net(case), stack.images(case)
    before, logits = contents(net), net(images)

    copied = COPIES[way](stack, net)
    overwrite(copied)
    assert_contents(net, before)
    assert_exact(net(images), logits, "the original's logits")

    after, other_logits = contents(copied), copied(images)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert_contents(copied, after)
    assert_exact(copied(images), other_logits, "the copy's logits")


@given(case=cases(batches=FEW))
def test_load_with_assign_uses_the_given_tensors(stack: Stack, case: Case) -> None:
    """
    `load_state_dict(state, assign=True)` takes the given tensors themselves: their memory, trainable, all bits kept.

    What is then written into a given tensor is what the network computes with. Rejects: a copy, a network that goes on
    with its former parameters.
    """
    net, state = empty(stack), parameters(stack.net(case))

    net.load_state_dict(state, assign=True)

    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())
    elsewhere = [name for name, p in net.named_parameters() if p.data_ptr() != state[name].data_ptr()]
    assert not elsewhere, f"{', '.join(elsewhere)} has other memory than the given tensor"
    assert_exact(net(stack.images(case)), stack.logits(case), "logits")
    for tensor in state.values():
        tensor.zero_()
    assert not net(stack.images(case)).any()


@given(
    case=cases(weights=("default", "sparse"), batches=FEW),
    lr=learning_rates(),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
def test_training_resumes_bit_for_bit(stack: Stack, case: Case, lr: float, before: int, after: int) -> None:
    """
    Some steps, a file, a new network and some more steps give bit for bit what all the steps give without a break.

    Plain SGD keeps nothing from step to step but the parameters. Rejects: momentum, a step counter, a schedule or a
    cache that the state_dict does not hold.
    """
    straight, first = stack.net(case), stack.net(case)
    images, targets = stack.images(case), stack.targets(case)

    for _ in range(before + after):
        stack.subject.train_step(straight, images, targets, lr)
    for _ in range(before):
        stack.subject.train_step(first, images, targets, lr)
    second = filed(stack, first)
    for _ in range(after):
        stack.subject.train_step(second, images, targets, lr)

    for name, parameter in straight.named_parameters():
        assert_exact(second.get_parameter(name), parameter, f"{name} after {before} + {after} steps")


def in_place(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Write the numbers into the parameters, as an optimizer does."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(state[name])


def replaced(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Put new Parameters in the old ones' place."""
    for name, value in state.items():
        module, _, attribute = name.rpartition(".")
        setattr(net.get_submodule(module), attribute, nn.Parameter(value.clone()))


def behind_autograd(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Write the numbers into the parameters' `.data`, which no version counter notices."""
    for name, parameter in net.named_parameters():
        parameter.data.copy_(state[name])


CHANGES: dict[str, Callable[[nn.Module, dict[str, Tensor]], Any]] = {
    "in place": in_place,
    ".data": behind_autograd,
    "load_state_dict": lambda net, state: net.load_state_dict(state),
    "assign=True": lambda net, state: net.load_state_dict(state, assign=True),
    "new Parameters": replaced,
}
CHANGED = pytest.mark.parametrize("way", CHANGES)


@pytest.mark.engine
@CHANGED
@given(old=cases(batches=FEW), case=cases(batches=FEW), grad=st.booleans())
def test_weight_changes_take_effect_immediately(stack: Stack, way: str, old: Case, case: Case, grad: bool) -> None:
    """
    After the weights have changed, scores and gradients are bit for bit those of a new network with these weights.

    Changed in place, through `.data`, by `load_state_dict`, with `assign=True`, by new Parameters; both passes with or
    without a graph. Rejects: weights that are transposed, cast, packed or flattened once and kept, for inference too.
    """
    net, new = stack.net(old), stack.net(case)
    with torch.set_grad_enabled(grad):
        net(stack.images(old))

    CHANGES[way](net, new.state_dict())

    with torch.set_grad_enabled(grad):
        assert_exact(net(stack.images(case)), new(stack.images(case)), "logits")
    stack.loss(net, case).backward()
    stack.loss(new, case).backward()
    assert_contents(net, contents(new))


@pytest.mark.engine
@given(case=cases(batches=FEW), seed=st.integers(0, 2**32 - 1), grad=st.booleans())
def test_image_changes_take_effect_immediately(stack: Stack, case: Case, seed: int, grad: bool) -> None:
    """
    Other pixels in the same tensor, or in another of its shape, have the scores that a new network gives them.

    With or without a graph. Rejects: an answer, or what leads to it, that is kept for a tensor, a place or a shape.
    """
    case = replace(case, layout="contiguous")
    net, new, images = stack.net(case), stack.net(case), stack.images(case)
    others = stack.images(replace(case, seed=seed))

    with torch.set_grad_enabled(grad):
        before = net(images).clone()
        elsewhere = net(others)
        back = net(images)
        images.copy_(others)
        here, want = net(images), new(others)

    assert_exact(elsewhere, want, "logits of another tensor")
    assert_exact(back, before, "logits of the first tensor again")
    assert_exact(here, want, "logits of the same tensor with other pixels")


def autocast(stack: Stack, cache: bool = True) -> torch.autocast:
    """A region of bfloat16; skips where the device has none."""
    if not torch.amp.is_autocast_available(stack.device.type):
        pytest.skip(f"{stack.device.type} has no autocast")
    return torch.autocast(stack.device.type, torch.bfloat16, cache_enabled=cache)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@given(case=cases(batches=FEW))
def test_no_grad_pass_does_not_affect_later_autocast_pass(stack: Stack, mode: Callable[[], Any], case: Case) -> None:
    """
    Inside one autocast region, a pass without gradients leaves the next one's scores and gradients as they would be.

    Bit for bit as in a region of its own, for all ten parameters. Rejects: pytorch/pytorch#112583 and #158232, where
    weights cast under `no_grad` were kept and the parameters then got no gradient.
    """
    net, fresh = stack.net(case), stack.net(case)

    with autocast(stack):
        with mode():
            net(stack.images(case))
        logits = net(stack.images(case))
    with autocast(stack):
        want = fresh(stack.images(case))
    assert logits.requires_grad, "the scores have no graph"
    logits.float().sum().backward()
    want.float().sum().backward()

    assert_exact(logits, want, "logits")
    assert len(gradients(net)) == 10, f"only {', '.join(gradients(net))} have a gradient"
    assert_contents(net, contents(fresh))


@CHANGED
@given(old=cases(batches=FEW), case=cases(batches=FEW))
def test_weight_changes_take_effect_within_autocast(stack: Stack, way: str, old: Case, case: Case) -> None:
    """
    Weights changed inside an autocast region count at the next forward pass inside it, as they would in a new region.

    New Parameters always do. For a change in place the region must be one with `cache_enabled=False`: the others, by
    design, keep the cast of a float32 Parameter until they end. Rejects: a cast kept by name or by place in memory.
    """
    cache = way in ("assign=True", "new Parameters")
    net, new = stack.net(old), stack.net(case)

    with autocast(stack, cache):
        net(stack.images(old))
        CHANGES[way](net, new.state_dict())
        logits = net(stack.images(case))
    with autocast(stack):
        want = new(stack.images(case))

    assert_exact(logits, want, "logits")


@CHANGED
@given(old=cases(batches=FEW), case=cases(batches=FEW))
def test_autocast_cache_ends_with_its_region(stack: Stack, way: str, old: Case, case: Case) -> None:
    """
    Weights changed between two autocast regions count in the second, and a pass after both is as if there were none.

    Rejects: a cast of the weights that outlives its region.
    """
    net, new = stack.net(old), stack.net(case)

    with autocast(stack):
        net(stack.images(old))
    CHANGES[way](net, new.state_dict())
    with autocast(stack):
        logits = net(stack.images(case))
    plain = net(stack.images(case))

    with autocast(stack):
        assert_exact(logits, new(stack.images(case)), "logits inside the second region")
    assert_exact(plain, new(stack.images(case)), "logits after it")


def everything(stack: Stack, case: Case, lr: float, poisoned: bool) -> dict[str, Tensor]:
    """Scores, loss, gradients, and the parameters after a training step."""
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)
    with deterministic(poisoned, warn_only=True):
        logits = net(images)
        loss = nn.functional.mse_loss(logits, targets)
        loss.backward()
        slope = {f"{name}.grad": gradient for name, gradient in gradients(net).items()}
        stepped = stack.subject.train_step(net, images, targets, lr)
    return {"logits": logits, "loss": loss, "the step's loss": stepped} | slope | parameters(net)


@given(case=cases(), lr=learning_rates())
def test_uninitialized_memory_is_not_read(stack: Stack, case: Case, lr: float) -> None:
    """
    Scores, loss, gradients and a training step are bit for bit the same where new memory is filled with NaN.

    By `torch.utils.deterministic.fill_uninitialized_memory`. Rejects: `torch.empty` that is added to or only partly
    written, which is usually zero by luck.
    """
    want = everything(stack, case, lr, poisoned=False)

    poisoned = everything(stack, case, lr, poisoned=True)

    for name, value in want.items():
        assert_exact(poisoned[name], value, name)
