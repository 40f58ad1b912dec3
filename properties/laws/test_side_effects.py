"""Laws of side effects: what forward passes, training steps, copies and files leave unchanged."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import pickle
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lenet.engines.eager import deterministic_algorithms
from properties.case import Case
from properties.comparison import assert_same_bits
from properties.laws.networks import all_gradients, backward, expect_error, new_network, skip_unless_reference
from properties.stack import Stack, gradients
from properties.strategies import cases, learning_rates

FEW = (2, 1, 3)
"""Batch sizes of laws that do not depend on the batch size."""


def parameters_and_gradients(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter and of every gradient that is not None, by name."""
    return parameter_copies(net) | {f"{name}.grad": gradient for name, gradient in gradients(net).items()}


def parameter_copies(net: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter, by name."""
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def assert_parameters_and_gradients(net: nn.Module, expected: dict[str, Tensor]) -> None:
    """Assert that the parameters and gradients are bit for bit the expected ones, by name."""
    got = parameters_and_gradients(net)
    assert got.keys() == expected.keys(), f"the network has {', '.join(got)}, expected {', '.join(expected)}"
    for name, value in expected.items():
        assert_same_bits(got[name], value, name)


def base_of(tensor: Tensor) -> Tensor:
    """Return the tensor that `tensor` is a view of, or `tensor` itself if it is not a view."""
    return tensor if tensor._base is None else tensor._base


def global_state(stack: Stack) -> dict[str, Any]:
    """Return the settings and random states that the process has only once, by name."""
    tiny = torch.full((100_000,), torch.finfo(torch.float32).tiny, device=stack.device)  # enough for every thread
    return {
        "torch's random state": bytes(torch.get_rng_state().numpy()),
        "the GPU's random state": stack.device.type == "cuda" and bytes(torch.cuda.get_rng_state().numpy()),
        "NumPy's random state": pickle.dumps(np.random.get_state()),
        "Python's random state": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "the grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "the deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the number of threads": torch.get_num_threads(),
        "oneDNN's and cuDNN's flags": (
            torch.backends.mkldnn.enabled,
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
        ),
        "whether subnormal numbers are flushed to zero": bool((tiny / 2 == 0).any()),
    }


@contextmanager
def global_state_unchanged(stack: Stack) -> Iterator[None]:
    """Assert that the block changes no global state."""
    before = global_state(stack)
    yield
    after = global_state(stack)
    changed = [name for name, value in before.items() if after[name] != value]
    assert not changed, f"global state has changed: {', '.join(changed)}"


@pytest.mark.engine
@given(case=cases())
def test_forward_leaves_images_and_parameters_unchanged(stack: Stack, case: Case) -> None:
    """
    A forward pass leaves the images, the parameters and their gradients unchanged bit for bit.

    If the images are a view, the rest of their base tensor stays unchanged too, and every `.grad` stays the same tensor
    object. Rejects: an in-place activation on the input, weights that are normalized or clamped during the pass, a
    cleared gradient.
    """
    net, images = stack.net(case), stack.images(case)
    initial = parameter_copies(net)
    backward(stack, net, case)
    pixels, before = base_of(images).clone(), parameters_and_gradients(net) | initial
    grads = [p.grad for p in net.parameters()]

    net(images)

    assert_same_bits(base_of(images), pixels, "images")
    assert_parameters_and_gradients(net, before)
    moved = [name for (name, p), grad in zip(net.named_parameters(), grads, strict=True) if p.grad is not grad]
    assert not moved, f"`.grad` of {', '.join(moved)} is another tensor than before the forward pass"


@pytest.mark.engine
@given(case=cases(batches=FEW), training=st.booleans(), grad=st.booleans())
def test_forward_leaves_global_state_unchanged(stack: Stack, case: Case, training: bool, grad: bool) -> None:
    """
    A forward pass draws no random numbers and changes no global setting and no training flag.

    The random states of torch, the GPU, NumPy and Python; the default dtype, grad mode, deterministic mode, number of
    threads, oneDNN and cuDNN flags; whether subnormal numbers are flushed to zero. Rejects: dropout, a random seed that
    is set, flush-to-zero left on by a kernel (pytorch/pytorch#126848), a grad mode that is not restored.
    """
    net, images = stack.net(case).train(training), stack.images(case)

    with torch.set_grad_enabled(grad), global_state_unchanged(stack):
        net(images)

    assert all(module.training is training for module in net.modules()), "a training flag has changed"


@pytest.mark.engine
@given(case=cases(batches=FEW), lr=learning_rates())
def test_training_step_changes_only_the_network(stack: Stack, case: Case, lr: float) -> None:
    """
    A training step leaves the images, the targets and all global settings unchanged.

    The training flags and the parameters' `requires_grad` stay unchanged too. Rejects: a grad mode that is switched off
    for the update and not restored, targets scaled in place, a step that shuffles or sets a random seed.
    """
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)
    pixels, targets_before = base_of(images).clone(), targets.clone()

    with global_state_unchanged(stack):
        stack.subject.train_step(net, images, targets, lr)

    assert_same_bits(base_of(images), pixels, "images")
    assert_same_bits(targets, targets_before, "targets")
    assert all(module.training for module in net.modules()), "a training flag has changed"
    assert all(parameter.requires_grad for parameter in net.parameters()), "a parameter requires no gradient any more"


@pytest.mark.engine
@given(case=cases())
def test_same_call_gives_same_bits(stack: Stack, case: Case) -> None:
    """
    Calling a network again on the same images gives the same logits bit for bit.

    Also after a pass under `no_grad` or `inference_mode`. The logits of these passes must be the same too, unless an
    engine runs the network: it may compile a separate graph for inference. Rejects: randomness, a counter, a running
    average, a kernel for inference that differs from the one for training.
    """
    net, images = stack.net(case), stack.images(case)

    first = net(images)
    second = net(images)
    with torch.no_grad():
        without_graph = net(images)
    with torch.inference_mode():
        inferred = net(images)
    last = net(images)

    assert_same_bits(second, first, "the second call's logits")
    assert_same_bits(last, first, "the last call's logits")
    if stack.engine is None:
        assert_same_bits(without_graph, first, "logits under no_grad")
        assert_same_bits(inferred, first, "logits under inference_mode")


@pytest.mark.engine
@given(case=cases())
def test_train_and_eval_modes_agree(stack: Stack, case: Case) -> None:
    """
    Training mode and evaluation mode give the same logits and gradients bit for bit.

    Rejects: dropout, a softmax or a skipped layer in one of the modes.
    """
    in_training, in_evaluation = stack.net(case).train(), stack.net(case).eval()

    training_logits, evaluation_logits = in_training(stack.images(case)), in_evaluation(stack.images(case))
    backward(stack, in_training, case)
    backward(stack, in_evaluation, case)

    assert_same_bits(evaluation_logits, training_logits, "logits in evaluation mode")
    assert_parameters_and_gradients(in_evaluation, parameters_and_gradients(in_training))


@pytest.mark.engine
@given(case=cases(batches=FEW), lr=learning_rates())
def test_networks_share_no_state(stack: Stack, case: Case, lr: float) -> None:
    """
    Training or overwriting one network leaves another network's parameters, gradients and logits unchanged.

    Rejects: parameters, buffers or caches that belong to the class, a `Net()` that returns the same object twice.
    """
    net, other = stack.net(case), stack.net(case)
    backward(stack, other, case)
    before, logits = parameters_and_gradients(other), other(stack.images(case))

    stack.subject.train_step(net, stack.images(case), stack.targets(case), lr)
    overwrite(net)

    assert_parameters_and_gradients(other, before)
    assert_same_bits(other(stack.images(case)), logits, "the other network's logits")


def overwrite(net: nn.Module) -> None:
    """Change every parameter in place."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(-0.5).add_(1)


@pytest.mark.engine
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@given(case=cases(batches=(2, 1, 0)))
def test_no_graph_is_recorded_under_no_grad_or_inference_mode(
    stack: Stack, mode: Callable[[], Any], case: Case
) -> None:
    """
    Under `torch.no_grad()` and `torch.inference_mode()` the logits require no gradient and have no graph.

    Outside of these modes the same call records a graph. Logits computed under `no_grad` are ordinary tensors, which a
    later graph can use. Rejects: a network that enables gradients itself, so that the graph keeps its memory; logits
    under `no_grad` that are inference tensors.
    """
    net, images = stack.net(case), stack.images(case)

    with mode():
        inside = net(images)
    outside = net(images)

    name, inference = mode.__name__, mode is torch.inference_mode
    assert not inside.requires_grad, f"logits computed under {name} require a gradient"
    assert inside.grad_fn is None, f"logits computed under {name} have the grad_fn {inside.grad_fn}, expected None"
    assert inside.is_inference() is inference, (
        f"logits computed under {name} {'are not' if inference else 'are'} inference tensors"
    )
    assert outside.requires_grad, f"logits computed outside of {name} require no gradient"
    assert outside.grad_fn is not None, f"logits computed outside of {name} have no grad_fn"


def pickled(stack: Stack, net: nn.Module) -> nn.Module:
    """Return the network after pickling and unpickling; skip the law if the subject's class cannot be pickled."""
    try:
        content = pickle.dumps(net)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        skip_unless_reference(stack, f"this network cannot be pickled: {error}")
    copied: nn.Module = pickle.loads(content)
    return copied


def saved_and_loaded(stack: Stack, net: nn.Module) -> nn.Module:
    """Return a new network with the parameters of `net`, by way of `torch.save` and `torch.load`."""
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    copied = new_network(stack)
    copied.load_state_dict(torch.load(file, weights_only=True))
    return copied


def with_loaded_state(stack: Stack, net: nn.Module) -> nn.Module:
    """Return a new network that has loaded the state_dict of `net`."""
    copied = new_network(stack)
    copied.load_state_dict(net.state_dict())
    return copied


COPY_METHODS: dict[str, Callable[[Stack, nn.Module], nn.Module]] = {
    "deepcopy": lambda stack, net: copy.deepcopy(net),
    "pickle": pickled,
    "file": saved_and_loaded,
    "load_state_dict": with_loaded_state,
}
COPY_METHOD = pytest.mark.parametrize("method", COPY_METHODS)


@COPY_METHOD
@given(case=cases(batches=FEW))
def test_copies_are_bit_identical(stack: Stack, method: str, case: Case) -> None:
    """
    A copy of a network has the same parameters and gives the same logits bit for bit.

    By `copy.deepcopy`, pickle, `torch.save` and `torch.load`, or `load_state_dict`. The copied parameters have the same
    dtype and are trainable. Rejects: a lower precision during the copy, a lost or swapped entry, state that is not
    copied.
    """
    net = stack.net(case)

    copied = COPY_METHODS[method](stack, net)

    assert_parameters_and_gradients(copied, parameters_and_gradients(net))
    assert all(parameter.requires_grad for parameter in copied.parameters()), "a copied parameter is not trainable"
    assert_same_bits(copied(stack.images(case)), net(stack.images(case)), "the copy's logits")


@COPY_METHOD
@given(case=cases(batches=FEW))
def test_copies_share_no_memory(stack: Stack, method: str, case: Case) -> None:
    """
    A network and its copy share no memory: overwriting one leaves the other unchanged bit for bit.

    Rejects: a copy that shares a tensor or a layer with the original, or calls a function bound to the original.
    """
    net, images = stack.net(case), stack.images(case)
    before, logits = parameters_and_gradients(net), net(images)

    copied = COPY_METHODS[method](stack, net)
    overwrite(copied)
    assert_parameters_and_gradients(net, before)
    assert_same_bits(net(images), logits, "the original's logits")

    after, other_logits = parameters_and_gradients(copied), copied(images)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert_parameters_and_gradients(copied, after)
    assert_same_bits(copied(images), other_logits, "the copy's logits")


@given(case=cases(batches=FEW))
def test_load_with_assign_uses_the_given_tensors(stack: Stack, case: Case) -> None:
    """
    `load_state_dict(state, assign=True)` makes the given tensors themselves the network's trainable parameters.

    They keep their memory and every bit, so values written into a given tensor afterwards change the logits. Rejects: a
    copy, a network that continues to compute with its former parameters.
    """
    net, state = new_network(stack), parameter_copies(stack.net(case))

    net.load_state_dict(state, assign=True)

    untrained = [name for name, p in net.named_parameters() if not (isinstance(p, nn.Parameter) and p.requires_grad)]
    assert not untrained, f"{', '.join(untrained)} must be nn.Parameters with requires_grad=True"
    copied = [name for name, p in net.named_parameters() if p.data_ptr() != state[name].data_ptr()]
    assert not copied, f"{', '.join(copied)} must share the memory of the given tensors"
    assert_same_bits(net(stack.images(case)), stack.logits(case), "logits")
    for tensor in state.values():
        tensor.zero_()
    assert not net(stack.images(case)).any(), "the logits are not zero after the given tensors are set to zero"


@contextmanager
def file_of(content: Any) -> Iterator[Path]:
    """Return the path of a temporary file to which `torch.save` has written the content."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        torch.save(content, path)
        yield path


LOCATIONS: dict[str, Callable[[str], Any]] = {
    "none": lambda device: None,
    "a name": lambda device: device,
    "a device": lambda device: torch.device(device),
    "names by name": lambda device: {device: "cpu"},
    "a function": lambda device: lambda storage, location: storage,
    "meta": lambda device: "meta",
}
"""Values of `map_location` for tensors that were saved on a device."""


@example(mmap=False, case=Case(), location="meta")
@example(mmap=True, case=Case(), location="a name")
@given(mmap=st.booleans(), case=cases(batches=(1,)), location=st.sampled_from(list(LOCATIONS)))
def test_loaded_tensors_are_bit_identical_at_any_location(stack: Stack, mmap: bool, case: Case, location: str) -> None:
    """
    `torch.load` gives the saved tensors bit for bit, on the device that `map_location` names, read or mapped.

    `map_location` is a name, a `torch.device`, a dictionary of names, or a function that is given each storage in the
    CPU's memory; without it, tensors return to the device that they were saved on. On the device `meta` they have
    shapes and dtypes only. https://docs.pytorch.org/docs/stable/generated/torch.load.html Rejects: a location that is
    ignored, a file that is read up to its last element.
    """
    state, device = stack.net(case).state_dict(), str(stack.device)
    expected = {"a function": "cpu", "names by name": "cpu", "meta": "meta"}.get(location, device)

    with file_of(state) as path:
        loaded = torch.load(path, map_location=LOCATIONS[location](device), mmap=mmap)

    assert loaded.keys() == state.keys(), f"the file has {', '.join(loaded)}, expected {', '.join(state)}"
    for name, value in state.items():
        assert loaded[name].device == torch.device(expected), f"{name} is on {loaded[name].device}, not on {expected}"
        if expected != "meta":
            assert_same_bits(loaded[name], value, name)


@given(case=cases(weights=("default", "sparse"), batches=FEW), lr=learning_rates())
def test_training_leaves_a_mapped_file_unchanged(stack: Stack, case: Case, lr: float) -> None:
    """
    A network whose parameters are mapped from a file trains as one that has read them, and the file keeps every byte.

    `torch.load(mmap=True)` maps the file privately (MAP_PRIVATE), so that what is written stays in memory. Rejects: a
    mapping that is shared with the file, parameters that are read from the file again.
    """
    images, targets, nets = stack.images(case), stack.targets(case), []

    with file_of(stack.net(case).state_dict()) as path:
        content = path.read_bytes()
        for mmap in (False, True):
            nets.append(new_network(stack))
            nets[-1].load_state_dict(torch.load(path, mmap=mmap), assign=True)
            stack.subject.train_step(nets[-1], images, targets, lr)
        changed = path.read_bytes() != content  # outside the assertion: pytest would look for each different byte
        assert not changed, "training has changed the file from which the parameters are mapped"

    for name, parameter in nets[1].named_parameters():
        assert_same_bits(parameter, nets[0].get_parameter(name), name)


class CodeInFile:
    """An object whose unpickling calls a function, which creates a file."""

    def __init__(self, created: Path) -> None:
        self.created = created

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.created,)


def test_load_runs_no_code_by_default(stack: Stack) -> None:
    """
    `torch.load` refuses a file that contains code, and does not run it, unless it is called with `weights_only=False`.

    It raises `pickle.UnpicklingError`; the default is `weights_only=True` since PyTorch 2.6. Rejects: the former
    default, which ran whatever a downloaded file contained.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, created = Path(folder) / "state.pt", Path(folder) / "created"
        torch.save({"weights": stack.tensor(np.ones(3)), "code": CodeInFile(created)}, path)

        with expect_error(pickle.UnpicklingError, "", "torch.load of a file that contains code"):
            torch.load(path)

        assert not created.exists(), "torch.load has run the code in the file"
        torch.load(path, weights_only=False)
        assert created.exists(), "torch.load with weights_only=False has not run the code in the file"


@given(
    case=cases(weights=("default", "sparse"), batches=FEW),
    lr=learning_rates(),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
)
def test_training_resumes_bit_for_bit(stack: Stack, case: Case, lr: float, before: int, after: int) -> None:
    """
    Training that is saved to a file and resumed in a new network ends with the same parameters bit for bit.

    Plain SGD has no state except the parameters. Rejects: momentum, a step counter, a schedule or a cache that is
    missing from the state_dict.
    """
    uninterrupted, first = stack.net(case), stack.net(case)
    images, targets = stack.images(case), stack.targets(case)

    for _ in range(before + after):
        stack.subject.train_step(uninterrupted, images, targets, lr)
    for _ in range(before):
        stack.subject.train_step(first, images, targets, lr)
    second = saved_and_loaded(stack, first)
    for _ in range(after):
        stack.subject.train_step(second, images, targets, lr)

    for name, parameter in uninterrupted.named_parameters():
        assert_same_bits(second.get_parameter(name), parameter, f"{name} after {before} + {after} steps")


def copy_in_place(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the values into the parameters in place, as an optimizer does."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(state[name])


def assign_new_parameters(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Replace every parameter by a new Parameter with the given values."""
    for name, value in state.items():
        module, _, attribute = name.rpartition(".")
        setattr(net.get_submodule(module), attribute, nn.Parameter(value.clone()))


def copy_into_data(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the values into the parameters' `.data`, which bypasses autograd's version counters."""
    for name, parameter in net.named_parameters():
        parameter.data.copy_(state[name])


CHANGE_METHODS: dict[str, Callable[[nn.Module, dict[str, Tensor]], Any]] = {
    "in place": copy_in_place,
    ".data": copy_into_data,
    "load_state_dict": lambda net, state: net.load_state_dict(state),
    "assign=True": lambda net, state: net.load_state_dict(state, assign=True),
    "new Parameters": assign_new_parameters,
}
CHANGE_METHOD = pytest.mark.parametrize("method", CHANGE_METHODS)


@pytest.mark.engine
@CHANGE_METHOD
@given(old=cases(batches=FEW), case=cases(batches=FEW), grad=st.booleans())
def test_weight_changes_take_effect_immediately(stack: Stack, method: str, old: Case, case: Case, grad: bool) -> None:
    """
    After its weights change, a network gives the logits and gradients of a new network with the new weights.

    Bit for bit. The weights change in place, through `.data`, by `load_state_dict` with and without `assign=True`, or
    by new Parameters; the forward passes before and after run with or without a graph. Rejects: weights that are
    transposed, cast, packed or flattened once and cached, even if only for inference.
    """
    net, new = stack.net(old), stack.net(case)
    with torch.set_grad_enabled(grad):
        net(stack.images(old))

    CHANGE_METHODS[method](net, new.state_dict())

    with torch.set_grad_enabled(grad):
        assert_same_bits(net(stack.images(case)), new(stack.images(case)), "logits")
    backward(stack, net, case)
    backward(stack, new, case)
    assert_parameters_and_gradients(net, parameters_and_gradients(new))


@pytest.mark.engine
@given(case=cases(batches=FEW), seed=st.integers(0, 2**32 - 1), grad=st.booleans())
def test_image_changes_take_effect_immediately(stack: Stack, case: Case, seed: int, grad: bool) -> None:
    """
    New pixels, in the same tensor or in another of its shape, give the logits of a new network bit for bit.

    With or without a graph. Rejects: a result, or an intermediate result, that is cached by tensor, address or shape.
    """
    case = replace(case, layout="contiguous")
    net, new, images = stack.net(case), stack.net(case), stack.images(case)
    others = stack.images(replace(case, seed=seed))

    with torch.set_grad_enabled(grad):
        before = net(images).clone()
        in_another_tensor = net(others)
        repeated = net(images)
        images.copy_(others)
        in_the_same_tensor, expected = net(images), new(others)

    assert_same_bits(in_another_tensor, expected, "logits of new pixels in another tensor")
    assert_same_bits(repeated, before, "logits of the first tensor in a second pass")
    assert_same_bits(in_the_same_tensor, expected, "logits of new pixels in the same tensor")


def tensor_on(memory: Tensor, values: Tensor, identity: int = 0) -> Tensor:
    """
    Write the values to the memory of a tensor of the same number of elements; return a new tensor on this memory.

    Its address and version counter are those of all earlier ones, and if possible its `id` is this one.
    """
    memory.copy_(values.flatten())
    others = []  # Python gives the address of a deleted object to a new one, but not always to the next one
    for _ in range(64):
        tensor = torch.empty(0, dtype=values.dtype, device=values.device)
        if not identity or id(tensor) == identity:
            break
        others.append(tensor)
    return tensor.set_(memory.untyped_storage(), 0, values.shape, values.stride())


@pytest.mark.engine
@example(case=Case(), seed=1, grad=False)
@given(case=cases(batches=FEW), seed=st.integers(0, 2**32 - 1), grad=st.booleans())
def test_reused_memory_of_images_is_read_again(stack: Stack, case: Case, seed: int, grad: bool) -> None:
    """
    New images at the address of earlier ones, which no longer exist, give the logits of a new network bit for bit.

    The tensor is a new one with the address, the version counter and, without a graph, the `id` of the earlier one.
    Equal images at another address give the same logits. Rejects: a result that is cached by address, by address and
    version, or by `id`.
    """
    case = replace(case, layout="contiguous")
    first, second = stack.images(case), stack.images(replace(case, seed=seed))
    net, new, memory = stack.net(case), stack.net(case), torch.empty_like(first).flatten()

    with torch.set_grad_enabled(grad):
        expected, images = new(second), tensor_on(memory, first)
        before, identity = net(images).clone(), id(images)
        del images
        reused = net(tensor_on(memory, second, identity)).clone()
        elsewhere = net(first)

    assert_same_bits(reused, expected, "logits of new images at the same address")
    assert_same_bits(elsewhere, before, "logits of equal images at another address")


def set_to_new_storage(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Let every parameter refer to new memory with the given values, by `set_`."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.set_(torch.empty_like(parameter).copy_(state[name]))


def copy_under_inference_mode(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the values into the parameters in place, under `inference_mode`."""
    with torch.inference_mode():
        for name, parameter in net.named_parameters():
            parameter.copy_(state[name])


def assign_data(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Assign new tensors with the given values to the parameters' `.data`."""
    for name, parameter in net.named_parameters():
        parameter.data = torch.empty_like(parameter.data).copy_(state[name])


def write_to_memory(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Replace every parameter by a new Parameter at the same address, with the version counter of a new one."""
    for name, parameter in list(net.named_parameters()):
        module, _, attribute = name.rpartition(".")
        value = tensor_on(parameter.detach().flatten(), state[name])
        setattr(net.get_submodule(module), attribute, nn.Parameter(value))


MEMORY_METHODS: dict[str, Callable[[nn.Module, dict[str, Tensor]], None]] = {
    "set_": set_to_new_storage,
    "inference_mode": copy_under_inference_mode,
    ".data = ...": assign_data,
    "the same memory": write_to_memory,
}


@pytest.mark.engine
@example(method="set_", old=Case(), case=Case(seed=1), grad=False)
@example(method="inference_mode", old=Case(), case=Case(seed=1), grad=False)
@example(method=".data = ...", old=Case(), case=Case(seed=1), grad=False)
@example(method="the same memory", old=Case(), case=Case(seed=1), grad=False)
@given(
    method=st.sampled_from(list(MEMORY_METHODS)), old=cases(batches=FEW), case=cases(batches=FEW), grad=st.booleans()
)
def test_weights_in_other_or_reused_memory_take_effect(
    stack: Stack, method: str, old: Case, case: Case, grad: bool
) -> None:
    """
    Weights that move to other memory, or change in place unseen by version counters, take effect at the next pass.

    By `set_`, under `inference_mode`, by an assignment to `.data`, or by new Parameters at the same address. Logits and
    gradients are those of a new network bit for bit. Rejects: transposed, cast or packed weights that are cached by
    `id`, by address, or by address and version.
    """
    net, new, change = stack.net(old), stack.net(case), MEMORY_METHODS[method]
    change(net, stack.net(old).state_dict())
    with torch.set_grad_enabled(grad):
        net(stack.images(old))

    change(net, new.state_dict())

    with torch.set_grad_enabled(grad):
        assert_same_bits(net(stack.images(case)), new(stack.images(case)), "logits")
    backward(stack, net, case)
    backward(stack, new, case)
    assert_parameters_and_gradients(net, parameters_and_gradients(new))


LEAK_STEPS = 20
"""Steps between two measurements. What is kept in every step grows linearly, so 20 show it as well as 1,000."""


@pytest.mark.engine
def test_training_leaks_no_memory(stack: Stack) -> None:
    """
    Passes and training steps leave the number of tensors and the allocated memory as they are after ten of them.

    Measured four times, every 20 steps. What is kept in each step grows in each interval by one tensor, one pointer (8
    bytes) in a container of Python, or 256 bytes (a tensor's record and PyTorch's smallest allocation) a step at least;
    what grows in only one of three intervals is not kept in each step. Rejects: losses that are collected together with
    their graphs, a cache without a limit, a hook that each pass adds again.
    """
    case = Case()
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)

    def steps(count: int) -> dict[str, int]:
        for _ in range(count):
            stack.subject.train_step(net, images, targets, 0.01)
            net(images)
        return memory_in_use(stack)

    used = [steps(count) for count in (10, LEAK_STEPS, LEAK_STEPS, LEAK_STEPS)]

    for name, unit in {"tensors": 1, "bytes of Python's containers": 8, "allocated bytes": 256}.items():
        growth = min(after[name] - before[name] for before, after in pairwise(used))
        assert growth < LEAK_STEPS * unit, f"{LEAK_STEPS} steps increase the number of {name} by {growth:,} or more"


def memory_in_use(stack: Stack) -> dict[str, int]:
    """
    Return the number of tensors, the bytes of Python's containers, and those that PyTorch and other libraries allocate.

    On a CPU, the C library counts the allocated bytes, if it can.
    """
    gc.collect()
    containers = gc.get_objects()
    return {
        "tensors": sum(issubclass(type(value), Tensor) for value in containers),
        "bytes of Python's containers": sum(sys.getsizeof(value, 0) for value in containers),  # 0 if it fails
        "allocated bytes": torch.cuda.memory_allocated() if stack.device.type == "cuda" else bytes_of_c_library(),
    }


def bytes_of_c_library() -> int:
    """Return the bytes allocated by `malloc` and the like, or 0 if the C library has no `mallinfo2` (glibc has)."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library without a name
        return 0

    class Counts(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_: ClassVar = [(name, ctypes.c_size_t) for name in names.split()]

    mallinfo.restype = Counts
    counts = mallinfo()
    return int(counts.uordblks + counts.hblkhd)


def bfloat16_autocast(stack: Stack, cache: bool = True) -> torch.autocast:
    """Return an autocast region of bfloat16; skip the law if the device does not support autocast."""
    if not torch.amp.is_autocast_available(stack.device.type):
        pytest.skip(f"{stack.device.type} does not support autocast")
    return torch.autocast(stack.device.type, torch.bfloat16, cache_enabled=cache)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@given(case=cases(batches=FEW))
def test_no_grad_pass_does_not_affect_later_autocast_pass(stack: Stack, mode: Callable[[], Any], case: Case) -> None:
    """
    A pass without gradients does not change the logits and gradients of a later pass in the same autocast region.

    They equal those in a separate region bit for bit, and all ten parameters have a gradient. Rejects:
    pytorch/pytorch#112583 and #158232, where weights cast under `no_grad` were cached and the parameters then got no
    gradient.
    """
    net, fresh = stack.net(case), stack.net(case)

    with bfloat16_autocast(stack):
        with mode():
            net(stack.images(case))
        logits = net(stack.images(case))
    with bfloat16_autocast(stack):
        expected = fresh(stack.images(case))
    assert logits.requires_grad, "the logits have no graph"
    logits.float().sum().backward()
    expected.float().sum().backward()

    assert_same_bits(logits, expected, "logits")
    all_gradients(net)
    assert_parameters_and_gradients(net, parameters_and_gradients(fresh))


@CHANGE_METHOD
@given(old=cases(batches=FEW), case=cases(batches=FEW))
def test_weight_changes_take_effect_within_autocast(stack: Stack, method: str, old: Case, case: Case) -> None:
    """
    The next pass in an autocast region uses weights that changed inside the region, as a new region would.

    New Parameters are always used. Changes in place are judged in regions with `cache_enabled=False`, because other
    regions cache the cast of a float32 Parameter until they end, by design. Rejects: a cast cached by name or memory
    address.
    """
    cache = method in ("assign=True", "new Parameters")
    net, new = stack.net(old), stack.net(case)

    with bfloat16_autocast(stack, cache):
        net(stack.images(old))
        CHANGE_METHODS[method](net, new.state_dict())
        logits = net(stack.images(case))
    with bfloat16_autocast(stack):
        expected = new(stack.images(case))

    assert_same_bits(logits, expected, "logits")


@CHANGE_METHOD
@given(old=cases(batches=FEW), case=cases(batches=FEW))
def test_autocast_cache_ends_with_its_region(stack: Stack, method: str, old: Case, case: Case) -> None:
    """
    Weights changed between two autocast regions are used in the second region and in a pass after it.

    Rejects: a cast of the weights that outlives its region.
    """
    net, new = stack.net(old), stack.net(case)

    with bfloat16_autocast(stack):
        net(stack.images(old))
    CHANGE_METHODS[method](net, new.state_dict())
    with bfloat16_autocast(stack):
        logits = net(stack.images(case))
    after = net(stack.images(case))

    with bfloat16_autocast(stack):
        assert_same_bits(logits, new(stack.images(case)), "logits in the second region")
    assert_same_bits(after, new(stack.images(case)), "logits after the second region")


def training_results(stack: Stack, case: Case, lr: float, poisoned: bool) -> dict[str, Tensor]:
    """Return the logits, loss and gradients, and the loss and parameters of a training step, by name."""
    net, images, targets = stack.net(case), stack.images(case), stack.targets(case)
    with deterministic_algorithms(poisoned, warn_only=True):
        logits = net(images)
        loss = nn.functional.mse_loss(logits, targets)
        loss.backward()
        named_gradients = {f"{name}.grad": gradient for name, gradient in all_gradients(net).items()}
        step_loss = stack.subject.train_step(net, images, targets, lr)
    results = {"logits": logits, "loss": loss, "the training step's loss": step_loss}
    return results | named_gradients | parameter_copies(net)


@given(case=cases(), lr=learning_rates())
def test_uninitialized_memory_is_not_read(stack: Stack, case: Case, lr: float) -> None:
    """
    Filling uninitialized memory with NaN changes no bit of a forward pass, a backward pass or a training step.

    By `torch.utils.deterministic.fill_uninitialized_memory`. Rejects: a `torch.empty` tensor that is added to or only
    partly written, which usually contains zeros by chance.
    """
    expected = training_results(stack, case, lr, poisoned=False)

    poisoned = training_results(stack, case, lr, poisoned=True)

    for name, value in expected.items():
        assert_same_bits(poisoned[name], value, name)
